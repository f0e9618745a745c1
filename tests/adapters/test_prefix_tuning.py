"""Prefix tuning: equal to peft both ways, and to words before the text where keys and values are theirs; packed = alone; cached = read anew."""

from __future__ import annotations

import pytest
import torch
from adapter_families import OWN, made
from adapter_tools import CLASSES, FAMILIES, adapted, base, said, shake
from before_tools import SEGMENTS, TEXTS, alone, check_writing, packed, peft_says, peft_writes, same, we_write
from peft import PeftModel, PrefixTuningConfig, get_peft_model
from safetensors.torch import load_file
from test_lora import Words, opened, theirs
from transformers import AutoModelForTokenClassification

from luban.adapters.attached import attach
from luban.adapters.config import PrefixConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError
from luban.inference.cache import KeyValueCache
from luban.models.heads import Head
from luban.models.huggingface import save_model

PLAIN, NETWORK = {"method": "prefix", "tokens": 3}, {"method": "prefix", "tokens": 4, "projection": True, "projection_width": 10}
FIRST = [7, 19, 23]
ATTENDING = [family for family in OWN if family not in ("lstm", "bilstm", "recurrent", "recurrent_dot")]


def with_prefix(model, tokens: int = 3):
    attach(model, PrefixConfig(tokens=tokens), seed=1)
    shake(model, ["adapters.default.learned.vectors"])
    return model.eval()


@pytest.mark.parametrize("family", ATTENDING)
def test_each_document_of_a_row_has_the_prefix_to_itself(family):
    plain = alone(made(family).eval())
    model = with_prefix(made(family))
    wanted = alone(model)
    assert all((one - other).abs().max() > 1e-4 for one, other in zip(wanted, plain, strict=True))
    same(packed(model), wanted)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2", "mixtral", "mistral"])
def test_the_keys_of_words_are_those_words_before_the_text(family):
    """What the layers keep of words, taken for the prefix. Mistral's window reaches some of it only."""
    fields = dict(OWN[family], sliding_window=4) if family == "mistral" else OWN[family]
    OWN["now"] = fields
    try:
        plain, model = made("now").eval(), made("now").eval()
    finally:
        del OWN["now"]
    cache = KeyValueCache(plain, 1, 3)
    with torch.no_grad():
        plain(torch.tensor([FIRST]), cache=cache.rows(0, 1))
    attach(model, PrefixConfig(tokens=3), seed=1)
    kept = torch.stack([block[0] for pair in zip(cache.keys, cache.values, strict=True) for block in pair])  # [2 * layers, heads, 3, head_dim]
    model.adapters["default"].learned.vectors.data.copy_(kept.permute(2, 0, 1, 3).flatten(1))
    wanted = alone(plain, FIRST)
    same(alone(model), wanted)
    same(packed(model), wanted)
    check_writing(model)


