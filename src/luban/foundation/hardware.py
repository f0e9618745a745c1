"""Facts about this machine, read once and said with their reasons."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Cores and bytes this process may use, and the accelerator if there is one."""

    cpu: str
    cores: int
    memory_bytes: int
    accelerator: str  # "cpu", "cuda", "mps"
    accelerator_name: str = ""
    accelerator_memory_bytes: int = 0


def machine() -> Machine:
    """Look at the processor and memory, and ask torch for an accelerator if torch is already loaded."""
    kind, name, size = "cpu", "", 0
    if torch := sys.modules.get("torch"):
        if torch.cuda.is_available():
            properties = torch.cuda.get_device_properties(0)
            kind, name, size = "cuda", properties.name, properties.total_memory
        elif torch.backends.mps.is_available():
            kind, name = "mps", "Apple GPU"
    return Machine(_cpu_name(), cores(), memory_bytes(), kind, name, size)


def cores() -> int:
    """Processor cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def memory_bytes() -> int:
    """Memory of the machine, or of the container if that is less."""
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as stream:
            text = stream.read().strip()
        return min(total, int(text)) if text != "max" else total
    except (OSError, ValueError):
        return total


def available_bytes() -> int:
    """Memory that could be taken without pushing anything out; all of the machine's where the system does not say."""
    try:
        with open("/proc/meminfo", encoding="ascii") as stream:
            free = next(int(line.split()[1]) * 1024 for line in stream if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return memory_bytes()
    try:
        with open("/sys/fs/cgroup/memory.max", encoding="ascii") as most, open("/sys/fs/cgroup/memory.current", encoding="ascii") as now:
            text = most.read().strip()
            return min(free, max(0, int(text) - int(now.read()))) if text != "max" else free
    except (OSError, ValueError):
        return free


def resident_bytes() -> int:
    """Memory this process holds now."""
    try:
        with open("/proc/self/statm", encoding="ascii") as stream:
            return int(stream.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return peak_bytes()


def alive(process: int) -> bool:
    """Whether a process of this machine runs; one that has ended and was not yet waited for does not."""
    try:
        os.kill(process, 0)
        with open(f"/proc/{process}/stat", encoding="ascii", errors="replace") as stream:
            return stream.read().rpartition(")")[2].split()[0] not in "ZX"
    except ProcessLookupError:
        return False
    except (OSError, IndexError):  # another user's, or a system without /proc
        return True


def peak_bytes() -> int:
    """The most memory this process has held."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as stream:
            return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmHWM"))
    except (OSError, StopIteration):  # not Linux: getrusage, which a child may inherit from its parent
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def keep_freed_memory() -> bool:
    """Tell glibc to keep large freed blocks instead of handing them back to the kernel.

    Training frees and takes the same large blocks every step; giving them back costs page faults (measured
    1.4 times the step in eager mode). Returns False where the C library is not glibc.
    """
    m_trim_threshold, m_mmap_threshold = -1, -3  # malloc.h
    try:
        libc = ctypes.CDLL("libc.so.6")
        size = ctypes.c_int(2**31 - 1)
        return bool(libc.mallopt(m_mmap_threshold, ctypes.c_int(2**30)) and libc.mallopt(m_trim_threshold, size))
    except (OSError, AttributeError):
        return False


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
