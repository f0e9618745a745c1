"""A small server of /v1/chat/completions on this machine, for tests of its clients."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Completions(ThreadingHTTPServer):
    """Answers each prompt with ``reply(prompt, number)``: a text, or (status, body, headers). ``asked`` holds what came."""

    daemon_threads = True

    def __init__(self, reply: Callable[[str, int], Any]):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.reply, self.asked = reply, []
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: Completions

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.asked.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
            number = len(self.server.asked)
        found = self.server.reply(body["messages"][0]["content"], number)
        status, data, headers = found if isinstance(found, tuple) else (200, _completion(found), {})
        data = data if isinstance(data, bytes) else data.encode("utf-8")
        self.send_response(status)
        for name, value in {"Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _completion(text: str, reason: str = "stop") -> str:
    return json.dumps({"choices": [{"message": {"role": "assistant", "content": text}, "finish_reason": reason}]})


def cut(text: str) -> tuple[int, str, dict[str, str]]:
    """A reply that the length limit ended."""
    return 200, _completion(text, "length"), {}


@contextmanager
def serving(reply: Callable[[str, int], Any]) -> Iterator[Completions]:
    """The server, running until the block ends."""
    server = Completions(reply)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
