"""The text a tokenizer learns from: a bounded, weighted sample of the corpus, streamed.

What bounds a BPE trainer's memory is the number of different words. Chinese has no spaces, so Qwen2's rules take a
whole clause for one word and nearly every clause is new: a Han character costs some 340 bytes where an English one costs 5.
So letters of such scripts have a bound of their own, and long runs of them are cut, which makes more of them alike.
Only the training text is cut, never what is encoded later: nothing is lost but tokens longer than a run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import xxhash

from luban.corpus.documents import Document
from luban.tokenizer.config import TrainTokenizerConfig

# Letters of scripts that are written without spaces: Han, kana, Thai, Lao, Khmer, Myanmar, and Tibetan.
UNSPACED = "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_LETTER = re.compile(f"[{UNSPACED}]+")


@dataclass
class Sample:
    """How often documents of each language are taken, so that the languages get their shares.

    ``rates[language]`` is the expected number of times a document is read: 0.25 takes a quarter of them, 3 reads each three
    times (a BPE trainer counts words, so that reading twice is weighing twice).
    """

    config: TrainTokenizerConfig
    characters: dict[str, int] = field(default_factory=dict)  # available, each document capped
    unspaced: dict[str, int] = field(default_factory=dict)  # of these, letters of scripts without spaces
    bytes: int = 0
    cut: int = 0  # characters behind the cap
    rates: dict[str, float] = field(default_factory=dict)

    @classmethod
    def plan(cls, config: TrainTokenizerConfig, documents: Iterable[Document]) -> Sample:
        """Count the corpus once and settle the rates."""
        sample = cls(config)
        for document in documents:
            text = document.text[: config.maximum_document_characters]
            sample.cut += len(document.text) - len(text)
            sample.characters[document.language] = sample.characters.get(document.language, 0) + len(text)
            unspaced = len(text) - len(_LETTER.sub("", text))
            sample.unspaced[document.language] = sample.unspaced.get(document.language, 0) + unspaced
            sample.bytes += len(document.text.encode("utf-8", "replace"))
        total = sum(sample.characters.values())
        weights = config.language_weights or dict(sample.characters)
        weights = {language: weight for language, weight in weights.items() if sample.characters.get(language)}
        wanted, whole = min(total, config.maximum_characters), sum(weights.values())
        sample.rates = {language: wanted * weight / whole / sample.characters[language] for language, weight in weights.items()}
        expensive = sum(rate * sample.unspaced[language] for language, rate in sample.rates.items())
        if expensive > config.maximum_unspaced_characters:  # less of everything, so that the shares stay
            sample.rates = {language: rate * config.maximum_unspaced_characters / expensive for language, rate in sample.rates.items()}
        return sample

    def texts(self, documents: Callable[[], Iterable[Document]], seed: int) -> Iterator[str]:
        """The training text, one piece a document, in the corpus's order. At most one document is held."""
        run = re.compile(f"([{UNSPACED}]{{{self.config.maximum_run_characters}}})(?=[{UNSPACED}])")
        for document in documents():
            rate = self.rates.get(document.language, 0.0)
            # The part after the point is a chance, drawn from the document itself: adding documents changes no other's lot.
            chance = xxhash.xxh3_64_intdigest(document.id.encode("utf-8", "replace"), seed) / 2**64
            text = document.text[: self.config.maximum_document_characters]
            for _ in range(int(rate) + (chance < rate % 1)):
                yield run.sub("\\1\n", text)
