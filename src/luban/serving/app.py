"""The routes, and the gate that every request passes first."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from luban.serving.answers import event
from luban.serving.errors import ApiError
from luban.serving.metrics import TEXT_FORMAT
from luban.serving.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse, read_json
from luban.serving.service import Order, Service

log = logging.getLogger("luban.serving")
PROBES = ("/health", "/ready", "/metrics")
LOOPBACK = ("127.0.0.1", "localhost", "::1")
BODY_SECONDS = 30.0  # in which a request's body must have arrived
PING_SECONDS = 10.0  # between comments on a silent stream, so that proxies keep it open
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(service: Service) -> ASGIApp:
    """The ASGI application for one served model."""
    routes = [
        Route("/", _page(service), methods=["GET"]),
        Route("/v1/models", _models(service), methods=["GET"]),
        Route("/v1/models/{name:path}", _models(service), methods=["GET"]),
        Route("/v1/completions", _completions(service), methods=["POST"]),
        Route("/v1/chat/completions", _chat_completions(service), methods=["POST"]),
        Route("/tokenize", _tokenize(service), methods=["POST"]),
        Route("/detokenize", _detokenize(service), methods=["POST"]),
        Route("/health", _health(service), methods=["GET"]),
        Route("/ready", _ready(service), methods=["GET"]),
        Route("/metrics", _metrics(service), methods=["GET"]),
    ]
    handlers: dict[Any, Any] = {
        ApiError: _on_api_error,
        HTTPException: _on_http_error,
        ClientDisconnect: _on_disconnect,
        Exception: _on_bug,
    }
    middleware = []
    if service.config.cors_origins:
        middleware = [
            Middleware(CORSMiddleware, allow_origins=service.config.cors_origins, allow_methods=["GET", "POST"], allow_headers=["*"])
        ]
    return Gate(Starlette(routes=routes, middleware=middleware, exception_handlers=handlers), service, {route.path for route in routes})


class Gate:
    """Counts requests, turns away those that come while the server drains, and guards against other web pages.

    A page of another site that is open in the user's browser can send requests to this machine's own addresses.
    So on a loopback address the Host must be one (else a name was rebound), and an Origin must be this server's
    own or one that `cors_origins` names.
    """

    def __init__(self, app: ASGIApp, service: Service, paths: set[str]):
        self.app, self.service, self.paths = app, service, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path, status = scope["path"], 499  # what nginx logs for a client that left before the answer
        probe = path in PROBES

        async def sending(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        if not probe:
            self.service.in_flight += 1
        try:
            if refusal := self._refusal(scope, probe):
                await _error_response(refusal)(scope, receive, sending)
            else:
                await self.app(scope, receive, sending)
        finally:
            if not probe:
                self.service.in_flight -= 1
            handler = path if path in self.paths else "/v1/models/{name}" if path.startswith("/v1/models/") else "other"
            method = scope["method"] if scope["method"] in ("GET", "POST", "HEAD", "OPTIONS") else "other"
            self.service.metrics.answered(handler, method, status)

    def _refusal(self, scope: Scope, probe: bool) -> ApiError | None:
        headers = dict(scope["headers"])
        config, host = self.service.config, headers.get(b"host", b"").decode("latin-1")
        if self.service.draining and not probe:
            return self.service.stopping_error()
        if config.host in LOOPBACK and _name_of("//" + host) not in LOOPBACK:
            return ApiError(403, "the host {host} is not this machine's own address", code="wrong_host", host=ascii(host))
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] != "OPTIONS" and _place_of(origin) != host.lower() and not {origin, "*"} & set(config.cors_origins):
            return ApiError(
                403,
                "web pages of {origin} may not call this server; cors_origins names those that may",
                code="wrong_origin",
                origin=ascii(origin),
            )
        return None


def _name_of(url: str) -> str | None:
    try:
        return urlsplit(url).hostname
    except ValueError:
        return None


def _place_of(url: str) -> str | None:
    try:
        return urlsplit(url).netloc.lower()
    except ValueError:
        return None


# ---- answers ------------------------------------------------------------------------------------------------------


class JSONResponse(Response):
    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        return json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode("utf-8", "replace")


def _error_response(error: ApiError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers())


async def _on_api_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return _error_response(error)


async def _on_http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    templates = {404: "there is no {path} here", 405: "{path} does not take {method}"}
    template = templates.get(error.status_code, "{path}: the request cannot be answered")
    path = ascii(request.url.path)[1:-1][:200]
    response = _error_response(
        ApiError(error.status_code, template, code="not_found" if error.status_code == 404 else None, path=path, method=request.method)
    )
    response.headers.update(error.headers or {})
    return response


async def _on_disconnect(request: Request, error: Exception) -> Response:
    return Response(status_code=499)


async def _on_bug(request: Request, error: Exception) -> Response:
    return _error_response(ApiError(500, "the server made a mistake; its log says which", code="internal_error"))


async def _read_body(request: Request, limit: int) -> bytes:
    """The whole body, if it is not too large and comes in time."""

    def too_large() -> ApiError:
        return ApiError(413, "the body is larger than the {limit} bytes that this server reads", code="body_too_large", limit=limit)

    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and int(declared[:19]) > limit:
        raise too_large()
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                size += len(part)
                if size > limit:
                    raise too_large()
                parts.append(part)
    except TimeoutError:
        raise ApiError(408, "the body did not arrive within {seconds} s", code="timeout", seconds=f"{BODY_SECONDS:g}") from None
    return b"".join(parts)


async def _answer(request: Request, service: Service, order: Order, stream: bool) -> Response:
    """Admit the order, and answer it as a stream or in one piece."""
    service.admit(order)
    if stream:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return _Stream(service, order, headers)
    gathering = asyncio.ensure_future(_gather(service, order))
    leaving = asyncio.ensure_future(_until_disconnect(request))
    try:
        await asyncio.wait((gathering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not gathering.done():
            raise ClientDisconnect
        return JSONResponse(gathering.result())
    finally:
        for task in (gathering, leaving):
            task.cancel()
        await asyncio.gather(gathering, leaving, return_exceptions=True)
        service.abandon(order)


class _Stream(StreamingResponse):
    """Server-sent events. However the response ends, even before its first byte, the order's slots become free."""

    def __init__(self, service: Service, order: Order, headers: dict[str, str]):
        super().__init__(_events(service, order), media_type="text/event-stream", headers=headers)
        self.service, self.order = service, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.abandon(self.order)


