"""Writing token shards: each appears whole, with its checksum in the index, so that a killed run continues behind it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from luban.foundation.artifacts import from_os_error, sync_directory, write_json
from luban.foundation.errors import DataError
from luban.tokens.blocks import BlockSums

INDEX = "index.json"
FORMAT = 1
SUMS = ".sums.npy"
IN_BLOCKS = (".bin", ".ids.npy")  # read here and there: with checksums of their blocks, which shards of earlier versions lack
PARTS = (".bin", ".offsets.npy", ".languages.npy", ".ids.npy", *(part + SUMS for part in IN_BLOCKS))


def dtype_for(vocabulary_size: int) -> np.dtype:
    """uint16 where every id fits, else uint32 (little-endian on every machine)."""
    return np.dtype("<u2" if vocabulary_size <= 1 << 16 else "<u4")


class StoreWriter:
    """Fills one split's folder with shards.

    ``documents`` is how many documents lie in whole shards already: a continued run skips that many. ``facts`` (the
    tokenizer's fingerprint and the like) must be what the folder was begun with; if not, the folder is begun anew.
    """

    def __init__(self, folder: Path, *, vocabulary_size: int, shard_tokens: int, facts: dict[str, Any]):
        self.folder, self.shard_tokens = folder, shard_tokens
        self.dtype = dtype_for(vocabulary_size)
        self.index: dict[str, Any] = {
            "format": FORMAT, "dtype": self.dtype.str, "vocabulary_size": vocabulary_size, **facts,
            "complete": False, "tokens": 0, "documents": 0, "bytes": 0, "languages": [], "by_language": {}, "shards": [],
        }  # fmt: skip
        folder.mkdir(parents=True, exist_ok=True)
        self._continue(facts)
        self.documents: int = self.index["documents"]
        self._stream: BinaryIO | None = None
        self._begin()

    def _continue(self, facts: dict[str, Any]) -> None:
        path = self.folder / INDEX
        if path.is_file():
            found = json.loads(path.read_bytes())
            if all(found.get(name) == value for name, value in {**facts, "dtype": self.dtype.str}.items()):
                self.index = found
        known = {shard["name"] for shard in self.index["shards"]}
        for file in sorted(self.folder.iterdir()):
            if file.name != INDEX and file.name.split(".")[0] not in known:
                file.unlink()

    def _begin(self) -> None:
        self._lengths: list[int] = []
        self._languages: list[int] = []
        self._ids: list[bytes] = []
        self._tokens = self._bytes = 0
        self._by_language: dict[str, list[int]] = {}
        self._hash, self._blocks = xxhash.xxh3_64(), BlockSums()

    def add(self, tokens: list[int], *, language: str, identity: str, size_bytes: int) -> None:
        """Append a document. A shard is closed at the first document that fills it."""
        data = np.asarray(tokens, dtype=self.dtype).tobytes()
        try:
            if self._stream is None:
                self._stream = self._temporary(".bin").open("wb")
            self._stream.write(data)
        except OSError as error:
            raise from_os_error(error, self.folder) from error
        self._hash.update(data)
        self._blocks.update(data)
        names = self.index["languages"]
        if language not in names:
            names.append(language)
            if len(names) > 256:
                raise DataError(
                    "the corpus names more than 256 languages",
                    "a language is kept in one byte",
                    "label the documents' languages with codes such as en and zh",
                )
        self._lengths.append(len(tokens))
        self._languages.append(names.index(language))
        self._ids.append(identity.encode("utf-8", "replace"))
        self._tokens += len(tokens)
        self._bytes += size_bytes
        counts = self._by_language.setdefault(language, [0, 0, 0])
        for place, amount in enumerate((1, len(tokens), size_bytes)):
            counts[place] += amount
        if self._tokens >= self.shard_tokens:
            self._close_shard()

    def finish(self) -> dict[str, Any]:
        """Close the last shard and mark the index whole. Returns the index."""
        if self._lengths:
            self._close_shard()
        self.index["complete"] = True
        write_json(self.folder / INDEX, self.index)
        return self.index

    def _temporary(self, part: str) -> Path:
        return self.folder / f".{self._name}{part}.tmp"

    @property
    def _name(self) -> str:
        return f"{len(self.index['shards']):05d}"

    def _close_shard(self) -> None:
        """Give the files of a shard their names, then write the index: only what it lists counts."""
        name = self._name
        checksums = {".bin": self._hash.hexdigest()}
        columns = {
            ".offsets.npy": np.concatenate([[0], np.cumsum(self._lengths)]).astype("<i8"),
            ".languages.npy": np.array(self._languages, dtype=np.uint8),
            ".ids.npy": np.array(self._ids, dtype=np.bytes_),
        }
        try:
            if self._stream is not None:
                self._stream.flush()
                os.fsync(self._stream.fileno())
                self._stream.close()
                self._stream = None
            sums = {".bin": self._blocks}
            for part, column in columns.items():
                checksums[part], sums[part] = self._write_column(part, column)
            for part in IN_BLOCKS:
                checksums[part + SUMS], _ = self._write_column(part + SUMS, sums[part].table())
            for part in PARTS:
                os.replace(self._temporary(part), self.folder / f"{name}{part}")
            sync_directory(self.folder)
        except OSError as error:
            raise from_os_error(error, self.folder) from error
        sizes = {part: (self.folder / f"{name}{part}").stat().st_size for part in PARTS}
        self.index["shards"].append(
            {"name": name, "tokens": self._tokens, "documents": len(self._lengths), "bytes": self._bytes, "files": sizes, "xxh3": checksums}
        )
        self.index["tokens"] += self._tokens
        self.index["documents"] += len(self._lengths)
        self.index["bytes"] += self._bytes
        for language, counts in self._by_language.items():
            entry = self.index["by_language"].setdefault(language, {"documents": 0, "tokens": 0, "bytes": 0})
            for key, amount in zip(("documents", "tokens", "bytes"), counts, strict=True):
                entry[key] += amount
        write_json(self.folder / INDEX, self.index)
        self._begin()

    def _write_column(self, part: str, column: np.ndarray) -> tuple[str, BlockSums]:
        """Write a table of the shard through to the disk; returns its checksum, and those of its blocks."""
        held = io.BytesIO()
        np.save(held, column, allow_pickle=False)
        content, sums = held.getvalue(), BlockSums()
        sums.update(content)
        with self._temporary(part).open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        return xxhash.xxh3_64_hexdigest(content), sums
