"""Real torchrun on this machine, plans for its ranks, and what to ask of the logs that trainings leave."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from rank_lab import make

from luban.foundation.environment import Launch
from luban.parallel.layouts import Layout
from luban.parallel.ranks import Ranks
from luban.training.config import TrainConfig
from luban.training.layout import choose_layout
from luban.training.log import deterministic

HERE = Path(__file__).parent
EXACT = 1e-9  # in float64
CLOSE = 2e-4  # in float32, of figures as a share of them


def torchrun(count: int, *arguments: Any, restarts: int = 0, **settings: Any) -> subprocess.Popen:
    """Real torchrun with so many ranks of this machine, one thread each."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(HERE.parent), str(HERE), *filter(None, [os.environ.get("PYTHONPATH")])]), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count), "--max-restarts", str(restarts), *map(str, arguments)]
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", **settings)


def follow(folder: Path, count: int, cases: list[str], runs: list[dict[str, Any]], **rest: Any) -> dict[str, Any]:
    """What came of a plan (rank_program.py)."""
    plan = {"cases": cases, "runs": runs, **rest, "found": str(folder / "found.json")}
    (folder / "plan.json").write_text(json.dumps(plan, default=str))
    _, said = torchrun(count, HERE / "rank_program.py", folder / "plan.json").communicate(timeout=600)
    assert (folder / "found.json").exists(), said[-4000:]
    return json.loads((folder / "found.json").read_text())


def luban_run(count: int, folder: Path, *overrides: str, **settings: Any) -> subprocess.Popen:
    return torchrun(count, "-m", "luban", "--language", "en", "run", "recipe.yaml", *overrides, cwd=folder, **settings)


def same_figures(first: Path, second: Path, close: float) -> None:
    """The losses and gradient norms that two trainings have logged, step by step, and no step more."""
    rows = [{entry["step"]: entry for entry in deterministic(folder / "training" / "log.jsonl") if "loss" in entry} for folder in (first, second)]
    assert rows[0].keys() == rows[1].keys()
    for step, entry in rows[0].items():
        assert rows[1][step]["loss"] == pytest.approx(entry["loss"], rel=close)
        assert rows[1][step]["gradient_norm"] == pytest.approx(entry["gradient_norm"], rel=close)


def differs(one: Path, other: Path) -> list[str]:
    """The figures of two logs that are not the same but for the order of sums."""
    first, second = (list(deterministic(folder / "training" / "log.jsonl")) for folder in (one, other))
    found = []
    for entry, also in zip(first, second, strict=True):
        known, others = (flat.get("validation", flat) for flat in (entry, also))
        assert known.keys() == others.keys()
        for name, value in known.items():
            if isinstance(value, float):
                if abs(value - others[name]) > CLOSE * max(1e-2, abs(value)):
                    found.append(f"step {entry['step']}: {name} {value} {others[name]}")
            elif value != others[name]:
                found.append(f"step {entry['step']}: {name} {value} {others[name]}")
    return found


def files_of(artifact: Path) -> set[str]:
    """What a training left; each process may leave the stacks of its own threads."""
    return {file.name for file in (artifact / "training").iterdir() if not file.name.startswith("stacks")}


def chosen(model: str = "llama", count: int = 2, **fields: Any) -> Layout:
    made, objective, _ = make(model)
    config = TrainConfig.model_validate({"data": "x", **fields})
    return choose_layout(config, made, objective, Ranks(Launch(0, count)))


def started(home: Path, name: str) -> str:
    """A folder of a run whose tokens are made, as the value of --out."""
    for stage in ("corpus", "tokenizer", "tokens"):
        shutil.copytree(home / "one" / stage, home / name / stage)
    return f"--out={name}"


def ended(process: subprocess.Popen, status: int = 0) -> str:
    _, said = process.communicate(timeout=300)
    assert (process.returncode == 0) == (status == 0), said[-4000:]
    return said
