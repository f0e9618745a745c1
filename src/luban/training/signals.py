"""Being asked to leave: SIGINT, SIGTERM, SIGUSR1 and the wall clock let the step finish, save, and leave with a status that a scheduler requeues on."""

from __future__ import annotations

import signal
import time
from types import FrameType

from luban.foundation.console import say
from luban.foundation.durations import TimeSpan
from luban.foundation.environment import launch
from luban.foundation.errors import Interrupted
from luban.training.run import Run

ASKING = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)  # from a person; from a scheduler that preempts; from one that warns (Slurm's --signal)
WALL_CLOCK = "wall_clock"
ONE_REQUEST = 1.0  # seconds: Slurm and torchrun each pass a signal on to the ranks


class StopSignals:
    """While it lasts a signal asks the run to stop after its step; the same again, or Ctrl-C, leaves at once. Before there is a run nothing has to be saved, and it leaves at once too."""

    def __init__(self) -> None:
        self.run: Run | None = None
        self.previous: dict[int, object] = {}
        self.asked: tuple[int, float] = (0, 0.0)  # the first signal, and when it came

    def __enter__(self) -> StopSignals:
        for number in ASKING:
            try:
                self.previous[number] = signal.signal(number, self._ask)
            except ValueError:  # not the main thread (a notebook's worker, a server): the caller stops us some other way
                break
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: one that was not set by Python
        if self.previous and error[0] is not None and launch().world_size > 1:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # torchrun asks those that are left to leave, and they say first what is wrong

    def _ask(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.run is None:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise Interrupted("stopped by {signal}; nothing that was done is lost", "", "run the same command again: it continues", signal=name)
        first, when = self.asked
        if first:
            if number == signal.SIGINT or (number == first and time.monotonic() - when > ONE_REQUEST):
                raise KeyboardInterrupt
            return  # what it asks for is being done
        self.asked = (number, time.monotonic())
        self.run.stop_wish = name
        say("{name}: finishing the step and saving; press again to leave at once", name=name)


class WallClock:
    """A hook that asks the run to stop while there is time left for one more turn of everything: a step, a validation, a checkpoint, each as slow as the slowest so far."""

    section = "other"

    def __init__(self, limit: TimeSpan, begun: float):
        self.limit, self.begun = limit, begun

    def after_step(self, run: Run) -> None:
        slowest = run.clock.slowest
        needed = 2 * sum(slowest.get(name, 0.0) for name in ("data", "steps", "compilation", "evaluation", "checkpoints"))
        if not run.stop_wish and time.monotonic() - self.begun + needed > self.limit.seconds:
            run.stop_wish = WALL_CLOCK
            say("wall_clock: {limit} are nearly over; saving at step {step}", limit=self.limit, step=run.step)


def asked_to_leave(reason: str) -> bool:
    """Whether a run stopped since somebody asked it to, and is to be continued."""
    return reason == WALL_CLOCK or reason.startswith("SIG")
