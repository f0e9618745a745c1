"""A served model that writes: completions and chat, from admission to the drain."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from luban.foundation.errors import LubanError
from luban.inference.config import SamplingConfig
from luban.inference.generate import prompt_ids
from luban.serving.answers import ChatAnswer, CompletionAnswer, Echo
from luban.serving.config import ServeConfig
from luban.serving.errors import ApiError
from luban.serving.metrics import Metrics
from luban.serving.patience import received
from luban.serving.predictions import PredictionDesk, Predictions
from luban.serving.protocol import ChatBody, CompletionBody, GenerationBody
from luban.serving.served import Served
from luban.serving.worker import ModelThread, Piece, Sequence

CHAT, COMPLETIONS = WRITING = ("/v1/chat/completions", "/v1/completions")
CONTINUING = ("causal", "prefix", "instruction")  # tasks of models that are best talked to, or written on with


@dataclass(eq=False)
class Order:
    """An admitted request: its sequences, the queue their pieces arrive in, and the answer they make."""

    answer: CompletionAnswer
    sequences: list[Sequence]
    channel: asyncio.Queue
    deadline: float  # monotonic seconds
    open: set[int] = field(default_factory=set)  # indices of admitted sequences that have not ended


class Service(Served):
    """Admits requests, hands them to the model thread and collects what comes back. Lives on the event loop."""

    writes = True

    def __init__(
        self,
        config: ServeConfig,
        name: str,
        predictions: Predictions,
        desk: PredictionDesk,
        thread: ModelThread,
        metrics: Metrics,
        parameters: int,
    ):
        super().__init__(config, name, predictions, desk, metrics, parameters)
        self.thread = thread
        self.worn: dict[str, tuple[str, ...]] = {}  # what the model wears when it writes under an adapter's name
        self.orders: set[Order] = set()  # admitted and not abandoned
        self.open_sequences = 0

    @property
    def page(self) -> str:
        """The chat page, unless the model was trained for another task than to go on a text."""
        return "page.html" if self.predictor.task in CONTINUING else super().page

    def start(self) -> None:
        self.thread.start()
        super().start()

    def stop(self) -> None:
        super().stop()  # first, since it hands its work to the model thread
        self.thread.stop()

    def alive(self) -> bool:
        return self.thread.is_alive() and super().alive()

    # ---- what is asked ------------------------------------------------------------------------------------------

    def completion_order(self, body: CompletionBody) -> Order:
        """Encode the prompts of /v1/completions and make their sequences."""
        self.answering(body.model).check_endpoint(COMPLETIONS)
        ids = [self._prompt_ids(prompt) for prompt in body.prompts()]
        echoes = [self._echo(prompt, own) if body.echo else None for prompt, own in zip(body.prompts(), ids, strict=True)]
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "{param}: 0 needs echo, else there is nothing to answer", param="max_tokens", code="invalid_value")
        return self._order(CompletionAnswer, body, ids, body.max_tokens, body.logprobs, echoes)

    def chat_order(self, body: ChatBody) -> Order:
        """Render the messages of /v1/chat/completions through the model's template and make the sequences."""
        self.answering(body.model).check_endpoint(CHAT)
        maximum_tokens = body.maximum_tokens()
        if maximum_tokens == 0:
            raise ApiError(400, "{param}: at least 1 is needed", param="max_tokens", code="invalid_value")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "{param} needs logprobs to be true", param="top_logprobs", code="invalid_value")
        top = (body.top_logprobs or 0) if body.logprobs else None
        return self._order(ChatAnswer, body, [self.chat_ids(self.tokenizer, body.conversation())], maximum_tokens, top, [None])

    def _echo(self, prompt: str | list[int], ids: list[int]) -> Echo:
        """The prompt as text, with the place of each token in it."""
        stream, offsets, shown = self.tokenizer.stream(), [], 0
        for id in ids:
            offsets.append(shown)
            shown += len(stream.push(id))
        return Echo(prompt if isinstance(prompt, str) else self.tokenizer.decode(ids), offsets)

    def _prompt_ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            self.predictions.check_ids(prompt, "prompt")
        return prompt_ids(self.tokenizer, prompt)

    def _order(
        self,
        answer_class: type[CompletionAnswer],
        body: GenerationBody,
        prompts: list[list[int]],
        maximum_tokens: int | None,
        top: int | None,
        echoes: list[Echo | None],
    ) -> Order:
        count = body.n or 1
        if len(prompts) * count > self.config.slots + self.config.maximum_waiting:
            raise ApiError(
                400,
                "{count} answers are asked for at once; this server takes at most {limit}",
                param="prompt" if len(prompts) > 1 else "n",
                code="too_many_sequences",
                count=len(prompts) * count,
                limit=self.config.slots + self.config.maximum_waiting,
            )
        if body.stream_options is not None and not body.stream:
            raise ApiError(400, "{param} needs stream to be true", param="stream_options", code="invalid_value")
        samplings = []
        for ids, echo in zip(prompts, echoes, strict=True):
            record = {
                "top_logprobs": top,
                "prompt_logprobs": echo is not None and top is not None,
                "maximum_tokens": self._room(ids, maximum_tokens, answer_class, self.longest(body.model)),
            }
            samplings.append(self._sampling(body).model_copy(update=record))
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        answer = answer_class(body.model or self.name, self.names, sum(map(len, prompts)), len(prompts) * count, top is not None, include_usage)
        channel: asyncio.Queue = asyncio.Queue()
        sequences = []
        for ids, sampling, echo in zip(prompts, samplings, echoes, strict=True):
            for choice in range(count):
                answer.echoes[len(sequences)] = echo
                own = sampling if sampling.seed is None else sampling.model_copy(update={"seed": (sampling.seed + choice) % 2**63})
                sequences.append(Sequence(len(sequences), ids, own, channel, adapters=self.wears(body.model)))
        return Order(answer, sequences, channel, time.monotonic() + self.config.request_seconds)

    def wears(self, model: str | None) -> tuple[str, ...] | None:
        """The adapters of a request that names ``model``; None: those that the model opened with."""
        return self.worn.get(model, () if self.worn else None)

    def longest(self, model: str | None) -> int | None:
        if WRITING[0] not in self.answering(model).others:
            return super().longest(model)
        return self.thread.engine.longest(self.wears(model))

    def _room(self, ids: list[int], asked: int | None, answer_class: type[CompletionAnswer], longest: int) -> int:
        """Tokens to generate: what was asked for, or as many as the default says and fit."""
        room = longest - len(ids)
        param = "messages" if answer_class is ChatAnswer else "prompt"
        if asked is None and room < 1 or room < 0:
            raise ApiError(
                400,
                "the prompt has {length} tokens; prompt and answer together may have {limit}",
                param=param,
                code="context_length_exceeded",
                length=len(ids),
                limit=longest,
            )
        if asked is not None and asked > room:
            raise ApiError(
                400,
                "the prompt has {length} tokens and {asked} more are asked for; together they may be {limit}",
                param=param,
                code="context_length_exceeded",
                length=len(ids),
                asked=asked,
                limit=longest,
            )
        return min(self.config.sampling.maximum_tokens, room) if asked is None else asked

    def _sampling(self, body: GenerationBody) -> SamplingConfig:
        given = {name: getattr(body, name) for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")}
        given = {name: value for name, value in given.items() if value is not None}
        if given.get("top_k") == -1:  # vLLM's way to say "no limit"
            given["top_k"] = 0
        if given.get("temperature", 1.0) < 1e-5:  # as good as greedy, and logits divided by it might overflow
            given["temperature"] = 0.0
        if body.seed is not None:
            given["seed"] = body.seed % 2**63
        if (stops := body.stops()) is not None:
            given["stop"] = stops
        try:
            return self.config.sampling.updated(**given)
        except LubanError as error:
            raise ApiError(400, "the sampling cannot be done: {reason}", code="invalid_value", reason=str(error)) from None

    # ---- what is answered ---------------------------------------------------------------------------------------

    def admit(self, order: Order) -> None:
        """Hand the sequences to the model thread, or refuse if too many wait."""
        count = len(order.sequences)
        if self.open_sequences + count > self.config.slots + self.config.maximum_waiting:
            seconds = max(1, math.ceil(self.thread.mean_seconds * self.open_sequences / self.config.slots))
            raise ApiError(
                429,
                "{waiting} sequences are running or waiting already; try again in {seconds} s",
                code="queue_full",
                retry_after=min(seconds, 60),
                waiting=self.open_sequences,
                seconds=min(seconds, 60),
            )
        self.open_sequences += count
        order.open = set(range(count))
        self.orders.add(order)
        loop = asyncio.get_running_loop()
        for sequence in order.sequences:
            sequence.loop = loop
            self.thread.submit(sequence)

    async def pieces(self, order: Order, patience: float | None = None) -> AsyncIterator[tuple[int, Piece] | None]:
        """The pieces of all sequences as they come; None after each ``patience`` seconds without one."""
        while order.open:
            item = await received(order.channel, order.deadline, patience, self.config.request_seconds)
            if item is None:
                yield None
                continue
            sequence, piece = item
            if piece.finish_reason or piece.error:
                order.open.discard(sequence.index)
                self.open_sequences -= 1
            if piece.error:
                raise piece.error
            yield sequence.index, piece

    def abandon(self, order: Order) -> None:
        """Cancel what is left of an order: its client has gone, its time is up, or one of its sequences failed."""
        for sequence in order.sequences:
            if sequence.index in order.open:
                self.thread.cancel(sequence)
        self.open_sequences -= len(order.open)
        order.open.clear()
        self.orders.discard(order)

    def give_up(self) -> None:
        super().give_up()
        for order in list(self.orders):
            for sequence in order.sequences:
                order.channel.put_nowait((sequence, Piece(error=self.stopping_error())))

    def example(self) -> tuple[str, dict[str, Any]]:
        if self.tokenizer.chat_template is not None:
            return "/v1/chat/completions", {"model": self.name, "messages": [{"role": "user", "content": "Hello"}]}
        return "/v1/completions", {"model": self.name, "prompt": "Once", "max_tokens": 32}

    def describe(self, name: str) -> dict[str, Any]:
        """As for every model, and what the chat page needs."""
        known, sampling = super().describe(name), self.config.sampling
        known["luban"] |= {
            "chat": self.tokenizer.chat_template is not None,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_tokens": sampling.maximum_tokens,
        }
        return known
