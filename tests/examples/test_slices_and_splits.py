"""Slices and splits: drawn by content, nested, stratified, without the same text on both sides."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.model_selection import StratifiedKFold

from luban.examples.reading import read_examples
from luban.examples.slices import Slice, parse, take, weigh
from luban.examples.splitting import duplicates, hold_out, k_folds, leaks, normalised
from luban.examples.tasks import Choice, LabeledText, Question, Ranking, RelationText, Span, TaggedText, TextPair
from luban.foundation.errors import ConfigError, DataError


def texts(number: int, classes: int = 3) -> list[LabeledText]:
    return [LabeledText(f"text number {place}", label=f"c{place % classes}") for place in range(number)]


def keys(examples) -> list[str]:
    return [example.text for example in examples]


# ------------------------------------------------------------------------------------------------------- slices


@pytest.mark.parametrize("fragment, expected", [("500", Slice(count=500)), ("8/label", Slice(each=8)), ("10%", Slice(share=0.1)), ("2.5%@7", Slice(share=0.025, seed=7)), ("8/label@3", Slice(each=8, seed=3))])
def test_grammar(fragment, expected):
    assert parse(Path(f"folder/data.csv#{fragment}")) == ("folder/data.csv", expected)


@pytest.mark.parametrize("fragment", ["", "0", "-3", "ten", "0%", "101%", "8/labels", "500@", "5 %"])
def test_what_is_no_slice(fragment):
    with pytest.raises(ConfigError, match="is no slice"):
        parse(f"data.csv#{fragment}")


def test_a_file_with_a_hash_in_its_name(tmp_path):
    (tmp_path / "c#1.csv").write_text("text,label\na,x\nb,y\n")
    assert parse(tmp_path / "c#1.csv") == (str(tmp_path / "c#1.csv"), None)
    assert len(read_examples([f"{tmp_path / 'c#1.csv'}#1"], "classification").examples) == 1


def test_slices_are_nested_keep_the_order_and_do_not_depend_on_it():
    examples = texts(200)
    small, large = take(examples, Slice(count=20)), take(examples, Slice(count=80))
    assert set(keys(small)) < set(keys(large)) and keys(large) == [text for text in keys(examples) if text in set(keys(large))]
    assert set(keys(take(examples[::-1], Slice(count=20)))) == set(keys(small)) != set(keys(take(examples, Slice(count=20, seed=1))))
    assert keys(small) != keys(examples[:20])
    assert len(take(examples, Slice(share=0.1))) == 20 and take(examples, Slice(count=999)) == examples


def test_so_many_of_each_label():
    examples = texts(90) + [LabeledText("rare", label="rare")]
    assert Counter(example.label for example in take(examples, Slice(each=8))) == {"c0": 8, "c1": 8, "c2": 8, "rare": 1}
    tagged = [TaggedText(f"t{n}", [Span(0, 1, "A" if n % 3 else "B")]) for n in range(30)]
    counted = Counter(span.label for example in take(tagged, Slice(each=2)) for span in example.spans)
    assert counted == {"A": 2, "B": 2}
    with pytest.raises(ConfigError, match="needs examples with labels"):
        take([TextPair("a", "b")], Slice(each=2), "a.tsv")


def test_slices_through_the_reader(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"t{n}", "label": "xy"[n % 2]}) + "\n" for n in range(50)))
    found = read_examples([Path(f"{path}#4/label")], "classification")
    assert found.label_counts == {"x": 4, "y": 4} and found.counts == {"sliced away": 42} and found.files == ["a.jsonl"]
    (tmp_path / "p.en").write_text("a\nb\nc\n")
    (tmp_path / "p.de").write_text("d\ne\nf\n")
    assert len(read_examples([f"{tmp_path / 'p.en'},{tmp_path / 'p.de'}#2"], "text_pairs").examples) == 2


def test_weights():
    examples = texts(10)
    assert weigh(examples, 3) == examples * 3
    assert len(weigh(examples, 0.3)) == 3 and weigh(examples, 1.3)[:10] == examples and len(weigh(examples, 1.3)) == 13


# ------------------------------------------------------------------------------------------------------- splits

LABELLED = st.lists(st.builds(LabeledText, st.text("abcdeABCDE 你好", min_size=1, max_size=4).filter(str.strip), label=st.sampled_from(["x", "y", "z"])), min_size=2, max_size=60)


@settings(max_examples=150, deadline=None)
@given(LABELLED, st.floats(0.05, 0.95), st.booleans(), st.integers(0, 3))
def test_hold_out_loses_nothing_and_parts_no_text(examples, share, stratify, seed):
    if len({normalised(example.text) for example in examples}) < 2:
        with pytest.raises(DataError):
            hold_out(examples, share, stratify=stratify, seed=seed)
        return
    train, held = hold_out(examples, share, stratify=stratify, seed=seed)
    assert train and held and Counter(map(id, train + held)) == Counter(map(id, examples))
    assert not {normalised(e.text) for e in train} & {normalised(e.text) for e in held} and leaks(train, held).count == 0
    again = hold_out(list(reversed(examples)), share, stratify=False, seed=seed)
    if not stratify:
        assert Counter(map(id, again[1])) == Counter(map(id, held))


@settings(max_examples=100, deadline=None)
@given(LABELLED, st.integers(2, 5))
def test_folds_hold_every_example_out_once(examples, k):
    if len({normalised(example.text) for example in examples}) < k:
        with pytest.raises(DataError):
            k_folds(examples, k)
        return
    folds = k_folds(examples, k)
    assert Counter(id(e) for _, held in folds for e in held) == Counter(map(id, examples))
    for train, held in folds:
        assert held and train and leaks(train, held).count == 0 and len(train) + len(held) == len(examples)


def test_every_class_has_its_share():
    examples = [LabeledText(f"t{n}", label="often" if n % 20 else "seldom") for n in range(2000)]
    _, held = hold_out(examples, 0.1)
    assert Counter(e.label for e in held) == {"often": 190, "seldom": 10}
    assert len(hold_out(examples, 0.1, stratify=False)[1]) == 200


def test_folds_are_as_even_as_scikit_learns():
    labels = ["a"] * 53 + ["b"] * 31 + ["c"] * 7
    examples = [LabeledText(f"t{n}", label=label) for n, label in enumerate(labels)]
    ours = [Counter(e.label for e in held) for _, held in k_folds(examples, 5)]
    theirs = [Counter(numpy.array(labels)[test].tolist()) for _, test in StratifiedKFold(5).split(labels, labels)]
    for label in "abc":
        assert sorted(fold[label] for fold in ours) == sorted(fold[label] for fold in theirs)
    assert max(sum(fold.values()) for fold in ours) - min(sum(fold.values()) for fold in ours) <= 1


def test_adding_rows_moves_few():
    examples = texts(1000)
    before = set(keys(hold_out(examples, 0.2)[1]))
    after = set(keys(hold_out(examples + [LabeledText(f"new {n}", label=f"c{n % 3}") for n in range(100)], 0.2)[1]))
    old = set(keys(examples))
    assert len((before ^ after) & old) < 20
    assert len(before & {*keys(hold_out(examples, 0.2, seed=1)[1])}) < 80


def test_a_class_with_one_text_stays_in_training_and_numbers_are_spread():
    train, held = hold_out([*texts(40), LabeledText("alone", label="once")], 0.5)
    assert "alone" in keys(train) and len(held) in (19, 20, 21)
    _, held = hold_out([LabeledText(f"t{n}", label=float(n)) for n in range(500)], 0.2)
    assert len(held) == 100 and 200 < numpy.mean([e.label for e in held]) < 300
    assert [sum(lower <= e.label < lower + 50 for e in held) for lower in range(0, 500, 50)] == [10] * 10


@pytest.mark.parametrize("make", [
    lambda n: Question(f"q{n}", f"context {n // 3}", [("c", 0)]), lambda n: TextPair(f"input {n // 3}", f"o{n}"), lambda n: Ranking(f"query {n // 3}", ["d"], [1.0]),
    lambda n: RelationText(f"text {n // 3}", Span(0, 1, ""), Span(n % 3 + 1, n % 3 + 2, ""), "r"), lambda n: TaggedText(f"text {n // 3}", []), lambda n: LabeledText(f"premise {n // 3}", f"h{n}", "x"),
    lambda n: Choice(f"prompt {n // 3}", ["a", f"b{n}"], 0),
])  # fmt: skip
def test_what_shares_a_text_stays_together(make):
    examples = [make(n) for n in range(60)]
    train, held = hold_out(examples, 0.2)
    places = {id(example): n // 3 for n, example in enumerate(examples)}
    assert len(held) == 12 and not {places[id(e)] for e in train} & {places[id(e)] for e in held}


def test_one_text_in_every_pair_is_parted_by_the_other():
    train, held = hold_out([LabeledText("Is this good?", f"answer {n}", "xy"[n % 2]) for n in range(20)], 0.2)
    assert (len(train), len(held)) == (16, 4)


def test_shares_and_folds_that_cannot_be():
    for share in (0, 1, -0.1, 1.5):
        with pytest.raises(ConfigError):
            hold_out(texts(10), share)
    with pytest.raises(ConfigError):
        k_folds(texts(10), 1)
    with pytest.raises(DataError, match="1 different texts"):
        hold_out([LabeledText("a", label="x")] * 5, 0.5)


def test_leaks_and_duplicates():
    train = [LabeledText("Hello, World!", label="x", source="a:1"), LabeledText("你好", label="y"), LabeledText("!!!", label="z")]
    test = [LabeledText("hello world", label="x", source="b:1"), LabeledText("你 好。", label="x"), LabeledText("???", label="z"), LabeledText("new", label="x")]
    found = leaks(train, test)
    assert (found.count, found.contradictory, found.places[0]) == (2, 1, ("a:1", "b:1"))
    assert duplicates(train + test) == (1, 1)
