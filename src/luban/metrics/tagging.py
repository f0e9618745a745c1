"""Figures for entities, relations and triples: an item counts when it is wholly right.

- An entity is (start, end, label); a boundary off by one is one miss and one false alarm (Tjong Kim Sang and De Meulder 2003). Said
  twice it counts once. Nested and overlapping entities are items like any other.
- A relation is one label a pair of entities. A negative label (``no_relation``) is neither found nor missed: F1 is over the others.
- SemEval-2010 task 8 (labels with a direction, ``Cause-Effect(e1,e2)``): a hit needs the direction, but both directions of a
  relation are one class; macro F1 over the relations that gold holds, ``Other`` excluded (Hendrickx et al. 2010).
- A triple is (head, label, tail); strict: with both entities' labels; by boundaries: without them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from luban.foundation.errors import DataError
from luban.metrics.counts import averages, check_pairs, count_items, text_of
from luban.metrics.resampling import Measure, means, scores
from luban.metrics.score import Score

NEGATIVE = ("no_relation", "no relation", "norelation", "other", "na", "n/a", "none", "null", "无关系", "无", "其他", "其它", "未知", "unknown")
_DIRECTED = re.compile(r"^(.*)\((e[12]),(e[12])\)$")
_LETTERS = {"B": "B", "I": "I", "M": "I", "E": "E", "L": "E", "S": "S", "U": "S", "W": "S"}  # BMES, BMEWO and BILOU say the same in other letters


def spans_of_tags(tags: Sequence[str], scheme: str = "BIO", strict: bool = False) -> list[tuple[int, int, str]]:
    """Entities (first token, end token exclusive, label) of one sequence of tags such as ``B-PER``.

    Lenient (the default, as conlleval and seqeval): an entity also begins at an inside tag that continues nothing, and ends
    wherever it stops being continued, in any scheme. Strict: ``BIO`` entities begin with B alone; ``BIOES`` entities are S, or
    B … E of one label; broken ones are no entities. ``IO`` has no boundaries: neighbours of one label are one entity.
    Raises DataError for a tag that is none.
    """
    parts = [_part(tag) for tag in tags] + [("O", "")]
    if strict and scheme not in ("IO", "BIO", "BIOES"):
        raise ValueError(f"there is no strict reading of {scheme}")
    if scheme == "IO":
        parts = [("I" if letter != "O" else "O", label) for letter, label in parts]
    found, start, previous, label = [], None, "O", ""
    for place, (letter, kind) in enumerate(parts):
        goes_on = letter in "IE" and start is not None and kind == label and previous in "BI"
        if start is not None and not goes_on:
            if not strict or scheme != "BIOES" or previous in "ES":
                found.append((start, place, label))
            start = None
        if letter != "O" and start is None and (not strict or scheme == "IO" or letter in ("BS" if scheme == "BIOES" else "B")):
            start = place
        previous, label = letter, kind
    return found


def _part(tag: str) -> tuple[str, str]:
    """``B-PER`` → (B, PER); a bare letter has the label ``_``."""
    if tag == "O":
        return "O", ""
    letter = _LETTERS.get(tag[:1])
    if letter is None or (len(tag) > 1 and tag[1] not in "-_"):
        why = "tags are O, or one of B I E S (M L U W) with a label: B-PER"
        raise DataError("{tag!r} is not a tag", why, "look at the column that holds the tags", tag=tag)
    return letter, tag[2:] or "_"


def entities(gold: Sequence[Iterable[Any]], predicted: Sequence[Iterable[Any]], labels: Sequence[str] = (), seed: int = 0) -> dict[str, Score]:
    """Entity F1, precision and recall: micro, macro, weighted, and F1 of each label. Spans are objects, dicts or (start, end, label)."""
    return _scored(entity_measures(gold, predicted, labels), seed)


def entity_measures(gold: Sequence[Iterable[Any]], predicted: Sequence[Iterable[Any]], labels: Sequence[str] = ()) -> list[Measure]:
    """What :func:`entities` reports."""
    check_pairs(predicted, gold)
    counted = count_items([[_span(span) for span in one] for one in predicted], [[_span(span) for span in one] for one in gold], labels)
    facts = {"match": "exact", "labels": "met"}
    return [averages(counted, facts=facts, name="entity_", each="")]


def tag_sequences(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], scheme: str = "BIO", strict: bool = False, seed: int = 0) -> dict[str, Score]:
    """Entity figures of tag sequences, and the accuracy of single tags."""
    check_pairs(predicted, gold)
    for number, (truth, guess) in enumerate(zip(gold, predicted, strict=True), start=1):
        if len(truth) != len(guess):
            what = "example {number} has {tokens} tokens and {tags} predicted tags"
            fix = "predict whole texts: a truncated one lacks its end"
            raise DataError(what, "each token needs exactly one tag", fix, number=number, tokens=len(truth), tags=len(guess))
    counted = count_items([spans_of_tags(tags, scheme, strict) for tags in predicted], [spans_of_tags(tags, scheme, strict) for tags in gold], ())
    facts = {"match": "exact", "scheme": scheme, "strict": "yes" if strict else "no"}
    return _scored([averages(counted, facts=facts, name="entity_", each="")], seed)


def relations(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[str] = (), negative: str | None = "auto", seed: int = 0) -> dict[str, Score]:
    """Relation F1 without the negative label: micro, macro, each label; SemEval's official figure where labels have directions."""
    return _scored(relation_measures(gold, predicted, labels, negative), seed)


