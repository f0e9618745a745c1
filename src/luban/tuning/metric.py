"""Which figure judges a trial, whether more of it is better, and where it stands in what a stage reports."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from luban.foundation.config import Source
from luban.foundation.errors import ConfigError
from luban.metrics.tasks import MAIN, greater_is_better
from luban.pipeline.config import TuneConfig
from luban.pipeline.implied import READS
from luban.pipeline.recipe import Stage

AUTO = "auto:"  # before the name of a metric that nobody named: a stage's own main one may take its place
_LESS = ("loss", "error", "seconds", "perplexity", "parameters", "bytes")  # what a name ends in that says so itself


@dataclass(frozen=True)
class Measured:
    """A trial's value; over folds or seeds the mean, with the sample deviation and the single values."""

    value: float
    deviation: float | None = None
    values: tuple[float, ...] = ()


def find_metric(config: TuneConfig, stage: Stage, source: Source) -> tuple[str, bool]:
    """The metric's name, and whether it is maximised."""
    name = config.metric if config.metric != "auto" else AUTO + _main(stage, source)
    if config.direction != "auto":
        return name, config.direction == "maximize"
    leaf = plain_name(name).rpartition(".")[2]
    more = False if leaf.endswith(_LESS) else greater_is_better(leaf)
    if more is None:
        raise ConfigError("{where}: whether more or less of {name} is better cannot be known", "", "set tune.direction to minimize or maximize", where=source.at("tune.metric"), name=leaf)
    return name, more


def plain_name(metric: str) -> str:
    """The metric as people call it."""
    return metric.removeprefix(AUTO)


def _main(stage: Stage, source: Source) -> str:
    if stage.kind.name == "train":
        name = stage.config.objective_name
        learned = getattr(stage.config.objective, "of", name)
        task = learned if learned in MAIN else READS.get(learned, "")
        return MAIN.get(task, "loss")
    if stage.kind.name == "fit" and stage.config.method in ("linear", "majority", "dictionary"):
        return MAIN["tagging" if stage.config.method == "dictionary" else stage.config.linear.task]
    if stage.kind.name == "fit" and stage.config.method == "ngram":
        return "bits_per_byte"
    raise ConfigError("{where}: a {kind} stage has no metric of its own to search by", "", "name one in tune.metric, with tune.direction", where=source.at("tune.metric"), kind=stage.kind.name)


def measure(metrics: Mapping[str, Any], metric: str, maximize: bool, stage: str) -> Measured:
    """The metric in a stage's reported figures: over folds where there are folds, else of the model that is saved. ConfigError where it is not there."""
    name = plain_name(metric)
    after, folds = metrics.get("after") or {}, metrics.get("folds") or {}
    reported = after | {key: value for key, value in metrics.items() if key not in after}
    own = metrics.get("best_metric")
    if metric.startswith(AUTO) and name not in after and own in after and (greater_is_better(own) or False) == maximize:
        name = own
    if name in folds:
        return Measured(folds[name]["mean"], folds[name]["deviation"], tuple(folds[name]["values"]))
    found: Any = reported.get(name)
    if found is None:
        found = reported
        for key in name.split("."):
            found = found.get(key) if isinstance(found, Mapping) else None
    if isinstance(found, Mapping):
        found = found.get("value")
    if not isinstance(found, int | float) or isinstance(found, bool):
        known = [key for key, value in reported.items() if isinstance(value, int | float)]
        raise ConfigError("the stage {stage} reports no {name}", "it reports: {known}", "name one of these in tune.metric; held-out figures need validation data, or a share of the examples", stage=stage, name=name, known=", ".join(known) or "-")
    return Measured(float(found))


def current(scores: Mapping[str, float], metric: str, own: str) -> float | None:
    """The metric at a validation, or None where it is not measured then."""
    name = plain_name(metric)
    if metric.startswith(AUTO) and name not in scores:
        name = own
    value = scores.get(name)
    return value if value is not None and math.isfinite(value) else None


def mean_of(found: list[Measured]) -> Measured:
    """One value of several seeds'."""
    if len(found) == 1:
        return found[0]
    values = [one.value for one in found]
    mean = sum(values) / len(values)
    return Measured(mean, math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1)), tuple(values))
