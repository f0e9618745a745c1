"""Where the numbers of a run go: one printed line, training/log.jsonl, and the writers that the recipe asks for."""

from __future__ import annotations

import datetime
import json
import math
import secrets
import socket
import time
from collections import deque
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from luban import __version__
from luban.foundation.artifacts import write_json
from luban.foundation.console import console, count_text, say, seconds_text
from luban.foundation.messages import t
from luban.models.counts import parameters
from luban.tokens.loader import text_reader
from luban.training.alerts import Alerts
from luban.training.config import TrackConfig
from luban.training.log import ABOUT, LOG, read_about, read_log, write_log
from luban.training.precision import held_bytes
from luban.training.run import Run
from luban.training.writers import open_writers

SHOWN = 4  # scores printed at a validation; the log has them all


class Tracker:
    """A hook that must stand first: it writes the step before anything else happens to it."""

    section = "other"

    def __init__(self, folder: Path, config: TrackConfig, name: str):
        self.folder, self.config, self.name = folder, config, name
        self.log = folder / LOG
        self.identity = str(read_about(folder).get("identity") or f"{name}-{secrets.token_hex(4)}")
        self.alerts = Alerts(config.alerts, folder, name)
        self.writers = open_writers(folder, config, name, self.identity)
        self.stream = None
        self.waiting: deque[Callable[[], None]] = deque()  # steps that are not written yet: on an accelerator the last one, whose numbers are still being made
        self.behind = 0
        self.begun = time.monotonic()
        self.first_step = 0

    def open(self, run: Run) -> None:
        """Start writing after the run's step; entries past it (of a run killed after its checkpoint) are retracted."""
        self._retract(run.step)
        self.begun, self.first_step = time.monotonic(), run.step
        self.behind = 0 if run.engine.device.type == "cpu" else 1
        write_json(self.folder / ABOUT, self._about(run))
        self.alerts.open(run.step)

    def resumed(self, run: Run) -> None:
        """The run stands at an earlier step again: what was written past it is retracted."""
        self.waiting.clear()
        if self.stream:
            self.stream.close()
            self._retract(run.step)

    def _retract(self, step: int) -> None:
        kept = [entry for entry in read_log(self.log) if isinstance(entry.get("step"), int) and entry["step"] <= step and step]
        write_log(self.log, kept)
        self.stream = self.log.open("a", encoding="utf-8")

    def close(self) -> None:
        if self.stream:
            self.stream.close()
        self.alerts.close()
        for writer in self.writers:
            writer.close()

    def after_step(self, run: Run) -> None:
        shown = run.step == self.first_step + 1 or run.every(self.config.every)
        self.waiting.append(partial(self._step, run, run.step, run.tokens, run.last, held_bytes(), run.seconds, shown))
        self._catch_up(self.behind)

    def before_checkpoint(self, run: Run) -> None:
        self._catch_up(0)

    def _catch_up(self, behind: int) -> None:
        while len(self.waiting) > behind:
            self.waiting.popleft()()

    def _step(self, run: Run, step: int, tokens: int, last: Mapping[str, float], memory: int, seconds: float, shown: bool) -> None:
        peak_share = last["tokens_per_second"] * run.flops_per_token / run.peak_flops if run.peak_flops else None
        entry = {"step": step, "tokens": tokens, **last, "peak_share": peak_share, "memory_bytes": memory, "seconds": seconds}
        self._write(entry)
        self.alerts.step(step, last)
        numbers = {name: value for name, value in entry.items() if name not in ("step", "seconds") and value is not None}
        for writer in self.writers:
            writer.scalars("train", numbers, step)
        if shown:
            self._print(run, step, last, peak_share)

    def figures(self, step: int, group: str, values: dict[str, float]) -> None:
        """A line of other figures under a name of their own: gradient norms by layer, where the time went."""
        self._write({"step": step, group: values})
        for writer in self.writers:
            writer.scalars(group, values, step)

    def validation(self, run: Run, scores: dict[str, float]) -> None:
        self._write({"step": run.step, "validation": scores})
        if reader := text_reader(run.loaders.train):
            self._write({"step": run.step, "data": reader.consumed(run.place)})
        self.alerts.validation(scores)
        for writer in self.writers:
            writer.scalars("validation", scores, run.step)
        text = " | ".join(f"{t(name)} {value:.4f}" for name, value in list(scores.items())[:SHOWN])
        say("  validation at step {step} | {scores}", step=run.step, scores=text)

    def samples(self, run: Run, samples: list[dict[str, str]]) -> None:
        self._write({"step": run.step, "samples": samples})
        from rich.text import Text

        for sample in samples:
            prompt, text = (sample[key].replace("\n", " ⏎ ") for key in ("prompt", "text"))
            console().print(Text.assemble("  ", (prompt, "bold"), (" → ", "dim"), (text, "cyan")))

    def _about(self, run: Run) -> dict[str, Any]:
        """What a reader of the log must know beside it, from the first step on; the manifest is written at the end only."""
        return {
            "identity": self.identity,
            "name": self.name,
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "host": socket.gethostname(),
            "luban": __version__,
            "objective": run.objective.name,
            "steps": run.schedule.total,
            "step_tokens": run.step_tokens,
            "first_step": run.step,
            "parameters": parameters(run.model.shape)["total"],
            "config": run.config.model_dump(mode="json"),
            **({"rows": reader.rows_by_source()} if (reader := text_reader(run.loaders.train)) else {}),
        }

    def _write(self, entry: dict[str, Any]) -> None:
        self.stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.stream.flush()

    def _print(self, run: Run, step: int, last: Mapping[str, float], peak_share: float | None) -> None:
        done = step - self.first_step
        left = (time.monotonic() - self.begun) / done * (run.schedule.total - step)
        reward = f" | {t('reward')} {last['reward']:.3f}" if "reward" in last else ""  # whose loss says nothing
        peak = " | " + t("{share:.0%} of peak", share=peak_share) if peak_share else ""
        console().print(
            f"step {step}/{run.schedule.total} | loss {last.get('loss', math.nan):.4f} | lr {last['learning_rate']:.2e}"
            f"{reward} | grad {last['gradient_norm']:.2f} | {count_text(last['tokens_per_second'])} tok/s{peak} | "
            + t("{time} left", time=seconds_text(left)),
            markup=False,
        )
