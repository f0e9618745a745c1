"""ROUGE that works on Chinese: overlap of a summary with its reference in words, or characters where no spaces stand.

Lin (2004): ROUGE-n is the F1 of n-grams counted with repetition; ROUGE-L of the longest common subsequence; ROUGE-Lsum joins,
for each sentence of the reference, what the common subsequences with all sentences of the summary cover. The score is the mean
over texts. Units are those of :func:`luban.metrics.words.units`: lower case, no punctuation, no stemming, so that English
equals the ``rouge_score`` package without its stemmer (for letters a to z and digits).

An empty summary scores 0; so does an empty reference, unless both are empty, which is 1.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from luban.metrics.counts import check_pairs
from luban.metrics.resampling import Measure, means, scores
from luban.metrics.score import Score
from luban.metrics.words import ngrams, units

_SENTENCE = re.compile(r"\n+|(?<=[。！？!?])|(?<=\.)\s+")
_LONGEST = 2000  # units of one sentence in ROUGE-Lsum; longer ones are cut there, so that memory stays small


def summaries(predicted: Sequence[str], gold: Sequence[str], seed: int = 0) -> dict[str, Score]:
    """ROUGE-L, ROUGE-1, ROUGE-2 and ROUGE-Lsum, F1 from 0 to 1, with precision and recall of ROUGE-1."""
    return scores(summary_measure(predicted, gold), seed)


def summary_measure(predicted: Sequence[str], gold: Sequence[str]) -> Measure:
    """What :func:`summaries` reports."""
    check_pairs(predicted, gold)
    table = []
    for summary, reference in zip(predicted, gold, strict=True):
        first, second = units(summary), units(reference)
        one = rouge_n(first, second, 1)
        table.append([rouge_l(first, second)[0], one[0], rouge_n(first, second, 2)[0], rouge_lsum(summary, reference)[0], *one[1:]])
    names = ["rouge_l", "rouge_1", "rouge_2", "rouge_lsum", "rouge_1_precision", "rouge_1_recall"]
    columns = dict(zip(names, np.array(table).T, strict=True))
    return means(columns, {name: "" for name in names}, {"units": "words+cjk", "case": "lower", "stemmer": "no"})


def rouge_n(summary: Sequence[str], reference: Sequence[str], order: int) -> tuple[float, float, float]:
    """F1, precision and recall of n-grams."""
    first, second = ngrams(summary, order), ngrams(reference, order)
    if not summary and not reference:
        return 1.0, 1.0, 1.0
    return _rates((first & second).total(), first.total(), second.total())


def rouge_l(summary: Sequence[str], reference: Sequence[str]) -> tuple[float, float, float]:
    """F1, precision and recall of the longest common subsequence."""
    if not summary and not reference:
        return 1.0, 1.0, 1.0
    return _rates(common_subsequence(summary, reference), len(summary), len(reference))


def rouge_lsum(summary: str, reference: str) -> tuple[float, float, float]:
    """F1, precision and recall of the joined common subsequences; sentences end at line breaks and at 。！？ . ! ?"""
    first, second = sentences(summary), sentences(reference)
    if not first and not second:
        return 1.0, 1.0, 1.0
    spare, wanted = (ngrams([unit for sentence in side for unit in sentence], 1) for side in (first, second))
    total = (spare.total(), wanted.total())
    hits = 0
    for sentence in second:
        covered = sorted({place for other in first for place in common_places(sentence, other)})
        for place in covered:
            unit = (sentence[place],)
            if spare[unit] > 0 and wanted[unit] > 0:
                spare[unit] -= 1
                wanted[unit] -= 1
                hits += 1
    return _rates(hits, *total)


def sentences(text: str) -> list[list[str]]:
    """The units of each sentence, sentences without any left out."""
    found = [units(sentence) for sentence in _SENTENCE.split(text)]
    return [sentence[start : start + _LONGEST] for sentence in found for start in range(0, len(sentence), _LONGEST)]


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence. A column of the table is the bits of one integer (Hyyrö 2004)."""
    if not first or not second:
        return 0
    return len(first) - _columns(first, second, keep=False)[-1].bit_count()


def common_places(first: Sequence[str], second: Sequence[str]) -> list[int]:
    """Where in ``first`` a longest common subsequence lies: of several, the one found from the end, matching as late as it can."""
    columns = [(1 << len(first)) - 1, *_columns(first, second, keep=True)] if first and second else []
    places, row, column = [], len(first) - 1, len(second) - 1
    while columns and row >= 0 and column >= 0:
        if first[row] == second[column]:
            places.append(row)
            row, column = row - 1, column - 1
        elif columns[column + 1] >> row & 1:  # the table does not grow at this row: it is not needed
            row -= 1
        else:
            column -= 1
    return places[::-1]


def _columns(first: Sequence[str], second: Sequence[str], keep: bool) -> list[int]:
    """After each unit of ``second``: bit i is 0 where the table grows from row i to i + 1. The last one alone unless ``keep``."""
    whole = (1 << len(first)) - 1
    places: dict[str, int] = {}
    for place, unit in enumerate(first):
        places[unit] = places.get(unit, 0) | 1 << place
    column, columns = whole, []
    for unit in second:
        matches = column & places.get(unit, 0)
        column = (column + matches | column - matches) & whole
        if keep:
            columns.append(column)
    return columns if keep else [column]


def _rates(hits: int, said: int, wanted: int) -> tuple[float, float, float]:
    return 2 * hits / max(said + wanted, 1), hits / max(said, 1), hits / max(wanted, 1)
