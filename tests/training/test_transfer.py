"""The automatic rates of a new model: what a few steps change in the logits hardly depends on width and depth (a coordinate check)."""

from __future__ import annotations

import pytest
import torch

from luban.models.families import build_model
from luban.models.shape import ShapeConfig
from luban.objectives.losses import token_sum
from luban.planning import dial
from luban.tokens.batch import Batch
from luban.training.config import OptimizerConfig
from luban.training.optimizers import Optimizers


def change_of_logits(optimizer: str, width: int, depth: int, rates_of: int) -> float:
    """Root mean square of what four steps at the rates of width ``rates_of`` change in the logits of other text."""
    model = build_model(dial.shape_of_depth(depth, 65, ShapeConfig(hidden_size=width, layers=depth))).initialize(1)
    rates = dial.learning_rates(optimizer, rates_of, "causal", False, depth=depth)
    steps = Optimizers(model, OptimizerConfig(name=optimizer, **rates))
    ids = torch.randint(0, 65, (4, 65), generator=torch.Generator().manual_seed(1))
    ids[:, 1::2] = (ids[:, 0:-1:2] * 7 + 3) % 65  # every second token follows from the one before it
    probe = ids.flip(0)[:2, :-1]
    with torch.no_grad():
        before = model.logits(model(probe))
    batch = Batch(ids[:, :-1], ids[:, 1:], torch.ones(4, 64), torch.arange(64).expand(4, -1), None)
    for _ in range(4):
        (token_sum(model, batch) / 256).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step(1.0)
        steps.zero_grad()
    with torch.no_grad():
        return float((model.logits(model(probe)) - before).square().mean().sqrt())


@pytest.mark.parametrize(("optimizer", "most"), [("muon", 1.5), ("adamw", 3.0)])
def test_a_step_moves_the_logits_about_as_far_at_every_width_and_depth(optimizer, most):
    small = change_of_logits(optimizer, 64, 2, rates_of=64)
    assert 1 / most < change_of_logits(optimizer, 64, 8, rates_of=64) / small < most
    assert 1 / most < change_of_logits(optimizer, 256, 2, rates_of=256) / small < most
    assert change_of_logits(optimizer, 256, 2, rates_of=64) / small > most  # one rate for all would not
