"""Trainings that something happens to: a tiny recipe, a child process that runs it, and what it leaves."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import luban
from luban.foundation.artifacts import Artifact
from luban.training.log import read_log

SHAPE = {"layers": 2, "hidden_size": 32, "heads": 2, "head_dim": 16, "feed_forward_size": 64, "maximum_positions": 64}
FIXED: dict[str, Any] = {
    "shape": SHAPE, "sequence_length": 32, "batch_tokens": 128, "length": "24 steps", "optimizer": {"learning_rate": 1e-2}, "schedule": {"shape": "constant", "warmup": "2 steps"},
    "threads": 1, "determinism": "strict", "track": {"tensorboard": False}, "validation": {"every": "100 steps"}, "checkpoint": {"every": "4 steps"}, "micro_batch_rows": 4,
}  # fmt: skip


def train(folder: Path, tokens: Path, out: str = "out", **fields: Any) -> Artifact:
    """A training in this process."""
    return luban.train(tokens, out=folder / out, **{**FIXED, **fields})


class Child:
    """``luban run`` of a recipe with one training, in a process that is forked from this one, which has imported everything."""

    def __init__(self, tokens: Path, out: Path, **fields: Any):
        out.parent.mkdir(parents=True, exist_ok=True)
        recipe, self.messages = out.parent / "recipe.yaml", out.parent / "messages.txt"
        recipe.write_text(json.dumps({"name": "guarded", "seed": 1, "stages": {out.name: {"kind": "train", "data": str(tokens), **FIXED, **fields}}}))
        self.returncode: int | None = None
        self.process = os.fork()
        if not self.process:
            become(["run", str(recipe), "--out", str(out.parent)], self.messages)

    def poll(self) -> int | None:
        if self.returncode is None:
            found, status = os.waitpid(self.process, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if found else None
        return self.returncode

    def send(self, number: int) -> None:
        os.kill(self.process, number)

    def until(self, condition: Callable[[], bool], seconds: float = 90.0) -> None:
        """Wait for something that happens while it runs."""
        end = time.monotonic() + seconds
        while not condition():
            assert self.poll() is None and time.monotonic() < end, self.messages.read_text()
            time.sleep(0.01)

    def end(self, seconds: float = 90.0) -> str:
        """What it has said when it is over."""
        end = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < end:
            time.sleep(0.01)
        if self.returncode is None:
            self.send(signal.SIGKILL)
            os.waitpid(self.process, 0)
            raise AssertionError(f"it did not end: {self.messages.read_text()}")
        return self.messages.read_text()


def become(arguments: list[str], messages: Path) -> None:
    """The forked process: the command, with its status, and nothing of the test around it."""
    file = os.open(messages, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(file, 1)
    os.dup2(file, 2)
    sys.stdout = sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    from luban.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.argv = ["luban", "--language", "en", *arguments]
    status = 1
    try:
        main()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        traceback.print_exc()
    sys.stderr.flush()
    os._exit(status)


def lines(folder: Path, name: str) -> list[dict[str, Any]]:
    """The lines of a file in training/, of an artifact or of one in the making."""
    return list(read_log(folder / "training" / name))


def events(folder: Path) -> list[str]:
    return [entry["event"] for entry in lines(folder, "guard.jsonl")]


def bits(artifact: Artifact | Path) -> bytes:
    return (getattr(artifact, "path", artifact) / "model.safetensors").read_bytes()


def losses(folder: Path) -> list[tuple[int, float]]:
    return [(entry["step"], entry["loss"]) for entry in lines(folder, "log.jsonl") if "loss" in entry]
