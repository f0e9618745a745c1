"""Texts with classes, several classes or numbers: columns by name and content, headers, quotes, encodings, files that are classes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.examples.reading import read_examples, recognise_task
from luban.examples.tasks import LabeledText
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.messages import set_language

REVIEWS = [("A fine, quiet hotel", "1"), ("Dirty and loud", "0"), ("房间很好", "1"), ("早餐太差", "0"), ("It was \"nice\"", "1"), ("Never again", "0")]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def lines(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def pairs_of(found) -> list[tuple]:
    return [(example.text, example.label) for example in found.examples]


@pytest.mark.parametrize("columns", [("text", "label"), ("review", "sentiment"), ("sentence", "category"), ("文本", "标签"), ("评论", "类别"), ("content", "gold"), ("Text", "Class"), ("blurb", "verdict")])
@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_columns_by_name_and_content_in_every_table(tmp_path, columns, form):
    frame = pandas.DataFrame([row for row in REVIEWS for _ in range(3)], columns=list(columns))
    path = tmp_path / f"data.{form}"
    if form == "parquet":
        frame.to_parquet(path)
    elif form in ("json", "jsonl"):
        frame.to_json(path, orient="records", lines=form == "jsonl", force_ascii=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    found = read_examples([path], "classification")
    assert pairs_of(found) == [row for row in REVIEWS for _ in range(3)]
    assert (found.mapping["text"], found.mapping["label"]) == columns
    assert (found.format, found.labels, found.bad) == (form, ["0", "1"], [])
    assert found.counts == {"repeated": 12}
    assert recognise_task(path)[0] == "classification"


def test_label_first_and_no_header(tmp_path):
    path = write(tmp_path / "a.csv", '1,"好,很好"\n0,不好\n1,不错\n0,差\n1,喜欢\n')
    found = read_examples([path], "classification")
    assert pairs_of(found) == [("好,很好", "1"), ("不好", "0"), ("不错", "1"), ("差", "0"), ("喜欢", "1")]
    assert found.mapping == {"text": "column_2", "label": "column_1"}


def test_a_first_line_whose_values_come_back_is_data(tmp_path):
    titles = ["太平天国私人便章考", "网络结构优化设计模型", "空间工作记忆研究", "重大战略思想", "明代海禁考", "遗传算法"]
    path = write(tmp_path / "a.tsv", "".join(f"to category\t{title}\t{'历史学' if '考' in title else '理学'}\n" for title in titles))
    found = read_examples([path], "classification")
    assert len(found.examples) == 6 and found.labels == ["历史学", "理学"]
    assert found.unused == ["column_1"]


def test_running_numbers_are_no_label(tmp_path):
    path = write(tmp_path / "a.csv", "n,words,mood\n" + "".join(f"{n},text number {n},{'glad' if n % 2 else 'sad'}\n" for n in range(40)))
    found = read_examples([path], "classification")
    assert found.mapping == {"text": "words", "label": "mood"} and found.labels == ["glad", "sad"]


def test_pairs_and_names_of_labels(tmp_path):
    rows = [{"premise": "a man", "hypothesis": f"a person {n}", "label": n % 3, "idx": n} for n in range(9)]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "classification", {"labels": {0: "entailment", "1": "neutral", 2: "contradiction"}})
    assert found.examples[1] == LabeledText("a man", "a person 1", "neutral", f"{tmp_path / 'a.jsonl'}:2")
    assert found.labels == ["entailment", "neutral", "contradiction"]
    assert found.unused == ["idx"]


def test_readable_labels_are_preferred_to_codes(tmp_path):
    rows = [{"label": 100 + n % 2, "label_desc": ["news_story", "news_car"][n % 2], "sentence": f"第{n}条", "id": n} for n in range(8)]
    assert read_examples([lines(tmp_path / "a.json", rows)], "classification").labels == ["news_car", "news_story"]
    assert read_examples([tmp_path / "a.json"], "classification", {"label": "label"}).labels == ["100", "101"]


def test_numbers_sort_as_numbers_and_whole_ones_lose_their_point(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t{n},{n}.0\n" for n in (10, 2, 1)))
    assert read_examples([path], "classification").labels == ["1", "2", "10"]


@pytest.mark.parametrize("cell", ["red|blue", "red, blue", "red;blue", "red、blue", '["red", "blue"]', "['red', 'blue']"])
def test_lists_of_labels(tmp_path, cell):
    path = tmp_path / "a.csv"
    pandas.DataFrame({"text": ["a", "b", "c", "d"], "labels": [cell, "red", "", "blue"]}).to_csv(path, index=False)
    found = read_examples([path], "multi_label")
    assert [example.label for example in found.examples] == [["red", "blue"], ["red"], [], ["blue"]]
    assert found.labels == ["blue", "red"]


def test_a_column_for_each_label_and_json_lists(tmp_path):
    path = write(tmp_path / "a.csv", "id,comment,toxic,obscene\n" + "".join(f"{n},remark {n},{n % 2},{int(n == 3)}\n" for n in range(30)))
    found = read_examples([path], "multi_label")
    assert found.mapping["label"] == ["toxic", "obscene"] and found.examples[3].label == ["toxic", "obscene"]
    found = read_examples([lines(tmp_path / "b.jsonl", [{"text": f"t{n}", "labels": ["x", "y"][: n % 3]} for n in range(6)])], "multi_label")
    assert [example.label for example in found.examples][:3] == [[], ["x"], ["x", "y"]]
    with pytest.raises(DataError, match="several classes are the task multi_label"):
        read_examples([lines(tmp_path / "c.jsonl", [{"text": "t", "label": ["x", "y"]}])], "classification")


def test_numeric_targets_and_what_is_no_number(tmp_path):
    path = write(tmp_path / "a.csv", "id,sentence1,sentence2,score\n1,a,b,3.5\n2,c,d,many\n3,e,f,\n4,g,h,-1\n5,i,j,inf\n")
    found = read_examples([path], "regression", {"label": "score"})
    assert [(example.pair, example.label) for example in found.examples] == [("b", 3.5), ("h", -1.0)]
    assert [(bad.line, bad.reason) for bad in found.bad] == [(3, "the target 'many' is no number"), (4, "the target is missing"), (6, "the target 'inf' is no number")]


def test_bad_rows_are_named_and_nothing_is_lost(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\ngood,1\n"",0\n   ,1\nno label,\nbad,0\ntoo,many,fields\n"never closed,1\nfine,1\n')
    found = read_examples([path], "classification")
    assert pairs_of(found) == [("good", "1"), ("bad", "0"), ("fine", "1")]
    assert sorted((bad.line, bad.reason) for bad in found.bad) == [
        (3, "the text is empty"), (4, "the text is empty"), (5, "the label is missing"), (7, "3 fields where the header has 2"), (8, "not valid csv: a quote is opened and never closed"),
    ]  # fmt: skip
    assert all(bad.file == str(path) for bad in found.bad)


def test_quoted_fields_over_lines_keep_their_line_numbers(tmp_path):
    path = write(tmp_path / "a.csv", 'text,label\r\n"one\r\n\r\ntwo ""three""",a\r\nfour,b\r\nfive,\r\n')
    found = read_examples([path], "classification")
    assert [(e.text, e.label, e.source.rpartition(":")[2]) for e in found.examples] == [('one\n\ntwo "three"', "a", "2"), ("four", "b", "5")]
    assert found.bad[0].line == 6


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1).filter(lambda t: t.strip()), st.sampled_from(["x", "y"])), min_size=2, max_size=12))
def test_csv_as_pandas_writes_it_comes_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("csv") / "a.csv"
    pandas.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False, encoding="utf-8")
    found = read_examples([path], "classification", {"text": "text", "label": "label"})
    assert pairs_of(found) == [(text.strip(), label) for text, label in rows]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "gb18030"])
