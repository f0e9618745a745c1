"""Heads of Luban's own on every family: they are saved, read back the same, and leave a trunk that transformers opens."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.config_json import read_config
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model

MARKERS = Head("sequence", "relation", ("a", "b", "c"), "single_label", {"pooling": "markers", "markers": ["[E1]"]})
PAIRS = Head("pairs", "joint_relation", ("a", "b"), settings={"tags": ["O", "B-x", "I-x"], "pair_width": 4})
SIZES = {"layers": 2, "hidden_size": 16, "heads": 2, "feed_forward_size": 32, "vocabulary_size": 60, "maximum_positions": 32}
FAMILIES = {
    "bert": {}, "roberta": {}, "gpt2": {}, "bart": {}, "t5": {},
    "llama": {"key_value_heads": 1}, "luban-bilstm": {"heads": None, "feed_forward_size": None},
}  # fmt: skip


def model_of(architecture: str, head: Head | None) -> torch.nn.Module:
    fields = {name: value for name, value in {**SIZES, **FAMILIES[architecture]}.items() if value is not None}
    model = build_model(build(family_of(architecture).shape, {"architecture": architecture, **fields}).resolved()).initialize(3)
    return (model.with_head(head, 4) if head else model).eval()


@pytest.mark.parametrize("architecture", FAMILIES)
@pytest.mark.parametrize("head", [MARKERS, PAIRS], ids=["markers", "pairs"])
def test_a_directory_gives_the_same_scores_back(tmp_path, architecture: str, head: Head):
    model = model_of(architecture, head)
    tokens, extra = torch.arange(3, 17).view(2, 7), {"markers": torch.tensor([[1, 3], [6, 0]])}
    segments = torch.zeros(2, 7, dtype=torch.int32)
    hidden = model(tokens, segments=segments)
    found = model.scores(hidden, tokens, segments, extra)
    assert found.shape == ((2, 3) if head is MARKERS else (2, 7, 3 + 7 * 2))
    if head is MARKERS:
        wanted = [model.classifier.weight @ torch.cat([hidden[row, one], hidden[row, two]]) + model.classifier.bias for row, (one, two) in enumerate(extra["markers"])]
        torch.testing.assert_close(found, torch.stack(wanted))
    save_model(model, tmp_path)
    again = load_model(tmp_path)
    assert again.head == head
    torch.testing.assert_close(again.scores(again(tokens, segments=segments), tokens, segments, extra), found)


@pytest.mark.parametrize("architecture", ["bert", "roberta", "gpt2", "llama"])
def test_config_json_names_the_class_that_opens_the_trunk(tmp_path, architecture: str):
    model = model_of(architecture, MARKERS)
    save_model(model, tmp_path)
    plain = read_config(tmp_path)
    assert plain["luban_head"]["settings"]["pooling"] == "markers" and plain["id2label"] == {"0": "a", "1": "b", "2": "c"}
    trunk = transformers.AutoModel.from_pretrained(tmp_path).eval()
    assert plain["architectures"] == [type(trunk).__name__]
    tokens = torch.arange(3, 17).view(2, 7)
    torch.testing.assert_close(trunk(tokens).last_hidden_state, model(tokens), atol=1e-5, rtol=1e-5)


def test_a_language_model_takes_such_a_head_and_gives_it_up(tmp_path):
    save_model(model_of("bert", None), tmp_path / "plain")
    model = load_model(tmp_path / "plain", head=PAIRS, seed=7)
    assert not hasattr(model, "cls") and model.luban_pairs.tags.weight.std() > 0
    save_model(model, tmp_path / "pairs")
    other = load_model(tmp_path / "pairs", head=Head("token", "tagging", ("O", "B-x", "I-x")), seed=7)
    assert not hasattr(other, "luban_pairs") and other.classifier.weight.shape == (3, 16)
    torch.testing.assert_close(other(torch.arange(5)[None]), model(torch.arange(5)[None]))


def test_a_family_of_transformers_has_none(tmp_path):
    config = transformers.DistilBertConfig(vocab_size=60, dim=16, n_layers=1, n_heads=2, hidden_dim=32, max_position_embeddings=32)
    transformers.DistilBertForMaskedLM(config).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="no head for relation with marked places"):
        load_model(tmp_path, head=MARKERS)
    assert json.loads((tmp_path / "config.json").read_text())["architectures"] == ["DistilBertForMaskedLM"]
