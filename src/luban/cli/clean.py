"""`luban clean FOLDER`: remove what is stale or unfinished."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Remove what earlier recipes left in a run's folder. Finished artifacts of the present recipe stay."))
@click.argument("folder", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--unfinished", is_flag=True, help=t("Remove unfinished stages too; they could be continued. [default: keep them]"))
@click.option("--yes", is_flag=True, help=t("Do not ask. [default: ask]"))
def command(folder: Path, unfinished: bool, yes: bool) -> None:
    from luban.foundation.artifacts import locked
    from luban.foundation.console import bytes_text, say
    from luban.pipeline.inventory import find_runs, inventory, remove

    for run in find_runs(folder):
        with locked(run):
            items = [item for item in inventory(run) if item.state == "stale" or (unfinished and item.state == "unfinished")]
            if not items:
                say("{run}: nothing to remove", run=run)
                continue
            for item in items:
                say("  {path} ({state}, {size})", path=item.path, state=t(item.state), size=bytes_text(item.size_bytes))
            if yes or click.confirm(t("remove these?"), err=True):
                freed = remove(items)
                say("{run}: {size} freed", run=run, size=bytes_text(freed))
