"""What torch's allocator for processors holds, counted where it asks for memory (aligned.cpp): exact, in every thread, and without torch's knowledge."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("aligned.cpp")


def count_from_the_start() -> None:
    """Go on as a process in which it is counted. Its library is made in a folder of the moment, for each process anew."""
    library = Path(tempfile.gettempdir()) / f"luban-aligned-{os.getpid()}.so"  # the process keeps its number
    if os.environ.get("LD_PRELOAD") == str(library):
        library.unlink()
        return
    subprocess.run([os.environ.get("CXX", "g++"), "-O2", "-shared", "-fPIC", str(SOURCE), "-o", str(library)], check=True)
    os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], {**os.environ, "LD_PRELOAD": str(library)})


def held() -> int:
    """Bytes now."""
    return _library().aligned_held()


def most() -> int:
    """Bytes at the most since the last call."""
    return _library().aligned_most()


def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(None)
    library.aligned_held.restype = library.aligned_most.restype = ctypes.c_long
    return library
