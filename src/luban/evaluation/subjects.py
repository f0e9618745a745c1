"""What is measured: models on disk and n-gram baselines, scored on the same documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from luban.corpus.documents import Document
from luban.examples.conversations import Conversation
from luban.foundation.artifacts import Artifact, Input
from luban.foundation.console import track
from luban.foundation.custom import load_custom
from luban.foundation.errors import ConfigError
from luban.inference.config import SamplingConfig
from luban.inference.generate import LoadedModel, generate, prompt_ids
from luban.inference.scoring import score_documents, score_tokens
from luban.metrics.language import DocumentScores, byte_lengths
from luban.metrics.score import signature
from luban.models.huggingface import read_shape
from luban.models.ngram import KneserNey

LONGEST_AUTO = 2048
ROW_TOKENS = 4096  # tokens of one forward pass


@dataclass(frozen=True)
class Subject:
    """A model to be measured. ``name`` is its stage's or folder's."""

    name: str
    path: Path
    from_scratch: bool
    trained_length: int  # tokens of context it was trained with; 0 where nothing says

    @classmethod
    def of(cls, source: Input) -> Subject:
        if not isinstance(source, Artifact):
            return cls(source.name or str(source), source, False, 0)
        manifest = source.manifest
        length = manifest.get("resolved", {}).get("sequence_length", 0)
        from_scratch = not manifest.get("config", {}).get("model")
        return cls(str(manifest.get("name") or source.path.name), source.path, from_scratch, length if isinstance(length, int) else 0)


def context_length(subjects: Sequence[Subject], wanted: int | str) -> int:
    """Tokens of context that every model can use: as trained, else its maximum, at most 2,048."""
    lengths = [min(read_shape(subject.path).maximum_positions, subject.trained_length or LONGEST_AUTO) for subject in subjects]
    limits = [read_shape(subject.path).maximum_positions for subject in subjects]
    return min(lengths) if wanted == "auto" else min(int(wanted), *limits)


@dataclass
class Measured:
    """What one model gave."""

    scores: DocumentScores
    signature: str
    vocabulary_size: int
    first_tokens: list[int]
    conversations: DocumentScores | None
    samples: list[dict[str, str]]
    own: dict[str, float]  # of the user's metrics


def measure_model(
    subject: Subject,
    documents: Sequence[Document],
    conversations: Sequence[Conversation],
    length: int,
    prompts: Sequence[str],
    questions: Sequence[str],
    sampling: SamplingConfig,
    metrics: Sequence[str] = (),
) -> Measured:
    """Score the documents and conversations with one model, and let it write."""
    loaded = LoadedModel.load(subject.path)
    loaded.model.eval()
    tokenizer = loaded.tokenizer
    start = tokenizer.end_of_text_id if tokenizer.begin_of_text_id is None else tokenizer.begin_of_text_id
    sequences = [[*ids, tokenizer.end_of_text_id] for ids in tokenizer.encode_batch([document.text for document in documents])]
    rows = max(1, ROW_TOKENS // length)
    scored = score_documents(loaded.model, sequences, sequence_length=length, batch_rows=rows, start_id=start)
    pairs = list(track(scored, "scoring {name}", total=len(sequences), name=subject.name))
    nats, tokens = (np.array(column, np.float64) for column in zip(*pairs, strict=True))
    return Measured(
        DocumentScores(nats, tokens, byte_lengths([document.text for document in documents])),
        signature(bytes="utf8", context=length, stride=max(1, length // 2), start=start, eot="yes", tok=tokenizer.fingerprint()[:8]),
        loaded.model.shape.vocabulary_size,
        [start, *sequences[0][:15]],
        _score_conversations(loaded, conversations, length, rows),
        _write(loaded, subject.name, prompts, questions, sampling),
        {_metric_name(reference): _own_metric(reference, loaded, documents) for reference in metrics},
    )


def _metric_name(reference: str) -> str:
    return reference.rpartition(":")[2]


def _own_metric(reference: str, loaded: LoadedModel, documents: Sequence[Document]) -> float:
    """The number that the user's function gives for a model. ConfigError when it fails or gives no number."""
    function = load_custom(reference)
    try:
        return float(function(loaded, [document.text for document in documents]))
    except Exception as error:
        raise ConfigError("{reference}: {kind}: {error}", "a metric is a function of the loaded model and a list of texts that returns a number", "", reference=reference, kind=type(error).__name__, error=error) from error


