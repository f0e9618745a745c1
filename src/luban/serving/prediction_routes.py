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
from luban.serving.predictions import EMBEDDINGS, PREDICT, RERANK, PredictionOrder
from luban.serving.protocol import Body, EmbeddingBody, PredictBody, RerankBody, parse, read_json
from luban.serving.served import Served


def prediction_routes(service: Served) -> list[Route]:
    predictions, name = service.predictions, service.name
    return [
        _route(service, PREDICT, PredictBody, lambda body: predictions.predict_order(body, name)),
        _route(service, EMBEDDINGS, EmbeddingBody, lambda body: predictions.embedding_order(body, name, service.check_ids)),
        _route(service, RERANK, RerankBody, lambda body: predictions.rerank_order(body, name)),
    ]


def _route(service: Served, path: str, kind: type[Body], make_order: Callable[[Any], PredictionOrder]) -> Route:
    async def handle(request: Request) -> Response:
        raw = await read_body(request, service.config.maximum_body_bytes)
        service.predictions.check_endpoint(path)
        body = parse(kind, read_json(raw))
        service.check_model(body.model)
        service.check_predicts(body.model)
        if getattr(body, "stream_options", None) is not None and not body.stream:
            raise ApiError(400, "{param} needs stream to be true", param="stream_options", code="invalid_value")
        order = await asyncio.to_thread(make_order, body)
        service.predictions.admit(order)
        if getattr(body, "stream", None):
            return _Stream(service, order)
        try:
            return JSONResponse(await while_connected(request, _gather(service, order)))
        finally:
            service.predictions.abandon(order)

    return Route(path, handle, methods=["POST"])


async def _gather(service: Served, order: PredictionOrder) -> dict[str, Any]:
    """The whole answer; the first error of an item is that of the request."""
    found: list[dict[str, Any]] = [{}] * len(order.items)
    async for outcome in service.predictions.outcomes(order):
        if outcome is not None:
            index, prediction = outcome
            if isinstance(prediction, ApiError):
                raise prediction
            found[index] = prediction
    return order.shape(found)


class _Stream(StreamingResponse):
    """Server-sent events. However the response ends, even before its first byte, what waits of the order is dropped."""

    def __init__(self, service: Served, order: PredictionOrder):
        super().__init__(_events(service, order), media_type="text/event-stream", headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        self.service, self.order = service, order

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.service.predictions.abandon(self.order)


async def _events(service: Served, order: PredictionOrder) -> AsyncIterator[bytes]:
    """An event an item as it is done, one that cannot be predicted with its error; at the end the usage."""
    try:
        async for outcome in service.predictions.outcomes(order, patience=PING_SECONDS):
            if outcome is None:
                yield b": still at work\n\n"
                continue
            index, prediction = outcome
            yield event({"index": index, **(prediction.body() if isinstance(prediction, ApiError) else prediction)})
        yield event({**service.predictions.opening(service.name), "usage": order.usage})
        yield event("[DONE]")
    except ApiError as error:
        yield event(error.body())