def test_encodings(tmp_path, encoding):
    text = "文本,标签\n" + "".join(f"这家酒店的服务员态度非常好{n},正面\n今天的早餐不太新鲜也不好吃{n},负面\n" for n in range(20))
    found = read_examples([write(tmp_path / "a.csv", text, encoding)], "classification")
    assert found.mapping == {"text": "文本", "label": "标签"} and found.label_counts == {"正面": 20, "负面": 20}


def test_line_separators_inside_json_and_lone_surrogates(tmp_path):
    path = write(tmp_path / "a.jsonl", '{"text": "one\u2028two\u0085three", "label": "a"}\r\n{"text": "half \\ud83d", "label": "a"}\n{"text": "whole \\ud83d\\ude00", "label": "b"}\n{"text": broken\n[1, 2, 3, 4, 5]\n')
    found = read_examples([path], "classification")
    assert pairs_of(found) == [("one\u2028two\u0085three", "a"), ("whole 😀", "b")]
    assert [(bad.line, bad.reason.partition(":")[0].partition("(")[0].strip()) for bad in found.bad] == [(4, "not valid JSON"), (5, "a JSON value that is no object"), (2, "the text holds half a character")]


def test_long_documents_are_whole(tmp_path):
    rows = [{"text": "长" * 100_000 + str(n), "label": str(n % 2)} for n in range(4)]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "classification")
    assert [len(example.text) for example in found.examples] == [100_001] * 4


