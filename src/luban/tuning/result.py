"""What a search leaves: best.yaml, the best model where a run of best.yaml would have put it, and nothing heavy of the others."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import yaml

from luban.foundation.artifacts import fingerprint, is_artifact, locked, open_artifact, write_bytes
from luban.foundation.messages import t
from luban.pipeline.inventory import ASIDE
from luban.tuning.metric import plain_name
from luban.tuning.problem import Drawn, Problem, moved_path, with_inputs
from luban.tuning.trial import remove_heavy

BEST = "best.yaml"


def write_best(problem: Problem, number: int, value: float, drawn: Drawn) -> Path:
    """A plain recipe with the best trial's values in it, for `luban run`. Paths are written from its own folder."""
    recipe = problem.recipe(drawn)
    folder = problem.tune_folder
    stages = {}
    for name, stage in recipe.stages.items():
        config = with_inputs(stage, lambda path: moved_path(path, recipe, folder))
        stages[name] = {"kind": stage.kind.name, **config.model_dump(mode="json", exclude_unset=True)}
    plain = {"luban": 1, "name": recipe.name, "seed": recipe.seed, "out": "..", "stages": stages}
    head = "# " + t("trial {number} of luban tune: {metric} {value:.6g}", number=number, metric=plain_name(problem.metric), value=value) + "\n"
    path = folder / BEST
    write_bytes(path, (head + yaml.safe_dump(plain, sort_keys=False, allow_unicode=True)).encode("utf-8", "replace"))
    return path


def keep_best(problem: Problem, ranked: list[int], ended: list[int]) -> None:
    """Of the trials that have ended, only the first of ``ranked`` keep their models."""
    kept = ranked[: problem.config.keep]
    for number in ended:
        if number not in kept:
            remove_heavy(problem.trial_folder(number))


def promote(problem: Problem, number: int) -> None:
    """Put the best trial's artifacts where `luban run best.yaml` would make them, so that it takes them as they are. The files are shared, not copied."""
    with locked(problem.run_folder, True):
        for name in problem.stages:
            made, final = problem.trial_folder(number) / name, problem.run_folder / name
            if not is_artifact(made):
                continue
            mark = open_artifact(made).fingerprint
            if is_artifact(final) and open_artifact(final).fingerprint == mark:
                continue
            if final.exists():
                aside = problem.run_folder / ASIDE / f"{name}-{open_artifact(final).fingerprint if is_artifact(final) else 'unknown'}"
                shutil.rmtree(aside, ignore_errors=True)
                aside.parent.mkdir(exist_ok=True)
                final.rename(aside)
            partial = problem.run_folder / f".{name}.{mark}"
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(made, partial, copy_function=_link)
            partial.rename(final)


def _link(source: Any, target: Any) -> Any:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
    return target


def set_aside_other(problem: Problem) -> None:
    """A search of other spaces, data or settings in the same folder is moved away, and taken back when the recipe returns to it."""
    folder, aside = problem.tune_folder, problem.run_folder / ASIDE
    with locked(problem.run_folder, True, "tune"):
        file = folder / ".search"
        if file.exists() and file.read_text(encoding="ascii", errors="replace") != problem.mark:
            old = aside / f"tune-{fingerprint(file.read_text(encoding='ascii', errors='replace'))}"
            shutil.rmtree(old, ignore_errors=True)
            aside.mkdir(exist_ok=True)
            folder.rename(old)
        kept = aside / f"tune-{fingerprint(problem.mark)}"
        if kept.exists() and not folder.exists():
            kept.rename(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(file, problem.mark.encode("ascii"))
