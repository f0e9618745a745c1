"""How well a language model predicts held-out text: loss, perplexity and bits per byte.

All three come from the same sums over documents: nats, tokens and bytes. Bytes are those of the raw text in UTF-8, so
bits per byte compares models with different tokenizers (and n-grams over characters) fairly. The nats of the
end-of-text token that closes a document are included: where a text ends is part of what is predicted.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from luban.metrics.score import Score, bootstrap


@dataclass(frozen=True)
class DocumentScores:
    """What a model paid for each document. All arrays are [documents]."""

    nats: np.ndarray  # negative log-likelihood, end of text included
    tokens: np.ndarray  # tokens predicted, end of text included
    bytes: np.ndarray  # UTF-8 bytes of the raw text

    def __post_init__(self) -> None:
        for name in ("nats", "tokens", "bytes"):
            object.__setattr__(self, name, np.asarray(getattr(self, name), np.float64))
        if not len(self.nats) == len(self.tokens) == len(self.bytes):
            raise ValueError(f"{len(self.nats)} nats, {len(self.tokens)} token counts and {len(self.bytes)} sizes")

    def only(self, chosen: np.ndarray) -> DocumentScores:
        """The documents under a mask or index."""
        return DocumentScores(self.nats[chosen], self.tokens[chosen], self.bytes[chosen])


def byte_lengths(texts: Sequence[str]) -> np.ndarray:
    """[texts] UTF-8 bytes of each text."""
    return np.array([len(text.encode("utf-8", "surrogatepass")) for text in texts], np.int64)


def loss(scores: DocumentScores, signature: str, seed: int = 0) -> Score:
    """Mean negative log-likelihood in nats a token, over all tokens of all documents."""
    return _ratio(scores.nats, scores.tokens, lambda ratio: ratio, "nats/token", signature, seed)


def perplexity(scores: DocumentScores, signature: str, seed: int = 0) -> Score:
    """exp(loss): among how many equally likely tokens the model in effect chooses."""
    return _ratio(scores.nats, scores.tokens, lambda ratio: np.exp(np.minimum(ratio, 700.0)), "perplexity/token", signature, seed)


def bits_per_byte(scores: DocumentScores, signature: str, seed: int = 0) -> Score:
    """Bits needed for one byte of the text: all nats / ln 2 / all bytes. Independent of the tokenizer."""
    return _ratio(scores.nats / math.log(2), scores.bytes, lambda ratio: ratio, "bits/byte", signature, seed)


def bits_per_byte_difference(before: DocumentScores, after: DocumentScores, signature: str, seed: int = 0) -> Score:
    """Bits per byte of ``after`` minus ``before`` on the same documents, drawn in pairs.

    Negative is better. Paired drawing cancels what is hard in the documents themselves, so this interval is far
    narrower than that of either score: it is the one to judge a difference by.
    """
    if not np.array_equal(before.bytes, after.bytes):
        raise ValueError("the two models were not scored on the same documents")
    return _ratio((after.nats - before.nats) / math.log(2), before.bytes, lambda ratio: ratio, "bits/byte", signature, seed)


def loss_difference(before: DocumentScores, after: DocumentScores, signature: str, seed: int = 0) -> Score:
    """Loss of ``after`` minus ``before`` on the same tokens (one tokenizer), drawn in pairs; negative is better."""
    if not np.array_equal(before.tokens, after.tokens):
        raise ValueError("the two models were not scored on the same tokens")
    return _ratio(after.nats - before.nats, before.tokens, lambda ratio: ratio, "nats/token", signature, seed)


def is_within_noise(difference: Score) -> bool:
    """True when the interval of a difference holds zero, or when there is no interval."""
    return difference.interval is None or difference.interval[0] <= 0 <= difference.interval[1]


def _ratio(above: np.ndarray, below: np.ndarray, transform: Callable[[np.ndarray], np.ndarray], unit: str, signature: str, seed: int) -> Score:
    if not below.sum() > 0:
        raise ValueError(f"there is nothing to score in {unit}")
    units = np.stack([above, below], axis=1)
    value = float(transform(above.sum() / below.sum()))
    if not math.isfinite(value):
        return Score(value, unit, signature, None)
    return Score(value, unit, signature, bootstrap(lambda sums: transform(sums[:, 0] / np.maximum(sums[:, 1], 1e-12)), units, seed))
