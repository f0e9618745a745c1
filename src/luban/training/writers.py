"""Where else the numbers go. Each writer is one small class with two verbs: ``scalars`` and ``close``.

A writer is made before step one, and what it lacks (a package, a free port) is an error then. After that none may hurt the run:
one that fails is named and left out, and those that may wait for a network do so behind the loop.
"""

from __future__ import annotations

import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from luban.foundation.console import say, warn
from luban.foundation.environment import refuse_telemetry
from luban.foundation.errors import installing, missing_extra
from luban.training.config import TrackConfig
from luban.training.prometheus import PrometheusWriter

WAITING = 10_000  # sets of numbers that may wait behind the loop
CLOSING_SECONDS = 30.0  # in which they must be gone at the end


class Writer(Protocol):
    """A place for numbers. ``group`` is "train" or "validation"."""

    def scalars(self, group: str, values: dict[str, float], step: int) -> None: ...

    def close(self) -> None: ...


def open_writers(folder: Path, config: TrackConfig, name: str, identity: str) -> list[Writer]:
    """The writers that a recipe asks for. ``identity`` is the same for a run that goes on, and for no other."""
    made: list[Writer] = []
    if config.tensorboard and (writer := _tensorboard(folder)):
        made.append(Safe("TensorBoard", writer))
    if config.prometheus or config.prometheus_file:
        made.append(Safe("Prometheus", PrometheusWriter(config, name)))
    if config.wandb:
        made.append(Behind("W&B", WandbWriter(config.wandb, name, identity)))
    if config.mlflow:
        made.append(Behind("MLflow", MlflowWriter(config.mlflow, config.mlflow_server, name, identity)))
    if config.trackio:
        made.append(Behind("trackio", TrackioWriter(config.trackio, identity)))
    return made


class Safe:
    """A writer whose failure is said once and ends only itself."""

    def __init__(self, label: str, writer: Writer):
        self.label, self.writer, self.failed = label, writer, False

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self._do(lambda: self.writer.scalars(group, values, step))

    def close(self) -> None:
        self._do(self.writer.close)

    def _do(self, what: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            what()
        except Exception as error:  # whatever a disk, a network or a foreign package can do wrong
            self.failed = True
            warn("{label} gets no more numbers: {error}; the log has them all", label=self.label, error=f"{type(error).__name__}: {error}"[:300])


class Behind(Safe):
    """A writer that may wait for a network: it works in a thread of its own, and the loop never waits for it."""

    def __init__(self, label: str, writer: Writer):
        super().__init__(label, writer)
        self.waiting: queue.Queue[tuple[str, dict[str, float], int] | None] = queue.Queue(WAITING)
        self.lost = 0
        self.thread = threading.Thread(target=self._work, name=f"luban-{label}", daemon=True)
        self.thread.start()

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        try:
            self.waiting.put_nowait((group, dict(values), step))
        except queue.Full:
            self.lost += 1

    def close(self) -> None:
        deadline = time.monotonic() + CLOSING_SECONDS
        try:
            self.waiting.put(None, timeout=CLOSING_SECONDS)
        except queue.Full:
            self.lost += 1
        self.thread.join(timeout=max(0.0, deadline - time.monotonic()))
        if left := self.lost + self.waiting.qsize() + self.thread.is_alive():
            warn("{label} did not take everything in time: {count} sets of numbers are only in the log", label=self.label, count=left)

    def _work(self) -> None:
        while (item := self.waiting.get()) is not None:
            super().scalars(*item)
        super().close()


class TensorBoardWriter:
    """Event files, which TensorBoard and others read."""

    def __init__(self, writer: Any):
        self.writer = writer

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


def _tensorboard(folder: Path) -> TensorBoardWriter | None:
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        say("TensorBoard events are not written: {how}", how=installing("track"))
        return None
    return TensorBoardWriter(SummaryWriter(str(folder / "events")))


class WandbWriter:
    """Weights & Biases."""

    def __init__(self, project: str, name: str, identity: str):
        try:
            import wandb
        except ImportError:
            raise missing_extra("wandb", "wandb") from None
        self.run = wandb.init(project=project, name=name, id=identity, resume="allow")

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self.run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


class MlflowWriter:
    """An MLflow experiment, on a server or in a database. A run that goes on is found again by its identity."""

    def __init__(self, experiment: str, server: str, name: str, identity: str):
        refuse_telemetry()
        try:
            from mlflow import MlflowClient
            from mlflow.entities import Metric
        except ImportError:
            raise missing_extra("mlflow", "mlflow") from None
        self.metric, self.client = Metric, MlflowClient(server or None)
        known = self.client.get_experiment_by_name(experiment)
        place = known.experiment_id if known else self.client.create_experiment(experiment)
        found = self.client.search_runs([place], f"tags.`luban.run` = '{identity}'")
        self.run_id = (found[0] if found else self.client.create_run(place, run_name=name, tags={"luban.run": identity})).info.run_id
        self.client.update_run(self.run_id, status="RUNNING")

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        now = int(time.time() * 1000)
        metrics = [self.metric(re.sub(r"[^\w\-. /]", "_", f"{group}/{name}"), value, now, step) for name, value in values.items()]
        self.client.log_batch(self.run_id, metrics=metrics)

    def close(self) -> None:
        self.client.set_terminated(self.run_id)


class TrackioWriter:
    """A trackio project: a database on this machine, shown by ``trackio show``; a Space only where trackio's own variables name one."""

    def __init__(self, project: str, identity: str):
        try:
            import trackio
        except ImportError:
            raise missing_extra("trackio", "trackio") from None
        self.run = trackio.init(project=project, name=identity, resume="allow", embed=False, auto_log_gpu=False, auto_log_cpu=False)

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self.run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()
