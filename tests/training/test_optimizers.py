"""Each optimizer step by step against an independent one: torch's, transformers', or the paper's formula in float64."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from luban.models.decoder import Decoder
from luban.models.shape import ShapeConfig
from luban.planning import dial
from luban.training import blocks
from luban.training.adafactor import Adafactor
from luban.training.adamw_8bit import AdamW8bit, dequantise, dynamic_map, quantise
from luban.training.blocks import Writer
from luban.training.config import OPTIMIZERS, OptimizerConfig
from luban.training.lion import Lion
from luban.training.optimizers import ROUNDING, Optimizers
from luban.training.regularization import RegularizationConfig
from luban.training.sgd import SGD

SHAPES = ((40, 24), (24,), (3, 12, 10))
SHAPE = ShapeConfig(architecture="qwen3", vocabulary_size=200, layers=2, hidden_size=64, heads=2, key_value_heads=1, head_dim=32, feed_forward_size=96, maximum_positions=64, tied_embeddings=False)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks so small that every parameter takes several, and the last one is not whole."""
    monkeypatch.setattr(blocks, "BLOCK", 256)


def together(ours, theirs, steps=6, dtype=torch.float64, shapes=SHAPES, scale=1.0):
    """Both on the same random gradients; returns their parameters, which began alike. ``ours`` and ``theirs`` make an optimizer from parameters."""
    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) * scale for shape in shapes]
    mine, other = ([nn.Parameter(value.clone()) for value in start] for _ in range(2))
    one, two = ours(mine), theirs(other)
    for step in range(steps):
        for number, (a, b) in enumerate(zip(mine, other, strict=True)):
            a.grad = torch.randn(a.shape, generator=generator, dtype=torch.float64).to(dtype) * 10.0 ** (step - number - 3)
            b.grad = a.grad.clone()
        one.step(), two.step()
    return mine, other, one


