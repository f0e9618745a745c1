"""Whether the learning rates of `auto` hold over width and depth: small models of many shapes, each at shares of its own auto rates.

    python benchmarks/transfer.py --jobs 12 --out runs/transfer.jsonl           # on a GPU some minutes; a second call goes on where the first stopped
    python benchmarks/transfer.py --steps 120 --step-tokens 2048 --optimizers adamw --out runs/transfer.jsonl      # on two cores: an hour and a half
    python benchmarks/transfer.py --out runs/transfer.jsonl --table             # the optimum of each shape, and what the auto rate costs beside it
    python benchmarks/transfer.py --coordinates                                 # deeper: sizes of the hidden states after a few steps, to 64 layers

Characters of Shakespeare, the first nine tenths to train on and the rest held out. Shapes are those of `depth` with width and layers given, rates those of `auto`
times a factor; the model, the optimizers, the schedule and the engine are those of `luban train`. Each run reads the same number of tokens.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from luban.models import own_layers
from luban.models.base import Model
from luban.models.families import build_model
from luban.models.shape import ShapeConfig
from luban.objectives.base import load_objective
from luban.objectives.config import CausalConfig
from luban.parallel.engine import TorchEngine
from luban.planning import dial
from luban.tokens.batch import Batch
from luban.training.config import OptimizerConfig, ScheduleConfig
from luban.training.optimizers import Optimizers
from luban.training.randomness import seed_all
from luban.training.schedules import make_schedule

TEXT = Path(__file__).resolve().parent.parent / "src/luban/recipes/quickstart/data/shakespeare.txt"
SHAPES = [(width, 4) for width in (64, 128, 256, 512)] + [(128, depth) for depth in (2, 8, 16)]  # (width, depth); (128, 4) belongs to both rows
SWEEPS = {"width at depth 4": SHAPES[:4], "depth at width 128": [(128, depth) for depth in (2, 4, 8, 16)]}
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
SEEDS = (1, 2, 3)


# ---- one run ----------------------------------------------------------------------------------------------------------


def characters() -> tuple[np.ndarray, np.ndarray, int]:
    """Ids of the characters to learn from and of those held out, and how many there are."""
    text = TEXT.read_text(encoding="utf-8")
    known = {character: number for number, character in enumerate(sorted(set(text)))}
    ids = np.array([known[character] for character in text], dtype=np.int64)
    border = int(0.9 * len(ids))
    return ids[:border], ids[border:], len(known)


def batch_at(ids: np.ndarray, starts: np.ndarray, length: int) -> Batch:
    """Rows of ``length`` characters that begin at ``starts`` [rows], each predicting the next."""
    rows = torch.from_numpy(ids[starts[:, None] + np.arange(length + 1)])  # [rows, length + 1]
    positions = torch.arange(length).expand(len(starts), -1).contiguous()
    return Batch(rows[:, :-1].contiguous(), rows[:, 1:].contiguous(), torch.ones(len(starts), length), positions, None)


def new_model(width: int, depth: int, vocabulary: int, seed: int, device: torch.device) -> Model:
    shape = dial.shape_of_depth(depth, vocabulary, ShapeConfig(hidden_size=width, layers=depth))
    model = build_model(shape).initialize(seed).to(device)
    model.own_attention = model.own_layers = device.type == "cpu" and own_layers.load() is not None  # as in luban train
    return model


def new_engine(model: Model, optimizer: str, factor: float, rows: int) -> TorchEngine:
    """The engine with the auto rates of the model's shape, all times ``factor``."""
    rates = dial.learning_rates(optimizer, model.shape.hidden_size, "causal", False, depth=model.shape.layers)
    rates = dial.optimizer_rates(rates, optimizer)
    config = OptimizerConfig(name=optimizer, **{name: rate * factor for name, rate in rates.items()})
    return TorchEngine(model, Optimizers(model, config), load_objective(CausalConfig()), rows, torch.float32)


