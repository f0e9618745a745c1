"""`luban plan RECIPE --cluster 8xA100-80GB`: what fits, how fast, how long, at what cost; `luban plan --data DIR --hours 24`: a recipe for a budget. Before anything is paid for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from luban.foundation.messages import t


@click.command(help=t("Reckon what a recipe's train stages (or a preset's name, such as llama-2-7b) take on a cluster: what fits, memory by purpose, speed and what bounds it, time, cost; the best layouts, and why the others lose. Or with --data and a budget: choose model size, tokens, depth, batch and rates by a scaling law, and write a whole recipe. Nothing is run."))
@click.argument("recipe", type=click.Path(path_type=Path), required=False)
@click.argument("overrides", nargs=-1)
@click.option("--cluster", "clusters", multiple=True, help=t("Devices, such as 8xA100-80GB, 64xH100, 2xcpu-24GB or this; several times for several clusters. [default: what the recipe is made for, else this]"))
@click.option("--node", type=click.IntRange(1), help=t("Devices in a node. [default: as the table of devices says]"))
@click.option("--network", type=click.FloatRange(min=0, min_open=True), help=t("Gigabytes a second that the network between nodes gives a device. [default: as the table of devices says]"))
@click.option("--price", type=click.FloatRange(min=0), default=0.0, help=t("Price of a device for an hour, in your currency. [default: cost is left out]"))
@click.option("--shape", default="", help=t("Name of a preset: the shape of a model directory that is not here."))
@click.option("--as-written", is_flag=True, help=t("Keep the recipe's recompute and micro_batch_rows. [default: look for better ones]"))
@click.option("--data", "data", multiple=True, type=click.Path(path_type=Path), help=t("Files or folders of raw text for which a recipe is written, in the place of RECIPE; several times for several."))
@click.option("--hours", type=click.FloatRange(min=0, min_open=True), help=t("Budget with --data: hours of the whole cluster."))
@click.option("--cost", type=click.FloatRange(min=0, min_open=True), help=t("Budget with --data: money, with --price."))
@click.option("--tokens", help=t("Budget with --data: tokens to read, such as 300M; the size that is best for them is chosen."))
@click.option("--parameters", help=t("Budget with --data: parameters, such as 125M; the tokens that are best for them are chosen."))
@click.option("--law", default="", help=t("Constants of the scaling law, such as E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28, or a JSON file of them. [default: Hoffmann et al. 2022]"))
@click.option("--write", type=click.Path(path_type=Path), default=Path("plan.yaml"), help=t("File of the recipe that --data leads to; one that is there is not overwritten. [default: plan.yaml]"))
@click.option("--json", "as_json", is_flag=True, help=t("Print plain data to standard output."))
def command(recipe: Path | None, overrides: tuple[str, ...], clusters: tuple[str, ...], node: int | None, network: float | None, price: float, shape: str, as_written: bool, as_json: bool, data: tuple[Path, ...], **budget: Any) -> None:
    if data:
        if recipe is not None or len(clusters) > 1:
            raise click.UsageError(t("--data makes a recipe, for one cluster: give no other RECIPE, and --cluster once"))
        return for_budget(list(data), clusters[0] if clusters else "this", node, network, price, as_json, **budget)
    if recipe is None or any(budget[name] is not None for name in ("hours", "cost", "tokens", "parameters")):
        raise click.UsageError(t("give a RECIPE or a preset to plan for; or --data with one of --hours, --cost, --tokens, --parameters"))
    from luban.pipeline.planner import made_for, planned
    from luban.planning.devices import cluster
    from luban.planning.margins import margin_of
    from luban.planning.report import make_plan, show

    made = []
    for text in clusters or (made_for(recipe, list(overrides)) or "this",):
        devices = cluster(text, node, network * 1e9 if network else None)
        margin = margin_of(devices.device.kind, devices.device.name)
        made += [make_plan(one.name, one.job, devices, margin, price=price, fixed=as_written, assumed=one.assumed) for one in planned(recipe, list(overrides), devices, shape)]
    if as_json:
        click.echo(json.dumps([plan.as_json() for plan in made], ensure_ascii=False, indent=1))
    else:
        for plan in made:
            show(plan)


def for_budget(data: list[Path], cluster_text: str, node: int | None, network: float | None, price: float, as_json: bool, hours: float | None, cost: float | None, tokens: str | None, parameters: str | None, law: str, write: Path) -> None:
    """Count, choose, write the recipe, and say why it is so."""
    from luban.foundation.artifacts import write_bytes
    from luban.foundation.console import say
    from luban.foundation.errors import ConfigError
    from luban.pipeline.budget import choose, make_budget, show
    from luban.pipeline.counting import count
    from luban.pipeline.planned_recipe import recipe_text
    from luban.planning.devices import cluster
    from luban.planning.law import read_law
    from luban.planning.margins import margin_of
    from luban.planning.report import show as show_plan

    if write.exists():
        raise ConfigError("{file} is there already", "it may hold your changes", "name another with --write, or remove it", file=write)
    constants, devices = read_law(law), cluster(cluster_text, node, network * 1e9 if network else None)
    budget = make_budget(hours, cost, tokens, parameters, price, devices.count)
    chosen = choose(count(data), devices, margin_of(devices.device.kind, devices.device.name), budget, constants)
    write_bytes(write, recipe_text(chosen, data, write).encode("utf-8", "replace"))
    if as_json:
        click.echo(json.dumps({"recipe": str(write), **chosen.as_json()}, ensure_ascii=False, indent=1))
        return
    show(chosen)
    show_plan(chosen.plan(price))
    say("✓ {file} is yours. Next:", file=write)
    say("  luban check {file} --no-dry-batch", file=write)
    if devices.device.trains:
        say("  luban scaling {file} --tokens proportional", file=write)
        say("  luban run {file}" if devices.count == 1 else "  luban launch {file}", file=write)
