"""The watchdog: a section that lasts too long is told apart into slow and hanging; of a hang the stacks of all threads are written down, and the process ends.

A thread looks now and then at what the clock says runs, and for how long. Over its limit a section that still uses the processor is slow: that is noted once, and it has three
times its limit. One that does not hangs, and the process ends with status 75, on which launchers and schedulers start the same command again. Where a library holds the
interpreter, no thread of ours can look: then the interpreter's own timer, which was set at the last look, writes the stacks and ends the process.

Of several ranks all hang when one does; who it is the ranks' signs of life say (parallel/pulse.py).
"""

from __future__ import annotations

import faulthandler
import os
import threading
import time
from pathlib import Path
from typing import TextIO

from luban.foundation.console import console, hush, seconds_text, warn
from luban.foundation.environment import in_notebook
from luban.foundation.errors import Interrupted
from luban.foundation.messages import t
from luban.parallel.pulse import Finding, Pulse
from luban.parallel.ranks import Ranks
from luban.training.config import WatchdogConfig
from luban.training.events import Events
from luban.training.goodput import SHOWN, Clock
from luban.training.run import Run

LOOK_SECONDS = 5.0
TIMES = 10  # `auto`: so many times the slowest so far
LEAST = {"set_up": 3600.0, "step": 900.0, "evaluation": 3600.0, "checkpoint": 1800.0}  # and at least these
COMPILING = 3600.0
SLOW_TIMES = 3.0  # the limit, for a section that still computes
BUSY = 0.05  # share of one processor that counts as computing
FIELDS = {"set_up": "set_up", "restarts": "set_up", "data": "step", "steps": "step", "compilation": "step", "other": "step", "evaluation": "evaluation", "checkpoints": "checkpoint"}


class Watchdog:
    """Looks while it lasts. ``folder``: training/ of the run, the same for all ranks: each has stacks of its own."""

    def __init__(self, clock: Clock, config: WatchdogConfig, folder: Path, ranks: Ranks | None = None):
        self.clock, self.config = clock, config
        self.file = folder / (f"stacks-{ranks.rank}.txt" if ranks and ranks.rank else "stacks.txt")
        self.pulse = Pulse(ranks, lambda: (self.step, self.clock.name)) if ranks and not ranks.alone else None
        self.events = Events(folder)
        self.step = 0
        self._seen: tuple[str, float] = ("", 0.0)  # the section that is looked at, and when it began
        self._lasted = 0.0  # as far as this thread was awake: a process that was stopped as a whole has not hung
        self._noted = False
        self._processor = (0.0, 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="luban-watchdog", daemon=True)

    def __enter__(self) -> Watchdog:
        self._thread.start()
        if self.pulse:
            self.pulse.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        self._thread.join(timeout=1)
        if self.pulse:
            self.pulse.stop()

    def limit(self, section: str) -> float:
        """Seconds that a section may last; infinite where it is not watched."""
        field = FIELDS.get(section)
        wanted = getattr(self.config, field) if field else "none"
        if wanted == "none":
            return float("inf")
        if wanted != "auto":
            return wanted.seconds
        slowest = max((seconds for name, seconds in self.clock.slowest.copy().items() if FIELDS.get(name) == field), default=0.0)
        return max(COMPILING if section == "compilation" else LEAST[field], TIMES * slowest)

    def _watch(self) -> None:
        last = time.monotonic()
        interval = min([LOOK_SECONDS, *(self.limit(name) / 5 for name in FIELDS)])
        longest = SLOW_TIMES * min(self.limit(name) for name in FIELDS) + 2 * interval  # that a library may hold the interpreter, whatever section it is
        with self.file.open("a", encoding="utf-8") as stacks:
            try:
                while True:
                    if longest < threading.TIMEOUT_MAX and not in_notebook():
                        faulthandler.dump_traceback_later(longest, exit=True, file=stacks)
                    if self._ended.wait(interval):
                        return
                    now = time.monotonic()
                    self._look(min(now - last, 2 * interval), stacks)
                    last = now
            finally:
                faulthandler.cancel_dump_traceback_later()  # here, where nobody sets it after that

    def _look(self, awake: float, stacks: TextIO) -> None:
        """``awake``: seconds since the last look in which this thread could have looked."""
        section, since = self.clock.name, self.clock.since
        if (section, since) != self._seen:
            self._seen, self._lasted, self._noted = (section, since), 0.0, False
            self._processor = (0.0, time.process_time())
        self._lasted += awake
        limit = self.limit(section)
        if self._lasted <= limit:
            return
        used, busy = time.process_time() - self._processor[1], self._lasted - self._processor[0]
        if used > BUSY * busy and self._lasted <= SLOW_TIMES * limit:
            self._processor = (self._lasted, time.process_time()) if busy > limit / 2 else self._processor
            self._slow(section)
        else:
            self._hangs(section, stacks)

    def _slow(self, section: str) -> None:
        if not self._noted:
            self._noted = True
            warn("{section} has lasted {time} and still computes; it is given three times its limit", section=t(SHOWN.get(section, section)), time=seconds_text(self._lasted))
            self.events.add("slow", self.step, section=section, seconds=round(self._lasted, 1))

    def _hangs(self, section: str, stacks: TextIO) -> None:
        """Write down where every thread stands, and leave at once: whoever hangs would not answer."""
        stacks.write(f"step {self.step}, section {section}, after {self._lasted:.1f} s\n")
        stacks.flush()
        faulthandler.dump_traceback(stacks, all_threads=True)
        stacks.write("\n")
        stacks.flush()
        if not self._noted or not in_notebook():
            faulthandler.cancel_dump_traceback_later()  # asking the others takes a while
            finding = self.pulse.finding() if self.pulse else Finding("")
            if finding.speaks:
                hush(False)
                warn("{section} hangs since {time}; where every thread stands is in {file}", section=t(SHOWN.get(section, section)), time=seconds_text(self._lasted), file=stacks.name)
                if finding.text:
                    console().print(finding.text, style="yellow", markup=False)
                self.events.add("hang", self.step, section=section, seconds=round(self._lasted, 1), stacks=self.file.name, **({"ranks": finding.ranks} if self.pulse else {}))
        self._noted = True
        if not in_notebook():  # whose kernel holds more than this run
            self.clock.write()
            os._exit(Interrupted.exit_code)
        self._lasted = float("-inf")

    # ---- as a hook

    section = "other"

    def after_step(self, run: Run) -> None:
        """So that what is said names the step."""
        self.step = run.step
