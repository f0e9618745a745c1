"""Splits by content: the same text never stands on both sides, whatever its case, width, spaces and punctuation.

What is split is the group of examples with one text (a context with all its questions, a query with all its documents), so that a
translation or a paraphrase of the same input cannot leak. Which side a group falls on depends on the hash of its text.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import xxhash

from luban.examples.preferences import prompt_of
from luban.examples.tasks import Choice, LabeledText, Preference, Prompt, Question, Ranking, RelationText, TaggedText, TextPair
from luban.foundation.errors import ConfigError, DataError

Example = TypeVar("Example")
_BINS = 10  # strata of a numeric target


@dataclass
class Leaks:
    """How many examples of the second set have a text of the first, and how many of those with another answer; some places."""

    count: int
    contradictory: int
    places: list[tuple[str, str]]  # (source in the first set, source in the second), the first twenty


def normalised(text: str) -> str:
    """The text as it is compared: NFKC, no case, letters and digits of all scripts only (all of it where nothing else is left)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    return re.sub(r"[\W_]+", "", folded) or folded.strip()


def texts_of(example: Any) -> tuple[str, str]:
    """(the text that decides the side of a split, what else tells two examples apart)."""
    if isinstance(example, LabeledText):
        return example.text, example.pair
    if isinstance(example, TaggedText):
        return example.text, ""
    if isinstance(example, RelationText):
        return example.text, f"{example.head.start} {example.head.end} {example.tail.start} {example.tail.end}"
    if isinstance(example, Question):
        return example.context, example.question
    if isinstance(example, TextPair):
        return example.input, ""
    if isinstance(example, Choice):
        return example.prompt, "\x1e".join(example.choices)
    if isinstance(example, Ranking):
        return example.query, ""
    if isinstance(example, Preference):
        return prompt_of(example), ""  # all answers to a prompt stay together, in a slice too
    if hasattr(example, "messages"):  # a conversation: by what was asked
        return "\x1e".join(str(message.get("content", "")) for message in example.messages if message["role"] == "user"), ""
    if hasattr(example, "text"):
        return str(example.text), ""
    return str(example), ""


def answer_of(example: Any) -> Any:
    """What is to be predicted, as something that can be compared."""
    if isinstance(example, TaggedText):
        return tuple((span.start, span.end, span.label) for span in example.spans), tuple(example.relations)
    if isinstance(example, Question):
        return tuple(sorted({words for words, _ in example.answers}))
    if isinstance(example, TextPair):
        return example.output
    if isinstance(example, Choice):
        return example.answer
    if isinstance(example, Ranking):
        return tuple(zip(example.documents, example.grades, strict=True))
    if isinstance(example, Preference):
        return str(example.chosen), str(example.rejected), example.label
    if isinstance(example, Prompt):
        return str(example.columns)
    label = getattr(example, "label", None)
    return tuple(sorted(label)) if isinstance(label, list) else label


def labels_of(example: Any) -> list[str]:
    """The classes that an example shows: its label, its labels, or the kinds of its spans and relations."""
    if isinstance(example, TaggedText):
        return sorted({span.label for span in example.spans} | {label for _, _, label in example.relations})
    if isinstance(example, Question):
        return ["answerable" if example.answers else "unanswerable"]
    label = getattr(example, "label", None)
    return sorted(label) if isinstance(label, list) else [label] if isinstance(label, str) else []


def place(text: str, seed: int = 0) -> float:
    """A number in [0, 1) that depends on the normalised text and the seed alone."""
    return xxhash.xxh3_64_intdigest(normalised(text).encode("utf-8", "replace"), seed=seed) / 2**64


def _groups(examples: Sequence[Any], seed: int) -> list[tuple[float, str, list[int]]]:
    """(place, text, indices) of the examples that may not be parted, in the order of their places."""
    for key in (lambda texts: normalised(texts[0]), lambda texts: normalised(texts[0]) + "\x1e" + normalised(texts[1])):
        found: dict[str, list[int]] = {}
        for index, example in enumerate(examples):
            found.setdefault(key(texts_of(example)), []).append(index)
        if len(found) > 1:
            break  # the second key is for sets where one text (a constant question, say) stands in every example
    return sorted(
        (xxhash.xxh3_64_intdigest(text.encode("utf-8", "replace"), seed=seed) / 2**64, text, indices) for text, indices in found.items()
    )