async def _gather(service: Service, order: Order) -> dict[str, Any]:
    async for found in service.pieces(order):
        if found is not None:
            order.answer.add(*found)
    return order.answer.whole()


async def _events(service: Service, order: Order) -> AsyncIterator[bytes]:
    answer = order.answer
    try:
        for chunk in answer.opening():
            yield event(chunk)
        async for found in service.pieces(order, patience=PING_SECONDS):
            if found is None:
                yield b": still at work\n\n"
            elif chunk := answer.chunk(*found):
                yield event(chunk)
        if answer.include_usage:
            yield event(answer.usage_chunk())
        yield event("[DONE]")
    except ApiError as error:
        yield event(error.body())


async def _until_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        continue


# ---- routes -------------------------------------------------------------------------------------------------------

Handler = Callable[[Request], Awaitable[Response]]


def _completions(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(CompletionBody, read_json(await _read_body(request, service.config.maximum_body_bytes)))
        return await _answer(request, service, await asyncio.to_thread(service.completion_order, body), bool(body.stream))

    return handle


def _chat_completions(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(ChatBody, read_json(await _read_body(request, service.config.maximum_body_bytes)))
        return await _answer(request, service, await asyncio.to_thread(service.chat_order, body), bool(body.stream))

    return handle


def _tokenize(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(TokenizeBody, read_json(await _read_body(request, service.config.maximum_body_bytes)))
        ids = await asyncio.to_thread(service.tokenize, body)
        return JSONResponse(
            {"count": len(ids), "max_model_len": service.maximum_length, "tokens": ids, "token_strs": [service.names(id)[0] for id in ids]}
        )

    return handle


def _detokenize(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(DetokenizeBody, read_json(await _read_body(request, service.config.maximum_body_bytes)))
        service.check_model(body.model)
        service.check_ids(body.tokens, "tokens")
        return JSONResponse({"prompt": service.tokenizer.decode(body.tokens, skip_special=False)})

    return handle


def _models(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        model = service.describe()
        if (name := request.path_params.get("name")) is None:
            return JSONResponse({"object": "list", "data": [model]})
        service.check_model(name)
        return JSONResponse(model)

    return handle


def _health(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        """Alive: the process answers and its model thread runs."""
        alive = service.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the model thread has ended"}, 200 if alive else 500)

    return handle


def _ready(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        """Ready: new requests are taken."""
        if service.draining:
            return _error_response(service.stopping_error())
        return JSONResponse({"status": "ready"})

    return handle


def _metrics(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        service.metrics.draining.set(service.draining)
        return Response(service.metrics.text(), headers={"content-type": TEXT_FORMAT})

    return handle


def _page(service: Service) -> Handler:
    page = resources.files("luban.serving").joinpath("page.html").read_text(encoding="utf-8")

    async def handle(request: Request) -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
        return HTMLResponse(page, headers=headers)

    return handle
