"""Token shards on disk, mapped into memory: opened in milliseconds at any size."""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from luban.foundation.console import bytes_text, say, track
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.tokens.blocks import BLOCK_BYTES, BlockCheck
from luban.tokens.writer import FORMAT, IN_BLOCKS, INDEX, SUMS

SMALL_BYTES = 1 << 29  # of a split that is compared with its checksums as a whole before a training reads it: a second or two, from a disk


class TokenStore:
    """One split of an encoded corpus: ``document(i)`` is the token ids of text ``i``, with nothing added.

    The token between documents (``end_of_text_id``) and the one that opens a text, where the tokenizer's models expect one
    (``begin_of_text_id``), are not stored: the loaders put them in.
    """

    def __init__(self, path: Path, split: str):
        self.path, self.split = Path(path), split
        self.folder = self.path / split
        index = self.folder / INDEX
        if not index.is_file():
            raise DataError("{path} holds no tokens of the split {split!r}", "", "make them with luban encode", path=path, split=split)
        try:
            self.index: dict[str, Any] = json.loads(index.read_bytes())
            self.dtype = np.dtype(self.index["dtype"])
            self._first = np.concatenate([[0], np.cumsum([shard["documents"] for shard in self.index["shards"]])]).astype(np.int64)
        except (ValueError, KeyError, TypeError) as error:
            raise DataError("{path} is damaged: {error}", "", "encode the corpus again", path=index, error=error) from None
        if self.index.get("format", 0) > FORMAT:
            raise DataError("{path} was written by a newer Luban", "", "upgrade Luban", path=index)
        if not self.index["complete"]:
            raise DataError("{path} is not whole: its making was stopped", "", "run luban encode again: it continues", path=self.folder)
        self._maps: dict[tuple[int, str], np.ndarray] = {}
        self._checks: dict[tuple[int, str], BlockCheck] = {}

    # ---- facts

    @property
    def tokens(self) -> int:
        """Tokens of text, without those the loaders add."""
        return self.index["tokens"]

    @property
    def documents(self) -> int:
        return self.index["documents"]

    @property
    def bytes(self) -> int:
        """UTF-8 bytes of the text."""
        return self.index["bytes"]

    @property
    def by_language(self) -> dict[str, dict[str, int]]:
        """Documents, tokens and bytes of each language."""
        return self.index["by_language"]

    @property
    def language_names(self) -> list[str]:
        return self.index["languages"]

    @property
    def end_of_text_id(self) -> int:
        return self.index["end_of_text_id"]

    @property
    def begin_of_text_id(self) -> int | None:
        return self.index["begin_of_text_id"]

    @property
    def name(self) -> str:
        """What documents are named by in reports: ``artifact/split``."""
        return f"{self.path.name}/{self.split}"

    @cached_property
    def offsets(self) -> np.ndarray:
        """Where each document starts in the split's stream of tokens [documents + 1] int64 (in memory: 8 bytes a document)."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.lengths, dtype=np.int64)])

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens of each document [documents] (in memory: 4 bytes a document)."""
        parts = [np.diff(self._map(shard, ".offsets.npy")).astype(np.uint32) for shard in range(len(self.index["shards"]))]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint32)

    @cached_property
    def languages(self) -> np.ndarray:
        """Each document's place in ``language_names`` [documents] uint8."""
        parts = [self._map(shard, ".languages.npy") for shard in range(len(self.index["shards"]))]
        return np.concatenate(parts) if parts else np.zeros(0, np.uint8)

    # ---- documents

    def document(self, i: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Token ids of document ``i`` [length], or those from ``start`` to ``stop``: a view of the mapped file, of which nothing else is read."""
        shard, inside = self._place(i)
        offsets = self._map(shard, ".offsets.npy")
        first, last = int(offsets[inside]), int(offsets[inside + 1])
        first, last = min(first + start, last), last if stop is None else min(first + stop, last)
        ids = self._map(shard, ".bin")[first:last]
        self._look(shard, ".bin", first * self.dtype.itemsize, last * self.dtype.itemsize)
        if len(ids) and int(ids.max()) >= self.index["vocabulary_size"]:
            reason = t("document {document} holds the token {token} of a vocabulary of {size}", document=i, token=int(ids.max()), size=self.index["vocabulary_size"])
            raise self._damaged(self.folder / f"{self.index['shards'][shard]['name']}.bin", reason)
        return ids

    def identity(self, i: int) -> str:
        """The id that document ``i`` has in its corpus."""
        shard, inside = self._place(i)
        names = self._map(shard, ".ids.npy")
        first = self.index["shards"][shard]["files"][".ids.npy"] - names.nbytes + inside * names.itemsize
        self._look(shard, ".ids.npy", first, first + names.itemsize)
        return bytes(names[inside]).decode("utf-8", "replace")

    def shard(self, i: int) -> str:
        """The name of the shard that holds document ``i``."""
        return self.index["shards"][self._place(i)[0]]["name"]

    def language(self, i: int) -> str:
        shard, inside = self._place(i)
        return self.language_names[int(self._map(shard, ".languages.npy")[inside])]

    def _place(self, i: int) -> tuple[int, int]:
        if not 0 <= i < self.documents:
            raise IndexError(f"document {i} of {self.documents}")
        shard = int(np.searchsorted(self._first, i, side="right")) - 1
        return shard, i - int(self._first[shard])

    def _map(self, shard: int, part: str) -> np.ndarray:
        """A file of a shard, mapped at first use; a file of another size than written is named."""
        if (shard, part) not in self._maps:
            facts = self.index["shards"][shard]
            file = self.folder / f"{facts['name']}{part}"
            size = file.stat().st_size if file.is_file() else -1
            if size != facts["files"][part]:
                raise self._damaged(file, t("{size} were written, {found} is there", size=bytes_text(facts["files"][part]), found=bytes_text(size) if size >= 0 else t("nothing")))
            if part == ".bin":
                found = np.memmap(file, dtype=self.dtype, mode="r") if size else np.zeros(0, self.dtype)
            else:
                found = self._loaded(file, facts, part)
            self._maps[shard, part] = found.view(np.ndarray)  # a memmap's own slices are made in Python
            if part in IN_BLOCKS and part + SUMS in facts["files"]:
                self._checks[shard, part] = BlockCheck(np.memmap(file, np.uint8, "r") if size else np.zeros(0, np.uint8), self._map(shard, part + SUMS))
                self._look(shard, part, 0, 1)  # of a table what says how to read it
        return self._maps[shard, part]

    def _look(self, shard: int, part: str, first: int, last: int) -> None:
        """DataError where the bytes ``first`` to ``last`` of a shard's file lie in a block that is not what was written."""
        check = self._checks.get((shard, part))
        if check and (bad := check.look(first, last)) is not None:
            file = self.folder / f"{self.index['shards'][shard]['name']}{part}"
            raise self._damaged(file, t("bytes {first} to {last} are not those that were written", first=bad, last=min(bad + BLOCK_BYTES, self.index["shards"][shard]["files"][part])))

    def _loaded(self, file: Path, facts: dict[str, Any], part: str) -> np.ndarray:
        """A table of a shard, a row for each document or block; offsets must rise from the first token to the last. What is not compared in blocks, and will be read as a whole, is compared here."""
        try:
            found = np.load(file, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise self._damaged(file, t("it is no table of numbers")) from error
        if part not in IN_BLOCKS and xxhash.xxh3_64_hexdigest(np.memmap(file, np.uint8, "r")) != facts["xxh3"][part]:
            raise self._damaged(file, t("its checksum is not the one that was written"))
        if part.endswith(SUMS):
            return found
        offsets = part == ".offsets.npy"
        tokens = facts["files"][".bin"] // self.dtype.itemsize
        if len(found) != facts["documents"] + offsets or (offsets and (found[0] != 0 or int(found[-1]) != tokens or bool((found[1:] < found[:-1]).any()))):
            raise self._damaged(file, t("its rows are not those of the documents"))
        return found

    def _damaged(self, file: Path, reason: str) -> DataError:
        return DataError(
            "{file} is damaged: {reason}",
            "a disk or a copy failed, or the file was changed",
            "restore the file, or remove {path} and run its recipe again",
            file=file,
            reason=reason,
            path=self.path,
        )

    def look_over(self) -> None:
        """Before a training: compare a small split with its checksums; a larger one is compared block by block as it is read, or it is said that it cannot be."""
        if sum(size for shard in self.index["shards"] for size in shard["files"].values()) <= SMALL_BYTES:
            for shard in self.index["shards"]:
                self._compare(shard)
        elif any(part + SUMS not in shard["files"] for shard in self.index["shards"] for part in IN_BLOCKS):
            say("{name} was encoded before shards had checksums of their blocks: what is damaged in it may go unnoticed; luban check RUN --ledger compares all of it, encoding it again mends that", name=self.name)

    def verify(self) -> None:
        """Read every file and compare it with its checksum. Raises DataError that names the damaged one."""
        for shard in track(self.index["shards"], "checking {name}", total=len(self.index["shards"]), name=self.name):
            self._compare(shard)

    def _compare(self, shard: dict[str, Any]) -> None:
        for part, expected in shard["xxh3"].items():
            file = self.folder / f"{shard['name']}{part}"
            digest = xxhash.xxh3_64()
            try:
                with file.open("rb") as stream:
                    while block := stream.read(1 << 22):
                        digest.update(block)
            except OSError as error:
                raise self._damaged(file, error.strerror or str(error)) from None
            if digest.hexdigest() != expected:
                raise self._damaged(file, t("its checksum is not the one that was written"))
