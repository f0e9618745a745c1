"""Tables fitted on disk against the model held in memory, a brute-force sum, and an ARPA reader of its own."""

import json
import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.corpus.documents import Document
from luban.fitting import spill as spill_module
from luban.fitting.ngram import NgramModel, fit_ngram
from luban.fitting.spill import Spill
from luban.fitting.units import Units, write_stream
from luban.foundation.errors import DataError
from luban.models.ngram import UNICODE, KneserNey
from luban.models.ngram_tables import NgramTables, write_arpa

TEXTS = ["abracadabra", "banana", "cab\nab", "", "a", "鲁班鲁班门"]


def fitted(folder, texts, order, unit="character", memory=10_000_000, minimum_counts=(1,), minimum_count=1):
    units = Units(unit)
    stream = write_stream(
        [Document(str(i), text) for i, text in enumerate(texts)], units, folder / "s", minimum_count=minimum_count, vocabulary_size=None, memory=memory
    )
    return fit_ngram(stream, units, order, list(minimum_counts), folder / "model", folder / "work", memory)


def long_texts(count=60, seed=0):
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdef", k=rng.randint(1, 6))) for _ in range(80)]
    return [" ".join(rng.choices(words, k=rng.randint(5, 120))) for _ in range(count)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(1, 9)), max_size=80), max_size=6))
def test_a_spill_sums_like_a_dictionary(tmp_path_factory, batches):
    spill = Spill(tmp_path_factory.mktemp("spill"), 1)
    spill._limit = 7  # runs of a few rows, so that many must be merged
    wanted: dict[int, int] = {}
    for batch in batches:
        for key, value in batch:
            wanted[key] = wanted.get(key, 0) + value
        spill.add(
            np.array([key for key, _ in batch], np.int64), np.array([value for _, value in batch], np.int64), np.array([key * 3 for key, _ in batch], np.int64)
        )
    rows = [row for keys, values, carried in spill.merged() for row in zip(keys.tolist(), values.tolist(), carried.tolist(), strict=True)]
    assert rows == [(key, wanted[key], key * 3) for key in sorted(wanted)]
    assert not list(spill.folder.iterdir())


def test_many_runs_are_merged_in_two_rounds(tmp_path, monkeypatch):
    monkeypatch.setattr(spill_module, "_RUNS_AT_ONCE", 3)
    spill = Spill(tmp_path, 1)
    spill._limit = 10
    numbers = np.random.default_rng(0).integers(0, 500, 2000)
    spill.add(numbers, np.ones(2000, np.int64))
    assert spill.runs > 9
    keys, counts = (np.concatenate(column) for column in zip(*[rows[:2] for rows in spill.merged()], strict=True))
    expected = np.unique(numbers, return_counts=True)
    assert (keys == expected[0]).all() and (counts == expected[1]).all()


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_tables_equal_the_model_in_memory(tmp_path, order):
    model, _ = fitted(tmp_path, TEXTS, order)
    texts = ["abra", "zab", "", "nanab\nx", "鲁门班龘", "banana"]
    assert model.score(texts)[0].nats == pytest.approx(KneserNey(TEXTS, order).nats(texts), rel=1e-6)


def test_little_memory_gives_the_same_tables(tmp_path):
    """Fifty thousand positions in blocks of a thousand, counts in dozens of runs."""
    texts = long_texts(200)
    roomy, sizes = fitted(tmp_path / "roomy", texts, 5)
    tight, sizes_tight = fitted(tmp_path / "tight", texts, 5, memory=1)
    assert sizes == sizes_tight
    assert max(tight.tables.facts["runs"]) > 10 and not any(roomy.tables.facts["runs"])
    for name in ("keys", "direct", "backoff"):
        for one, two in zip(getattr(roomy.tables, name), getattr(tight.tables, name), strict=True):
            assert np.array_equal(one, two)
    held_out = long_texts(5, seed=1)
    assert tight.score(held_out)[0].nats == pytest.approx(KneserNey(texts, 5).nats(held_out), rel=1e-6)
    assert not (tmp_path / "tight" / "work" / "tables").exists()


@pytest.mark.parametrize("minimum_counts", [(1,), (1, 2, 3), (2,)])
def test_every_history_sums_to_one(tmp_path, minimum_counts):
    """Pruned or not: the whole distribution, and p(w | h) one at a time."""
    model, sizes = fitted(tmp_path, long_texts(), 3, minimum_counts=minimum_counts)
    tables = model.tables
    assert (sizes[-1]["kept"] < sizes[-1]["seen"]) == (minimum_counts != (1,))
    for history in ("", "a", "ab", "fa", "zz", " c"):
        distribution = tables.distribution([tables.symbol_of.get(letter, tables.unseen) for letter in history])
        unseen = tables.outcomes - 1 - len(tables.units)
        assert distribution[1:-1].sum() + distribution[-1] * unseen == pytest.approx(1, abs=1e-5)
        for letter in ("a", " ", "f", "龘"):
            alone = model.tables.probabilities(tables.symbols(list(history) + [letter]))[len(history)]
            assert alone == pytest.approx(distribution[tables.symbol_of.get(letter, tables.radix - 1)], rel=1e-6)


def test_pruning_leaves_out_exactly_the_rare(tmp_path):
    texts = long_texts()
    model, sizes = fitted(tmp_path, texts, 3, minimum_counts=(1, 1, 3))
    counts: dict[str, int] = {}
    for text in texts:
        marked = "\0\0" + text + "\1"
        for place in range(len(marked) - 2):
            counts[marked[place : place + 3]] = counts.get(marked[place : place + 3], 0) + 1
    assert sizes[2]["seen"] == len(counts) + 1  # and the start symbols alone
    assert sizes[2]["kept"] == sum(count >= 3 for count in counts.values()) + 1


