"""The board's life: it listens, answers, and stops at a signal."""

from __future__ import annotations

import socket
import webbrowser
from pathlib import Path
from types import FrameType

import uvicorn

from luban.board.app import make_app
from luban.board.library import Library
from luban.foundation.console import say, warn
from luban.foundation.errors import DataError
from luban.serving.listen import LOOPBACK, listen, url_of


class Server(uvicorn.Server):
    """uvicorn, but it says where it is, and a signal ends it without an error."""

    def __init__(self, library: Library, host: str, listener: socket.socket, opens: bool):
        super().__init__(uvicorn.Config(make_app(library, host), lifespan="off", log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False))
        self.library, self.listener, self.opens = library, listener, opens

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        url = url_of(self.listener)
        say("the board of {folder}, {count} runs: {url}/ (Ctrl-C stops it)", folder=self.library.root, count=len(self.library.places()), url=url)
        if self.opens:
            webbrowser.open(url)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True


def show_board(folder: Path, host: str = "127.0.0.1", port: int = 8080, opens: bool = False) -> None:
    """Serve the board of a folder until stopped. Raises DataError where there is no such folder, LubanError when the address is taken."""
    if not folder.is_dir():
        raise DataError("{path}: no such folder", "", "give the folder that your runs lie under, such as runs", path=folder)
    listener = listen(host, port)
    if host not in LOOPBACK:
        warn("{host} can be reached from other machines, and the board has no access control: anyone who reaches it may read these runs", host=host)
    with listener:
        Server(Library(folder), host, listener, opens).run(sockets=[listener])
    say("stopped")