def relation_measures(gold: Sequence[Any], predicted: Sequence[Any], labels: Sequence[str] = (), negative: str | None = "auto") -> list[Measure]:
    """What :func:`relations` reports. ``negative``: a label, None for there is none, ``"auto"`` for the first label of NEGATIVE that occurs.

    A gold label of None is the negative one; a predicted None is no relation either.
    """
    check_pairs(predicted, gold)
    gold, predicted = ([None if label is None else text_of(label) for label in side] for side in (gold, predicted))
    known = list(dict.fromkeys([*map(text_of, labels), *sorted({label for label in (*gold, *predicted) if label is not None})]))
    if negative == "auto":
        negative = next((label for common in NEGATIVE for label in known if label.lower() == common), None)

    def items(side: list[str | None]) -> list[list[tuple[str]]]:
        return [[(label,)] if label is not None and label != negative else [] for label in side]

    counted = count_items(items(predicted), items(gold), [label for label in known if label != negative])
    facts = {"negative": negative or "none", "labels": "met"}
    same = [(truth or negative) == (guess or negative) for truth, guess in zip(gold, predicted, strict=True)]
    found = [averages(counted, facts=facts, each=""), means({"accuracy": same}, {"accuracy": ""}, facts)]
    if any(_DIRECTED.match(label) for label in counted.labels):
        found.insert(1, _semeval(gold, predicted, negative))
    return found


def _semeval(gold: list[str | None], predicted: list[str | None], negative: str | None) -> Measure:
    """Items are (direction, relation): a wrong direction is a miss and a false alarm of the same relation."""

    def items(side: list[str | None]) -> list[list[tuple[str, str]]]:
        split = [_DIRECTED.match(label) if label else None for label in side]
        found = []
        for label, match in zip(side, split, strict=True):
            found.append([(f"{match[2]},{match[3]}", match[1])] if match else [("", label)] if label and label != negative else [])
        return found

    return averages(count_items(items(predicted), items(gold), ()), ("macro",), {"direction": "yes", "negative": negative or "none"}, name="semeval_", only_gold=True)


def triples(gold: Sequence[Iterable[Any]], predicted: Sequence[Iterable[Any]], labels: Sequence[str] = (), seed: int = 0) -> dict[str, Score]:
    """Triple F1 of joint extraction, strict and by boundaries. Triples are dicts {"head", "tail", "label"} or (head, label, tail)."""
    return _scored(triple_measures(gold, predicted, labels), seed)


def triple_measures(gold: Sequence[Iterable[Any]], predicted: Sequence[Iterable[Any]], labels: Sequence[str] = ()) -> list[Measure]:
    """What :func:`triples` reports."""
    check_pairs(predicted, gold)
    strict, loose = [], []
    for side in (predicted, gold):
        made = [[_triple(triple) for triple in one] for one in side]
        strict.append(made)
        loose.append([[(head[:2], tail[:2], label) for head, tail, label in one] for one in made])
    counted = count_items(*strict, labels)
    return [
        averages(counted, ("micro", "macro"), {"match": "exact", "entities": "labelled"}, name="triple_", each="triple_"),
        averages(count_items(*loose, labels), ("micro",), {"match": "exact", "entities": "boundaries"}, name="triple_boundaries_"),
    ]


def triples_of(spans: Sequence[Any], related: Iterable[tuple[int, int, str]]) -> list[tuple[tuple, str, tuple]]:
    """Triples of a text whose relations point at its spans by index."""
    spans = list(spans)
    for head, tail, label in related:
        if not (0 <= head < len(spans) and 0 <= tail < len(spans)):
            what = "a relation {label!r} points at entity {entity}, and there are {count}"
            why = "relations name entities by their place, from 0"
            raise DataError(what, why, "correct the relation", label=label, entity=max(head, tail), count=len(spans))
    return [(_span(spans[head]), text_of(label), _span(spans[tail])) for head, tail, label in related]


def _triple(triple: Any) -> tuple[tuple, tuple, str]:
    if isinstance(triple, dict):
        return _span(triple["head"]), _span(triple["tail"]), text_of(triple["label"])
    head, label, tail = triple
    return _span(head), _span(tail), text_of(label)


def _span(span: Any) -> tuple[int, int, str]:
    if isinstance(span, dict):
        return int(span["start"]), int(span["end"]), text_of(span.get("label", ""))
    if isinstance(span, tuple | list):
        start, end, label = span
        return int(start), int(end), text_of(label)
    return int(span.start), int(span.end), text_of(span.label)


def _scored(measures: list[Measure], seed: int) -> dict[str, Score]:
    found: dict[str, Score] = {}
    for measure in measures:
        found |= scores(measure, seed)
    return found