def test_words_pay_for_their_spelling(tmp_path):
    texts = ["the cat sat on the mat", "the dog sat on the log", "the cat saw the dog"] * 3 + ["an aardvark sat"]
    model, _ = fitted(tmp_path, texts, 2, unit="word", minimum_count=2)
    costs = dict(model.log_probabilities("the zebra sat"))
    unknown = dict(model.log_probabilities("the <unk> sat"))
    assert math.isfinite(costs["zebra"]) and set(costs) == {"the", "zebra", "sat", "</s>"} and unknown["</s>"] < 0
    scores, missing = model.score(["the zebra sat"])
    assert missing == 1 and scores.nats[0] == pytest.approx(-sum(costs.values()))
    assert costs["zebra"] < math.log(model.tables.distribution([model.tables.symbol_of["the"]])[model.tables.unseen]) - 5
    assert model.next_words("the cat")[0][0] in ("sat", "saw")
    assert "<unk>" not in model.sample(200, seed=3)
    assert model.perplexity(texts) < model.perplexity(["mat mat the the the on"])


def test_samples_follow_the_distribution(tmp_path):
    model, _ = fitted(tmp_path, ["ab", "ab", "ab", "ac"] * 20, 3)
    drawn = [model.sample(5, seed=seed) for seed in range(300)]
    assert drawn[:5] == [model.sample(5, seed=seed) for seed in range(5)]
    share = sum(text.startswith("ab") for text in drawn) / len(drawn)
    assert share == pytest.approx(math.exp(sum(p for _, p in model.log_probabilities("ab")[:2])), abs=0.08)
    assert {model.sample(5, seed=seed, temperature=0.05) for seed in range(20)} == {"ab"}


def arpa_probability(file, words):
    """log10 probability of a sentence by the rules of the format: the longest match, back-off weights on the way down."""
    grams: dict[tuple[str, ...], tuple[float, float]] = {}
    for line in file.read_text(encoding="utf-8").split("\n"):
        parts = line.split("\t")
        if len(parts) >= 2:
            grams[tuple(parts[1].split(" "))] = (float(parts[0]), float(parts[2]) if len(parts) > 2 else 0.0)
    order = max(map(len, grams))

    def probability(history, word):
        if (*history, word) in grams:
            return grams[(*history, word)][0]
        if not history:
            return grams[("<unk>",)][0]
        return grams.get(history, (0.0, 0.0))[1] + probability(history[1:], word)

    sentence = ["<s>", *words, "</s>"]
    return sum(probability(tuple(sentence[max(0, place - order + 1) : place]), sentence[place]) for place in range(1, len(sentence)))


@pytest.mark.parametrize(("order", "minimum_counts"), [(1, (1,)), (2, (1,)), (4, (1,)), (4, (1, 1, 2, 3))])
def test_arpa_says_the_same(tmp_path, order, minimum_counts):
    texts = [*TEXTS, *long_texts(20)]
    model, _ = fitted(tmp_path, texts, order, minimum_counts=minimum_counts)
    counts = write_arpa(model.tables, tmp_path / "x.arpa")
    head = (tmp_path / "x.arpa").read_text(encoding="utf-8").split("\n\n")[0]
    assert all(f"ngram {k}={count}" in head for k, count in counts.items())
    for text in ["abra", "鲁班", "fab cde", "", "zzabz", "a"]:
        names = ["<U+0020>" if letter == " " else letter for letter in text]
        assert arpa_probability(tmp_path / "x.arpa", names) * math.log(10) == pytest.approx(-model.score([text])[0].nats[0], rel=1e-4)


def test_a_full_dictionary_forgets_the_rarest(tmp_path):
    documents = [Document(str(i), f"common word number{i}") for i in range(6000)]
    stream = write_stream(documents, Units("word"), tmp_path, minimum_count=2, vocabulary_size=None, memory=1)
    assert stream.names == ["common", "word"] and stream.counts.tolist() == [6000, 6000] and stream.forgotten == 6000
    few = write_stream(documents, Units("word"), tmp_path, minimum_count=1, vocabulary_size=2, memory=10**8)
    assert few.names == ["common", "word"] and few.counts.tolist() == [6000, 6000] and few.units == 18000
    assert sum(int((part < 0).sum()) for batch in few.documents() for part in batch) == 6000


@pytest.mark.parametrize("damage", ["config", "units", "cut", "kind", "missing", "sizes"])
def test_a_damaged_folder_is_a_clear_error(tmp_path, damage):
    fitted(tmp_path, TEXTS, 2)
    folder = tmp_path / "model"
    if damage == "config":
        (folder / "config.json").write_text("{")
    elif damage == "units":
        (folder / "units.json").write_text("7")
    elif damage == "cut":
        (folder / "keys-2.npy").write_bytes((folder / "keys-2.npy").read_bytes()[:-9])
    elif damage == "kind":
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    elif damage == "missing":
        (folder / "direct-1.npy").unlink()
    else:
        np.save(folder / "direct-2.npy", np.zeros(3, np.float32))
    with pytest.raises(DataError):
        NgramModel.load(folder)
    with pytest.raises(DataError):
        NgramTables.load(tmp_path / "nowhere")


def test_no_text_is_refused_and_odd_text_is_not(tmp_path):
    with pytest.raises(DataError, match="no text"):
        fitted(tmp_path / "none", [""], 2)
    model, _ = fitted(tmp_path / "odd", ["\ud800x", "a" * 100_000], 3)
    assert np.isfinite(model.score(["\ud800", "a龘"])[0].nats).all()
    assert model.tables.outcomes == UNICODE + 1
