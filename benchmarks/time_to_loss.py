"""How long nanoGPT and Luban's recipe `shakespeare` take to a loss on Shakespeare's characters, by turns on this machine.

    python benchmarks/time_to_loss.py --nanogpt path/to/nanoGPT --rounds 3
    python benchmarks/time_to_loss.py --nanogpt path/to/nanoGPT --rounds 1 --full      # also Luban with nanoGPT's whole time

nanoGPT runs the CPU configuration of its README (4 layers of 128, context 64, 12 rows, 2,000 iterations, eager), without its evaluations in between, on the data that
its own prepare.py makes. Luban runs its recipe from the raw text. Both are timed as whole processes, start-up included, with empty caches for what is compiled (Python's own
bytecode lies beside its modules, as pip leaves it); making nanoGPT's data is not counted, making Luban's is. Both models are then scored in the same way: all of nanoGPT's validation text in windows that do not overlap, each as
long as the model's context, nats a character over every token the model knows. Luban must have trained on a part of nanoGPT's training text; this is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
RECIPE = ROOT / "src/luban/recipes/shakespeare/recipe.yaml"
TEXT = ROOT / "src/luban/recipes/quickstart/data/shakespeare.txt"
# The recipe with twice the layers, context and step, for as many steps as fit the time that nanoGPT takes.
LONG = ["length=660 steps", "model.depth=4", "model.shape.feed_forward_size=256", "model.sequence_length=128", "model.batch_tokens=2048"]
NANOGPT = {
    "device": "cpu", "compile": False, "eval_interval": 2000, "eval_iters": 1, "log_interval": 100, "block_size": 64, "batch_size": 12, "n_layer": 4, "n_head": 4, "n_embd": 128,
    "max_iters": 2000, "lr_decay_iters": 2000, "dropout": 0.0, "always_save_checkpoint": True,
}  # fmt: skip
SCORE_NANOGPT = """
import sys, numpy as np, torch
from model import GPT, GPTConfig
saved = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
model = GPT(GPTConfig(**saved["model_args"]))
model.load_state_dict({name.removeprefix("_orig_mod."): value for name, value in saved["model"].items()})
model.eval()
ids, length = np.fromfile("data/shakespeare_char/val.bin", dtype=np.uint16).astype(np.int64), model.config.block_size
nats = count = 0
with torch.no_grad():
    for start in range(0, len(ids) - 1, length * 64):
        for first in range(start, min(start + length * 64, len(ids) - 1), length):
            row = torch.from_numpy(ids[first : first + length + 1])[None]
            logits, loss = model(row[:, :-1], row[:, 1:].contiguous())
            nats, count = nats + float(loss) * (row.shape[1] - 1), count + row.shape[1] - 1
print(nats / count, count)
"""


def prepare(clone: Path, work: Path) -> Path:
    """A copy of the clone with the data that its own script makes of the text."""
    copy = work / "nanogpt"
    if not copy.exists():
        shutil.copytree(clone, copy, ignore=shutil.ignore_patterns(".git", "assets", "*.ipynb"))
        folder = copy / "data/shakespeare_char"
        shutil.copy(TEXT, folder / "input.txt")
        subprocess.run([sys.executable, "prepare.py"], cwd=folder, check=True, stdout=subprocess.DEVNULL)
    return copy


def environment(folder: Path) -> dict[str, str]:
    """Caches of compiled things in a folder that is empty; modules' bytecode is kept, as it is unless Python is told not to."""
    shutil.rmtree(folder / "caches", ignore_errors=True)
    caches = {name: str(folder / "caches" / name.lower()) for name in ("XDG_CACHE_HOME", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    own = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**own, **caches, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), os.environ.get("PYTHONPATH", "")])}


