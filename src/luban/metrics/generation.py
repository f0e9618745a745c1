"""Figures for generated text that need no reference: variety, repetition, length, and whether it does what was asked.

Units are words, and characters where no spaces stand (:func:`luban.metrics.words.units`).

- distinct-n (Li et al. 2016): different n-grams of all texts over all their n-grams. It falls as texts grow, so compare equal numbers of
  texts of like length. Its interval is a jackknife: drawing a text twice would make every n-gram in it a repetition.
- repetition_n: share of the n-grams of a text that it has said before (Welleck et al. 2020), mean over the texts with n units or more.
- adherence: share of a text's controls that it keeps, mean over the texts that have any. Keywords count in part, the rest wholly or not.
- pass@k: chance that one of k programs is right, unbiased from n tried ones (Chen et al. 2021).

Controls are named in English or Chinese: keywords 关键词; lines 行数, sentences 句数, words 词数, characters 字数, characters_per_line 每行字数, each with a
number or a range such as 20-30; form 体裁: 五言绝句, 七言绝句, 五言律诗, 七言律诗, 对联 (couplet), or LINESxCHARACTERS such as 4x7. Verses end at line breaks and
at , . ! ? ; in either script. Other controls (a style, a title) cannot be checked by counting: ``controls_unchecked`` says what share they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from luban.foundation.errors import DataError
from luban.metrics.counts import check_pairs
from luban.metrics.resampling import Measure, means, ratio, scores
from luban.metrics.score import Score
from luban.metrics.words import characters, ngrams, units

_NAMES = {
    "keywords": ("keywords", "keyword", "关键词", "关键字"),
    "lines": ("lines", "行数"),
    "sentences": ("sentences", "句数"),
    "words": ("words", "词数"),
    "characters": ("characters", "字数"),
    "characters_per_line": ("characters_per_line", "每行字数"),
    "form": ("form", "体裁"),
}
CONTROLS = {name: control for control, names in _NAMES.items() for name in names}
FORMS = {"五言绝句": (4, 5), "七言绝句": (4, 7), "五言律诗": (8, 5), "七言律诗": (8, 7), "对联": (2, 0), "couplet": (2, 0)}
_VERSE = re.compile(r"[\n,.!?;，。！？；、]+")
_SENTENCE_END = re.compile(r"[.!?。！？…]+(?=\s|$|[^\s\d.!?。！？…])|\n+")


def generations(texts: Sequence[str], references: Sequence[str] | None = None, controls: Sequence[Mapping[str, str]] | None = None, seed: int = 0) -> dict[str, Score]:
    """Adherence (where there are controls), repetition, distinct-1 and -2, length, and its ratio to the references'."""
    found: dict[str, Score] = {}
    for measure in generation_measures(texts, references, controls):
        found |= scores(measure, seed)
    return found


def generation_measures(texts: Sequence[str], references: Sequence[str] | None = None, controls: Sequence[Mapping[str, str]] | None = None) -> list[Measure]:
    """What :func:`generations` reports."""
    check_pairs(texts, texts if references is None else references)
    split = [units(text) for text in texts]
    facts = {"units": "words+cjk"}
    columns = {"repetition_4": np.array([repetition(one, 4) for one in split])}
    columns |= {"length": np.array([len(one) for one in split], float), "empty": np.array([not one for one in split], float)}
    found = [means(columns, {"repetition_4": "", "length": "units", "empty": ""}, facts), distinct_measure(split)]
    if references is not None:
        said, wanted = columns["length"], np.array([len(units(text)) for text in references], float)
        found.append(Measure(lambda weights: {"length_ratio": ratio(weights @ said, weights @ wanted)}, len(texts), {"length_ratio": ""}, facts))
    kept = _adherence(texts, controls) if controls is not None and any(controls) else None
    return ([kept] if kept else []) + found


def repetition(sequence: Sequence[str], order: int) -> float:
    """Share of n-grams that are repetitions; NaN for a text with none."""
    counts = ngrams(sequence, order)
    return 1 - len(counts) / counts.total() if counts else float("nan")


def distinct_measure(split: Sequence[Sequence[str]], orders: Sequence[int] = (1, 2)) -> Measure:
    """distinct-n over texts given as units."""
    tables = {}
    for order in orders:
        places: dict[tuple[str, ...], int] = {}
        rows = [(text, places.setdefault(gram, len(places)), count) for text, one in enumerate(split) for gram, count in ngrams(one, order).items()]
        tables[f"distinct_{order}"] = np.array(rows, np.int64).reshape(-1, 3)  # [pairs, (text, n-gram, times)]

    def distinct(table: np.ndarray, weights: np.ndarray) -> np.ndarray:
        text, gram, times = table.T
        different = np.array([np.count_nonzero(np.bincount(gram[row[text] > 0])) for row in weights], float)
        return ratio(different, np.array([(times * row[text]).sum() for row in weights]))

    return Measure(lambda weights: {name: distinct(table, weights) for name, table in tables.items()}, len(split), {name: "" for name in tables}, {"units": "words+cjk"}, jackknife=True)


