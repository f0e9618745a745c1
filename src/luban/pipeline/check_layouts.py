"""`luban check RECIPE --layouts`: the tiny form of each train stage in every layout that fits so many processes, beside one process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from luban.foundation.console import say, table
from luban.foundation.custom import is_custom
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.objectives.base import load_objective
from luban.pipeline.check import train_configs
from luban.pipeline.recipe import Recipe
from luban.training.layout_parity import TOLERANCES, Outcome, allowed, compare_layouts


def parse_ranks(text: str) -> list[int]:
    """``1,2,4`` as numbers. ConfigError for what is none, and for numbers that do not divide the largest."""
    try:
        counts = sorted({int(part) for part in text.split(",")})
    except ValueError:
        counts = []
    if not counts or counts[0] < 1 or any(counts[-1] % count for count in counts):
        raise ConfigError("--ranks {text} is no list of numbers of processes that divide the largest", "the smaller groups run beside each other in the largest", "write 1,2,4", text=text)
    return counts


def check_layouts(recipe: Recipe, counts: Sequence[int]) -> bool:
    """Print a matrix of differences for each train stage; whether all are within their bounds. Stages of one family are compared once."""
    passed, known = True, {}
    for name, config in train_configs(recipe):
        objective = load_objective(str(recipe.path_of(config.objective)) if isinstance(config.objective, str) and is_custom(config.objective) else config.objective)
        chosen, refused = allowed(config.shape, config, objective, counts)
        for (field, value, why), texts in refused.items():
            say("{stage}: not tried, as training refuses {field}: {value} there ({why}): {layouts}", stage=name, field=field, value=value, why=t(why), layouts="; ".join(texts))
        key = (config.shape.architecture, config.optimizer.name, str(chosen))
        if key in known:
            say("{stage}: {architecture} with {optimizer}, as {other}", stage=name, architecture=key[0], optimizer=key[1], other=known[key])
            continue
        known[key] = name
        if not chosen:
            continue
        say("{stage}: starting {count} processes for the layouts of {ranks}; this takes minutes", stage=name, count=max(chosen), ranks=", ".join(map(str, counts)))
        found = compare_layouts(config.shape, config.optimizer.name, counts, chosen)
        passed &= all(outcome.passed for outcome in found)
        title = t("{stage}: {architecture} with {optimizer}, ten steps of a tiny model in each layout; the largest difference from one process", stage=name, architecture=key[0], optimizer=key[1])
        table(title, [t("layout"), t("processes"), *(f"{t(figure)}\n{kind}" for kind in TOLERANCES for figure in ("loss", "norm")), ""], _rows(found))
    if not known:
        say("the recipe has no train stage")
    return passed


def _rows(found: Sequence[Outcome]) -> Iterator[list[object]]:
    for outcome in found:
        figures = [f"{part[kind]:.0e}" for kind in TOLERANCES for part in (outcome.loss, outcome.norm)]
        yield [outcome.layout if outcome.layout != "one process" else t("one process"), outcome.ranks, *figures, "✓" if outcome.passed else "✗"]
