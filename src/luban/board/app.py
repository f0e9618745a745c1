"""The board's routes. All of them only read, and what a file holds reaches the page as JSON, never as markup."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from importlib import resources
from typing import Any

from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luban.board.library import Library
from luban.pipeline.card import page_templates
from luban.serving.http import JSONResponse
from luban.serving.listen import is_rebound

SHARED = ("page_colours.css.j2", "page_plot.css.j2")  # with the run card: a curve looks the same on both
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def make_app(library: Library, host: str) -> ASGIApp:
    """The ASGI application over one folder. ``host`` is the address it listens on."""
    routes = [
        Route("/", _asset("page.html", "text/html")),
        Route("/board.css", _asset("board.css", "text/css", "".join(page_templates().get_template(name).render() for name in SHARED))),
        Route("/board.js", _asset("board.js", "text/javascript")),
        Route("/words.json", _asset("zh.json", "application/json")),
        Route("/api/runs", lambda request: JSONResponse({"folder": library.root.name, "runs": library.runs()})),
        Route("/api/run", lambda request: _found(library.details(request.query_params.get("run", "")))),
        Route("/api/series", lambda request: _series(library, request)),
    ]
    return Gate(Starlette(routes=[_threaded(route) for route in routes], middleware=[Middleware(GZipMiddleware, minimum_size=1000)]), host)


class Gate:
    """Refuses foreign names for a loopback address, and gives every answer the headers that keep a page to itself."""

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *((name.encode(), value.encode()) for name, value in _HEADERS.items())]
            await send(message)

        if scope["type"] == "http" and is_rebound(self.host, dict(scope["headers"]).get(b"host", b"").decode("latin-1")):
            return await Response("this address is for the machine itself", 403)(scope, receive, sending)
        await self.app(scope, receive, sending)


def _threaded(route: Route) -> Route:
    """The same route with a handler that Starlette runs in a thread: files are read there, and others are answered meanwhile."""
    handle = route.endpoint

    def answer(request: Request) -> Response:
        return handle(request)

    return Route(route.path, answer, methods=["GET"])


def _asset(name: str, kind: str, before: str = "") -> Callable[[Request], Response]:
    text = before + resources.files("luban.board").joinpath(name).read_text(encoding="utf-8")
    return lambda request: Response(text, media_type=kind)


def _found(value: Any) -> Response:
    return JSONResponse({"error": "there is no such run"}, 404) if value is None else JSONResponse(value)


def _series(library: Library, request: Request) -> Response:
    asked = request.query_params
    ends = [_number(asked.get(name)) for name in ("from", "to")]
    window = (ends[0], ends[1]) if None not in ends else None
    return _found(library.series(asked.get("run", ""), int(_number(asked.get("points")) or 800), window, _known(asked.get("known"))))


def _number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) and abs(value) < 2**53 else None


def _known(text: str | None) -> dict[str, Any]:
    """What the page says it holds; nothing where that cannot be read, and it is given everything."""
    try:
        known = json.loads(text or "{}")
    except (ValueError, RecursionError):
        return {}
    return known if isinstance(known, dict) else {}
