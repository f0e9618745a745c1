"""The HTTP server's life: it listens, answers, and when told to stop it finishes what it has begun."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from types import FrameType

import uvicorn

from luban.foundation.console import say, warn
from luban.serving.app import make_app
from luban.serving.listen import LOOPBACK, listen, url_of
from luban.serving.served import Served


def bind(host: str, port: int) -> socket.socket:
    """A socket that holds the address, known before the model loads; who may reach it is said."""
    listener = listen(host, port)
    if host not in LOOPBACK:
        warn(
            "{host} can be reached from other machines, and this server has no access control yet: anyone who reaches it may use the model",
            host=host,
        )
    return listener


class Server(uvicorn.Server):
    """uvicorn, but a signal to stop begins a drain.

    While it drains the port stays open, so that /ready and new requests are told 503 rather than left hanging.
    A second signal ends the drain at once.
    """

    def __init__(self, service: Served, listener: socket.socket):
        super().__init__(
            uvicorn.Config(
                make_app(service),
                lifespan="off",
                log_level="warning",
                access_log=False,
                timeout_graceful_shutdown=2,
                timeout_keep_alive=30,
                server_header=False,
            )
        )
        self.service, self.listener = service, listener
        self.drained: asyncio.Task | None = None
        self.loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.loop = asyncio.get_running_loop()
        self._announce()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Called by a signal. uvicorn's own would raise the signal again at the end; a drained server ends with 0."""
        if self.loop is None or self.service.draining:
            self.should_exit = self.force_exit = True
        else:
            self.service.draining = True
            self.loop.call_soon_threadsafe(self._begin_drain)

    def _begin_drain(self) -> None:
        self.drained = asyncio.ensure_future(self._drain())

    async def _drain(self) -> None:
        service, seconds = self.service, self.service.config.drain_seconds
        if service.in_flight:
            say(
                "stopping: {count} requests are finished first, for at most {seconds} s; a second signal (Ctrl-C) stops at once",
                count=service.in_flight,
                seconds=f"{seconds:g}",
            )
        deadline = time.monotonic() + seconds
        while service.in_flight and time.monotonic() < deadline and not self.should_exit:
            await asyncio.sleep(0.02)
        if service.in_flight:
            service.give_up()
            await asyncio.sleep(0.2)  # in which the last answers are told so
        self.should_exit = True

    def _announce(self) -> None:
        service = self.service
        url = url_of(self.listener)
        path, body = service.example()
        say("{name} is ready at {url}/v1 (Ctrl-C stops it)", name=service.name, url=url)
        if service.page == "page.html":
            say("chat page: {url}/", url=url)
        else:
            say("page: {url}/", url=url)
        say("try: {command}", command=f"curl {url}{path} -H 'Content-Type: application/json' -d '{json.dumps(body, ensure_ascii=False)}'")


def serve_until_stopped(service: Served, listener: socket.socket) -> None:
    """Serve in the foreground; returns once a signal was obeyed."""
    server = Server(service, listener)
    service.start()
    try:
        server.run(sockets=[listener])
    finally:
        service.stop()
        listener.close()
    say("stopped")
