"""`luban run RECIPE [stage.field=value ...]`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Run a recipe: what is missing or stale, in order. A killed run continues with the same command. Overrides are dotted: base.optimizer.learning_rate=1e-3"))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--out", type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]"))
@click.option("--until", metavar="STAGE", help=t("Stop after this stage. [default: run them all]"))
@click.option("--wait", is_flag=True, help=t("Wait for another run in the same folder instead of stopping."))
@click.option("--restart", "change", flag_value="restart", help=t("Train anew where a half-done training has other settings now; what is there goes to .previous/."))
@click.option("--accept-change", "change", flag_value="accept", help=t("Go on with a half-done training that has other settings now."))
@click.option("--dry-run", is_flag=True, help=t("Print what would be done, and do nothing."))
def command(recipe: Path, overrides: tuple[str, ...], out: Path | None, until: str | None, wait: bool, dry_run: bool, change: str | None) -> None:
    from luban.pipeline.recipe import read_recipe
    from luban.pipeline.runner import run_recipe

    made = read_recipe(recipe, list(overrides), out)
    print_plan(made) if dry_run else run_recipe(made, wait=wait, until=until, change=change or "refuse")


def print_plan(recipe) -> None:
    """The steps a run would take, without taking them."""
    from luban.foundation.console import table
    from luban.pipeline.runner import plan

    rows = [(step.stage.name, step.stage.kind.name, t(step.status), t(step.reason)) for step in plan(recipe)]
    table(t("plan of {name} in {folder}", name=recipe.name, folder=recipe.out), [t("stage"), t("kind"), t("status"), t("reason")], rows)
