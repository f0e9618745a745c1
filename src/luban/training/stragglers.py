"""Slow ranks: now and then the ranks compare what each needed by itself, and the one that the others wait for is named."""

from __future__ import annotations

import math
import statistics
from typing import Any

from luban.foundation.console import seconds_text, warn
from luban.parallel.pulse import named
from luban.parallel.ranks import here
from luban.training.events import Events
from luban.training.precision import measured_peak_flops
from luban.training.run import Run

SLOW_TIMES = 1.5  # of what the others need
SLOW_SECONDS = 0.05  # and so much longer a step
SLOW_SPEED = 0.5  # of the others' in a large matrix product
SPEED_SECONDS = 0.02  # that a step must lose by it at the least
LEAST_STEPS = 4
LOOKS = 3  # of speeds, of which the best counts


class Stragglers:
    """A rank's own time of a step is what it did not wait for others: exact where each holds the whole model (replicas). Where weights are gathered all the time the ranks go in
    step, so the speed of each in a matrix product is compared too."""

    section = "other"

    def __init__(self, every: int, events: Events):
        self.every, self.events = every, events
        self.since: tuple[int, float, float] = (0, 0.0, 0.0)  # steps, seconds of steps, seconds waited when they were last compared
        self.speeds: list[float] = []  # of this rank, when they were compared
        self.rows, self.told = 0, False  # of this rank since they were last compared; whether it was said that one has none

    def after_step(self, run: Run) -> None:
        ranks = here()
        steps, spent, layout, batch = run.clock.steps, run.clock.spent, run.engine.layout, run.engine.step_batch
        if batch is not None:
            first, last = layout.share(len(batch.inputs), batch.group, layout.data_rank)
            self.rows += last - first
        if ranks.alone or not run.every(self.every) or steps - self.since[0] < LEAST_STEPS:
            return
        now = (steps, spent["data"] + spent["steps"] + spent["compilation"], layout.ranks.waited)
        own = max(0.0, now[1] - self.since[1] - now[2] + self.since[2]) / (steps - self.since[0])  # a validation's waiting counts too
        self.since = now
        self.speeds.append(measured_peak_flops(run.model.device, run.engine.precision))
        best = max(self.speeds[-LOOKS:]) if len(self.speeds) >= LOOKS else None  # what else runs on the machine makes single ones too low
        seconds, speeds, rows = map(list, zip(*ranks.everyone([own, best, self.rows]), strict=True))
        self.rows = 0
        if not ranks.leads:
            return
        if 0 in rows and any(rows) and not self.told:
            self.told = True
            warn("{ranks}: no rows, as a step has fewer than there are ranks to share them: raise batch_tokens or batch_examples, or start fewer", ranks=named(ranks, [rank for rank, count in enumerate(rows) if not count]))
        for facts in slow_ranks(seconds, speeds, rows):
            say_slow(named(ranks, [facts["rank"]]), facts)
            self.events.add("straggler", run.step, **facts)


def say_slow(who: str, facts: dict[str, Any]) -> None:
    """Warn of a rank, by that for which :func:`slow_ranks` named it."""
    if facts["by"] == "time":
        warn("{rank} is slow: {own} of its own work a step, where the others need {usual} and wait for it", rank=who, own=_span(facts["seconds"]), usual=_span(facts["others"]))
    else:
        warn("{rank} is slow: it computes {share:.0%} of what the others do in the same time", rank=who, share=facts["speed"])


def _works_longer(own: float, usual: float, work: float) -> bool:
    """Whether a rank with ``work`` times the rows of the others needs longer than they would."""
    return own > SLOW_TIMES * work * usual and own - work * usual > SLOW_SECONDS


def _span(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else seconds_text(seconds)


def slow_ranks(seconds: list[float], speeds: list[float | None], rows: list[int]) -> list[dict[str, Any]]:
    """What is known of each rank that is slow beside the median of the others, given the seconds of its own work a step, its operations a second, where all are known by now, and
    its rows: with more of them it may take longer, and beside ranks that have none it is not judged by its time."""
    found = []
    for rank, own in enumerate(seconds):
        usual, theirs = (statistics.median(each[:rank] + each[rank + 1 :]) for each in (seconds, rows))
        work = max(1.0, rows[rank] / theirs) if theirs else math.inf if any(rows) else 1.0
        speed = 1.0 if None in speeds else speeds[rank] / statistics.median(speeds[:rank] + speeds[rank + 1 :])
        longer = _works_longer(own, usual, work)
        if longer or (speed < SLOW_SPEED and own * (1 - speed) > SPEED_SECONDS):
            found.append({"rank": rank, "by": "time" if longer else "speed", "seconds": round(own, 4), "others": round(usual, 4), "speed": round(speed, 3)})
    return found
