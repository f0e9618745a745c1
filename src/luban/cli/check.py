"""`luban check RECIPE`: everything that can be known before the run."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Walk through a recipe and the machine, and tick each step: inputs, data, templates, memory and time, one dry batch."))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--no-dry-batch", is_flag=True, help=t("Do not run the dry batch. [default: run one]"))
@click.option("--probe", is_flag=True, help=t("Try in processes of their own how many rows of a micro-batch the memory holds, for stages whose inputs are made. [default: no]"))
def command(recipe: Path, overrides: tuple[str, ...], no_dry_batch: bool, probe: bool) -> None:
    from luban.foundation.console import console, say
    from luban.pipeline.check import check
    from luban.pipeline.recipe import read_recipe

    made = read_recipe(recipe, list(overrides))
    say("✓ the recipe is valid: {stages}", stages=" → ".join(made.stages))
    failed = 0
    for tick in check(made, dry_batch=not no_dry_batch, probe=probe):
        failed += not tick.passed
        console().print(f"{'✓' if tick.passed else '✗'} {tick.text}", style=None if tick.passed else "red", markup=False)
    if failed:
        say("{count} of the checks failed", count=failed)
        sys.exit(1)
    say("ready: luban run {recipe}", recipe=recipe)
