"""The routes of predictions: /v1/predict, /v1/embeddings, /v1/rerank."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from luban.serving.answers import event
from luban.serving.errors import ApiError
from luban.serving.http import PING_SECONDS, JSONResponse, read_body, while_connected
from luban.serving.predictions import EMBEDDINGS, PREDICT, RERANK, PredictionOrder, Predictions
from luban.serving.protocol import Body, EmbeddingBody, PredictBody, RerankBody, parse, read_json
from luban.serving.served import Served


def prediction_routes(service: Served) -> list[Route]:
    return [
        _route(service, PREDICT, PredictBody, Predictions.predict_order),
        _route(service, EMBEDDINGS, EmbeddingBody, Predictions.embedding_order),
        _route(service, RERANK, RerankBody, Predictions.rerank_order),
    ]


def _route(service: Served, path: str, kind: type[Body], make_order: Callable[[Predictions, Any, str], PredictionOrder]) -> Route:
    async def handle(request: Request) -> Response:
        raw = await read_body(request, service.config.maximum_body_bytes)
        sent = read_json(raw)
        named = sent.get("model")
        asked = service.answering(named if isinstance(named, str) else None)
        asked.check_endpoint(path)  # before the fields: those of another route say nothing to somebody who is at the wrong one
        body = parse(kind, sent)
        if getattr(body, "stream_options", None) is not None and not body.stream:
            raise ApiError(400, "{param} needs stream to be true", param="stream_options", code="invalid_value")
        order = await asyncio.to_thread(make_order, asked, body, body.model or service.name)
        service.desk.admit(order)
        if getattr(body, "stream", None):
            return _Stream(service, order, asked.opening(body.model or service.name))
        try:
            return JSONResponse(await while_connected(request, _gather(service, order)))
        finally:
            service.desk.abandon(order)

    return Route(path, handle, methods=["POST"])


async def _gather(service: Served, order: PredictionOrder) -> dict[str, Any]:
    """The whole answer; the first error of an item is that of the request."""
    found: list[dict[str, Any]] = [{}] * len(order.items)
    async for outcome in service.desk.outcomes(order):
        if outcome is not None:
            index, prediction = outcome
            if isinstance(prediction, ApiError):
                raise prediction
            found[index] = prediction
    return order.shape(found)


class _Stream(StreamingResponse):
    """Server-sent events. However the response ends, even before its first byte, what waits of the order is dropped."""

    def __init__(self, service: Served, order: PredictionOrder, opening: dict[str, Any]):
        super().__init__(_events(service, order, opening), media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.service, self.order = service, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.desk.abandon(self.order)


async def _events(service: Served, order: PredictionOrder, opening: dict[str, Any]) -> AsyncIterator[bytes]:
    """An event an item as it is done, one that cannot be predicted with its error; at the end the usage."""
    try:
        async for outcome in service.desk.outcomes(order, patience=PING_SECONDS):
            if outcome is None:
                yield b": still at work\n\n"
                continue
            index, prediction = outcome
            yield event({"index": index, **(prediction.body() if isinstance(prediction, ApiError) else prediction)})
        yield event({**opening, "usage": order.usage})
        yield event("[DONE]")
    except ApiError as error:
        yield event(error.body())
