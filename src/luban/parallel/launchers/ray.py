"""Ray: a job is submitted, Ray finds the machines, and torchrun runs on each (parallel/ray_job.py)."""

from __future__ import annotations

from luban.parallel.launchers.config import RayConfig
from luban.parallel.launchers.job import Job, Launching, interpreter


def launching(job: Job, config: RayConfig) -> Launching:
    if config.upload:
        job.refuse_elsewhere()
    accelerators = 0 if job.devices.processors else job.processes_per_node
    sizes = ["--nodes", str(job.nodes), "--processes-per-node", str(job.processes_per_node), "--accelerators", str(accelerators), "--restarts", str(config.restarts)]
    folder = ["--working-dir", str(job.folder)] if config.upload else []
    inner = [] if config.upload else ["--folder", str(job.folder)]
    entry = [interpreter(config, "python"), "-m", "luban.parallel.ray_job", *sizes, *inner, "--", *job.arguments]
    return Launching(["ray", "job", "submit", "--address", config.address, *folder, "--", *entry], "Ray")
