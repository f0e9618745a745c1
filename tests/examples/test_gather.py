"""Texts of labelled files as a corpus, and the tokenizer that a task with a new model implies."""

from __future__ import annotations

import pytest

import luban
from luban.corpus.documents import read_documents
from luban.examples.gather import texts
from luban.examples.splitting import place
from luban.examples.tasks import Choice, LabeledText, Question, Ranking, TextPair
from luban.foundation.errors import DataError
from luban.pipeline.implied import READS, with_implied_stages


def gathered(folder, content, name="pairs.tsv", **config):
    (folder / name).write_text(content, encoding="utf-8")
    stages = {"texts": {"kind": "gather", "data": str(folder / name), **config}}
    return luban.run({"name": "g", "seed": 1, "stages": stages}, out=folder / "run")[0]


def test_every_text_is_there_once_on_the_side_its_content_says(tmp_path):
    pairs = [(f"the king {number // 2}", f"春风 {number}") for number in range(40)]
    artifact = gathered(tmp_path, "input\toutput\n" + "\n".join("\t".join(pair) for pair in pairs), task="text_pairs", validation_share=0.3)
    found = {split: [document.text for document in read_documents(artifact.path, split)] for split in ("train", "validation")}
    together = found["train"] + found["validation"]
    assert sorted(together) == sorted({text for pair in pairs for text in pair})
    assert all(place(text) < 0.3 for text in found["validation"]) and all(place(text) >= 0.3 for text in found["train"])
    assert artifact.metrics["documents"] == {split: len(found[split]) for split in found}


def test_every_kind_of_example_gives_its_texts():
    assert list(texts(LabeledText("a", "b", "c"))) == ["a", "b"]
    assert list(texts(TextPair("a", "b", {"tone": "kind"}))) == ["kind", "a", "b"]
    assert list(texts(Question("a", "b", []))) == ["a", "b"]
    assert list(texts(Choice("a", ["b", " "], 0))) == ["a", "b"]
    assert list(texts(Ranking("a", ["b", "c"], [1, 0]))) == ["a", "b", "c"]


def test_what_cannot_be_read_is_left_to_the_reader_and_no_text_is_an_error(tmp_path):
    artifact = gathered(tmp_path, '{"text": "\\ud800 king", "label": "a"}\n{"text": "queen", "label": "b"}\n', "data.jsonl", task="classification", validation_share=0)
    assert [document.text for document in read_documents(artifact.path, "train")] == ["queen"]
    with pytest.raises(DataError):
        gathered(tmp_path, "", "empty.tsv", task="text_pairs")


@pytest.mark.parametrize("objective", READS)
def test_a_task_with_a_new_model_gets_a_tokenizer_and_only_then(tmp_path, objective):
    body = {"kind": "train", "objective": {"name": objective}, "data": "data.csv", "shape": {"architecture": "t5"}, "mapping": {"text": "review"}}
    full = with_implied_stages({"model": body}, tmp_path)
    assert list(full) == ["model-texts", "model-tokenizer", "model"] and full["model"]["tokenizer"] == "model-tokenizer"
    assert full["model-texts"] == {"kind": "gather", "data": ["data.csv"], "task": READS[objective], "mapping": {"text": "review"}}
    assert full["model-tokenizer"] == {"kind": "train_tokenizer", "corpus": ["model-texts"], "style": "t5"}
    for known in ({"model": "bert"}, {"tokenizer": "words"}):
        assert list(with_implied_stages({"model": {**body, **known}}, tmp_path)) == ["model"]
