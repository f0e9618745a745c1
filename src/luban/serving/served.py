"""What every served model has, whatever its task: a name, predictions, and a drain at its end."""

from __future__ import annotations

import math
import time
from typing import Any

from luban.foundation.errors import LubanError
from luban.inference.generate import prompt_ids
from luban.inference.predictor import Predictor
from luban.serving.config import ServeConfig
from luban.serving.errors import ApiError
from luban.serving.metrics import Metrics
from luban.serving.predictions import PredictionDesk, Predictions
from luban.serving.protocol import ChatBody, TokenizeBody
from luban.tokenizer.tokenizer import Tokenizer


class Served:
    """A model behind the routes. By itself it predicts; a model that also writes and chats is a `Service`."""

    page = "task_page.html"
    writes = False  # whether /v1/completions and /v1/chat/completions are answered

    def __init__(self, config: ServeConfig, name: str, predictions: Predictions, desk: PredictionDesk, metrics: Metrics, parameters: int):
        self.config, self.name, self.predictions, self.desk, self.metrics = config, name, predictions, desk, metrics
        self.predictor, self.tokenizer, self.names = predictions.predictor, predictions.tokenizer, predictions.names
        self.parameters = parameters
        self.created = int(time.time())
        self.adapters: dict[str, Predictions] = {}  # what is answered under other names
        self.draining = False
        self.in_flight = 0  # HTTP requests being answered, probes apart

    # ---- its life

    def start(self) -> None:
        self.desk.thread.start()

    def stop(self) -> None:
        self.desk.thread.stop()

    def alive(self) -> bool:
        """Whether what does the work still runs."""
        return self.desk.thread.is_alive()

    def give_up(self) -> None:
        """Tell every request in flight that the server stops now."""
        self.desk.give_up(self.stopping_error())

    def stopping_error(self) -> ApiError:
        return ApiError(
            503,
            "the server is stopping; send the request again to its successor",
            code="shutting_down",
            retry_after=max(1, math.ceil(self.config.drain_seconds)),
        )

    # ---- what is asked

    def answering(self, name: str | None) -> Predictions:
        """What answers to a name. A request may leave the model out; if it names one, it is this one or one of its adapters."""
        if name is None or name == self.name:
            return self.predictions
        if name not in self.adapters:
            raise ApiError(
                404,
                "the model {model} does not exist here; this server has {name}",
                param="model",
                code="model_not_found",
                model=repr(name)[:200],
                name=", ".join(map(repr, [self.name, *self.adapters])),
            )
        return self.adapters[name]

    def tokenize(self, body: TokenizeBody) -> list[int]:
        tokenizer = self.answering(body.model).tokenizer
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "one of prompt and messages is needed", param="prompt", code="missing_required_parameter")
        if body.prompt is not None:
            return prompt_ids(tokenizer, body.prompt) if body.add_special_tokens is not False else tokenizer.encode(body.prompt)
        return self.chat_ids(tokenizer, ChatBody(messages=body.messages).conversation(), body.add_generation_prompt)

    def chat_ids(self, tokenizer: Tokenizer, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        if tokenizer.chat_template is None:
            raise ApiError(
                400,
                "this model has no chat template: it continues text and does not chat; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        try:
            return tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)
        except LubanError as error:
            raise ApiError(
                400, "the chat template cannot render these messages: {reason}", param="messages", code="invalid_value", reason=str(error)
            ) from None

    # ---- what it is

    def example(self) -> tuple[str, dict[str, Any]]:
        """A route and a body that show what the model does."""
        return self.predictions.example(self.name)

    def listed(self) -> list[dict[str, Any]]:
        """What /v1/models lists: the model, and its adapters under their names."""
        return [self.describe(self.name), *({**self.describe(name), "parent": self.name} for name in self.adapters)]

    def longest(self, model: str | None) -> int | None:
        """Tokens of the longest text under this name of the model."""
        return self.answering(model).longest

    def describe(self, name: str) -> dict[str, Any]:
        """The model under one of its names as /v1/models shows it; what the page needs stands under `luban`."""
        asked = self.answering(name)
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "luban",
            "max_model_len": self.longest(name),
            "luban": {
                "task": asked.predictor.task,
                "endpoints": asked.endpoints,
                "parameters": self.parameters,
                "labels": list(asked.predictor.head.labels) if asked.predictor.head else [],
                "settings": asked.shown_settings(),
            },
        }


def single(predictor: Predictor) -> list[Predictor]:
    """The models of an ensemble, or the one that there is."""
    members = getattr(predictor, "members", None)
    return [predictor] if members is None else [one for member in members for one in single(member)]
