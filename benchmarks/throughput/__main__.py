"""Whole optimizer steps, Luban and its peers by turns in one run on one machine.

    python -m benchmarks.throughput --shape S                                   # Luban and transformers, which is all that Luban's own environment has
    python -m benchmarks.throughput --shape S --litgpt PYTHON --nanogpt FOLDER  # with a Python that has litgpt, and a clone of nanoGPT
    python -m benchmarks.throughput --table                                     # write what was measured into docs/benchmarks.md, with its plots, and run nothing

Every side is a process that stands with its model built, compiled and warmed up, and takes its steps when it is its turn; in every round each takes as many, in another order, and the
fastest forms of the model's products are timed beside them. Reported: tokens a second (median over the rounds), Luban's ratio to each (median of the rounds' ratios, bootstrap interval),
and the share of the products' rate: flops_per_token · tokens / seconds / rate, where flops_per_token = 6 · matrix elements + 6 · layers · width · sequence. No side masks documents. Where there is a GPU all run
on it, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection, Listener
from pathlib import Path
from typing import Any

from benchmarks.throughput.plot import chart
from benchmarks.throughput.shapes import SHAPES, Shape
from benchmarks.throughput.turns import ADDRESS, KEY

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
TEXT = ROOT / "src" / "luban" / "recipes" / "quickstart" / "data" / "shakespeare.txt"
PRODUCTS = "products"
SIDES = {  # what is said of each, in English and in Chinese
    "luban": ("luban train", "luban train"),
    "luban-compiled": ("luban train, layers: torch, compile: true", "luban train，layers: torch，compile: true"),
    "luban-eager": ("luban train, layers: torch, compile: false", "luban train，layers: torch，compile: false"),
    "trainer": ("transformers Trainer, as it comes", "transformers Trainer，原样"),
    "trainer-tuned": ("transformers Trainer, micro-batches, allocator, torch_compile", "transformers Trainer，微批次、分配器、torch_compile"),
    "transformers": ("transformers, bare loop, compiled", "transformers，裸循环，已编译"),
    "transformers-tuned": ("transformers, bare loop, compiled, micro-batches, allocator", "transformers，裸循环，已编译，微批次、分配器"),
    "litgpt": ("litgpt, bare loop, compiled", "litgpt，裸循环，已编译"),
    "litgpt-tuned": ("litgpt, bare loop, compiled, micro-batches, allocator", "litgpt，裸循环，已编译，微批次、分配器"),
    "nanogpt": ("nanoGPT, compiled", "nanoGPT，已编译"),
    "nanogpt-tuned": ("nanoGPT, compiled, micro-batches, allocator, fused AdamW", "nanoGPT，已编译，微批次、分配器、融合的 AdamW"),
}
HEADS = (
    ["side", "tokens/s", "of the products' rate", "Luban's ratio [95 %]", "ready after, s"],
    ["一方", "词元/秒", "占矩阵乘法速率", "Luban 与它之比 [95 %]", "就绪用时，秒"],
)


def command(side: str, shape: Shape, asked: argparse.Namespace, work: Path) -> list[str]:
    """What starts a side."""
    name, _, how = side.partition("-")
    if name == "luban":
        return luban_command(shape, asked, work / side, how)
    if side == PRODUCTS:
        return [sys.executable, str(HERE / "sides" / "products.py"), shape.name]
    tuned = ["--tuned"] if how == "tuned" else []
    if name == "trainer":
        return [sys.executable, str(HERE / "sides" / "trainer.py"), shape.name, *tuned]
    python = str(asked.litgpt) if name == "litgpt" else sys.executable
    return [python, str(HERE / "sides" / "loop.py"), shape.name, name, "--compile", *tuned, *(["--nanogpt", str(asked.nanogpt)] if name == "nanogpt" else [])]


def luban_command(shape: Shape, asked: argparse.Namespace, work: Path, how: str = "") -> list[str]:
    """`luban train` on one long text, so that next to no row holds two documents; as it comes, or with torch's layers, ``compiled`` or ``eager``."""
    torchs = ["--layers", "torch", "--compile", str(how == "compiled").lower()] if how else []
    shutil.rmtree(work, ignore_errors=True)  # a finished run of before would not train
    tokens = work.parent / "prepared"
    if not (tokens / "done").exists():
        tokens.mkdir(parents=True, exist_ok=True)
        (tokens / "one.jsonl").write_text(json.dumps({"text": TEXT.read_text(encoding="utf-8")}) + "\n", encoding="utf-8")
        for line in (
            ["curate", str(tokens / "one.jsonl"), "--quality.preset", "off", "--split.validation", "0", "--document-characters", "100000000", "--out", str(tokens / "corpus")],
            ["curate", str(TEXT), "--out", str(tokens / "pieces")],
            ["train-tokenizer", str(tokens / "pieces"), "--vocabulary-size", str(min(4096, shape.vocabulary)), "--out", str(tokens / "tokenizer")],
            ["encode", str(tokens / "corpus"), "--tokenizer", str(tokens / "tokenizer"), "--out", str(tokens / "tokens")],
        ):
            subprocess.run([sys.executable, "-m", "luban", *line], check=True, stdout=subprocess.DEVNULL)
        (tokens / "done").touch()
    architecture = {
        "architecture": "llama", "layers": shape.layers, "hidden_size": shape.width, "heads": shape.heads, "key_value_heads": shape.heads, "feed_forward_size": shape.feed_forward,
        "vocabulary_size": shape.vocabulary, "maximum_positions": shape.sequence, "tied_embeddings": True,
    }  # fmt: skip
    return [
        sys.executable, "-m", "luban", "train", str(tokens / "tokens"), "--shape", json.dumps(architecture), "--sequence-length", str(shape.sequence), "--batch-tokens", str(shape.tokens),
        "--length", "100000 steps", "--optimizer.name", "adamw", "--optimizer.learning-rate", "1e-3", *torchs, "--validation.every", "100000 steps",
        "--validation.share", "0", "--checkpoint.every", "100000 steps", "--threads", str(asked.threads), "--callbacks", json.dumps([f"{HERE / 'sides' / 'luban_pause.py'}:pause"]), "--out", str(work), *asked.luban,
    ]  # fmt: skip


