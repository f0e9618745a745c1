"""Runs made of plain files, and a real board over them."""

from __future__ import annotations

import json
import math
import os
import random
import re
import subprocess
import sys
from pathlib import Path

import httpx


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def line(**entry: object) -> str:
    return json.dumps(entry, ensure_ascii=False) + "\n"


def entries(first: int, last: int, seed: int = 1, level: float = 3.0) -> str:
    """Log lines of steps ``first`` to ``last``; the same for the same step, whichever lines are asked for."""
    made = []
    for step in range(first, last + 1):
        chance = random.Random(seed * 10**7 + step)
        entry = {"step": step, "tokens": 512 * step, "loss": level + 4 * math.exp(-step / 60) + chance.gauss(0, 0.1), "gradient_norm": 1 + chance.random(), "learning_rate": 1e-3 / step}
        made.append(line(**entry, tokens_per_second=9000 + chance.gauss(0, 200), peak_share=0.4, memory_bytes=700 * 2**20, seconds=step * 0.25))
    return "".join(made)


def make_run(folder: Path, steps: int = 100, *, about: dict | None = None, config: dict | None = None, more: str = "", **made: object) -> Path:
    """A train stage's folder: log, about.json and, unless it is a ``.partial``, a manifest."""
    write(folder / "training" / "log.jsonl", entries(1, steps, **made) + more)
    config = config or {"sequence_length": 64, "optimizer": {"name": "adamw"}}
    told = {"identity": "x-1", "steps": 2 * steps, "objective": "causal", "parameters": 12345, "config": config, "rows": {"books/train": 50, "web/train": 400}}
    write(folder / "training" / "about.json", json.dumps({**told, **(about or {})}, ensure_ascii=False))
    if not folder.name.endswith(".partial"):
        write(folder / "manifest.json", json.dumps({"format": 1, "kind": "train", "fingerprint": "0", "metrics": {"steps": steps}, "files": {}}))
    return folder


class Board:
    """`luban board` as a process of its own."""

    def __init__(self, folder: Path):
        command = [sys.executable, "-m", "luban", "--language", "en", "board", str(folder), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8", env={**os.environ, "COLUMNS": "300"})
        said = ""
        for said in self.process.stderr:
            if found := re.search(r"http://127\.0\.0\.1:\d+", said):
                self.url = found.group()
                break
        else:
            raise AssertionError(said)
        self.client = httpx.Client(base_url=self.url)

    def get(self, path: str, **values: object) -> httpx.Response:
        return self.client.get(path, params=values)

    def series(self, run: str, **values: object) -> dict:
        answer = self.get("/api/series", run=run, **values)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def stop(self) -> int:
        self.client.close()
        self.process.terminate()
        self.process.communicate(timeout=20)
        return self.process.returncode
