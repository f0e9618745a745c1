"""The clock of a run: each second of it belongs to one section, over every restart, and what share was goodput.

``training/time.json`` is written every few seconds, so that a process that was killed is missing the last of them at most; they count as restart.
"""

from __future__ import annotations

import math
import statistics
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import read_json, write_json
from luban.foundation.console import seconds_text, warn
from luban.foundation.errors import Interrupted, LubanError
from luban.training.config import EnergyConfig
from luban.training.energy import Energy
from luban.training.log import TIME

SECTIONS = ("set_up", "data", "steps", "evaluation", "checkpoints", "compilation", "stalls", "restarts", "lost", "other")
SHOWN = {"set_up": "set-up", "steps": "training steps", "lost": "lost work", "other": "between the steps"}  # sections as people read them, where that is not their name
HEARTBEAT_SECONDS = 10.0
STALL_TIMES, STALL_SECONDS = 5.0, 1.0  # a step that takes so many times the usual and so much longer has stalled: what is above the usual


class Clock:
    """``enter`` says what begins now; the time until the next ``enter`` is that section's. ``section`` does so for a while and goes back.

    ``kept`` is the time of steps whose work is still in the weights: ``run.seconds`` of a checkpoint says how much that is after going back to it.
    """

    def __init__(self, folder: Path | None = None, config: EnergyConfig | None = None):
        """Goes on from what ``folder`` holds of the run; without a folder it keeps time and writes nothing."""
        self.file = folder / TIME if folder else None
        former = _former(self.file) if self.file else {"seconds": {}}
        self.spent: dict[str, float] = {name: _amount(former["seconds"].get(name)) for name in SECTIONS}
        self.away, self.attempts = _amount(former.get("away")), int(_amount(former.get("attempts"))) + 1
        now = time.time()
        self.begun = _amount(former.get("begun")) or now
        if self.attempts > 1:
            gap = max(0.0, now - _amount(former.get("heartbeat")))
            if former.get("state") == "running":  # it was killed: the time until now is lost too
                self.spent["restarts"] += gap
            else:
                self.away += gap
        self.energy = Energy(config or EnergyConfig())
        self.former_joules = _amount(former.get("joules"))
        self.name = "set_up" if self.attempts == 1 else "restarts"  # the section that runs
        self.started = self.since = time.monotonic()
        self.slowest: dict[str, float] = {}  # of each section in this process, as a whole
        self.steps = 0  # of this process
        self._step_begun = 0.0
        self._usual: deque[float] = deque(maxlen=50)
        self._state = "running"
        self._lock = threading.RLock()
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None

    # ---- what runs now

    def enter(self, name: str) -> None:
        """The section ``name`` begins."""
        with self._lock:
            now = time.monotonic()
            self.slowest[self.name] = max(self.slowest.get(self.name, 0.0), now - self.since)
            self.spent[self.name] += now - self.since
            self.name, self.since = name, now

    @contextmanager
    def section(self, name: str) -> Iterator[None]:
        """The section ``name`` while it lasts, then the one before."""
        before = self.name
        self.enter(name)
        try:
            yield
        finally:
            self.enter(before)

    def begin_step(self) -> None:
        """A step begins, with its data."""
        self.enter("data")
        self._step_begun = self._worked()

    def end_step(self) -> float:
        """The step is done: its seconds. What is far above the usual is moved to ``stalls``."""
        self.enter("other")
        took = self._worked() - self._step_begun
        usual = statistics.median(self._usual) if len(self._usual) >= 8 else math.inf
        if took > STALL_TIMES * usual and took - usual > STALL_SECONDS:
            warn("a step took {took}, usually it is {usual}", took=seconds_text(took), usual=seconds_text(usual))
            with self._lock:
                self._move(took - usual, "stalls")
        self._usual.append(took)
        self.steps += 1
        return took

    def _worked(self) -> float:
        return self.spent["data"] + self.spent["steps"] + self.spent["compilation"] + self.spent["stalls"]

    def went_back(self, kept_seconds: float) -> None:
        """The run stands where ``kept_seconds`` of steps had been made: the rest of them is lost."""
        with self._lock:
            self._move(self._worked() - kept_seconds, "lost")

    def _move(self, seconds: float, to: str) -> None:
        """Take seconds from steps and data, in proportion."""
        whole = self.spent["steps"] + self.spent["data"]
        share = min(1.0, max(0.0, seconds) / whole) if whole else 0.0
        for name in ("steps", "data"):
            self.spent[to] += share * self.spent[name]
            self.spent[name] -= share * self.spent[name]

    # ---- what is known

    def now(self) -> dict[str, float]:
        """Seconds of each section over all processes of the run, the one that runs included."""
        with self._lock:
            return {**self.spent, self.name: self.spent[self.name] + time.monotonic() - self.since}

    def report(self) -> dict[str, Any]:
        """What the log, the manifest and the metrics say: seconds by section, ``goodput`` (the share of kept steps in all), energy."""
        seconds = self.now()
        whole = sum(seconds.values())
        joules = self.former_joules + self.energy.joules()
        kilowatt_hours = joules / 3.6e6
        return {
            "goodput": seconds["steps"] / whole if whole else 0.0,
            **{f"{name}_seconds": round(value, 3) for name, value in seconds.items()},
            "kilowatt_hours": kilowatt_hours,
            "grams_of_co2": kilowatt_hours * self.energy.grams,
            "processes": self.attempts,
        }

    # ---- how it lasts

    @contextmanager
    def running(self) -> Iterator[None]:
        """Write it down while the training lasts. Who was asked to leave may come back when he likes; any other error counts as a breakdown."""
        self.write()
        self._beating = threading.Thread(target=self._beat, name="luban-clock", daemon=True)
        self._beating.start()
        try:
            yield
        except (Interrupted, KeyboardInterrupt):
            self.leave("left")
            raise
        except BaseException:
            self.leave("running")
            raise
        self.enter("checkpoints")  # what follows is the artifact, with which the run is done
        self.leave("running")

    def leave(self, state: str) -> None:
        """The process gives the run up: "done", or "left" where it was asked to."""
        self._ended.set()
        if self._beating:
            self._beating.join()  # what it writes now must not come after the last word
        self._state = state
        self.write()

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_SECONDS):
            self.write()

    def write(self) -> None:
        """A disk that refuses does not end a run; what could not be written counts as restart later."""
        if self.file is None:
            return
        written = {
            "format": 1,
            "begun": self.begun,
            "heartbeat": time.time(),
            "state": self._state,
            "attempts": self.attempts,
            "seconds": self.now(),
            "away": self.away,
            "joules": self.former_joules + self.energy.joules(),
            "power": self.energy.source,
            "grams_per_kilowatt_hour": self.energy.grams,
        }
        try:
            write_json(self.file, written)
        except (LubanError, OSError):
            return


def _former(file: Path) -> dict[str, Any]:
    """What an earlier process wrote; nothing where it is missing or damaged."""
    found = read_json(file)
    return {**found, "seconds": found["seconds"] if isinstance(found.get("seconds"), dict) else {}}


def _amount(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value >= 0 else 0.0
