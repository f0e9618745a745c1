"""`luban runs [FOLDER]`: what there is, what it weighs, what is stale."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("List the runs under a folder: what there is, what it weighs, what is stale."))
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
def command(folder: Path) -> None:
    from luban.foundation.console import bytes_text, say, seconds_text, table
    from luban.pipeline.inventory import find_runs, inventory

    runs = find_runs(folder)
    if not runs:
        say("there is no run under {folder}", folder=folder)
    for run in runs:
        rows = [(item.name, item.kind, t(item.state), bytes_text(item.size_bytes), seconds_text(item.seconds) if item.seconds else "") for item in inventory(run)]
        table(str(run), [t("stage"), t("kind"), t("state"), t("size"), t("time")], rows)
