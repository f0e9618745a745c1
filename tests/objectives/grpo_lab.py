"""Prompts, rewards and a GRPO objective on a small model for the tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from group_lab import request, write_rows
from preference_lab import WORDS, chat_tokenizer, objective_of

from luban.objectives.base import Loaders, Objective

OWN = "def score(prompts, completions, columns):\n    return [min(sum(letter == 'e' for letter in text), 8) / 8 for text in completions]\n"
SHORT = {"maximum_tokens": 6}


def asked(count: int = 12) -> list[dict[str, Any]]:
    return [{"prompt": f"Speak of {WORDS[number % len(WORDS)]} {number}", "answer": str(number)} for number in range(count)]


def own_reward(folder: Path, text: str = OWN, name: str = "my_reward.py") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return f"{folder / name}:score"


def begun(folder: Path, model: Any = None, rows: list[dict[str, Any]] | None = None, precision: torch.dtype = torch.float32, **settings: Any) -> tuple[Objective, Loaders]:
    """An objective with its loaders; two prompts a step."""
    given = {"rewards": [own_reward(folder)], "group": 4, "sampling": SHORT, **settings}
    objective = objective_of("grpo", **given)
    named = {f"rewards.{place}.function": Path(item.get("name") if isinstance(item, dict) else item) for place, item in enumerate(given["rewards"]) if ".py:" in str(item)}
    data = request(write_rows(folder / "rows.jsonl", rows or asked()), folder, "qwen3", tokenizer=chat_tokenizer(), sequence_length=64, examples_per_step=2, named=named)
    (folder / "training").mkdir(exist_ok=True)
    made = objective.loaders(data)
    if model is not None:
        objective.before_training(model, made, folder / "training", precision)
    return objective, made
