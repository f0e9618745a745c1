"""Measuring a tokenizer: how far it compresses each language, what it cannot write, and how fast it is."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import numpy as np

from luban.corpus.documents import Document
from luban.foundation.console import table
from luban.foundation.messages import t
from luban.tokenizer.tokenizer import Tokenizer


def sample_documents(documents: Iterable[Document], per_language: int) -> dict[str, list[str]]:
    """The first documents of each language, at most 20,000 characters of each."""
    chosen: dict[str, list[str]] = {}
    for document in documents:
        texts = chosen.setdefault(document.language, [])
        if len(texts) < per_language:
            texts.append(document.text[:20_000])
    return chosen


def evaluate(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> dict[str, Any]:
    """Figures of a tokenizer: per language bytes and characters a token, share of characters that come back, single-token
    characters; and over all whether every byte and every sample survives a round trip, and characters encoded a second.
    """
    languages = {language: _measure(tokenizer, samples) for language, samples in sorted(texts.items()) if any(samples)}
    return {
        "vocabulary_size": tokenizer.vocabulary_size,
        "fingerprint": tokenizer.fingerprint(),
        "every_byte_survives": every_byte_survives(tokenizer),
        "documents_survive": _share(
            sum(figures.pop("survived") for figures in languages.values()), sum(figures["documents"] for figures in languages.values())
        ),
        "longest_token_bytes": int(tokenizer.token_bytes().max(initial=0)),
        "languages": languages,
    }


def speed(tokenizer: Tokenizer, texts: dict[str, list[str]]) -> float:
    """Bytes encoded a second on this machine, all cores (printed, and not part of the artifact)."""
    samples = [text for language in sorted(texts) for text in texts[language]]
    start = time.perf_counter()
    tokenizer.encode_batch(samples)
    return sum(len(text.encode("utf-8", "replace")) for text in samples) / max(time.perf_counter() - start, 1e-9)


def every_byte_survives(tokenizer: Tokenizer) -> bool:
    """Whether all 256 bytes have a token, so that no text whatever needs an unknown token."""
    singles = {item for item in tokenizer._byte_table if len(item) == 1}
    return len(singles) == 256 and all(tokenizer.decode(tokenizer.encode(text)) == text for text in _EVERY_UTF8_BYTE)


# Valid UTF-8 holds the bytes 00–7F, 80–BF, C2–F4; these characters use them all.
_EVERY_UTF8_BYTE = [
    *(chr(code) for code in range(0x80)),
    *(chr(0x4E00 + code) for code in range(64)),
    *(chr((code << 6) + 32) for code in range(0x02, 0x20)),
    *(chr(0x0800 + (code << 12)) for code in range(16) if code != 0xD),
    "\ud7a3", *(chr(0x10000 + (code << 18)) for code in range(4)), "\U0010ffff",
]  # fmt: skip


def _measure(tokenizer: Tokenizer, samples: list[str]) -> dict[str, Any]:
    encoded = tokenizer.encode_batch(samples)
    tokens, size = sum(map(len, encoded)), sum(len(text.encode("utf-8", "replace")) for text in samples)
    characters = sum(map(len, samples))
    normalizer = tokenizer.core.normalizer
    plain = [normalizer.normalize_str(text) if normalizer else text for text in samples]
    decoded = [tokenizer.decode(ids) for ids in encoded]
    distinct = sorted({character for text in plain for character in text})
    whole = sum(
        len(ids) == 1 and tokenizer.decode(ids) == character
        for character, ids in zip(distinct, tokenizer.encode_batch(distinct), strict=True)
    )
    used = np.unique(np.concatenate([np.array(ids, dtype=np.int64) for ids in encoded]))
    return {
        "documents": len(samples),
        "bytes_per_token": round(size / max(tokens, 1), 4),
        "characters_per_token": round(characters / max(tokens, 1), 4),
        "characters_covered": _share(
            sum(1 for character in distinct if tokenizer.decode(tokenizer.encode(character)) == character), len(distinct)
        ),
        "characters_in_one_token": _share(whole, len(distinct)),
        "vocabulary_used": _share(len(used), tokenizer.vocabulary_size),
        "survived": sum(before == after for before, after in zip(plain, decoded, strict=True)),
    }


def _share(part: float, whole: float) -> float:
    return round(part / whole, 6) if whole else 1.0


def show(figures: dict[str, Any]) -> None:
    """Print the figures as a small table."""
    columns = [
        t("language"),
        t("documents"),
        t("bytes a token"),
        t("characters a token"),
        t("characters in one token"),
        t("vocabulary used"),
    ]
    rows = [
        [
            language or "?",
            item["documents"],
            f"{item['bytes_per_token']:.2f}",
            f"{item['characters_per_token']:.2f}",
            f"{item['characters_in_one_token']:.1%}",
            f"{item['vocabulary_used']:.1%}",
        ]
        for language, item in figures["languages"].items()
    ]
    table(t("tokenizer"), columns, rows)
