"""MinHash signatures over character shingles (Broder 1997), vectorised; works on Chinese, which has no spaces.

Two texts agree in one value of their signatures with the probability of the Jaccard similarity J of their shingle
sets. Of ``bands`` bands of ``rows`` values at least one is equal with probability 1 - (1 - J**rows)**bands.
"""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np

from luban.corpus.config import DeduplicateConfig
from luban.corpus.limits import UNSPACED

_NOISE = re.compile(r"[\W_]+")
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
_COLUMNS = 2048  # shingles hashed at a time: the block of bands*rows by 2048 stays in the cache


def shingle_length(config: DeduplicateConfig, language: str) -> int:
    """Characters in a shingle: about two words."""
    if config.shingle != "auto":
        return config.shingle
    return 3 if language in (*UNSPACED, "ko") else 8


def shingles(text: str, length: int) -> np.ndarray:
    """Distinct hashes of the text's shingles, uint64. Only letters and digits count, lower-cased: punctuation often differs between editions."""
    plain = _NOISE.sub("", text.lower()) or text
    codes = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    count = max(1, len(codes) - length + 1)
    hashes = np.zeros(count, dtype=np.uint64)
    for offset in range(min(length, len(codes))):
        hashes = hashes * _MULTIPLIER + codes[offset : offset + count] + np.uint64(1)
    return np.unique(_mix(hashes))


def _mix(values: np.ndarray) -> np.ndarray:
    """The finalizer of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


@lru_cache(maxsize=4)
def _permutations(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Odd multipliers and addends of linear permutations modulo 2**32, the same on every machine."""
    numbers = (_mix(np.arange(1, 2 * count + 1, dtype=np.uint64) * _MULTIPLIER) >> np.uint64(32)).astype(np.uint32)
    return (numbers[:count] | np.uint32(1))[:, None], numbers[count:][:, None]


def signature(hashes: np.ndarray, count: int) -> np.ndarray:
    """``count`` minima over the shingle hashes, one a permutation; uint32 [count]. The hashes must be mixed well."""
    factors, addends = _permutations(count)
    mixed = (hashes >> np.uint64(32)).astype(np.uint32)
    least = np.full(count, 0xFFFFFFFF, dtype=np.uint32)
    for start in range(0, len(mixed), _COLUMNS):
        block = mixed[None, start : start + _COLUMNS] * factors  # [count, shingles]
        block += addends
        np.minimum(least, block.min(axis=1), out=least)
    return least


def band_keys(signature: np.ndarray, bands: int, rows: int) -> np.ndarray:
    """One 64-bit key a band, uint64 [bands]; equal keys are candidates."""
    keys = np.arange(1, bands + 1, dtype=np.uint64) * _MULTIPLIER
    for column in signature.reshape(bands, rows).T.astype(np.uint64):
        keys = _mix(keys ^ column) * _MULTIPLIER
    return keys


def similarity(one: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Estimated Jaccard similarity of one 16-bit signature [count] to others [n, count], corrected for chance agreement.

    Its standard error is sqrt(J (1 - J) / count).
    """
    agreed = (others == one).mean(axis=-1)
    chance = 2.0**-16
    return np.clip((agreed - chance) / (1 - chance), 0, 1)
