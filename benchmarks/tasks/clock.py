"""A callback of the training that notes the time after each step, so that both sides are timed by one clock; and it begins the random numbers of
each step anew, so that both sides draw the same dropout wherever a step is one forward pass. What is left between them is not chance."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

FILE = "clock.jsonl"


def after_step(run: Any) -> None:
    """Add (wall seconds, processor seconds) to ``clock.jsonl`` in the run's folder, and begin the next step's random numbers."""
    with (Path(run.folder) / FILE).open("a", encoding="ascii") as stream:
        stream.write(json.dumps(marks()) + "\n")
    begin_step(run.step)


def begin_step(number: int) -> None:
    """Random numbers that depend on the step alone; the first step has those that the run began with."""
    torch.manual_seed(1_000_003 + number)


def marks() -> tuple[float, float]:
    return time.monotonic(), time.process_time()


def seconds(times: Sequence[Sequence[float]]) -> tuple[float, float]:
    """(wall, processor) seconds of all steps: those between the first and the last but one mark, scaled up.

    The first step warms up, and the last mark comes after the last validation or saving; three steps are too few to leave any out.
    """
    used = times[:-1] if len(times) > 3 else times
    steps = max(1, len(used) - 1)
    wall, processor = (used[-1][column] - used[0][column] for column in (0, 1))
    return wall / steps * len(times), processor / steps * len(times)


def read(folder: Path) -> tuple[float, float]:
    """:func:`seconds` of a finished run."""
    return seconds([json.loads(line) for line in (folder / FILE).read_text(encoding="ascii").splitlines()])
