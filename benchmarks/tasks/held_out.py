"""Bits a byte that a model gives to held-out text, row by row, so that differences are paired."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.tasks.luban_side import Start
from luban.metrics.score import bootstrap
from luban.models.huggingface import load_model
from luban.models.ngram import KneserNey
from luban.objectives.losses import token_sum
from luban.tokens.batch import Batch


@torch.inference_mode()
def bits(folder: Path, start: Start, batches: list[Batch]) -> np.ndarray:
    """[rows, 2] bits and bytes of each row of the batches."""
    model, lengths, found = load_model(folder), torch.as_tensor(start.tokenizer.token_bytes()), []
    for batch in batches:
        for number in range(len(batch.inputs)):
            row = batch.rows(number, number + 1)
            scored = row.weights > 0
            if bool(scored.any()):
                found.append((float(token_sum(model, row)) / np.log(2), float(lengths[row.targets[scored]].sum())))
    return np.array(found)


def bits_score(units: np.ndarray) -> dict[str, Any]:
    return {"value": float(units[:, 0].sum() / units[:, 1].sum()), "interval": bootstrap(lambda sums: sums[:, 0] / sums[:, 1], units)}


def bits_difference(first: np.ndarray, second: np.ndarray) -> dict[str, Any]:
    """Second minus first, paired by rows."""
    units = np.stack([second[:, 0] - first[:, 0], first[:, 1]], 1)
    return bits_score(units)


def ngram_bits(training: Sequence[Any], test: Sequence[Any], order: int = 5) -> np.ndarray:
    """[examples] bits and bytes of each test output after its input, by a character n-gram model of the training pairs."""
    model = KneserNey([f"{example.input}，{example.output}" for example in training], order)
    chances, owner = model.probabilities([f"{example.input}，{example.output}" for example in test])
    found = []
    for number, example in enumerate(test):
        own = -np.log2(chances[owner == number])
        found.append((float(own[len(example.input) + 1 :].sum()), len(example.output.encode())))
    return np.array(found)


def held_out_loss(found: dict[str, Path], start: Start, training: Sequence[Any], test: Sequence[Any]) -> dict[str, Any]:
    """``metric``, ``scores`` and ``differences`` of bits a byte of the test outputs given their inputs; ``found`` are model directories."""
    units = {name: bits(folder, start, start.loaders.validation) for name, folder in found.items()}
    scores = {name: bits_score(own) for name, own in units.items()} | {"n-gram": bits_score(ngram_bits(training, test))}
    return {"metric": "bits_per_byte", "greater_is_better": False, "signature": f"outputs given inputs|examples:{len(test)}|boot:1000", "scores": scores, "differences": {name: bits_difference(units[name], units["luban"]) for name in ("before", "peer")}}
