"""Questions, translations, summaries, choices and rankings in the shapes that people write them in."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from luban.examples.reading import read_examples, recognise_task
from luban.examples.tasks import Choice, Question, Ranking
from luban.foundation.errors import ConfigError, DataError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def lines(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


# -------------------------------------------------------------------------------------------------- questions

CONTEXT = "鲁班是春秋时期鲁国人，他发明了锯。"
ASKED, ANSWER = "鲁班是哪国人？", ("鲁国", 7)


def nested(answers: list, **more) -> dict:
    return {"version": "1.1", "data": [{"title": "鲁班", "paragraphs": [{"context": CONTEXT, "qas": [{"id": "q1", "question": ASKED, "answers": answers, **more}]}]}]}


FLAT = {
    "hugging face": {"id": "q1", "question": ASKED, "context": CONTEXT, "answers": {"text": ["鲁国"], "answer_start": [7]}},
    "list of dicts": {"id": "q1", "question": ASKED, "context": CONTEXT, "answers": [{"text": "鲁国", "answer_start": 7}]},
    "text and start": {"id": "q1", "问题": ASKED, "文章": CONTEXT, "答案": "鲁国", "answer_start": 7},
    "text alone": {"id": "q1", "question": ASKED, "passage": CONTEXT, "answer": "鲁国"},
    "cmrc": {"context_id": "c", "context_text": CONTEXT, "qas": [{"query_id": "q1", "query_text": ASKED, "answers": ["鲁国"]}]},
}


@pytest.mark.parametrize("name", FLAT)
def test_flat_questions(tmp_path, name):
    found = read_examples([lines(tmp_path / "a.jsonl", [FLAT[name]])], "question_answering")
    assert found.examples == [Question(ASKED, CONTEXT, [ANSWER], "q1", f"{tmp_path / 'a.jsonl'}:1")]
    assert recognise_task(tmp_path / "a.jsonl")[0] == "question_answering" and found.bad == []


@pytest.mark.parametrize("indent", [None, 1])
def test_squad_of_both_versions(tmp_path, indent):
    data = nested([{"text": "鲁国", "answer_start": 7}])
    data["data"][0]["paragraphs"][0]["qas"].append({"id": "q2", "question": "他住在哪里？", "answers": [], "is_impossible": True, "plausible_answers": [{"text": "鲁国", "answer_start": 7}]})
    path = write(tmp_path / "dev-v2.0.json", json.dumps(data, ensure_ascii=False, indent=indent))
    found = read_examples([path], "question_answering")
    assert [(question.identity, question.answers) for question in found.examples] == [("q1", [ANSWER]), ("q2", [])]
    assert found.counts == {"unanswerable": 1} and recognise_task(path) == ["question_answering"]


def test_a_wrong_position_is_repaired_or_the_question_set_aside(tmp_path):
    answers = {"q1": ("发明了锯", 0), "q2": ("鲁", 3), "q3": ("铁", 1), "q4": ("鲁国", 7)}
    data = nested([])
    data["data"][0]["paragraphs"][0]["qas"] = [{"id": name, "question": "？？", "answers": [{"text": words, "answer_start": start}]} for name, (words, start) in answers.items()]
    found = read_examples([write(tmp_path / "a.json", json.dumps(data))], "question_answering")
    assert [(question.identity, question.answers) for question in found.examples] == [("q1", [("发明了锯", CONTEXT.index("发明"))]), ("q4", [ANSWER])]
    assert found.counts["answers repaired"] == 1
    assert [bad.reason.partition(":")[0] for bad in found.bad] == ["question q2", "question q3"]
    # what was answered never turns into a question without an answer
    assert all(question.answers for question in found.examples)


def test_answers_without_position_stand_first_and_are_counted(tmp_path):
    found = read_examples([lines(tmp_path / "a.jsonl", [{"question": "q", "context": "a b a", "answer": "a"}, {"question": "", "context": "a", "answer": "a"}, {"question": "q", "context": None, "answer": "a"}])], "question_answering")
    assert found.examples[0].answers == [("a", 0)] and found.counts["answers searched"] == 1
    assert [(bad.line, bad.reason) for bad in found.bad] == [(2, "the question is empty"), (3, "the context is missing")]


def test_a_paragraph_in_the_wrong_shape_is_named(tmp_path):
    data = {"data": [{"paragraphs": [{"context": "x"}, {"context": CONTEXT, "qas": ["?", {"id": "q1", "question": ASKED, "answers": [{"text": "鲁国", "answer_start": 7}]}]}]}, {"paragraphs": 3}]}
    found = read_examples([write(tmp_path / "a.json", json.dumps(data))], "question_answering")
    assert len(found.examples) == 1 and len(found.bad) == 3


# -------------------------------------------------------------------------------------------------- parallel text

PAIRS = [("Good morning.", "早上好。"), ("Thank you.", "谢谢。")]


def translations(found) -> list[tuple[str, str]]:
    return [(pair.input, pair.output) for pair in found.examples]


def corpus(folder: Path) -> None:
    write(folder / "corpus.en", "".join(f"{english}\n" for english, _ in PAIRS))
    (folder / "corpus.zh.gz").write_bytes(gzip.compress("".join(f"{chinese}\r\n" for _, chinese in PAIRS).encode()))


@pytest.mark.parametrize("paths", [["corpus.en", "corpus.zh.gz"], ["corpus.en,corpus.zh.gz"], ["corpus.en"], ["corpus"], ["."]])
def test_two_files(tmp_path, monkeypatch, paths):
    corpus(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = read_examples([Path(path) for path in paths], "text_pairs")
    assert translations(found) == PAIRS and found.format == "two_files"
    assert translations(read_examples(paths, "text_pairs", {"input": "zh"})) == [(two, one) for one, two in PAIRS]
    assert read_examples(paths, "embedding").examples[1] == Ranking("Thank you.", ["谢谢。"], [1.0], found.examples[1].source)


def test_two_files_of_different_length_are_refused(tmp_path):
    corpus(tmp_path)
    write(tmp_path / "corpus.en", "one\ntwo\nthree\n")
    with pytest.raises(DataError, match="has 3 lines and .* has 2"):
        read_examples([tmp_path], "text_pairs")
    with pytest.raises(ConfigError, match="neither"):
        read_examples([tmp_path], "text_pairs", {"input": "fr"})


def test_an_empty_or_undecodable_half_is_named_and_the_rest_stays_aligned(tmp_path):
    (tmp_path / "a.en").write_bytes(b"one\n\xff\nthree\n\nfive\n")
    (tmp_path / "a.de").write_bytes(b"eins\nzwei\n\n\nf\xc3\xbcnf\n")
    found = read_examples([tmp_path / "a.en", tmp_path / "a.de"], "text_pairs")
    assert translations(found) == [("one", "eins"), ("five", "fünf")]
    assert sorted((bad.line, bad.reason.split(" (")[0]) for bad in found.bad) == [(2, "not valid utf-8"), (2, "the other half of this line cannot be read"), (3, "the output is empty")]


TABLES = {
    "translation.jsonl": "".join(json.dumps({"translation": {"en": one, "zh": two}}) + "\n" for one, two in PAIRS),
    "columns.jsonl": "".join(json.dumps({"id": n, "src": one, "tgt": two}) + "\n" for n, (one, two) in enumerate(PAIRS)),
    "languages.csv": "en,zh\n" + "".join(f"{one},{two}\n" for one, two in PAIRS),
    "chinese.csv": "原文,译文\n" + "".join(f"{one},{two}\n" for one, two in PAIRS),
    "bare.tsv": "\ufeff" + "".join(f"{one}\t{two}\n" for one, two in PAIRS),
    "bare.txt": "".join(f"{one}\t{two}\r\n" for one, two in PAIRS),
}


@pytest.mark.parametrize("name", TABLES)
def test_tables_of_pairs(tmp_path, name):
    path = write(tmp_path / name, TABLES[name])
    assert translations(read_examples([path], "text_pairs")) == PAIRS
    assert "text_pairs" in recognise_task(path)


def test_the_direction_of_a_translation_is_chosen(tmp_path):
    path = write(tmp_path / "a.jsonl", TABLES["translation.jsonl"])
    assert translations(read_examples([path], "text_pairs", {"input": "zh", "output": "en"})) == [(two, one) for one, two in PAIRS]


def test_lists_of_sentences_several_outputs_and_controls(tmp_path):
    rows = [{"source": ["First.", "Second."], "target": ["One.", "Two."], "style": "plain", "keys": ["a", "b"]}, {"source": ["甲。", "乙。"], "target": ["丙。"], "style": None, "keys": []}, {"source": [], "target": ["x"], "style": "", "keys": []}]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "text_pairs", {"controls": {"style": "style", "keywords": "keys"}})
    assert translations(found) == [("First. Second.", "One."), ("First. Second.", "Two."), ("甲。乙。", "丙。")]
    assert [pair.controls for pair in found.examples] == [{"style": "plain", "keywords": "a b"}] * 2 + [{}]
    assert found.counts["several outputs"] == 1 and found.bad[0].line == 3


TMX = """<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE tmx SYSTEM "tmx14.dtd">
<tmx version="1.4"><header srclang="en" datatype="plaintext"/><body>
<tu><tuv xml:lang="en"><seg>Press <bpt i="1">&lt;b&gt;</bpt>Save<ept i="1">&lt;/b&gt;</ept> &amp; go</seg></tuv><tuv xml:lang="zh-CN"><seg>按<hi>保存</hi></seg></tuv></tu>
<tu><tuv lang="EN-us"><seg>only English</seg></tuv></tu>
<tu><tuv xml:lang="zh-CN"><seg>关闭</seg></tuv><tuv xml:lang="en"><seg>Close</seg></tuv></tu>
</body></tmx>"""


def test_tmx(tmp_path):
    path = write(tmp_path / "memory.tmx", TMX)
    found = read_examples([path], "text_pairs")
    assert translations(found) == [("Press Save & go", "按保存"), ("Close", "关闭")]
    assert found.mapping == {"input": "en", "output": "zh-CN"} and found.bad[0].line == 5
    assert translations(read_examples([path], "text_pairs", {"input": "zh", "output": "en"}))[1] == ("关闭", "Close")
    with pytest.raises(ConfigError, match="no language 'fr'"):
        read_examples([path], "text_pairs", {"output": "fr"})
    assert recognise_task(path) == ["text_pairs", "embedding"]


@pytest.mark.parametrize("entity", ['<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">', '<!ENTITY x SYSTEM "file:///etc/hostname">', '<!ENTITY % p "x">'])
def test_xml_entities_are_refused(tmp_path, entity):
    path = write(tmp_path / "a.tmx", TMX.replace('<!DOCTYPE tmx SYSTEM "tmx14.dtd">', f"<!DOCTYPE tmx [{entity}]>"))
    with pytest.raises(DataError, match="declares the XML entity"):
        read_examples([path], "text_pairs")


def test_a_tmx_that_is_cut_off_keeps_what_was_whole(tmp_path):
    found = read_examples([write(tmp_path / "a.tmx", TMX[: TMX.index("<tu><tuv xml:lang=\"zh")])], "text_pairs")
    assert len(found.examples) == 1 and "not valid XML from here on" in found.bad[0].reason


# -------------------------------------------------------------------------------------------------- choices

OPTIONS = ["red", "green", "blue"]
CHOICES = {
    "index": {"query": "Which?", "choices": OPTIONS, "gold": 1},
    "letter": {"question": "Which?", "options": OPTIONS, "answer": "B"},
    "letters in front": {"question": "Which?", "options": ["(A)red", "(B) green", "(C)blue"], "label": "B", "passage": None},
    "words": {"question": "Which?", "choices": OPTIONS, "answer": "green"},
    "columns of letters": {"Question": "Which?", "A": "red", "B": "green", "C": "blue", "Answer": "B"},
    "numbered columns": {"prompt": "Which?", "choice1": "red", "choice2": "green", "choice3": "blue", "label": 1},
    "hugging face arc": {"question": "Which?", "choices": {"text": OPTIONS, "label": ["1", "2", "3"]}, "answerKey": "2"},
    "arc": {"id": "x", "question": {"stem": "Which?", "choices": [{"text": text, "label": label} for text, label in zip(OPTIONS, "ABC", strict=True)]}, "answerKey": "B"},
    "chinese": {"题目": "Which?", "选项": OPTIONS, "答案": "B"},
    "endings": {"ctx": "Which?", "endings": OPTIONS, "label": "1"},
}


@pytest.mark.parametrize("name", CHOICES)
def test_shapes_of_choices(tmp_path, name):
    other = {**CHOICES[name], **({"label": 0} if name == "numbered columns" else {})}
    found = read_examples([lines(tmp_path / "a.jsonl", [CHOICES[name], other])], "choice")
    assert found.examples[0] == Choice("Which?", OPTIONS, 1, f"{tmp_path / 'a.jsonl'}:1") and found.bad == []
    assert recognise_task(tmp_path / "a.jsonl")[0] == "choice"


def test_answers_that_count_from_one(tmp_path):
    rows = [{"question": f"q{n}", "choices": OPTIONS, "answer": n} for n in (1, 3, 2)]
    assert [choice.answer for choice in read_examples([lines(tmp_path / "a.jsonl", rows)], "choice").examples] == [0, 2, 1]
    assert [choice.answer for choice in read_examples([lines(tmp_path / "a.jsonl", rows[2:])], "choice", {"first": 1}).examples] == [1]


def test_copa_says_cause_and_effect_in_words(tmp_path):
    rows = [{"premise": "The man fell.", "choice1": "He tripped.", "choice2": "He sang.", "question": "cause", "label": 0}, {"premise": "他摔倒了。", "choice1": "他唱歌。", "choice2": "他受伤了。", "question": "effect", "label": 1}]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "choice")
    assert [(choice.prompt, choice.answer) for choice in found.examples] == [("The man fell because", 0), ("他摔倒了，所以", 1)]


def test_choices_that_cannot_be(tmp_path):
    rows = [{"question": "q", "choices": OPTIONS, "answer": answer} for answer in ("B", "E", 7, "purple", None)] + [{"question": "q", "choices": ["one"], "answer": "A"}, {"question": "q", "choices": ["a", ""], "answer": "A"}]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "choice")
    assert [choice.answer for choice in found.examples] == [1, None] and found.counts["unlabelled"] == 1
    assert [bad.line for bad in found.bad] == [2, 3, 4, 6, 7]


# -------------------------------------------------------------------------------------------------- rankings

RANKINGS = {
    "bge": {"query": "q", "pos": ["good"], "neg": ["bad", "worse"]},
    "triplet": {"anchor": "q", "positive": "good", "negative": ["bad", "worse"]},
    "documents": {"query": "q", "documents": ["good", "bad", "worse"], "grades": [1, 0, 0]},
    "ms marco": {"query": "q", "passages": {"passage_text": ["good", "bad", "worse"], "is_selected": [1, 0, 0]}},
    "dicts": {"question": "q", "positive_ctxs": [{"title": "t", "text": "good"}], "hard_negative_ctxs": [{"text": "bad"}, {"text": "worse"}]},
}


@pytest.mark.parametrize("name", RANKINGS)
@pytest.mark.parametrize("task", ["ranking", "embedding"])
def test_shapes_of_rankings(tmp_path, name, task):
    found = read_examples([lines(tmp_path / "a.jsonl", [RANKINGS[name]])], task)
    assert found.examples == [Ranking("q", ["good", "bad", "worse"], [1.0, 0.0, 0.0], f"{tmp_path / 'a.jsonl'}:1")]


def test_graded_rows_are_grouped_by_query(tmp_path):
    text = "query\tdocument\trelevance\ncats\tabout cats\t3\ndogs\tabout dogs\t2\ncats\tabout dogs\t0\ncats\tabout cats\t3\ncats\t\t1\ndogs\tabout cats\thigh\n"
    found = read_examples([write(tmp_path / "a.tsv", text)], "ranking")
    assert [(r.query, r.documents, r.grades) for r in found.examples] == [("cats", ["about cats", "about dogs"], [3.0, 0.0]), ("dogs", ["about dogs"], [2.0])]
    assert found.counts["repeated"] == 1 and [bad.line for bad in found.bad] == [6, 7]
    assert recognise_task(tmp_path / "a.tsv")[0] == "ranking"


def test_clicks_with_chinese_columns(tmp_path):
    found = read_examples([write(tmp_path / "a.csv", "用户,物品,是否点击\n甲,手机,1\n甲,电视,0\n乙,书,1\n")], "ranking")
    assert found.examples[0].documents == ["手机", "电视"] and found.examples[0].grades == [1.0, 0.0]


def test_pairs_for_embeddings(tmp_path):
    rows = [{"sentence1": "a cat", "sentence2": "a feline", "label": "entailment"}, {"sentence1": "a cat", "sentence2": "a dog", "label": "contradiction"}, {"sentence1": "no", "sentence2": "grade", "label": "-"}]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "embedding")
    assert [(r.query, r.documents, r.grades) for r in found.examples] == [("a cat", ["a feline", "a dog"], [1.0, 0.0])]
    assert found.bad[0].reason == "the grade is missing"
    scored = read_examples([write(tmp_path / "b.tsv", "a\tb\t4.5\nc\td\t1.0\n")], "embedding")
    assert [r.grades for r in scored.examples] == [[4.5], [1.0]]
