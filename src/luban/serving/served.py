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
from luban.serving.logprobs import TokenNames
from luban.serving.metrics import Metrics
from luban.serving.predictions import Predictions
from luban.serving.protocol import ChatBody, TokenizeBody
from luban.tokenizer.tokenizer import Tokenizer


class Served:
    """A model behind the routes. By itself it predicts; a model that also writes and chats is a `Service`."""

    page = "task_page.html"
    writes = False  # whether /v1/completions and /v1/chat/completions are answered

    def __init__(self, config: ServeConfig, name: str, predictor: Predictor, predictions: Predictions, metrics: Metrics, parameters: int, maximum_length: int | None):
        self.config, self.name, self.predictor, self.predictions, self.metrics = config, name, predictor, predictions, metrics
        self.tokenizer: Tokenizer = single(predictor)[0].tokenizer
        self.names = TokenNames(self.tokenizer)
        self.parameters, self.maximum_length = parameters, maximum_length
        self.created = int(time.time())
        self.adapters: dict[str, tuple[str, ...]] = {}  # other names that the model goes by, and what it wears then
        self.draining = False
        self.in_flight = 0  # HTTP requests being answered, probes apart

    # ---- its life

    def start(self) -> None:
        self.predictions.thread.start()

    def stop(self) -> None:
        self.predictions.thread.stop()

    def alive(self) -> bool:
        """Whether what does the work still runs."""
        return self.predictions.thread.is_alive()

    def give_up(self) -> None:
        """Tell every request in flight that the server stops now."""
        self.predictions.give_up(self.stopping_error())

    def stopping_error(self) -> ApiError:
        return ApiError(
            503,
            "the server is stopping; send the request again to its successor",
            code="shutting_down",
            retry_after=max(1, math.ceil(self.config.drain_seconds)),
        )

    # ---- what is asked

    def check_model(self, name: str | None) -> None:
        """A request may leave the model out; if it names one, it is this one or one of its adapters."""
        if name is not None and name != self.name and name not in self.adapters:
            raise ApiError(
                404,
                "the model {model} does not exist here; this server has {name}",
                param="model",
                code="model_not_found",
                model=repr(name)[:200],
                name=", ".join(map(repr, [self.name, *self.adapters])),
            )

    def check_predicts(self, name: str | None) -> None:
        """Predictions are the base's: an adapter may have been trained for another task, which its own folder tells."""
        if name in self.adapters:
            raise ApiError(
                400,
                "{model} is an adapter, which answers {right} alone here; for its predictions serve its folder by itself",
                param="model",
                code="adapter_does_not_predict",
                model=name,
                right=", ".join(self.predictions.others),
            )

    def check_ids(self, ids: list[int], param: str) -> None:
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

    def tokenize(self, body: TokenizeBody) -> list[int]:
        self.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "one of prompt and messages is needed", param="prompt", code="missing_required_parameter")
        if body.prompt is not None:
            return prompt_ids(self.tokenizer, body.prompt) if body.add_special_tokens is not False else self.tokenizer.encode(body.prompt)
        return self.chat_ids(ChatBody(messages=body.messages).conversation(), body.add_generation_prompt)

    def chat_ids(self, messages: list[dict[str, Any]], add_generation_prompt: bool = True) -> list[int]:
        if self.tokenizer.chat_template is None:
            raise ApiError(
                400,
                "this model has no chat template: it continues text and does not chat; use /v1/completions",
                param="messages",
                code="no_chat_template",
            )
        try:
            return self.tokenizer.encode_chat(messages, add_generation_prompt=add_generation_prompt)
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
        base = self.describe()
        own = {"parent": self.name, "luban": {**base["luban"], "endpoints": self.predictions.others}}
        return [base, *({**base, **own, "id": name, "max_model_len": self.longest(name)} for name in self.adapters)]

    def longest(self, model: str | None) -> int | None:
        """Tokens of the longest text under this name of the model."""
        return self.maximum_length

    def describe(self) -> dict[str, Any]:
        """The model as /v1/models shows it; what the page needs stands under `luban`."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "luban",
            "max_model_len": self.maximum_length,
            "luban": {
                "task": self.predictor.task,
                "endpoints": self.predictions.endpoints,
                "parameters": self.parameters,
                "labels": list(self.predictor.head.labels) if self.predictor.head else [],
                "settings": self.predictions.shown_settings(),
            },
        }


def single(predictor: Predictor) -> list[Predictor]:
    """The models of an ensemble, or the one that there is."""
    members = getattr(predictor, "members", None)
    return [predictor] if members is None else [one for member in members for one in single(member)]
