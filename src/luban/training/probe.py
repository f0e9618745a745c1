"""How many rows of a micro-batch the memory holds: tried in processes of their own, so that what does not fit hurts nobody.

Each trial makes the model, the optimizer and two real steps with so many rows, and says the most memory it held. Trials grow by what those before took a row; the one that does not
fit may be killed by the system, which is an answer too. The rows of a step stay the same, so the result does; only how they are cut differs.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work, is_artifact, open_artifact
from luban.foundation.config import build
from luban.foundation.console import bytes_text, hush, say, seconds_text
from luban.foundation.errors import LubanError
from luban.foundation.hardware import available_bytes, peak_bytes
from luban.training.config import TrainConfig

SHARE = 0.9  # of the memory that is free: what a trial may hold
TRIALS = 8
SECONDS = 900.0  # of one trial


@dataclass(frozen=True)
class Fit:
    """The largest micro-batch that fitted: its rows, the most memory its trial held, what it might have held, and bytes by purpose (luban.training.memory.account)."""

    rows: int
    peak_bytes: int
    limit_bytes: int
    parts: dict[str, int]


def fitting_rows(config: TrainConfig, work: Work, most: int, first: int = 1) -> int:
    """The largest number of rows, up to ``most``, whose micro-batch fits; LubanError where not even one does. ``first`` are tried first: what the planner expects to fit."""
    found = find_fit(config, work, most, first)
    say("micro_batch_rows: {rows} (tried in a process of its own: {peak} of {limit}; a step is {most} rows)", rows=found.rows, peak=bytes_text(found.peak_bytes), limit=bytes_text(found.limit_bytes), most=most)
    return found.rows


def find_fit(config: TrainConfig, work: Work, most: int, first: int = 1) -> Fit:
    """The largest micro-batch of up to ``most`` rows that fits, with what its trial held, ``first`` rows being tried first; LubanError where not even one row does."""
    limit = int(SHARE * available_bytes())
    known: dict[int, dict[str, Any]] = {}
    low, high = 0, most + 1  # the largest that fitted, the smallest that did not
    rows = max(1, min(first, most))
    for _ in range(TRIALS):
        held = _try(config, work, rows, limit)
        say("  trial with {rows} rows: {outcome}", rows=rows, outcome=bytes_text(held["peak"]) if held else "—")
        if held:
            known[rows], low = held, rows
        else:
            high = rows
        if high - low <= max(1, low // 16):
            break
        rows = _next({tried: held["peak"] for tried, held in known.items()}, low, high, limit)
    if not low:
        raise LubanError("not even one row of {length} tokens fits into {limit}", "model, gradients, optimizer and one row's activations must", "shorten sequence_length, set recompute: full, choose adafactor as optimizer, or a smaller model", length=config.sequence_length, limit=bytes_text(limit))
    return Fit(low, known[low]["peak"], limit, known[low]["parts"])


def _next(known: dict[int, int], low: int, high: int, limit: int) -> int:
    """The rows of the next trial: what a line through the last two would fill the memory with, between what is known to fit and not to."""
    if len(known) < 2:
        return min(high - 1, max(2, 2 * low)) if low else max(1, high // 2)
    (less, lesser), (more, greater) = sorted(known.items())[-2:]
    slope = max(1.0, (greater - lesser) / (more - less))
    wanted = more + int((limit - greater) / slope)
    return min(max(wanted, low + 1), high - 1) if wanted < 16 * low else min(16 * low, high - 1)


def _try(config: TrainConfig, work: Work, rows: int, limit: int) -> dict[str, Any]:
    """The bytes that a trial held at the most (``peak``), and by purpose (``parts``); nothing where it did not fit."""
    fixed = {"compile": config.compile is True, "cross_entropy": "chunked"}  # what is chosen by time does not matter here
    asked = {"config": config.model_dump(mode="json") | fixed, "inputs": as_plain(work.inputs), "seed": work.seed, "rows": rows, "limit": limit}
    with tempfile.TemporaryDirectory(prefix="luban-probe-") as folder:
        try:
            done = subprocess.run([sys.executable, "-m", "luban.training.probe", folder], input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise LubanError("the trial of {rows} rows took longer than {time}", "", "say micro_batch_rows as a number", rows=rows, time=seconds_text(SECONDS)) from None
    answer = done.stdout.strip().splitlines()[-1:] or [""]
    if done.returncode == 0:
        return json.loads(answer[0])
    if done.returncode < 0 or answer[0] == "out of memory":  # the system's own killer is one way to say so
        return {}
    raise LubanError("the trial of {rows} rows failed: {error}", "", "train with micro_batch_rows: 1 to see the error itself", rows=rows, error=(done.stderr.strip().splitlines() or ["?"])[-1])


def main() -> None:
    """The trial, in its own process: what to try comes as JSON, what it held goes out as JSON."""
    asked = json.load(sys.stdin)
    import torch

    from luban.training.memory import account, is_out_of_memory
    from luban.training.stage import set_up

    hush()
    if not torch.cuda.is_available():  # its driver reserves far more than it uses
        hard = resource.getrlimit(resource.RLIMIT_DATA)[1]
        resource.setrlimit(resource.RLIMIT_DATA, (asked["limit"] if hard == resource.RLIM_INFINITY else min(asked["limit"], hard), hard))
    work = Work(Path(sys.argv[1]), as_inputs(asked["inputs"]), asked["seed"], "probe")
    (work.path / "training").mkdir()
    try:
        run = set_up(build(TrainConfig, asked["config"] | {"micro_batch_rows": asked["rows"]}), work, None, work.path / "training")
        run.model.train()
        for step in range(2):  # in the second the optimizer's state is there already
            batch = run.objective.prepare(run.loaders.train.step(step), run.model)
            if run.objective.scope != "batch":
                batch = batch.rows(0, 2 * asked["rows"])  # two micro-batches: the second finds the gradients of the first
            run.engine.forward_backward(batch)
            run.engine.clip(run.config.gradient_clip)
            run.engine.step(1.0, step + 1)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        print("out of memory")
        sys.exit(3)
    print(json.dumps({"peak": torch.cuda.max_memory_reserved() if torch.cuda.is_initialized() else peak_bytes(), "parts": account(run)}))


def as_plain(inputs: dict[str, Any]) -> dict[str, Any]:
    """A stage's inputs as JSON has it, for a process that opens them again."""
    return {name: [str(getattr(item, "path", item)) for item in value] if isinstance(value, list) else value and str(getattr(value, "path", value)) for name, value in inputs.items()}


def as_inputs(plain: dict[str, Any]) -> dict[str, Any]:
    """What :func:`as_plain` was given."""
    return {name: _opened(value) for name, value in plain.items()}


def _opened(value: Any) -> Any:
    if isinstance(value, list):
        return [_opened(item) for item in value]
    return value and (open_artifact(Path(value)) if is_artifact(Path(value)) else Path(value))


if __name__ == "__main__":
    main()
