"""Kneser-Ney against published figures, a brute-force version and its own axioms."""

import gzip
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import luban
from luban.models.ngram import UNICODE, KneserNey

DATA = next(
    folder
    for folder in (Path(luban.__file__).parent / "recipes/quickstart/data", Path(__file__).parents[2] / "examples/quickstart/data")
    if folder.is_dir()
)


@pytest.fixture(scope="module")
def shakespeare():
    text = (DATA / "shakespeare.txt").read_text(encoding="utf-8")
    cut = int(len(text) * 0.9)  # nanoGPT's split
    return text[:cut], text[cut:]


def test_nanogpt_split_has_the_known_figures(shakespeare):
    """One discount of 0.75, 65 characters, running text: what an independent implementation gave."""
    train, held_out = shakespeare
    model = KneserNey([train], 6, 65, discounts="absolute", document_symbols=False)
    for order, nats in {3: 2.041, 5: 1.566, 6: 1.538}.items():
        assert model.nats([held_out], order)[0] / len(held_out) == pytest.approx(nats, abs=0.003)


def test_modified_discounts_are_the_stricter_yardstick(shakespeare):
    train, held_out = shakespeare
    absolute = KneserNey([train], 5, 65, discounts="absolute")
    modified = KneserNey([train], 5, 65)
    for order in (2, 3, 4, 5):
        assert modified.nats([held_out], order)[0] < absolute.nats([held_out], order)[0]


def test_one_table_set_serves_every_order():
    documents = ["banana", "cabana", "bandana"]
    together = KneserNey(documents, 4, 20)
    for order in (1, 2, 3, 4):
        assert together.nats(["cab", "nab"], order) == pytest.approx(KneserNey(documents, order, 20).nats(["cab", "nab"]))


DOCUMENTS = ["abracadabra", "banana", "cab\nab", "", "a", "鲁班鲁班门"]


def brute_force(documents, order, vocabulary_size, text, modified):
    """The formulas of the module's docstring with dictionaries, one probability at a time."""
    sequences = [["<"] * (order - 1) + list(document) + [">"] for document in documents]
    counts = {order: Counter(), **{k: Counter() for k in range(1, order)}}
    for sequence in sequences:
        for t in range(order - 1, len(sequence)):
            counts[order][tuple(sequence[t - order + 1 : t + 1])] += 1
    for k in range(1, order):
        longer = {tuple(s[t - k : t + 1]) for s in sequences for t in range(order - 1, len(s))}
        for gram in longer:
            counts[k][gram[1:]] += 1

    def discount(k, count):
        if not modified:
            return 0.75
        n = Counter(counts[k].values())
        fallback = {1: 0.5, 2: 1.0, 3: 1.5}[min(count, 3)]
        if not (n[1] and n[2] and n[3]):
            return fallback
        y = n[1] / (n[1] + 2 * n[2])
        i = min(count, 3)
        estimate = i - (i + 1) * y * n[i + 1] / n[i]
        return estimate if 0 < estimate < i else fallback

    def probability(k, history, character):
        if k == 0:
            return 1 / (vocabulary_size + 1)
        history = tuple(history[len(history) - k + 1 :]) if k > 1 else ()
        followers = {gram[-1]: count for gram, count in counts[k].items() if gram[:-1] == history}
        shorter = probability(k - 1, history, character)
        total = sum(followers.values())
        if not total:
            return shorter
        taken = sum(min(discount(k, count), count) for count in followers.values())
        own = followers.get(character, 0)
        return (max(own - discount(k, own), 0) if own else 0) / total + taken / total * shorter

    sequence = ["<"] * (order - 1) + list(text) + [">"]
    return [probability(order, sequence[:t], sequence[t]) for t in range(order - 1, len(sequence))]