def test_contradictions_one_class_and_unlabelled_texts_are_counted(tmp_path):
    rows = [{"text": "Good!", "label": "a"}, {"text": "good", "label": "b"}, {"text": "ＧＯＯＤ", "label": "a"}]
    assert read_examples([lines(tmp_path / "a.jsonl", rows)], "classification").counts == {"contradictory": 1, "repeated": 1}
    assert read_examples([lines(tmp_path / "b.jsonl", rows[:1])], "classification").counts == {"one class": 1}
    found = read_examples([lines(tmp_path / "c.jsonl", [{"text": "only texts here"}, {"text": "and one more"}])], "classification")
    assert found.counts == {"unlabelled": 2} and found.labels == []


def test_one_file_a_class_and_one_folder_a_class(tmp_path):
    write(tmp_path / "polarity.neg", "bad film\n\nworse\n")
    (tmp_path / "polarity.pos").write_bytes(gzip.compress(b"good film\n"))
    write(tmp_path / "README.md", "what this is")
    found = read_examples([tmp_path], "classification")
    assert pairs_of(found) == [("bad film", "neg"), ("worse", "neg"), ("good film", "pos")]
    assert [(Path(bad.file).name, bad.line) for bad in found.bad] == [("README.md", 0)]
    for name, text in (("体育/1.txt", "球赛\n第二段"), ("体育/2.txt", "比分"), ("财经/1.txt", "股市")):
        (tmp_path / "docs" / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / "docs" / name, text)
    assert pairs_of(read_examples([tmp_path / "docs"], "classification")) == [("球赛\n第二段", "体育"), ("比分", "体育"), ("股市", "财经")]


def test_fasttext_lines(tmp_path):
    path = write(tmp_path / "a.txt", "__label__cat __label__pet purrs\n__label__dog barks\n")
    assert [example.label for example in read_examples([path], "multi_label").examples] == [["cat", "pet"], ["dog"]]
    found = read_examples([path], "classification")
    assert pairs_of(found) == [("barks", "dog")] and "several labels" in found.bad[0].reason


def test_mapping_by_place_wrong_names_and_lists_of_columns(tmp_path):
    path = write(tmp_path / "a.csv", "title,body,kind\nT1,first body,x\nT2,second body,y\n")
    assert pairs_of(read_examples([path], "classification", {"text": ["title", "body"], "label": 3})) == [("T1\nfirst body", "x"), ("T2\nsecond body", "y")]
    with pytest.raises(ConfigError, match="did you mean kind"):
        read_examples([path], "classification", {"label": "kinds"})
    with pytest.raises(ConfigError, match="did you mean label"):
        read_examples([path], "classification", {"lable": "kind"})
    with pytest.raises(ConfigError, match="did you mean classification"):
        read_examples([path], "clasification")
    with pytest.raises(ConfigError, match="no table of names"):
        read_examples([path], "classification", {"labels": ["a", "b"]})


