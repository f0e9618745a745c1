"""Vectors against transformers and a hand-made pooling, search against brute force, and directories of sentence-transformers read and written."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as functional

sys.path.insert(0, str(Path(__file__).parent.parent / "objectives"))

from group_lab import style_of, tiny_model
from text_lab import tokenizer_of_style
from transformers import AutoModel, AutoTokenizer

from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.inference.vectors import embed_texts, search, shortened
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.tokenizer.special import with_frame

TEXTS = ["春眠不觉晓，处处闻啼鸟。", "the king", "", "To be, or not to be, that is the question of the night " * 3]


def directory(folder: Path, architecture: str, **settings) -> Path:
    settings = {"pooling": "mean", "normalise": True, "maximum_tokens": 32, **settings}
    save_model(tiny_model(architecture, Head("vector", "embedding", settings=settings)).eval(), folder)
    with_frame(tokenizer_of_style(style_of(architecture))).save(folder)
    return folder


def by_hand(folder: Path, texts: list[str], pooling: str, maximum: int = 32, padding_side: str = "right") -> torch.Tensor:
    """What sentence-transformers computes: transformers' states, pooled over the mask, at length one."""
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModel.from_pretrained(folder).eval()
    given = tokenizer(texts, padding=True, truncation=True, max_length=maximum, return_tensors="pt", padding_side=padding_side)
    with torch.no_grad():
        states = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"]).last_hidden_state
    mask = given["attention_mask"][..., None].float()
    last = states[torch.arange(len(texts)), given["attention_mask"].sum(1) - 1]
    pooled = {"mean": (states * mask).sum(1) / mask.sum(1), "first": states[:, 0], "last": last}[pooling]
    return functional.normalize(pooled, dim=-1)


@pytest.mark.parametrize("architecture, pooling", [("bert", "mean"), ("bert", "first"), ("llama", "last"), ("llama", "mean"), ("gpt2", "last")])
def test_vectors_are_those_of_transformers_pooled_by_hand(tmp_path, architecture, pooling):
    folder = directory(tmp_path / "model", architecture, pooling=pooling)
    texts = TEXTS if architecture == "bert" else TEXTS[:3]  # transformers cuts the end of text of long ones
    found = Predictor.load(folder).predict(texts, rows=3)
    torch.testing.assert_close(torch.tensor([one["vector"] for one in found]), by_hand(folder, texts, pooling), rtol=1e-4, atol=1e-5)
    said = json.loads((folder / "1_Pooling" / "config.json").read_text())
    flag = {"mean": "mean_tokens", "first": "cls_token", "last": "lasttoken"}[pooling]
    assert [name for name, value in said.items() if value is True and name.startswith("pooling")] == [f"pooling_mode_{flag}"] and said["word_embedding_dimension"] == 32


def test_scores_are_cosines_and_an_item_may_shorten(tmp_path):
    predictor = Predictor.load(directory(tmp_path / "model", "bert"))
    items = [{"query": TEXTS[1], "documents": TEXTS}, {"query": TEXTS[1], "documents": TEXTS, "dimensions": 8}, {"text": TEXTS[0], "dimensions": 8}, {"query": "a", "documents": []}]
    full, short, vector, none = predictor.predict(items)
    vectors = embed_texts(predictor.model, predictor.tokenizer, TEXTS)
    assert full["scores"] == pytest.approx((vectors @ vectors[1]).tolist(), abs=1e-6) and full["scores"][1] == pytest.approx(1)
    cut = functional.normalize(vectors[:, :8], dim=-1)
    assert short["scores"] == pytest.approx((cut @ cut[1]).tolist(), abs=1e-6)
    assert vector["vector"] == pytest.approx(cut[0].tolist(), abs=1e-6) and none == {"scores": []}


def test_prompts_stand_before_texts(tmp_path):
    folder = directory(tmp_path / "model", "bert", prompts={"query": "to be: ", "document": "the king: "}, default_prompt="query")
    predictor = Predictor.load(folder)
    plain = Predictor.load(directory(tmp_path / "plain", "bert"))
    wanted = embed_texts(plain.model, plain.tokenizer, ["to be: night", "the king: night"])
    first, second = predictor.predict(["night", {"text": "night", "prompt": "document"}])
    assert first["vector"] == pytest.approx(wanted[0].tolist(), abs=1e-6) and second["vector"] == pytest.approx(wanted[1].tolist(), abs=1e-6)
    assert predictor.predict([{"query": "night", "documents": ["night"]}])[0]["scores"] == pytest.approx([float(wanted[0] @ wanted[1])], abs=1e-6)
    said = json.loads((folder / "config_sentence_transformers.json").read_text())
    assert said["prompts"]["document"] == "the king: " and said["default_prompt_name"] == "query"
    with pytest.raises(DataError, match="no prompt 'passage'"):
        predictor.predict([{"text": "night", "prompt": "passage"}])