def same(mine, other, tolerance=1e-10):
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("momentum, nesterov", [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_is_torchs(momentum, nesterov):
    mine, other, _ = together(lambda p: SGD(p, lr=0.05, momentum=momentum, nesterov=nesterov), lambda p: torch.optim.SGD(p, lr=0.05, momentum=momentum, nesterov=nesterov))
    same(mine, other)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("relative", [True, False])
def test_adafactor_is_transformers(momentum, relative):
    from transformers.optimization import Adafactor as Theirs

    mine, other, _ = together(
        lambda p: Adafactor(p, lr=0.01, momentum=momentum, weight_decay=0.1, relative=relative),
        lambda p: Theirs(p, lr=0.01, beta1=momentum or None, weight_decay=0.1, scale_parameter=relative, relative_step=False, warmup_init=False),
        dtype=torch.float32,
    )
    same(mine, other, 2e-5)


def test_adafactor_is_torchs():
    """torch's decay is by the whole rate rather than by a parameter's own, so it is off; the first floor is its own."""
    mine, other, _ = together(lambda p: Adafactor(p, lr=0.01), lambda p: torch.optim.Adafactor(p, lr=0.01, weight_decay=0.0, eps=(1e-15, 1e-3)))
    same(mine, other, 1e-8)


class ByHand:
    """A formula for one parameter at a time, in float64."""

    def __init__(self, parameters, formula):
        self.parameters, self.formula = parameters, formula
        self.states = [{} for _ in parameters]

    def step(self):
        for parameter, state in zip(self.parameters, self.states, strict=True):
            state["t"] = state.get("t", 0) + 1
            parameter.data = self.formula(parameter.data.double(), parameter.grad.double(), state).to(parameter.dtype)


def lion(p, g, s, rate=1e-3, one=0.9, two=0.99, decay=0.5):
    m = s.get("m", torch.zeros_like(p))
    s["m"] = two * m + (1 - two) * g
    return p - rate * (torch.sign(one * m + (1 - one) * g) + decay * p)


def test_lion_is_the_papers_program():
    same(*together(lambda p: Lion(p, lr=1e-3, weight_decay=0.5), lambda p: ByHand(p, lion))[:2])


def nearest(values, signed):
    """Every run of 256 by its largest magnitude, each number to the nearest value of the map: by trying all."""
    known = torch.tensor(dynamic_map(signed), dtype=torch.float64)
    flat = values.flatten()
    made = torch.empty_like(flat)
    for start in range(0, len(flat), 256):
        run = flat[start : start + 256]
        scale = run.abs().max().clamp(min=1e-300)
        made[start : start + 256] = known[(run[:, None] / scale - known).abs().argmin(1)] * scale
    return made.view(values.shape)


def adamw_8bit(p, g, s, rate=1e-2, one=0.9, two=0.95, decay=0.1):
    small = p.numel() < 4096
    m = one * s.get("m", torch.zeros_like(p)) + (1 - one) * g
    v = two * s.get("v", torch.zeros_like(p)) + (1 - two) * g * g
    s["m"], s["v"] = (m, v) if small else (nearest(m, True), nearest(v, False))
    return p * (1 - rate * decay) - rate * (m / (1 - one ** s["t"])) / ((v / (1 - two ** s["t"])).sqrt() + 1e-8)


def test_adamw_8bit_is_the_formula():
    """Codes may differ where a number lies on a border in float32 and beside it in float64, so all but a few numbers are the same."""
    mine, other, made = together(lambda p: AdamW8bit(p, lr=1e-2, weight_decay=0.1), lambda p: ByHand(p, adamw_8bit), dtype=torch.float32, shapes=((70, 61), (24,), (33, 130)), steps=3)
    for a, b in zip(mine, other, strict=True):
        close = torch.isclose(a, b, rtol=1e-4, atol=1e-5)
        assert close.float().mean() > 0.998
    assert made.state[mine[0]]["first"].dtype == torch.uint8 and made.state[mine[1]]["first"].dtype == torch.float32


def test_8_bit_codes_are_the_nearest():
    """All magnitudes from a run's largest down to what is nearest to zero, borders and their neighbours among them; hostile runs of zeros too."""
    for signed in (True, False):
        known = torch.tensor(dynamic_map(signed), dtype=torch.float64)
        assert len(set(known.tolist())) == 256 and known[-1] == 1 and (known[0] < 0) == signed
        middles = ((known[1:] + known[:-1]) / 2).float()
        tried = torch.cat([middles, middles.nextafter(torch.tensor(2.0)), middles.nextafter(torch.tensor(-2.0)), known.float(), torch.zeros(300), torch.tensor([1e-30, -1e-30 * signed])])
        tried = torch.cat([part for run in tried.split(255) for part in (torch.ones(1), run)])  # each run's largest is 1
        codes, scales = torch.empty(len(tried), dtype=torch.uint8), torch.empty(-(-len(tried) // 256))
        quantise(tried, codes, scales, signed)
        away = (dequantise(codes, scales, signed).double() - tried.double()).abs()
        assert torch.all(away <= (tried.double()[:, None] - known).abs().amin(1) + 2e-7)


def test_rounding_is_unbiased_and_independent():
    """A weight between two neighbours goes to either with the probability that keeps its mean; numbers of a matrix do not go together."""
    torch.manual_seed(0)
    weights = torch.full((2000, 50), 1.0, dtype=torch.bfloat16)  # above 1 the neighbours are 2^-7 apart
    writer, change = Writer(weights), 2.0**-7 * 0.3
    for rows in blocks.row_blocks(weights):
        writer.write(weights[rows], writer.values(weights[rows]).add_(change))
    up = (weights.double() - 1) / 2.0**-7
    assert set(up.unique().tolist()) == {0.0, 1.0}
    assert abs(float(up.mean()) - 0.3) < 5 * math.sqrt(0.3 * 0.7 / up.numel())
    assert abs(float(up.mean(1).std()) / math.sqrt(0.3 * 0.7 / 50) - 1) < 0.1  # of means of 50: as of independent ones
    assert abs(float(up.view(-1, 10).mean(0).std()) / math.sqrt(0.3 * 0.7 / 10000) - 1) < 0.8
    exact = torch.tensor([1.5, -2.25, 0.0, -0.0, 3e38, -1e-30], dtype=torch.bfloat16)
    kept = exact.clone()
    writer = Writer(kept)
    writer.write(kept, writer.values(kept))
    assert torch.equal(kept, exact)  # what bfloat16 holds stays
    down = torch.full((4096,), -1.0, dtype=torch.bfloat16)
    writer = Writer(down)
    writer.write(down, writer.values(down).sub_(change))
    assert abs(float((down.double() + 1).mean() / -(2.0**-7)) - 0.3) < 0.04


@pytest.mark.parametrize("make", [lambda p: Lion(p, lr=1e-5), lambda p: Adafactor(p, lr=1e-4), lambda p: AdamW8bit(p, lr=1e-5), lambda p: SGD(p, lr=1e-5)])
def test_small_changes_of_bfloat16_weights_are_not_lost(make, monkeypatch):
    """Sixty changes of less than a hundredth of a neighbour's distance move the mean of the weights as far as those of float32 weights."""
    monkeypatch.setattr(blocks, "BLOCK", 2048)
    torch.manual_seed(0)
    narrow, whole = nn.Parameter(torch.ones(64, 80).bfloat16()), nn.Parameter(torch.ones(64, 80))
    narrow.grad_dtype = torch.float32
    one, other = make([narrow]), make([whole])
    for _ in range(60):
        narrow.grad, whole.grad = torch.ones(64, 80), torch.ones(64, 80)
        one.step(), other.step()
    moved = 1 - float(whole.detach().mean())
    assert 1e-4 < moved < 0.1
    assert 1 - float(narrow.detach().float().mean()) == pytest.approx(moved, rel=0.15)


# ---- through Optimizers --------------------------------------------------------------------------------------------


def learning(name, model, regularization=None, **more):
    known = {"learning_rate": 1e-3, "embedding_learning_rate": 2e-3, "matrix_learning_rate": 5e-3}
    return Optimizers(model, OptimizerConfig(name=name, **{**known, **more}), regularization)


def give_gradients(model, step):
    generator = torch.Generator().manual_seed(step)
    for parameter in model.parameters():
        gradient = torch.randn(parameter.shape, generator=generator)
        parameter.grad = gradient if parameter.requires_grad else None


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("narrow", [False, True])
def test_a_stopped_run_goes_on_bit_by_bit(name, narrow):
    from luban.models.narrow import hold_narrow

    if narrow and name not in ROUNDING:
        with pytest.raises(Exception, match="cannot learn weights in bfloat16"):
            learning(name, hold_narrow(Decoder(SHAPE).initialize(0)))
        return
    momentum = {"momentum": 0.9} if name == "adafactor" else {}

    def made():
        model = Decoder(SHAPE).initialize(0)
        return hold_narrow(model) if narrow else model

    whole, model = made(), made()
    straight, first = learning(name, whole, **momentum), learning(name, model, **momentum)
    torch.manual_seed(3)
    for step in range(4):
        give_gradients(whole, step)
        straight.step(0.5)
    torch.manual_seed(3)
    for step in range(2):
        give_gradients(model, step)
        first.step(0.5)
    state, random = {key: value.clone() for key, value in first.state().items()}, torch.get_rng_state()
    again = learning(name, model, **momentum)
    again.load_state(state)
    torch.manual_seed(99)
    torch.set_rng_state(random)
    for step in range(2, 4):
        give_gradients(model, step)
        again.step(0.5)
    for (label, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(a, b), label
    assert {key: value.dtype for key, value in again.state().items()} == {key: value.dtype for key, value in straight.state().items()}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_frozen_parts_layer_decay_and_adapters_rates_hold_for_all(name):
    """The change of a matrix in the first step is in proportion to its rate."""
    model = Decoder(SHAPE).initialize(0)
    model.model.layers[1].mlp.up_proj.weight.rate = 3.0  # as an adapter says it
    optimizer = learning(name, model, RegularizationConfig(layer_decay=0.5, freeze=["norm"]), weight_decay=0.0)
    before = {label: parameter.detach().clone() for label, parameter in model.named_parameters()}
    rates = {optimizer.names[parameter]: group["peak"] for part in optimizer.parts for group in part.param_groups for parameter in group["params"]}
    give_gradients(model, 0)
    optimizer.step(1.0)
    assert not any("norm" in label for label in rates)
    for label, parameter in model.named_parameters():
        assert torch.equal(parameter, before[label]) == ("norm" in label), label
    place = "model.layers.{}.mlp.up_proj.weight"
    assert rates[place.format(1)] / rates[place.format(0)] == pytest.approx(6.0)
    by_layer = [(dict(model.named_parameters())[place.format(layer)].detach() - before[place.format(layer)]).norm() for layer in (0, 1)]
    assert float(by_layer[1] / by_layer[0]) == pytest.approx(6.0, rel=0.05)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_state_takes_the_bytes_that_are_said(name):
    wide = ShapeConfig(architecture="llama", vocabulary_size=64, layers=1, hidden_size=256, heads=4, head_dim=64, feed_forward_size=512, maximum_positions=64, tied_embeddings=False)
    model = Decoder(wide).initialize(0)
    optimizer = learning(name, model)
    give_gradients(model, 0)
    optimizer.step(1.0)
    matrices = {label: parameter for label, parameter in model.named_parameters() if "proj" in label}
    held = sum(value.numel() * value.itemsize for key, value in optimizer.state().items() if key.partition("::")[0] in matrices and value.ndim)
    bytes_each = held / sum(parameter.numel() for parameter in matrices.values())
    assert bytes_each == pytest.approx(OPTIMIZERS[name]["state_bytes"], abs=0.05)


def test_automatic_rates_follow_the_optimizer():
    rates = dial.learning_rates("adamw", 768, "causal", False)
    lion = dial.optimizer_rates(rates, "lion")["learning_rate"]
    assert 1 / 10 <= lion / rates["learning_rate"] <= 1 / 3
    assert OPTIMIZERS["lion"]["weight_decay"] * lion == pytest.approx(OPTIMIZERS["adamw"]["weight_decay"] * rates["learning_rate"], rel=0.05)
    assert {dial.relative_rates(dial.learning_rates("adafactor", width, "causal", False), width, "causal", False)["learning_rate"] for width in (128, 4096)} == {0.01}
    assert dial.relative_rates(rates, 768, "instruction", True)["learning_rate"] == 0.001
