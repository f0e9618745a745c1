"""Where the numbers of a run go: one printed line, training/log.jsonl, TensorBoard, Weights & Biases."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_bytes
from luban.foundation.console import console, count_text, say, seconds_text
from luban.foundation.errors import missing_extra
from luban.foundation.messages import t
from luban.training.config import TrackConfig
from luban.training.log import read_log
from luban.training.run import Run

SHOWN = 4  # scores printed at a validation; the log has them all


class Tracker:
    """A hook that must stand first: it writes the step before anything else happens to it."""

    def __init__(self, folder: Path, config: TrackConfig, name: str):
        self.config = config
        self.log = folder / "log.jsonl"
        self.writers = [writer for writer in (_tensorboard(folder, config), _wandb(config, name)) if writer]
        self.stream = None
        self.begun = time.monotonic()
        self.first_step = 0

    def open(self, step: int) -> None:
        """Start writing after ``step``; entries past it (of a run killed after its checkpoint) are retracted."""
        kept = [entry for entry in read_log(self.log) if entry.get("step", 0) <= step]
        write_bytes(self.log, "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept).encode("utf-8"))
        self.stream = self.log.open("a", encoding="utf-8")
        self.begun, self.first_step = time.monotonic(), step

    def close(self) -> None:
        if self.stream:
            self.stream.close()
        for writer in self.writers:
            writer.close()

    def after_step(self, run: Run) -> None:
        peak_share = run.last["tokens_per_second"] * run.flops_per_token / run.peak_flops if run.peak_flops else None
        entry = {"step": run.step, "tokens": run.tokens, **run.last, "peak_share": peak_share, "seconds": run.seconds}
        self._write(entry)
        for writer in self.writers:
            writer.scalars("train", run.last, run.step)
        if run.step == self.first_step + 1 or run.every(self.config.every):
            self._print(run, peak_share)

    def validation(self, run: Run, scores: dict[str, float]) -> None:
        self._write({"step": run.step, "validation": scores})
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


class _TensorBoard:
    def __init__(self, writer: Any):
        self.writer = writer

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{group}/{name}", value, step)

    def close(self) -> None:
        self.writer.close()


def _tensorboard(folder: Path, config: TrackConfig) -> _TensorBoard | None:
    if not config.tensorboard:
        return None
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        say("TensorBoard events are not written: pip install 'luban[track]'")
        return None
    return _TensorBoard(SummaryWriter(str(folder / "events")))


class _Wandb:
    def __init__(self, run: Any):
        self.run = run

    def scalars(self, group: str, values: dict[str, float], step: int) -> None:
        self.run.log({f"{group}/{name}": value for name, value in values.items()}, step=step)

    def close(self) -> None:
        self.run.finish()


def _wandb(config: TrackConfig, name: str) -> _Wandb | None:
    if not config.wandb:
        return None
    try:
        import wandb
    except ImportError:
        raise missing_extra("wandb", "wandb") from None
    return _Wandb(wandb.init(project=config.wandb, name=name, resume="allow", id=name))
