"""Drawing each document's split from the hash of its own text, or taking the last of each source."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable

import numpy as np
import xxhash

from luban.corpus.config import SplitConfig

TRAIN, VALIDATION, TEST = range(3)


def draw(hashes: np.ndarray, salt: str) -> np.ndarray:
    """A number in [0, 1) for each 128-bit hash (see shards.HASH), float64 [documents]."""
    from luban.corpus.minhash import _mix

    key = np.uint64(xxhash.xxh3_64_intdigest(salt.encode()))
    return (_mix(_mix(hashes["high"] ^ key) + hashes["low"]) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def random_split(drawn: np.ndarray, config: SplitConfig) -> np.ndarray:
    """uint8 [documents]: the test takes the lowest numbers, then validation; growing a share only takes from training."""
    held_out = np.where(drawn < config.test, TEST, np.where(drawn >= 1 - config.validation, VALIDATION, TRAIN))
    return held_out.astype(np.uint8)


class Stratified:
    """Draws document after document of each stratum so that the shares hold in each, not only on average.

    The chance of the next document is its share plus what the stratum still owes, so the count stays within a
    few of the exact one. It depends on earlier documents of the stratum only: what is added at the end moves nothing.
    """

    def __init__(self, config: SplitConfig):
        self.shares = {TEST: config.test, VALIDATION: config.validation}
        self.seen: dict[Hashable, list[int]] = {}

    def next(self, stratum: Hashable, drawn: float) -> int:
        seen = self.seen.setdefault(stratum, [0, 0, 0])  # in all, in validation, in test
        seen[0] += 1
        low = 0.0
        for split, share in self.shares.items():
            owed = share * seen[0] - seen[split]
            chance = min(1.0, max(0.0, 0.5 * owed)) if share else 0.0
            if low <= drawn < low + chance:
                seen[split] += 1
                return split
            low += chance
        return TRAIN


class Last:
    """The end of each stratum is held out: the fewest whole documents with at least the shares of its characters, the test behind the validation."""

    def __init__(self, config: SplitConfig, sizes: Iterable[tuple[Hashable, int]]):
        """``sizes``: every document's stratum and characters, in the order of the documents."""
        totals: Counter[Hashable] = Counter()
        for stratum, characters in sizes:
            totals[stratum] += characters
        self.left = Counter(totals)  # characters of each stratum that are still to come
        self.test = {stratum: config.test * total for stratum, total in totals.items()}
        self.held_out = {stratum: (config.test + config.validation) * total for stratum, total in totals.items()}

    def next(self, stratum: Hashable, characters: float) -> int:
        self.left[stratum] -= characters
        left = self.left[stratum]
        return TEST if left < self.test[stratum] else VALIDATION if left < self.held_out[stratum] else TRAIN
