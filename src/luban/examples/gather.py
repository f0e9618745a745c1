"""The verb gather: the texts of labelled files as a corpus that a tokenizer learns from, or a model goes on pretraining on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import xxhash

from luban.corpus.documents import Document, documents_table
from luban.corpus.shards import write_table
from luban.examples import conversations
from luban.examples.config import GatherConfig
from luban.examples.conversations import Conversation, read_conversations
from luban.examples.reading import read_examples
from luban.examples.splitting import place
from luban.examples.tasks import Choice, LabeledText, Question, Ranking, TextPair
from luban.foundation.artifacts import Artifact, Work
from luban.foundation.console import count_text, say
from luban.foundation.errors import DataError

VERSION = 1


def run(config: GatherConfig, work: Work) -> None:
    """Write every different text once, under documents/train and documents/validation."""
    sources = work.inputs["data"] if isinstance(work.inputs["data"], list) else [work.inputs["data"]]
    work.licence(*(name for item in sources if isinstance(item, Artifact) for name in item.licences))
    paths = [Path(str(getattr(item, "path", item))) for item in sources]
    examples, files = _examples(paths, config)
    splits: dict[str, dict[str, Document]] = {"train": {}, "validation": {}}
    for example in examples:
        for text in texts(example):
            document = Document(xxhash.xxh3_128_hexdigest(text.encode("utf-8")), text, source=example.source)
            splits["validation" if place(text) < config.validation_share else "train"].setdefault(document.id, document)
    if not splits["train"]:
        raise DataError("there is no text in {files}", "", "luban show FILE says how a file is read", files=", ".join(files))
    for split, documents in splits.items():
        if documents:
            folder = work.path / "documents" / split
            folder.mkdir(parents=True, exist_ok=True)
            write_table(folder / "00000.parquet", documents_table(list(documents.values())))
    say("{texts} different texts of {examples} examples", texts=count_text(sum(map(len, splits.values()))), examples=count_text(len(examples)))
    sizes = {split: sum(len(item.text.encode()) for item in documents.values()) for split, documents in splits.items()}
    work.metrics |= {"train_bytes": sizes["train"], "documents": {split: len(documents) for split, documents in splits.items()}, "bytes": sizes}


def _examples(paths: list[Path], config: GatherConfig) -> tuple[list[Any], list[str]]:
    """Everything that is read, shown; and the files' names."""
    if config.task == "conversation":
        read = read_conversations(paths, config.mapping or None)
        conversations.show(read)
        return read.conversations, read.files
    found = read_examples(paths, config.task, config.mapping or None)
    return found.examples, found.files


def texts(example: Any) -> Iterator[str]:
    """Every text of an example that is not empty."""
    if isinstance(example, LabeledText):
        found = [example.text, example.pair]
    elif isinstance(example, TextPair):
        found = [*example.controls.values(), example.input, example.output]
    elif isinstance(example, Question):
        found = [example.question, example.context]
    elif isinstance(example, Choice):
        found = [example.prompt, *example.choices]
    elif isinstance(example, Ranking):
        found = [example.query, *example.documents]
    elif isinstance(example, Conversation):
        found = [part for message in example.messages for part in _parts(message.get("content"))]
    else:
        found = [example.text]
    yield from (str(text) for text in found if str(text).strip())


def _parts(content: Any) -> list[str]:
    """The texts of a message: its content, or the text parts of one in several."""
    if isinstance(content, list):
        return [str(part.get("text", "")) if isinstance(part, dict) else str(part) for part in content]
    return [content] if isinstance(content, str) else []
