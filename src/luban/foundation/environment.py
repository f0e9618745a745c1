"""The one place that reads the environment. Luban defines no environment variable of its own."""

from __future__ import annotations

import os
import sys
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
    """What a launcher such as torchrun set: this process's place among its peers."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1  # on this machine
    attempt: int = 0  # how often the launcher has started all of them again
    port: int | None = None  # where they meet


def launch() -> Launch:
    """The rank that torchrun (or a launcher that speaks like it) gave this process, if one did."""
    if not {"RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys():
        return Launch()
    return Launch(
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        local_rank=int(os.environ.get("LOCAL_RANK", 0)),
        local_world_size=int(os.environ.get("LOCAL_WORLD_SIZE", 1)),
        attempt=int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)),
        port=int(os.environ["MASTER_PORT"]),
    )


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
