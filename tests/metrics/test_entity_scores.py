"""Entities against seqeval in both readings, relations against scikit-learn and the official counting, triples by hand."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval import metrics as seqeval
from seqeval.scheme import IOB2, IOBES
from sklearn import metrics as sk

from luban.foundation.errors import DataError
from luban.metrics.tagging import entities, relations, spans_of_tags, tag_sequences, triples, triples_of

TAGS = ["O", *(f"{letter}-{label}" for letter in "BIES" for label in ("PER", "地点"))]
BIO = [tag for tag in TAGS if tag[0] in "OBI"]


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from(TAGS), max_size=9))
def test_lenient_reading_is_that_of_seqeval(tags):
    assert spans_of_tags(tags) == [(start, end + 1, label) for label, start, end in seqeval.sequence_labeling.get_entities(tags)]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(BIO), min_size=1, max_size=8), st.lists(st.sampled_from(TAGS), min_size=1, max_size=8))
def test_strict_reading_is_that_of_seqeval(bio, bioes):
    for tags, scheme, name in ((bio, IOB2, "BIO"), (bioes, IOBES, "BIOES")):
        found = [(entity.start, entity.end, entity.tag) for entity in seqeval_entities(tags, scheme)]
        assert spans_of_tags(tags, name, strict=True) == found


def seqeval_entities(tags, scheme):
    from seqeval.scheme import Entities

    return Entities([tags], scheme).entities[0]


@pytest.mark.parametrize("strict", [False, True])
def test_figures_of_tags_equal_seqeval(strict):
    random = np.random.default_rng(0)
    gold = [random.choice(BIO, 9, p=[0.4, 0.15, 0.15, 0.15, 0.15]).tolist() for _ in range(40)]
    guess = [[tag if random.random() < 0.8 else random.choice(BIO) for tag in tags] for tags in gold]
    found = tag_sequences(gold, guess, strict=strict)
    options = {"mode": "strict", "scheme": IOB2} if strict else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for average in ("micro", "macro", "weighted"):
            for what, reference in (("f1", seqeval.f1_score), ("precision", seqeval.precision_score), ("recall", seqeval.recall_score)):
                assert found[f"entity_{average}_{what}"].value == pytest.approx(reference(gold, guess, average=average, **options)), (average, what)
        each = seqeval.f1_score(gold, guess, average=None, **options)
    assert [found[f"f1/{label}"].value for label in ("PER", "地点")] == pytest.approx(list(each))


def test_other_letters_and_io_say_the_same():
    assert spans_of_tags(["B-X", "M-X", "E-X", "S-Y", "O"], "BIOES", strict=True) == [(0, 3, "X"), (3, 4, "Y")]
    assert spans_of_tags(["B-X", "I-X", "L-X", "U-Y"]) == [(0, 3, "X"), (3, 4, "Y")]
    assert spans_of_tags(["I-X", "I-X", "B-X", "I-Y", "O", "I-Y"], "IO") == [(0, 3, "X"), (3, 4, "Y"), (5, 6, "Y")]
    assert spans_of_tags(["B", "I", "O"]) == [(0, 2, "_")] and spans_of_tags([]) == []


def test_what_is_no_tag_is_named():
    for tag in ("PER", "X-PER", "", "B.PER"):
        with pytest.raises(DataError, match="is not a tag"):
            spans_of_tags(["O", tag])
    with pytest.raises(DataError, match="example 2 has 2 tokens and 1 predicted"):
        tag_sequences([["O"], ["O", "O"]], [["O"], ["O"]])


def test_spans_come_in_any_form_and_count_once():
    gold = [[SimpleNamespace(start=0, end=2, label="PER"), (0, 5, "ORG")], []]
    guess = [[{"start": 0, "end": 2, "label": "PER"}, {"start": 0, "end": 2, "label": "PER"}, {"start": 0, "end": 4, "label": "ORG"}], [(1, 2, "new")]]
    found = entities(gold, guess, ["PER", "ORG", "never"])
    assert found["entity_micro_precision"].value == pytest.approx(1 / 3) and found["entity_micro_recall"].value == 0.5
    assert found["entity_macro_f1"].value == pytest.approx(1 / 3) and found["f1/PER"].value == 1 and math.isnan(found["f1/never"].value)


def test_nothing_anywhere_is_undefined_and_nothing_predicted_is_zero():
    assert math.isnan(entities([[], []], [[], []])["entity_micro_f1"].value)
    found = entities([[(0, 1, "X")], []], [[], []])
    assert [found[f"entity_micro_{what}"].value for what in ("f1", "precision", "recall")] == [0, 0, 0]


def test_relations_leave_the_negative_label_out():
    random = np.random.default_rng(3)
    labels = ["born_in", "works_for", "no_relation"]
    gold, guess = random.choice(labels, 80).tolist(), random.choice(labels, 80).tolist()
    found = relations(gold, guess, labels)
    for average in ("micro", "macro", "weighted"):
        assert found[f"{average}_f1"].value == pytest.approx(sk.f1_score(gold, guess, labels=labels[:2], average=average))
    assert found["accuracy"].value == pytest.approx(sk.accuracy_score(gold, guess))
    assert relations(gold, guess, labels, negative=None)["macro_f1"].value == pytest.approx(sk.f1_score(gold, guess, average="macro"))
    assert "negative:no_relation" in found["micro_f1"].signature and "f1/no_relation" not in found
    none = [None if label == "no_relation" else label for label in guess]
    assert relations(gold, none, labels)["micro_f1"].value == found["micro_f1"].value
    assert relations(gold, none, labels)["accuracy"].value == found["accuracy"].value
    assert "negative:无关系" in relations(["无关系", "任职"], ["任职", "任职"])["micro_f1"].signature


def semeval_by_counting(gold, guess):
    """The rule of the task's scorer: per relation, hits need the direction; denominators take both directions."""
    kinds = sorted({label.split("(")[0] for label in gold} - {"Other"})
    rates = []
    for kind in kinds:
        right = sum(a == b and a.startswith(kind + "(") for a, b in zip(gold, guess, strict=True))
        said, wanted = (sum(label.startswith(kind + "(") for label in side) for side in (guess, gold))
        precision, recall = right / said if said else 0, right / wanted if wanted else 0
        rates.append((precision, recall, 2 * precision * recall / (precision + recall) if precision + recall else 0))
    return np.mean(rates, axis=0)


