"""`luban check RECIPE`: everything that can be known before the run; `luban check RUN --ledger`: what a run has read."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from luban.foundation.messages import t

if TYPE_CHECKING:
    from luban.pipeline.check import Tick


@click.command(help=t("Walk through a recipe and the machine, and tick each step: inputs, data, templates, memory and time, one dry batch."))
@click.argument("recipe", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1)
@click.option("--no-dry-batch", is_flag=True, help=t("Do not run the dry batch. [default: run one]"))
@click.option("--probe", is_flag=True, help=t("Try in processes of their own how many rows of a micro-batch the memory holds, for stages whose inputs are made. [default: no]"))
@click.option("--layouts", is_flag=True, help=t("Instead, train a tiny form of each train stage in every layout that fits, and compare losses and gradient norms with one process. [default: no]"))
@click.option("--rehearse", is_flag=True, help=t("Instead, go through each train stage at its full size on the ranks of its cluster without allocating it: data, model, layout, two steps, checkpoint; and compare its memory with the planner's."))
@click.option("--cluster", default="", help=t("With --rehearse: the devices. [default: what the recipe is made for, else this]"))
@click.option("--ranks", default="", help=t("With --layouts: the numbers of processes [default: 1,2,4]; with --rehearse: how many. [default: as many as the cluster has devices]"))
@click.option("--ledger", is_flag=True, help=t("For a run, or the folder of a train stage, in the place of a recipe: read what it has learned from again and compare it with its ledger, source by source and shard by shard."))
def command(recipe: Path, overrides: tuple[str, ...], no_dry_batch: bool, probe: bool, layouts: bool, rehearse: bool, cluster: str, ranks: str, ledger: bool) -> None:
    from luban.foundation.console import say

    _refuse_alone("--cluster", cluster, {"--rehearse": rehearse})
    _refuse_alone("--ranks", ranks, {"--layouts": layouts, "--rehearse": rehearse})
    if ledger:
        from luban.pipeline.ledger import check_ledger

        sys.exit(_show(check_ledger(recipe)) > 0)
    from luban.pipeline.check import check
    from luban.pipeline.planner import processes_of
    from luban.pipeline.recipe import read_recipe
    from luban.planning.devices import cluster as cluster_of

    made = read_recipe(recipe, list(overrides))
    say("✓ the recipe is valid: {stages}", stages=" → ".join(made.stages))
    if layouts:
        from luban.pipeline.check_layouts import check_layouts, parse_ranks

        passed = check_layouts(made, parse_ranks(ranks or "1,2,4"))
        say("every layout trains the same model, but for the order of sums" if passed else "a layout does not train the same model")
        sys.exit(not passed)
    if rehearse:
        from luban.pipeline.check_layouts import parse_ranks
        from luban.pipeline.rehearse import check_rehearsal

        sys.exit(_show(check_rehearsal(made, cluster, parse_ranks(ranks)[-1] if ranks else 0)) > 0)
    if _show(check(made, dry_batch=not no_dry_batch, probe=probe)):
        sys.exit(1)
    several = cluster_of(made.cluster).count > 1 if made.cluster not in ("", "this", "auto") else processes_of(made)[0] > 1
    say("ready: luban launch {recipe}" if several else "ready: luban run {recipe}", recipe=recipe)


def _refuse_alone(option: str, value: str, owners: dict[str, bool]) -> None:
    """ConfigError where an option is given without any of those it belongs to: nothing would read it."""
    from luban.foundation.errors import ConfigError

    if value and not any(owners.values()):
        raise ConfigError("{option} {value}: nothing of this check reads it", "it belongs to {owners}", "add {owner}, or leave {option} out", option=option, value=value, owners=", ".join(owners), owner=[*owners][-1])


def _show(ticks: Iterable[Tick]) -> int:
    """Print each tick as it comes; the number of those that failed."""
    from luban.foundation.console import console, say

    failed = 0
    for tick in ticks:
        failed += not tick.passed
        mark, style = ("✗", "red") if not tick.passed else ("!", "yellow") if tick.heed else ("✓", None)
        console().print(f"{mark} {tick.text}", style=style, markup=False)
    if failed:
        say("{count} of the checks failed", count=failed)
    return failed
