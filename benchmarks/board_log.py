"""What the board costs with a very long log: reading it, the whole picture, a closer look, one more step.

    python -m benchmarks.board_log --steps 1000000
"""

from __future__ import annotations

import argparse
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luban.board.library import Library


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1_000_000)
    steps = parser.parse_args().steps
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "base.partial" / "training" / "log.jsonl"
        log.parent.mkdir(parents=True)
        write(log, steps)
        library = Library(Path(folder))
        begun, pieces = time.process_time(), 0
        while (held := library.series("base", 700, None, {}))["reading"] < 1:
            pieces += 1
        print(f"{steps:,} steps, {log.stat().st_size / 1e6:.0f} MB: read in {time.process_time() - begun:.1f} s of processor time, {pieces + 1} pieces")
        tables = {name: [table["level"], table["first"], table["rows"]] for name, table in held["tables"].items()}
        show("the whole picture", lambda: library.series("base", 700, None, {}))
        show("600 steps of it", lambda: library.series("base", 700, (steps / 2, steps / 2 + 600), {}))
        with log.open("a", encoding="utf-8") as stream:
            stream.write(line(random.Random(0), steps + 1))
        show("one more step", lambda: library.series("base", 700, None, {"generation": held["generation"], "tables": tables}))
        print(f"memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB")


def write(log: Path, steps: int) -> None:
    chance = random.Random(1)
    with log.open("w", encoding="utf-8") as stream:
        for step in range(1, steps + 1):
            stream.write(line(chance, step))
            if step % max(1, steps // 100) == 0:
                stream.write(json.dumps({"step": step, "validation": {"loss": 3.1}}) + "\n")


def line(chance: random.Random, step: int) -> str:
    entry = {"step": step, "tokens": 2048 * step, "loss": 3 + chance.gauss(0, 0.1), "gradient_norm": 1 + chance.random(), "learning_rate": 1e-3 * chance.random()}
    entry |= {"tokens_per_second": 9000 + chance.gauss(0, 100), "peak_share": 0.41234234, "memory_bytes": 740000000, "seconds": step * 0.2534345}
    return json.dumps(entry) + "\n"


def show(what: str, ask: Callable[[], Any]) -> None:
    begun = time.process_time()
    answer = ask()
    print(f"{what}: {1e3 * (time.process_time() - begun):.1f} ms, {len(json.dumps(answer)) / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
