"""How long a large shard takes to open: `python benchmarks/shards.py [--gigabytes 4]`.

The shard is a sparse file: of its gigabytes only those that are read exist, which is what mapping is for. What steps wait for their data is in `python -m benchmarks.throughput`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import xxhash

from luban.foundation.hardware import machine
from luban.tokens.loader import PackedLoader
from luban.tokens.store import TokenStore
from luban.tokens.writer import StoreWriter


def large_store(folder: Path, size: int, document_tokens: int = 1000) -> Path:
    """A store of one shard of ``size`` bytes of tokens, nearly all of them in a hole of the file."""
    writer = StoreWriter(folder / "train", vocabulary_size=4096, shard_tokens=1 << 40, facts={"tokenizer": "0", "end_of_text_id": 0, "begin_of_text_id": None})
    writer.add([1] * document_tokens, language="en", identity="0", size_bytes=document_tokens)
    writer.finish()
    documents = size // (2 * document_tokens)
    shard_index = folder / "train" / "index.json"
    index = json.loads(shard_index.read_bytes())
    shard = index["shards"][0]
    stem = folder / "train" / shard["name"]
    offsets = np.arange(documents + 1, dtype=np.load(f"{stem}.offsets.npy").dtype) * document_tokens
    tables = {".offsets.npy": offsets, ".languages.npy": np.zeros(documents, np.uint8), ".ids.npy": np.full(documents, b"0", dtype="S8")}
    with open(f"{stem}.bin", "r+b") as stream:
        stream.truncate(documents * document_tokens * 2)
    for part in [part for part in shard["files"] if part not in (".bin", *tables)]:  # checksums of bytes that are not there
        Path(f"{stem}{part}").unlink()
        shard["files"].pop(part), shard["xxh3"].pop(part)
    for part, table in tables.items():
        np.save(f"{stem}{part}", table)
        written = Path(f"{stem}{part}").read_bytes()
        shard["files"][part], shard["xxh3"][part] = len(written), xxhash.xxh3_64_hexdigest(written)
    shard["files"][".bin"] = documents * document_tokens * 2
    shard["documents"] = index["documents"] = documents
    shard["tokens"] = index["tokens"] = documents * document_tokens
    shard_index.write_text(json.dumps(index))
    return folder


def opened(folder: Path, rounds: int = 9) -> dict[str, float]:
    """Milliseconds, medians: opening a store, and in a store just opened the first and the last document."""
    found: dict[str, list[float]] = {"open": [], "first document": [], "last document": []}
    for _ in range(rounds):
        times = [time.perf_counter()]
        store = TokenStore(folder, "train")
        times.append(time.perf_counter())
        for place in (0, store.documents - 1):
            store.document(place)
            times.append(time.perf_counter())
        for name, begun, ended in zip(found, times, times[1:], strict=False):
            found[name].append(1e3 * (ended - begun))
    begun = time.perf_counter()
    loader = PackedLoader([(TokenStore(folder, "train"), 1.0)], sequence_length=256, rows_per_step=32, seed=1)
    loader.step(0)
    return {name: statistics.median(values) for name, values in found.items()} | {"loader with its order, and a first step": 1e3 * (time.perf_counter() - begun)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gigabytes", type=float, default=4.0)
    asked = parser.parse_args()
    print(f"{machine().cpu}, {machine().cores} cores, Python {sys.version.split()[0]}, numpy {np.__version__}")
    with tempfile.TemporaryDirectory() as folder:
        for name, took in opened(large_store(Path(folder) / "large", int(asked.gigabytes * 2**30))).items():
            print(f"a shard of {asked.gigabytes:g} GB: {name} {took:.2f} ms")


if __name__ == "__main__":
    main()
