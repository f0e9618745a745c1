"""torchrun: one machine, or the same command on each of several."""

from __future__ import annotations

from luban.foundation.errors import ConfigError
from luban.parallel.launchers.config import TorchrunConfig
from luban.parallel.launchers.job import Job, Launching, agent, interpreter


def launching(job: Job, config: TorchrunConfig) -> Launching:
    if job.nodes > 1 and not config.rendezvous:
        raise ConfigError("{nodes} machines must know where to meet", "", "--rendezvous HOST:29500 with the address of one of them, and the same command on each", nodes=job.nodes)
    return Launching(agent(job, interpreter(config), config.restarts, config.rendezvous, job.label), "torch")
