"""The verb fit from files to report, for every method."""

import json
import random

import pytest
from tiny import write_text

import luban
from luban.fitting.config import FitConfig
from luban.fitting.loading import load_fitted
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError
from luban.models.vector_files import read_vectors


def fit(folder, data, **fields):
    return luban.fit(str(data), out=folder / "out", **fields)


def results_of(artifact):
    assert not (artifact.path / "scratch").exists() and (artifact.path / "report.md").stat().st_size > 20
    return json.loads((artifact.path / "results.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("unit", "order"), [("character", 4), ("word", 2)])
def test_ngrams(tmp_path, unit, order):
    path = write_text(tmp_path, 500)
    made = fit(tmp_path, path, held_out=0.2, unit=unit, ngram={"order": order, "arpa": True, "prompts": ["the king"], "samples": 1})
    results = results_of(made)
    assert results["held_out"]["documents"] > 5 and 0 < made.metrics["bits_per_byte"] < 3
    assert results["next"]["the king"] and results["samples"][0] and (made.path / "model.arpa").read_text(encoding="utf-8").startswith("\\data\\")
    model = load_fitted(made.path)
    assert model.units.unit == unit and model.bits_per_byte(["the king and the queen"]) < 3
    again = luban.fit(str(path), out=tmp_path / "again", held_out=0.2, unit=unit, ngram={"order": order, "arpa": True, "prompts": ["the king"], "samples": 1})
    assert (again.path / "model.arpa").read_bytes() == (made.path / "model.arpa").read_bytes()


def test_ngrams_over_the_tokens_of_a_corpus(tmp_path):
    """Tokens of a byte-level tokenizer; documents and splits of a curated corpus. Bits per byte compare with the characters' ones."""
    write_text(tmp_path, 80)
    stages = {
        "corpus": {"kind": "curate", "sources": "text.txt", "document_separator": "blank_line", "workers": 1, "split": {"validation": 0.1, "test": 0.1}},
        "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": 300},
        "tokens3": {"kind": "fit", "data": "corpus", "tokenizer": "tokenizer", "ngram": {"order": 3, "samples": 1}},
        "letters": {"kind": "fit", "data": "corpus", "ngram": {"order": 5}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    made = luban.run(tmp_path / "recipe.yaml", out=tmp_path / "runs")
    one, two = (results_of(artifact)["held_out"] for artifact in made[2:])
    assert one["documents"] == two["documents"] > 3
    assert one["bits_per_byte"]["value"] == pytest.approx(two["bits_per_byte"]["value"], rel=0.3)
    assert load_fitted(made[2].path).sample(30, seed=1)


@pytest.mark.parametrize("method", ["word2vec", "glove"])
def test_vectors(tmp_path, method):
    rng = random.Random(0)
    topics = [["cat", "dog", "horse", "paw"], ["春天", "桃花", "燕子", "江水"], ["ship", "sail", "sea", "wind"]]
    lines = ["，".join(rng.choices(topic, k=12)) if topic is topics[1] else " ".join(rng.choices(topic, k=12)) for topic in rng.choices(topics, k=300)]
    (tmp_path / "text.txt").write_text("\n\n".join(lines), encoding="utf-8")
    (tmp_path / "pairs.tsv").write_text("cat\tdog\t9\ncat\tship\t1\nsail\tsea\t8\n春天\t桃花\t9\nsea\t燕子\t0\nx\ty\t3\n", encoding="utf-8")
    fields = {
        "dimension": 12,
        "epochs": 60 if method == "glove" else 20,
        "show": ["cat", "春天", "nothing"],
        "analogies": [["cat", "dog", "sea"]],
        "pairs": str(tmp_path / "pairs.tsv"),
        "subsample": 0.0,
        "learning_rate": 0.1,
    }
    made = fit(tmp_path, tmp_path / "text.txt", method=method, vectors=fields)
    results = results_of(made)
    assert {name for name, _ in results["nearest"]["cat"][:3]} == {"dog", "horse", "paw"}
    assert {name for name, _ in results["nearest"]["春天"][:3]} == {"桃花", "燕子", "江水"}
    assert results["similarity"]["missing"] == 1 and results["similarity"]["spearman"] > 0.5 and len(results["analogies"][0]["answers"]) == 5
    assert read_vectors(made.path / "vectors.txt").words == load_fitted(made.path).words


@pytest.mark.parametrize("method", ["linear", "majority"])
def test_classification(tmp_path, method):
    rng = random.Random(0)
    words = {"yes": ["good", "fine", "warm", "很好"], "no": ["bad", "cold", "poor", "很差"]}
    rows = [{"text": " ".join(rng.choices(words[label], k=4) + [f"n{i}"]), "label": label} for i, label in enumerate(["yes", "no", "yes"] * 40)]
    made = luban.fit(rows, out=tmp_path / "out", method=method, held_out=0.25)
    results = results_of(made)
    assert results["held_out"]["accuracy"]["value"] == pytest.approx(1.0 if method == "linear" else 2 / 3, abs=0.05)
    assert load_fitted(made.path).predict(["good fine"])[0]["label"] == "yes"


def test_a_dictionary_of_entities(tmp_path):
    sentences = [f"Anna\tB-PER\nlives\tO\nin\tO\n{city}\tB-LOC\nnow{i}\tO\n" for i, city in enumerate(["Paris", "Rome"] * 20)]
    (tmp_path / "train.conll").write_text("\n".join(sentences), encoding="utf-8")
    made = fit(tmp_path, tmp_path / "train.conll", method="dictionary", held_out=0.2)
    assert results_of(made)["held_out"]["entity_micro_f1"]["value"] == 1.0 and results_of(made)["entries"] == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"method": "glove", "ngram": {"order": 2}}, "does not use it"),
        ({"unit": "token"}, "needs a tokenizer"),
        ({"ngram": {"minimum_counts": [2, 1]}}, "must not fall"),
        ({"method": "ngram", "remove_stop_words": True}, "needs every word"),
        ({"vectors": {"analogies": [["a", "b"]]}, "method": "glove"}, "three words"),
        ({"order": 3}, "ngram.order"),
        ({"data": []}, "at least one"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ConfigError, match=message):
        build(FitConfig, {"data": "x", **fields})


def test_text_too_small_for_vectors(tmp_path):
    (tmp_path / "text.txt").write_text("one two three", encoding="utf-8")
    with pytest.raises(DataError, match="no text to fit"):
        fit(tmp_path, tmp_path / "text.txt", method="word2vec", held_out=0.0)
    with pytest.raises(DataError, match="near each other"):
        luban.fit(str(tmp_path / "text.txt"), out=tmp_path / "o", method="glove", held_out=0.0, minimum_count=1, unit="word", vocabulary_size=1)
