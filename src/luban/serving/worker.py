"""The model thread: the only one that touches the model. It runs the engine; the HTTP side talks to it through queues.

A sequence is one prompt and one answer. It waits here until a slot is free, so that what waits and what runs
can be counted; after every step of the engine the new text of all running sequences goes out in one message.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from luban.foundation.errors import LubanError
from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine, Request, TokenScore
from luban.serving.errors import ApiError
from luban.serving.metrics import Metrics

log = logging.getLogger("luban.serving")


@dataclass
class Piece:
    """A part of an answer: what became certain with one more token."""

    text: str = ""
    generated_tokens: int = 0
    prompt_scores: list[TokenScore] = field(default_factory=list)
    scores: list[TokenScore] = field(default_factory=list)
    finish_reason: str | None = None
    stop_token: bool = False  # the last token ended the text and is no part of it
    error: ApiError | None = None


@dataclass(eq=False)
class Sequence:
    """One answer in the making. ``channel`` receives ``(sequence, Piece)`` on the event loop ``loop``."""

    index: int
    prompt_ids: list[int]
    sampling: SamplingConfig
    channel: asyncio.Queue[tuple[Sequence, Piece]]
    loop: asyncio.AbstractEventLoop | None = None
    adapters: tuple[str, ...] | None = None
    request: Request | None = None
    cancelled: bool = False
    reported_tokens: int = 0
    arrived: float = field(default_factory=time.monotonic)
    started: float = 0.0
    latest_token: float = 0.0
    first_token: float = 0.0


class ModelThread(threading.Thread):
    """Generates for all sequences that are submitted, ``slots`` at a time, until stopped."""

    def __init__(self, make_engine: Callable[[], Engine], slots: int, metrics: Metrics):
        super().__init__(name="model", daemon=True)
        self.make_engine, self.engine = make_engine, make_engine()
        self.slots, self.metrics = slots, metrics
        self.inbox: queue.SimpleQueue[Sequence | None] = queue.SimpleQueue()  # new sequences; None wakes the thread
        self.errands: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()  # other work for the model, done between steps
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []
        self.outbox: list[tuple[Sequence, Piece]] = []
        self.stopping = False
        self.mean_seconds = 1.0  # a moving average of how long a sequence takes, once it has a slot

    # ---- called from any thread

    def submit(self, sequence: Sequence) -> None:
        self.inbox.put(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """Free the sequence's slot, or its place in the queue, before the next step."""
        sequence.cancelled = True
        self.inbox.put(None)

    def do(self, errand: Callable[[], None]) -> None:
        """Have something done on this thread, between two steps."""
        self.errands.put(errand)
        self.inbox.put(None)

    def stop(self) -> None:
        """End the thread; what still runs is dropped."""
        self.stopping = True
        self.inbox.put(None)
        if self.is_alive():
            self.join(timeout=10)

    # ---- the thread itself

    def run(self) -> None:
        while not self.stopping:
            self._receive()
            self._start_waiting()
            if self.running:
                self._step()
            self._send()
            while not self.errands.empty():
                self.errands.get()()

    def _receive(self) -> None:
        """Take in what has come; sleep if there is nothing to do."""
        if not self.running and not self.waiting and (sequence := self.inbox.get()) is not None:
            self.waiting.append(sequence)
        while not self.inbox.empty():
            if (sequence := self.inbox.get()) is not None:
                self.waiting.append(sequence)
        for sequence in [sequence for sequence in self.waiting if sequence.cancelled]:
            self.waiting.remove(sequence)
            self.metrics.finished("abort")

    def _start_waiting(self) -> None:
        """Give free slots to those that wait, first come first served."""
        while self.waiting and len(self.running) < self.slots:
            sequence = self.waiting.popleft()
            sequence.started = time.monotonic()
            try:
                sequence.request = self.engine.submit(sequence.prompt_ids, sequence.sampling, self._listener(sequence), sequence.adapters)
            except LubanError as error:  # the service checks first; the engine has the last word
                self.outbox.append(
                    (sequence, Piece(error=ApiError(400, "the prompt cannot be read: {reason}", code="invalid_value", reason=str(error))))
                )
                self.metrics.finished("error")
                continue
            self.running.append(sequence)
            self.metrics.queue.observe(sequence.started - sequence.arrived)
            self.metrics.prompt_tokens.inc(len(sequence.prompt_ids))
        self._count()

    def _count(self) -> None:
        self.metrics.running.set(len(self.running))
        self.metrics.waiting.set(len(self.waiting))
        self.metrics.cache_usage.set(len(self.running) / self.slots)

    def _step(self) -> None:
        for sequence in self.running:
            if sequence.cancelled and sequence.request:
                sequence.request.cancel()
        self.metrics.batch.observe(len(self.running))
        try:
            self.engine.step()
        except Exception as error:  # whatever it was, those who wait for an answer must hear of it, and the next ones be served
            log.exception("the model could not go on: %s", error)
            failure = ApiError(500, "the model could not go on; the server's log says why", code="internal_error")
            for sequence in self.running:
                self.outbox.append((sequence, Piece(error=failure)))
                self.metrics.finished("error")
            self.running = []
            self.engine = self.make_engine()
        self.running = [sequence for sequence in self.running if not (sequence.request and sequence.request.finished)]
        self._count()

    def _listener(self, sequence: Sequence) -> Callable[[Request, str], None]:
        """What the engine calls after each token of the sequence."""

        def on_token(request: Request, text: str) -> None:
            new = len(request.ids) - sequence.reported_tokens
            piece = Piece(text, new, scores=request.logprobs[sequence.reported_tokens : len(request.ids)])
            if not sequence.reported_tokens and request.sampling.prompt_logprobs:
                piece.prompt_scores = request.prompt_logprobs
            sequence.reported_tokens = len(request.ids)
            if request.finished:
                piece.finish_reason = request.finish_reason
                piece.stop_token = isinstance(request.stop_reason, int)
            self._measure(sequence, piece)
            self.outbox.append((sequence, piece))

        return on_token

    def _measure(self, sequence: Sequence, piece: Piece) -> None:
        now, metrics = time.monotonic(), self.metrics
        if piece.generated_tokens:
            metrics.generation_tokens.inc(piece.generated_tokens)
            if not sequence.first_token:
                sequence.first_token = now
                metrics.first_token.observe(now - sequence.arrived)
                metrics.prefill.observe(now - sequence.started)
            else:
                metrics.between_tokens.observe(now - sequence.latest_token)
            sequence.latest_token = now
        if piece.finish_reason == "cancelled":
            metrics.finished("abort")
        elif piece.finish_reason:
            metrics.finished(piece.finish_reason)
            metrics.request.observe(now - sequence.arrived)
            metrics.decode.observe(now - (sequence.first_token or now))
            self.mean_seconds += 0.1 * (now - sequence.started - self.mean_seconds)

    def _send(self) -> None:
        """Hand over what the last step brought, in one call into each event loop."""
        parcels: dict[asyncio.AbstractEventLoop, list[tuple[Sequence, Piece]]] = {}
        for sequence, piece in self.outbox:
            if sequence.loop is not None:
                parcels.setdefault(sequence.loop, []).append((sequence, piece))
        self.outbox = []
        for loop, parcel in parcels.items():
            try:
                loop.call_soon_threadsafe(_deliver, parcel)
            except RuntimeError:  # the loop has closed: the server is gone, and nobody waits any more
                self.stopping = True


def _deliver(parcel: list[tuple[Sequence, Piece]]) -> None:
    for sequence, piece in parcel:
        sequence.channel.put_nowait((sequence, piece))
