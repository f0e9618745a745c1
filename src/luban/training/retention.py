"""When a checkpoint is due, and which of them stay."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import read_json

STATE = "state.json"
STALLS_APART = 100  # a save that holds the loop for a second comes every hundred seconds at most
GUESSED_BYTES_PER_SECOND = 2e8  # of writing, before it is measured


class Cadence:
    """The steps between checkpoints, and between the ephemeral ones that lie between them.

    ``every`` 0 is `auto`: the interval is √(2 · cost · time between failures) (Young 1974; Daly 2006: what is lost on average to saving and to repeating is least
    then), a tenth of the run at most, and a hundred times the stall of a save at least. The cost of a save is the time that the loop stood still and, since a writer
    takes memory and processor from the steps, the time that writing took.
    """

    def __init__(self, every: int, total: int, failures_seconds: float, ephemeral_seconds: float = 0.0):
        self.fixed, self.longest = every, max(1, total // 10)
        self.failures, self.ephemeral_seconds = failures_seconds, ephemeral_seconds
        self.every, self.ephemeral = every or self.longest, 0
        self.last = self.last_of_any = 0

    def due(self, step: int) -> str:
        """What a checkpoint after ``step`` would be: "regular", "ephemeral", or none ("")."""
        if step % self.every == 0 if self.fixed else step - self.last >= self.every:
            return "regular"
        return "ephemeral" if self.ephemeral and step - self.last_of_any >= self.ephemeral else ""

    def saved(self, step: int, kind: str) -> None:
        self.last_of_any = step
        if kind == "regular":
            self.last = step

    def settle(self, stall: float, writing: float, step_seconds: float) -> list[int]:
        """Reckon anew with what a save was found to cost; returns what the other ranks are told."""
        if step_seconds > 0:
            if not self.fixed:
                wanted = math.sqrt(2 * (stall + writing) * self.failures) / step_seconds
                self.every = max(1, min(round(wanted), self.longest), math.ceil(STALLS_APART * stall / step_seconds))
            if self.ephemeral_seconds:
                self.ephemeral = max(1, round(self.ephemeral_seconds / step_seconds))
        return [self.every, self.ephemeral]

    def take(self, told: list[int]) -> None:
        self.every, self.ephemeral = told


def place_of(training: Path, step: int) -> Path:
    """The folder of a step's checkpoint."""
    return training / "checkpoints" / f"step-{step:08d}"


def number_of(folder: Path) -> int:
    return int(folder.name.removeprefix("step-")[:8])


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Half-written ones have another name."""
    return sorted((folder / "checkpoints").glob("step-????????"))


def prune(training: Path, keep: int, permanent_every: int, permanent: set[int]) -> None:
    """Leave the newest checkpoint, the newest ``keep`` regular ones, every ``permanent_every``-th step's (0: none) and those at the steps ``permanent``."""
    folders = saved(training)
    regular = [folder for folder in folders if _facts(folder)["kind"] == "regular"]
    stay = {*folders[-1:], *regular[-keep:], *(folder for folder in folders if number_of(folder) in permanent or (permanent_every and number_of(folder) % permanent_every == 0))}
    for folder in folders:
        if folder not in stay:
            remove(folder)
    for folder in (training / "checkpoints").glob("*.aside"):
        shutil.rmtree(folder, ignore_errors=True)


def best_steps(training: Path) -> set[int]:
    """The steps of the best validations that the checkpoints know of."""
    return {step for folder in saved(training) if isinstance(step := _facts(folder)["best"], int)}


def remove(folder: Path) -> None:
    """Remove a checkpoint, so that one that is half removed is never taken for whole."""
    shutil.rmtree(set_aside(folder), ignore_errors=True)


def set_aside(folder: Path) -> Path:
    """Take a checkpoint out of the row; it is removed with the next ones that are. Returns where it lies until then."""
    gone = folder.with_name(folder.name + ".aside")
    shutil.rmtree(gone, ignore_errors=True)
    if folder.exists():
        folder.rename(gone)
    return gone


def _facts(folder: Path) -> dict[str, Any]:
    """Of which kind a checkpoint is, and which validation was the best by then."""
    state = read_json(folder / STATE)
    history = state.get("history")
    return {"kind": state.get("kind", "regular"), "best": history.get("best_step") if isinstance(history, dict) else None}
