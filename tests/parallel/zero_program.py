"""What each rank runs under torchrun, or a process of its own: trainings by DeepSpeed of a plan (a JSON file). Rank 0 writes what came of them to the plan's ``found``.

``cases``: ``model:optimizer:shard:rows`` and, behind another colon, what is offloaded, ``optimizer=cpu,weights=nvme``: ten steps by DeepSpeed and by the torch engine on each rank alone, in float32;
the largest difference of losses and norms as a share of them, of a validation, and of weights.
``refused``: as a case; whether a step that is refused leaves the weights and the optimizer's state as they were.
``journeys``: a model and engines (``torch`` in one process, or a shard of DeepSpeed's): trained in the first, its checkpoint is read and written again in each of the others; the tensors that arrive
with other bits.
``runs``: fields of `luban train`: the message of the error, if one ended it.
"""

from __future__ import annotations

import functools
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rank_lab import make
from rank_program import as_run, outcome, write

from luban.foundation.config import build
from luban.parallel.engine import TorchEngine
from luban.parallel.layouts import Layout
from luban.parallel.ranks import Ranks, here
from luban.parallel.zero import DeepSpeedEngine, Zero
from luban.training import checkpoints, storage
from luban.training.config import OptimizerConfig, TrainConfig
from luban.training.deepspeed_json import deepspeed_settings
from luban.training.layout import STAGES
from luban.training.optimizers import Optimizers

STEPS, CLIP = 10, 0.5


def engine_of(name: str, optimizer: str, shard: str, rows: int, offload: str = "", folder: Path = Path(".")) -> tuple[TorchEngine, list[Any]]:
    """An engine in float32 (``torch``: this process alone), and the batches of three steps."""
    model, objective, batches = make(name)
    model = model.float()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # whose draws are each rank's own
            module.p = 0.0
    moved = dict(part.split("=") for part in offload.split(",") if part)
    config = build(TrainConfig, {"data": "x", "gradient_clip": CLIP, "optimizer": {"name": optimizer, "learning_rate": 1e-2, "embedding_learning_rate": 1e-2}, "layout": {"offload": {**moved, "folder": str(folder)}}})
    layout: Layout = Layout() if shard == "torch" else Zero(here(), STAGES[shard], moved)
    layout.place(model)
    stepper = Optimizers(model, OptimizerConfig(**config.optimizer.explicit()))
    if shard == "torch":
        engine = TorchEngine(model, stepper, objective, rows, torch.float32, layout=layout)
    else:
        engine = DeepSpeedEngine(model, stepper, objective, rows, torch.float32, layout=layout, settings=deepspeed_settings(config, model, layout, rows, folder))
    model.train()
    return engine, [replace(batch, weights=batch.weights.float()) for batch in batches]


def trained(engine: TorchEngine, batches: list[Any], steps: int = STEPS) -> list[dict[str, float]]:
    figures = []
    for number in range(steps):
        means = engine.forward_backward(batches[number % len(batches)])
        norm = engine.clip(CLIP)
        engine.step(1.0 / (1 + number), number + 1)
        figures.append({**{key: float(value) for key, value in means.items()}, "norm": float(norm)})
    return figures


@functools.cache
def alone(name: str, optimizer: str, rows: int) -> tuple[list[dict[str, float]], dict[str, float], dict[str, torch.Tensor]]:
    engine, batches = engine_of(name, optimizer, "torch", rows)
    return trained(engine, batches), engine.evaluate(batches), engine.weights()


def differences(ranks: Ranks, case: str, folder: Path) -> dict[str, float]:
    name, optimizer, shard, rows, *offload = case.split(":")
    engine, batches = engine_of(name, optimizer, shard, int(rows), *offload, folder=folder)
    figures, held_out = trained(engine, batches), engine.evaluate(batches)
    known, known_held_out, weights = alone(name, optimizer, int(rows))
    assert [list(step) for step in known] == [list(step) for step in figures]
    apart = {"steps": max(abs(one[key] - other[key]) / max(1e-2, abs(one[key])) for one, other in zip(known, figures, strict=True) for key in one)}
    apart["validation"] = max(abs(value - held_out[key]) / max(1e-2, abs(value)) for key, value in known_held_out.items())
    kept = max([0.0, *(float((value.detach() - weights[key]).abs().max()) for key, value in engine.weights().items())])
    whole = engine.layout.whole_model(engine.model)
    final = 0.0 if whole is None else max(float((value.detach() - weights[key]).abs().max()) for key, value in whole.named_parameters())
    apart["weights"] = max(*ranks.everyone(kept), *ranks.everyone(final))
    return apart


def refused(case: str, folder: Path) -> list[str]:
    """Names of tensors that a refused step, in the midst of others, has changed."""
    name, optimizer, shard, rows, *offload = case.split(":")
    engine, batches = engine_of(name, optimizer, shard, int(rows), *offload, folder=folder)
    trained(engine, batches, 2)
    before = {**engine.weights(), **engine.optimizer_state()}
    before = {key: value.clone() for key, value in before.items()}
    engine.forward_backward(batches[0])
    engine.clip(CLIP)
    engine.step(1.0, 3, torch.tensor(False))
    after = {**engine.weights(), **engine.optimizer_state()}
    found = [key for key, value in before.items() if not torch.equal(value, after[key])]
    trained(engine, batches, 1)
    after = {**engine.weights(), **engine.optimizer_state()}
    return found + [f"{key} is not finite" for key, value in after.items() if not bool(torch.isfinite(value).all())]


def journey(ranks: Ranks, folder: Path, name: str, shards: list[str]) -> list[str]:
    for number, shard in enumerate(shards, 1):
        engine, batches = engine_of(name, "adamw", shard, 2, folder=folder)
        if number == 1:
            trained(engine, batches, 3)
        else:
            checkpoints._load(as_run(engine), folder / f"step-{number - 1:08d}")
        write(folder / f"step-{number:08d}", engine)
    first, last = (storage.load_tensors(place, storage.read_index(place), lambda _, shape, dtype: torch.empty(shape, dtype=dtype)) for place in (folder / "step-00000001", folder / f"step-{len(shards):08d}"))
    assert any("exp_avg" in key for key in first), "the optimizer's state is missing"
    return sorted(first.keys() ^ last.keys()) + [key for key in first if key in last and not torch.equal(first[key], last[key])]


def main(plan: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks, folder = here(), Path(plan["found"]).parent
    found: dict[str, Any] = {"cases": {case: differences(ranks, case, folder) for case in plan.get("cases", [])}}
    found["refused"] = {case: refused(case, folder) for case in plan.get("refused", [])}
    found["journeys"] = [journey(ranks, folder / f"journey-{number}", name, shards) for number, (name, shards) in enumerate(plan.get("journeys", []))]
    found["runs"] = [outcome(fields) for fields in plan.get("runs", [])]
    found = {key: value if key == "runs" else ranks.everyone(value) for key, value in found.items()}
    if ranks.leads:
        Path(plan["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
