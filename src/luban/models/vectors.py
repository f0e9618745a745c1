"""Word vectors: on disk, in the formats of word2vec and GloVe, and as the beginning of a model's embeddings.

A folder holds ``vectors.safetensors`` (``vectors`` [words, dimension] float32), ``words.txt`` (one a line, with ``\\\\``, ``\\n`` and ``\\r``
escaped) and ``config.json`` (model_type luban-vectors).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.errors import DataError
from luban.models.ngram_tables import FORMAT, read_config

MODEL_TYPE = "luban-vectors"
# Byte-level tokenizers write bytes as printable characters (GPT-2); a space is Ġ there and ▁ in SentencePiece.
_WORD_STARTS = ("Ġ", "▁")
_CONTINUATION = "##"  # BERT's


class WordVectors:
    """Words and their vectors [words, dimension] float32; a word stands once."""

    def __init__(self, words: Sequence[str], vectors: np.ndarray, facts: dict[str, Any] | None = None):
        """Raises DataError when the two do not fit together or a figure is not finite."""
        self.words, self.vectors, self.facts = list(words), np.ascontiguousarray(vectors, np.float32), dict(facts or {})
        if self.vectors.ndim != 2 or len(self.words) != len(self.vectors):
            raise DataError(
                "{words} words and {vectors} vectors do not fit together", "", "restore the files", words=len(self.words), vectors=self.vectors.shape
            )
        if not np.isfinite(self.vectors).all():
            row = int(np.flatnonzero(~np.isfinite(self.vectors).all(1))[0])
            raise DataError("the vector of {word!r} has a figure that is no number", "", "restore the files, or fit the vectors again", word=self.words[row])
        self.index = {word: number for number, word in reversed(list(enumerate(self.words)))}  # the first of equal words counts
        self._units: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.words)

    def __contains__(self, word: str) -> bool:
        return word in self.index

    def __getitem__(self, word: str) -> np.ndarray:
        """[dimension]; KeyError for a word without a vector."""
        return self.vectors[self.index[word]]

    @property
    def dimension(self) -> int:
        return self.vectors.shape[1]

    @property
    def directions(self) -> np.ndarray:
        """[words, dimension] the vectors at length one; zero stays zero."""
        if self._units is None:
            length = np.linalg.norm(self.vectors, axis=1, keepdims=True)
            self._units = self.vectors / np.where(length > 0, length, 1)
        return self._units

    def nearest(self, word: str | np.ndarray, count: int = 10, without: Sequence[str] = ()) -> list[tuple[str, float]]:
        """The words with the greatest cosine, without the word itself."""
        vector = self[word] if isinstance(word, str) else word
        left_out = {self.index[item] for item in ((word, *without) if isinstance(word, str) else without) if item in self.index}
        cosine = self.directions @ (vector / (np.linalg.norm(vector) or 1.0))
        order = np.argsort(-cosine, kind="stable")[: count + len(left_out)]
        return [(self.words[i], float(cosine[i])) for i in order if int(i) not in left_out][:count]

    def analogy(self, first: str, second: str, third: str, count: int = 5) -> list[tuple[str, float]]:
        """``first`` is to ``second`` as ``third`` is to what? Mikolov's second - first + third on directions."""
        wanted = self.directions[self.index[second]] - self.directions[self.index[first]] + self.directions[self.index[third]]
        return self.nearest(wanted, count, without=(first, second, third))

    def similarity(self, first: str, second: str) -> float:
        """Cosine of two words."""
        return float(self.directions[self.index[first]] @ self.directions[self.index[second]])

    def evaluate_pairs(self, pairs: Sequence[tuple[str, str, float]]) -> dict[str, float]:
        """Spearman's rank correlation of cosines with people's figures, over the pairs whose words both have vectors."""
        known = [(self.similarity(a, b), score) for a, b, score in pairs if a in self and b in self]
        missing = len(pairs) - len(known)
        if len(known) < 2:
            return {"spearman": math.nan, "pairs": len(known), "missing": missing}
        ranks = [_ranks(np.array(column)) for column in zip(*known, strict=True)]
        centred = [column - column.mean() for column in ranks]
        scale = math.sqrt(float((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
        return {"spearman": float((centred[0] * centred[1]).sum()) / scale if scale else math.nan, "pairs": len(known), "missing": missing}

    # ---- on disk

    def save(self, folder: Path) -> None:
        """Write the folder."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "vectors.safetensors", save({"vectors": self.vectors}))
        write_bytes(folder / "words.txt", "".join(_escaped(word) + "\n" for word in self.words).encode("utf-8", "surrogatepass"))
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "format": FORMAT, "words": len(self), "dimension": self.dimension, **self.facts})

    @classmethod
    def load(cls, folder: Path) -> WordVectors:
        """Open a folder that `save` wrote. Raises DataError for what is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        config = read_config(folder, MODEL_TYPE)
        try:
            vectors = load((folder / "vectors.safetensors").read_bytes())["vectors"]
            lines = (folder / "words.txt").read_bytes().decode("utf-8", "surrogatepass").split("\n")
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise DataError(
                "{path} holds no word vectors that can be read: {error}", "", "restore the folder, or fit the vectors again", path=folder, error=error
            ) from None
        facts = {key: value for key, value in config.items() if key not in ("model_type", "format", "words", "dimension")}
        return cls([_unescaped(line) for line in lines[:-1]], vectors, facts)


def _escaped(word: str) -> str:
    return word.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")


def _unescaped(line: str) -> str:
    pieces = line.split("\\\\")
    return "\\".join(piece.replace("\\n", "\n").replace("\\r", "\r") for piece in pieces)


def _ranks(values: np.ndarray) -> np.ndarray:
    """[values] ranks from 0, equal values sharing their mean."""
    _, place, number = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(number) - (number + 1) / 2)[place]


# --------------------------------------------------------------------------------------------- embeddings of a model


def initial_rows(vectors: WordVectors, tokenizer_tokens: Sequence[str], dimension: int, seed: int, deviation: float = 0.02) -> tuple[np.ndarray, np.ndarray]:
    """Rows to begin a model's embeddings with: (rows [tokens, dimension] float32, found [tokens] bool).

    A token that a vector is found for gets it: by its name, without the mark of a word's beginning (Ġ, ▁), with a byte-level tokenizer's
    characters read as the bytes they stand for, or in lower case. Vectors are brought to ``dimension`` by principal components (fewer) or
    zeros (more), and to the standard deviation ``deviation``. The other rows are drawn from a normal distribution with that deviation.
    A token that continues a word (``##`` of BERT) has no word's vector.
    """
    random = np.random.default_rng(seed)
    rows = random.normal(0.0, deviation, (len(tokenizer_tokens), dimension)).astype(np.float32)
    places = [next((vectors.index[name] for name in _spellings(token) if name in vectors.index), -1) for token in tokenizer_tokens]
    found = np.array(places, np.int64).reshape(-1) >= 0
    if found.any():
        fitted = resized(vectors.vectors, dimension)
        chosen = fitted[np.array(places)[found]]
        used = chosen[:, : min(dimension, vectors.dimension)]
        rows[found] = chosen * (deviation / (float((used - used.mean(0)).std()) or 1.0))
    return rows, found


def resized(vectors: np.ndarray, dimension: int) -> np.ndarray:
    """[words, dimension]: the first principal components (not centred, so that zero stays zero), or padded with zeros."""
    have = vectors.shape[1]
    if dimension >= have:
        return np.pad(vectors, ((0, 0), (0, dimension - have)))
    values, directions = np.linalg.eigh(vectors.astype(np.float64).T @ vectors.astype(np.float64))
    top = directions[:, np.argsort(-values, kind="stable")[:dimension]]
    top *= np.where(top[np.abs(top).argmax(0), np.arange(dimension)] < 0, -1.0, 1.0)  # a sign that no library's choice changes
    return (vectors @ top).astype(np.float32)


def _spellings(token: str) -> list[str]:
    """Names under which a token's vector may stand, the likeliest first."""
    if token.startswith(_CONTINUATION):
        return [token]
    bare = token[1:] if token[:1] in _WORD_STARTS else token
    try:
        decoded = bytes(_BYTES[character] for character in token).decode("utf-8").strip()
    except (KeyError, UnicodeDecodeError):
        decoded = ""
    names = [token, bare, decoded, bare.lower(), decoded.lower()]
    return [name for name in dict.fromkeys(names) if name]


def _byte_characters() -> dict[str, int]:
    """The character that GPT-2's byte-level scheme writes for each byte, as character -> byte."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_characters()
