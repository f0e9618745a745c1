"""Predictions behind HTTP: what a request may ask of a model under one of its names, its admission, and the outcomes as they come."""

from __future__ import annotations

import asyncio
import base64
import math
import struct
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from luban.foundation.errors import DataError
from luban.inference.items import check_forms, plain, texts_in
from luban.inference.predictor import Predictor
from luban.serving.batching import Job, Outcome, Predict, PredictionThread, refused
from luban.serving.config import ServeConfig
from luban.serving.errors import ApiError
from luban.serving.logprobs import TokenNames
from luban.serving.patience import received
from luban.serving.protocol import EmbeddingBody, PredictBody, RerankBody
from luban.tokenizer.tokenizer import Tokenizer

PREDICT, EMBEDDINGS, RERANK = "/v1/predict", "/v1/embeddings", "/v1/rerank"
# Routes that only some tasks answer, with the tasks.
SPECIAL = {EMBEDDINGS: ("embedding",), RERANK: ("ranking", "embedding")}
# What is worth trying first, by task; a text by itself otherwise.
EXAMPLES: dict[str, Any] = {
    "question_answering": {"question": "Who?", "context": "Ann called."},
    "ranking": {"query": "rain", "documents": ["wet", "dry"]},
    "multiple_choice": {"prompt": "Snow is", "choices": ["cold", "hot"]},
    "reward": {"prompt": "Is snow cold?", "response": "Yes."},
    "relation": {"text": "Ann lives in Rome.", "head": {"start": 0, "end": 3}, "tail": {"start": 13, "end": 17}},
    "masked": "Snow is [MASK].",
    "fill_in_middle": {"prefix": "Once", "suffix": "end."},
}


@dataclass(eq=False)
class PredictionOrder:
    """An admitted request: its items, what becomes of their predictions, and which have none yet."""

    items: list[dict[str, Any]]
    predict: Predict
    usage: dict[str, int]
    shape: Callable[[list[dict[str, Any]]], dict[str, Any]]  # the whole answer from all predictions
    deadline: float  # monotonic seconds
    job: Job | None = None
    open: set[int] = field(default_factory=set)  # items without an outcome


class Predictions:
    """What the model predicts under one of its names: its own, or that of an adapter."""

    def __init__(self, config: ServeConfig, predictor: Predictor, tokenizer: Tokenizer, predict: Predict, longest: int | None, others: Sequence[str] = ()):
        self.config, self.predictor, self.tokenizer, self.predict = config, predictor, tokenizer, predict
        self.longest = longest  # tokens of the longest text
        self.others = list(others)  # endpoints under this name that are no predictions

    # ---- what is answered

    @property
    def endpoints(self) -> list[str]:
        return [*self.others, PREDICT, *(path for path, tasks in SPECIAL.items() if self.predictor.task in tasks)]

    def check_endpoint(self, path: str) -> None:
        """Raises ApiError, naming the right one, for an endpoint of other tasks."""
        if path not in self.endpoints:
            raise ApiError(
                400,
                "{path} is not for this model, whose task is {task}; use {right}",
                code="wrong_endpoint",
                path=path,
                task=self.predictor.task,
                right=", ".join(self.endpoints),
            )

    def example(self, name: str) -> tuple[str, dict[str, Any]]:
        return PREDICT, {"model": name, "input": EXAMPLES.get(self.predictor.task, "Hello")}

    def shown_settings(self) -> dict[str, Any]:
        """What of the head's settings a page can use: names of controls, prompts and the prompt's form."""
        settings = self.predictor.head.settings if self.predictor.head else {}
        return {name: plain(settings[name]) for name in ("controls", "prompt", "prompts", "threshold") if name in settings}

    @cached_property
    def names(self) -> TokenNames:
        return TokenNames(self.tokenizer)

    def check_ids(self, ids: Sequence[int], param: str) -> None:
        for id in ids:
            if not 0 <= id < self.tokenizer.vocabulary_size:
                raise ApiError(
                    400,
                    "{param}: {id} is no token id; they go from 0 to {last}",
                    param=param,
                    code="invalid_value",
                    id=str(id)[:40],
                    last=self.tokenizer.vocabulary_size - 1,
                )

    # ---- orders (off the event loop: texts are tokenized)

    def predict_order(self, body: PredictBody, model: str) -> PredictionOrder:
        """The order of /v1/predict: each item a text or its named parts."""
        given = body.input if isinstance(body.input, list) else [body.input]
        items = []
        for index, item in enumerate(given):
            if not isinstance(item, str | dict):
                raise ApiError(400, "{param}: a text or an object is needed", param=f"input.{index}", code="invalid_type")
            item = {"text": item} if isinstance(item, str) else item
            items.append(item if body.top is None else {"top": body.top, **item})

        def shape(found: list[dict[str, Any]]) -> dict[str, Any]:
            data = [{"index": index, **prediction} for index, prediction in enumerate(found)]
            return {**self.opening(model), "data": data, "usage": order.usage}

        order = self._order(items, shape)
        return order

    def opening(self, model: str) -> dict[str, Any]:
        return {"object": "list", "model": model, "task": self.predictor.task}

    def embedding_order(self, body: EmbeddingBody, model: str) -> PredictionOrder:
        """The order of /v1/embeddings: OpenAI's request."""
        more = {name: value for name, value in (("dimensions", body.dimensions), ("prompt", body.prompt)) if value is not None}
        items = []
        for value in body.texts():
            if not isinstance(value, str):
                self.check_ids(value, "input")
            items.append({"text": value if isinstance(value, str) else self.tokenizer.decode(value), **more})
        as_base64 = body.encoding_format == "base64"

        def shape(found: list[dict[str, Any]]) -> dict[str, Any]:
            data = [{"object": "embedding", "index": index, "embedding": _packed(one["vector"]) if as_base64 else one["vector"]} for index, one in enumerate(found)]
            return {"object": "list", "data": data, "model": model, "usage": {name: order.usage[name] for name in ("prompt_tokens", "total_tokens")}}

        order = self._order(items, shape)
        return order

    def rerank_order(self, body: RerankBody, model: str) -> PredictionOrder:
        """The order of /v1/rerank: Jina's and Cohere's request. The best document first, of equal ones the earlier."""
        texts = body.texts()
        if len(texts) > self.config.maximum_items:
            raise self._too_many("documents", len(texts))

        def shape(found: list[dict[str, Any]]) -> dict[str, Any]:
            scores = found[0]["scores"]
            best = sorted(range(len(scores)), key=lambda index: (-(scores[index] if scores[index] is not None else -math.inf), index))
            results = [{"index": index, "relevance_score": scores[index], **({"document": {"text": texts[index]}} if body.return_documents else {})} for index in best[: body.top_n]]
            return {"object": "list", "model": model, "results": results, "usage": {name: order.usage[name] for name in ("prompt_tokens", "total_tokens")}}

        order = self._order([{"query": body.query, "documents": texts}], shape, param="documents")
        return order

    def _order(self, items: list[dict[str, Any]], shape: Callable[[list[dict[str, Any]]], dict[str, Any]], param: str = "input") -> PredictionOrder:
        config = self.config
        if not items:
            raise ApiError(400, "{param}: there is nothing in it", param=param, code="invalid_value")
        if len(items) > min(config.maximum_items, config.maximum_waiting_items):
            raise self._too_many(param, len(items))
        try:
            items = [check_forms(item, index) for index, item in enumerate(items)]
        except DataError as error:
            raise refused(error, error.values["number"] - 1) from None
        texts = list(texts_in(items))
        characters = sum(map(len, texts))
        if characters > config.maximum_characters:
            raise ApiError(
                400,
                "{param}: {count} characters; a request may have {limit} (maximum_characters of this server)",
                param=param,
                code="too_many_characters",
                count=characters,
                limit=config.maximum_characters,
            )
        tokens = sum(len(ids) for ids in map(self.tokenizer.encode, texts))
        usage = {"items": len(items), "characters": characters, "prompt_tokens": tokens, "total_tokens": tokens}
        return PredictionOrder(items, self.predict, usage, shape, time.monotonic() + config.request_seconds)

    def _too_many(self, param: str, count: int) -> ApiError:
        limit = min(self.config.maximum_items, self.config.maximum_waiting_items)
        return ApiError(400, "{param}: {count} are given; a request may hold {limit} (maximum_items of this server)", param=param, code="too_many_items", count=count, limit=limit)


