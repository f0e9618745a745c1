"""The weights of the best validation so far, ``training/best-00000120.safetensors``: one file for each that a checkpoint knows of."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from luban.foundation.console import warn
from luban.foundation.errors import DataError
from luban.models.tensor_files import pieces, replace_tensors
from luban.parallel.layouts import placed
from luban.parallel.ranks import here
from luban.training.retention import best_steps, number_of, saved
from luban.training.run import Run


def _best_file(folder: Path, step: int) -> Path:
    return folder / f"best-{step:08d}.safetensors"


def keep_best(run: Run) -> None:
    """Let the weights as they stand be written, behind the steps, as those of the best validation; the ones before go when no checkpoint knows of them any more."""
    weights = run.engine.layout.gather(run.engine.weights(spread=False))
    if here().leads:
        file = _best_file(run.folder, run.step)
        run.checkpointer.behind(weights, lambda held: replace_tensors(file, held, {"sha256": _digest(held)}))


def restore_best(run: Run) -> bool:
    """Read the weights of the best validation back into the model. False where they are missing or damaged, which is said."""
    file = _best_file(run.folder, run.history["best_step"])
    try:
        with safe_open(file, "pt") as opened:
            known = (opened.metadata() or {}).get("sha256")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 (no mapping)
        if known != _digest(tensors):
            raise DataError("{file} does not have the bytes that were written", file=file)
        if run.engine.layout.elsewhere:
            tensors = {name: tensors[name] for name in run.model.changing()}
        ours = dict(run.model.named_parameters(remove_duplicate=False))
        run.engine.load_weights({name: placed(tensor, ours[name]) if name in ours else tensor for name, tensor in tensors.items()})
    except (OSError, SafetensorError, DataError) as error:
        warn("the weights of the best validation cannot be read, the last ones are kept: {error}", error=error)
        return False
    return True


def _digest(tensors: dict[str, torch.Tensor]) -> str:
    """SHA-256 over names, types, shapes and bytes."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name}{tensors[name].dtype}{list(tensors[name].shape)}".encode())
        for piece in pieces(tensors[name]):
            digest.update(piece)
    return digest.hexdigest()


def prune_best(folder: Path) -> None:
    """Remove the best weights that neither a checkpoint nor what was written since the newest one knows of, and what a killed process had half written of some."""
    known = best_steps(folder)
    newest = max((number_of(found) for found in saved(folder)), default=0)
    for file in folder.glob("best-????????.safetensors"):
        if (step := int(file.stem.removeprefix("best-"))) not in known and step <= newest:
            file.unlink(missing_ok=True)
    for file in folder.glob(".best-*.tmp"):
        file.unlink(missing_ok=True)
