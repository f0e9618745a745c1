"""Predictions for files as people have them: other columns, bad rows, empty files, huge texts, every format; nothing is lost silently."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pandas
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from prediction_lab import make_task_model

import luban
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.pipeline.predict import Records, csv_lines, json_line

GOOD = "text,label\ngreat film,good\nAnna saw,bad\n"


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, Predictor]:
    base = tmp_path_factory.mktemp("predictors")
    return {task: Predictor.load(make_task_model(base / task, task), device="cpu") for task in ("classification", "tagging", "question_answering", "masked", "regression")}


def records_of(predictor: Predictor, path: Path, **settings: object) -> list[dict]:
    return list(Records(predictor, **settings).of_file(path))


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    (folder / name).write_text(text, encoding=encoding)
    return folder / name


# ---- formats -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", GOOD, "utf-8"),
        ("a.tsv", GOOD.replace(",", "\t"), "utf-8-sig"),
        ("a.jsonl", '{"text": "great film"}\n{"text": "Anna saw"}\n', "utf-8"),
        ("a.json", '[{"text": "great film"}, {"text": "Anna saw"}]', "utf-8"),
        ("a.txt", "great film\n\nAnna saw\n", "utf-16"),
        ("b.csv", "review,stars\ngreat film,5\nAnna saw,1\n", "utf-8"),
    ],
)
def test_files_of_every_form_give_the_same(models, tmp_path, name, text, encoding):
    expected = models["classification"].predict(["great film", "Anna saw"])
    found = records_of(models["classification"], write(tmp_path, name, text, encoding))
    assert [one.pop("source").startswith(str(tmp_path / name)) for one in found] == [True, True]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert one["probabilities"] == pytest.approx(other["probabilities"], abs=1e-4)


def test_conll_and_squad(models, tmp_path):
    conll = write(tmp_path, "c.txt", "Anna B-person\nsaw O\nParis B-place\n\nBoris B-person\nwent O\n")
    assert [one["source"] for one in records_of(models["tagging"], conll)] == [f"{conll}:1", f"{conll}:5"]
    paragraph = {"context": "Anna saw Paris", "qas": [{"id": "a", "question": "who?", "answers": [{"text": "Anna", "answer_start": 0}]}]}
    squad = write(tmp_path, "s.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    found = records_of(models["question_answering"], squad)[0]
    assert found["answer"] == "Anna saw Paris"[found["start"] : found["end"]]


def test_questions_without_answers_are_rows_as_they_are(models, tmp_path):
    file = write(tmp_path, "q.csv", "frage,absatz\nwho saw?,Anna saw Paris\n")
    mapping = {"question": "frage", "context": "absatz"}
    assert records_of(models["question_answering"], file, mapping=mapping)[0]["answer"]
    assert luban.predict(models["question_answering"], file, mapping=mapping)[0]["answer"]
    with pytest.raises(DataError):
        records_of(models["question_answering"], file, mapping={"question": "farge", "context": "absatz"})


def test_chinese_in_its_own_encoding(models, tmp_path):
    lines = ["电影好看", "北京"] * 20
    found = records_of(models["classification"], write(tmp_path, "g.txt", "\n".join(lines), "gb18030"))
    assert [one["label"] for one in found] == [one["label"] for one in models["classification"].predict(lines)]


def test_a_folder_and_a_slice(models, tmp_path):
    folder = tmp_path / "several"
    folder.mkdir()
    for name in ("b.csv", "a.csv"):
        write(folder, name, GOOD)
    write(folder, "empty.csv", "")
    assert [one["source"].rpartition("/")[2] for one in records_of(models["classification"], folder)] == ["a.csv:2", "a.csv:3", "b.csv:2", "b.csv:3"]
    assert len(records_of(models["classification"], Path(f"{folder / 'a.csv'}#1"))) == 1


# ---- what is wrong with them ---------------------------------------------------------------------------------------------


def test_bad_rows_stand_in_their_places(models, tmp_path):
    file = write(tmp_path, "q.jsonl", '{"question": "who?", "context": "Anna", "id": 1}\n{"question": "who?", "id": 2}\n{bad\n{"question": "who?", "context": "Boris", "id": 4}\n')
    records = Records(models["question_answering"], keep=("id",))
    found = list(records.of_file(file))
    assert [one["source"] for one in found] == [f"{file}:{number}" for number in (1, 2, 3, 4)]
    assert ["error" in one for one in found] == [False, True, True, False] and "context" in found[1]["error"] and "JSON" in found[2]["error"]
    assert [one.get("id") for one in found] == [1, 2, None, 4]
    with pytest.raises(DataError, match=r"2 of 4 items could not be predicted; the first: .*q.jsonl:2"):
        records.say_rest()
    with pytest.raises(DataError, match=r"q.jsonl:[23]"):  # in Python a bad one is an error
        luban.predict(models["question_answering"], file)


def test_many_bad_items_are_found_one_by_one(models):
    items = [{"text": f"Anna {number}"} if number % 3 else {"txt": "?"} for number in range(300)]
    records = Records(models["masked"])
    from luban.pipeline.prediction_input import Asked

    some = [Asked(str(number), {"text": "[MASK] saw"} if number % 3 else item) for number, item in enumerate(items)]
    found = list(records._of(some))
    assert [one["source"] for one in found] == [str(number) for number in range(300)] and ["error" in one for one in found] == [number % 3 == 0 for number in range(300)]


def test_where_nothing_can_be_predicted_the_columns_are_named(models, tmp_path):
    file = write(tmp_path, "q.csv", "frage,absatz\na,b\nc,d\n")
    with pytest.raises(DataError, match="(?s)none of the first 2 items.*frage, absatz.*--mapping"):
        records_of(models["question_answering"], file)


@pytest.mark.parametrize("text", ["", "\n\n\n"])
def test_an_empty_file(models, tmp_path, text):
    for name in ("e.txt", "e.csv", "e.jsonl"):
        with pytest.raises(DataError):
            records_of(models["classification"], write(tmp_path, name, text))
    with pytest.raises(DataError, match="no such file"):
        records_of(models["classification"], tmp_path / "absent.csv")


def test_a_huge_text_is_cut_and_said(models, tmp_path, capsys):
    records = Records(models["classification"])
    found = list(records.of_file(write(tmp_path, "long.txt", "great film " * 9100 + "\nshort\n")))
    assert found[0]["cut_tokens"] > 10_000 and "cut_tokens" not in found[1]
    records.say_rest()
    assert "1 of 2 items are longer" in capsys.readouterr().err
    assert len(luban.predict(models["tagging"], "Anna saw Boris. " * 200)[0]["spans"]) >= 0


def test_half_characters_and_nothing_at_all(models):
    assert luban.predict(models["classification"], ["a \ud800 b", ""]) and luban.predict(models["classification"], []) == []
    with pytest.raises(DataError, match="item 2 is neither"):
        luban.predict(models["classification"], ["a", 7])
    with pytest.raises(DataError, match="list"):
        luban.predict(models["classification"], {"text": "a"})


def test_answers_that_are_missing_or_damaged_hinder_no_prediction(models, tmp_path):
    half = write(tmp_path, "half.csv", "text,label\ngreat film,good\nAnna saw,\nBoris went,unheard\n,bad\n")
    assert [("label" in one, one.get("error")) for one in records_of(models["classification"], half)] == [(True, None)] * 3 + [(False, "the text is empty")]
    scores = write(tmp_path, "scores.csv", "text,score\n" + "".join(f"film {n},{n}.5\n" for n in range(20)) + "great,abc\nbad,\n")
    assert len([one["value"] for one in records_of(models["regression"], scores)]) == 22
    lost = {"id": "b", "question": "who went?", "answers": [{"text": "cat", "answer_start": 4}]}
    paragraph = {"context": "Anna saw Paris", "qas": [{"id": "a", "question": "who?", "answers": [{"text": "Anna", "answer_start": 0}]}, lost]}
    squad = write(tmp_path, "s.json", json.dumps({"data": [{"paragraphs": [paragraph]}]}))
    found = records_of(models["question_answering"], squad, keep=("id", "question"))
    assert [(one["id"], one["question"]) for one in found] == [("a", "who?"), ("b", "who went?")] and all("answer" in one for one in found)


# ---- Python --------------------------------------------------------------------------------------------------------------


def test_texts_rows_and_frames(models):
    model = models["classification"]
    expected = model.predict(["great film"])[0]["label"]
    assert luban.predict(model, "great film")[0]["label"] == luban.predict(model, ["great film"])[0]["label"] == luban.predict(model, [{"text": "great film"}])[0]["label"] == expected
    frame = pandas.DataFrame({"review": ["great film"], "pair": [float("nan")]})
    assert luban.predict(model, frame, mapping={"text": "review"})[0]["label"] == expected
    assert len(luban.predict(model, "x" * 100_000)) == len(luban.predict(model, "a\0b")) == 1  # no file names


# ---- lines and tables ----------------------------------------------------------------------------------------------------


def test_kept_columns_and_csv(models, tmp_path):
    file = write(tmp_path, "t.csv", "id,text,label\n7,great film,good\n8,Anna,bad\n")
    found = records_of(models["classification"], file, keep=("id", "label"))
    assert [(one["id"], one["input_label"]) for one in found] == [("7", "good"), ("8", "bad")]
    table = pandas.read_csv(io.StringIO("\n".join(csv_lines(found))))
    assert list(table.columns) == ["source", "id", "input_label", "label", "probabilities.good", "probabilities.bad", "probabilities.中"]
    assert table["probabilities.bad"].tolist() == pytest.approx([one["probabilities"]["bad"] for one in found])
    with pytest.raises(ConfigError, match="no column 'idd'"):
        records_of(models["classification"], file, keep=("idd",))
    spans = list(csv_lines(records_of(models["tagging"], write(tmp_path, "s.txt", 'Anna saw, "Boris"\n'))))
    assert json.loads(pandas.read_csv(io.StringIO("\n".join(spans)))["spans"][0]) is not None
    assert json.loads(json_line({"source": "x", "text": "中"})) == {"source": "x", "text": "中"}


def test_lines_from_a_stand_in_for_standard_input(models, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO('\ufeffgreat film\n\n{"text": "Anna", "id": 3}\n{no json\n'))
    found = list(Records(models["classification"], keep=("all",)).of_lines())
    assert [one["source"] for one in found] == ["-:1", "-:3", "-:4"] and found[1]["id"] == 3 and found[0]["text"] == "great film"
