"""The verb train_tokenizer: a corpus becomes a tokenizer directory that transformers opens."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from pathlib import Path

from luban.corpus.documents import Document, read_documents
from luban.foundation.artifacts import Artifact, Work, write_json
from luban.foundation.console import bytes_text, count_text, say, track, warn
from luban.foundation.errors import ConfigError, DataError
from luban.tokenizer import evaluation, extending, templates
from luban.tokenizer.algorithms import Plan, automatic_vocabulary_size, learn
from luban.tokenizer.config import TrainTokenizerConfig
from luban.tokenizer.sampling import Sample
from luban.tokenizer.special import STYLES
from luban.tokenizer.tokenizer import Tokenizer

VERSION = 1


def run(config: TrainTokenizerConfig, work: Work) -> None:
    """Take or learn a tokenizer, extend it, give it its chat template, measure it, and write it."""
    corpora = _folders(work, "corpus")
    work.licence(*(name for item in _inputs(work, "corpus") if isinstance(item, Artifact) for name in item.licences))
    if not corpora and (config.pretrained is None or config.extend_learned):
        raise ConfigError("corpus: nothing to learn a tokenizer from", "", "name a curate stage as corpus, or a tokenizer as pretrained")

    if config.pretrained is not None and config.style != "plain":
        raise ConfigError(
            "style: {style} is for a tokenizer that is learned", "a pretrained one keeps its own special tokens", "leave style out",
            style=config.style,
        )  # fmt: skip

    sample = Sample.plan(config, _documents(corpora)) if corpora else None
    if corpora and not sum(sample.characters.values()):
        raise DataError(
            "{corpus} holds no training text", "", "look at what its filters removed: luban show", corpus=", ".join(map(str, corpora))
        )
    if sample:
        _check_languages(config, sample)

    if config.pretrained is None:
        tokenizer = _learn(config, work, sample, corpora)
    else:
        tokenizer = Tokenizer.load(_folders(work, "pretrained")[0])
        say("taking a tokenizer of {size} tokens", size=tokenizer.vocabulary_size)
    tokenizer = _extend(config, work, tokenizer, sample, corpora)
    _set_template(config, work, tokenizer)

    texts = evaluation.sample_documents(_held_out(corpora), config.evaluation_documents)
    figures = evaluation.evaluate(tokenizer, texts)
    evaluation.show(figures)
    if texts:
        say("encoding runs at {speed} a second", speed=bytes_text(evaluation.speed(tokenizer, texts)))
    if not figures["every_byte_survives"]:
        warn("some text cannot be written with this vocabulary: it becomes unknown tokens")

    tokenizer.save(work.path)
    write_json(work.path / "evaluation.json", figures)
    work.metrics = {
        "vocabulary_size": tokenizer.vocabulary_size,
        "fingerprint": tokenizer.fingerprint(),
        "bytes_per_token": {language: item["bytes_per_token"] for language, item in figures["languages"].items()},
    }


def _learn(config: TrainTokenizerConfig, work: Work, sample: Sample, corpora: list[Path]) -> Tokenizer:
    size = config.vocabulary_size
    if size == "auto":
        size = automatic_vocabulary_size(sample.bytes)
        say("vocabulary_size: {size}, for {bytes} of text", size=size, bytes=bytes_text(sample.bytes))
    work.resolved["vocabulary_size"] = size

    algorithm = STYLES[config.style].algorithm if config.algorithm == "auto" else config.algorithm
    work.resolved["algorithm"] = algorithm

    def texts() -> Iterator[str]:
        return track(sample.texts(lambda: _documents(corpora), work.seed), "reading text for the tokenizer")

    core, named = learn(
        Plan(algorithm, size, config.minimum_frequency, config.byte_fallback, config.lowercase, tuple(config.special_tokens), config.style),
        texts,
    )
    found = core.get_vocab_size(with_added_tokens=True)
    if found < size:
        say(
            "the text gives {found} tokens, not {size}: nothing else occurs {times} times",
            found=found,
            size=size,
            times=config.minimum_frequency,
        )
    say(
        "learned {found} tokens from {characters} characters",
        found=found,
        characters=count_text(min(sum(sample.characters.values()), config.maximum_characters)),
    )
    if sample.cut > sum(sample.characters.values()):
        warn(
            "most of the text was not read: of each document the first {most} characters count (maximum_document_characters), and {cut} stand behind them",
            most=config.maximum_document_characters, cut=count_text(sample.cut),
        )  # fmt: skip
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **named, "clean_up_tokenization_spaces": False})


def _extend(config: TrainTokenizerConfig, work: Work, tokenizer: Tokenizer, sample: Sample | None, corpora: list[Path]) -> Tokenizer:
    """Add words; extension.json says from which old tokens a new embedding starts."""
    if not config.extend and not config.extend_learned:
        return tokenizer
    texts: Iterator[str] = sample.texts(lambda: _documents(corpora), work.seed) if config.extend_learned else iter(())
    tokenizer, added = extending.extend(tokenizer, config.extend, config.extend_learned, texts)
    write_json(work.path / "extension.json", {"added": [{"id": item.id, "text": item.text, "pieces": item.pieces} for item in added]})
    say("added {count} tokens; the {old} old ids are unchanged", count=len(added), old=tokenizer.vocabulary_size - len(added))
    return tokenizer


def _set_template(config: TrainTokenizerConfig, work: Work, tokenizer: Tokenizer) -> None:
    """A pretrained tokenizer keeps the template that its model learned, unless the recipe names another."""
    given = "chat_template" in config.model_fields_set
    if config.chat_template_file is not None:
        template = _folders(work, "chat_template_file")[0].read_text(encoding="utf-8")
    elif not given and (config.pretrained is not None or config.style != "plain"):
        return
    else:
        template = {"chatml": templates.CHATML, "none": None}.get(config.chat_template, config.chat_template)
    if template is not None:
        templates.compile_template(template)
    tokenizer.config["chat_template"] = template


def _check_languages(config: TrainTokenizerConfig, sample: Sample) -> None:
    missing = [name for name in config.language_weights if name not in sample.characters]
    if missing:
        raise ConfigError(
            "language_weights: the corpus has no text in {missing}", "", "it has: {known}", missing=", ".join(missing),
            known=", ".join(f"{name or '?'} ({count_text(count)})" for name, count in sorted(sample.characters.items())),
        )  # fmt: skip


def _inputs(work: Work, name: str) -> list[Artifact | Path]:
    found = work.inputs.get(name)
    return found if isinstance(found, list) else [found] if found is not None else []


def _folders(work: Work, name: str) -> list[Path]:
    return [item.path if isinstance(item, Artifact) else item for item in _inputs(work, name)]


def _documents(corpora: list[Path]) -> Iterator[Document]:
    return chain.from_iterable(read_documents(corpus, "train") for corpus in corpora)


def _held_out(corpora: list[Path]) -> Iterator[Document]:
    """Validation text where there is some: what the tokenizer has not seen says how it will do."""
    for corpus in corpora:
        found = False
        for document in read_documents(corpus, "validation"):
            found = True
            yield document
        if not found:
            yield from read_documents(corpus, "train")
