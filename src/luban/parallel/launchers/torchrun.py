"""torchrun: one machine, or the same command on each of several."""

from __future__ import annotations

import re

from luban.foundation.errors import ConfigError
from luban.parallel.launchers.config import TorchrunConfig
from luban.parallel.launchers.job import Job, Launching, agent, interpreter

PLACE = re.compile(r"(?:[\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})")


def launching(job: Job, config: TorchrunConfig) -> Launching:
    if job.nodes > 1 and not config.rendezvous:
        raise ConfigError("{nodes} machines must know where to meet", "", "--rendezvous HOST:29500 with the address of one of them, and the same command on each", nodes=job.nodes)
    if config.rendezvous and not ((place := PLACE.fullmatch(config.rendezvous)) and 0 < int(place[1]) < 65536):
        raise ConfigError("rendezvous: {text!r} is no HOST:PORT", "", "--rendezvous 10.0.0.1:29500, with the address of one of the machines and a free port of it", text=config.rendezvous)
    return Launching(agent(job, interpreter(config), config.restarts, config.rendezvous, job.label), "torch")
