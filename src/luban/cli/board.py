"""`luban board [FOLDER]`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Watch training runs in a browser: curves, samples, events, recipes, and what differs between runs. Finished runs and those that go on."))
@click.argument("folder", default="runs", type=click.Path(path_type=Path))
@click.option("--port", type=click.IntRange(0, 65535), default=8080, help=t("The port to listen on; 0 takes a free one and prints it. [default: 8080]"))
@click.option("--host", default="127.0.0.1", help=t("The address to listen on. [default: 127.0.0.1, reached from this machine only]"))
@click.option("--open", "opens", is_flag=True, help=t("Open the page in the browser."))
def command(folder: Path, port: int, host: str, opens: bool) -> None:
    from luban.board.server import show_board

    show_board(folder, host, port, opens)
