"""Continuous batching: requests come and go while one forward pass a step serves all that run.

Running requests hold the first slots of the cache, in the order of ``Engine.running``; when one ends, the last takes
its slot. What a request samples depends on its own prompt, settings and seed, not on its neighbours.
"""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from luban.adapters.adapted import Routes, active_names, route
from luban.adapters.before import before_of, befores_of
from luban.foundation.errors import ConfigError
from luban.inference.cache import new_cache
from luban.inference.config import SamplingConfig
from luban.inference.packed import PackedDecoder
from luban.inference.sampling import sample, uniform
from luban.inference.text import StopMatcher
from luban.models.decoder import Decoder

if TYPE_CHECKING:
    from luban.tokenizer.decoding import DecodeStream
    from luban.tokenizer.tokenizer import Tokenizer

FinishReason = Literal["stop", "length", "cancelled"]
PREFILL_TOKENS = 4096  # prompts read in one forward pass, padding included; a longer one is read alone


@dataclass
class TokenScore:
    """A token's natural log-probability (None for a prompt's first token), and those of the likeliest in its place."""

    id: int
    logprob: float | None
    top: list[tuple[int, float]]


@dataclass(eq=False)
class Request:
    """A prompt on its way to an answer.

    ``ids`` are the tokens chosen, the one that ended it included; ``text`` is what they say, without stop strings and
    special tokens. ``logprobs`` and ``prompt_logprobs`` are filled where the settings ask for them.
    """

    prompt_ids: list[int]
    sampling: SamplingConfig
    on_token: Callable[[Request, str], None] | None = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    logprobs: list[TokenScore] = field(default_factory=list)
    prompt_logprobs: list[TokenScore] = field(default_factory=list)
    seed: int = 0
    adapters: tuple[str, ...] | None = None  # those this request wears, of a model with several; None: the active ones
    cancelled: bool = False
    decoding: DecodeStream | None = field(default=None, repr=False)
    matcher: StopMatcher = field(default_factory=lambda: StopMatcher(()), repr=False)

    @property
    def finished(self) -> bool:
        return self.finish_reason is not None

    def cancel(self) -> None:
        """Ask for the end; the next step frees the slot. May be called from any thread."""
        self.cancelled = True


