"""Does every layout train the same model? A tiny model of a recipe's family takes ten steps in one process and in each layout that fits some ranks of this machine, and losses and gradient
norms are compared: they may differ by the order in which numbers are added, and by nothing else.

All layouts run in one group of processes, the smaller ones several times beside each other (``Ranks.block``). The rows are drawn here: two documents and padding in each, more in one step
than in another, so that some ranks have less to do.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from luban.foundation.config import build
from luban.foundation.errors import LubanError
from luban.models.base import Model
from luban.models.families import build_model, family_of
from luban.models.shape_base import BaseShapeConfig
from luban.objectives.base import Objective, Term
from luban.objectives.losses import token_sum
from luban.parallel.engine import TorchEngine
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.legal import Parts, legal_layouts
from luban.parallel.ranks import Ranks, here
from luban.tokens.batch import Batch
from luban.training.config import OptimizerConfig, TrainConfig
from luban.training.layout import lacking_in_stages, lacking_of
from luban.training.optimizers import Optimizers

STEPS, ROWS, LENGTH, MICRO_ROWS, CLIP, RATE = 10, (4, 3, 1, 2), 16, 2, 0.5, 1e-3
TOLERANCES = {"float64": 1e-9, "float32": 1e-4}  # of a loss, or of a norm, as a share of itself where it is above one
TINY: dict[str, Any] = {  # sizes that 2 and 4 ranks can share, and a vocabulary that they cannot share evenly
    "layers": 4, "decoder_layers": 2, "hidden_size": 32, "heads": 4, "decoder_heads": 4, "key_value_heads": 4, "head_dim": 8, "feed_forward_size": 48, "decoder_feed_forward_size": 48,
    "vocabulary_size": 61, "maximum_positions": 64, "experts": 4, "experts_per_token": 2, "expert_size": 16, "shared_expert_size": 24, "sliding_window": 5,
}  # fmt: skip


@dataclass(frozen=True)
class Trial:
    """A layout to be tried."""

    parts: Parts
    shard: str = "none"
    sequence: bool = True
    schedule: str = "1f1b"
    stages: int = 1  # of each rank of a pipeline

    @property
    def text(self) -> str:
        return ", ".join([*([] if self.parts == Parts() and self.shard == "none" else [self.parts.text]), *([f"shard: {self.shard}"] if self.shard != "none" else []), *([] if self.sequence else ["sequence: false"]), *([f"schedule: {self.schedule}"] if self.parts.pipeline > 1 else [])]) or "one process"


@dataclass
class Outcome:
    """The largest differences of ten steps from those of one process, by type."""

    layout: str
    ranks: int
    loss: dict[str, float]
    norm: dict[str, float]

    @property
    def passed(self) -> bool:
        return all(found[kind] <= limit for found in (self.loss, self.norm) for kind, limit in TOLERANCES.items())


def tiny_shape(shape: BaseShapeConfig) -> BaseShapeConfig:
    """A shape of the same family and kind, so small that it trains in a moment."""
    known = {name: value for name, value in shape.model_dump().items() if value is not None and name not in ("layer_types", "dense_layers", "rope_scaling")}
    small = {name: size for name, size in TINY.items() if known.get(name)}
    if known.get("key_value_heads", 0) < known.get("heads", 0):
        small["key_value_heads"] = 2
    if known["architecture"] == "mixtral":
        small["expert_size"] = TINY["feed_forward_size"]
    still = {name: 0.0 for name in known if "dropout" in name or name == "router_jitter"}  # what draws, draws other numbers on each rank
    return build(type(shape), known | {name: size for name, size in small.items() if name in known} | still)


def trials(shape: BaseShapeConfig, ranks: int) -> list[Trial]:
    """Every layout of so many ranks, with weights in shards and without where there is something to shard over, with the sequence cut and whole where matrices are, and in the order of each schedule
    where there are stages."""
    found = []
    for parts in legal_layouts(shape, ranks, LENGTH):
        if parts.pipeline > 1:
            each = 2 if 2 * parts.pipeline <= shape.depth else 1
            orders = [("1f1b", 1), *([("interleaved", 2)] if each == 2 else []), *([("zero_bubble", each)] if parts.shards == 1 and shape.kind != "encoder_decoder" else [])]
            found += [Trial(parts, "full" if parts.shards > 1 else "none", schedule=schedule, stages=stages) for schedule, stages in orders]
            continue
        shards = ("full", "gradients", "states") if parts.shards > 1 and parts.shards == ranks else ("full",) if parts.shards > 1 else ("none", "full") if parts.context > 1 else ("none",)
        found += [Trial(parts, shard) for shard in shards]
        if parts.tensor == ranks > 1:
            found.append(Trial(parts, sequence=False))
    return found


Refused = tuple[str, str, str]  # field, its value, why as a template


def allowed(shape: BaseShapeConfig, config: TrainConfig, objective: Objective, counts: Sequence[int]) -> tuple[dict[int, list[Trial]], dict[Refused, list[str]]]:
    """The trials of each count that a training by ``config`` may take, and the others under what refuses them (luban.training.layout)."""
    small = tiny_shape(shape)
    model = build_model(small)
    found: dict[int, list[Trial]] = {}
    refused: dict[Refused, list[str]] = {}
    for count in sorted(set(counts)):
        for trial in trials(small, count):
            if count > 1 and (lacks := next(_lacks(config, model, objective, trial), None)):
                refused.setdefault((lacks[0], str(lacks[1]), lacks[2]), []).append(trial.text)
            else:
                found.setdefault(count, []).append(trial)
    return found, refused


def _lacks(config: TrainConfig, model: Model, objective: Objective, trial: Trial) -> Iterator[tuple[str, Any, str, str]]:
    parts = trial.parts
    shared = {name: getattr(parts, name) for name in ("pipeline", "tensor", "context", "expert")}
    shared |= {"shard": trial.shard, "sequence": trial.sequence, "schedule": trial.schedule, "stages_per_rank": trial.stages}
    config = config.model_copy(update={"layout": config.layout.model_copy(update=shared)})
    if parts.pipeline > 1:
        yield from lacking_in_stages(config, model, objective, trial.shard)
    yield from lacking_of(config, model, objective, parts, trial.shard != "none")


# ---- on each rank -----------------------------------------------------------------------------------------------------


class Words(Objective):
    """Each target that has a weight, in all families."""

    unit = "token"

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch))}


def batches(kind: str) -> list[Batch]:
    """A batch for each of the steps, one after another of those with so many rows."""
    return [_batch(rows, kind, seed) for seed, rows in enumerate(ROWS)]


def _batch(rows: int, kind: str, seed: int) -> Batch:
    draw = torch.Generator().manual_seed(seed)
    tokens = torch.randint(0, TINY["vocabulary_size"], (3, rows, LENGTH), generator=draw)
    begins, ends = torch.randint(3, 8, (rows, 1), generator=draw), torch.randint(10, LENGTH, (rows, 1), generator=draw)
    places = torch.arange(LENGTH).expand(rows, -1)
    segments = torch.where(places > ends, -1, (places >= begins).int()).int()  # two documents, then padding
    weights = (torch.rand(rows, LENGTH, generator=draw) < 0.7) & (segments >= 0)
    source = {"source": tokens[2], "source_segments": segments} if kind == "encoder_decoder" else {}
    return Batch(tokens[0], tokens[1], weights.double(), torch.where(segments == 1, places - begins, places), segments, **source)


def train(shape: BaseShapeConfig, optimizer: str, layout: Layout, kind: str) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step."""
    model = build_model(shape).initialize(3).to(getattr(torch, kind))
    layout.place(model)
    rates = {"learning_rate": RATE, "embedding_learning_rate": RATE, "matrix_learning_rate": RATE}
    engine = TorchEngine(model, Optimizers(model, OptimizerConfig(name=optimizer, **rates)), Words(), 1 if hasattr(shape, "experts") else MICRO_ROWS, torch.float32, layout=layout)  # balance is a figure of the micro-batch
    model.train()
    made, figures = batches(shape.kind), []
    for number in range(STEPS):
        means = engine.forward_backward(made[number % len(made)])
        figures.append((float(means["loss"]), float(engine.clip(CLIP))))
        engine.step(1.0, number + 1)
    return figures


