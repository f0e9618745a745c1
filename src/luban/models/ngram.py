"""Interpolated Kneser-Ney n-gram models over characters: the yardstick for language models.

    p_k(c | h) = max(a_k(h c) - D_k(a), 0) / a_k(h .)  +  mass_k(h) * p_{k-1}(c | h')
    p_0(c)     = 1 / outcomes

where h' is the history h without its oldest character and mass_k(h) is what the discounts took away. At the top
order a_n is the number of occurrences; below it is the continuation count: how many different characters were
seen before the k-gram (Kneser and Ney 1995). The discounts are one constant (0.75), or the three of modified
Kneser-Ney (Chen and Goodman 1999, equation 17), estimated per order; KenLM's fall-back values (0.5, 1, 1.5) stand
in where too little text makes an estimate useless. A history never seen passes its whole mass to the shorter one.

Closed vocabulary. Probabilities are over exactly `vocabulary_size` characters and the end of the document. The
recursion ends in a uniform distribution over them, so characters never seen in training share what the unigram
discounts took away, and each p(. | h) sums to one. `vocabulary_size` counts every character that may be scored.

Documents. Start symbols precede each document and one end symbol closes it: a document is scored alone, and where it
ends is predicted too, as the neural model predicts its end-of-text token. The start symbol is never predicted.

An n-gram is named by an integer: the rank of `prefix id * radix + character` among those seen, order by order, so
nothing is hashed and nothing collides. One set of tables serves every order up to the greatest.
Time: about half a second a million characters and order. Memory: 32 bytes a distinct k-gram kept, and about 60 bytes a
character while an order is counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

UNICODE = 0x110000 - 2048  # characters that UTF-8 can write: all code points but the surrogates

_START, _END, _FIRST_CHARACTER = 0, 1, 2
_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])  # kenlm, --discount_fallback
_ABSOLUTE = np.array([0.0, 0.75, 0.75, 0.75])


@dataclass(frozen=True)
class _Level:
    """What one order knows when it is the model's top (occurrences) or lies below it (continuations)."""

    direct: np.ndarray  # [k-grams] max(a - D, 0) / a(h .)
    backoff: np.ndarray  # [histories] the mass handed to the shorter history


