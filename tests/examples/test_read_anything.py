"""Whatever stands in a file, reading it ends in examples, in named bad records, or in an error that says what to do."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.examples.reading import TASKS, read_examples, recognise_task, render
from luban.foundation.errors import LubanError

NAMES = ["text", "label", "labels", "sentence1", "sentence2", "entities", "spans", "tokens", "ner_tags", "relations", "spo_list", "h", "t", "relation", "question", "context", "answers", "qas", "paragraphs", "choices", "A", "B", "answer", "query", "pos", "neg", "document", "grade", "translation", "src", "tgt", "score", "标签", "文本"]  # fmt: skip
CELLS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-3, 12), st.floats(), st.sampled_from(["", " ", "a", "ab cd", "北京", "O", "B-X", "[1", "[[0,1,\"X\"]]", "\ud83d", "e\u0301", "<e1>a</e1> <e2>b</e2>"]), st.text(max_size=6)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.sampled_from(["text", "label", "start", "end", "id", "type", "pos", "head", "tail", "question", "context", "answers", "answer_start", "qas", "en", "zh", "result", "value"]), inner, max_size=4)),
    max_leaves=8,
)  # fmt: skip
ROWS = st.lists(st.dictionaries(st.sampled_from(NAMES), CELLS, min_size=1, max_size=5), min_size=1, max_size=4)


def check(path, task) -> None:
    try:
        found = read_examples([path], task)
    except LubanError as error:
        assert str(error)
        return
    assert found.examples and all(bad.reason and bad.file for bad in found.bad)
    assert all(render(example) for example in found.examples)


@pytest.mark.parametrize("task", TASKS)
def test_any_rows_for_any_task(tmp_path_factory, task):
    folder = tmp_path_factory.mktemp("rows")

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(ROWS, st.booleans())
    def run(rows, array):
        path = folder / ("a.json" if array else "a.jsonl")
        path.write_text(json.dumps(rows) if array else "".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        check(path, task)
        recognise_task(path)

    run()


def test_any_text_for_any_task(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lines")
    piece = st.sampled_from(["a", "O", "B-X", "\t", "\t", " ", ",", '"', "\n", "\n", "\r\n", "1", "text", "label", "北", "#", "<e1>", "</e1>", "__label__x ", "{", "[", "-DOCSTART-", "\u2028", "\x00", "😀"])

    @settings(max_examples=150, deadline=None)
    @given(st.lists(piece, max_size=40), st.sampled_from(["a.csv", "a.tsv", "a.txt", "a.conll", "a.jsonl", "a.tmx", "noending"]), st.sampled_from(TASKS))
    def run(pieces, name, task):
        path = folder / name
        path.write_bytes("".join(pieces).encode())
        check(path, task)

    run()
