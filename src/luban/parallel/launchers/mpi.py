"""MPI: mpirun starts every rank itself, and Luban reads its place from what mpirun set. MPI starts processes here and carries no tensor."""

from __future__ import annotations

import shutil
import socket
import subprocess

from luban.foundation.errors import ConfigError
from luban.parallel.launchers.config import MpiConfig
from luban.parallel.launchers.job import Job, Launching, interpreter


def launching(job: Job, config: MpiConfig) -> Launching:
    if len(config.hosts or ["here"]) != job.nodes:
        raise ConfigError("{nodes} machines and {count} hosts", "mpirun starts processes on the machines that it is told", "--hosts once for each machine, rank 0's first; and --nodes as many", nodes=job.nodes, count=len(config.hosts))
    openmpi = _is_openmpi() if config.mpi == "auto" else config.mpi == "openmpi"
    meeting = {"MASTER_ADDR": config.hosts[0] if config.hosts else "127.0.0.1", "MASTER_PORT": str(config.port or (29500 if config.hosts else _free_port()))}
    ranks, each = str(job.nodes * job.processes_per_node), str(job.processes_per_node)
    hosts = config.hosts or ["localhost"]
    if openmpi:
        options = ["-np", ranks, "--host", ",".join(f"{host}:{each}" for host in hosts), "--bind-to", "none"]  # bound, a rank's threads would share a core
        options += [word for name, value in meeting.items() for word in ("-x", f"{name}={value}")] + [word for name in config.pass_environment for word in ("-x", name)]
    else:
        options = ["-n", ranks, "-ppn", each, "-hosts", ",".join(hosts)]
        options += [word for name, value in meeting.items() for word in ("-genv", name, value)] + (["-genvlist", ",".join(config.pass_environment)] if config.pass_environment else [])
    return Launching(["mpirun", *options, *config.options, interpreter(config), "-m", "luban", "run", *job.arguments], "Open MPI, MPICH or Intel MPI")


def _is_openmpi() -> bool:
    """What mpirun says it is; Open MPI where there is none to ask."""
    if not shutil.which("mpirun"):
        return True
    said = subprocess.run(["mpirun", "--version"], capture_output=True, text=True, timeout=60).stdout
    return "Open MPI" in said or "open-mpi" in said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
