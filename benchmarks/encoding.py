"""Encoding text: Luban beside `tokenizers.encode_batch`, by turns on all cores, and whether the tokens are the same.

    python benchmarks/encoding.py [FILE …] [--vocabulary 32000] [--rounds 7]

Without files: the text that ships with the quickstart. A byte-level BPE tokenizer is learned from the text first; then both encode it in documents of 4,000 characters.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import tiktoken
import tokenizers

from luban.foundation.hardware import machine
from luban.tokenizer.algorithms import Plan, learn
from luban.tokenizer.tokenizer import Tokenizer

QUICKSTART = Path(__file__).resolve().parents[1] / "src" / "luban" / "recipes" / "quickstart" / "data"
DOCUMENT = 4000


def read(files: list[Path]) -> list[str]:
    """Documents of the files; of JSON lines the field text."""
    documents = []
    for file in files:
        content = (gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()).decode("utf-8")
        text = "\n".join(json.loads(line)["text"] for line in content.splitlines()) if ".jsonl" in file.suffixes else content
        documents += [text[start : start + DOCUMENT] for start in range(0, len(text), DOCUMENT)]
    return documents


def timed(function: Callable[[], object]) -> tuple[float, float, object]:
    begun, processor = time.perf_counter(), time.process_time()
    made = function()
    return time.perf_counter() - begun, time.process_time() - processor, made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="*")
    parser.add_argument("--vocabulary", type=int, default=32000)
    parser.add_argument("--rounds", type=int, default=7)
    asked = parser.parse_args()
    texts = read(asked.files or [QUICKSTART / "shakespeare.txt", QUICKSTART / "poems.jsonl.gz"])
    size = sum(len(text.encode()) for text in texts)
    core, named = learn(Plan("byte_bpe", asked.vocabulary), lambda: iter(texts))
    tokenizer = Tokenizer(core, named)
    print(f"{machine().cpu}, {machine().cores} cores; tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}, Python {sys.version.split()[0]}, RAYON_NUM_THREADS={os.environ.get('RAYON_NUM_THREADS', 'unset')}")
    print(f"{size / 1e6:.1f} MB in {len(texts)} documents, vocabulary {tokenizer.vocabulary_size}")
    sides = {
        "tokenizers.encode_batch": lambda: [encoding.ids for encoding in core.encode_batch(texts, add_special_tokens=False)],
        "Luban": lambda: tokenizer.encode_batch(texts),
    }
    made, _, _ = timed(lambda: tokenizer._fast)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    results: dict[str, object] = {}
    for _ in range(asked.rounds):
        for name, side in sides.items():
            wall, processor, results[name] = timed(side)
            times[name].append((wall, processor))
    print(f"made ready once in {made:.2f} s\n\n| side | MB/s | MB/s of processor time |\n| --- | --- | --- |")
    for name, found in times.items():
        print(f"| {name} | {size / 1e6 / statistics.median(wall for wall, _ in found):.1f} | {size / 1e6 / statistics.median(processor for _, processor in found):.1f} |")
    for place, what in ((0, "wall"), (1, "processor")):
        ratios = sorted(theirs[place] / ours[place] for theirs, ours in zip(times["tokenizers.encode_batch"], times["Luban"], strict=True))
        print(f"ratio, {what} time: {statistics.median(ratios):.2f} [{ratios[0]:.2f}, {ratios[-1]:.2f}]")
    same = results["tokenizers.encode_batch"] == results["Luban"]
    print("the same tokens" if same else "OTHER TOKENS")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
