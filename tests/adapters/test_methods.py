"""Every method on every family: it learns, only it learns, its files say it again, and merged it is the same."""

from __future__ import annotations

import copy
import os

import pytest
import torch
from adapter_families import HEADS, OWN, loss, made, outputs
from test_lora import Words

from luban.adapters.adapted import adapted_layers
from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.adapters.files import open_model, save_adapter
from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.huggingface import load_model, save_model

METHODS = {
    "lora": "lora", "dora": "dora", "pissa": {"method": "pissa", "rank": 2}, "adalora": {"method": "adalora", "rank": 2}, "vera": {"method": "vera", "rank": 12}, "ia3": "ia3",
    "houlsby": {"method": "houlsby", "reduction": 4}, "pfeiffer": {"method": "pfeiffer", "reduction": 4, "activation": "gelu"}, "bitfit": "bitfit",
}  # fmt: skip
STAY = ("houlsby", "pfeiffer")  # cannot be merged
NO_ROOM = ("qwen3", "qwen3_moe", "mistral", "mixtral", "t5")  # families without biases (qwen3: in its feed-forward part) whose shape cannot say that there are some

KIN = ("qwen2", "qwen3", "mistral", "roberta", "qwen3_moe", "marian")  # of the same classes as others
NAMED = ("lora", "ia3", "houlsby", "bitfit")  # methods that look at names or biases


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """``base(family, head)``: the directory of a family's model and a fresh copy of the model, made once."""
    known: dict = {}

    def get(family, head=None):
        if (family, head) not in known:
            folder = tmp_path_factory.mktemp(family) / "base"
            save_model(made(family), folder)
            known[family, head] = folder, load_model(folder, head=HEADS.get(head), language_model=head is None).eval()
        folder, model = known[family, head]
        return folder, copy.deepcopy(model)

    return get


def config(method: str):
    given = METHODS[method] if isinstance(METHODS[method], dict) else {"method": METHODS[method]}
    return build(NAMES[given["method"]], given)


def check(folder, model, method: str, adapter, merges: bool) -> None:
    with torch.no_grad():
        before = outputs(model)
    known = {name: value.detach().clone() for name, value in model.named_parameters()}
    attach(model, config(method), seed=7)
    with torch.no_grad():
        torch.testing.assert_close(outputs(model), before, atol=1e-5, rtol=1e-5)  # it begins as it is

    learning = {name: value for name, value in model.named_parameters() if value.requires_grad}
    assert all(".adapters.default." in name or name in model.saved_whole for name in learning)
    assert any(".adapters.default." in name for name in learning)
    first = loss(model)
    first.backward()
    assert {name for name, value in model.named_parameters() if value.grad is not None} == set(learning)
    step(learning)
    with torch.no_grad():
        assert float(loss(model)) < float(first)
        expected = outputs(model)
    if method != "pissa":  # which takes directions out of the base
        assert all(torch.equal(value, known[name]) for name, value in model.named_parameters() if name in known and name not in learning)

    save_adapter(model, adapter, folder, Words())
    again, exact = open_model(adapter), 1e-5 if method == "pissa" else 1e-6
    with torch.no_grad():
        torch.testing.assert_close(outputs(again), expected, atol=exact, rtol=exact)
        if merges:
            again.adapter.merge(again)
            assert not adapted_layers(again, "default") and not any("Adapted" in type(module).__name__ for module in again.modules())
            torch.testing.assert_close(outputs(again), expected, atol=2e-5, rtol=2e-5)
        else:
            with pytest.raises(ConfigError, match="cannot be merged"):
                again.adapter.merge(again)


@torch.no_grad()
def step(learning) -> None:
    """A step of plain descent, of a fixed length."""
    norm = torch.cat([parameter.grad.flatten() for parameter in learning.values()]).norm()
    for parameter in learning.values():
        parameter -= 0.05 * parameter.grad / norm


@pytest.mark.parametrize(("family", "method"), [(family, method) for family in OWN for method in METHODS if family not in KIN or method in NAMED])
def test_a_method_on_a_family(family, method, base, tmp_path):
    check(*base(family), method, tmp_path, merges=method not in STAY and not (method == "bitfit" and family in NO_ROOM))


UNDER = {("llama", "sequence"): ("lora", "adalora", "bitfit"), ("bert", "token"): METHODS, ("gpt2", "span"): ("vera", "ia3"), ("lstm", "sequence"): ("adalora", "houlsby"), ("t5", "token"): ("lora", "pfeiffer"), ("bart", "sequence"): ("ia3", "bitfit"), ("bert", "vector"): ("lora", "bitfit")}


@pytest.mark.parametrize(("family", "head", "method"), [(*where, method) for where, methods in UNDER.items() for method in methods])
def test_a_method_under_a_head(family, head, method, base, tmp_path):
    check(*base(family, head), method, tmp_path, merges=method not in STAY and not (method == "bitfit" and family in NO_ROOM))


@pytest.mark.parametrize("family", ["bert", "lstm", "mixtral"])
def test_activations_that_are_computed_again_give_the_same_gradients(family, base):
    found = []
    for again in (False, True):
        _, model = base(family)
        attach(model, config("adalora"), seed=7)
        with torch.no_grad():
            for value in model.parameters():
                value.add_(0.1 if value.requires_grad else 0.0)
        model.recompute = again
        loss(model).backward()
        found.append([value.grad for value in model.parameters() if value.requires_grad])
    torch.testing.assert_close(found[0], found[1])