def _strata(
    examples: Sequence[Any], groups: list[tuple[float, str, list[int]]], stratify: bool
) -> list[list[tuple[float, str, list[int]]]]:
    """Groups by the rarest class of their first example, rarest stratum first; numbers in ten bins of equal size."""
    if not stratify:
        return [groups]
    numbers = sorted(example.label for example in examples if isinstance(getattr(example, "label", None), float))
    frequency = Counter(label for example in examples for label in labels_of(example))
    edges = sorted({numbers[len(numbers) * step // _BINS] for step in range(1, _BINS)}) if numbers else []
    found: dict[str, list[tuple[float, str, list[int]]]] = {}
    for group in groups:
        example = examples[group[2][0]]
        if isinstance(getattr(example, "label", None), float):
            name = f"{sum(example.label >= edge for edge in edges):03d}"
        else:
            name = min(labels_of(example), key=lambda label: (frequency[label], label), default="")
        found.setdefault(name, []).append(group)
    return [found[name] for name in sorted(found, key=lambda name: (len(found[name]), name))]


def hold_out(examples: Sequence[Example], share: float, *, stratify: bool = True, seed: int = 0) -> tuple[list[Example], list[Example]]:
    """(training, held out), each in the order given; the held-out part has about ``share`` of every class.

    Of each class the texts with the lowest hashes are held out, so that adding examples moves only the few near the border. A class
    with one text stays in training. Raises ConfigError for a share outside (0, 1), DataError where there are not two different texts.
    """
    if not 0 < share < 1:
        raise ConfigError("a share of {share} cannot be held out", "", "give a number above 0 and below 1, such as 0.1", share=share)
    groups = _groups(examples, seed)
    if len(groups) < 2:
        raise DataError(
            "{count} examples with {texts} different texts cannot be split",
            "one text must not stand on both sides",
            "read more data",
            count=len(examples),
            texts=len(groups),
        )
    strata = _strata(examples, groups, stratify)
    sizes = [sum(len(group[2]) for group in stratum) for stratum in strata]
    held: set[int] = set()
    for stratum, wanted in zip(strata, _quotas(sizes, share), strict=True):
        taken = 0
        for _, _, indices in stratum[:-1]:  # one text of each class stays in training
            if taken + len(indices) / 2 > wanted:  # nearer to what is wanted without this one
                continue
            held.update(indices)
            taken += len(indices)
    if not held:
        held.update(min((group for stratum in strata if len(stratum) > 1 for group in stratum), default=groups[0])[2])
    return [example for index, example in enumerate(examples) if index not in held], [
        example for index, example in enumerate(examples) if index in held
    ]


def _quotas(sizes: list[int], share: float) -> list[int]:
    """How many of each stratum: whole numbers that sum to the share of all (largest remainders first)."""
    exact = [size * share for size in sizes]
    quotas = [math.floor(number) for number in exact]
    rest = round(sum(sizes) * share) - sum(quotas)
    for index in sorted(range(len(sizes)), key=lambda index: (quotas[index] - exact[index], index))[: max(0, rest)]:
        quotas[index] += 1
    return quotas


def k_folds(examples: Sequence[Example], k: int, stratify: bool = True, seed: int = 0) -> list[tuple[list[Example], list[Example]]]:
    """``k`` pairs of (training, held out); every example is held out once, every class spread evenly, no text on both sides.

    Raises ConfigError for fewer than two folds, DataError for fewer different texts than folds.
    """
    if not isinstance(k, int) or k < 2:
        raise ConfigError(
            "{k} folds cannot be made", "each fold is held out once while the others are trained on", "give 2 or more, such as 5", k=k
        )
    groups = _groups(examples, seed)
    if len(groups) < k:
        raise DataError(
            "{count} examples with {texts} different texts make no {k} folds",
            "",
            "read more data, or ask for fewer folds",
            count=len(examples),
            texts=len(groups),
            k=k,
        )
    fold_of = [0] * len(examples)
    totals = [0] * k
    for stratum in _strata(examples, groups, stratify):
        own = [0] * k
        for _, _, indices in sorted(stratum, key=lambda group: (-len(group[2]), group[0])):
            fold = min(range(k), key=lambda fold: (own[fold], totals[fold], fold))
            own[fold] += len(indices)
            totals[fold] += len(indices)
            for index in indices:
                fold_of[index] = fold
    return [
        (
            [e for e, place in zip(examples, fold_of, strict=True) if place != fold],
            [e for e, place in zip(examples, fold_of, strict=True) if place == fold],
        )
        for fold in range(k)
    ]


def duplicates(examples: Sequence[Any]) -> tuple[int, int]:
    """(examples that repeat an earlier one with the same answer, examples with the text of an earlier one and another answer)."""
    seen: dict[tuple[str, str], Any] = {}
    repeated = contradictory = 0
    for example in examples:
        first, second = texts_of(example)
        key = (normalised(first), normalised(second))
        answer = answer_of(example)
        if key not in seen:
            seen[key] = answer
        elif seen[key] == answer:
            repeated += 1
        else:
            contradictory += 1
    return repeated, contradictory


def leaks(first: Sequence[Any], second: Sequence[Any]) -> Leaks:
    """Examples of ``second`` (validation, test) whose texts, normalised, also stand in ``first`` (training)."""
    known: dict[tuple[str, str], Any] = {}
    for example in first:
        one, two = texts_of(example)
        known.setdefault((normalised(one), normalised(two)), example)
    found = Leaks(0, 0, [])
    for example in second:
        one, two = texts_of(example)
        other = known.get((normalised(one), normalised(two)))
        if other is not None:
            found.count += 1
            found.contradictory += answer_of(other) != answer_of(example)
            if len(found.places) < 20:
                found.places.append((getattr(other, "source", ""), getattr(example, "source", "")))
    return found
