"""Small searches: a linear classifier over planted words, and a one-layer BERT that learns them in a few steps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import yaml
from tiny import write_words

GOOD, BAD, FILL = ["good", "fine", "great"], ["bad", "poor", "awful"], ["the", "film", "was", "a", "very", "plot"]
SHAPE = {"architecture": "bert", "layers": 1, "hidden_size": 16, "heads": 2, "feed_forward_size": 32, "maximum_positions": 16, "vocabulary_size": 24, "initializer_deviation": 0.2}


def write_reviews(folder: Path, count: int = 60) -> Path:
    """Texts whose one telling word says the label, four times in five."""
    draw = random.Random(0)
    lines = []
    for number in range(count):
        label, words = ("pos", GOOD) if number % 2 else ("neg", BAD)
        said = draw.choices(FILL, k=3)
        said.insert(draw.randint(0, 3), draw.choice(words if draw.random() < 0.8 else FILL))
        lines.append(json.dumps({"text": " ".join(said), "label": label}))
    (folder / "reviews.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def sorter(folder: Path, linear: dict[str, Any], **tune: Any) -> Path:
    """A recipe of one `fit` stage with spaces."""
    write_reviews(folder)
    return write_recipe(folder, {"name": "reviews", "tune": tune, "stages": {"sorter": {"kind": "fit", "data": "reviews.jsonl", "method": "linear", "held_out": 0.3, "linear": linear}}})


def trainer(folder: Path, tune: dict[str, Any], **fields: Any) -> Path:
    """A recipe of one `train` stage: 8 steps, validated after every second."""
    write_reviews(folder)
    write_words(folder / "tokenizer", [*GOOD, *BAD, *FILL])
    stage = {
        "kind": "train", "data": "reviews.jsonl", "objective": "classification", "tokenizer": "./tokenizer", "shape": SHAPE, "sequence_length": 8, "batch_examples": 8, "length": "8 steps",
        "threads": 1, "determinism": "strict", "validation": {"every": "2 steps", "share": 0.3}, "checkpoint": {"every": "2 steps"}, "track": {"tensorboard": False}, **fields,
    }  # fmt: skip
    return write_recipe(folder, {"name": "small", "tune": tune, "stages": {"base": stage}})


def write_recipe(folder: Path, recipe: dict[str, Any]) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return path


def trials_of(folder: Path) -> list[dict[str, Any]]:
    """What a search wrote down of its trials."""
    return json.loads((folder / "tune" / "trials.json").read_bytes())["trials"]


def heavy(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*.safetensors"))
