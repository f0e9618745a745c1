"""Predicted against measured peak memory of each of two processes that share a training (gloo): ``torchrun --standalone --nproc-per-node 2 -m benchmarks.planner ranks``."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import torch

from benchmarks.planner import allocator
from benchmarks.planner.grid import STEPS, Case, batch_of, engine_of, predicted, shape
from luban.parallel.legal import Parts
from luban.parallel.meshed import Meshed
from luban.parallel.ranks import here

ROUNDS = 4


def cases() -> Iterator[Case]:
    """Replicas, shards of each kind, tensor and pipelines, of a model whose weights weigh most and one whose activations do; quantised bases in shards; a mixture whose experts are shared out."""
    for name, one, sequence, rows in (("weights weigh most", shape("llama", hidden_size=320, heads=4, key_value_heads=4, head_dim=80), 32, 1), ("activations weigh most", shape("llama", heads=4, head_dim=48), 64, 8)):
        for layout in ({"replicas": 2}, {"shards": 2, "shard": "full"}, {"shards": 2, "shard": "gradients"}, {"shards": 2, "shard": "states"}, {"tensor": 2}):
            readers = layout.get("replicas", 1) * layout.get("shards", 1)
            yield Case(f"llama, {name}, {layout}", one, sequence, 2 * rows * readers, rows, layout=layout)
        for schedule, stages in (("1f1b", 1), ("interleaved", 2), ("zero_bubble", 1), ("zero_bubble", 2)):
            yield Case(f"llama, {name}, pipeline, {schedule}, {stages} on each", {**one, "layers": 4}, sequence, 8 * rows, rows, layout={"pipeline": 2, "schedule": schedule, "stages_per_rank": stages})
        yield Case(f"llama, {name}, full shards, recompute full", one, sequence, 4 * rows, rows, {"recompute": "full"}, {"shards": 2, "shard": "full"})
        for mode in ("none", "selective", "full"):
            yield Case(f"llama, {name}, full shards, products in bfloat16, recompute {mode}", one, sequence, 4 * rows, rows, {"precision": "bfloat16", "recompute": mode}, {"shards": 2, "shard": "full"})
    for code in ("nf4", "int8"):
        thin = {"adapter": {"method": "lora"}, "quantization": {"format": code}}
        yield from (Case(f"llama, lora on {code}, {layout}", shape("llama", hidden_size=320, heads=5), 32, 8, 2, thin, layout) for layout in ({"shards": 2, "shard": "full"}, {"shards": 2, "shard": "states"}))
        yield Case(f"llama, lora on {code}, tensor", shape("llama", hidden_size=320, heads=4, head_dim=80, feed_forward_size=640), 32, 8, 2, thin | {"quantization": {"format": code, "group_size": 16}}, {"tensor": 2})
    for method in ("dora", "vera", "houlsby", "bitfit"):
        yield Case(f"llama, {method}, tensor", shape("llama", hidden_size=320, heads=4, head_dim=80), 64, 16, 4, {"adapter": {"method": method}}, {"tensor": 2})
    yield Case("llama, lora, pipeline", shape("llama", hidden_size=320, heads=5, layers=4), 32, 8, 2, {"adapter": {"method": "lora"}}, {"pipeline": 2})
    for name in ("t5", "bart"):
        one = shape(name, decoder_layers=4)
        yield from (Case(f"{name}, pipeline, {schedule}", one, 64, 16, 2, layout={"pipeline": 2, "schedule": schedule, "stages_per_rank": stages}) for schedule, stages in (("1f1b", 1), ("interleaved", 2)))
    mixture = shape("qwen3_moe", experts=4, experts_per_token=2)
    yield from (Case(f"qwen3_moe, {layout}", mixture, 64, 16, 4, layout=layout) for layout in ({"replicas": 2, "expert": 2}, {"shards": 2, "shard": "full", "expert": 2}))
    yield from (Case(f"qwen3_moe, pipeline, {schedule}", mixture, 64, 16, 2, layout={"pipeline": 2, "schedule": schedule, "stages_per_rank": 1}) for schedule in ("1f1b", "zero_bubble"))


def measured(case: Case) -> list[int]:
    """As in grid.py, of this process, in some rounds: what gloo has copied its own threads let go when they come to it, so that a round may find more than another."""
    torch.set_num_threads(1)
    gc.collect()
    parts = Parts(**{name: size for name, size in case.layout.items() if name not in ("shard", "schedule", "stages_per_rank")})
    before = allocator.held()
    layout = Meshed(here(), parts, case.layout.get("shard", "none"), True, torch.device("cpu"), case.layout.get("schedule", "1f1b"), case.layout.get("stages_per_rank", 1))
    engine = engine_of(case, "auto", layout)
    found = []
    for _ in range(ROUNDS):
        gc.collect()
        allocator.most()
        for step in range(STEPS):
            torch.manual_seed(step)
            engine.forward_backward(batch_of(case, engine.model), 1.0)
            engine.clip(1.0)
            engine.step(1.0, step + 1, None)
        found.append(allocator.most() - before)
    return found


def table(wanted: str) -> list[float]:
    """Print a line for each case, by rank 0: of the process that held the most, in the round in which it held least (and most), and the error of that."""
    errors = []
    for case in cases():
        if wanted not in case.name:
            continue
        rounds = sorted(map(max, zip(*here().everyone(measured(case)), strict=True)))
        account = predicted(case)
        errors.append(account.peak / rounds[0] - 1)
        if here().leads:
            parts = {name: round(size / 2**20, 1) for name, size in account.at_peak.items() if size}
            print(f"| {case.name} | {rounds[0] / 2**20:.2f} ({rounds[-1] / 2**20:.2f}) | {account.peak / 2**20:.2f} | {errors[-1]:+.1%} | {account.peak_moment} | {parts}", flush=True)
    return errors