@pytest.mark.parametrize(("family", "settings"), [*((family, PLAIN) for family in FAMILIES), *((family, NETWORK) for family in ("llama", "gpt2", "bert"))], ids=str)
def test_what_is_written_is_the_same_in_peft(family, settings, tmp_path):
    head = CLASSES if family in ("bert", "gpt2", "llama") and settings is NETWORK else None
    model = adapted(family, tmp_path / "base", settings, head)
    expected = said(model)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    assert not any("network" in name for name in load_file(tmp_path / "adapter" / "adapter_model.safetensors"))
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(peft_says(tmp_path, family, head), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("family", "layers"), [("t5", 1), ("t5", 4), ("bart", 3)])
def test_decoders_of_any_depth_have_pefts_layers(family, layers, tmp_path, monkeypatch):
    """Also with an encoder of another depth, and of t5 with heads of another width."""
    changed = {**FAMILIES[family], "decoder_layers": layers, **({"head_dim": 5} if family == "t5" else {"decoder_heads": 2})}
    monkeypatch.setitem(FAMILIES, family, changed)
    model = adapted(family, tmp_path / "base", PLAIN)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    torch.testing.assert_close(peft_says(tmp_path, family), said(model), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_what_peft_writes_opens_here(family, tmp_path):
    head = Head("token", "tagging", ("O", "B-X", "I-X")) if family == "bert" else None
    save_model(base(family, tmp_path / "language", head), tmp_path / "base")
    model = AutoModelForTokenClassification.from_pretrained(tmp_path / "base") if head else opened(tmp_path / "base", family)
    task = "TOKEN_CLS" if head else "SEQ_2_SEQ_LM" if family == "t5" else "CAUSAL_LM"
    made_by_peft = get_peft_model(model, PrefixTuningConfig(num_virtual_tokens=3, task_type=task, prefix_projection=family == "llama"))
    made_by_peft.save_pretrained(tmp_path / "adapter")
    if family == "llama":  # what peft itself reads back
        made_by_peft = PeftModel.from_pretrained(opened(tmp_path / "base", family), tmp_path / "adapter")
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), theirs(made_by_peft), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_it_writes_what_peft_writes(family, tmp_path):
    model = adapted(family, tmp_path / "base", PLAIN)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    assert check_writing(model) == peft_writes(tmp_path, family)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_pairs_are_written_as_peft_writes_them(family, tmp_path):
    model = adapted(family, tmp_path / "base", PLAIN)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    assert we_write(model) == peft_writes(tmp_path, family)


def test_a_given_part_that_is_seen_from_both_sides():
    """A prefix language model: packed is alone, and a token before the end of the given part sees that end."""
    model = with_prefix(made("gpt2"))
    given = torch.tensor([[True] * 3 + [False] * 2 + [True] * 2 + [False] * 3, [False] + [True] * 4 + [False] * 5])
    tokens = torch.tensor([[*TEXTS[0], *TEXTS[1], 0, 0], [0, *TEXTS[2], 0, 0]])
    with torch.no_grad():
        whole = model(tokens, segments=SEGMENTS, prefix=given)
        one = model(tokens[:1, 5:8], prefix=given[:1, 5:8])
        without = model(tokens[:1, 5:8])
    torch.testing.assert_close(whole[:1, 5:8], one, atol=1e-5, rtol=1e-5)
    assert (one - without)[0, 0].abs().max() > 1e-4


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(("family", "head"), [("llama", None), ("bert", CLASSES), ("t5", None), ("bart", CLASSES)])
def test_only_the_prefix_and_the_head_learn(family, head, recompute):
    model = made(family)
    model = model.with_head(head) if head else model
    attach(model, PrefixConfig(**{name: value for name, value in NETWORK.items()}), seed=1)
    model.recompute = recompute
    tokens = torch.tensor([TEXTS[0]])
    hidden = model(tokens, source=tokens) if model.shape.kind == "encoder_decoder" and head is None else model(tokens)
    (model.scores(hidden, tokens) if head else hidden).square().sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in model.parameters())
    assert all(value.grad.abs().sum() > 0 for value in model.adapters["default"].learned.parameters())
    assert {name for name, value in model.named_parameters() if value.requires_grad and not name.startswith("adapters.")} == set(model.fresh)


def test_it_comes_off_and_leaves_nothing():
    model = made("bart").eval()
    before, names, cls = alone(model), set(model.state_dict()), type(model)
    with_prefix(model)
    with pytest.raises(ConfigError, match="cannot be merged"):
        model.adapter.merge(model)
    model.adapter.detach(model)
    same(alone(model), before)
    assert set(model.state_dict()) == names and type(model) is cls


def test_what_cannot_be_is_refused():
    for family in ("lstm", "recurrent"):
        with pytest.raises(ConfigError, match=f"luban-{family} has no prefix"):
            attach(made(family), PrefixConfig(), seed=1)
    with pytest.raises(ConfigError, match="with this head"):
        attach(made("t5").with_head(Head("token", "tagging", ("O", "B"))), PrefixConfig(), seed=1)
    model = with_prefix(made("bert"))
    long = torch.full((1, 30), 5)
    for segments in (None, torch.zeros_like(long)):
        with pytest.raises(DataError, match="longer than"):
            model(long, segments=segments)
