"""`luban show PATH`: the card of an artifact, a run, a model or a data file, in the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Show an artifact, a run, a model directory or a data file: its card in the terminal."))
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--ledger", is_flag=True, help=t("Which data a training has learned from, in order; checks that none was read twice."))
def command(path: Path, ledger: bool) -> None:
    from luban.pipeline.show import show, show_ledger

    show_ledger(path) if ledger else show(path)