def _score_conversations(loaded: LoadedModel, conversations: Sequence[Conversation], length: int, rows: int) -> DocumentScores | None:
    """Nats on what the assistant says and the token that ends its turn, for each conversation."""
    if not conversations or loaded.tokenizer.chat_template is None:
        return None
    examples = [(index, example) for index, item in enumerate(conversations) for example in loaded.tokenizer.encode_examples(item.messages, tools=item.tools)]
    nats, words = np.zeros(len(conversations)), np.zeros(len(conversations))
    scored = score_tokens(loaded.model, [example.ids for _, example in examples], sequence_length=length, batch_rows=rows)
    for (index, example), paid in zip(examples, scored, strict=True):
        weights = np.array(example.weights[1:])
        nats[index] += float(weights @ paid.double().numpy())
        words[index] += weights.sum()
    return DocumentScores(nats, words, np.zeros(len(conversations)))


def _write(loaded: LoadedModel, name: str, prompts: Sequence[str], questions: Sequence[str], sampling: SamplingConfig) -> list[dict[str, str]]:
    """Continuations and answers. Of a prompt that leaves no room in the context its end is read; such a question is left out."""
    positions = loaded.model.longest_text
    room = positions - min(sampling.maximum_tokens, positions // 2)
    asked = [(prompt, prompt_ids(loaded.tokenizer, prompt)[-room:]) for prompt in prompts]
    if loaded.tokenizer.chat_template is not None:
        for question in questions:
            ids = loaded.tokenizer.encode_chat([{"role": "user", "content": question}], add_generation_prompt=True)
            asked += [(question, ids)] if len(ids) <= room else []
    answers = generate(loaded.model, loaded.tokenizer, [ids for _, ids in asked], sampling)
    return [{"model": name, "prompt": prompt, "text": answer.text} for (prompt, _), answer in zip(asked, answers, strict=True)]


def untrained(measured: Measured) -> DocumentScores:
    """The closed form of a model that knows nothing: every token of the vocabulary equally likely."""
    return DocumentScores(measured.scores.tokens * np.log(measured.vocabulary_size), measured.scores.tokens, measured.scores.bytes)


def measure_ngrams(orders: Sequence[int], training: Sequence[str], texts: Sequence[str]) -> list[tuple[int, DocumentScores, str]]:
    """Character n-grams of the given orders. The vocabulary is every character of the training and the held-out text.

    Knowing which characters will come is more than the neural models know: it makes the baselines a little better than
    they could be in earnest, never worse.
    """
    vocabulary = len(set().union(*map(set, training), *map(set, texts)))
    model = KneserNey(training, max(orders), vocabulary)
    sizes = byte_lengths(texts)
    ends = np.array([len(text) + 1 for text in texts])
    said = signature(bytes="utf8", model="kneser-ney-modified", vocabulary=f"{vocabulary}-training-and-held-out", eot="yes", tok="characters")
    return [(order, DocumentScores(model.nats(texts, order), ends, sizes), f"order:{order}|{said}") for order in orders]


def automatic_prompts(documents: Sequence[Document], languages: Sequence[str]) -> list[str]:
    """The first line of a held-out document of each language: the first document whose first line says something."""
    prompts = []
    for language in languages or [""]:
        lines = (document.text.strip().partition("\n")[0][:60] + "\n" for document in documents if document.language == language or not languages)
        prompts += [next((line for line in lines if len(line) > 3), "")]
    return [prompt for prompt in prompts if prompt][:4]