@pytest.mark.parametrize("modified", [False, True])
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_equals_brute_force(order, modified):
    model = KneserNey(DOCUMENTS, order, 30, "modified" if modified else "absolute")
    texts = ["abra", "zab", "", "nanab\nx", "鲁门班龘", "banana"]
    probability, owner = model.probabilities(texts)
    for index, text in enumerate(texts):
        assert probability[owner == index] == pytest.approx(brute_force(DOCUMENTS, order, 30, text, modified), rel=1e-12)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.text("abcd \n", max_size=30), min_size=1, max_size=12), st.text("abcdx \n", max_size=12), st.integers(1, 5))
def test_equals_brute_force_on_any_text(documents, text, order):
    model = KneserNey(documents, order, 9)
    assert model.probabilities([text])[0] == pytest.approx(brute_force(documents, order, 9, text, True), rel=1e-9)


@pytest.mark.parametrize("discounts", ["absolute", "modified"])
@pytest.mark.parametrize("document_symbols", [True, False])
def test_probabilities_sum_to_one_over_the_closed_vocabulary(discounts, document_symbols):
    alphabet = sorted(set("".join(DOCUMENTS))) + list("vwxyz")
    for order in (1, 2, 3, 4):
        model = KneserNey(DOCUMENTS, order, len(alphabet), discounts, document_symbols)
        for history in ["", "a", "ab", "bra", "zz", "xab", "鲁班", "nan"]:
            total = sum(model.probabilities([history + character])[0][len(history)] for character in alphabet)
            if document_symbols:
                total += model.probabilities([history])[0][-1]
            assert total == pytest.approx(1, abs=1e-12)


def test_all_of_unicode_sums_to_one():
    """Seen characters, plus the unseen share times how many are unseen, plus the end."""
    model = KneserNey(DOCUMENTS, 3)
    seen = sorted(set("".join(DOCUMENTS)))
    known = sum(model.probabilities(["ab" + character])[0][2] for character in seen)
    unseen = model.probabilities(["ab🙂"])[0][2] * (UNICODE - len(seen))
    assert known + unseen + model.probabilities(["ab"])[0][2] == pytest.approx(1, abs=1e-9)
    assert model.probabilities(["ab🙂"])[0][2] == model.probabilities(["ab龘"])[0][2]


def test_documents_are_scored_alone():
    """Neither the order of documents nor their neighbours change what one costs."""
    model = KneserNey(DOCUMENTS, 4, 40)
    texts = ["banana", "鲁班", "", "cab"]
    nats = model.nats(texts)
    assert model.nats(texts[::-1])[::-1] == pytest.approx(nats)
    assert [model.nats([text])[0] for text in texts] == pytest.approx(nats)
    assert model.nats([]).shape == (0,)


def test_hostile_training_text():
    for documents in ([], [""], ["a"], ["aaaaaaaaaa"], ["\ud800x"]):
        model = KneserNey(documents, 5)
        assert np.isfinite(model.nats(["a鲁\ud800", ""])).all()
    with pytest.raises(ValueError, match="order"):
        KneserNey(["a"], 0)
    with pytest.raises(ValueError, match="vocabulary_size"):
        KneserNey(["abc"], 2, 2)
    with pytest.raises(ValueError, match="order"):
        KneserNey(["abc"], 2).nats(["a"], 3)


def test_mixed_languages_train_in_little_memory(shakespeare):
    """The quickstart's corpus: half English, half Chinese."""
    import tracemalloc

    with gzip.open(DATA / "poems.jsonl.gz", "rt", encoding="utf-8") as stream:
        poems = [json.loads(line)["text"] for line in stream]
    tracemalloc.start()
    model = KneserNey([shakespeare[0], *poems[:-100]], 5)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    characters = len(shakespeare[0]) + sum(map(len, poems[:-100]))
    assert peak < 200 * characters
    bits = [model.nats(poems[-100:], order).sum() / math.log(2) / sum(map(len, poems[-100:])) for order in (1, 3)]
    assert bits[1] < bits[0] < 13
