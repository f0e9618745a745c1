"""Kill a training again and again with SIGKILL, start it again each time, and compare what is left with the same training undisturbed.

    python -m benchmarks.chaos --kills 100

Every attempt is a process of its own that runs `luban run`, and every second kill waits until a checkpoint is being written. The processes are forked from this one, which has
imported everything already; nothing else is shared. Ends with status 1 where anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import yaml

import luban
from luban.cli.main import main as luban_command
from luban.foundation.console import table
from luban.training import stage  # noqa: F401 (imported here, so that no attempt has to)
from luban.training.consumed import read_ledger
from luban.training.log import ABOUT, deterministic, read_about, read_log
from luban.training.retention import saved
from luban.training.storage import read_index, read_state, verify

TEXT = Path(luban.__file__).parent / "recipes" / "quickstart" / "data" / "shakespeare.txt"
SLOW = "import time\ndef slowly(run):\n    time.sleep(0.01)\n"
PATIENCE = 120.0  # seconds in which an attempt must do a step


@dataclass
class Outcome:
    kills: int
    in_checkpoints: int  # of them, while one was being written
    steps: int
    steps_again: int  # that were done a second time
    differences: list[str]


def write_recipe(folder: Path, steps: int) -> Path:
    """A training of seconds that holds on to everything that can go wrong: dropout, an average, validations, samples, the best weights."""
    shutil.copyfile(TEXT, folder / "all.txt")
    (folder / "text.txt").write_text((folder / "all.txt").read_text(encoding="utf-8")[:40_000], encoding="utf-8")
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    shape = {"layers": 1, "hidden_size": 64, "heads": 2, "feed_forward_size": 128, "maximum_positions": 64}
    recipe = {
        "name": "chaos", "seed": 3,
        "stages": {
            "corpus": {"kind": "curate", "sources": "text.txt", "document_separator": "blank_line", "workers": 1},
            "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": 600},
            "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "tokenizer"},
            "base": {
                "kind": "train", "data": "tokens", "shape": shape, "sequence_length": 32, "batch_tokens": 128, "length": f"{steps} steps", "schedule": {"shape": "constant", "warmup": "3 steps"},
                "optimizer": {"learning_rate": 3e-3}, "regularization": {"average": "exponential", "neftune": 2.0}, "validation": {"every": "7 steps", "restore_best": True},
                "samples": {"every": "11 steps", "prompts": ["the king"], "sampling": {"maximum_tokens": 4}}, "checkpoint": {"every": "4 steps", "permanent": "20 steps"},
                "determinism": "strict", "threads": 1, "track": {"tensorboard": False}, "callbacks": ["slow.py:slowly"],
            },
        },
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


def attempt(recipe: Path, out: Path) -> int:
    """`luban run` in a process of its own; returns its number."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        with (out.parent / f"{out.name}.log").open("a", encoding="utf-8") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            sys.argv = ["luban", "run", str(recipe), "--out", str(out)]
            luban_command()
            status = 0
    except SystemExit as error:
        status = int(error.code or 0)
    finally:
        os._exit(status)


def progress(out: Path) -> int:
    """The last step in the log of an unfinished training."""
    return max((entry["step"] for entry in read_log(out / "base.partial" / "training" / "log.jsonl")), default=0)


