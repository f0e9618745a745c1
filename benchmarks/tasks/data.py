"""Slices of real data: read as Luban reads them, split by content, and written in a form that reads back as the same examples."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks.tasks.rows import TaskRow
from luban.examples.reading import read_examples
from luban.examples.splitting import hold_out, leaks, place, texts_of
from luban.examples.tasks import Choice, LabeledText, Question, Ranking, RelationText, TaggedText, TextPair

SEED = 1


def slices(row: TaskRow, data: Path, train: int | None = None) -> tuple[list[Any], list[Any]]:
    """(training examples, test examples): the test share is taken by content and label, then both are thinned by the hash of their texts.

    A smaller slice lies inside a larger one. No text of the one stands in the other.
    """
    paths = [data / part for part in row.data.split()]
    change = CHANGES.get(row.reader)
    examples = read_examples(paths, "question_answering").examples if change else READERS[row.reader](row, paths)
    examples = [example for example in examples if getattr(example, "label", "") is not None and getattr(example, "answer", 0) is not None]
    share = min(0.5, max(0.05, row.test / len(examples)))
    training, test = hold_out(examples, share, stratify=True, seed=SEED)
    training, test = (sorted(part, key=lambda example: (place(texts_of(example)[0], SEED + 1), texts_of(example))) for part in (training, test))
    training, test = training[: train or row.train], test[: row.test]
    assert not leaks(training, test).count
    return (change(training), change(test)) if change else (training, test)


def read_files(row: TaskRow, paths: Sequence[Path]) -> list[Any]:
    return read_examples(paths, row.task, dict(row.mapping) or None).examples


def read_four_choices(row: TaskRow, paths: Sequence[Path]) -> list[Choice]:
    """Questions with four choices; transformers' model for multiple choice reads rows of one number of them."""
    return [example for example in read_files(row, paths) if len(example.choices) == 4]


def to_passages(questions: Sequence[Question]) -> list[Ranking]:
    """Each question with the paragraph that answers it; retrieval is among the paragraphs of all test questions."""
    return [Ranking(one.question.strip(), [one.context.strip()], [1.0], one.source) for one in _distinct(questions)]


def to_candidates(questions: Sequence[Question]) -> list[Ranking]:
    """Each question with its paragraph and the five others of the same side that BM25 ranks highest."""
    from luban.fitting.bm25 import BM25

    kept = _distinct([replace(one, question=one.question.strip(), context=one.context.strip()) for one in questions])
    contexts = list(dict.fromkeys(one.context for one in kept))
    _, numbers = BM25(contexts).search([one.question for one in kept], 6)
    made = []
    for one, found in zip(kept, numbers, strict=True):
        others = [contexts[number] for number in found if contexts[number] != one.context][:5]
        documents = sorted([one.context, *others], key=lambda text: place(text, SEED))
        made.append(Ranking(one.question, documents, [float(text == one.context) for text in documents], one.source))
    return made


def _distinct(questions: Sequence[Question]) -> list[Question]:
    """The first of questions in the same words: rows of one query would be read as one example."""
    return list({one.question: one for one in reversed(questions)}.values())[::-1]


def read_tatoeba(row: TaskRow, paths: Sequence[Path]) -> list[TextPair]:
    """Chinese without the spaces that the file puts between words."""
    found = read_examples(paths, "text_pairs", {"input": 1, "output": 2}).examples
    return [replace(one, output=re.sub(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])", "", one.output)) for one in found]


def read_couplets(row: TaskRow, paths: Sequence[Path]) -> list[TextPair]:
    """Lines "A，B。" of classical verse: B is to be written from A."""
    made: dict[str, TextPair] = {}
    for file in sorted(file for path in paths for file in path.rglob("*") if ".json" in file.name):
        content = file.read_bytes()
        text = (gzip.decompress(content) if file.suffix == ".gz" else content).decode("utf-8")
        for first, second in re.findall(r"([\u4e00-\u9fff]{5,7})，([\u4e00-\u9fff]{5,7})。", text):
            if len(first) == len(second):
                made.setdefault(first, TextPair(first, second, source=file.name))
    return list(made.values())


READERS = {"files": read_files, "four_choices": read_four_choices, "tatoeba": read_tatoeba, "couplets": read_couplets}

CHANGES = {"passages": to_passages, "candidates": to_candidates}  # after the split, which is by paragraph


def write(examples: Sequence[Any], file: Path, task: str) -> tuple[Path, dict[str, Any]]:
    """Write examples as JSON lines; (file, mapping) with which they are read back. AssertionError where they read back as others."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row_of(example, task), ensure_ascii=False) + "\n" for example in examples), encoding="utf-8")
    mapping = mapping_of(examples[0])
    again = read_examples([file], task, mapping).examples
    assert [bare(example) for example in again] == [bare(example) for example in examples], f"{file} reads back as other examples"
    return file, mapping


def bare(example: Any) -> Any:
    """The example without what says where it came from."""
    if isinstance(example, Question):
        return replace(example, source="", identity="")
    if isinstance(example, RelationText):
        return replace(example, source="", head=(example.head.start, example.head.end), tail=(example.tail.start, example.tail.end))
    return replace(example, source="")


def row_of(example: Any, task: str) -> dict[str, Any]:
    """An example as plain data."""
    if isinstance(example, LabeledText):
        return {"text": example.text, "text_pair": example.pair, "label": example.label}
    if isinstance(example, TaggedText):
        if example.words is None:
            return {"text": example.text, "spans": [[span.start, span.end, span.label] for span in example.spans]}
        return {"words": [example.text[start:end] for start, end in example.words], "tags": word_tags(example)}
    if isinstance(example, RelationText):
        ends = {name: {"text": example.text[span.start : span.end], "start": span.start, "end": span.end} for name, span in (("head", example.head), ("tail", example.tail))}
        return {"text": example.text, **ends, "relation": example.label}
    if isinstance(example, Question):
        return {"question": example.question, "context": example.context, "answers": {"text": [text for text, _ in example.answers], "answer_start": [start for _, start in example.answers]}}
    if isinstance(example, Choice):
        return {"prompt": example.prompt, "choices": example.choices, "answer": example.answer}
    if isinstance(example, Ranking):
        return {"query": example.query, "documents": example.documents, "grades": example.grades}
    return {"input": example.input, "output": example.output}


def mapping_of(example: Any) -> dict[str, Any]:
    if isinstance(example, LabeledText):
        return {"text": "text", **({"pair": "text_pair"} if example.pair else {}), "label": "label"}
    if isinstance(example, TaggedText):
        return {"text": "text", "spans": "spans"} if example.words is None else {"words": "words", "tags": "tags"}
    if isinstance(example, RelationText):
        return {"text": "text", "head": "head", "tail": "tail", "label": "relation"}
    if isinstance(example, Question):
        return {"question": "question", "context": "context", "answers": "answers"}
    if isinstance(example, Choice):
        return {"prompt": "prompt", "choices": "choices", "answer": "answer", "first": 0}
    if isinstance(example, Ranking):
        return {"query": "query", "document": "documents", "grade": "grades"}
    return {"input": "input", "output": "output"}


def word_tags(example: TaggedText) -> list[str]:
    """BIO tags of the words."""
    tags = ["O"] * len(example.words)
    for span in example.spans:
        inside = [number for number, (start, end) in enumerate(example.words) if start < span.end and end > span.start]
        for place_, number in enumerate(inside):
            tags[number] = ("I-" if place_ else "B-") + span.label
    return tags
