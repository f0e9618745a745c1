"""Figures for reading comprehension, as the official scripts define them.

English and other spaced languages (SQuAD, Rajpurkar et al. 2016, 2018). Normalised: lower case, ASCII punctuation deleted, the
words a, an and the deleted, spaces collapsed. Exact match: equal after that. F1: over the bags of words. Both are the best over
the gold answers. A question without gold answers wants the empty answer (2018): right is 1, anything else 0; answers that
normalise to nothing are no answers, and F1 of two empty answers is 1.

Chinese (CMRC 2018, Cui et al. 2019). Lower case; the script's list of punctuation deleted (spaces stay). Exact match: equal after that.
F1: over units, a Chinese character or a word of anything else, by the longest *contiguous* common run. The script splits what
is not Chinese with NLTK; here words, numbers such as 3.5 or 1,000, and single symbols are units, which needs no package and differs on one
answer in some hundreds (``it's``, ``c++``).

Text is compared as it is otherwise: no Unicode normalisation, because the official scripts do none.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from luban.metrics.counts import check_pairs
from luban.metrics.curves import roc_area
from luban.metrics.resampling import Measure, means, scores
from luban.metrics.score import Score
from luban.metrics.words import resolve_language

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_CHINESE_MARKS = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_WORD = re.compile(r"[^\W_]+(?:[.,'’][^\W_]+)*(?:\.(?=\s*\S))?|\S")


def normalise(answer: str) -> str:
    """SQuAD's normal form of an answer."""
    return " ".join(_ARTICLES.sub(" ", answer.lower().translate(_NO_PUNCTUATION)).split())


def normalise_chinese(answer: str) -> str:
    """CMRC's normal form of an answer."""
    return "".join(character for character in answer.lower().strip() if character not in _CHINESE_MARKS)


def chinese_units(answer: str) -> list[str]:
    """Characters of Chinese, words of the rest, no punctuation of CMRC's list."""
    found = []
    for piece in re.split(r"([\u4e00-\u9fa5])", normalise_chinese(answer)):
        found += [piece] if len(piece) == 1 and "\u4e00" <= piece <= "\u9fa5" else _WORD.findall(piece)
    return found


def exact_match(answer: str, gold: Sequence[str], chinese: bool = False) -> float:
    """1.0 where the answer equals a gold answer in normal form; for a question without gold answers, where it is empty."""
    normal = normalise_chinese if chinese else normalise
    return float(normal(answer) in {normal(one) for one in _answers(gold, normal)})


def answer_f1(answer: str, gold: Sequence[str], chinese: bool = False) -> float:
    """F1 with the best gold answer, 0 to 1."""
    if chinese:
        return max(_overlap(answer, one, chinese_units, common_run) for one in _answers(gold, normalise_chinese))
    return max(_overlap(answer, one, lambda text: normalise(text).split(), _common_words) for one in _answers(gold, normalise))


def _answers(gold: Sequence[str], normal: Callable[[str], str]) -> list[str]:
    return [one for one in gold if normal(one)] or [""]


def _overlap(answer: str, gold: str, split: Callable[[str], list[str]], common: Callable[[list[str], list[str]], int]) -> float:
    first, second = split(answer), split(gold)
    if not first or not second:
        return float(first == second)
    return 2 * common(first, second) / (len(first) + len(second))


def _common_words(first: list[str], second: list[str]) -> int:
    return (Counter(first) & Counter(second)).total()


def common_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest run of units that both hold, in time that grows with their sum (suffix automaton, Blumer et al. 1985)."""
    if len(first) > len(second):
        first, second = second, first
    edges, link, length, last = [{}], [-1], [0], 0
    for unit in first:
        edges.append({})
        length.append(length[last] + 1)
        link.append(0)
        state, last = last, len(edges) - 1
        while state >= 0 and unit not in edges[state]:
            edges[state][unit] = last
            state = link[state]
        if state < 0:
            continue
        target = edges[state][unit]
        if length[target] != length[state] + 1:
            edges.append(dict(edges[target]))
            length.append(length[state] + 1)
            link.append(link[target])
            copy = len(edges) - 1
            link[target] = copy
            while state >= 0 and edges[state].get(unit) == target:
                edges[state][unit] = copy
                state = link[state]
            target = copy
        link[last] = target
    best = state = run = 0
    for unit in second:
        while state and unit not in edges[state]:
            state = link[state]
            run = length[state]
        if unit in edges[state]:
            state, run = edges[state][unit], run + 1
        best = max(best, run)
    return best


def reading(answers: Sequence[str], gold: Sequence[Sequence[str]], language: str = "auto", no_answer_scores: Sequence[float] | None = None, seed: int = 0) -> dict[str, Score]:
    """F1 and exact match over all questions, and over those with and without an answer where there are both kinds."""
    found: dict[str, Score] = {}
    for measure in reading_measures(answers, gold, language, no_answer_scores):
        found |= scores(measure, seed)
    return found


def reading_measures(answers: Sequence[str], gold: Sequence[Sequence[str]], language: str = "auto", no_answer_scores: Sequence[float] | None = None) -> list[Measure]:
    """What :func:`reading` reports. ``no_answer_scores``, higher where the model believes that there is no answer, add an area."""
    check_pairs(answers, gold)
    language = resolve_language(language, (text for one in gold for text in one))
    chinese = language == "zh"
    matches = np.array([exact_match(answer or "", one, chinese) for answer, one in zip(answers, gold, strict=True)])
    overlaps = np.array([answer_f1(answer or "", one, chinese) for answer, one in zip(answers, gold, strict=True)])
    normal = normalise_chinese if chinese else normalise
    answerable = np.array([any(normal(text) for text in one) for one in gold])
    columns = {"answer_f1": overlaps, "exact_match": matches}
    if not answerable.all():
        columns |= {"answerable_f1": np.where(answerable, overlaps, np.nan), "answerable_exact_match": np.where(answerable, matches, np.nan)}
        columns |= {"no_answer_accuracy": np.where(answerable, np.nan, matches)}
    facts = {"normal": "cmrc2018" if chinese else "squad", "no_answer": "no" if answerable.all() else "yes"}
    found = [means(columns, {name: "" for name in columns}, facts)]
    if no_answer_scores is not None and not answerable.all():
        area = roc_area(~answerable, np.nan_to_num(np.array(no_answer_scores, np.float64), nan=-np.inf))
        found.append(Measure(lambda weights: {"no_answer_auc": area(weights)}, len(gold), {"no_answer_auc": ""}, facts, cost=6.0))
    return found
