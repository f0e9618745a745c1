"""The verb encode: documents become memory-mapped token shards."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from luban.corpus.documents import SPLITS, Document, read_documents
from luban.foundation.artifacts import Artifact, Work
from luban.foundation.console import count_text, progress, say, table
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.config import EncodeConfig
from luban.tokens.encoding import encode_documents
from luban.tokens.writer import StoreWriter

VERSION = 1


def run(config: EncodeConfig, work: Work) -> None:
    """Encode every split, shard by shard, and keep the tokenizer beside the tokens."""
    given = work.inputs["corpus"]
    corpora = given if isinstance(given, list) else [given]
    work.licence(*(name for item in corpora if isinstance(item, Artifact) for name in item.licences))
    tokenizer = Tokenizer.load(_folder(work.inputs["tokenizer"]))
    tokenizer.save(work.path / "tokenizer")
    say("encoding with {size} tokens, on all cores", size=tokenizer.vocabulary_size)

    indexes = {split: _encode_split(config, work, tokenizer, [_folder(item) for item in corpora], split) for split in SPLITS}
    if not indexes["train"]["tokens"]:
        raise DataError("the corpus has no training text to encode", "", "look at what its filters removed: luban show")

    rows = [
        [split, index["documents"], count_text(index["tokens"]), f"{index['bytes'] / max(index['tokens'], 1):.2f}", len(index["shards"])]
        for split, index in indexes.items()
    ]
    table(t("tokens"), [t("split"), t("documents"), t("tokens"), t("bytes a token"), t("shards")], rows)
    work.metrics = {
        split: {"documents": index["documents"], "tokens": index["tokens"], "bytes": index["bytes"], "by_language": index["by_language"]}
        for split, index in indexes.items()
    }


def _encode_split(config: EncodeConfig, work: Work, tokenizer: Tokenizer, corpora: list[Path], split: str) -> dict:
    facts = {
        "tokenizer": tokenizer.fingerprint(),
        "end_of_text_id": tokenizer.end_of_text_id,
        "begin_of_text_id": tokenizer.begin_of_text_id,
        "shard_tokens": config.shard_tokens,
    }
    writer = StoreWriter(work.path / split, vocabulary_size=tokenizer.vocabulary_size, shard_tokens=config.shard_tokens, facts=facts)
    if writer.index["complete"]:
        return writer.index
    if writer.documents:
        say("{split}: continuing behind {documents} documents that are encoded", split=split, documents=writer.documents)
    with progress("encoding {split} (tokens)", split=split) as advance:
        documents: Iterator[Document] = chain.from_iterable(read_documents(corpus, split) for corpus in corpora)
        for document, ids in encode_documents(tokenizer, islice(documents, writer.documents, None), config.batch_characters):
            writer.add(ids, language=document.language, identity=document.id, size_bytes=len(document.text.encode("utf-8", "replace")))
            advance(len(ids))
    return writer.finish()


def _folder(item: object) -> Path:
    return item.path if isinstance(item, Artifact) else Path(str(item))
