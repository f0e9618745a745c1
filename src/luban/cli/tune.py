"""`luban tune RECIPE [stage.field=value ...]`."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Search for the values that a recipe leaves open: {search: [1e-5, 1e-3], scale: log} or {choice: [a, b]} in the place of a value. A killed search continues with the same command. Overrides are dotted: tune.trials=50"))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]"))
@click.option("--trials", type=click.IntRange(1), help=t("Trials in all. [default: the recipe's `tune.trials`, or 20]"))
@click.option("--jobs", type=click.IntRange(1), help=t("Trials at the same time. [default: the recipe's `tune.jobs`, or 1]"))
@click.option("--dry-run", is_flag=True, help=t("Print the spaces and what would be done, and do nothing."))
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, trials: int | None, jobs: int | None, dry_run: bool) -> None:
    from luban.tuning.problem import read_problem

    given = [*overrides, *(f"tune.{name}={value}" for name, value in (("trials", trials), ("jobs", jobs)) if value)]
    problem = read_problem(recipe, given, out)
    if dry_run:
        _print_spaces(problem)
        return
    from luban.tuning.tuner import tune

    tune(problem, shlex.join(["luban", "tune", str(recipe), *given, *(["--out", str(out)] if out else [])]))


def _print_spaces(problem) -> None:
    """The spaces, and what trials share."""
    from luban.foundation.console import say, table
    from luban.pipeline.spaces import every
    from luban.tuning.metric import plain_name

    rows = [(space.name, ", ".join(space.labels) if space.is_choice else f"{space.low:g} … {space.high:g} {space.unit}", t("log") if space.log else (f"{space.step:g}" if space.step else "")) for space in every(problem.spaces)]
    table(t("search spaces of {name}", name=problem.name), [t("space"), t("values"), t("scale or step")], rows)
    say("{direction} {metric} of {stage}", direction=t("maximize" if problem.maximize else "minimize"), metric=plain_name(problem.metric), stage=problem.stage)
    say("shared by all trials: {shared}; made for each: {stages}", shared=", ".join(problem.shared) or "-", stages=", ".join(problem.stages))