@pytest.mark.parametrize("seed", range(3))
def test_directed_relations_have_the_official_figure(seed):
    random = np.random.default_rng(seed)
    labels = ["Other", *(f"{kind}({way})" for kind in ("Cause-Effect", "Entity-Origin", "Message-Topic") for way in ("e1,e2", "e2,e1"))]
    gold, guess = random.choice(labels, 70).tolist(), random.choice(labels, 70).tolist()
    found = relations(gold, guess, labels)
    expected = semeval_by_counting(gold, guess)
    assert [found[f"semeval_macro_{what}"].value for what in ("precision", "recall", "f1")] == pytest.approx(list(expected))


def test_a_wrong_direction_is_a_miss_and_a_false_alarm():
    found = relations(["C(e1,e2)", "C(e1,e2)"], ["C(e2,e1)", "C(e1,e2)"])
    assert found["semeval_macro_f1"].value == 0.5
    found = relations(["C(e1,e2)", "Other"], ["C(e1,e2)", "D(e1,e2)"])
    assert found["semeval_macro_f1"].value == 1  # what gold does not hold is no class


def test_triples_strict_and_by_boundaries():
    text = SimpleNamespace(spans=[SimpleNamespace(start=0, end=2, label="PER"), SimpleNamespace(start=3, end=5, label="ORG")], relations=[(0, 1, "works")])
    gold = [triples_of(text.spans, text.relations), []]
    right = {"head": {"start": 0, "end": 2, "label": "PER"}, "tail": {"start": 3, "end": 5, "label": "ORG"}, "label": "works"}
    renamed = {**right, "tail": {"start": 3, "end": 5, "label": "LOC"}}
    turned = {**right, "head": right["tail"], "tail": right["head"]}
    assert triples(gold, [[right], []])["triple_micro_f1"].value == 1
    found = triples(gold, [[renamed], []])
    assert found["triple_micro_f1"].value == 0 and found["triple_boundaries_micro_f1"].value == 1
    found = triples(gold, [[right, turned], [right]])
    assert found["triple_micro_precision"].value == pytest.approx(1 / 3) and found["triple_micro_recall"].value == 1
    with pytest.raises(DataError, match="points at entity 2"):
        triples_of(text.spans, [(0, 2, "works")])
