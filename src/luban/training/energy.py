"""Energy of a run: from the meters of the machine where it has some, else from a stated power model."""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
import time
from pathlib import Path
from typing import Any, Protocol

from luban.foundation.hardware import resident_bytes
from luban.training.config import EnergyConfig

POWERCAP = Path("/sys/class/powercap")
# The power model where nothing is measured. A core while it computes: about what design power over cores is for server processors. A gigabyte
# that is held: Lannelongue, Grealey & Inouye 2021, "Green Algorithms", doi:10.1002/advs.202100707.
CORE_WATTS, GIGABYTE_WATTS = 12.0, 0.3725


class Source(Protocol):
    """Something that knows how many joules were used since it was made."""

    text: str  # what it is, for the reader of the figure

    def joules(self) -> float: ...


class Stated:
    """A power that the recipe states."""

    def __init__(self, watts: float):
        self.watts, self.begun, self.text = watts, time.monotonic(), f"stated: {watts:g} W"

    def joules(self) -> float:
        return self.watts * (time.monotonic() - self.begun)


class Model:
    """Watts for each core in use and each gigabyte held by this process and its ended children."""

    text = f"model: {CORE_WATTS:g} W a core in use, {GIGABYTE_WATTS:g} W a GB held"

    def __init__(self) -> None:
        self.last = (time.monotonic(), self._core_seconds())
        self.used = 0.0

    def joules(self) -> float:
        now = (time.monotonic(), self._core_seconds())
        self.used += CORE_WATTS * (now[1] - self.last[1]) + GIGABYTE_WATTS * resident_bytes() / 1e9 * (now[0] - self.last[0])
        self.last = now
        return self.used

    @staticmethod
    def _core_seconds() -> float:
        times = os.times()
        return times.user + times.system + times.children_user + times.children_system


class Rapl:
    """The counters of processor packages and their memory that Linux shows in powercap; all that runs on the machine is in them."""

    def __init__(self, root: Path = POWERCAP):
        """Raises OSError where there are none, or they may not be read."""
        self.counters: list[tuple[Path, int]] = []
        for folder in sorted(root.glob("*-rapl:*")):
            name = (folder / "name").read_text().strip()
            if name.startswith(("package", "dram")):
                self.counters.append((folder / "energy_uj", int((folder / "max_energy_range_uj").read_text())))
        if not self.counters:
            raise FileNotFoundError(root)
        self.last = self._read()
        self.used = 0.0
        self.text = f"meter: {len(self.counters)} RAPL counters"

    def joules(self) -> float:
        """Must be asked more often than a counter wraps: every quarter of an hour on the largest processors."""
        now = self._read()
        for (_, largest), before, after in zip(self.counters, self.last, now, strict=True):
            self.used += (after - before + (largest if after < before else 0)) / 1e6
        self.last = now
        return self.used

    def _read(self) -> list[int]:
        return [int(file.read_text()) for file, _ in self.counters]


class Nvml:
    """The energy counters of NVIDIA GPUs (Volta and later), through the driver's own library."""

    def __init__(self, identities: list[str], library: Any = None):
        """``identities``: UUIDs. Raises OSError where the library or a counter is missing."""
        self.library = library or ctypes.CDLL("libnvidia-ml.so.1")
        self._ask(self.library.nvmlInit_v2)
        self.handles = []
        for identity in identities:
            handle = ctypes.c_void_p()
            self._ask(self.library.nvmlDeviceGetHandleByUUID, identity.encode("ascii"), ctypes.byref(handle))
            self.handles.append(handle)
        self.first = self._read()
        self.text = f"meter: NVML of {len(self.handles)} GPU"

    def joules(self) -> float:
        return self._read() - self.first

    def _read(self) -> float:
        total = 0
        for handle in self.handles:
            millijoules = ctypes.c_ulonglong()
            self._ask(self.library.nvmlDeviceGetTotalEnergyConsumption, handle, ctypes.byref(millijoules))
            total += millijoules.value
        return total / 1000

    @staticmethod
    def _ask(function: Any, *arguments: Any) -> None:
        if status := function(*arguments):
            raise OSError(f"NVML status {status}")


class Energy:
    """Joules of this process's run so far. ``source`` says where they come from."""

    def __init__(self, config: EnergyConfig, root: Path = POWERCAP):
        self.parts: list[Source] = [Stated(config.watts)] if config.watts != "auto" else [_processor(root), *_accelerators()]
        self.source = "; ".join(part.text for part in self.parts)
        self.grams = config.grams_per_kilowatt_hour
        self._known = 0.0
        self._lock = threading.Lock()  # the loop and the clock's thread ask, and a meter remembers when it was asked

    def joules(self) -> float:
        with self._lock, contextlib.suppress(OSError):  # a meter that went away: what is known stays
            self._known = sum(part.joules() for part in self.parts)
        return self._known


def _processor(root: Path) -> Source:
    try:
        return Rapl(root)
    except (OSError, ValueError):
        return Model()


def _accelerators() -> list[Source]:
    import torch

    if not torch.cuda.is_available():
        return []
    try:
        return [Nvml([f"GPU-{torch.cuda.get_device_properties(torch.cuda.current_device()).uuid}"])]
    except (OSError, AttributeError):
        return []