def one_run(run: dict[str, Any], length: int, steps: int, step_tokens: int) -> dict[str, Any]:
    """Train one model; the run with its loss on held-out text in windows that do not overlap: all of them, on a processor each fourth."""
    started = time.monotonic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learned, held_out, vocabulary = characters()
    seed_all(run["seed"])
    model = new_model(run["width"], run["depth"], vocabulary, run["seed"], device).train()
    rows = step_tokens // length
    engine = new_engine(model, run["optimizer"], run["factor"], rows)
    schedule = make_schedule(ScheduleConfig(), steps, step_tokens, len(learned))
    drawn = np.random.default_rng(run["seed"])
    for step in range(steps):
        engine.forward_backward(batch_at(learned, drawn.integers(0, len(learned) - length, rows), length))
        engine.clip(1.0)
        engine.step(schedule.factor(step), step + 1)
    starts = np.arange(0, len(held_out) - length, length)[:: 4 if device.type == "cpu" else 1]  # there reading all of it would take as long as training
    losses = engine.evaluate([batch_at(held_out, part, length) for part in np.array_split(starts, -(-len(starts) // 64))])
    loss = losses["loss"]
    return {**run, "steps": steps, "step_tokens": step_tokens, "loss": loss if math.isfinite(loss) else None, "seconds": round(time.monotonic() - started, 1)}


# ---- many -------------------------------------------------------------------------------------------------------------


def runs(optimizers: list[str]) -> Iterator[dict[str, Any]]:
    """All runs: seed by seed, so that what is there is even when it was stopped; the long ones first."""
    for seed in SEEDS:
        for optimizer in optimizers:
            for width, depth in sorted(SHAPES, key=lambda shape: -shape[1] * max(shape[0], 128)):
                for factor in FACTORS:
                    yield {"optimizer": optimizer, "width": width, "depth": depth, "factor": factor, "seed": seed}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(run[name] for name in ("optimizer", "width", "depth", "factor", "seed"))


def work(todo: Any, done: Any, until: float, settings: tuple[int, int, int]) -> None:
    torch.set_num_threads(1)
    torch.set_float32_matmul_precision("high")
    while time.time() < until and (run := todo.get()) is not None:
        done.put(one_run(run, *settings))
    done.put(None)


def sweep(out: Path, optimizers: list[str], jobs: int, seconds: float, settings: tuple[int, int, int]) -> None:
    """Make the runs that ``out`` lacks, a line of JSON each, by so many processes at once; none begins after ``seconds``."""
    known = {key(run) for run in read(out)}
    missing = [run for run in runs(optimizers) if key(run) not in known]
    context = multiprocessing.get_context("spawn")
    todo, done = context.Queue(), context.Queue()
    for run in [*missing, *[None] * jobs]:
        todo.put(run)
    processes = [context.Process(target=work, args=(todo, done, time.time() + seconds, settings), daemon=True) for _ in range(jobs)]
    for process in processes:
        process.start()
    out.parent.mkdir(parents=True, exist_ok=True)
    ended = count = 0
    with out.open("a", encoding="utf-8") as file:
        while ended < jobs:
            result = done.get()
            ended += result is None
            if result is not None:
                count += 1
                file.write(json.dumps(result) + "\n")
                file.flush()
                print(f"{count}/{len(missing)} {json.dumps(result)}", flush=True)


def read(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


# ---- what it says -----------------------------------------------------------------------------------------------------


def optimum(losses: dict[float, float]) -> float:
    """The factor of the least loss, by a parabola through it and its neighbours over the logarithm of the factor; at an end the end itself."""
    factors = sorted(losses)
    place = min(range(len(factors)), key=lambda index: losses[factors[index]])
    if place in (0, len(factors) - 1):
        return factors[place]
    low, best, high = (losses[factors[place + step]] for step in (-1, 0, 1))
    return factors[place] * 2 ** (0.5 * (low - high) / (low - 2 * best + high)) if math.isfinite(low + high) else factors[place]


def table(made: list[dict[str, Any]]) -> None:
    """Mean losses over the seeds, the optimum factor and its spread over seeds, and the cost of the auto rate beside the best factor of each shape."""
    for optimizer in sorted({run["optimizer"] for run in made}):
        cells: dict[tuple[int, int], dict[float, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
        for run in made:
            if run["optimizer"] == optimizer:
                cells[run["width"], run["depth"]][run["factor"]][run["seed"]] = math.inf if run["loss"] is None else run["loss"]
        for name, shapes in SWEEPS.items():
            print(f"\n{optimizer}, {name}\n\n| width × depth | " + " | ".join(f"× {factor:g}" for factor in FACTORS) + " | seeds | best factor (by seed) | auto above the best |")
            print("| --- |" + " --- |" * (len(FACTORS) + 3))
            for shape in shapes:
                if losses := cells.get(shape):
                    print(_row(shape, losses))


def _row(shape: tuple[int, int], losses: dict[float, dict[int, float]]) -> str:
    means = {factor: statistics.mean(by_seed.values()) for factor, by_seed in losses.items()}
    seeds = sorted(set.intersection(*(set(by_seed) for by_seed in losses.values())))
    each = ", ".join(f"{optimum({factor: losses[factor][seed] for factor in losses}):.2g}" for seed in seeds)
    cost = f"{100 * (means[1.0] / min(means.values()) - 1):.2f} %" if 1.0 in means else ""
    shown = " | ".join(f"{means[factor]:.4f}" if factor in means else "" for factor in FACTORS)
    return f"| {shape[0]} × {shape[1]} | {shown} | {len(seeds)} | {optimum(means):.2f} ({each}) | {cost} |"


def coordinates(optimizers: list[str], length: int, step_tokens: int, steps: int = 10) -> None:
    """Root mean squares of the last hidden stream, of what all blocks added to it, and of the logits, before step one and after ``steps`` steps at the auto rates."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learned, held_out, vocabulary = characters()
    probe = torch.from_numpy(held_out[: 4 * length]).view(4, length).to(device)
    shapes = [(width, 4) for width in (64, 128, 256, 512, 1024)] + [(128, depth) for depth in (2, 8, 16, 32, 64)]
    print("| optimizer | width × depth | stream | added by blocks | logits | loss |\n| --- | --- | --- | --- | --- | --- |")
    for optimizer in optimizers:
        for width, depth in shapes:
            seed_all(1)
            model = new_model(width, depth, vocabulary, 1, device).train()
            engine = new_engine(model, optimizer, 1.0, step_tokens // length)
            drawn = np.random.default_rng(1)
            for step in range(steps):
                means = engine.forward_backward(batch_at(learned, drawn.integers(0, len(learned) - length, step_tokens // length), length))
                engine.clip(1.0)
                engine.step(min(1.0, (step + 1) / 5), step + 1)
            print(f"| {optimizer} | {width} × {depth} | {' | '.join(f'{size:.3g}' for size in _sizes(model, probe))} | {float(means['loss']):.3f} |", flush=True)


@torch.no_grad()
def _sizes(model: Model, probe: torch.Tensor) -> list[float]:
    seen = []
    hook = model.blocks()[-1].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    logits = model.logits(model(probe))
    hook.remove()
    added = seen[0] - model.embedding(probe)
    return [float(values.float().square().mean().sqrt()) for values in (seen[0], added, logits)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/transfer.jsonl"))
    parser.add_argument("--optimizers", default="muon,adamw")
    parser.add_argument("--jobs", type=int, default=2, help="processes at once")
    parser.add_argument("--seconds", type=float, default=math.inf, help="no run begins later than this")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=128, help="characters a row")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--coordinates", action="store_true")
    asked = parser.parse_args()
    optimizers = asked.optimizers.split(",")
    if asked.coordinates:
        return coordinates(optimizers, asked.length, asked.step_tokens)
    if not asked.table:
        sweep(asked.out, optimizers, asked.jobs, asked.seconds, (asked.length, asked.steps, asked.step_tokens))
    table(read(asked.out))


if __name__ == "__main__":
    main()
