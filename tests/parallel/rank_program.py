"""What each rank runs under torchrun: the trainings of a plan (a JSON file). Rank 0 writes what came of them to the plan's ``found``.

``cases``: ``model:optimizer:layout:rows``, trained by all ranks and by each alone: the largest difference of figures and weights, and of the model that is put together at the end. A layout is
none, states, gradients, full, twice (full with two replicas), or counts such as ``tensor2,context2`` with ``whole`` for a sequence that is not cut, ``full`` for shards and ``offload`` for shards that wait in the host's memory.
``journeys``: a model and layouts: trained in the first, its checkpoint is read and written again in each of the others, the last of them one process; the names of tensors that arrive with other bits.
``draws``: ``model:layout``, trained with dropout: whether all ranks end with the same weights where they hold the same, and find the same losses again where blocks are computed again.
``scaled``: as ``cases``, with losses that are scaled as for float16, and in the second step a gradient that is infinite in one shard alone: that too is compared with one process.
``early``: models, trained in replicas whose sums are of few gradients each (see the function).
``runs``: fields of `luban train`: the message of the error, if one ended it.
"""

from __future__ import annotations

import functools
import json
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rank_lab import apart, train

import luban
from luban.foundation.errors import LubanError
from luban.parallel import sums
from luban.parallel.engine import TorchEngine
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.legal import Parts
from luban.parallel.meshed import Meshed
from luban.parallel.ranks import Ranks, here
from luban.training import checkpoints, storage


def layout_of(ranks: Ranks, said: str) -> Layout:
    if said == "none":
        return Replicated(ranks)
    words = said.split(",")
    sizes = {name: int(count) for name, count in re.findall(r"([a-z]+)(\d+)", said)}
    if said == "twice":
        sizes["replicas"] = 2
    shard = next((word for word in words if word in ("states", "gradients", "full")), "full" if said == "twice" else "none")
    each = sizes.pop("stages", 0)
    rest = ranks.size // (sizes.get("replicas", 1) * sizes.get("pipeline", 1) * sizes.get("context", 1) * sizes.get("tensor", 1))
    parts = Parts(**{"replicas" if shard == "none" else "shards": rest} | sizes)
    schedule = next((word for word in words if word in ("interleaved", "zero_bubble")), "1f1b")
    return Meshed(ranks, parts, shard, "whole" not in words, torch.device("cpu"), schedule, each or (1 if schedule == "1f1b" else 2), "offload" in words)


@functools.cache
def alone(name: str, optimizer: str, rows: int, **rest: Any) -> dict[str, Any]:
    return train(name, Layout(), optimizer, rows, **rest)


def differences(ranks: Ranks, case: str, **rest: Any) -> list[float]:
    name, optimizer, said, rows = case.split(":")
    made = layout_of(ranks, said)
    one, together = alone(name, optimizer, int(rows), **rest), train(name, made, optimizer, int(rows), **rest)
    model = made.whole_model(together["engine"].model)
    whole = 0.0 if model is None else max(float((value.detach() - one["weights"][key]).abs().max()) for key, value in model.named_parameters())
    return [max(ranks.everyone(apart(one, together))), whole]


def journey(ranks: Ranks, folder: Path, name: str, layouts: list[str]) -> list[str]:
    engine = train(name, layout_of(ranks, layouts[0]))["engine"]
    write(folder / "step-00000001", engine)
    for number, said in enumerate(layouts[1:], 2):
        engine = train(name, layout_of(ranks, said), steps=0)["engine"]
        checkpoints._load(as_run(engine), folder / f"step-{number - 1:08d}")
        write(folder / f"step-{number:08d}", engine)
    first, last = (storage.load_tensors(place, storage.read_index(place), lambda _, shape, dtype: torch.empty(shape, dtype=dtype)) for place in (folder / "step-00000001", folder / f"step-{len(layouts):08d}"))
    assert any("exp_avg" in key for key in first), "the optimizer's state is missing"
    return sorted(first.keys() ^ last.keys()) + [key for key in first if key in last and not torch.equal(first[key], last[key])]


def as_run(engine: TorchEngine) -> Any:
    schedule = SimpleNamespace(total=9, unchanged_until=9)
    return SimpleNamespace(model=engine.model, engine=engine, objective=engine.objective, average=None, teacher=None, step=3, tokens=0, seconds=0.0, last={}, stop_reason="", history={}, place=3, schedule=schedule)


def write(final: Path, engine: TorchEngine) -> None:
    checkpoints.write(final, checkpoints.snapshot(as_run(engine), "regular", False))


def early(ranks: Ranks, name: str) -> list[float]:
    """How far replicas in small buckets are from one process, how many buckets of a step set out before its last backward pass had ended, and how many there are."""
    whole, sums.BUCKET_BYTES = sums.BUCKET_BYTES, 4096
    together = train(name, layout_of(ranks, "none"))
    sums.BUCKET_BYTES = whole
    found = together["engine"].layout.sums
    return [apart(train(name, Layout()), together), found.early, len(found.buckets)]


def drawn(ranks: Ranks, name: str, said: str) -> list[float]:
    found = []
    for recompute in ("none", "full"):
        layout = layout_of(ranks, said)
        torch.manual_seed(7 + layout.seat)
        found.append(train(name, layout, dropout=0.3, recompute=recompute))
    held = torch.cat([value.flatten() for value in found[0]["weights"].values()])
    everywhere = ranks.everyone([float(held.sum()), float((held * torch.arange(len(held))).sum()), *(step["loss"] for step in found[0]["figures"])])
    return [max(abs(value - other) for each in everywhere for value, other in zip(everywhere[0], each, strict=True)), apart(*found)]


def outcome(fields: dict[str, Any]) -> str:
    try:
        luban.train(**fields)
    except LubanError as error:
        return error.text()
    return ""


def main(plan: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks = here()
    found: dict[str, Any] = {"cases": {case: differences(ranks, case) for case in plan["cases"]}, "runs": [outcome(fields) for fields in plan["runs"]]}
    found["journeys"] = [journey(ranks, Path(plan["found"]).parent / f"journey-{number}", name, layouts) for number, (name, layouts) in enumerate(plan.get("journeys", []))]
    found["draws"] = {case: drawn(ranks, *case.split(":")) for case in plan.get("draws", [])}
    found["scaled"] = {case: differences(ranks, case, precision=torch.float16, overflow=2) for case in plan.get("scaled", [])}
    found["early"] = {name: early(ranks, name) for name in plan.get("early", [])}
    if ranks.leads:
        Path(plan["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
