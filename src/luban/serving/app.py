"""The routes, and the gate that every request passes first."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib import resources
from typing import Any

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
from luban.serving.http import PING_SECONDS, JSONResponse, read_body, while_connected
from luban.serving.listen import is_rebound, place_of
from luban.serving.metrics import TEXT_FORMAT
from luban.serving.prediction_routes import prediction_routes
from luban.serving.protocol import ChatBody, CompletionBody, DetokenizeBody, TokenizeBody, parse, read_json
from luban.serving.served import Served
from luban.serving.service import Order, Service

log = logging.getLogger("luban.serving")
PROBES = ("/health", "/ready", "/metrics")
_PAGE_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def make_app(service: Served) -> ASGIApp:
    """The ASGI application for one served model."""
    routes = [
        Route("/", _page(service), methods=["GET"]),
        Route("/v1/models", _models(service), methods=["GET"]),
        Route("/v1/models/{name:path}", _models(service), methods=["GET"]),
        Route("/v1/completions", _completions(service) if isinstance(service, Service) else _elsewhere(service), methods=["POST"]),
        Route("/v1/chat/completions", _chat_completions(service) if isinstance(service, Service) else _elsewhere(service), methods=["POST"]),
        *prediction_routes(service),
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

    def __init__(self, app: ASGIApp, service: Served, paths: set[str]):
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
        if is_rebound(config.host, host):
            return ApiError(403, "the host {host} is not this machine's own address", code="wrong_host", host=ascii(host))
        origin = headers.get(b"origin", b"").decode("latin-1")
        if origin and scope["method"] != "OPTIONS" and place_of(origin) != host.lower() and not {origin, "*"} & set(config.cors_origins):
            return ApiError(
                403,
                "web pages of {origin} may not call this server; cors_origins names those that may",
                code="wrong_origin",
                origin=ascii(origin),
            )
        return None


# ---- answers ------------------------------------------------------------------------------------------------------


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


async def _answer(request: Request, service: Service, order: Order, stream: bool) -> Response:
    """Admit the order, and answer it as a stream or in one piece."""
    service.admit(order)
    if stream:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        return _Stream(service, order, headers)
    try:
        return JSONResponse(await while_connected(request, _gather(service, order)))
    finally:
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


# ---- routes -------------------------------------------------------------------------------------------------------

Handler = Callable[[Request], Awaitable[Response]]


def _completions(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(CompletionBody, read_json(await read_body(request, service.config.maximum_body_bytes)))
        return await _answer(request, service, await asyncio.to_thread(service.completion_order, body), bool(body.stream))

    return handle


def _chat_completions(service: Service) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(ChatBody, read_json(await read_body(request, service.config.maximum_body_bytes)))
        return await _answer(request, service, await asyncio.to_thread(service.chat_order, body), bool(body.stream))

    return handle


def _elsewhere(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        """For a model that does not write: which endpoint is meant instead."""
        await read_body(request, service.config.maximum_body_bytes)
        service.predictions.check_endpoint(request.url.path)
        raise AssertionError("unreachable")

    return handle


def _tokenize(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(TokenizeBody, read_json(await read_body(request, service.config.maximum_body_bytes)))
        ids, names = await asyncio.to_thread(service.tokenize, body), service.answering(body.model).names
        return JSONResponse(
            {"count": len(ids), "max_model_len": service.longest(body.model), "tokens": ids, "token_strs": [names(id)[0] for id in ids]}
        )

    return handle


def _detokenize(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        body = parse(DetokenizeBody, read_json(await read_body(request, service.config.maximum_body_bytes)))
        asked = service.answering(body.model)
        asked.check_ids(body.tokens, "tokens")
        return JSONResponse({"prompt": asked.tokenizer.decode(body.tokens, skip_special=False)})

    return handle


def _models(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        models = service.listed()
        if (name := request.path_params.get("name")) is None:
            return JSONResponse({"object": "list", "data": models})
        service.answering(name)
        return JSONResponse(next(model for model in models if model["id"] == name))

    return handle


def _health(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        """Alive: the process answers and its model thread runs."""
        alive = service.alive()
        return JSONResponse({"status": "ok" if alive else "the model thread has ended"}, 200 if alive else 500)

    return handle


def _ready(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        """Ready: new requests are taken."""
        if service.draining:
            return _error_response(service.stopping_error())
        return JSONResponse({"status": "ready"})

    return handle


def _metrics(service: Served) -> Handler:
    async def handle(request: Request) -> Response:
        service.metrics.draining.set(service.draining)
        return Response(service.metrics.text(), headers={"content-type": TEXT_FORMAT})

    return handle


def _page(service: Served) -> Handler:
    page = resources.files("luban.serving").joinpath(service.page).read_text(encoding="utf-8")

    async def handle(request: Request) -> Response:
        headers = {"content-security-policy": _PAGE_POLICY, "x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
        return HTMLResponse(page, headers=headers)

    return handle
