"""Judged answers, a tokenizer with a chat template and small models for the tests of preferences."""

from __future__ import annotations

import random
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from group_lab import request, tiny_model, write_rows
from text_lab import tokenizer_of_style

from luban.models.huggingface import save_model
from luban.objectives.base import Loaders, Objective, load_objective
from luban.objectives.config import NAMES
from luban.tokenizer.templates import CHATML
from luban.tokenizer.tokenizer import Tokenizer

WORDS = ("king", "night", "sword", "love", "春风", "rose")


@cache
def chat_tokenizer() -> Tokenizer:
    plain = tokenizer_of_style("plain")
    return Tokenizer(plain.core, {**plain.config, "chat_template": CHATML})


def pairs(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Prompts with a kind answer (better) and a rude one."""
    draw = random.Random(seed)
    return [
        {
            "prompt": f"Speak of {draw.choice(WORDS)} {number}",
            "chosen": " ".join(["good", *draw.choices(WORDS, k=draw.randint(1, 4))]),
            "rejected": " ".join(["bad", *draw.choices(WORDS, k=draw.randint(1, 6))]),
            "margin": draw.random(),
        }
        for number in range(count)
    ]


def singles(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    draw = random.Random(seed)
    return [{"prompt": f"Say {number}", "completion": " ".join([*draw.choices(WORDS, k=draw.randint(1, 5)), str(number)]), "label": draw.random() < 0.6} for number in range(count)]


def objective_of(name: str, **settings: Any) -> Objective:
    return load_objective(NAMES[name](name=name, **settings))


def opened(folder: Path, name: str, rows: list[dict[str, Any]], model: Any = None, **settings: Any) -> tuple[Objective, Loaders]:
    """An objective with its loaders, its reference taken from ``model``."""
    objective = objective_of(name, **settings)
    data = request(write_rows(folder / "rows.jsonl", rows), folder, "qwen3", tokenizer=chat_tokenizer(), sequence_length=64)
    (folder / "training").mkdir(exist_ok=True)
    made = objective.loaders(data)
    if model is not None:
        objective.before_training(model, made, folder / "training", torch.float32)
    return objective, made


def policy(seed: int = 1, **more: Any) -> torch.nn.Module:
    return tiny_model("qwen3", None, seed, **more).double()


def moved(model: torch.nn.Module, seed: int = 9, size: float = 0.05) -> torch.nn.Module:
    """The same model some way on: every weight shifted a little."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return model


def start(folder: Path) -> Path:
    save_model(tiny_model("qwen3", None), folder)
    chat_tokenizer().save(folder)
    return folder


# ---- what TRL's trainers are asked with ----------------------------------------------------------------------------------


class Alone:
    """What TRL asks of accelerate, in one process."""

    device = torch.device("cpu")

    def gather_for_metrics(self, value: Any) -> Any:
        return value

    gather = gather_for_metrics


def trainer(**more: Any) -> SimpleNamespace:
    """As much of a TRL trainer as its loss functions read."""
    from collections import defaultdict

    metrics = {"train": defaultdict(list), "eval": defaultdict(list)}
    return SimpleNamespace(accelerator=Alone(), aux_loss_enabled=False, _metrics=metrics, _total_train_tokens=0, _tp_size=1, ld_alpha=None, use_weighting=False, is_encoder_decoder=False, **more)


def trl_inputs(batch: Any, order: Any) -> dict[str, torch.Tensor]:
    """Rows of a batch as TRL has them: whole sequences, left-aligned, with masks of what is there and what is the answer."""
    sizes = (batch.segments >= 0).sum(1)
    rows, width = len(batch.inputs), batch.inputs.shape[1] + 1
    ids, there, answer = (torch.zeros(rows, width, dtype=torch.long) for _ in range(3))
    for row, size in enumerate(sizes.tolist()):
        ids[row, 0], ids[row, 1 : size + 1], there[row, : size + 1] = batch.inputs[row, 0], batch.targets[row, :size], 1
        answer[row, 1 : size + 1] = (batch.weights[row, :size] > 0).long()
    return {"input_ids": ids[order], "attention_mask": there[order], "completion_mask": answer[order]}