class Side:
    """A running side, and what it took in each round."""

    def __init__(self, name: str, process: subprocess.Popen, line: Connection, log: Path, facts: dict[str, Any]):
        self.name, self.process, self.line, self.log, self.facts = name, process, line, log, facts
        self.rounds: list[tuple[float, float]] = []

    def turn(self, steps: int) -> None:
        try:
            self.line.send(steps)
            self.rounds.append(self.line.recv())
        except (EOFError, ConnectionError):
            raise SystemExit(f"{self.name} ended before the measuring did:\n{self.log.read_text()[-2000:]}") from None


def start(name: str, shape: Shape, asked: argparse.Namespace, work: Path, folder: str) -> Side:
    """Start a side and wait until it is warm."""
    address = os.path.join(folder, name)
    log = work / f"{name}.log"
    with Listener(address, "AF_UNIX", authkey=KEY) as listener, log.open("w") as stream:
        started = command(name, shape, asked, work)
        shutil.rmtree(work / "compiled" / name, ignore_errors=True)  # each compiles anew
        begun = time.perf_counter()
        environment = {**os.environ, ADDRESS: address, "OMP_NUM_THREADS": str(asked.threads), "TORCHINDUCTOR_CACHE_DIR": str(work / "compiled" / name), "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT / "src"), os.environ.get("PYTHONPATH"))))}
        process = subprocess.Popen(started, stdout=stream, stderr=subprocess.STDOUT, env=environment, cwd=work)
        listener._listener._socket.settimeout(1.0)
        while True:
            try:
                line = listener.accept()
                break
            except TimeoutError:
                if process.poll() is not None:
                    raise SystemExit(f"{name} ended with {process.returncode}:\n{log.read_text()[-2000:]}") from None
    try:
        facts = line.recv()
    except EOFError:
        raise SystemExit(f"{name} ended before its first turn:\n{log.read_text()[-2000:]}") from None
    facts["ready_seconds"] = time.perf_counter() - begun
    print(f"{name}: ready, {facts}", flush=True)
    return Side(name, process, line, log, facts)


def measure(shape: Shape, asked: argparse.Namespace) -> dict[str, Any]:
    """All sides, round by round."""
    work = asked.work / shape.name
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        sides = [start(name, shape, asked, work, folder) for name in [*asked.sides, PRODUCTS]]
        chance = random.Random(1)
        for number in range(asked.rounds):
            for side in chance.sample(sides, len(sides)):
                side.turn(asked.steps)
            print(f"round {number + 1}: " + ", ".join(f"{side.name} {side.rounds[-1][0] / asked.steps:.2f}" for side in sides if side.name != PRODUCTS), flush=True)
        for side in sides:
            side.line.send(0)
        for side in sides:
            side.process.wait(60)
    return {
        "shape": shape.name, "steps": asked.steps, "threads": asked.threads, "when": time.strftime("%Y-%m-%d"), "machine": machine(), "versions": versions(asked), "luban": asked.luban,
        "rates": [rate for rate, _ in sides[-1].rounds],
        "sides": {side.name: {**side.facts, "seconds": [wall / asked.steps for wall, _ in side.rounds], "processor": [cpu / asked.steps for _, cpu in side.rounds]} for side in sides[:-1]},
    }  # fmt: skip


def machine() -> str:
    import torch  # noqa: F401  (it knows of a GPU)

    from luban.foundation.hardware import machine as here

    found = here()
    named = f"{found.accelerator_name}, " if found.accelerator != "cpu" else ""
    return f"{named}{found.cpu}, {found.cores} cores, {found.memory_bytes / 2**30:.0f} GiB"


def versions(asked: argparse.Namespace) -> dict[str, str]:
    import torch
    import transformers

    found = {"python": sys.version.split()[0], "torch": torch.__version__, "transformers": transformers.__version__}
    if asked.litgpt:
        found["litgpt"] = subprocess.run([asked.litgpt, "-c", "import importlib.metadata as m; print(m.version('litgpt'))"], capture_output=True, text=True, check=True).stdout.strip()
    if asked.nanogpt and (asked.nanogpt / ".git").exists():
        found["nanogpt"] = subprocess.run(["git", "-C", asked.nanogpt, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
    return found


def interval(ratios: list[float], draws: int = 2000) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    chance = random.Random(1)
    medians = sorted(statistics.median(chance.choices(ratios, k=len(ratios))) for _ in range(draws))
    return medians[int(0.025 * draws)], medians[int(0.975 * draws)]


def table(found: dict[str, Any], language: str = "en") -> str:
    """A Markdown table, Luban first."""
    shape, place = SHAPES[found["shape"]], ("en", "zh").index(language)
    ours = found["sides"]["luban"]["seconds"]
    lines = [f"| {' | '.join(HEADS[place])} |", "| --- | --- | --- | --- | --- |"]
    for name, side in found["sides"].items():
        seconds = side["seconds"]
        share = statistics.median(shape.flops_per_token * shape.tokens / one / rate for one, rate in zip(seconds, found["rates"], strict=True))
        ratios = [theirs / mine for theirs, mine in zip(seconds, ours, strict=True)]
        low, high = interval(ratios)
        ready = f"{side['ready_seconds']:.0f}" if "ready_seconds" in side else "–"  # from the start of the process, imports and compilation included
        ratio = "1" if name == "luban" else f"{statistics.median(ratios):.2f} [{low:.2f}, {high:.2f}]"
        lines.append(f"| {SIDES[name][place]} | {shape.tokens / statistics.median(seconds):,.0f} | {share:.2f} | {ratio} | {ready} |")
    return "\n".join(lines)


def tables(folder: Path, language: str) -> str:
    """The tables of all results in a folder, each under the machine that it was made on."""
    parts = []
    for file in sorted(folder.glob("*.json"), key=lambda file: list(SHAPES).index(file.stem.partition("-")[0])):
        found = json.loads(file.read_bytes())
        shape, versions = SHAPES[found["shape"]], ", ".join(f"{name} {version}" for name, version in found["versions"].items())
        threads = f"{found['threads']} threads" if language == "en" else f"{found['threads']} 个线程"
        size = f"{shape.layers} × {shape.width}, vocabulary {shape.vocabulary:,}, {shape.tokens:,} tokens a step" if language == "en" else f"{shape.layers} × {shape.width}，词表 {shape.vocabulary:,}，每步 {shape.tokens:,} 个词元"
        picture = f"![{size}]({'' if language == 'en' else '../'}images/{plot_name(file, language)})"
        parts.append(f"**{shape.name}** ({size}); {found['machine']}, {threads}; {versions}; {found['when']}\n\n{table(found, language)}\n\n{picture}")
    return "\n\n".join(parts)


def plot_name(file: Path, language: str) -> str:
    """The picture of a file of results."""
    return f"throughput-{file.stem}{'' if language == 'en' else '-zh'}.svg"


def write_plots(folder: Path, images: Path) -> None:
    """Draw all results of a folder, in both languages."""
    for file in sorted(folder.glob("*.json")):
        found = json.loads(file.read_bytes())
        for place, (language, said) in enumerate((("en", "tokens a second; the line: the middle half of the rounds"), ("zh", "词元/秒；横线为各轮中间一半"))):
            names = {side: spoken[place] for side, spoken in SIDES.items()}
            (images / plot_name(file, language)).write_text(chart(found, names, f"{found['shape']}: {said}"), encoding="utf-8")


def waited(model: Path) -> str:
    """What steps of Luban's waited for their data, by its own clock; "" of the other sides."""
    if not (file := model / "training" / "time.json").exists():
        return ""
    spent = json.loads(file.read_bytes())["seconds"]
    return f"; of its time {spent['data'] / (spent['data'] + spent['steps']):.2%} waiting for data"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__.splitlines()[0])
    parser.add_argument("--shape", choices=SHAPES, default="S")
    parser.add_argument("--sides", default="", help=f"names with commas between, luban first; by default all that can run: {', '.join(SIDES)}")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=1, help="steps of each side in a round")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--litgpt", type=Path, help="a Python that can import litgpt")
    parser.add_argument("--nanogpt", type=Path, help="a clone of nanoGPT")
    parser.add_argument("--luban", action="append", default=[], metavar="ARGUMENT", help="another argument of `luban train`, such as --luban=--compile --luban=false")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-throughput"))
    parser.add_argument("--out", type=Path, default=HERE / "results")
    parser.add_argument("--name", default="", help="name of the results' file; begins with the shape (L-h100)")
    parser.add_argument("--table", action="store_true", help="write the tables and plots of all that is kept into the documentation, and run nothing")
    asked = parser.parse_args()
    if asked.table:
        write_plots(HERE / "results", ROOT / "docs" / "images")
        subprocess.run([sys.executable, str(ROOT / "scripts" / "tables.py"), str(ROOT / "docs" / "benchmarks.md"), str(ROOT / "docs" / "zh" / "benchmarks.md")], check=True)
        print(tables(HERE / "results", "en"))
        return 0
    asked.work = asked.work.resolve()
    asked.sides = asked.sides.split(",") if asked.sides else [name for name in SIDES if not (name.startswith("litgpt") and not asked.litgpt) and not (name.startswith("nanogpt") and not asked.nanogpt)]
    found = measure(SHAPES[asked.shape], asked)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{asked.name or asked.shape}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"{found['machine']}; {asked.threads} threads; {', '.join(f'{name} {version}' for name, version in found['versions'].items())}; {asked.rounds} rounds\n\n{table(found)}")
    for name, side in found["sides"].items():
        low, middle, high = statistics.quantiles(side["seconds"], n=4) if len(side["seconds"]) > 1 else side["seconds"] * 3
        print(f"{name}: {middle:.3f} s a step, middle half of the rounds {low:.3f} to {high:.3f}{waited(asked.work / found['shape'] / name)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
