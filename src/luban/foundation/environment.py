"""The one place that reads the environment. Luban defines no environment variable of its own."""

from __future__ import annotations

import os
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path


def locale_language() -> str:
    """``"zh"`` where the locale variables name Chinese, else ``"en"``."""
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        if value := os.environ.get(name):
            return "zh" if value.lower().startswith("zh") else "en"
    return "en"


@dataclass(frozen=True)
class Launch:
    """What a launcher set: this process's place among its peers."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # on this machine
    attempt: int = 0  # how often the launcher has started all of them again
    address: str = ""  # where they meet; "" where nobody said it and they are on several machines
    port: int | None = None
    by: str = ""  # the launcher


TORCHRUN = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PLACES = {  # rank, how many, rank on this machine, how many on this machine
    "Horovod": ("HOROVOD_RANK", "HOROVOD_SIZE", "HOROVOD_LOCAL_RANK", "HOROVOD_LOCAL_SIZE"),
    "Open MPI": ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"),
    "MVAPICH": ("MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE", "MV2_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_SIZE"),
    "MPI": ("PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", "MPI_LOCALNRANKS"),  # MPICH, Intel MPI and others whose mpiexec is Hydra
}


def launch() -> Launch:
    """The place that torchrun, mpirun or a launcher that speaks like one of them gave this process, if one did."""
    if set(TORCHRUN) <= os.environ.keys():
        return Launch(
            rank=int(os.environ["RANK"]),
            world_size=int(os.environ["WORLD_SIZE"]),
            local_rank=int(os.environ.get("LOCAL_RANK", 0)),
            local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
            attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
            address=os.environ["MASTER_ADDR"],
            port=int(os.environ["MASTER_PORT"]),
            by="torchrun",
        )
    for name, (rank, size, local_rank, local_size) in PLACES.items():
        if int(os.environ.get(size, 1)) > 1 and rank in os.environ:
            known = local_rank in os.environ and local_size in os.environ
            local = (int(os.environ[local_rank]), int(os.environ[local_size])) if known else (0, 1)
            address = os.environ.get("MASTER_ADDR") or ("127.0.0.1" if local[1] == int(os.environ[size]) else "")
            return Launch(int(os.environ[rank]), int(os.environ[size]), *local, address=address, port=int(os.environ.get("MASTER_PORT") or _meeting_port()), by=name)
    return Launch()


def _meeting_port() -> int:
    """A port that the ranks of one job agree on without a word and other jobs of the machine hardly share, below those that the system gives away."""
    return 20000 + zlib.crc32((os.environ.get("PMIX_NAMESPACE") or str(os.getppid())).encode()) % 10000


def speak_as_torchrun(place: Launch) -> None:
    """Set what torchrun would have set for this place; torch and DeepSpeed read it."""
    names = (*TORCHRUN, "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    values = (place.rank, place.world_size, place.address, place.port, place.local_rank, place.local_world_size)
    os.environ.update({name: str(value) for name, value in zip(names, values, strict=True)})


def name_local_rank(rank: int) -> None:
    """Say which process of this machine this is, where no launcher has; DeepSpeed asks for it."""
    os.environ.setdefault("LOCAL_RANK", str(rank))


def let_waiting_threads_sleep() -> None:
    """Ask GNU OpenMP, before torch loads it, to stop spinning after some ten microseconds of waiting.

    By default its threads spin for milliseconds; when anything else runs on the machine they keep each other from the
    processors, and training measured three to ten times slower. On a quiet machine this costs nothing measurable.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")


def cxx() -> str:
    """The C++ compiler's name."""
    return os.environ.get("CXX") or "g++"


def cache_folder() -> Path:
    """Where what is made once a machine may be kept: the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")) / "luban"


def secret(name: str) -> str | None:
    """The value of an environment variable that the recipe names as a secret."""
    return os.environ.get(name)


def refuse_telemetry() -> None:
    """Ask packages that would report their use to their makers not to; what the user has set stands."""
    for name in ("DO_NOT_TRACK", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ.setdefault(name, "true")


def in_notebook() -> bool:
    """True inside a Jupyter kernel, where a live terminal display would not work."""
    shell = sys.modules.get("IPython")
    return bool(shell and shell.get_ipython() and "IPKernelApp" in shell.get_ipython().config)