class KneserNey:
    """Character n-gram models of every order up to ``order``, fitted to the documents at once."""

    def __init__(
        self,
        documents: Sequence[str],
        order: int,
        vocabulary_size: int = UNICODE,
        discounts: Literal["absolute", "modified"] = "modified",
        document_symbols: bool = True,
    ):
        """``vocabulary_size``: how many different characters may occur, seen or not (the end symbol not counted).

        ``document_symbols=False`` treats the documents as one running text with neither start nor end: only the
        histories at its very beginning are shorter. This is how character-level Shakespeare is usually scored.
        Raises ValueError when the order is below one or the text has more characters than ``vocabulary_size``.
        """
        if order < 1:
            raise ValueError(f"order must be at least 1, not {order}")
        self.order, self.discounts, self.document_symbols = order, discounts, document_symbols
        self._known = np.unique(code_points("".join(documents)))
        if len(self._known) > vocabulary_size:
            raise ValueError(f"the text has {len(self._known)} different characters, more than vocabulary_size={vocabulary_size}")
        self.vocabulary_size = vocabulary_size
        self.outcomes = vocabulary_size + (1 if document_symbols else 0)
        self._radix = _FIRST_CHARACTER + len(self._known) + 1  # the last id stands for every unseen character
        self._fit(self._encode(documents)[0])

    @property
    def characters(self) -> int:
        """How many different characters the training text holds."""
        return len(self._known)

    def _encode(self, documents: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all documents with their start and end symbols [symbols], and where each document begins [documents]."""
        starts = self.order - 1 if self.document_symbols else 0
        ends = 1 if self.document_symbols else 0
        lengths = np.array([len(document) for document in documents], np.int64)
        begins = np.concatenate([[0], np.cumsum(lengths + starts + ends)])
        symbols = np.full(begins[-1], _START, np.int64)
        text = code_points("".join(documents))
        if len(self._known):
            rank = np.minimum(np.searchsorted(self._known, text), len(self._known) - 1)
            text = np.where(self._known[rank] == text, rank + _FIRST_CHARACTER, self._radix - 1)
        else:
            text = np.full(len(text), self._radix - 1)
        owner = np.repeat(np.arange(len(lengths)), lengths)
        symbols[np.arange(len(text)) + owner * (starts + ends) + starts] = text
        if self.document_symbols:
            symbols[begins[1:] - 1] = _END
        return symbols, begins[:-1]

    def _fit(self, symbols: np.ndarray) -> None:
        predicted = np.flatnonzero(symbols != _START)
        self._keys: list[np.ndarray] = []  # per order, the sorted keys of its k-grams
        self._top: list[_Level] = []
        self._below: list[_Level] = []
        shorter = np.zeros(0, np.int64)  # [symbols] id of the (k-1)-gram that ends at each position
        for k in range(1, self.order + 1):
            keys, window = np.unique(self._key(symbols, shorter, k), return_inverse=True)
            if not len(keys) or keys[0] != 0:  # the k-gram of start symbols only always exists, and is number 0
                keys, window = np.concatenate([[0], keys]), window + 1
            self._keys.append(keys)
            occurrences = np.bincount(window[predicted], minlength=len(keys))
            self._top.append(self._level(k, occurrences))
            if k > 1:  # a (k-1)-gram's continuation count: the different k-grams that end in it
                first = np.full(len(keys), -1)
                first[window[predicted][::-1]] = predicted[::-1]
                self._below.append(self._level(k - 1, np.bincount(shorter[first[first >= 0]], minlength=len(self._keys[k - 2]))))
            shorter = window

    def _key(self, symbols: np.ndarray, shorter: np.ndarray, k: int) -> np.ndarray:
        """[symbols] key of the k-gram ending at each position; negative where its history has no id."""
        if k == 1:
            return symbols.copy()
        history = np.concatenate([[0], shorter[:-1]])[: len(symbols)]
        return history * self._radix + symbols

    def _level(self, k: int, counts: np.ndarray) -> _Level:
        """Discounted shares and back-off mass of order k from its counts [k-grams]."""
        discount = self._discounts(counts)[np.minimum(counts, 3)]
        history = self._keys[k - 1] // self._radix
        histories = 1 if k == 1 else len(self._keys[k - 2])
        total = np.bincount(history, weights=counts, minlength=histories)
        taken = np.bincount(history, weights=np.minimum(discount, counts), minlength=histories)
        seen = np.maximum(total, 1)
        return _Level(np.maximum(counts - discount, 0) / seen[history], np.where(total > 0, taken / seen, 1.0))

    def _discounts(self, counts: np.ndarray) -> np.ndarray:
        """[4] what is taken from a count of 0, 1, 2 and of 3 or more."""
        if self.discounts == "absolute":
            return _ABSOLUTE
        return modified_discounts(*(int((counts == i).sum()) for i in (1, 2, 3, 4)))

    def probabilities(self, documents: Sequence[str], order: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Probability of each character (and end) given those before it, and the document each belongs to.

        Both are [characters + documents] (or [characters] without document symbols), in reading order.
        """
        order = order or self.order
        if not 1 <= order <= self.order:
            raise ValueError(f"order must be between 1 and {self.order}, not {order}")
        symbols, begins = self._encode(documents)
        probability = np.full(len(symbols), 1.0 / self.outcomes)
        window = np.zeros(0, np.int64)
        for k in range(1, order + 1):
            level = self._top[k - 1] if k == order else self._below[k - 1]
            key = self._key(symbols, window, k)
            history = key // self._radix if k > 1 else np.zeros(len(symbols), np.int64)  # -1 where never seen
            keys = self._keys[k - 1]
            rank = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
            found = keys[rank] == key
            known = history >= 0
            probability *= np.where(known, level.backoff[np.maximum(history, 0)], 1.0)
            probability += np.where(found, level.direct[rank], 0.0)
            window = np.where(found, rank, -1)
        keep = symbols != _START
        owner = np.repeat(np.arange(len(begins)), np.diff(np.concatenate([begins, [len(symbols)]])))
        return probability[keep], owner[keep]

    def nats(self, documents: Sequence[str], order: int | None = None) -> np.ndarray:
        """[documents] negative natural log-likelihood of each document, its end included."""
        probability, owner = self.probabilities(documents, order)
        return np.bincount(owner, weights=-np.log(probability), minlength=len(documents))


def modified_discounts(n1: int, n2: int, n3: int, n4: int) -> np.ndarray:
    """[4] what is taken from a count of 0, 1, 2 and of 3 or more, where n1 … n4 k-grams have a count of 1 … 4."""
    if not (n1 and n2 and n3):
        return _FALLBACK
    y = n1 / (n1 + 2 * n2)
    estimate = np.array([0.0, 1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3])
    usable = (estimate > 0) & (estimate < [1, 1, 2, 3])
    return np.where(usable, estimate, _FALLBACK)


def code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.int64)
