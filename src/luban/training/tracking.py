"""Where the numbers of a run go: one printed line, training/log.jsonl, and the writers that the recipe asks for."""

from __future__ import annotations

import datetime
import json
import secrets
import socket
import time
from pathlib import Path
from typing import Any

from luban import __version__
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.console import console, count_text, say, seconds_text
from luban.foundation.messages import t
from luban.models.counts import parameters
from luban.tokens.loader import PackedLoader
from luban.training.alerts import Alerts
from luban.training.config import TrackConfig
from luban.training.log import ABOUT, LOG, read_about, read_log
from luban.training.precision import held_bytes
from luban.training.run import Run
from luban.training.writers import open_writers

SHOWN = 4  # scores printed at a validation; the log has them all


class Tracker:
    """A hook that must stand first: it writes the step before anything else happens to it."""

    def __init__(self, folder: Path, config: TrackConfig, name: str):
        self.folder, self.config, self.name = folder, config, name
        self.log = folder / LOG
        self.identity = str(read_about(folder).get("identity") or f"{name}-{secrets.token_hex(4)}")
        self.alerts = Alerts(config.alerts, folder, name)
        self.writers = open_writers(folder, config, name, self.identity)
        self.stream = None
        self.begun = time.monotonic()
        self.first_step = 0

    def open(self, run: Run) -> None:
        """Start writing after the run's step; entries past it (of a run killed after its checkpoint) are retracted."""
        kept = [entry for entry in read_log(self.log) if entry.get("step", 0) <= run.step]
        write_bytes(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept).encode("utf-8"))
        self.stream = self.log.open("a", encoding="utf-8")
        self.begun, self.first_step = time.monotonic(), run.step
        write_json(self.folder / ABOUT, self._about(run))
        self.alerts.open(run.step)

    def close(self) -> None:
        if self.stream:
            self.stream.close()
        self.alerts.close()
        for writer in self.writers:
            writer.close()

    def after_step(self, run: Run) -> None:
        peak_share = run.last["tokens_per_second"] * run.flops_per_token / run.peak_flops if run.peak_flops else None
        entry = {"step": run.step, "tokens": run.tokens, **run.last, "peak_share": peak_share, "memory_bytes": held_bytes(), "seconds": run.seconds}
        self._write(entry)
        self.alerts.step(run.step, run.last)
        numbers = {name: value for name, value in entry.items() if name not in ("step", "seconds") and value is not None}
        for writer in self.writers:
            writer.scalars("train", numbers, run.step)
        if run.step == self.first_step + 1 or run.every(self.config.every):
            self._print(run, peak_share)

    def validation(self, run: Run, scores: dict[str, float]) -> None:
        self._write({"step": run.step, "validation": scores})
        if reader := _reader(run):
            self._write({"step": run.step, "data": reader.consumed(run.step)})
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
            **({"rows": reader.rows_by_source()} if (reader := _reader(run)) else {}),
        }

    def _write(self, entry: dict[str, Any]) -> None:
        self.stream.write(json.dumps(entry, ensure_ascii=False) + "\n")
        self.stream.flush()

    def _print(self, run: Run, peak_share: float | None) -> None:
        done = run.step - self.first_step
        left = (time.monotonic() - self.begun) / done * (run.schedule.total - run.step)
        reward = f" | {t('reward')} {run.last['reward']:.3f}" if "reward" in run.last else ""  # whose loss says nothing
        peak = " | " + t("{share:.0%} of peak", share=peak_share) if peak_share else ""
        console().print(
            f"step {run.step}/{run.schedule.total} | loss {run.last['loss']:.4f} | lr {run.last['learning_rate']:.2e}"
            f"{reward} | grad {run.last['gradient_norm']:.2f} | {count_text(run.last['tokens_per_second'])} tok/s{peak} | "
            + t("{time} left", time=seconds_text(left)),
            markup=False,
        )


def _reader(run: Run) -> PackedLoader | None:
    """What reads the run's text, where it reads text; it knows what came from where at any step, so nothing is remembered."""
    loader = getattr(run.loaders.train, "loader", run.loaders.train)  # under noise
    return loader if isinstance(loader, PackedLoader) else None
