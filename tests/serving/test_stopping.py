"""A server that is told to stop finishes what it has begun, sends newcomers away, and ends with status 0."""

from __future__ import annotations

import json
import signal
import socket
import threading
import time

import httpx
import pytest

from luban.foundation.errors import LubanError
from luban.serving.server import bind

COMPLETION = "/v1/completions"


class Reader(threading.Thread):
    """Reads a stream of many tokens in the background."""

    def __init__(self, server, tokens: int):
        super().__init__(daemon=True)
        self.server, self.tokens, self.events = server, tokens, []
        self.start()
        server.wait_for(lambda: len(self.events) > 3)

    def run(self) -> None:
        body = {"prompt": "What", "temperature": 0, "max_tokens": self.tokens, "stream": True}
        with httpx.stream("POST", self.server.url + COMPLETION, json=body, timeout=60) as response:
            for line in response.iter_lines():
                if line.startswith("data: "):
                    self.events.append(line.removeprefix("data: "))

    def finish(self) -> list[str]:
        self.join(timeout=200)
        assert not self.is_alive()
        return self.events


@pytest.mark.parametrize("sig", [signal.SIGTERM, signal.SIGINT])
def test_drain_finishes_what_was_begun(start, sig):
    server = start(drain_seconds=300)
    reader = Reader(server, 1500)
    server.send_signal(sig)
    server.wait_for(lambda: httpx.get(server.url + "/ready").status_code == 503)
    refused = httpx.post(server.url + COMPLETION, json={"prompt": "a"})
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) >= 1 and refused.json()["error"]["code"] == "shutting_down"
    assert httpx.get(server.url + "/health").status_code == 200
    assert server.metric("luban_draining") == 1
    events = reader.finish()
    assert events[-1] == "[DONE]" and json.loads(events[-2])["choices"][0]["finish_reason"] == "length"
    assert server.wait(60) == 0
    assert server.lines[-1] == "stopped" and any("1 requests are finished first" in line for line in server.lines)
    assert not any("Traceback" in line for line in server.lines)


def test_drain_ends_after_its_time(start):
    server = start(drain_seconds=0.3)
    reader = Reader(server, 4000)
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    assert json.loads(reader.finish()[-1])["error"]["code"] == "shutting_down"


def test_a_second_signal_forces(start):
    server = start()
    reader = Reader(server, 4000)
    server.send_signal(signal.SIGTERM)
    server.wait_for(lambda: httpx.get(server.url + "/ready").status_code == 503)
    begun = time.monotonic()
    assert server.stop() == 0
    assert time.monotonic() - begun < 10
    reader.join(timeout=10)
    assert not any("Traceback" in line for line in server.lines)


def test_a_taken_port_is_known_before_the_model_loads():
    with bind("127.0.0.1", 0) as held:
        held.listen()
        with pytest.raises(LubanError, match="cannot listen"):
            bind("127.0.0.1", held.getsockname()[1])
    with pytest.raises(LubanError, match="no such address"):
        bind("no-such-host.invalid", 0)


def test_an_open_address_is_warned_about(capsys):
    bind("0.0.0.0", 0).close()
    assert "no access control" in capsys.readouterr().err
    bind("127.0.0.1", 0).close()
    assert capsys.readouterr().err == ""


def test_small_answers_leave_at_once():
    """asyncio turns Nagle's algorithm off (TCP_NODELAY) only for sockets that name TCP as their protocol."""
    with bind("127.0.0.1", 0) as listener:
        assert listener.proto == socket.IPPROTO_TCP
