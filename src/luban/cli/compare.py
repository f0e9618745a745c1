"""`luban compare RECIPE --methods full,lora,adalora [--bases a,b]`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Train a recipe's stage by several methods, or from several bases, under one budget, and draw quality against memory, time and parameters. What is there already is not trained again."))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--methods", default="", help=t("Methods with commas between: full, lora, dora, adalora, prefix … [default: the recipe's own]"))
@click.option("--bases", default="", help=t("Stages or model directories with commas between. [default: the recipe's own]"))
@click.option("--seeds", type=click.IntRange(1), default=1, help=t("Trainings of each, under different seeds; the table shows their deviation. [default: 1]"))
@click.option("--stage", help=t("The train stage. [default: the last that starts from a model]"))
@click.option("--out", type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]"))
def command(recipe: Path, overrides: tuple[str, ...], methods: str, bases: str, seeds: int, stage: str | None, out: Path | None) -> None:
    from luban.tuning.comparison import compare

    def parts(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    compare(recipe, list(overrides), parts(methods), parts(bases), seeds, stage, out)
