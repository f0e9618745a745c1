"""Peak memory and time of counting n-grams on a made text, under a limit that the system enforces.

    python benchmarks/ngram_memory.py 50 --order 5 --memory 200         # megabytes of text, of memory
    python benchmarks/ngram_memory.py 50 --order 5 --memory 200 --limit 600

Words are drawn by Zipf's law from a made vocabulary, so no data is needed. ``--limit`` is a ceiling in megabytes on the private memory of the
process (RLIMIT_DATA): what needs more dies. Memory maps of the tables are the system's to drop and not part of it.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from luban.corpus.documents import Document
from luban.fitting.ngram import fit_ngram
from luban.fitting.units import Units, write_stream


def made_documents(megabytes: float) -> Iterator[Document]:
    """Documents of some 3 KB, the same for the same size."""
    random = np.random.default_rng(0)
    words = np.array(["".join(random.choice(list("etaoinshrdlucmfwyp"), random.integers(2, 9))) for _ in range(30_000)])
    weights = 1 / (np.arange(len(words)) + 10.0)
    weights /= weights.sum()
    size = number = 0
    while size < megabytes * 1e6:
        text = " ".join(random.choice(words, 500, p=weights))
        yield Document(str(number), text)
        size, number = size + len(text), number + 1


def private_bytes() -> int:
    """Anonymous resident memory of this process."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("megabytes", type=float)
    parser.add_argument("--order", type=int, default=5)
    parser.add_argument("--unit", choices=["character", "word"], default="word")
    parser.add_argument("--memory", type=float, default=200, help="maximum_memory in megabytes")
    parser.add_argument("--limit", type=float, help="ceiling on private memory in megabytes")
    given = parser.parse_args()
    if given.limit:
        resource.setrlimit(resource.RLIMIT_DATA, (int(given.limit * 1e6), int(given.limit * 1e6)))
    before, peak, done = private_bytes(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.05):
            peak[0] = max(peak[0], private_bytes())

    threading.Thread(target=watch, daemon=True).start()
    with tempfile.TemporaryDirectory() as name:
        folder, memory = Path(name), int(given.memory * 1e6)
        begun = time.perf_counter()
        stream = write_stream(made_documents(given.megabytes), Units(given.unit), folder / "stream", minimum_count=1, vocabulary_size=None, memory=memory)
        read = time.perf_counter()
        model, sizes = fit_ngram(stream, Units(given.unit), given.order, [1], folder / "model", folder / "work", memory)
        fitted = time.perf_counter()
        tables = sum(file.stat().st_size for file in (folder / "model").glob("*.npy"))
        done.set()
        print(f"{stream.units} units; reading {read - begun:.1f} s, counting {fitted - read:.1f} s; runs {model.tables.facts['runs']}")
        print("n-grams: " + ", ".join(f"{row['order']}: {row['kept']}" for row in sizes) + f"; tables {tables / 1e6:.0f} MB")
        print(f"private memory: {before / 1e6:.0f} MB before, {peak[0] / 1e6:.0f} MB at the peak (maximum_memory {given.memory:.0f} MB)")


if __name__ == "__main__":
    main()
