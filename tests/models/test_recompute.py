"""What is computed again gives the same gradients and keeps less, in every family; a budget is kept, with as little computed again as can be."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from luban.models import recompute
from luban.models.counts import activation_elements
from luban.models.families import build_model
from luban.models.narrow import hold_narrow
from luban.models.presets import preset
from luban.models.recompute_plan import plan

FAMILIES = ("tiny", "gpt2", "bert-tiny", "t5-tiny", "bart-tiny", "moe-tiny", "lstm-small", "bilstm-small", "recurrent-small")
SMALL = {"gpt2": {"layers": 2, "hidden_size": 64, "heads": 2}, "lstm-small": {"layers": 2, "hidden_size": 48, "cell_size": 64}, "bilstm-small": {"hidden_size": 48, "cell_size": 64}, "recurrent-small": {"hidden_size": 64}}


def model_of(name):
    return build_model(preset(name).updated(vocabulary_size=50, **SMALL.get(name, {}))).initialize(0).train()


def inputs_of(model, rows=2, seq=24):
    tokens = torch.randint(5, 50, (rows, seq), generator=torch.Generator().manual_seed(1))
    return (tokens,), {"source": tokens.flip(1)} if model.shape.kind == "encoder_decoder" else {}


def gradients(model, mode):
    model.recompute = mode
    model.zero_grad()
    torch.manual_seed(4)  # dropout draws the same
    tokens, source = inputs_of(model)
    states = model(*tokens, **source)
    (states * torch.arange(states.shape[-1])).square().mean().backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("name", FAMILIES)
def test_gradients_are_the_plain_ones(name):
    model = model_of(name)
    plain = gradients(model, "none")
    mixed = [recompute.MODES[index % 3] for index in range(len(model.blocks()))]
    for mode in ("selective", "full", mixed):
        for label, gradient in gradients(model, mode).items():
            assert (gradient is None) == (plain[label] is None), label
            if gradient is not None:
                torch.testing.assert_close(gradient, plain[label], rtol=1e-6, atol=1e-7, msg=label)


@pytest.mark.parametrize("name", ["tiny", "bert-tiny", "t5-tiny", "bart-tiny", "moe-tiny"])
def test_narrow_weights_of_each_family_have_the_gradients_of_wide_ones(name):
    narrow, plain = hold_narrow(model_of(name)), model_of(name)
    plain.load_state_dict({label: value.float() for label, value in narrow.state_dict().items()})
    expected, found = gradients(plain, "none"), gradients(narrow, "selective")
    for label, gradient in found.items():
        if gradient is not None:
            torch.testing.assert_close(gradient, expected[label], rtol=1e-4, atol=1e-6, msg=label)


def kept_outside(model):
    """Bytes that autograd's own saving holds after a forward pass, weights left out; what selective keeps beside autograd is not among them."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    tokens, source = inputs_of(model)
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(*tokens, **source)
    assert states.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("name", FAMILIES)
def test_less_is_kept(name):
    """The measured bytes agree with what autograd saves where it saves all, and fall from none to selective to full."""
    model = model_of(name)
    tokens, source = inputs_of(model)
    sizes = recompute.measure(model, lambda: model(*tokens, **source))
    sums = {mode: sum(size[mode] for size in sizes) for mode in recompute.MODES}
    assert len(sizes) == len(model.blocks()) and "through" not in model.__dict__
    assert sums["full"] < 0.45 * sums["none"]
    assert sums["full"] <= sums["selective"] < (1.01 if "small" in name else 0.85) * sums["none"]
    if "small" not in name:  # packing of recurrent rows stands outside the blocks
        model.recompute = "none"
        whole = kept_outside(model)
        model.recompute = "full"
        assert whole - kept_outside(model) == pytest.approx(sums["none"] - sums["full"], rel=0.15)


def test_selective_keeps_products_and_attention():
    """Of the Llama kind: its input, queries, keys, values, what attention gave and its sums, and the results of the other four products."""
    model = model_of("tiny")
    shape, rows, seq = model.shape, 2, 24
    tokens, source = inputs_of(model, rows, seq)
    (found, *_) = recompute.measure(model, lambda: model(*tokens, **source))
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    numbers = 3 * shape.hidden_size + 2 * queries + 2 * keys + 2 * shape.feed_forward_size + shape.heads
    others = 2 * seq * shape.head_dim  # the angles, which all layers share
    assert found["selective"] == pytest.approx(4 * (rows * seq * numbers + others), rel=0.03)
    assert found["none"] == pytest.approx(4 * rows * seq * activation_elements(shape) / shape.layers, rel=0.15)


def test_a_plan_computes_again_as_little_as_it_can():
    sizes = [{"none": 10, "selective": 6, "full": 1}, {"none": 30, "selective": 20, "full": 2}, {"none": 10, "selective": 6, "full": 1}]
    costs = {"none": 0, "selective": 1, "full": 100}
    for budget in range(0, 56):
        chosen = plan(sizes, budget)
        held = sum(size[mode] for size, mode in zip(sizes, chosen, strict=True))
        fitting = [plan for plan in itertools.product(recompute.MODES, repeat=3) if sum(size[mode] for size, mode in zip(sizes, plan, strict=True)) <= budget]
        if not fitting:
            assert chosen == ["full"] * 3
            continue
        assert held <= budget
        fewest = min(plan.count("full") for plan in fitting)
        assert list(chosen).count("full") == fewest
        assert fewest or sum(costs[mode] for mode in chosen) == min(sum(costs[mode] for mode in plan) for plan in fitting)


def test_a_result_that_is_changed_in_place_is_computed_again():
    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.arange(9.0).view(3, 3) / 9)

        def forward(self, states):
            made = states @ self.weight
            made.add_(1.0)
            return (made.sigmoid() @ self.weight).sin()

    found = []
    for mode in recompute.MODES:
        states = torch.ones(2, 3, requires_grad=True)
        block = Block()
        recompute.run(mode, block, states).sum().backward()
        found.append((states.grad.tolist(), block.weight.grad.tolist()))
    assert found[0] == found[1] == found[2]
