"""Predicted against measured peak memory of each of two processes that share a training (gloo): ``torchrun --standalone --nproc-per-node 2 -m benchmarks.planner ranks``."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from benchmarks.planner import allocator
from benchmarks.planner.grid import STEPS, Case, _batch, predicted, shape
from luban.models.attention import load
from luban.models.families import build_model
from luban.objectives.base import load_objective
from luban.parallel.engine import OnePass, TorchEngine
from luban.parallel.legal import Parts
from luban.parallel.meshed import Meshed
from luban.parallel.ranks import here
from luban.planning.job import may_be_own
from luban.training.optimizers import Optimizers


def cases() -> Iterator[Case]:
    """Replicas, shards of each kind, tensor and pipelines, of a model whose weights weigh most and one whose activations do; a mixture whose experts are shared out."""
    for name, one, sequence, rows in (("weights weigh most", shape("llama", hidden_size=320, heads=4, key_value_heads=4, head_dim=80), 32, 1), ("activations weigh most", shape("llama", heads=4, head_dim=48), 64, 8)):
        for layout in ({"replicas": 2}, {"shards": 2, "shard": "full"}, {"shards": 2, "shard": "gradients"}, {"shards": 2, "shard": "states"}, {"tensor": 2}):
            readers = layout.get("replicas", 1) * layout.get("shards", 1)
            yield Case(f"llama, {name}, {layout}", one, sequence, 2 * rows * readers, rows, layout=layout)
        for schedule, stages in (("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1), ("zero_bubble", 2)):
            yield Case(f"llama, {name}, pipeline, {schedule}, {stages} on each", one, sequence, 8 * rows, rows, layout={"pipeline": 2, "schedule": schedule, "stages_per_rank": stages})
        yield Case(f"llama, {name}, full shards, recompute full", one, sequence, 4 * rows, rows, {"recompute": "full"}, {"shards": 2, "shard": "full"})
    mixture = shape("qwen3_moe", experts=4, experts_per_token=2)
    yield from (Case(f"qwen3_moe, {layout}", mixture, 64, 16, 4, layout=layout) for layout in ({"replicas": 2, "expert": 2}, {"shards": 2, "shard": "full", "expert": 2}))


def measured(case: Case) -> int:
    """As in grid.py, of this process."""
    torch.set_num_threads(1)
    gc.collect()
    ranks, config, made = here(), case.config, case.made
    parts = Parts(**{name: size for name, size in case.layout.items() if name not in ("shard", "schedule", "stages_per_rank")})
    before = allocator.held()
    model = build_model(made).initialize(0)
    model.own_attention = load() is not None
    model.own_layers = model.own_attention and may_be_own(config, "cpu", "float32")
    model.recompute = config.recompute
    layout = Meshed(ranks, parts, case.layout.get("shard", "none"), True, torch.device("cpu"), case.layout.get("schedule", "1f1b"), case.layout.get("stages_per_rank", 1))
    layout.place(model)
    engine = TorchEngine(model, Optimizers(model, config.optimizer, config.regularization), load_objective("causal"), case.rows, torch.float32, OnePass(), layout)
    model.train()
    gc.collect()
    allocator.most()
    for step in range(STEPS):
        torch.manual_seed(step)
        engine.forward_backward(_batch(case, model), 1.0)
        engine.clip(1.0)
        engine.step(1.0, step + 1, None)
    return allocator.most() - before


def table(wanted: str) -> list[float]:
    """Print a line for each case, by rank 0; the error is of the process that held the most."""
    errors = []
    for case in cases():
        if wanted not in case.name:
            continue
        truth = max(here().everyone(measured(case)))
        account = predicted(case)
        errors.append(account.peak / truth - 1)
        if here().leads:
            print(f"| {case.name} | {truth / 2**20:.2f} | {account.peak / 2**20:.2f} | {errors[-1]:+.1%} | {account.peak_moment} | {({name: round(size / 2**20, 1) for name, size in account.at_peak.items() if size})}", flush=True)
    return errors
