"""``luban.tune(recipe)`` and ``luban.lr_find(recipe)``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from luban.foundation.config import Source
from luban.pipeline.recipe import make_recipe, read_recipe
from luban.tuning import lr_find as range_test
from luban.tuning.problem import make_problem, read_problem
from luban.tuning.tuner import Best
from luban.tuning.tuner import tune as search


def tune(recipe: str | Path | dict[str, Any], *overrides: str, out: str | Path | None = None) -> Best:
    """Search for the values that a recipe (a file, or its content as a dictionary) leaves open, or go on with a search that was stopped.

    ``overrides`` are ``"tune.trials=50"`` texts. Returns the best trial: its values, its figure, best.yaml, the model's folder, the report.
    """
    out = Path(out) if out is not None else None
    if isinstance(recipe, dict):
        return search(make_problem(recipe, Path("."), "recipe", Source(), out), "luban.tune(…)")
    command = ["luban", "tune", str(recipe), *overrides, *(["--out", str(out)] if out else [])]
    return search(read_problem(Path(recipe), list(overrides), out), shlex.join(command))


def lr_find(recipe: str | Path | dict[str, Any], *overrides: str, out: str | Path | None = None, stage: str | None = None, steps: int = 100, low: float = 1e-7, high: float = 1.0) -> range_test.Suggestion:
    """The learning-rate range test of a train stage, the last one by default; ``.rate`` is what it suggests."""
    out = Path(out) if out is not None else None
    made = make_recipe(recipe, Path("."), "recipe", Source(), out) if isinstance(recipe, dict) else read_recipe(Path(recipe), list(overrides), out)
    return range_test.lr_find(made, stage=stage, steps=steps, low=low, high=high)