class Engine:
    """Answers many requests at once with one model.

    ``submit`` and ``Request.cancel`` may be called from any thread; ``step`` from one at a time. ``packed`` is the same model, if it is laid out for
    few tokens at a time.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, *, slots: int = 8, maximum_length: int | None = None, packed: PackedDecoder | None = None
    ):
        self.model, self.tokenizer = model, tokenizer
        self.writer = packed or model
        self.maximum_length = min(maximum_length or model.longest_text, model.longest_text)
        self.cache = new_cache(model, slots, self.maximum_length)
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.prompt_tokens = self.generated_tokens = 0
        self._routes: Routes | None = None  # once a request asks for adapters of its own
        self._stop_ids = frozenset(tokenizer.stop_ids)
        # A prompt's tokens see each other in a model that has learned a given first part so.
        self._both_sides = model.takes_prefix and model.head is not None and model.head.task == "prefix"

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not self.running and not self.waiting

    def submit(
        self, prompt_ids: Sequence[int], sampling: SamplingConfig, on_token: Callable[[Request, str], None] | None = None, adapters: tuple[str, ...] | None = None
    ) -> Request:
        """Queue a prompt. ``on_token(request, piece)`` is called after each token with the text it released, perhaps none. ``adapters`` are the names of
        those that this request wears, of a model that has several (none: the base alone); requests with different ones share a batch.

        Raises ConfigError for an empty prompt, one that leaves no room for an answer, or unknown token ids.
        """
        ids = list(prompt_ids)
        self.check(ids, sampling, adapters)
        seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        request = Request(ids, sampling, on_token, seed=seed, decoding=self.tokenizer.stream(), matcher=StopMatcher(sampling.stop), adapters=adapters)
        self.waiting.append(request)
        return request

    def longest(self, adapters: tuple[str, ...] | None = None) -> int:
        """Tokens that prompt and answer may have together in a request that wears ``adapters``: what a learned prompt or prefix takes is taken off."""
        before = befores_of(self.model).get(before_of(self.model, adapters), 0)
        return min(self.maximum_length, self.model.shape.maximum_positions - before)

    def check(self, ids: list[int], sampling: SamplingConfig, adapters: tuple[str, ...] | None = None) -> None:
        """Raise ConfigError for a prompt that cannot be answered."""
        if not ids:
            raise ConfigError("the prompt is empty", "a model continues something", "give at least one token")
        longest = self.longest(adapters)
        room = longest - (1 if sampling.maximum_tokens else 0)
        if len(ids) > room:
            raise ConfigError(
                "the prompt has {count} tokens, the context {limit}",
                "prompt and answer share the context",
                "shorten the prompt to {room} tokens or fewer",
                count=len(ids),
                limit=longest,
                room=room,
            )
        size = self.model.shape.vocabulary_size
        if wrong := [token for token in ids if not 0 <= token < size]:
            raise ConfigError("token id {token} is not in the vocabulary", "it has ids 0 to {last}", "", token=wrong[0], last=size - 1)

    @torch.inference_mode()
    def step(self) -> None:
        """Read waiting prompts into free slots, then choose one more token for all that run."""
        self._drop_cancelled()
        while newcomers := self._next_prompts():
            self._prefill(newcomers)
        if self.running:
            self._decode()

    def run(self) -> None:
        """Step until nothing is left to do."""
        while not self.idle:
            self.step()

    def _next_prompts(self) -> list[Request]:
        """Waiting requests, first come first served, for which there are slots and which are read together."""
        chosen: list[Request] = []
        longest = 0
        while self.waiting and len(self.running) + len(chosen) < self.cache.slots:
            longest = max(longest, len(self.waiting[0].prompt_ids))
            if chosen and longest * (len(chosen) + 1) > PREFILL_TOKENS:
                break
            chosen.append(self.waiting.popleft())
        return chosen

    def _prefill(self, requests: list[Request]) -> None:
        """Read prompts, padded on the right, into the slots after the running ones, and choose their first tokens.

        A slot begins with what the request's adapters put before its text: no token of the prompt, and nothing that its neighbours see.
        """
        first = len(self.running)
        for offset, request in enumerate(requests):
            self.cache.begin(first + offset, 1, before_of(self.model, request.adapters))
        lengths = [len(request.prompt_ids) for request in requests]
        longest = max(lengths)
        tokens = torch.tensor([request.prompt_ids + [0] * (longest - size) for request, size in zip(requests, lengths, strict=True)])
        context = {}
        if self._both_sides:
            context["prefix"] = (torch.arange(longest) < torch.tensor(lengths)[:, None]).to(self.model.device)  # [rows, longest]
        with self._dressed(requests):
            hidden = self.writer(tokens.to(self.model.device), cache=self.cache.rows(first, len(requests), lengths), **context)  # [rows, longest, dim]
        for offset, size in enumerate(lengths):
            self.cache.advance(first + offset, size)
        self.prompt_tokens += sum(lengths)
        self.running += requests
        for row, request in enumerate(requests):
            if request.sampling.prompt_logprobs:
                self._score_prompt(request, hidden[row, : lengths[row] - 1])
        last = hidden[torch.arange(len(requests)), torch.tensor(lengths) - 1]  # [rows, dim]
        self._choose(first, self.writer.logits(last))

    def _decode(self) -> None:
        """One forward pass over the last token of every running request."""
        tokens = torch.tensor([[request.ids[-1]] for request in self.running])
        with self._dressed(self.running):
            hidden = self.writer(tokens.to(self.model.device), cache=self.cache.rows(0, len(self.running)))  # [rows, 1, dim]
        for slot in range(len(self.running)):
            self.cache.advance(slot, 1)
        self._choose(0, self.writer.logits(hidden[:, -1]))

    def _dressed(self, requests: list[Request]) -> AbstractContextManager[None]:
        """Inside, each row of the batch wears its request's adapters."""
        if all(request.adapters is None for request in requests):
            return nullcontext()
        self._routes = self._routes or route(self.model)
        worn = [active_names(self.model) if request.adapters is None else request.adapters for request in requests]
        return self._routes.worn(worn, self.model.device)

    def _choose(self, first: int, logits: Tensor) -> None:
        """Choose a token for the running requests from ``first`` on, and see which of them end."""
        requests = self.running[first:]
        settings = [request.sampling for request in requests]
        chances = [uniform(request.seed, len(request.ids)) for request in requests]
        chosen = sample(logits, settings, chances, self._seen(requests)).tolist()
        if any(setting.top_logprobs is not None for setting in settings):
            self._score_choice(requests, logits, chosen)
        for offset in reversed(range(len(requests))):  # from behind: a slot that is freed is filled from the end
            self._take(first + offset, chosen[offset])

    def _take(self, slot: int, token: int) -> None:
        """Give a request its next token; end it where it ends."""
        request = self.running[slot]
        if request.sampling.maximum_tokens == 0:
            self._leave(slot, "length")
            return
        request.ids.append(token)
        self.generated_tokens += 1
        if request.sampling.stop_at_end and token in self._stop_ids:
            request.stop_reason = token
            self._leave(slot, "stop")
            return
        piece = request.matcher.push(request.decoding.push(token))
        request.text += piece
        if request.matcher.stopped:
            self._leave(slot, "stop", piece)
        elif len(request.ids) >= self._limit(request):
            self._leave(slot, "length", piece)
        elif request.on_token:
            request.on_token(request, piece)

    def _limit(self, request: Request) -> int:
        """How many tokens the answer may have: what was asked for, as far as the context goes."""
        return min(request.sampling.maximum_tokens, self.longest(request.adapters) - len(request.prompt_ids))

    def _leave(self, slot: int, reason: FinishReason, piece: str = "") -> None:
        """Free a slot and let the last running request take it."""
        request = self.running[slot]
        last = len(self.running) - 1
        if slot != last:
            self.cache.move(last, slot)
            self.running[slot] = self.running[last]
        self.cache.begin(last, 1)
        self.running.pop()
        self._finish(request, reason, piece)

    def _finish(self, request: Request, reason: FinishReason, piece: str = "") -> None:
        """Release the text that was held back, and report the end."""
        rest = request.matcher.push(request.decoding.flush()) + request.matcher.flush()
        request.text += rest
        request.finish_reason = "stop" if request.matcher.stopped else reason
        if request.on_token:
            request.on_token(request, piece + rest)

    def _drop_cancelled(self) -> None:
        for request in list(self.waiting):
            if request.cancelled:
                self.waiting.remove(request)
                self._finish(request, "cancelled")
        for slot in reversed(range(len(self.running))):
            if self.running[slot].cancelled:
                self._leave(slot, "cancelled")

    def _seen(self, requests: list[Request]) -> Tensor | None:
        """Tokens of prompt and answer [rows, vocabulary] of bool, where a repetition penalty wants them."""
        if all(request.sampling.repetition_penalty == 1 for request in requests):
            return None
        seen = torch.zeros(len(requests), self.model.shape.vocabulary_size, dtype=torch.bool)
        for row, request in enumerate(requests):
            if request.sampling.repetition_penalty != 1:
                seen[row, torch.tensor(request.prompt_ids + request.ids)] = True
        return seen.to(self.model.device)

    def _score_choice(self, requests: list[Request], logits: Tensor, chosen: list[int]) -> None:
        """Record what the model itself thinks of each chosen token, before temperature and filters."""
        for row, request in enumerate(requests):
            if request.sampling.top_logprobs is not None:
                request.logprobs += token_scores(logits[row : row + 1], [chosen[row]], request.sampling.top_logprobs)

    def _score_prompt(self, request: Request, hidden: Tensor) -> None:
        """Record the log-probability of every prompt token; the first has none."""
        request.prompt_logprobs = [TokenScore(request.prompt_ids[0], None, [])]
        for start in range(0, len(hidden), 256):
            part = hidden[start : start + 256]
            targets = request.prompt_ids[1 + start : 1 + start + len(part)]
            request.prompt_logprobs += token_scores(self.model.logits(part), targets, request.sampling.top_logprobs or 0)


def token_scores(logits: Tensor, ids: list[int], top: int) -> list[TokenScore]:
    """Log-probabilities of ids [n] under logits [n, vocabulary], with the ``top`` likeliest of each place."""
    logprobs = logits.float().log_softmax(dim=-1)
    own = logprobs.gather(1, torch.tensor(ids, device=logits.device)[:, None])[:, 0].tolist()
    values, places = logprobs.topk(min(top, logprobs.shape[-1]), dim=-1)
    best = [list(zip(place, value, strict=True)) for place, value in zip(places.tolist(), values.tolist(), strict=True)]
    return [TokenScore(token, value, pairs) for token, value, pairs in zip(ids, own, best, strict=True)]
