"""Who runs the trials: this process, processes of this machine, or the nodes of a cluster (ray_cluster.py). All take orders and give outcomes.

A process of its own is told its orders as JSON lines. It leads its own process group, so that Ctrl-C reaches the tuner alone, which asks it
to save; and it ends with the tuner, however that ends, because its standard input does.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import asdict
from typing import Protocol

from luban.foundation.messages import set_language, t
from luban.tuning.trial import Order, Outcome, run_order


class Workers(Protocol):
    """Takes up to ``jobs`` orders at a time."""

    jobs: int
    busy: set[int]

    def start(self, order: Order) -> None: ...
    def wait(self) -> Outcome: ...
    def stop(self) -> None:
        """Ask what runs to save and leave; each still gives an outcome."""
        ...


class Inline:
    """This process: one trial after the other, and nothing to load twice."""

    jobs = 1

    def __init__(self) -> None:
        self.busy: set[int] = set()
        self.outcomes: list[Outcome] = []

    def start(self, order: Order) -> None:
        self.busy.add(order.number)
        self.outcomes.append(run_order(order))

    def wait(self) -> Outcome:
        outcome = self.outcomes.pop()
        self.busy.discard(outcome.number)
        return outcome

    def stop(self) -> None:
        """Nothing runs between two calls."""


class Processes:
    """As many processes as jobs, each for many trials. One that dies costs its trial, and is replaced."""

    def __init__(self, jobs: int):
        self.jobs = jobs
        self.busy: set[int] = set()
        self.free: list[subprocess.Popen] = []
        self.at_work: dict[int, subprocess.Popen] = {}
        self.outcomes: queue.Queue[Outcome] = queue.Queue()
        self.stopping = False

    def start(self, order: Order) -> None:
        process = self.free.pop() if self.free else _spawn()
        self.busy.add(order.number)
        self.at_work[order.number] = process
        process.stdin.write(order.to_json() + "\n")
        process.stdin.flush()
        threading.Thread(target=self._listen, args=(order.number, process), daemon=True).start()

    def wait(self) -> Outcome:
        while True:
            with contextlib.suppress(queue.Empty):
                outcome = self.outcomes.get(timeout=0.5)  # so that a signal is heard
                break
        self.busy.discard(outcome.number)
        process = self.at_work.pop(outcome.number)
        if process.poll() is None:
            self.free.append(process)
        return outcome

    def stop(self) -> None:
        self.stopping = True
        for process in self.at_work.values():
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)

    def close(self) -> None:
        for process in (*self.free, *self.at_work.values()):
            process.stdin.close()
            process.wait()

    def _listen(self, number: int, process: subprocess.Popen) -> None:
        line = process.stdout.readline()
        if line:
            self.outcomes.put(Outcome(**json.loads(line)))
        else:
            status = process.wait()
            if self.stopping and status == -signal.SIGTERM:  # it had not come so far as to hear
                self.outcomes.put(Outcome(number, "interrupted"))
                return
            ended = signal.Signals(-status).name if status < 0 else str(status)
            self.outcomes.put(Outcome(number, "failed", error=t("its process ended: {status}", status=ended)))


def _spawn() -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "luban.tuning.workers"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True)


@contextlib.contextmanager
def make_workers(engine: str, jobs: int) -> Iterator[Workers]:
    """The workers of an engine; they are gone afterwards."""
    if engine == "ray":
        from luban.tuning.ray_cluster import Cluster

        yield Cluster(jobs)
    elif jobs == 1:
        yield Inline()
    else:
        workers = Processes(jobs)
        try:
            yield workers
        finally:
            workers.close()


def run_json(text: str) -> str:
    """An order as JSON to its outcome as JSON."""
    order = Order(**json.loads(text))
    set_language(order.language)
    return json.dumps(asdict(run_order(order)))


def main() -> None:
    """A worker's life: orders from standard input, outcomes to standard output, and no longer than the tuner's."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    orders: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in sys.stdin:
            orders.put(line)
        os._exit(0)  # the tuner is gone: what runs is continued from its checkpoint

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # outside a training, which saves first
    threading.Thread(target=read, daemon=True).start()
    while True:
        with contextlib.suppress(KeyboardInterrupt):
            answers.write(run_json(orders.get()) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
