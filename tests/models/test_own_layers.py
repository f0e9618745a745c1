"""A layer written as one step of autograd against the same layer of modules, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luban.foundation.errors import ConfigError
from luban.models import own_layers, recompute
from luban.models.families import build_model
from luban.models.shape import ShapeConfig
from luban.objectives import losses
from luban.tokens.batch import Batch

pytestmark = pytest.mark.compiler
SHAPES = [(4, 4, 64, 100), (4, 2, 96, 72), (2, 1, 40, 48), (1, 1, 12, 7)]  # heads, of keys, width, feed-forward: whole and broken vectors


def decoder(heads: int, groups: int, width: int, feed_forward: int, **more):
    shape = ShapeConfig(**{"architecture": "llama"} | more, layers=2, heads=heads, key_value_heads=groups, hidden_size=width, feed_forward_size=feed_forward, vocabulary_size=70, maximum_positions=64)
    model = build_model(shape).initialize(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)) * 0.05)
    return model


def batch(packed: bool) -> Batch:
    tokens = torch.randint(3, 70, (3, 50), generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([[50], [20], [7]])
    places = torch.arange(50).expand(3, -1)
    weights = torch.rand(3, 50, generator=torch.Generator().manual_seed(2))
    return Batch(tokens, tokens.roll(-1, 1), weights, places % lengths if packed else places, (places // lengths).int() if packed else None, [])


def gradients(model, own: bool, part: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    model.own_attention = model.own_layers = own
    model.zero_grad()
    loss = losses.token_sum(model, part.__class__(**{**part.__dict__, "weights": part.weights.to(model.dtype)}))
    loss.backward()
    return loss.item(), {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("architecture", ["llama", "qwen3"])  # the second normalises queries and keys
@pytest.mark.parametrize("sizes", SHAPES)
def test_loss_and_gradients_are_those_of_the_modules(sizes, architecture, packed, monkeypatch):
    model = decoder(*sizes, architecture=architecture)
    twin = decoder(*sizes, architecture=architecture).double()
    twin.load_state_dict(model.state_dict())
    calls = []
    monkeypatch.setattr(own_layers, "through", lambda *given, through=own_layers.through: calls.append(1) or through(*given))
    loss, found = gradients(model, True, batch(packed))
    assert len(calls) == 2
    expected_loss, expected = gradients(twin, False, batch(packed))
    assert loss == pytest.approx(expected_loss, rel=1e-6)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert (one - expected[name]).norm() <= 3e-6 * expected[name].norm() + 1e-6, name


@pytest.mark.parametrize("mode", ["none", "full"])
def test_frozen_weights_and_recompute(mode):
    model = decoder(*SHAPES[1], architecture="qwen3")
    model.recompute = mode
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("k_proj" not in name and "layers.0.mlp.up" not in name and "input_layernorm" not in name)
    found, expected = (gradients(model, own, batch(True))[1] for own in (True, False))
    assert found.keys() == expected.keys()
    assert all((one - expected[name]).norm() <= 1e-5 * expected[name].norm() + 1e-6 for name, one in found.items())


def test_the_same_bits_with_any_number_of_threads():
    found, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        found.append(gradients(decoder(*SHAPES[0], architecture="qwen3"), True, batch(True)))
    torch.set_num_threads(threads)
    assert found[0][0] == found[1][0]
    assert all(torch.allclose(one, found[1][1][name], rtol=0, atol=1e-6) for name, one in found[0][1].items())  # products of other shares are torch's


def test_what_is_not_plain_stays_with_the_modules():
    plain = decoder(*SHAPES[0]).blocks()[0]
    assert own_layers.fits(plain)
    assert not own_layers.fits(decoder(*SHAPES[0], architecture="qwen2").blocks()[0])
    assert not own_layers.fits(decoder(*SHAPES[0]).double().blocks()[0])
    plain.self_attn.register_forward_hook(lambda *_: None)
    assert not own_layers.fits(plain)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("vocabulary", [1, 16, 70, 1000])
def test_cross_entropy_and_its_derivative(vocabulary, smoothing):
    torch.manual_seed(0)
    logits, bias = (torch.randn(9, vocabulary) * 30).requires_grad_(), torch.randn(vocabulary)
    targets = torch.randint(vocabulary, (9,))
    expected = F.cross_entropy(logits.double() + bias, targets, reduction="none", label_smoothing=smoothing)
    nats, slope = own_layers.cross_entropy(logits.detach().clone(), bias, targets, smoothing, True)
    torch.testing.assert_close(nats.double(), expected, rtol=1e-6, atol=2e-5)
    torch.testing.assert_close(slope, torch.autograd.grad(expected.sum(), logits)[0].float(), rtol=1e-4, atol=2e-6)
    assert own_layers.cross_entropy(logits.detach().clone(), bias, targets, smoothing, False)[1] is None


def test_what_is_no_number_is_not_lost():
    logits = torch.zeros(3, 40)
    logits[0, 7], logits[1, 39], logits[2, 0] = torch.nan, torch.inf, -torch.inf
    nats, _ = own_layers.cross_entropy(logits, None, torch.tensor([1, 2, 3]), 0.0, True)
    assert not nats[:2].isfinite().any() and nats[2].isfinite()
    model = decoder(*SHAPES[0])
    with torch.no_grad():
        model.model.layers[0].mlp.gate_proj.weight[3, 3] = torch.nan
    assert not torch.tensor(gradients(model, True, batch(False))[0]).isfinite()


def test_choices_that_exclude_each_other():
    from luban.foundation.config import build
    from luban.training.config import TrainConfig
    from luban.training.precision import choose_layers

    def chosen(attends: str = "own", **said: object) -> str:
        return choose_layers(build(TrainConfig, {"data": "tokens"} | said), attends)

    assert chosen() == "own" and chosen(recompute="full") == "own"
    assert chosen("torch") == chosen(compile=True) == chosen(recompute="selective") == chosen(layers="torch") == "torch"
    for said in ({"compile": True}, {"recompute": "selective"}):
        with pytest.raises(ConfigError, match="layers: own needs"):
            chosen(layers="own", **said)


def test_recompute_counts_what_is_kept():
    model = decoder(*SHAPES[0])
    kept = {}
    for own in (False, True):
        model.own_attention = model.own_layers = own
        kept[own] = recompute.measure(model, lambda: model(batch(False).inputs), ("none",))[0]["none"]
    assert kept[True] < kept[False]
