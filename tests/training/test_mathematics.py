"""The promises about mathematics: accumulation, packing and restarts do not change what is learned."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as functional

from luban.models.decoder import Decoder
from luban.models.shape import ShapeConfig
from luban.objectives.causal import Causal
from luban.objectives.losses import token_sum
from luban.parallel.engine import TorchEngine
from luban.tokens.batch import Batch
from luban.training.config import OptimizerConfig, ScheduleConfig
from luban.training.optimizers import Optimizers
from luban.training.schedules import make_schedule

SHAPE = ShapeConfig(architecture="qwen3", vocabulary_size=61, layers=2, hidden_size=32, heads=2, key_value_heads=1, head_dim=16, feed_forward_size=48, maximum_positions=64, query_key_norm=True)


def model_of(dtype=torch.float64) -> Decoder:
    return Decoder(SHAPE).initialize(3).to(dtype)


def rates(rate: float, **more) -> OptimizerConfig:
    return OptimizerConfig(**{"learning_rate": rate, "embedding_learning_rate": rate, "matrix_learning_rate": 2 * rate, "weight_decay": 0.1, **more})


def random_batch(rows=6, seq=12, ragged=True) -> Batch:
    generator = torch.Generator().manual_seed(5)
    tokens = torch.randint(0, 61, (rows, seq + 1), generator=generator)
    weights = torch.ones(rows, seq)
    segments = torch.zeros(rows, seq, dtype=torch.int32)
    if ragged:  # rows of different supervised length: a mean of means would be wrong
        for row in range(rows):
            weights[row, row + 2 :] = 0
    positions = torch.arange(seq).expand(rows, -1)
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, positions, segments, [f"d{row}" for row in range(rows)], [1] * rows)


def gradients(model: Decoder, batch: Batch, rows: int) -> dict[str, torch.Tensor]:
    engine = TorchEngine(model, Optimizers(model, rates(1e-3)), Causal(), rows, torch.float32)
    engine.forward_backward(batch)
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_accumulation_is_one_big_batch(rows):
    batch = random_batch()
    whole, parts = gradients(model_of(), batch, 6), gradients(model_of(), batch, rows)
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-9, atol=1e-12)


def test_loss_is_the_plain_mean_over_scored_tokens():
    model, batch = model_of(), random_batch()
    engine = TorchEngine(model, Optimizers(model, rates(1e-3)), Causal(), 2, torch.float32)
    found = engine.forward_backward(batch)["loss"]
    logits = model.logits(model(batch.inputs))
    nats = functional.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none").view_as(batch.weights)
    torch.testing.assert_close(found, ((nats * batch.weights).sum() / batch.weights.sum()).detach().to(found.dtype), rtol=1e-6, atol=1e-8)


def test_packed_documents_are_the_same_as_padded_ones():
    generator = torch.Generator().manual_seed(1)
    documents = [torch.randint(0, 61, (n,), generator=generator) for n in (5, 7, 4)]

    def batch_of(rows: list[list[torch.Tensor]], seq: int) -> Batch:
        shape = (len(rows), seq)
        made = Batch(torch.zeros(shape, dtype=torch.int64), torch.zeros(shape, dtype=torch.int64), torch.zeros(shape), torch.zeros(shape, dtype=torch.int64), torch.full(shape, -1, dtype=torch.int32), [], [len(r) for r in rows])
        for row, parts in enumerate(rows):
            place = 0
            for number, document in enumerate(parts):
                here = slice(place, place + len(document) - 1)
                made.inputs[row, here], made.targets[row, here] = document[:-1], document[1:]
                made.weights[row, here], made.segments[row, here] = 1.0, number
                made.positions[row, here] = torch.arange(len(document) - 1)
                place += len(document) - 1
        return made

    packed = batch_of([documents], 13)
    padded = batch_of([[document] for document in documents], 6)
    torch.testing.assert_close(token_sum(model_of(), packed), token_sum(model_of(), padded), rtol=1e-10, atol=1e-10)
    one, other = gradients(model_of(), packed, 8), gradients(model_of(), padded, 8)
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient, rtol=1e-8, atol=1e-10)


def test_chunked_loss_is_the_plain_one(monkeypatch):
    batch = random_batch()
    plain_model, chunked_model = model_of(), model_of()
    plain = token_sum(plain_model, batch)
    monkeypatch.setattr("luban.objectives.losses.CHUNK_LOGITS", 61 * 5)
    monkeypatch.setattr("luban.objectives.losses.CHUNK_TOKENS", 1)
    chunked = token_sum(chunked_model, batch)
    torch.testing.assert_close(chunked, plain, rtol=1e-10, atol=1e-10)
    plain.backward(), chunked.backward()
    for (name, a), b in zip(plain_model.named_parameters(), chunked_model.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, rtol=1e-9, atol=1e-11, msg=name)


def test_adamw_decays_matrices_only():
    model = model_of(torch.float32)
    optimizer = Optimizers(model, rates(1.0, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer.step(0.1)
    for name, parameter in model.named_parameters():
        share = 0.95 if parameter.ndim >= 2 else 1.0
        torch.testing.assert_close(parameter.detach(), before[name] * share, msg=name)


def test_muon_takes_the_hidden_matrices_and_adamw_the_rest():
    model = model_of(torch.float32)
    optimizer = Optimizers(model, rates(1e-3, name="muon"))
    adamw, muon = optimizer.parts
    by_muon = {optimizer.names[p] for group in muon.param_groups for p in group["params"]}
    assert by_muon == {name for name, p in model.named_parameters() if "proj" in name}
    assert sum(len(group["params"]) for group in adamw.param_groups) + len(by_muon) == len(list(model.parameters()))


@pytest.mark.parametrize("shape", ["cosine", "linear", "exponential", "warmup_stable_decay", "constant"])
def test_schedules(shape):
    schedule = make_schedule(ScheduleConfig(shape=shape, warmup="10 steps", final=0.1), 100, 1, 1)
    factors = [schedule.factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1) and factors[9] == 1.0
    assert all(0 < factor <= 1 for factor in factors)
    assert all(after <= before + 1e-12 for before, after in zip(factors[9:], factors[10:], strict=False))
    if shape == "cosine":
        assert factors[55] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    if shape == "warmup_stable_decay":
        assert factors[79] == 1.0 and factors[80] == 1.0 and factors[99] < 0.16
        longer = make_schedule(ScheduleConfig(shape=shape, warmup="10 steps", final=0.1), 200, 1, 1)
        assert [longer.factor(step) for step in range(schedule.unchanged_until)] == factors[: schedule.unchanged_until]


def test_muon_is_torchs_muon_up_to_its_bfloat16():
    from luban.training.muon import Muon

    generator = torch.Generator().manual_seed(0)
    start = [torch.randn(shape, generator=generator) for shape in ((24, 16), (16, 24), (24, 16))]
    ours, theirs = ([torch.nn.Parameter(p.clone()) for p in start] for _ in range(2))
    mine = Muon(ours, lr=0.02, momentum=0.95, weight_decay=0.1)
    reference = torch.optim.Muon(theirs, lr=0.02, momentum=0.95, weight_decay=0.1, nesterov=True, adjust_lr_fn="original")
    for _ in range(4):
        for one, other in zip(ours, theirs, strict=True):
            one.grad = torch.randn(one.shape, generator=generator)
            other.grad = one.grad.clone()
        mine.step(), reference.step()
    for one, other, first in zip(ours, theirs, start, strict=True):
        moved = (other.detach() - first).norm()
        assert (one.detach() - other.detach()).norm() < 0.03 * moved
