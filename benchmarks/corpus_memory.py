"""Peak memory of all processes together and megabytes a second of ``luban curate`` on a made input.

    python benchmarks/corpus_memory.py 200          # megabytes of jsonl: two thirds English, one third Chinese, a tenth near-duplicates
    python benchmarks/corpus_memory.py 2000 --workers 2

Words are drawn from a made vocabulary with Zipf's law, so no data is needed; a web document has about 3 KB.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import tempfile
import threading
import time
from pathlib import Path

from luban.corpus.config import CurateConfig
from luban.corpus.stage import run
from luban.foundation.artifacts import Work
from luban.foundation.config import build


def make_input(path: Path, megabytes: float) -> None:
    """Write the input, the same for the same size."""
    rng = random.Random(0)
    english = ["".join(rng.choices("etaoinshrdlucmfwypvbgkjqxz", k=rng.randint(2, 9))) for _ in range(30_000)] + ["the", "of", "and", "to", "that"] * 300
    chinese = [chr(0x4E00 + i) for i in range(4000)] + list("的是了不在有人我他这") * 40
    weights = [1 / (rank + 10) for rank in range(max(len(english), len(chinese)))]
    rng.shuffle(english)
    rng.shuffle(chinese)
    sums = list(itertools.accumulate(weights))
    cumulative = {"zh": sums[: len(chinese)], "en": sums[: len(english)]}
    size, number, last = 0, 0, ""
    with path.open("wb") as stream:
        while size < megabytes * 1e6:
            if number % 10 == 9:
                text = last.replace(last[40:60], "", 1)
            elif number % 3 == 0:
                text = "。\n\n".join("".join(rng.choices(chinese, cum_weights=cumulative["zh"], k=120)) for _ in range(8)) + "。"
            else:
                text = ".\n\n".join(" ".join(rng.choices(english, cum_weights=cumulative["en"], k=90)) for _ in range(5)) + "."
            line = json.dumps({"text": text, "number": number}, ensure_ascii=False).encode() + b"\n"
            stream.write(line)
            size, number, last = size + len(line), number + 1, text


def family_bytes(root: int) -> int:
    """Resident bytes of a process and everything it started (shared pages counted once for each)."""
    parents: dict[int, int] = {}
    sizes: dict[int, int] = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text().rpartition(")")[2].split()
                parents[int(name)] = int(stat[1])
                sizes[int(name)] = int(stat[21]) * os.sysconf("SC_PAGE_SIZE")
            except (OSError, IndexError):
                continue  # it has just ended
    family = {root}
    while grown := {child for child, parent in parents.items() if parent in family} - family:
        family |= grown
    return sum(sizes.get(process, 0) for process in family)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=float, nargs="?", default=200)
    parser.add_argument("--workers", type=int)
    parser.add_argument("--quality", default="web", choices=("web", "prose", "off"), help="which rules run; memory does not depend on them, time does")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder, "input.jsonl"), Path(folder, "corpus.partial")
        make_input(source, arguments.megabytes)
        target.mkdir()
        config = build(CurateConfig, {"sources": str(source), "quality": arguments.quality, **({"workers": arguments.workers} if arguments.workers else {})})
        peak, ended = [0], threading.Event()

        def watch() -> None:
            while not ended.wait(0.1):
                peak[0] = max(peak[0], family_bytes(os.getpid()))

        watcher = threading.Thread(target=watch)
        watcher.start()
        start = time.monotonic()
        work = Work(target, {"sources": source})
        run(config, work)
        seconds = time.monotonic() - start
        ended.set()
        watcher.join()
        size = source.stat().st_size / 1e6
        print(f"{size:.0f} MB, {work.metrics['records']} records, {work.metrics['set_aside']} set aside: {seconds:.0f} s, {size / seconds:.2f} MB/s, peak {peak[0] / 1e6:.0f} MB in all processes")


if __name__ == "__main__":
    main()