def adherence(text: str, controls: Mapping[str, str]) -> dict[str, float]:
    """How far the text keeps each control that can be checked, 0 to 1, by the control's English name."""
    kept = {}
    for name, wanted in controls.items():
        control = CONTROLS.get(name.strip().lower())
        if control is not None and str(wanted).strip():
            kept[control] = _keeps(text, control, str(wanted).strip())
    return kept


def check_controls(controls: Mapping[str, str], place: str) -> None:
    """Raise DataError, naming the place, for a control that `adherence` could not check: a form or a number that is none."""
    try:
        adherence("", controls)
    except DataError as error:
        raise DataError("{place}: {reason}", place=place, reason=error.text()) from None


def _keeps(text: str, control: str, wanted: str) -> float:
    if control == "keywords":
        said = "\0" + "\0".join(units(text)) + "\0"
        keywords = _keywords(wanted)
        return sum("\0" + "\0".join(keyword) + "\0" in said for keyword in keywords) / len(keywords) if keywords else 1.0
    if control == "form":
        return float(_has_form(text, wanted))
    low, high = _range(control, wanted)
    lines = [line for line in text.splitlines() if line.strip()]
    if control == "characters_per_line":
        return float(bool(lines) and all(low <= characters(line) <= high for line in lines))
    counts = {
        "lines": lambda: len(lines),
        "sentences": lambda: sum(bool(units(sentence)) for sentence in _SENTENCE_END.split(text)),
        "words": lambda: len(units(text)),
        "characters": lambda: characters(text),
    }
    return float(low <= counts[control]() <= high)


def _keywords(wanted: str) -> list[list[str]]:
    """Keywords stand between commas, semicolons or 、 where there are any, else between spaces."""
    pieces = re.split(r"[,，、;；|\n]", wanted)
    found = [units(piece) for piece in (pieces if len(pieces) > 1 else wanted.split())]
    return [keyword for keyword in found if keyword]


def _range(control: str, wanted: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)\s*(?:[-–~～至到]\s*(\d+))?\s*\D?", wanted)
    if not match:
        why = "it asks for a number such as 8, or a range such as 20-30"
        raise DataError("the control {control} is {wanted!r}", why, "correct the control, or give it another name", control=control, wanted=wanted)
    return int(match[1]), int(match[2] or match[1])


def _has_form(text: str, wanted: str) -> bool:
    shape = re.fullmatch(r"(\d+)\s*[x×]\s*(\d+)", wanted)
    if not shape and wanted not in FORMS:
        forms = ", ".join(FORMS)
        why = "known: {forms}, or LINESxCHARACTERS such as 4x7"
        raise DataError("the form {form!r} is not known", why, "correct the control, or give it another name", form=wanted, forms=forms)
    count, length = (int(shape[1]), int(shape[2])) if shape else FORMS[wanted]
    verses = [characters(verse) for verse in _VERSE.split(text) if characters(verse)]
    if wanted in ("对联", "couplet"):  # its halves may hold commas, so that lines decide where there are two
        lines = [characters(line) for line in text.splitlines() if characters(line)]
        verses = lines if len(lines) == count else verses
    return len(verses) == count and all(verse == (length or verses[0]) for verse in verses)


def _adherence(texts: Sequence[str], controls: Sequence[Mapping[str, str]]) -> Measure | None:
    check_pairs(texts, controls)
    kept = [adherence(text, one or {}) for text, one in zip(texts, controls, strict=True)]
    asked = sum(len(one or {}) for one in controls)
    checked = sum(len(one) for one in kept)
    if not checked:
        return None
    columns = {"adherence": np.array([np.mean(list(one.values())) if one else np.nan for one in kept])}
    for control in _NAMES:
        if any(control in one for one in kept):
            columns[f"adherence/{control}"] = np.array([one.get(control, np.nan) for one in kept])
    if checked < asked:
        columns["controls_unchecked"] = np.array([ratio(len(one or {}) - len(done), len(one or {})) for one, done in zip(controls, kept, strict=True)], float)
    return means(columns, {name: "" for name in columns}, {"controls": checked})


def pass_at_k(tried: int, right: int, k: int) -> float:
    """1 - C(n - c, k) / C(n, k) for n programs tried of which c are right, by a product that cannot overflow."""
    if not 0 <= right <= tried or not 1 <= k <= tried:
        raise ValueError(f"{right} right of {tried} tried, k {k}")
    if tried - right < k:
        return 1.0
    return float(1 - np.prod(1 - k / np.arange(tried - right + 1, tried + 1)))


def passes(tried: Sequence[int], right: Sequence[int], ks: Sequence[int] = (1,), seed: int = 0) -> dict[str, Score]:
    """pass@k over problems, for each k that every problem was tried often enough for."""
    check_pairs(right, tried)
    columns = {f"pass@{k}": np.array([pass_at_k(n, c, k) for n, c in zip(tried, right, strict=True)]) for k in ks if k <= min(tried)}
    return scores(means(columns, {name: "" for name in columns}, {"tried": min(tried)}), seed) if columns else {}