class PredictionDesk:
    """Admits orders, hands them to the thread that predicts and collects what comes back. Lives on the event loop."""

    def __init__(self, config: ServeConfig, thread: PredictionThread):
        self.config, self.thread = config, thread
        self.orders: set[PredictionOrder] = set()
        self.open_items = 0

    def admit(self, order: PredictionOrder) -> None:
        """Hand the items to the thread, or refuse if too many wait."""
        count = len(order.items)
        if self.open_items + count > self.config.maximum_waiting_items:
            seconds = min(60, max(1, math.ceil(self.open_items * self.thread.item_seconds)))
            raise ApiError(
                429,
                "{waiting} items are being predicted or wait already; try again in {seconds} s",
                code="queue_full",
                retry_after=seconds,
                waiting=self.open_items,
                seconds=seconds,
            )
        self.open_items += count
        order.open = set(range(count))
        order.job = Job(order.items, order.predict, asyncio.get_running_loop(), asyncio.Queue())
        self.orders.add(order)
        self.thread.metrics.prompt_tokens.inc(order.usage["prompt_tokens"])
        self.thread.submit(order.job)

    async def outcomes(self, order: PredictionOrder, patience: float | None = None) -> AsyncIterator[tuple[int, Outcome] | None]:
        """Each item's prediction or error as it comes; None after each ``patience`` seconds without one."""
        while order.open:
            item = await received(order.job.channel, order.deadline, patience, self.config.request_seconds)
            if item is None:
                yield None
                continue
            index, outcome = item
            if index < 0:  # the server stops
                raise outcome
            order.open.discard(index)
            self.open_items -= 1
            yield index, outcome if isinstance(outcome, ApiError) else plain(outcome)

    def abandon(self, order: PredictionOrder) -> None:
        """Drop what is left of an order: its client has gone, its time is up, or an item of it failed."""
        if order.open:
            self.thread.cancel(order.job)
        self.open_items -= len(order.open)
        order.open.clear()
        self.orders.discard(order)

    def give_up(self, error: ApiError) -> None:
        for order in list(self.orders):
            order.job.channel.put_nowait((-1, error))


def _packed(vector: list[float | None]) -> str:
    """A vector as OpenAI packs it: little-endian float32, base64."""
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *(math.nan if value is None else value for value in vector))).decode("ascii")
