"""`bert-zh`, the base of the rows that read Chinese letter by letter: a small BERT that Luban pretrains on what their training sides say, without labels.

It is made once, under --work, and both sides of every such row start from it. No text of a test side is read.
"""

from __future__ import annotations

import json
from pathlib import Path

import luban
from benchmarks.tasks import data
from benchmarks.tasks.luban_side import train_stage
from benchmarks.tasks.rows import ROWS

NAME = "bert-zh"
EVERYTHING = 10**9
STEPS = 2000


def pretrained(source: Path, work: Path, threads: int, seed: int) -> Path:
    """The model directory; ``source`` is the folder of the data sets."""
    folder = work / NAME
    file = folder / "texts.jsonl"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in texts(source)), encoding="utf-8")
    base = {
        "objective": "masked", "data": "tokens", "shape": {"architecture": "bert", "layers": 4, "hidden_size": 128}, "sequence_length": 128, "batch_tokens": 16 * 128, "length": f"{STEPS} steps",
        "optimizer": {"learning_rate": 1e-3, "weight_decay": 0.01, "betas": [0.9, 0.98]}, "schedule": {"shape": "linear", "final": 0.0},
    }  # fmt: skip
    stages = {
        "corpus": {"kind": "curate", "sources": [str(file)], "workers": 1, "split": {"validation": 0.02}, "quality": "off"},
        "words": {"kind": "train_tokenizer", "corpus": "corpus", "style": "bert", "vocabulary_size": 5000},
        "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "words"}, "base": train_stage(base, threads),
    }  # fmt: skip
    return luban.run({"name": NAME, "seed": seed, "stages": stages}, out=folder / "run")[-1].path


def texts(source: Path) -> list[str]:
    """What the training sides of the rows say, each text once, without what stands in one of their tests."""
    sides = [data.slices(row, source, EVERYTHING) for row in ROWS if row.model == NAME]
    tested = {example.text for _, test in sides for example in test}
    return [text for text in dict.fromkeys(example.text for training, _ in sides for example in training) if text not in tested]
