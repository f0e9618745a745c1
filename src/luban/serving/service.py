"""One served model: what the routes know, from admission to the drain."""

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
from luban.serving.logprobs import TokenNames
from luban.serving.metrics import Metrics
from luban.serving.protocol import ChatBody, CompletionBody, GenerationBody, TokenizeBody
from luban.serving.worker import ModelThread, Piece, Sequence
from luban.tokenizer.tokenizer import Tokenizer


@dataclass(eq=False)
class Order:
    """An admitted request: its sequences, the queue their pieces arrive in, and the answer they make."""

    answer: CompletionAnswer
    sequences: list[Sequence]
    channel: asyncio.Queue
    deadline: float  # monotonic seconds
    open: set[int] = field(default_factory=set)  # indices of admitted sequences that have not ended


class Service:
    """Admits requests, hands them to the model thread and collects what comes back. Lives on the event loop."""

    def __init__(
        self,
        config: ServeConfig,
        name: str,
        tokenizer: Tokenizer,
        thread: ModelThread,
        metrics: Metrics,
        parameters: int,
        maximum_length: int,
    ):
        self.config, self.name, self.tokenizer, self.thread, self.metrics = config, name, tokenizer, thread, metrics
        self.parameters = parameters
        self.maximum_length = maximum_length
        self.names = TokenNames(tokenizer)
        self.created = int(time.time())
        self.draining = False
        self.in_flight = 0  # HTTP requests being answered, probes apart
        self.orders: set[Order] = set()  # admitted and not abandoned
        self.open_sequences = 0

    # ---- what is asked ------------------------------------------------------------------------------------------

    def check_model(self, name: str | None) -> None:
        """A request may leave the model out; if it names one, it is this one."""
        if name is not None and name != self.name:
            raise ApiError(
                404,
                "the model {model} does not exist here; this server has {name}",
                param="model",
                code="model_not_found",
                model=repr(name)[:200],
                name=repr(self.name),
            )

    def completion_order(self, body: CompletionBody) -> Order:
        """Encode the prompts of /v1/completions and make their sequences."""
        self.check_model(body.model)
        ids = [self._prompt_ids(prompt) for prompt in body.prompts()]
        echoes = [self._echo(prompt, own) if body.echo else None for prompt, own in zip(body.prompts(), ids, strict=True)]
        if body.max_tokens == 0 and not body.echo:
            raise ApiError(400, "{param}: 0 needs echo, else there is nothing to answer", param="max_tokens", code="invalid_value")
        return self._order(CompletionAnswer, body, ids, body.max_tokens, body.logprobs, echoes)

    def chat_order(self, body: ChatBody) -> Order:
        """Render the messages of /v1/chat/completions through the model's template and make the sequences."""
        self.check_model(body.model)
        maximum_tokens = body.maximum_tokens()
        if maximum_tokens == 0:
            raise ApiError(400, "{param}: at least 1 is needed", param="max_tokens", code="invalid_value")
        if body.top_logprobs is not None and not body.logprobs:
            raise ApiError(400, "{param} needs logprobs to be true", param="top_logprobs", code="invalid_value")
        top = (body.top_logprobs or 0) if body.logprobs else None
        return self._order(ChatAnswer, body, [self.chat_ids(body.conversation())], maximum_tokens, top, [None])

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

    def tokenize(self, body: TokenizeBody) -> list[int]:
        self.check_model(body.model)
        if (body.prompt is None) == (body.messages is None):
            raise ApiError(400, "one of prompt and messages is needed", param="prompt", code="missing_required_parameter")
        if body.prompt is not None:
            return prompt_ids(self.tokenizer, body.prompt) if body.add_special_tokens is not False else self.tokenizer.encode(body.prompt)
        return self.chat_ids(ChatBody(messages=body.messages).conversation(), body.add_generation_prompt)

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

    def _echo(self, prompt: str | list[int], ids: list[int]) -> Echo:
        """The prompt as text, with the place of each token in it."""
        stream, offsets, shown = self.tokenizer.stream(), [], 0
        for id in ids:
            offsets.append(shown)
            shown += len(stream.push(id))
        return Echo(prompt if isinstance(prompt, str) else self.tokenizer.decode(ids), offsets)

    def _prompt_ids(self, prompt: str | list[int]) -> list[int]:
        if not isinstance(prompt, str):
            self.check_ids(prompt, "prompt")
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
                "maximum_tokens": self._room(ids, maximum_tokens, answer_class),
            }
            samplings.append(self._sampling(body).model_copy(update=record))
        include_usage = bool(body.stream_options and body.stream_options.include_usage)
        answer = answer_class(self.name, self.names, sum(map(len, prompts)), len(prompts) * count, top is not None, include_usage)
        channel: asyncio.Queue = asyncio.Queue()
        sequences = []
        for ids, sampling, echo in zip(prompts, samplings, echoes, strict=True):
            for choice in range(count):
                answer.echoes[len(sequences)] = echo
                own = sampling if sampling.seed is None else sampling.model_copy(update={"seed": (sampling.seed + choice) % 2**63})
                sequences.append(Sequence(len(sequences), ids, own, channel))
        return Order(answer, sequences, channel, time.monotonic() + self.config.request_seconds)

    def _room(self, ids: list[int], asked: int | None, answer_class: type[CompletionAnswer]) -> int:
        """Tokens to generate: what was asked for, or as many as the default says and fit."""
        room = self.maximum_length - len(ids)
        param = "messages" if answer_class is ChatAnswer else "prompt"
        if asked is None and room < 1 or room < 0:
            raise ApiError(
                400,
                "the prompt has {length} tokens; prompt and answer together may have {limit}",
                param=param,
                code="context_length_exceeded",
                length=len(ids),
                limit=self.maximum_length,
            )
        if asked is not None and asked > room:
            raise ApiError(
                400,
                "the prompt has {length} tokens and {asked} more are asked for; together they may be {limit}",
                param=param,
                code="context_length_exceeded",
                length=len(ids),
                asked=asked,
                limit=self.maximum_length,
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
            left = order.deadline - time.monotonic()
            try:
                async with asyncio.timeout(max(0.0, min(left, patience or left))):
                    sequence, piece = await order.channel.get()
            except TimeoutError:
                if time.monotonic() >= order.deadline:
                    raise ApiError(
                        504,
                        "the answer took longer than {seconds} s (request_seconds of this server)",
                        code="timeout",
                        seconds=f"{self.config.request_seconds:g}",
                    ) from None
                yield None
                continue
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
        """Tell every request in flight that the server stops now."""
        for order in list(self.orders):
            for sequence in order.sequences:
                order.channel.put_nowait((sequence, Piece(error=self.stopping_error())))

    def stopping_error(self) -> ApiError:
        return ApiError(
            503,
            "the server is stopping; send the request again to its successor",
            code="shutting_down",
            retry_after=max(1, math.ceil(self.config.drain_seconds)),
        )

    def describe(self) -> dict[str, Any]:
        """The model as /v1/models shows it; what the chat page needs stands under `luban`."""
        sampling = self.config.sampling
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "luban",
            "max_model_len": self.maximum_length,
            "luban": {
                "chat": self.tokenizer.chat_template is not None,
                "parameters": self.parameters,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.maximum_tokens,
            },
        }
