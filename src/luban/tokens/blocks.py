"""Checksums of a file's blocks: what is read of it can be compared when it is read, so that a file of any size opens at once and a flipped bit is found all the same."""

from __future__ import annotations

import numpy as np
import xxhash

BLOCK_BYTES = 1 << 16  # about what a system reads around one place of a mapped file; a checksum takes 8 bytes of it


class BlockSums:
    """Checksums of the blocks of what is written, in pieces of any size."""

    def __init__(self) -> None:
        self._sums: list[int] = []
        self._open, self._left = xxhash.xxh3_64(), BLOCK_BYTES

    def update(self, data: bytes) -> None:
        """The next bytes of the file."""
        view = memoryview(data)
        while len(view):
            part, view = view[: self._left], view[self._left :]
            self._open.update(part)
            self._left -= len(part)
            if not self._left:
                self._close()

    def table(self) -> np.ndarray:
        """[blocks] uint64, when the file is whole."""
        if self._left < BLOCK_BYTES:
            self._close()
        return np.array(self._sums, dtype="<u8")

    def _close(self) -> None:
        self._sums.append(self._open.intdigest())
        self._open, self._left = xxhash.xxh3_64(), BLOCK_BYTES


class BlockCheck:
    """Compares the blocks of a mapped file with their checksums, each the first time that something of it is read."""

    def __init__(self, content: np.ndarray, sums: np.ndarray):
        """Of the file's ``content`` [bytes] uint8 and the ``sums`` [blocks] that were written with it."""
        assert len(sums) == -(-len(content) // BLOCK_BYTES)
        self._content, self._sums = memoryview(content), sums
        self._seen = bytearray(len(sums))

    def look(self, first: int, last: int) -> int | None:
        """The first byte of a block that is not what was written, of those that hold the bytes ``first`` to ``last`` (exclusive); None where all are."""
        end = -(-last // BLOCK_BYTES) if last > first else 0
        block = self._seen.find(0, first // BLOCK_BYTES, end)
        while block >= 0:
            begin = block * BLOCK_BYTES
            if xxhash.xxh3_64_intdigest(self._content[begin : begin + BLOCK_BYTES]) != int(self._sums[block]):
                return begin
            self._seen[block] = 1
            block = self._seen.find(0, block + 1, end)
        return None