def killed(recipe: Path, out: Path, more: int, in_checkpoint: bool) -> tuple[bool, bool, int, int]:
    """Start, and kill once ``more`` steps are done, or then while a checkpoint is written: (killed, in a checkpoint, the step it began at, the one it had come to)."""
    training = out / "base.partial" / "training"
    former = _written(training / ABOUT)
    child, begun, first, reached = attempt(recipe, out), time.monotonic(), 0, 0
    while os.waitpid(child, os.WNOHANG) == (0, 0):
        if time.monotonic() - begun > PATIENCE:
            os.kill(child, signal.SIGKILL)
            raise RuntimeError(f"no step in {PATIENCE:.0f} seconds: {(out.parent / f'{out.name}.log').read_text(encoding='utf-8')[-2000:]}")
        if _written(training / ABOUT) == former:  # it has not opened its log
            time.sleep(0.005)
            continue
        first, reached = int(read_about(training).get("first_step", 0)), progress(out)
        if reached < first + more:
            time.sleep(0.005)
            continue
        end = time.monotonic() + 2.0
        writing = False
        while in_checkpoint and not writing and time.monotonic() < end and training.exists():
            writing = any((training / "checkpoints").glob("*.partial"))
        reached = max(reached, progress(out))
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        return os.WIFSIGNALED(status), writing, first, reached
    return False, False, first, reached


def _written(file: Path) -> int:
    """When a file was written last, in nanoseconds; 0 where there is none."""
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0


def remains(out: Path) -> dict[str, object]:
    """What the two trainings are compared by."""
    base = out / "base"
    newest = saved(base / "training")[-1]
    verify(newest, read_index(newest))
    state = {name: value for name, value in read_state(newest).items() if name not in ("seconds", "last")}
    ledger = read_ledger(base / "training")
    state["history"] = {name: value for name, value in state["history"].items() if name != "consumed"}
    return {
        "weights": (base / "model.safetensors").read_bytes(),
        **{f"checkpoint: {file.name}": file.read_bytes() for file in sorted(newest.glob("*.safetensors"))},
        "checkpoint: counters and random states": state,
        "checkpoints that stay": [folder.name for folder in saved(base / "training")],
        "log without what is measured": list(deterministic(base / "training" / "log.jsonl")),
        "data that was read": [ledger[-1]["sha256"], ledger[-1]["step"]],
    }


def chaos(folder: Path, kills: int, steps: int, seed: int = 0) -> Outcome:
    """The undisturbed training, the disturbed one, and what differs."""
    recipe = write_recipe(folder, steps)
    calm, wild = folder / "calm", folder / "wild"
    _, status = os.waitpid(attempt(recipe, calm), 0)
    if status:
        raise RuntimeError((folder / "calm.log").read_text(encoding="utf-8")[-2000:])
    shutil.copytree(calm, wild)
    shutil.rmtree(wild / "base")
    draw = random.Random(seed)
    done = inside = again = 0
    for number in range(kills):
        before = progress(wild)
        died, writing, first, reached = killed(recipe, wild, draw.randint(1, 7), number % 2 == 1)
        again += before - first
        if not died:
            break
        done, inside = done + 1, inside + writing
        print(f"\rkilled {done} times, step {reached} of {steps}", end="", file=sys.stderr, flush=True)
    _, status = os.waitpid(attempt(recipe, wild), 0)
    print(file=sys.stderr)
    if status:
        raise RuntimeError((folder / "wild.log").read_text(encoding="utf-8")[-2000:])
    one, other = remains(calm), remains(wild)
    return Outcome(done, inside, steps, again, [name for name in one if one[name] != other[name]])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--steps", type=int, default=0, help="of the training [default: four for each kill, 24 at least]")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="luban-chaos-") as folder, contextlib.redirect_stdout(io.StringIO()):
        found = chaos(Path(folder), given.kills, given.steps or max(24, 4 * given.kills), given.seed)
    rows = [("kills", found.kills), ("of them while a checkpoint was written", found.in_checkpoints), ("steps", found.steps), ("steps done again", found.steps_again), ("seconds", f"{time.monotonic() - begun:.0f}"), ("differs", ", ".join(found.differences) or "nothing")]
    table("chaos", ["what", ""], rows)
    print(json.dumps({"kills": found.kills, "in_checkpoints": found.in_checkpoints, "steps": found.steps, "steps_again": found.steps_again, "differences": found.differences}))
    return 1 if found.differences or found.kills < given.kills else 0


if __name__ == "__main__":
    sys.exit(main())