def layout_of(trial: Trial, ranks: Ranks) -> Layout:
    if ranks.alone:
        return Layout()
    if trial.parts == Parts(replicas=ranks.size):
        return Replicated(ranks)
    from luban.parallel.meshed import Meshed

    return Meshed(ranks, trial.parts, trial.shard, trial.sequence, torch.device("cpu"), trial.schedule, trial.stages)


def run(plan: dict[str, Any]) -> list[Outcome]:
    """Every trial of the plan, by all ranks; the first knows what came of them."""
    torch.set_num_threads(1)
    everyone = here()
    shape = build(family_of(plan["shape"]["architecture"]).shape, plan["shape"])
    alone = functools.cache(lambda kind: train(shape, plan["optimizer"], Layout(), kind))
    found = []
    for count in plan["ranks"]:
        ranks = Ranks() if count == 1 else everyone if count == everyone.size else everyone.block(count)
        for trial in (Trial(**{**plain, "parts": Parts(**plain["parts"])}) for plain in plan["trials"][str(count)]):
            outcome = Outcome(trial.text, count, {}, {})
            for kind in TOLERANCES:
                known, tried = alone(kind), train(shape, plan["optimizer"], layout_of(trial, ranks), kind)
                for name, place in (("loss", 0), ("norm", 1)):
                    worst = max(abs(one[place] - other[place]) / max(1.0, abs(one[place])) for one, other in zip(known, tried, strict=True))
                    getattr(outcome, name)[kind] = max(everyone.everyone(worst))
            found.append(outcome)
    return found


# ---- from outside -----------------------------------------------------------------------------------------------------


def compare_layouts(shape: BaseShapeConfig, optimizer: str, counts: Sequence[int] = (1, 2, 4), chosen: dict[int, list[Trial]] | None = None) -> list[Outcome]:
    """What came of every layout of ``counts`` ranks, or of those that are chosen, for the tiny form of a shape. Starts as many processes as the largest count; LubanError with what they said where they did not get through."""
    small = tiny_shape(shape)
    chosen = {count: trials(small, count) for count in counts} if chosen is None else chosen
    plan = {
        "shape": {name: value for name, value in small.model_dump().items() if value is not None}, "optimizer": optimizer, "ranks": sorted(chosen),
        "trials": {count: [asdict(trial) for trial in each] for count, each in chosen.items()},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="luban-layouts-") as folder:
        file, results = Path(folder) / "plan.json", Path(folder) / "found.json"
        file.write_text(json.dumps(plan), encoding="utf-8")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(max(chosen)), "-m", __spec__.name, str(file), str(results)]
        ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", errors="replace")
        if not results.exists():
            said = [line for line in ended.stderr.splitlines() if "Error" in line]
            raise LubanError("the processes that compare layouts did not get through: {error}", "", "", error=(said or ended.stderr.splitlines() or ["-"])[0])
        return [Outcome(**found) for found in json.loads(results.read_text(encoding="utf-8"))]


def main() -> None:
    file, results = map(Path, sys.argv[1:])
    found = run(json.loads(file.read_text(encoding="utf-8")))
    if here().leads:
        results.write_text(json.dumps([asdict(outcome) for outcome in found]), encoding="utf-8")


if __name__ == "__main__":
    main()
