"""k-fold cross-validation: the same training once for each fold, and what its scores are on average."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from luban.foundation.artifacts import Work, write_json
from luban.foundation.console import heading, table
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.objectives.config import ON_TEXT
from luban.parallel.ranks import here
from luban.training.config import TrainConfig

SHOWN = 6


def cross_validate(config: TrainConfig, work: Work, train_once: Callable[..., Any]) -> None:
    """Train on all folds but one, for each of them; ``work.metrics["folds"]`` gets each score's mean, deviation and values.

    A fold that is done leaves ``training/folds/N.json`` and is not done again by a continued run.
    """
    if config.validation.folds < 2 or config.objective_name in (*ON_TEXT, "instruction"):
        raise ConfigError("validation.folds: {folds} folds of {objective}", "cross-validation is for labelled examples, and takes at least two folds", "give 2 or more, or 0 for none", folds=config.validation.folds, objective=config.objective_name)
    folder = work.path / "training" / "folds"
    scores = [_one(config, work, train_once, folder, fold) for fold in range(config.validation.folds)]
    names = [name for name in scores[0] if all(name in found for found in scores)]
    found = {name: _summary([score[name] for score in scores]) for name in names}
    work.metrics["folds"] = found
    if here().leads:
        write_json(work.path / "training" / "folds.json", found)
    rows = [(name, f"{said['mean']:.4f}", f"{said['deviation']:.4f}", "  ".join(f"{value:.4f}" for value in said["values"])) for name, said in found.items()]
    table(t("{count}-fold cross-validation", count=len(scores)), ["", t("mean"), t("deviation"), t("folds")], rows[:SHOWN])


def _one(config: TrainConfig, work: Work, train_once: Callable[..., Any], folder: Path, fold: int) -> dict[str, float]:
    done, ranks = folder / f"{fold}.json", here()
    if known := ranks.lead(lambda: json.loads(done.read_bytes()) if done.exists() else None):
        return known
    heading("fold {number} of {count}", number=fold + 1, count=config.validation.folds)
    own = Work(folder / str(fold), work.inputs, work.seed, f"{work.name}, {t('fold')} {fold + 1}", watch=work.watch, accepted=work.accepted)
    training, _ = train_once(config, own, fold)
    scores = training.history["after"]
    ranks.everyone()  # each has closed its files
    if ranks.leads:
        write_json(done, scores)
        shutil.copyfile(own.path / "training" / "log.jsonl", folder / f"{fold}.log.jsonl")
        shutil.rmtree(own.path, ignore_errors=True)
    return scores


def _summary(values: list[float]) -> dict[str, Any]:
    """Mean, sample deviation, and the values themselves."""
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values, ddof=1)), "values": values}
