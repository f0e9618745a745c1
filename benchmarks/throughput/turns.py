"""How the sides take turns: each is a process that does nothing until it is told how many steps to take, and then says how long they took.

Standard library only. A side calls ``Turns()`` once its model stands, ``begin()`` before a step and ``end()`` after it; steps asked for before the first turn are warm-up. ``wait`` waits for a device that is still at work.
"""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from multiprocessing.connection import Client, Connection

ADDRESS, KEY = "LUBAN_BENCHMARK_ADDRESS", b"throughput"


class Turns:
    """A side's end of the line. ``warm`` steps are taken before its first turn: they compile and fill the allocator."""

    def __init__(self, facts: dict[str, object], warm: int = 3, wait: Callable[[], object] = lambda: None):
        self.line: Connection = Client(os.environ[ADDRESS], authkey=KEY)
        self.facts, self.left, self.warming, self.wait = facts, warm, True, wait
        self.first = time.perf_counter()

    def begin(self) -> bool:
        """Wait until a step is wanted. False when the measuring is over."""
        if self.left == 0:
            if self.warming:
                self.wait()
                self.line.send(self.facts)
                self.warming = False
            asked = self.line.recv()
            if asked == 0:
                self.line.close()
                return False
            self.left = asked
            self.first, self.processor = time.perf_counter(), time.process_time()
        return True

    def end(self) -> None:
        """A step is done."""
        self.left -= 1
        if self.left == 0 and not self.warming:
            self.wait()
            self.line.send((time.perf_counter() - self.first, time.process_time() - self.processor))


def keep_memory() -> None:
    """glibc keeps large freed blocks (mallopt: M_MMAP_THRESHOLD, M_TRIM_THRESHOLD): what a side tuned by hand does."""
    library = ctypes.CDLL("libc.so.6")
    library.mallopt(-3, 1 << 30)
    library.mallopt(-1, -1)
