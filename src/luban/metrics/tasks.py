"""The front door: every task's figures from its predictions and its gold examples, the main one first.

Gold examples are those of the examples room (their attributes are read, no class is asked for); predictions are dicts:

- classification ``{"label", "probabilities"}``; multi_label ``{"labels", "probabilities"}``; regression ``{"value"}``
- tagging ``{"spans": [{"start", "end", "label"}]}``; relation ``{"label"}``; joint_relation ``{"spans", "triples": [{"head", "tail", "label"}]}``
- question_answering ``{"answer", "no_answer_score"}``, "" for no answer; text_pairs ``{"text"}``; choice ``{"choice"}``
- preference ``{"scores": [better, worse]}``, or ``{"score"}`` of an answer that is good or bad by itself
- ranking and embedding ``{"scores": [...]}``, one a document, with ``"probability": True`` where they are probabilities; embedding also ``{"retrieved": [[score, grade], ...]}``, searched in one corpus

A missing key is the empty prediction of its task (no label, no spans, no text), and counts as such: wrong where something was wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from luban.foundation.console import warn
from luban.foundation.errors import DataError, LubanError, nearest
from luban.metrics.classification import classification_measures, multi_label_measures
from luban.metrics.counts import check_pairs
from luban.metrics.generation import generation_measures
from luban.metrics.preferences import labelled_measure, pair_measure
from luban.metrics.ranking import click_measures, is_similarity, ranking_measures, retrieval_measures
from luban.metrics.reading import reading_measures
from luban.metrics.regression import correlation_measure, regression_measures
from luban.metrics.resampling import Measure, differences, means, scores
from luban.metrics.score import RESAMPLES, Score
from luban.metrics.summarization import summary_measure
from luban.metrics.tagging import entity_measures, relation_measures, triple_measures, triples_of
from luban.metrics.translation import ter_is_affordable, translation_measures
from luban.metrics.words import resolve_language

MAIN = {
    "classification": "accuracy",
    "multi_label": "micro_f1",
    "regression": "spearman",
    "tagging": "entity_micro_f1",
    "relation": "micro_f1",
    "joint_relation": "triple_micro_f1",
    "question_answering": "answer_f1",
    "text_pairs": "rouge_l",
    "translation": "bleu",
    "summarization": "rouge_l",
    "generation": "rouge_l",
    "choice": "accuracy",
    "ranking": "ndcg@10",
    "embedding": "ndcg@10",
    "preference": "preference_accuracy",
}
_LESS_IS_BETTER = {
    "hamming_loss", "log_loss", "brier", "calibration_error", "mse", "rmse", "mae", "ter", "repetition_4", "empty",
    "invalid_probabilities", "invalid_scores", "invalid_predictions",
    "loss", "perplexity", "bits_per_byte",
}  # fmt: skip
_NEITHER = {"network_open", "length", "length_ratio", "controls_unchecked", "queries_without_relevant", "chance"}


def score_task(
    task: str, predictions: Sequence[dict], gold: Sequence[Any], *, labels: Sequence[str] = (), language: str = "auto", seed: int = 0, resamples: int = RESAMPLES
) -> dict[str, Score]:
    """Every figure of a task with its interval; the first is the one to choose a model by.

    ``task`` is a task of the examples room, or ``translation``, ``summarization`` or ``generation`` for pairs of texts whose purpose is
    known. ``resamples`` 0 gives the values alone, without intervals. ``labels`` are those of training. ``language`` is that of the answers or outputs, ``"auto"`` for what the gold looks like.
    """
    found: dict[str, Score] = {}
    for measure in task_measures(task, predictions, gold, labels=labels, language=language):
        found |= scores(measure, seed, resamples)
    return _main_first(task, found)


def compare_task(task: str, before: Sequence[dict], after: Sequence[dict], gold: Sequence[Any], *, labels: Sequence[str] = (), language: str = "auto", seed: int = 0) -> dict[str, Score]:
    """``after`` minus ``before`` on the same examples, every figure that both have, with paired intervals."""
    second = {tuple(measure.units): measure for measure in task_measures(task, after, gold, labels=labels, language=language)}
    found: dict[str, Score] = {}
    for measure in task_measures(task, before, gold, labels=labels, language=language):
        other = second.get(tuple(measure.units)) or next((one for one in second.values() if set(one.units) & set(measure.units)), None)
        if other is not None:
            found |= differences(measure, other, seed)
    return _main_first(task, found)


def greater_is_better(name: str) -> bool | None:
    """Whether more of a figure is better; None for what is neither, such as a length."""
    return None if name in _NEITHER else name not in _LESS_IS_BETTER


def task_measures(task: str, predictions: Sequence[dict], gold: Sequence[Any], *, labels: Sequence[str] = (), language: str = "auto") -> list[Measure]:
    """The measures behind :func:`score_task`."""
    if task not in MAIN:
        close = nearest(task, MAIN) or "classification"
        raise LubanError("there is no task {task!r} to score", "the tasks are {tasks}", "did you mean {close!r}?", task=task, tasks=", ".join(MAIN), close=close)
    check_pairs(predictions, gold)
    return _TASKS[task]([prediction or {} for prediction in predictions], gold, list(labels), language)


def _main_first(task: str, found: dict[str, Score]) -> dict[str, Score]:
    main = "spearman" if task == "embedding" and "spearman" in found and "ndcg@10" not in found else MAIN[task]
    if task == "generation" and "adherence" in found:
        main = "adherence"
    single = {name: score for name, score in found.items() if "/" in name}  # labels' and controls' own figures come last
    return ({main: found[main]} if main in found else {}) | {name: score for name, score in found.items() if name not in single} | single


def _labels_of(gold: Sequence[Any]) -> list[Any]:
    for number, example in enumerate(gold, start=1):
        if example.label is None or example.label == "":
            raise DataError("example {number} has no label to score against", "its label is empty", "score labelled examples only", number=number)
    return [example.label for example in gold]


def _probabilities(predictions: list[dict]) -> list[dict | None]:
    return [prediction.get("probabilities") for prediction in predictions]


def _classification(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    return classification_measures(_labels_of(gold), [prediction.get("label") for prediction in predictions], labels, _probabilities(predictions))


def _multi_label(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    truths = [[example.label] if isinstance(example.label, str) and example.label else example.label or [] for example in gold]
    return multi_label_measures(truths, [prediction.get("labels") or [] for prediction in predictions], labels, _probabilities(predictions))


def _regression(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    return regression_measures(_labels_of(gold), [prediction.get("value") for prediction in predictions])


def _tagging(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    return entity_measures([example.spans for example in gold], [prediction.get("spans") or [] for prediction in predictions], labels)


def _relation(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    return relation_measures([example.label for example in gold], [prediction.get("label") for prediction in predictions], labels)


def _joint_relation(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    truths = [triples_of(example.spans, example.relations) for example in gold]
    return triple_measures(truths, [prediction.get("triples") or [] for prediction in predictions]) + _tagging(predictions, gold, [], language)[:1]


def _question_answering(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    doubts = [prediction.get("no_answer_score") for prediction in predictions]
    known = [np.nan if doubt is None else float(doubt) for doubt in doubts] if any(doubt is not None for doubt in doubts) else None
    answers = [[text for text, _ in example.answers] for example in gold]
    language = resolve_language(language, (text for example, one in zip(gold, answers, strict=True) for text in (example.question, *one)))
    return reading_measures([prediction.get("answer") or "" for prediction in predictions], answers, language, known)


def _texts(predictions: list[dict]) -> list[str]:
    return [prediction.get("text") or "" for prediction in predictions]


def _translation(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    texts, outputs = _texts(predictions), [example.output for example in gold]
    with_ter = ter_is_affordable(texts, outputs)
    if not with_ter:
        warn("TER is left out: {count} sentences of this length would take long; luban.metrics.translation gives it", count=len(texts))
    return translation_measures(texts, outputs, language, with_ter)


def _summarization(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    outputs = [example.output for example in gold]
    return [summary_measure(_texts(predictions), outputs), *generation_measures(_texts(predictions), outputs)]


def _generation(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    outputs = [example.output for example in gold]
    return [*generation_measures(_texts(predictions), outputs, [example.controls for example in gold]), summary_measure(_texts(predictions), outputs)]


def _text_pairs(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    """All that may be asked of pairs whose purpose is not known; without sacrebleu its two figures are missing, and that is said."""
    found = _generation(predictions, gold, labels, language)
    try:
        return found + translation_measures(_texts(predictions), [example.output for example in gold], language, with_ter=False)
    except LubanError as error:
        warn("BLEU and chrF are left out: {error}", error=error.text().replace("\n", "; "))
        return found


def _choice(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    for number, example in enumerate(gold, start=1):
        if example.answer is None:
            raise DataError("question {number} has no right choice to score against", "its answer is empty", "score answered questions only", number=number)
    right = np.array([prediction.get("choice") == example.answer for prediction, example in zip(predictions, gold, strict=True)], float)
    chance = np.array([1 / max(len(example.choices), 1) for example in gold])
    return [means({"accuracy": right, "chance": chance}, {"accuracy": "", "chance": ""})]


def _scores_of(predictions: list[dict], gold: Sequence[Any]) -> list[list[float | None]]:
    return [list(prediction["scores"]) if prediction.get("scores") is not None else [None] * len(example.grades) for prediction, example in zip(predictions, gold, strict=True)]


def _ranking(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    given, grades = _scores_of(predictions, gold), [example.grades for example in gold]
    clicks = any(prediction.get("probability") for prediction in predictions)
    return [*ranking_measures(given, grades), *(click_measures(given, grades) if clicks else [])]


def _embedding(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    """Retrieval, where predictions say what was found in a corpus (``retrieved``); else the correlation of cosines with grades, and ranking
    where grades are relevance and some text has several partners."""
    if any("retrieved" in prediction for prediction in predictions):
        return retrieval_measures([prediction.get("retrieved") or list(zip([None] * len(example.grades), example.grades, strict=True)) for prediction, example in zip(predictions, gold, strict=True)])
    given, grades = _scores_of(predictions, gold), [np.array(example.grades, np.float64) for example in gold]
    ranked = ranking_measures(given, grades)
    numbers = [np.array([np.nan if one is None else one for one in scored], np.float64) for scored in given]
    together = correlation_measure(grades, numbers)
    return [together] if all(len(one) == 1 for one in grades) or is_similarity(grades) else [*ranked, together]


def _preference(predictions: list[dict], gold: Sequence[Any], labels: list[str], language: str) -> list[Measure]:
    """Pairs, or where the gold has none single answers with their labels."""
    if all(example.rejected is None for example in gold):
        return [labelled_measure(np.array([_finite(prediction.get("score")) for prediction in predictions]), np.array([bool(example.label) for example in gold]))]
    kept = [prediction.get("scores") or [None, None] for prediction, example in zip(predictions, gold, strict=True) if example.rejected is not None]
    if len(kept) < len(gold):
        warn("{count} single answers are left out: the others are pairs", count=len(gold) - len(kept))
    better, worse = (np.array([_finite(pair[side]) for pair in kept]) for side in (0, 1))
    return [pair_measure(better, worse)]


def _finite(value: float | None) -> float:
    return np.nan if value is None else float(value)


_TASKS: dict[str, Callable[[list[dict], Sequence[Any], list[str], str], list[Measure]]] = {
    "classification": _classification,
    "multi_label": _multi_label,
    "regression": _regression,
    "tagging": _tagging,
    "relation": _relation,
    "joint_relation": _joint_relation,
    "question_answering": _question_answering,
    "text_pairs": _text_pairs,
    "translation": _translation,
    "summarization": _summarization,
    "generation": _generation,
    "choice": _choice,
    "ranking": _ranking,
    "embedding": _embedding,
    "preference": _preference,
}
