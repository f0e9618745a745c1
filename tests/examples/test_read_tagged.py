"""Entities and relations: CoNLL columns, positions in JSON, brat, relation tables and marked sentences. seqeval is the oracle of tags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOBES, Entities

from luban.examples.conll import Scheme
from luban.examples.reading import read_examples, recognise_task
from luban.examples.tasks import Span
from luban.foundation.errors import DataError


def write(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


def lines(path: Path, rows: list) -> Path:
    return write(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def entities(example) -> list[tuple[str, str]]:
    return [(example.text[span.start : span.end], span.label) for span in example.spans]


CONLL = "-DOCSTART- -X- -X- O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\nGerman JJ B-NP B-MISC\ncall NN I-NP O\n\nPeter NNP B-NP B-PER\nBlackburn NNP I-NP I-PER\n"


def test_a_files_ending_says_conll_however_many_of_its_lines_are_broken(tmp_path):
    broken = "Anna B-PER\nwent O\n\nBoris B-PER O extra\nLima\n\n" + "Paris B-LOC\nis O\n\n" * 5
    found = read_examples([write(tmp_path / "bad.conll", broken)], "tagging")
    assert len(found.examples) == 6 and [bad.line for bad in found.bad] == [4]
    with pytest.raises(DataError, match="plain.txt: not read"):
        read_examples([write(tmp_path / "plain.txt", broken)], "tagging")


def test_conll_columns_sentences_and_places(tmp_path):
    found = read_examples([write(tmp_path / "train.txt", CONLL)], "tagging")
    first, second = found.examples
    assert first.text == "EU rejects German call" and entities(first) == [("EU", "ORG"), ("German", "MISC")]
    assert entities(second) == [("Peter Blackburn", "PER")]
    assert [first.text[start:end] for start, end in first.words] == ["EU", "rejects", "German", "call"]
    assert (first.source, second.source) == (f"{tmp_path / 'train.txt'}:3", f"{tmp_path / 'train.txt'}:8")
    assert (found.format, found.labels, recognise_task(tmp_path / "train.txt")) == ("conll", ["MISC", "ORG", "PER"], ["tagging"])
    chunks = read_examples([tmp_path / "train.txt"], "tagging", {"tags": 3})
    assert entities(chunks.examples[0]) == [("EU", "NP"), ("rejects", "VP"), ("German call", "NP")]


def test_chinese_characters_join_without_spaces(tmp_path):
    rows = [("张", "B-PER"), ("三", "I-PER"), ("在", "O"), ("N", "B-ORG"), ("B", "I-ORG"), ("A", "I-ORG"), ("打", "O"), ("球", "O")]
    found = read_examples([write(tmp_path / "a.tsv", "".join(f"{word}\t{tag}\r\n" for word, tag in rows) + "\t\r\n我\tO\r\n")], "tagging")
    assert [example.text for example in found.examples] == ["张三在NBA打球", "我"]
    assert entities(found.examples[0]) == [("张三", "PER"), ("NBA", "ORG")]


def test_chinese_words_keep_spaces_between_latin_words(tmp_path):
    found = read_examples([write(tmp_path / "a.bio", "我们 O\n用 O\nApple B-ORG\nVision I-ORG\nPro I-ORG\n开会 O\n")], "tagging")
    assert found.examples[0].text == "我们用Apple Vision Pro开会" and entities(found.examples[0]) == [("Apple Vision Pro", "ORG")]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B"]), max_size=12))
def test_bio_as_seqeval_reads_it(tags):
    ranges = [(2 * place, 2 * place + 1) for place in range(len(tags))]
    expected = [(2 * start, 2 * end + 1, label) for label, start, end in get_entities(tags)]
    assert [(span.start, span.end, span.label) for span in Scheme({"O", "B-A", "I-A", "B-B", "I-B"}).spans(tags, ranges)] == expected


@pytest.mark.parametrize("scheme, letters", [(IOBES, "BIES"), (BILOU, "BILU")])
def test_bioes_and_bilou_as_seqeval_reads_them(scheme, letters):
    begin, inside, end, single = letters
    tags = ["O", f"{single}-A", f"{begin}-B", f"{inside}-B", f"{end}-B", f"{begin}-A", f"{end}-A", f"{single}-A", "O"]
    expected = [(entity.start, entity.end, entity.tag) for entity in Entities([tags], scheme).entities[0]]
    ranges = [(place, place + 1) for place in range(len(tags))]
    assert [(span.start, span.end, span.label) for span in Scheme(set(tags)).spans(tags, ranges)] == expected


def test_io_tags_parts_of_speech_and_untyped_tags(tmp_path):
    io = read_examples([write(tmp_path / "a.txt", "Angela PER\nMerkel PER\nin O\nBerlin LOC\nBonn LOC\n\nno O\n")], "tagging", {"format": "conll"})
    assert entities(io.examples[0]) == [("Angela Merkel", "PER"), ("Berlin Bonn", "LOC")] and io.counts["spans empty"] == 1
    speech = read_examples([write(tmp_path / "b.txt", "dogs NNS\ncats NNS\nrun VBP\n. .\n\nthey PRP\nsleep VBP\n. .\n")], "tagging", {"format": "conll"})
    assert entities(speech.examples[0]) == [("dogs", "NNS"), ("cats", "NNS"), ("run", "VBP"), (".", ".")]
    words = read_examples([write(tmp_path / "c.txt", "今 B\n天 E\n好 S\n冷 S\n")], "tagging")
    assert entities(words.examples[0]) == [("今天", "entity"), ("好", "entity"), ("冷", "entity")]


def test_a_broken_line_sets_its_sentence_aside(tmp_path):
    text = "good O\nday O\n\nno\nBerlin B-LOC\n\nfine O\n\xff\n".encode("latin-1") + b"end O\n\nlast O\nI I-LOC\n"
    (tmp_path / "a.txt").write_bytes(text)
    found = read_examples([tmp_path / "a.txt"], "tagging", {"format": "conll"})
    assert [example.text for example in found.examples] == ["good day", "last I"]
    assert sorted((bad.line, bad.reason) for bad in found.bad) == [(4, "line 4 of the sentence has no word or no tag"), (7, "line 8 of the sentence cannot be read"), (8, "not valid utf-8 (byte 0 of the line)")]
    assert found.counts["tags repaired"] == 1


TEXT = "乔布斯创立了Apple公司"
WANTED = [("乔布斯", "PER"), ("Apple公司", "ORG")]
SHAPES = {
    "doccano lists": {"text": TEXT, "label": [[0, 3, "PER"], [6, 13, "ORG"]]},
    "doccano labels": {"id": 1, "text": TEXT, "labels": [[0, 3, "PER"], [6, 13, "ORG"]]},
    "spacy": [TEXT, {"entities": [[0, 3, "PER"], [6, 13, "ORG"]]}],
    "doccano dicts": {"text": TEXT, "entities": [{"id": 4, "label": "PER", "start_offset": 0, "end_offset": 3}, {"id": 5, "label": "ORG", "start_offset": 6, "end_offset": 13}], "relations": []},
    "prodigy": {"text": TEXT, "spans": [{"start": 0, "end": 3, "label": "PER"}, {"start": 6, "end": 13, "label": "ORG"}]},
    "clue": {"text": TEXT, "label": {"PER": {"乔布斯": [[0, 2]]}, "ORG": {"Apple公司": [[6, 12]]}}},
    "inclusive by its words": {"text": TEXT, "entities": [{"start_idx": 0, "end_idx": 2, "type": "PER", "entity": "乔布斯"}, {"start_idx": 6, "end_idx": 12, "type": "ORG", "entity": "Apple公司"}]},
    "words only": {"content": TEXT, "entities": [{"type": "PER", "text": "乔布斯"}, {"type": "ORG", "text": "Apple公司"}]},
    "position pairs": {"sentence": TEXT, "entities": [{"name": "乔布斯", "type": "PER", "pos": [0, 3]}, {"name": "Apple公司", "type": "ORG", "pos": [6, 13]}]},
    "words and tags": {"tokens": ["乔", "布", "斯", "创", "立", "了", "Apple", "公", "司"], "ner_tags": ["B-PER", "I-PER", "I-PER", "O", "O", "O", "B-ORG", "I-ORG", "I-ORG"]},
    "label studio": {"id": 7, "data": {"text": TEXT}, "annotations": [{"result": [{"id": "x", "value": {"start": 0, "end": 3, "text": "乔布斯", "labels": ["PER"]}}, {"id": "y", "value": {"start": 6, "end": 13, "labels": ["ORG"]}}]}]},
}


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("form", ["jsonl", "json"])
def test_shapes_of_spans(tmp_path, name, form):
    path = tmp_path / f"a.{form}"
    path.write_text(json.dumps([SHAPES[name]] * 2, ensure_ascii=False, indent=1) if form == "json" else f"{json.dumps(SHAPES[name])}\n" * 2, encoding="utf-8")
    found = read_examples([path], "tagging")
    assert [entities(example) for example in found.examples] == [WANTED] * 2
    assert found.examples[0].text == TEXT and found.bad == [] and found.labels == ["ORG", "PER"]
    assert recognise_task(path)[0] == "tagging"


def test_number_tags_get_their_names(tmp_path):
    path = lines(tmp_path / "a.jsonl", [{"tokens": ["in", "New", "York"], "ner_tags": [0, 1, 2]}])
    found = read_examples([path], "tagging", {"labels": {"0": "O", "1": "B-LOC", "2": "I-LOC"}})
    assert entities(found.examples[0]) == [("New York", "LOC")]


def test_spans_that_cannot_be_are_named_and_others_stay(tmp_path):
    text = "ab cd ab"
    spans = [[0, 2, "A"], [3, 3, "B"], [-1, 2, "C"], [6, 9, "D"], ["x", 2, "E"], [0, 5, "F"]]
    found = read_examples([lines(tmp_path / "a.jsonl", [{"text": text, "entities": spans}, {"text": "", "entities": [[0, 1, "A"]]}])], "tagging")
    assert found.examples[0].spans == [Span(0, 2, "A"), Span(0, 5, "F")]
    assert [bad.reason for bad in found.bad] == [
        "the span 3–3 (B) is empty", "the span -1–2 (C) lies outside the text of 8 characters", "the span 6–9 (D) lies outside the text of 8 characters",
        "['x', 2, 'E'] is no span: [start, end, label] is one", "the text is empty",
    ]  # fmt: skip
    assert found.counts["spans overlapping"] == 1


def test_spans_never_split_what_people_see_as_one_character(tmp_path):
    rows = [
        {"text": "cafe\u0301 bar", "entities": [[0, 4, "A"]]},  # e and its accent
        {"text": "👩\u200d💻 codes", "entities": [[0, 1, "A"]]},  # a joined emoji
        {"text": "👍🏽 yes", "entities": [[1, 2, "A"]]},  # a skin colour
    ]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "tagging")
    assert [entities(example)[0][0] for example in found.examples] == ["cafe\u0301", "👩\u200d💻", "👍🏽"]
    assert found.counts["spans widened"] == 3


def test_utf16_positions_and_moved_words_are_repaired(tmp_path):
    rows = [
        {"text": "😀 Paris and Paris", "entities": [{"start": 3, "end": 8, "label": "LOC", "text": "Paris"}]},  # JavaScript counts the face as two
        {"text": "to Rome today", "entities": [{"start": 0, "end": 4, "label": "LOC", "text": "Rome"}]},
        {"text": "a Rome b Rome", "entities": [{"start": 0, "end": 4, "label": "LOC", "text": "Rome"}]},
    ]
    found = read_examples([lines(tmp_path / "a.jsonl", rows)], "tagging")
    assert [example.spans for example in found.examples] == [[Span(2, 7, "LOC")], [Span(3, 7, "LOC")], []]
    assert found.counts["spans repaired"] == 2 and "at several places" in found.bad[0].reason


def brat(folder: Path, text: str, marks: str) -> Path:
    write(folder / "doc.ann", marks)
    return write(folder / "doc.txt", text)


def test_brat(tmp_path):
    brat(tmp_path, "Steve Jobs founded Apple\nin California.", "T1\tPER 0 10\tSteve Jobs\nT2\tORG 19 24\tApple\nT3\tLOC 28 38\tCalifornia\nT4\tX 0 5;6 10\tSteve Jobs\nR1\tfounded Arg1:T1 Arg2:T2\nR2\tin Arg1:T4 Arg2:T3\nR3\tin Arg1:T9 Arg2:T3\nE1\tBirth:T1\n#1\tNote T1\tx\n")
    for given_path in (tmp_path, tmp_path / "doc.txt", tmp_path / "doc.ann"):
        found = read_examples([given_path], "joint_relation")
        (example,) = found.examples
        assert entities(example) == [("Steve Jobs", "PER"), ("Apple", "ORG"), ("California", "LOC")] and example.relations == [(0, 1, "founded")]
        assert [(Path(bad.file).name, bad.line) for bad in found.bad] == [("doc.ann", 4), ("doc.ann", 7)]
        assert "in several pieces" in found.bad[0].reason
        assert found.counts == {"relations lost": 1, "annotations unused": 2}
    (relation,) = read_examples([tmp_path], "relation").examples
    assert (relation.label, relation.text[relation.tail.start : relation.tail.end]) == ("founded", "Apple")
    assert recognise_task(tmp_path)[0] == "tagging"


def test_brat_with_windows_line_ends_counted_either_way(tmp_path):
    brat(tmp_path, "one\r\ntwo three\r\n", "T1\tN 5 8\ttwo\r\n")
    assert entities(read_examples([tmp_path], "tagging").examples[0]) == [("two", "N")]
    brat(tmp_path, "one\r\ntwo two\r\n", "T1\tN 4 7\ttwo\r\n")
    assert read_examples([tmp_path], "tagging").examples[0].text == "one\ntwo two\n"
    (tmp_path / "doc.ann").unlink()
    with pytest.raises(DataError):
        read_examples([tmp_path / "doc.txt"], "tagging")


JOINT = {
    "doccano": {"text": TEXT, "entities": [{"id": 4, "label": "PER", "start_offset": 0, "end_offset": 3}, {"id": 9, "label": "ORG", "start_offset": 6, "end_offset": 13}], "relations": [{"id": 1, "from_id": 4, "to_id": 9, "type": "创立"}]},
    "places in the list": {"text": TEXT, "entities": [[0, 3, "PER"], [6, 13, "ORG"]], "relations": [{"head": 0, "tail": 1, "type": "创立"}]},
    "conll04": {"tokens": ["乔", "布", "斯", "创", "立", "了", "Apple", "公司"], "entities": [{"type": "PER", "start": 0, "end": 3}, {"type": "ORG", "start": 6, "end": 8}], "relations": [{"type": "创立", "head": 0, "tail": 1}]},
    "duie": {"text": TEXT, "spo_list": [{"predicate": "创立", "subject": "乔布斯", "subject_type": "PER", "object": {"@value": "Apple公司"}, "object_type": {"@value": "ORG"}}]},
    "triples": {"text": TEXT, "triple_list": [["乔布斯", "创立", "Apple公司"]]},
}


@pytest.mark.parametrize("name", JOINT)
def test_entities_with_relations(tmp_path, name):
    found = read_examples([lines(tmp_path / "a.jsonl", [JOINT[name]] * 2)], "joint_relation")
    (head, tail, label), example = found.examples[0].relations[0], found.examples[0]
    assert ([entities(example)[head][0], entities(example)[tail][0]], label) == (["乔布斯", "Apple公司"], "创立")
    if name != "triples":
        assert entities(example) == WANTED
    assert read_examples([tmp_path / "a.jsonl"], "relation").examples[0].label == "创立"


RELATIONS = {
    "opennre": {"text": TEXT, "h": {"name": "乔布斯", "pos": [0, 3]}, "t": {"name": "Apple公司", "pos": [6, 13]}, "relation": "创立"},
    "tacred": {"id": "1", "token": ["乔", "布", "斯", "创", "立", "了", "Apple", "公司"], "subj_start": 0, "subj_end": 2, "obj_start": 6, "obj_end": 7, "subj_type": "PER", "obj_type": "ORG", "relation": "创立"},
    "marks": {"sentence": "<e1>乔布斯</e1>创立了<e2>Apple公司</e2>", "label": "创立"},
    "names": {"头实体": "乔布斯", "尾实体": "Apple公司", "关系": "创立", "句子": TEXT},
}


@pytest.mark.parametrize("name", RELATIONS)
def test_one_relation_a_row(tmp_path, name):
    found = read_examples([lines(tmp_path / "a.jsonl", [RELATIONS[name]] * 2)], "relation")
    example = found.examples[0]
    assert (example.text, example.label) == (TEXT, "创立")
    assert [example.text[span.start : span.end] for span in (example.head, example.tail)] == ["乔布斯", "Apple公司"]


@pytest.mark.parametrize("last", [0, -1])  # the end counted exclusive, inclusive
def test_a_mention_at_the_end_of_a_text_is_the_one_that_is_named(tmp_path, last):
    row = {"text": "甲厂找乙厂，乙厂找甲厂", "h": {"name": "甲厂", "pos": [9, 11 + last]}, "t": {"name": "乙厂", "pos": [3, 5 + last]}, "relation": "找"}
    found = read_examples([lines(tmp_path / "a.jsonl", [row])], "relation")
    assert not found.bad and [(one.start, one.end) for one in (found.examples[0].head, found.examples[0].tail)] == [(9, 11), (3, 5)]


def test_columns_of_entities_without_a_header(tmp_path):
    rows = [("东方航空", "上航", "合并", "东方航空将与上航合并"), ("上航", "东方航空", "unknown", "东方航空与上航"), ("甲", "乙", "合并", "甲方说甲公司与乙合并"), ("甲", "丙", "unknown", "没有后者，只有甲")]
    found = read_examples([write(tmp_path / "a.txt", "".join("\t".join(row) + "\n\n" for row in rows * 3))], "relation")
    assert found.mapping == {"text": "column_4", "head": "column_1", "tail": "column_2", "label": "column_3"}
    assert len(found.examples) == 9 and found.examples[2].head == Span(3, 4, "")  # the mention nearest to the other entity
    assert [(bad.line, bad.reason) for bad in found.bad] == [(line, "the entity '丙' is not in the text") for line in (7, 15, 23)]
    assert found.counts["mentions chosen"] == 3


def test_semeval_sentences(tmp_path):
    text = '1\t"The <e1>child</e1> was put into the <e2>cradle</e2>."\r\nEntity-Destination(e1,e2)\r\nComment:\r\n\r\n2\t"A <e1>lone</e1> mark."\r\nOther\r\nComment: x\r\n\r\n3\t"No <e1>relation</e1> at <e2>all</e2>"\r\n'
    found = read_examples([write(tmp_path / "TRAIN.TXT", text)], "relation")
    (example,) = found.examples
    assert (example.text, example.head, example.tail, example.label) == ("The child was put into the cradle.", Span(4, 9, ""), Span(27, 33, ""), "Entity-Destination(e1,e2)")
    assert [bad.line for bad in found.bad] == [5, 9]


def test_a_long_document_with_many_spans(tmp_path):
    text = "北京和上海" * 20_000
    row = {"text": text, "label": [[place, place + 2, "LOC"] for place in range(0, len(text), 5)]}
    (example,) = read_examples([lines(tmp_path / "a.jsonl", [row])], "tagging").examples
    assert len(example.spans) == 20_000 and entities(example)[-1] == ("北京", "LOC")


def test_types_before_prefixes_and_underscores(tmp_path):
    for text in ("a PER-B\nb PER-I\nc O\n\nd LOC-B\n", "a B_PER\nb I_PER\nc O\n\nd B_LOC\n"):
        found = read_examples([write(tmp_path / "a.conll", text)], "tagging", {"format": "conll"})
        assert [entities(example) for example in found.examples] == [[("a b", "PER")], [("d", "LOC")]]


def test_words_and_tags_in_cells_of_a_csv_file(tmp_path):
    for text in ('sentence,tags\n"New York wins","B-ORG I-ORG O"\n"hi","O"\n', "tokens,ner_tags\n\"['New', 'York', 'wins']\",\"['B-ORG', 'I-ORG', 'O']\"\n\"['hi']\",\"['O']\"\n"):
        found = read_examples([write(tmp_path / "a.csv", text)], "tagging")
        assert [example.text for example in found.examples] == ["New York wins", "hi"] and entities(found.examples[0]) == [("New York", "ORG")]
    bad = read_examples([lines(tmp_path / "a.jsonl", [{"tokens": ["a", "b"], "ner_tags": ["O"]}, {"tokens": ["a"], "ner_tags": ["O"]}])], "tagging").bad
    assert (bad[0].line, bad[0].reason) == (1, "2 words and 1 tags")


def test_ends_are_found_out_for_a_named_column_too_and_can_be_said(tmp_path):
    row = {"body": TEXT, "found": [{"start": 0, "end": 2, "type": "PER", "word": "乔布斯"}]}
    found = read_examples([lines(tmp_path / "a.jsonl", [row])], "tagging", {"text": "body", "spans": "found"})
    assert entities(found.examples[0]) == [("乔布斯", "PER")] and found.counts["spans inclusive"] == 1
    row = {"text": TEXT, "spans": [[0, 2, "PER"]]}
    assert entities(read_examples([lines(tmp_path / "b.jsonl", [row])], "tagging", {"end": "inclusive"}).examples[0]) == [("乔布斯", "PER")]
