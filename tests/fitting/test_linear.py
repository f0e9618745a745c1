"""Linear baselines against scikit-learn's own predictions, and what bad data does to them."""

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression, Ridge

from luban.examples.tasks import Span, TaggedText
from luban.fitting.dictionary import DictionaryTagger, fit_dictionary
from luban.fitting.linear import fit_linear, fit_majority
from luban.fitting.linear_model import Features, LinearModel
from luban.fitting.loading import load_fitted
from luban.foundation.errors import DataError

GOOD = ["a good film", "good good acting", "very good story told well", "a fine and moving film", "well acted, moving", "很好看的电影", "演得非常好"]
BAD = ["a bad film", "bad bad acting", "very dull story", "a poor and empty film", "badly acted, dull", "很难看的电影", "演得非常差"]
NEW = ["a good story", "dull and bad", "", "unknownword", "好看", "moving film 电影", "a " * 5000]


@pytest.mark.parametrize("classes", [2, 3])
def test_probabilities_equal_scikit_learns(classes, tmp_path):
    texts = [*GOOD, *BAD, *(["the match ended", "a goal in the match", "球队赢了比赛"] if classes == 3 else [])]
    labels = ["good"] * 7 + ["bad"] * 7 + (["sport"] * 3 if classes == 3 else [])
    features = Features(words=2, characters=3)
    fit_linear(texts, labels, features=features).save(tmp_path)
    model = LinearModel.load(tmp_path)
    vectorizer = TfidfVectorizer(analyzer=features, sublinear_tf=True)
    peer = LogisticRegression(max_iter=500).fit(vectorizer.fit_transform(texts), labels)
    wanted = peer.predict_proba(vectorizer.transform(NEW))
    for answer, row in zip(model.predict(NEW), wanted, strict=True):
        assert list(answer["probabilities"]) == peer.classes_.tolist()
        assert list(answer["probabilities"].values()) == pytest.approx(row, abs=1e-5)
        assert answer["label"] == max(answer["probabilities"], key=answer["probabilities"].get)
    assert "w good" in model.weightiest()["good"]
    assert not (tmp_path / "model.pkl").exists() and {file.suffix for file in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_regression_equals_scikit_learns(tmp_path):
    texts, numbers = [*GOOD, *BAD], [5.0, 5, 4.5, 4, 4, 5, 4] + [1.0, 1, 2, 1.5, 1, 1, 2]
    fit_linear(texts, numbers, task="regression", features=Features()).save(tmp_path)
    vectorizer = TfidfVectorizer(analyzer=Features(), sublinear_tf=True)
    peer = Ridge(alpha=1.0).fit(vectorizer.fit_transform(texts), numbers)
    assert [answer["value"] for answer in LinearModel.load(tmp_path).predict(NEW)] == pytest.approx(peer.predict(vectorizer.transform(NEW)), abs=1e-3)


def test_several_labels(tmp_path):
    texts = ["red round", "red long", "blue round", "blue long", "round", "long red"] * 3
    labels = [[word for word in text.split() if word in ("red", "round")] + ["thing"] for text in texts]
    fit_linear(texts, labels, task="multi_label", features=Features(1)).save(tmp_path)
    answers = LinearModel.load(tmp_path).predict(["red round", "blue", "long"])
    assert answers[0]["labels"] == ["red", "round", "thing"] and answers[1]["labels"] == ["thing"]
    assert 0.9 < answers[2]["probabilities"]["thing"] < 1


def test_pairs_see_what_is_common():
    words = ["cat", "dog", "sun", "sea", "car", "hat"]
    texts = [(one, two) for one in words for two in words]
    labels = ["same" if one == two else "other" for one, two in texts]
    model = fit_linear(
        [pair for pair in texts for _ in range(5 if pair[0] == pair[1] else 1)],
        [label for label in labels for _ in range(5 if label == "same" else 1)],
        regularisation=0.01,
    )
    assert [answer["label"] for answer in model.predict(texts)] == labels


def test_nearest_centre():
    model = fit_linear([*GOOD, *BAD], ["good"] * 7 + ["bad"] * 7, model="centroid", features=Features(1))
    assert [model.predict([text])[0]["label"] for text in ("good moving", "dull bad")] == ["good", "bad"]
    centre = np.mean([np.bincount(*model.vector(text)[:1], weights=model.vector(text)[1], minlength=len(model.vocabulary)) for text in BAD], 0)
    assert model.coefficients[0] / np.linalg.norm(model.coefficients[0]) == pytest.approx(centre / np.linalg.norm(centre), abs=1e-5)


def test_the_majority(tmp_path):
    model = fit_majority(["x"] * 4, ["a", "b", "b", None])
    assert model.predict(["anything"]) == [{"label": "b", "probabilities": pytest.approx({"a": 1 / 3, "b": 2 / 3})}]
    model.save(tmp_path)
    assert load_fitted(tmp_path).predict([""])[0]["label"] == "b"
    assert fit_majority(["x"] * 2, [1, 4.0], task="regression").predict(["y"]) == [{"value": 2.5}]
    assert fit_majority(["x"] * 3, [["a"], ["a", "b"], []], task="multi_label").predict([""])[0]["labels"] == ["a"]


def test_bad_data(capsys):
    one = fit_linear(["a", "b"], ["only", "only"])
    assert one.predict(["z"]) == [{"label": "only", "probabilities": {"only": 1.0}}]
    with pytest.raises(DataError, match="no labelled"):
        fit_linear(["a"], [None])
    with pytest.raises(DataError, match="fit together"):
        fit_linear(["a"], [])
    with pytest.raises(DataError, match="no text has a word"):
        fit_linear(["", "!!"], ["a", "b"])
    for label in (float("nan"), "five", True):
        with pytest.raises(DataError, match="example 2"):
            fit_linear(["a", "b"], [1.0, label], task="regression")
    model = fit_linear(["good", "", "bad", "x" * 100_000, "bad"], ["g", "g", "b", "g", None])
    bad, good = (answer["probabilities"]["b"] for answer in model.predict(["bad", "good"]))
    assert bad > good
    assert "1 of 5 examples have no label" in capsys.readouterr().err


@pytest.mark.parametrize("file", ["config.json", "features.json", "labels.json", "model.safetensors"])
@pytest.mark.parametrize("damage", [b"", b"[]", b'{"model_type": "bert"}', b"\xff\xfe"])
def test_a_damaged_folder(tmp_path, file, damage):
    fit_linear(["a", "b"], ["x", "y"], features=Features(1)).save(tmp_path)
    (tmp_path / file).write_bytes(damage)
    with pytest.raises(DataError):
        LinearModel.load(tmp_path)


# ------------------------------------------------------------------------------------------------------ tagging


def tagged(text, *spans):
    return TaggedText(text, [Span(text.index(word), text.index(word) + len(word), label) for word, label in spans])


def test_a_dictionary_matches_the_longest_first(tmp_path):
    examples = [
        tagged("New York is big", ("New York", "LOC")),
        tagged("The New York Times wrote", ("New York Times", "ORG")),
        tagged("York is old", ("York", "LOC")),
        tagged("鲁班住在北京市", ("鲁班", "PER"), ("北京市", "LOC")),
        tagged("May went home", ("May", "PER")),
        tagged("It may rain in May"),
        tagged("May I ask? May you go."),
    ]
    fit_dictionary(examples).save(tmp_path)
    tagger = load_fitted(tmp_path)
    assert isinstance(tagger, DictionaryTagger) and "May" not in tagger.entries
    text = "He reads the New York Times in New York, not in Yorkshire; 鲁班去北京市了"
    found = [(text[span["start"] : span["end"]], span["label"]) for span in tagger.predict([text])[0]["spans"]]
    assert found == [("New York Times", "ORG"), ("New York", "LOC"), ("鲁班", "PER"), ("北京市", "LOC")]
    assert tagger.predict(["", "Yorks"]) == [{"spans": []}, {"spans": []}]
    with pytest.raises(DataError, match="no span"):
        fit_dictionary([tagged("nothing here")])
