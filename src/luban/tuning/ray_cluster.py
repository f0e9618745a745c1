"""Trials on a Ray cluster: the same orders, run by Ray's workers.

Ray places tasks on nodes and does nothing else here. The sampler, the pruner, checkpoints and the resuming of trials stay Luban's, so a search may
begin on one machine and go on on a cluster. Ray Tune's own loop would keep a second record of the trials, with its own checkpoints and rules for
what is repeated. The run's folder, and the storage of the trials, must be reached by every node under the same name.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luban.foundation.errors import missing_extra
from luban.tuning.trial import Order, Outcome


class Cluster:
    """Takes up to ``jobs`` orders at a time; each has a processor, and an accelerator where the cluster has some."""

    def __init__(self, jobs: int):
        try:
            import ray
        except ImportError:
            raise missing_extra("ray", "ray") from None
        self.ray, self.jobs = ray, jobs
        self.busy: set[int] = set()
        self.running: dict[Any, int] = {}
        if not ray.is_initialized():
            ray.init(log_to_driver=False, include_dashboard=False)  # address: the cluster this runs in (RAY_ADDRESS), else this machine
        accelerators = ray.cluster_resources().get("GPU", 0)
        self.task = ray.remote(num_cpus=1, num_gpus=min(1, accelerators / jobs) if accelerators else 0, max_retries=0)(_run)

    def start(self, order: Order) -> None:
        self.busy.add(order.number)
        self.running[self.task.remote(order.to_json(), str(Path.cwd()))] = order.number

    def wait(self) -> Outcome:
        (done, *_), _ = self.ray.wait(list(self.running), num_returns=1)
        number = self.running.pop(done)
        self.busy.discard(number)
        try:
            return Outcome(**json.loads(self.ray.get(done)))
        except self.ray.exceptions.RayError as error:
            state = "interrupted" if isinstance(error, self.ray.exceptions.TaskCancelledError) else "failed"
            return Outcome(number, state, error=str(error).strip().splitlines()[0][:300])

    def stop(self) -> None:
        for task in self.running:
            self.ray.cancel(task)  # KeyboardInterrupt in it: what it saved is continued


def _run(order: str, folder: str) -> str:
    import os

    from luban.tuning.workers import run_json

    os.chdir(folder)  # relative paths mean what they mean to the tuner
    return run_json(order)
