"""Baselines of the tasks on texts: what a dictionary, the words between two entities, and shared words can do."""

from __future__ import annotations

import pytest

from luban.evaluation.baselines import baselines_of
from luban.examples.tasks import Question, RelationText, Span, TaggedText
from luban.fitting.overlap import SentenceOverlap, sentences
from luban.metrics.tasks import score_task


def test_a_dictionary_tags_what_it_knows():
    known = [TaggedText("anna saw paris", [Span(0, 4, "person"), Span(9, 14, "place")]), TaggedText("in paris", [Span(3, 8, "place")])]
    rows = baselines_of("tagging", known, [TaggedText("paris, anna, lima", [])])
    assert [row[:2] for row in rows] == [("dictionary", "baseline")]
    assert [(span["start"], span["end"], span["label"]) for span in rows[0][2][0]["spans"]] == [(0, 5, "place"), (7, 11, "person")]


def test_the_words_between_two_entities_tell_the_relation():
    def example(head: str, word: str, tail: str, label: str) -> RelationText:
        text = f"today {head} {word} {tail} again"
        return RelationText(text, Span(6, 6 + len(head), ""), Span(7 + len(head) + len(word), 7 + len(head) + len(word) + len(tail), ""), label)

    names = ["anna", "boris", "clara", "dora", "emil", "fred"]
    known = [example(a, word, b, label) for a in names for b in names[:3] for word, label in (("met", "meets"), ("hired", "hires"))]
    known += [known[0]] * 3
    asked = [example("gina", "hired", "hugo", "hires"), example("gina", "met", "hugo", "meets")]
    said = {name: [one["label"] for one in predictions] for name, _, predictions in baselines_of("relation", known, asked)}
    assert said == {"majority": ["meets", "meets"], "tfidf-linear": ["hires", "meets"]}
    swapped = [RelationText(one.text, one.tail, one.head, f"{one.label}_by") for one in known]
    linear = baselines_of("relation", known + swapped, [RelationText(one.text, one.tail, one.head, "") for one in asked])[1][2]
    assert [one["label"] for one in linear] == ["hires_by", "meets_by"]


def test_triples_follow_the_labels_of_their_entities():
    known = [TaggedText("anna saw paris", [Span(0, 4, "person"), Span(9, 14, "place")], [(0, 1, "visits")])]
    asked = [TaggedText("paris with anna", [Span(0, 5, "place"), Span(11, 15, "person")], [(1, 0, "visits")])]
    ((name, _, predictions),) = baselines_of("joint_relation", known, asked)
    assert name == "dictionary" and score_task("joint_relation", predictions, asked)["triple_micro_f1"].value == 1.0


def test_the_sentence_that_shares_the_rarest_words_answers():
    context = "The river Rhine is long. It has 3.5 bridges, e.g. in Basel! The bridge of Basel was built in 1225."
    asked = Question("When was the bridge of Basel built?", context, [("1225", 93)])
    said = SentenceOverlap([context]).predict([asked])[0]
    assert said["answer"] == "The bridge of Basel was built in 1225" == context[said["start"] : said["end"]]
    ((name, _, predictions),) = baselines_of("question_answering", [asked], [asked])
    assert name == "sentence-overlap" and predictions == [said]


@pytest.mark.parametrize("question, answer", [("上海在哪里", "上海在东边"), ("xyz", ""), ("", "")])
def test_chinese_sentences_are_compared_by_character(question: str, answer: str):
    assert SentenceOverlap(["北京在北边。上海在东边！"]).answer(question, "北京在北边。上海在东边！")["answer"] == answer


def test_sentences_hold_every_word():
    text = "  One 3.5 two. Three?! Four…\n\n五。六！ seven"
    found = [text[start:end] for start, end in sentences(text)]
    assert found == ["One 3.5 two", "Three", "Four…", "五", "六", "seven"] and sentences("") == sentences(" .!\n") == []


def test_tasks_without_a_baseline_have_none():
    assert baselines_of("generation", [], []) == []
