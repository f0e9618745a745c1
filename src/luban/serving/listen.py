"""What every server of Luban's shares: an address to listen on, and the rule that web pages elsewhere may not reach it."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from luban.foundation.errors import LubanError

LOOPBACK = ("127.0.0.1", "localhost", "::1")


def listen(host: str, port: int) -> socket.socket:
    """A socket that holds the address but does not listen yet, so that a taken port is known before anything is loaded."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        # Only on sockets that name TCP does asyncio set TCP_NODELAY; without it the first token waits 40 ms for an acknowledgement.
        listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    except OSError as error:
        raise LubanError(
            "{host}: no such address ({error})",
            "",
            "give host an address of this machine; 127.0.0.1 is reached from it only",
            host=host,
            error=error.strerror or error,
        ) from None
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise LubanError(
            "cannot listen on {host}:{port} ({error})",
            "another program may have the port already",
            "choose another port; port=0 takes a free one",
            host=host,
            port=port,
            error=error.strerror or error,
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listener.getsockname()[:2]
    shown = "127.0.0.1" if host == "0.0.0.0" else "[::1]" if host == "::" else f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def is_rebound(bound: str, host: str) -> bool:
    """Whether a request's Host header is a foreign name that was led to a server on a loopback address, as a hostile page can do."""
    return bound in LOOPBACK and name_of("//" + host) not in LOOPBACK


def name_of(url: str) -> str | None:
    """The host that a URL names; None for what is no URL."""
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def place_of(url: str) -> str | None:
    """Host and port of a URL."""
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None
