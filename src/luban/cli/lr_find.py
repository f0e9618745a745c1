"""`luban lr-find RECIPE [stage.field=value ...]`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Find a learning rate: let it rise from very low to very high over the first steps of a train stage, and see where the loss falls fastest. The stage's own folder stays as it is."))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--stage", help=t("The train stage. [default: the last one]"))
@click.option("--steps", type=click.IntRange(10), default=100, help=t("Steps of the rise. [default: 100]"))
@click.option("--from", "low", type=float, default=1e-7, help=t("First learning rate. [default: 1e-7]"))
@click.option("--to", "high", type=float, default=1.0, help=t("Last learning rate. [default: 1]"))
@click.option("--out", type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]"))
def command(recipe: Path, overrides: tuple[str, ...], stage: str | None, steps: int, low: float, high: float, out: Path | None) -> None:
    from luban.pipeline.recipe import read_recipe
    from luban.tuning.lr_find import lr_find

    lr_find(read_recipe(recipe, list(overrides), out), stage=stage, steps=steps, low=low, high=high)
