"""Small models, data and trainings for the tests of embeddings, ranking and multiple choice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from text_lab import shape_of, tokenizer_of_style

import luban
from luban.foundation.artifacts import Artifact
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.objectives.base import DataRequest, Loaders, Objective
from luban.parallel.engine import TorchEngine
from luban.training.config import OptimizerConfig
from luban.training.optimizers import Optimizers

SMALL = {"layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 64}
THINGS = ["apple", "river", "stone", "cloud", "horse", "candle", "月亮", "桥", "书", "雨"]


def write_rows(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def style_of(architecture: str) -> str:
    return {"bert": "bert", "roberta": "roberta", "t5": "t5", "bart": "bart"}.get(architecture, "plain")


def tiny_model(architecture: str, head: Head | None, seed: int = 1, **shape: Any):
    made = build_model(shape_of(architecture, tokenizer_of_style(style_of(architecture)), **{"maximum_positions": 64, **shape})).initialize(seed)
    return made.with_head(head, seed + 1) if head else made


def request(file: Path, folder: Path, architecture: str = "bert", **more: Any) -> DataRequest:
    tokenizer = tokenizer_of_style(style_of(architecture))
    given = {
        "data": [file], "validation": [], "replay": [], "replay_share": 0.0, "tokenizer": tokenizer, "shape": shape_of(architecture, tokenizer), "sequence_length": 48,
        "rows_per_step": 8, "examples_per_step": 8, "seed": 3, "packing": "auto", "validation_share": 0.2, "mapping": {}, "mixture": [], "work": folder,
    }  # fmt: skip
    return DataRequest(**{**given, **more})


def opened(objective: Objective, file: Path, folder: Path, **more: Any) -> Loaders:
    data = request(file, folder, **more)
    data.tokenizer = objective.adapt_tokenizer(data.tokenizer)
    return objective.loaders(data)


def gradients(objective: Objective, model: Any, batch: Any, micro_batch_rows: int) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    """The step's means and gradients as the engine makes them."""
    model.zero_grad()
    settings = OptimizerConfig(learning_rate=1e-3, embedding_learning_rate=1e-3, matrix_learning_rate=1e-3, weight_decay=0.0)
    engine = TorchEngine(model, Optimizers(model, settings), objective, micro_batch_rows, torch.float32)
    means = {name: float(value) for name, value in engine.forward_backward(batch).items()}
    return means, {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same_gradients(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(other[name], value, rtol=1e-9, atol=1e-9)


def start_directory(folder: Path, architecture: str = "bert", **shape: Any) -> Path:
    """A model directory with its tokenizer to start training from."""
    save_model(tiny_model(architecture, None, **shape), folder)
    tokenizer_of_style(style_of(architecture)).save(folder)
    return folder


def train(folder: Path, start: Path, data: Path, objective: dict[str, Any], **more: Any) -> Artifact:
    stage = {
        "kind": "train", "objective": objective, "data": str(data), "model": str(start), "sequence_length": 48, "batch_examples": 8, "length": "30 steps",
        "optimizer": {"learning_rate": 5e-3}, "threads": 1, "validation": {"every": "30 steps"}, "track": {"tensorboard": False}, **more,
    }  # fmt: skip
    return luban.run({"name": "small", "seed": 3, "stages": {"model": stage}}, out=folder / "run")[-1]