def test_nothing_to_be_read_says_why(tmp_path):
    with pytest.raises(DataError, match="columns: a, b"):
        read_examples([write(tmp_path / "a.csv", "a,b\n1,2\n3,4\n")], "classification")
    with pytest.raises(DataError, match="no such file"):
        read_examples([tmp_path / "none.csv"], "classification")
    with pytest.raises(DataError, match="holds no text"):
        read_examples([tmp_path / "b.bin"] if (tmp_path / "b.bin").write_bytes(bytes(range(256)) * 20) else [], "classification")
    with pytest.raises(DataError, match="no example"):
        read_examples([write(tmp_path / "empty.jsonl", "")], "classification")


def test_rows_frames_and_weights(tmp_path):
    rows = [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}]
    assert pairs_of(read_examples(rows, "classification")) == pairs_of(read_examples(pandas.DataFrame(rows), "classification")) == [("a", "x"), ("b", "y")]
    one, two = lines(tmp_path / "1.jsonl", rows), lines(tmp_path / "2.jsonl", [{"text": f"t{n}", "label": "x"} for n in range(10)])
    found = read_examples([one, two], "classification", weights=[2.5, 0.3])
    assert [example.text for example in found.examples][:4] == ["a", "b", "a", "b"] and len(found.examples) == 5 + 3
    assert found.counts == {"upsampled": 3, "weighted away": 7}
    with pytest.raises(ConfigError, match="1 weights for 2 paths"):
        read_examples([one, two], "classification", weights=[1])
    with pytest.raises(ConfigError, match="no number of times"):
        read_examples([one], "classification", weights=[0])


def test_what_was_recognised_is_shown_in_both_languages(tmp_path, capsys):
    path = write(tmp_path / "a.csv", "review,stars\n" + "".join(f"words {n},{n % 3}\n" for n in range(30)) + ",1\n")
    found = read_examples([path], "classification")
    found.show()
    shown = capsys.readouterr().err
    assert "30 examples for the task classification in a.csv" in shown and "words 10 → 1" in shown and "a.csv:32" in shown
    set_language("zh")
    try:
        found.show()
    finally:
        set_language(None)
    assert "30 个样本" in capsys.readouterr().err


def test_a_json_object_that_holds_a_whole_table(tmp_path):
    frame = pandas.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    for orient in ("list", "records", "columns", "index"):
        path = tmp_path / f"{orient}.json"
        if orient == "list":
            path.write_text(json.dumps(frame.to_dict("list")))
        else:
            frame.to_json(path, orient=orient)
        assert pairs_of(read_examples([path], "classification")) == [("a", "x"), ("b", "y"), ("c", "x")], orient
    found = read_examples([write(tmp_path / "one.json", '{"text": "alone", "label": "x"}')], "classification")
    assert pairs_of(found) == [("alone", "x")]


def test_a_label_is_never_taken_for_the_text(tmp_path):
    with pytest.raises(DataError, match="recognised as text"):
        read_examples([lines(tmp_path / "a.jsonl", [{"text": {"inner": "a"}, "label": "y"}])], "classification")
    with pytest.raises(DataError, match="holds no records"):
        read_examples([write(tmp_path / "a.csv", "text,label\n")], "classification")


def test_list_of_names_beside_the_data_is_no_data(tmp_path):
    lines(tmp_path / "train.jsonl", [{"text": "a", "label": "x"}, {"text": "b", "label": "y"}])
    write(tmp_path / "categories.json", '["x", "y"]')
    found = read_examples([tmp_path], "classification")
    assert len(found.examples) == 2 and [(bad.line, bad.reason) for bad in found.bad] == [(0, "not read: a list of 2 names, no records")]
    assert recognise_task(tmp_path)[0] == "classification"