@pytest.mark.parametrize("item, said", [({"query": "a"}, "documents"), ({"query": "a", "documents": "b"}, "documents"), ({"query": 3, "documents": []}, "query"), ({"words": "a"}, "text")])
def test_bad_items_are_named(tmp_path, item, said):
    predictor = Predictor.load(directory(tmp_path / "model", "bert"))
    with pytest.raises(DataError, match=f"item 2.*{said}"):
        predictor.predict(["fine", item])
    with pytest.raises(ConfigError, match="cannot be cut to 99"):
        predictor.predict([{"text": "a", "dimensions": 99}])


def test_search_is_exact_whatever_the_pieces(monkeypatch):
    torch.manual_seed(0)
    corpus, queries = torch.randint(-2, 3, (57, 4)).float(), torch.randint(-2, 3, (11, 4)).float()  # many ties
    products = queries @ corpus.T
    wanted = [sorted(range(57), key=lambda place: (-float(row[place]), place))[:9] for row in products]
    for corpus_rows, query_rows in ((1000, 1000), (5, 4), (1, 1)):
        monkeypatch.setattr("luban.inference.vectors.CORPUS_ROWS", corpus_rows)
        monkeypatch.setattr("luban.inference.vectors.QUERY_ROWS", query_rows)
        scores, numbers = search(corpus, queries, 9)
        assert numbers.tolist() == wanted and torch.equal(scores, products.gather(1, numbers))
    assert search(corpus[:3], queries, 9)[1].shape == (11, 3)


def test_shortened_has_length_one():
    vectors = shortened(torch.randn(3, 8, generator=torch.Generator().manual_seed(0)), 3)
    assert vectors.shape == (3, 3) and vectors.norm(dim=1).tolist() == pytest.approx([1, 1, 1])


# ---- directories that sentence-transformers wrote ------------------------------------------------------------------------


def foreign(folder: Path, modules: list[tuple[str, str]], pooling: dict) -> Path:
    """A directory as sentence-transformers writes it: config.json knows nothing of Luban."""
    directory(folder, "bert")
    plain = json.loads((folder / "config.json").read_text())
    del plain["luban_head"]
    (folder / "config.json").write_text(json.dumps(plain))
    shutil.rmtree(folder / "1_Pooling"), shutil.rmtree(folder / "2_Normalize")
    (folder / "pool").mkdir()
    (folder / "pool" / "config.json").write_text(json.dumps(pooling))
    (folder / "modules.json").write_text(json.dumps([{"idx": n, "name": str(n), "path": path, "type": f"sentence_transformers.models.{kind}"} for n, (kind, path) in enumerate(modules)]))
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 16}')
    return folder


@pytest.mark.parametrize(
    "pooling, read", [({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "first"), ({"pooling_mode": "lasttoken"}, "last"), ({"pooling_mode": ["mean"]}, "mean"), ({}, "mean")]
)
def test_pooling_and_normalisation_are_read(tmp_path, pooling, read):
    folder = foreign(tmp_path / "model", [("Transformer", ""), ("Pooling", "pool")], pooling)
    predictor = Predictor.load(folder)
    assert dict(predictor.head.settings) == {"pooling": read, "normalise": False, "maximum_tokens": 16} and predictor.task == "embedding"
    vectors = embed_texts(predictor.model, predictor.tokenizer, TEXTS)
    torch.testing.assert_close(functional.normalize(vectors, dim=-1), by_hand(folder, TEXTS, read, 16), rtol=1e-4, atol=1e-5)
    assert float(vectors.norm(dim=1).max()) > 1.5


def test_what_luban_has_no_module_for_is_refused_when_vectors_are_asked_for(tmp_path):
    dense = Predictor.load(foreign(tmp_path / "dense", [("Transformer", ""), ("Pooling", "pool"), ("Dense", "2_Dense")], {"pooling_mode": "mean"}))
    with pytest.raises(DataError, match="Dense"):
        dense.predict(["a"])
    largest = Predictor.load(foreign(tmp_path / "max", [("Transformer", ""), ("Pooling", "pool")], {"pooling_mode_max_tokens": True}))
    with pytest.raises(ConfigError, match="max"):
        largest.predict(["a"])
    (tmp_path / "max" / "modules.json").write_text("[")
    with pytest.raises(DataError, match="modules.json is damaged"):
        Predictor.load(tmp_path / "max")
