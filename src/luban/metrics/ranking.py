"""Figures for ranked documents: each example is a query with its documents' scores and grades.

- Relevant: grade above 0. A query without a relevant document has no nDCG, MRR, recall or precision: it is left out of those means,
  and ``queries_without_relevant`` says what share it is (trec_eval does the same; scikit-learn's nDCG counts it as 0).
- Ties must not pay: nDCG is the mean over the orders of tied documents (McSherry and Najork 2008, as scikit-learn); for the others
  tied documents stand in the worst order. So a model that gives one score to all gains nothing by the order of the file.
- A score of NaN, or a missing one, ranks below all others; ``invalid_scores`` is their share of the documents.
- nDCG: gain = grade, discount log2(rank + 1) (Järvelin and Kekäläinen 2002); ``gain="exponential"`` takes 2^grade - 1. Negative grades gain 0.
- AUC: all documents of all queries in one list. Grouped AUC: each query's own, weighted by its documents (Zhu et al. 2017), over the
  queries that have both kinds.
- Log loss: of scores that are probabilities of a click, over all documents, with grades of 0 to 1 (what is negative counts as 0; a
  fraction is a share of clicks). Natural logarithm; probabilities are cut to 2.2e-16 from 0 and 1, as in scikit-learn. One that is
  missing, NaN or outside 0 to 1 makes it NaN.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from luban.foundation.errors import DataError
from luban.metrics.counts import check_pairs
from luban.metrics.curves import roc_area
from luban.metrics.resampling import Measure, means, of_sums, ratio, scores
from luban.metrics.score import Score

CUTS = (1, 5, 10)
SMALLEST = float(np.finfo(np.float64).eps)


def rankings(scored: Sequence[Sequence[float | None]], grades: Sequence[Sequence[float]], cuts: Sequence[int] = CUTS, gain: str = "linear", seed: int = 0) -> dict[str, Score]:
    """nDCG@k, MRR@k, recall@k, hit@k, MAP, AUC and grouped AUC; nDCG@10 comes first."""
    found: dict[str, Score] = {}
    for measure in ranking_measures(scored, grades, cuts, gain):
        found |= scores(measure, seed)
    return found


def ranking_measures(scored: Sequence[Sequence[float | None]], grades: Sequence[Sequence[float]], cuts: Sequence[int] = CUTS, gain: str = "linear") -> list[Measure]:
    """What :func:`rankings` reports."""
    check_pairs(scored, grades)
    if gain not in ("linear", "exponential"):
        raise ValueError(f"gain is linear or exponential, not {gain}")
    for number, (given, graded) in enumerate(zip(scored, grades, strict=True), start=1):
        if len(given) != len(graded):
            what, fix = "query {number} has {documents} documents and {scores} scores", "predict the same file that is scored"
            raise DataError(what, "each document needs exactly one score", fix, number=number, documents=len(graded), scores=len(given))
    raw = [np.array([np.nan if one is None else one for one in given], np.float64) for given in scored]
    clean = [np.where(np.isnan(one), -np.inf, one) for one in raw]
    graded = [np.array(one, np.float64) for one in grades]
    columns = _columns(clean, graded, sorted(cuts, key=lambda cut: (cut != 10, cut)), gain)
    columns["queries_without_relevant"] = np.array([not (one > 0).any() for one in graded], float)
    invalid = np.array([np.isnan(one).sum() for one in raw])
    if invalid.sum():
        columns["invalid_scores"] = invalid / max(np.mean([len(one) for one in raw]), 1e-12)
    facts = {"gain": gain, "ties": "mean,worst", "documents": sum(len(one) for one in raw)}
    return [means(columns, {name: "" for name in columns}, facts), _areas(clean, graded, facts)]


def click_measures(probabilities: Sequence[Sequence[float | None]], grades: Sequence[Sequence[float]]) -> list[Measure]:
    """Log loss of clicks; nothing where grades are more than clicked or not, or where there is no document."""
    check_pairs(probabilities, grades)
    graded = [np.maximum(np.array(one, np.float64), 0.0) for one in grades]
    if max((float(one.max()) for one in graded if len(one)), default=2.0) > 1:
        return []
    given = [np.array([np.nan if one is None else one for one in row], np.float64) for row in probabilities]
    sums = np.zeros((len(given), 2))
    for number, (sure, truth) in enumerate(zip(given, graded, strict=True)):
        sure = np.where((sure >= 0) & (sure <= 1), np.clip(sure, SMALLEST, 1 - SMALLEST), np.nan)
        sums[number] = -(truth * np.log(sure) + (1 - truth) * np.log1p(-sure)).sum(), len(sure)
    if np.isnan(sums).any():
        sums[:, 0] = np.nan
    return [of_sums("log_loss", "nats", sums, facts={"documents": int(sums[:, 1].sum())})]


def retrieval_measures(retrieved: Sequence[Sequence[tuple[float | None, float]]], cuts: Sequence[int] = (1, 5, 10, 100), gain: str = "linear") -> list[Measure]:
    """nDCG@k, MRR@k, recall@k and hit@k of searches in one corpus. ``retrieved`` holds, for each query, (score, grade) of the documents that
    were ranked highest, at least as many as the largest cut, and of every relevant document: the others cannot change these figures."""
    measure = ranking_measures([[score for score, _ in one] for one in retrieved], [[grade for _, grade in one] for one in retrieved], cuts, gain)[0]
    units = {name: unit for name, unit in measure.units.items() if "@" in name or name == "queries_without_relevant"}

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {name: value for name, value in measure.values(weights).items() if name in units}

    facts = {name: fact for name, fact in measure.facts.items() if name != "documents"}
    return [replace(measure, values=values, units=units, facts={**facts, "corpus": "pooled"})]


def is_similarity(grades: Sequence[Sequence[float]]) -> bool:
    """Whether grades are degrees of likeness of pairs rather than relevance: fractions, or several degrees of texts with one partner each."""
    different = {grade for one in grades for grade in one}
    single = sum(len(one) == 1 for one in grades)
    return any(grade % 1 != 0 for grade in different) or (len(different) > 2 and single >= 0.9 * len(grades))


def _columns(scored: list[np.ndarray], graded: list[np.ndarray], cuts: Sequence[int], gain: str) -> dict[str, np.ndarray]:
    """Every figure of every query; NaN where it has none."""
    rows = []
    for score, grade in zip(scored, graded, strict=True):
        row: dict[str, float] = {}
        relevant = worst_order(score, grade) > 0
        row |= {f"ndcg@{cut}": value for cut, value in zip(cuts, ndcg(score, grade, cuts, gain), strict=True)}
        count, first = int(relevant.sum()), int(np.argmax(relevant)) if relevant.any() else 0
        for cut in cuts:
            row[f"mrr@{cut}"] = (1 / (first + 1) if first < cut else 0.0) if count else np.nan
            row[f"recall@{cut}"] = relevant[:cut].sum() / count if count else np.nan
            row[f"hit@{cut}"] = float(relevant[:cut].any()) if count else np.nan
        row["mrr"] = 1 / (first + 1) if count else np.nan
        row["map"] = float((np.cumsum(relevant)[relevant] / (np.flatnonzero(relevant) + 1)).mean()) if count else np.nan
        rows.append(row)
    order = ["ndcg@", "mrr@", "recall@", "hit@", "mrr", "map"]
    names = sorted(rows[0], key=lambda name: order.index(name.split("@")[0] + "@" * ("@" in name)))
    return {name: np.array([row[name] for row in rows]) for name in names}


def worst_order(score: np.ndarray, grade: np.ndarray) -> np.ndarray:
    """Grades by falling score, the lowest grade first among ties."""
    return grade[np.lexsort((grade, -score))]


def ndcg(score: np.ndarray, grade: np.ndarray, cuts: Sequence[int], gain: str = "linear") -> list[float]:
    """Normalised discounted cumulative gain of one query at each cut, averaged over the orders of ties; NaN without a positive grade."""
    gains = np.maximum(grade, 0.0) if gain == "linear" else 2.0 ** np.maximum(grade, 0.0) - 1
    if not (gains > 0).any():
        return [float("nan")] * len(cuts)
    ranks = np.arange(len(gains))
    discounts = np.where(ranks < np.array(cuts)[:, None], 1 / np.log2(ranks + 2.0), 0.0)  # [cuts, documents]
    ideal = discounts @ np.sort(gains)[::-1]
    _, group = np.unique(-score, return_inverse=True)  # groups of equal scores, the highest first
    sizes = np.bincount(group)
    ends = np.cumsum(sizes)
    reached = np.concatenate([np.zeros((len(cuts), 1)), np.cumsum(discounts, axis=1)], axis=1)
    return ((reached[:, ends] - reached[:, ends - sizes]) @ (np.bincount(group, weights=gains) / sizes) / ideal).tolist()


def _areas(scored: list[np.ndarray], graded: list[np.ndarray], facts: dict[str, object]) -> Measure:
    sizes = np.array([len(one) for one in scored])
    query = np.repeat(np.arange(len(scored)), sizes)
    positive, score = np.concatenate(graded) > 0, np.concatenate(scored)
    pooled = roc_area(positive, score)
    own = np.array([roc_area(grade > 0, given)(np.ones((1, len(given))))[0] if len(given) else np.nan for given, grade in zip(scored, graded, strict=True)])
    share = np.where(np.isnan(own), 0.0, sizes)

    def values(weights: np.ndarray) -> dict[str, np.ndarray]:
        return {"auc": pooled(weights[:, query]), "grouped_auc": ratio(weights @ (np.nan_to_num(own) * share), weights @ share)}

    return Measure(values, len(scored), {"auc": "", "grouped_auc": ""}, facts, cost=max(1.0, 6 * float(sizes.mean())))
