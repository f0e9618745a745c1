"""The thread that predicts: items of all requests share a batch, and every request has its turn.

What arrives while a batch is at work waits together and goes on together; an item that finds the thread idle waits a short window for
company. Items are taken from the waiting requests in turn, so that one item does not stand behind a thousand of somebody else's.
"""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from luban.foundation.errors import LubanError
from luban.serving.errors import ApiError
from luban.serving.metrics import Metrics

log = logging.getLogger("luban.serving")
Predict = Callable[[Sequence[dict[str, Any]]], list[dict[str, Any]]]
Outcome = dict[str, Any] | ApiError


@dataclass(eq=False)
class Job:
    """The items of one request, and what predicts them. ``channel`` receives ``(index, prediction or error)`` on the event loop ``loop``."""

    items: list[dict[str, Any]]
    predict: Predict
    loop: asyncio.AbstractEventLoop
    channel: asyncio.Queue[tuple[int, Outcome]]
    cancelled: bool = False
    next: int = 0  # the first item that waits
    arrived: float = field(default_factory=time.monotonic)


class PredictionThread(threading.Thread):
    """Predicts the items of all submitted jobs, ``rows`` in a batch, until stopped. What different models (a base and its adapters) predict is in different batches."""

    def __init__(self, rows: int, window_seconds: float, metrics: Metrics):
        super().__init__(name="predictions", daemon=True)
        self.rows, self.window_seconds, self.metrics = rows, window_seconds, metrics
        self.inbox: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None wakes the thread
        self.waiting: deque[Job] = deque()
        self.stopping = False
        self.item_seconds = 0.01  # a moving average

    # ---- called from any thread

    def submit(self, job: Job) -> None:
        self.inbox.put(job)

    def cancel(self, job: Job) -> None:
        """What has not begun is not begun."""
        job.cancelled = True
        self.inbox.put(None)

    def stop(self) -> None:
        self.stopping = True
        self.inbox.put(None)
        if self.is_alive():
            self.join(timeout=10)

    # ---- the thread itself

    def run(self) -> None:
        while not self.stopping:
            self._receive()
            if batch := self._take():
                self._predict(batch)

    def _receive(self) -> None:
        """Take in what has come. Where nothing was at hand, wait for it, and then a moment for company."""
        if not self.waiting and (job := self.inbox.get()) is not None:
            self.waiting.append(job)
            deadline = time.monotonic() + self.window_seconds
            while self._count() < self.rows and (left := deadline - time.monotonic()) > 0 and not self.stopping:
                try:
                    job = self.inbox.get(timeout=left)
                except queue.Empty:
                    break
                if job is not None:
                    self.waiting.append(job)
        while not self.inbox.empty():
            if (job := self.inbox.get()) is not None:
                self.waiting.append(job)

    def _count(self) -> int:
        return sum(len(job.items) - job.next for job in self.waiting)

    def _take(self) -> list[tuple[Job, int]]:
        """At most ``rows`` items of one model, one of each job in turn. Jobs of other models keep their places, so that the next batch is theirs."""
        batch: list[tuple[Job, int]] = []
        others: list[Job] = []
        while self.waiting and len(batch) < self.rows:
            job = self.waiting.popleft()
            if job.cancelled:
                self.metrics.predicted("abort", len(job.items) - job.next)
            elif batch and job.predict is not batch[0][0].predict:
                others.append(job)
            else:
                batch.append((job, job.next))
                job.next += 1
                if job.next < len(job.items):
                    self.waiting.append(job)
        self.waiting.extendleft(reversed(others))
        self.metrics.items_waiting.set(self._count())
        return batch

    def _predict(self, batch: list[tuple[Job, int]]) -> None:
        begun = time.monotonic()
        outcomes = self._outcomes(batch[0][0].predict, [job.items[index] for job, index in batch], [index for _, index in batch])
        now = time.monotonic()
        self.item_seconds += 0.1 * ((now - begun) / len(batch) - self.item_seconds)
        self.metrics.batch_items.observe(len(batch))
        self.metrics.batch_seconds.observe(now - begun)
        for (job, _), outcome in zip(batch, outcomes, strict=True):
            self.metrics.predicted("error" if isinstance(outcome, ApiError) else "done", 1)
            self.metrics.item.observe(now - job.arrived)
        parcels: dict[asyncio.AbstractEventLoop, list[tuple[Job, int, Outcome]]] = {}
        for (job, index), outcome in zip(batch, outcomes, strict=True):
            parcels.setdefault(job.loop, []).append((job, index, outcome))
        for loop, parcel in parcels.items():
            try:
                loop.call_soon_threadsafe(_deliver, parcel)
            except RuntimeError:  # the loop has closed: the server is gone, and nobody waits any more
                self.stopping = True

    def _outcomes(self, predict: Predict, items: list[dict[str, Any]], indices: list[int]) -> list[Outcome]:
        """A prediction or an error for each item; where a batch fails, each item by itself, so that a bad one harms no other."""
        try:
            found = predict(items)
            if len(found) != len(items):
                raise AssertionError(f"{len(found)} predictions for {len(items)} items")
            return list(found)
        except LubanError as error:
            if len(items) == 1:
                return [refused(error, indices[0])]
        except Exception as error:  # whatever it was, those who wait must hear of it, and the next ones be served
            if len(items) == 1:
                log.exception("an item could not be predicted: %s", error)
                return [ApiError(500, "the model could not go on; the server's log says why", code="internal_error")]
        return [self._outcomes(predict, [item], [index])[0] for item, index in zip(items, indices, strict=True)]


def refused(error: LubanError, index: int) -> ApiError:
    """What is wrong with an item, under the number that it has in its request."""
    error.values = {**error.values, "number": index + 1} if "number" in error.values else error.values
    return ApiError(400, "{param}: {reason}", param=f"input.{index}", code="invalid_value", reason=error.text())


def on_thread(submit: Callable[[Callable[[], None]], None], predict: Predict) -> Predict:
    """``predict``, but done by another thread, to which ``submit`` hands work: a model is touched by one thread only."""

    def handed_over(items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        answer: Future[list[dict[str, Any]]] = Future()

        def work() -> None:
            try:
                answer.set_result(predict(items))
            except BaseException as error:  # it is raised again where the result is waited for
                answer.set_exception(error)

        submit(work)
        return answer.result()

    return handed_over


def _deliver(parcel: list[tuple[Job, int, Outcome]]) -> None:
    for job, index, outcome in parcel:
        job.channel.put_nowait((index, outcome))
