"""Guards: a step whose numbers are not finite, or whose loss jumps, is not applied; its documents are named and kept for a look.

The verdict on a step is a number on the device, 0 where it is accepted, made of figures that are the same on all ranks. On a processor it is acted on
at once. On an accelerator the optimizer reads it there, and the host, which names, counts and goes back, follows one step behind, so that it never waits.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.foundation.console import warn
from luban.foundation.errors import LubanError
from luban.tokens.batch import Batch
from luban.training.checkpoints import restore
from luban.training.config import GuardsConfig
from luban.training.events import Events
from luban.training.figures import Fetched, Figures
from luban.training.layers import LayerWatch, Norms
from luban.training.run import Run
from luban.training.spikes import Window

ACCEPTED, NOT_FINITE, SPIKE = 0, 1, 2  # verdicts
SHOWN_BYTES = 200_000  # of the text of a refused step
BEST = ("best_value", "best_loss", "best_validation", "best_metric", "best_step")


@dataclass
class Judged:
    """A step that was judged, and what is needed to tell of it."""

    step: int  # counted from 1
    place: int  # in the data
    batch: Batch
    figures: Figures
    verdict: Fetched
    norms: Norms


class Guard:
    """Judges each step; a hook that sees to those that were refused. ``error`` is set when it has stopped the run."""

    section = "other"

    def __init__(self, run: Run, config: GuardsConfig, layers: LayerWatch, folder: Path):
        self.config, self.layers, self.folder = config, layers, folder
        self.events = Events(folder)
        self.error: LubanError | None = None
        self.waiting: deque[Judged] = deque()
        self.behind = 0 if run.engine.device.type == "cpu" else 1  # steps that the host may lag
        self._went_back = (0, 0)  # to which step, and how often in a row
        self._load(run)

    # ---- on the device

    def judge(self, run: Run, batch: Batch, means: dict[str, Tensor], norm: Tensor) -> Tensor:
        """[] the verdict on the step with these means and this gradient norm; the windows follow it."""
        figures = torch.stack([value.detach().float().reshape(()) for value in (*means.values(), norm)])
        verdict = torch.where(torch.isfinite(figures).all(), ACCEPTED, NOT_FINITE)
        watched = {name: value.detach().float() for name, value in (*means.items(), ("gradient_norm", norm)) if name in self.windows}
        if watched:
            high = torch.stack([value > self.windows[name].threshold(self._threshold(name)) for name, value in watched.items()]).any()
            verdict = torch.where((verdict == ACCEPTED) & high, SPIKE, verdict)
            for name, value in watched.items():
                self.windows[name].add(value, verdict == ACCEPTED)
        self.waiting.append(Judged(run.step + 1, run.place, batch, Figures({**means, "gradient_norm": norm}, {}), Fetched([verdict]), run.engine.norms))
        return verdict

    def _threshold(self, name: str) -> float:
        return self.config.gradient_threshold if name == "gradient_norm" else self.config.spike_threshold

    # ---- on the host

    def after_step(self, run: Run) -> None:
        """See to the steps whose verdict is known by now; the run may stand at an earlier step after it."""
        self._settle(run, self.behind)

    def before_checkpoint(self, run: Run) -> None:
        """Whatever the host lags behind is done, and the run's history says what a resumed run must know."""
        self._settle(run, 0)
        run.history["guard"] = self.counts
        run.history["guard_state"] = {"in_a_row": self.in_a_row, "windows": {name: window.known() for name, window in self.windows.items()}}

    def resumed(self, run: Run) -> None:
        """The run was brought to another step: its history counts from now on."""
        self.waiting.clear()
        self._load(run)
        self.layers.forget()

    def _load(self, run: Run) -> None:
        counts, known = run.history.get("guard", {}), run.history.get("guard_state", {})
        self.counts = {name: int(counts.get(name, 0)) for name in ("not_finite", "spikes", "rollbacks", "passed_over")}
        self.in_a_row = int(known.get("in_a_row", 0))
        watched = {"loss": True, "gradient_norm": self.config.gradient_threshold > 0} if self.config.spikes != "none" else {}
        self.windows = {name: Window(self.config.spike_window, run.engine.device, known.get("windows", {}).get(name)) for name, wanted in watched.items() if wanted}

    def _settle(self, run: Run, behind: int) -> None:
        while len(self.waiting) > behind:
            judged = self.waiting.popleft()
            self.layers.look(judged.step, judged.figures, judged.norms)
            if (verdict := int(judged.verdict.read()[0])) == ACCEPTED:
                self.in_a_row = 0
            elif self._refused(run, judged, verdict):
                return

    def _refused(self, run: Run, judged: Judged, verdict: int) -> bool:
        """Name, count and keep a refused step. True where the run was set back."""
        self.in_a_row += 1
        bad = {name: str(value) for name, value in judged.figures.items() if not math.isfinite(value)}
        facts: dict[str, Any] = {"sources": judged.batch.sources, "layers": self.layers.worst(judged.norms)}
        kept = keep_text(self.folder / "refused", run, judged, self.config.keep_batches)
        if kept:
            facts["text"] = f"{kept.parent.name}/{kept.name}"
        if verdict == NOT_FINITE:
            self.counts["not_finite"] += 1
            warn("step {step} skipped: {bad} not finite; the documents of the step are named in {file}", step=judged.step, bad=", ".join(bad), file=self.events.file.name)
            self.events.add("not_finite", judged.step, not_finite=bad, **facts)
        else:
            self.counts["spikes"] += 1
            facts |= {name: judged.figures[name] for name in ("loss", "gradient_norm") if name in judged.figures}
            if self.config.spikes == "rollback" and self._roll_back(run, judged, facts):
                return True
            warn("step {step} skipped: its loss of {loss:.4f} is a spike; the documents of the step are named in {file}", step=judged.step, loss=judged.figures.get("loss", math.nan), file=self.events.file.name)
            self.events.add("spike", judged.step, **facts)
        if self.in_a_row >= self.config.too_many:
            self._stop(run)
        return False

    def _roll_back(self, run: Run, judged: Judged, facts: dict[str, Any]) -> bool:
        """Back to the last checkpoint, past the data that was read since. False where there is no checkpoint yet."""
        best = {name: run.history[name] for name in BEST if name in run.history}
        counts = self.counts
        if not restore(run):
            return False
        passed_over, run.place = judged.place + 1 - run.place, judged.place + 1
        counts["rollbacks"] += 1
        counts["passed_over"] += passed_over
        if best.get("best_step", 0) > run.step:  # its weights are the ones that are kept as the best
            run.history |= best
        run.resumed()
        self.counts = counts
        self._went_back = (run.step, self._went_back[1] + 1 if self._went_back[0] == run.step else 1)
        warn("step {step}: its loss of {loss:.4f} is a spike; back to step {to}, and past {count} steps of data", step=judged.step, loss=judged.figures.get("loss", math.nan), to=run.step, count=passed_over)
        self.events.add("rollback", judged.step, to=run.step, passed_over=passed_over, **facts)
        if self._went_back[1] >= self.config.too_many:
            self.in_a_row = self._went_back[1]
            self._stop(run)
        return True

    def _stop(self, run: Run) -> None:
        """Ask the loop to end after this step, whose state is saved; a run that is started again has its patience back."""
        run.stop_reason = "guards.too_many"
        self.error = LubanError(
            "{count} steps in a row gave a loss or gradient that is not finite, or a spike",
            "the learning rate may be too high, or the data or the starting weights damaged; the state is saved",
            "look at {file}; lower optimizer.learning_rate, lengthen schedule.warmup or raise guards.spike_threshold; the same command goes on behind these steps",
            count=self.in_a_row,
            file=self.events.file,
        )
        self.in_a_row = 0


def keep_text(folder: Path, run: Run, judged: Judged, most: int) -> Path | None:
    """The decoded rows of a refused step as a file in ``folder``, unless ``most`` are there already."""
    file = folder / f"step-{judged.step:08d}.txt"
    if not file.exists() and len(list(folder.glob("step-*.txt")) if folder.is_dir() else []) >= most:
        return None
    lines = [f"{name}: {value}" for name, value in judged.figures.items()]
    first = 0
    for number, (row, count) in enumerate(zip(judged.batch.inputs.tolist(), judged.batch.row_sources or [0] * len(judged.batch.inputs), strict=False)):
        sources = ", ".join(judged.batch.sources[first : first + count])
        first += count
        lines += ["", f"=== row {number}: {sources}", run.tokenizer.decode(row, skip_special=False)]
    text = "\n".join(lines).encode("utf-8", "replace")[:SHOWN_BYTES].decode("utf-8", "ignore")
    try:
        folder.mkdir(exist_ok=True)
        file.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        warn("the text of step {step} could not be kept: {error}", step=judged.step, error=error.strerror or error)
        return None
    return file
