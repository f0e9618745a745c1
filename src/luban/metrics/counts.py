"""Precision, recall and F1 from counted events: the kernel under labels, entities, relations and triples alike.

Three kinds of events, each with the example and the label it belongs to: a gold item, a predicted item, and a hit (an item
that is both). What an average over labels means is said here once:

- micro: over all items together. macro: mean over labels. weighted: mean over labels by their gold items.
- A label that is neither in gold nor predicted does not enter an average (scikit-learn's and seqeval's default label set).
- A label without predictions has precision 0, without gold items recall 0. Where there is nothing at all, neither gold nor
  predicted, a figure is undefined: NaN, not 0.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.foundation.errors import DataError
from luban.metrics.resampling import Measure, ratio

Events = tuple[np.ndarray, np.ndarray]  # example of each event, label of each event


@dataclass(frozen=True)
class Counted:
    """Events of some examples over ``labels``."""

    hits: Events
    predicted: Events
    gold: Events
    labels: list[str]
    examples: int

    def totals(self, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Hits, predicted and gold items of each label, each [resamples, labels]."""
        return tuple(_totals(events, weights, len(self.labels)) for events in (self.hits, self.predicted, self.gold))


def _totals(events: Events, weights: np.ndarray, labels: int) -> np.ndarray:
    examples, codes = events
    return np.stack([np.bincount(codes, weights=row[examples], minlength=labels) for row in weights])  # [resamples, labels]


def count_items(predicted: Sequence[Iterable[tuple]], gold: Sequence[Iterable[tuple]], labels: Sequence[str]) -> Counted:
    """Items of each example are tuples whose last member is the label; an item said twice counts once."""
    predicted, gold = [set(items) for items in predicted], [set(items) for items in gold]
    known = all_labels(labels, (item[-1] for items in (*gold, *predicted) for item in items))
    place = {label: code for code, label in enumerate(known)}

    def events(sets: list[set]) -> Events:
        pairs = sorted((example, place[item[-1]]) for example, items in enumerate(sets) for item in items)
        table = np.array(pairs, np.int64).reshape(-1, 2)
        return table[:, 0], table[:, 1]

    both = [first & second for first, second in zip(predicted, gold, strict=True)]
    return Counted(events(both), events(predicted), events(gold), known, len(gold))


def averages(
    counted: Counted,
    kinds: Sequence[str] = ("micro", "macro", "weighted"),
    facts: dict[str, object] | None = None,
    *,
    name: str = "",
    each: str | None = None,
    only_gold: bool = False,
) -> Measure:
    """Precision, recall and F1 under each average, and the F1 of each label.

    ``name`` goes before the averages' names (``entity_micro_f1``), ``each`` before those of single labels (``f1/LABEL``), which are
    left out for None. ``only_gold``: labels that occur in gold alone make the macro average (SemEval's rule).
    """
    figures = [f"{name}{kind}_{what}" for kind in kinds for what in ("f1", "precision", "recall")]
    single = [f"{each}f1/{label}" for label in counted.labels] if each is not None else []

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        hits, predicted, gold = counted.totals(weights)
        found = {}
        if "micro" in kinds:
            found |= _named(f"{name}micro", _rates(hits.sum(1), predicted.sum(1), gold.sum(1)))
        rates = _rates(hits, predicted, gold)
        there = (gold > 0) if only_gold else (gold + predicted > 0)
        if "macro" in kinds:
            found |= _named(f"{name}macro", [mean_over(rate, there) for rate in rates])
        if "weighted" in kinds:
            found |= _named(f"{name}weighted", [ratio((np.nan_to_num(rate) * gold).sum(1), gold.sum(1)) for rate in rates])
        return found | dict(zip(single, rates[0].T, strict=False))

    cost = 2 * max(1.0, len(counted.gold[0]) / counted.examples, len(counted.labels) / counted.examples)
    return Measure(values, counted.examples, {figure: "" for figure in [*figures, *single]}, dict(facts or {}), cost=cost)


def _rates(hits: np.ndarray, predicted: np.ndarray, gold: np.ndarray) -> list[np.ndarray]:
    """F1, precision and recall; 0 where one side is empty, NaN where both are."""
    both = ratio(2 * hits, predicted + gold)
    nothing = np.isnan(both)
    sides = [np.where(nothing, np.nan, np.nan_to_num(ratio(hits, side))) for side in (predicted, gold)]
    return [both, *sides]


def _named(average: str, rates: list[np.ndarray]) -> dict[str, np.ndarray]:
    return {f"{average}_{what}": rate for what, rate in zip(("f1", "precision", "recall"), rates, strict=True)}


def mean_over(rate: np.ndarray, there: np.ndarray) -> np.ndarray:
    """Mean over the labels that are ``there``, NaN where none is: [resamples, labels] → [resamples]."""
    return ratio(np.where(there, np.nan_to_num(rate), 0.0).sum(1), there.sum(1))


def text_of(label: Any) -> str:
    """A label as text in Unicode form NFC, so that ``é`` is one label however it was typed. Case and spaces count."""
    return unicodedata.normalize("NFC", label if isinstance(label, str) else str(label))


def all_labels(known: Iterable[Any], met: Iterable[Any]) -> list[str]:
    """The known labels in their order, then those that were only met, sorted."""
    labels = list(dict.fromkeys(text_of(label) for label in known))
    return labels + sorted({text_of(label) for label in met} - set(labels))


def check_pairs(predictions: Sequence, gold: Sequence) -> None:
    """As many predictions as gold examples, and at least one."""
    if len(predictions) != len(gold):
        counts = {"predictions": len(predictions), "gold": len(gold)}
        raise DataError("there are {predictions} predictions for {gold} examples", "each example needs exactly one", "predict the same file that is scored", **counts)
    if not len(gold):
        raise DataError("there are no examples to score", "the held-out set is empty", "hold out a larger share, or name a file with examples")
