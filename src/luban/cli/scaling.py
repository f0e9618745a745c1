"""`luban scaling RECIPE [stage.field=value ...]`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Train a ladder of small models on a recipe's own data, fit the law that their losses follow, and foretell the loss of the recipe's model, with an interval and a picture. What is there already is not trained again."))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--stage", help=t("The train stage whose model is foretold. [default: the first that begins a new model with objective: causal]"))
@click.option("--ladder", type=click.IntRange(3, 12), default=4, help=t("Small models. [default: 4]"))
@click.option("--times", type=click.FloatRange(min=1.2), default=4.0, help=t("How many times larger than the largest of them the recipe's model is. [default: 4]"))
@click.option("--ratio", type=click.FloatRange(min=1.2), default=2.0, help=t("How many times larger each of them is than the one before. [default: 2]"))
@click.option("--seeds", type=click.IntRange(1), default=3, help=t("Trainings of each, under different seeds. [default: 3]"))
@click.option("--tokens", type=click.Choice(["same", "proportional"]), default="same", help=t("What each small model reads: as much as the large one, or in proportion to its size, which costs far less. [default: same]"))
@click.option("--check", is_flag=True, help=t("Train the recipe's model too, and say by how much the forecast missed."))
@click.option("--out", type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]"))
def command(recipe: Path, overrides: tuple[str, ...], stage: str | None, ladder: int, times: float, ratio: float, seeds: int, tokens: str, check: bool, out: Path | None) -> None:
    from luban.tuning.scaling import scaling

    scaling(recipe, list(overrides), stage, ladder=ladder, times=times, ratio=ratio, seeds=seeds, tokens=tokens, check=check, out=out)
