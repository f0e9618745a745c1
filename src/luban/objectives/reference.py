"""What the starting weights (or another model) say of answers: log-likelihoods that are computed once and kept in the run's folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save
from torch import Tensor

from luban.foundation.artifacts import write_bytes
from luban.foundation.console import say, track
from luban.models.base import Model
from luban.objectives.losses import token_nats
from luban.tokens.batch import Batch, Row, batch_of

FILE = "reference.safetensors"
ROW_TOKENS = 4096  # tokens of one forward pass


@torch.no_grad()
def likelihoods(model: Model, batch: Batch, precision: torch.dtype = torch.float32) -> Tensor:
    """[rows] the log-likelihood of each row's answer (the places with a weight), without dropout and gradients, in parts that fit."""
    size = max(1, ROW_TOKENS // batch.inputs.shape[1])
    found = []
    with undisturbed(model), autocast(model, precision):
        for start in range(0, len(batch.inputs), size):
            part = batch.rows(start, start + size, trim=True).to(model.device)
            answer = part.weights > 0
            found.append(-(token_nats(model, part, answer) * answer).sum(1).cpu())
    return torch.cat(found)


@contextlib.contextmanager
def undisturbed(model: Model) -> Iterator[None]:
    """The model as it predicts, and afterwards as it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def autocast(model: Model, precision: torch.dtype) -> contextlib.AbstractContextManager:
    """The arithmetic of the training step."""
    return contextlib.nullcontext() if precision not in (torch.float16, torch.bfloat16) else torch.autocast(model.device.type, dtype=precision)


def known_likelihoods(model: Model, rows: Sequence[Row], pad_id: int, file: Path, precision: torch.dtype) -> np.ndarray:
    """[rows] :func:`likelihoods` of rows, read from ``file`` where these weights said them of these rows before, else computed and written."""
    key = f"{fingerprint_of(model)}-{fingerprint_of_rows(rows)}-{str(precision).removeprefix('torch.')}"
    if (known := _read(file, key)) is not None:
        say("reference log-likelihoods are known: {file}", file=file.name)
        return known
    order = sorted(range(len(rows)), key=lambda number: -len(rows[number].ids))
    found = np.zeros(len(rows), np.float64 if model.dtype == torch.float64 else np.float32)
    parts = list(_parts(order, [len(row.ids) for row in rows]))
    for numbers in track(parts, "reference log-likelihoods", total=len(parts)):
        found[numbers] = likelihoods(model, batch_of([replace(rows[number], extra={}) for number in numbers], pad_id), precision).numpy()
    write_bytes(file, save({"log_likelihoods": found}, metadata={"key": key}))
    return found


def _parts(order: Sequence[int], lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of like length together, the longest first, so that too little memory shows at once."""
    start = 0
    while start < len(order):
        size = max(1, ROW_TOKENS // max(1, lengths[order[start]]))
        yield list(order[start : start + size])
        start += size


def _read(file: Path, key: str) -> np.ndarray | None:
    """What was written under ``key``; None for another one, or for a damaged file."""
    if not file.exists():
        return None
    try:
        with safe_open(file, "numpy") as opened:
            return opened.get_tensor("log_likelihoods") if (opened.metadata() or {}).get("key") == key else None
    except (SafetensorError, OSError):
        return None


def fingerprint_of(model: Model) -> str:
    """A fingerprint of all weights by name and bytes."""
    digest = xxhash.xxh3_128()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def fingerprint_of_rows(rows: Sequence[Row]) -> str:
    digest = xxhash.xxh3_128()
    for row in rows:
        for values in (row.ids, row.targets, row.weights):
            digest.update(str(len(values)).encode())
            digest.update(np.ascontiguousarray(values, np.int64 if values is not row.weights else np.float32))
    return digest.hexdigest()
