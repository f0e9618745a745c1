"""BLEU, chrF and TER of sacrebleu (the extra ``tasks``), for the whole corpus, with intervals.

The value is sacrebleu's corpus score, and its signature is the middle of ours. The interval is drawn from each sentence's
sufficient statistics (n-gram matches and lengths, edits), which sacrebleu counts once: a resample costs a sum, no translation.

Words are split as the target language asks (Post 2018): ``zh`` for Chinese; single characters for Japanese, whose own splitter needs
MeCab, and for Thai, Lao, Khmer and Burmese; ``13a``, the rule of the WMT campaigns, for all else. chrF splits nothing. TER takes
Chinese and Japanese by character (``asian:yes``). It searches for shifts, in time that grows with the cube of a sentence's words:
:func:`ter_is_affordable` tells beforehand whether that is bearable.

An empty translation scores 0 in its sentence; empty references are sacrebleu's to judge: they add to the length only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from luban.foundation.errors import missing_extra
from luban.metrics.counts import check_pairs
from luban.metrics.resampling import Measure, of_sums, ratio, scores
from luban.metrics.score import Score
from luban.metrics.words import resolve_language, units

_BY_CHARACTER = ("ja", "th", "lo", "km", "my")
_ORDERS = 4
_TER_WORK = 20_000_000  # words cubed
_TER_SEARCHED = 30_000  # of a long sentence the search gives up after about so many steps a word
_BETA = 2.0

References = Sequence[str] | Sequence[Sequence[str]]  # one reference a sentence, or several


def tokenizer_for(language: str) -> str:
    """sacrebleu's name of the splitter for a target language."""
    if language == "zh":
        return "zh"
    return "char" if language in _BY_CHARACTER else "13a"


def ter_is_affordable(predicted: Sequence[str], gold: Sequence[str]) -> bool:
    """Whether TER takes some ten seconds (translations like their references) to two minutes (random words), and not hours."""
    lengths = [max(len(units(first)), len(units(second))) for first, second in zip(predicted, gold, strict=True)]
    return sum(min(length**3, _TER_SEARCHED * length) for length in lengths) <= _TER_WORK


def translations(predicted: Sequence[str], gold: References, language: str = "auto", seed: int = 0, with_ter: bool = True) -> dict[str, Score]:
    """BLEU, chrF and (unless ``with_ter`` is False) TER, 0 to 100; less is better for TER alone."""
    found: dict[str, Score] = {}
    for measure in translation_measures(predicted, gold, language, with_ter):
        found |= scores(measure, seed)
    return found


def translation_measures(predicted: Sequence[str], gold: References, language: str = "auto", with_ter: bool = True) -> list[Measure]:
    """What :func:`translations` reports."""
    check_pairs(predicted, gold)
    references = [[one] if isinstance(one, str) else list(one) for one in gold]
    language = resolve_language(language, (text for one in references for text in one))
    try:
        from sacrebleu.metrics import BLEU, CHRF, TER
    except ImportError:
        raise missing_extra("sacrebleu", "tasks") from None
    asian = language in ("zh", "ja")
    makers = [("bleu", BLEU(tokenize=tokenizer_for(language), force=True), bleu_of_sums), ("chrf", CHRF(), chrf_of_sums)]
    if with_ter:
        makers.append(("ter", TER(normalized=asian, asian_support=asian), ter_of_sums))
    return [_measure(name, metric, list(predicted), references, statistic, language) for name, metric, statistic in makers]


def _measure(name: str, metric: Any, predicted: list[str], references: list[list[str]], statistic: Any, language: str) -> Measure:
    most = max(len(one) for one in references)
    streams = [[one[place] if place < len(one) else None for one in references] for place in range(most)]
    statistics = np.array(metric._extract_corpus_statistics(predicted, streams), np.float64)  # [sentences, statistics]
    facts: dict[str, object] = dict(pair.split(":", 1) for pair in str(metric.get_signature()).split("|"))
    facts["sacrebleu"] = facts.pop("version")
    return of_sums(name, "%", statistics, statistic, facts | {"lang": language})


def bleu_of_sums(sums: np.ndarray) -> np.ndarray:
    """BLEU with exponential smoothing of sums [resamples, 2 + 2 · 4]: lengths of translation and reference, matches, n-grams.

    Papineni et al. (2002); an order without a match counts as half, a quarter, … of one (mteval-v13a).
    """
    said, wanted, matches, total = sums[:, 0], sums[:, 1], sums[:, 2 : 2 + _ORDERS], sums[:, 2 + _ORDERS :]
    misses = np.cumsum(matches == 0, axis=1)
    smoothed = np.where(matches > 0, matches, 0.5**misses)
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(smoothed / total).sum(axis=1) / _ORDERS
        brevity = np.where(said < wanted, 1 - wanted / said, 0.0)
        found = 100 * np.exp(brevity + logs)
    return np.where((matches.sum(1) > 0) & (total > 0).all(axis=1), found, 0.0)


def chrf_of_sums(sums: np.ndarray) -> np.ndarray:
    """chrF of sums [resamples, 3 · 6]: n-grams of the translation, of the reference, and shared, for each order (Popović 2015)."""
    said, wanted, shared = sums[:, 0::3], sums[:, 1::3], sums[:, 2::3]
    orders = ((said > 0) & (wanted > 0)).sum(axis=1)
    precision, recall = (ratio(np.nan_to_num(ratio(shared, side) * ((said > 0) & (wanted > 0))).sum(axis=1), orders) for side in (said, wanted))
    return 100 * np.nan_to_num(ratio((1 + _BETA**2) * precision * recall, _BETA**2 * precision + recall))


def ter_of_sums(sums: np.ndarray) -> np.ndarray:
    """Edits per reference word of sums [resamples, 2]; 100 where words were said and none was wanted (Snover et al. 2006)."""
    edits, words = sums[:, 0], sums[:, 1]
    return 100 * np.where(words > 0, edits / np.maximum(words, 1e-12), edits > 0)