def timed(command: list[str], folder: Path, work: Path) -> float:
    """Wall seconds of a process from start to end."""
    known = environment(work)
    started = time.perf_counter()
    ended = subprocess.run(command, cwd=folder, env=known, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - started
    if ended.returncode:
        raise SystemExit(ended.stdout[-3000:])
    return seconds


def run_nanogpt(copy: Path, work: Path) -> dict[str, Any]:
    out = work / "nanogpt-out"
    shutil.rmtree(out, ignore_errors=True)
    given = [f"--{name}={value}" for name, value in NANOGPT.items()]
    seconds = timed([sys.executable, "train.py", "config/train_shakespeare_char.py", *given, f"--out_dir={out}"], copy, work)
    scored = subprocess.run([sys.executable, "-c", SCORE_NANOGPT, str(out / "ckpt.pt")], cwd=copy, check=True, capture_output=True, text=True)
    loss, characters = scored.stdout.split()[-2:]
    return {"side": "nanogpt", "seconds": seconds, "loss": float(loss), "characters": int(characters)}


def run_luban(copy: Path, work: Path, side: str, overrides: list[str]) -> dict[str, Any]:
    out = work / side
    shutil.rmtree(out, ignore_errors=True)
    seconds = timed([sys.executable, "-m", "luban", "run", str(RECIPE), "--until", "model", "--out", str(out), *overrides], work, work)
    check_training_text(copy, out)
    loss, characters, steps = score_luban(copy, out / "model")
    return {"side": side, "seconds": seconds, "loss": loss, "characters": characters, "steps": steps}


def check_training_text(copy: Path, out: Path) -> None:
    """Every document that was learned from stands in the text that nanoGPT learns from."""
    from luban.corpus.documents import read_documents

    text = TEXT.read_text(encoding="utf-8")
    learned = text[: len(np.fromfile(copy / "data/shakespeare_char/train.bin", dtype=np.uint16))]
    assert all(document.text in learned for document in read_documents(out / "corpus", "train")), "the recipe learns from text that nanoGPT holds out"


def score_luban(copy: Path, folder: Path) -> tuple[float, int, int]:
    """Nats a character of nanoGPT's validation text, how many, and the steps that were taken."""
    import torch
    import torch.nn.functional as functional

    from luban.models.huggingface import load_model
    from luban.tokenizer.tokenizer import Tokenizer

    text = TEXT.read_text(encoding="utf-8")
    held_out = text[-len(np.fromfile(copy / "data/shakespeare_char/val.bin", dtype=np.uint16)) :]
    ids = torch.tensor(Tokenizer.load(folder).encode(held_out))
    assert len(ids) == len(held_out), "not a token a character"
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    model, length = load_model(folder).eval(), manifest["config"]["sequence_length"]
    nats = 0.0
    with torch.no_grad():
        for first in range(0, len(ids) - 1, length):
            row = ids[first : first + length + 1]
            nats += float(functional.cross_entropy(model.logits(model(row[None, :-1]))[0], row[1:], reduction="sum"))
    return nats / (len(ids) - 1), len(ids) - 1, manifest["metrics"]["steps"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nanogpt", type=Path, required=True, help="a clone of karpathy/nanoGPT")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--full", action="store_true", help="also a larger form of the recipe that takes about nanoGPT's time")
    parser.add_argument("--work", type=Path, default=Path("runs/time_to_loss"))
    parser.add_argument("--iterations", type=int, default=NANOGPT["max_iters"], help="of nanoGPT; fewer only to try this script")
    parser.add_argument("overrides", nargs="*", help="of the recipe, such as length='300 steps'")
    asked = parser.parse_args()
    work = asked.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    NANOGPT.update(max_iters=asked.iterations, lr_decay_iters=asked.iterations, eval_interval=asked.iterations)
    copy = prepare(asked.nanogpt, work)
    sides = {"luban": asked.overrides, **({"luban, full time": LONG} if asked.full else {})}
    found: dict[str, list[dict[str, Any]]] = {}
    for _ in range(asked.rounds):
        results = [run_nanogpt(copy, work), *(run_luban(copy, work, side, given) for side, given in sides.items())]
        for result in results:
            print(json.dumps(result), flush=True)
            found.setdefault(result["side"], []).append(result)
    theirs = statistics.median(result["seconds"] for result in found["nanogpt"])
    print("\n| | seconds, median (each) | of nanoGPT's time | loss, mean (each) |\n| --- | --- | --- | --- |")
    for side, results in found.items():
        seconds, losses = [result["seconds"] for result in results], [result["loss"] for result in results]
        share = statistics.median(seconds) / theirs
        print(f"| {side} | {statistics.median(seconds):.1f} ({', '.join(f'{value:.1f}' for value in seconds)}) | {share:.3f} | {statistics.mean(losses):.4f} ({', '.join(f'{value:.4f}' for value in losses)}) |")


if __name__ == "__main__":
    main()
