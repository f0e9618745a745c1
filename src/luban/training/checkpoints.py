"""Checkpoints of a run: weights, optimizer state and counters, written aside, checksummed, renamed.

``training/checkpoints/step-00000120/`` holds model.safetensors, optimizer.safetensors and state.json; state.json
names the SHA-256 of the other two, so a damaged file is found when it is read and the one before is used.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from luban.foundation.artifacts import from_os_error, sync_directory, write_json
from luban.foundation.console import warn
from luban.foundation.errors import DataError
from luban.training.run import Run

FORMAT = 1


class Checkpointer:
    """Saves every ``every`` steps and keeps the newest ``keep``, and for good the ones in ``permanent``."""

    def __init__(self, every: int, keep: int, permanent: set[int] = frozenset()):
        self.every, self.keep, self.permanent = every, keep, permanent

    def after_step(self, run: Run) -> None:
        if run.every(self.every) or run.stop_reason or run.step in self.permanent:
            save(run)
            for folder in saved(run.folder)[: -self.keep]:
                if int(folder.name.removeprefix("step-")) not in self.permanent:
                    shutil.rmtree(folder, ignore_errors=True)


BEST = "best.safetensors"


def keep_best(run: Run) -> None:
    """Write the weights as they stand, in the place of the best so far."""
    file = run.folder / BEST
    try:
        _write_tensors(file.with_suffix(".partial"), {name: tensor.detach().contiguous() for name, tensor in run.model.changing().items()})
        os.replace(file.with_suffix(".partial"), file)
    except OSError as error:
        raise from_os_error(error, file) from error


def restore_best(run: Run) -> bool:
    """Read the best weights back into the model. False when there are none."""
    file = run.folder / BEST
    if not file.exists():
        return False
    run.model.load_changing(load_file(file))
    return True


def saved(folder: Path) -> list[Path]:
    """The checkpoints of a run, oldest first. Half-written ones have another name."""
    return sorted((folder / "checkpoints").glob("step-????????"))


def save(run: Run) -> Path:
    """Write a checkpoint of the run as it stands; on a full disk the ones before stay whole."""
    final = run.folder / "checkpoints" / f"step-{run.step:08d}"
    if final.exists():
        return final
    partial = final.with_name(final.name + ".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        weights = {name: tensor.detach().contiguous() for name, tensor in run.model.changing().items()}
        _write_tensors(partial / "model.safetensors", weights)
        _write_tensors(partial / "optimizer.safetensors", run.engine.optimizer.state())
        if run.average:
            _write_tensors(partial / "average.safetensors", run.average.state())
        if run.teacher:
            _write_tensors(partial / "teacher.safetensors", run.teacher.state())
        if kept := run.objective.state():
            _write_tensors(partial / "objective.safetensors", kept)
        state = {
            "format": FORMAT,
            "step": run.step,
            "tokens": run.tokens,
            "seconds": run.seconds,
            "history": run.history,
            "total": run.schedule.total,
            "unchanged_until": run.schedule.unchanged_until,
            "random": base64.b64encode(torch.get_rng_state().numpy().tobytes()).decode("ascii"),
            "sha256": {file.name: _sha256(file) for file in sorted(partial.glob("*.safetensors"))},
        }
        write_json(partial / "state.json", state)
        os.rename(partial, final)
        sync_directory(final.parent)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise from_os_error(error, final) from error
    return final


def restore(run: Run) -> bool:
    """Bring the run to its newest whole checkpoint that a run of this length would have passed too; False when there is none."""
    for folder in reversed(saved(run.folder)):
        try:
            state = _read_state(folder)
        except DataError as error:
            warn("{folder} is damaged and is skipped: {error}", folder=folder, error=error)
            continue
        same_length = state["total"] == run.schedule.total
        if state["step"] > (run.schedule.total if same_length else min(state["unchanged_until"], run.schedule.unchanged_until)):
            continue
        run.model.load_changing(load_file(folder / "model.safetensors"))
        run.engine.optimizer.load_state(load_file(folder / "optimizer.safetensors"))
        if run.average and (folder / "average.safetensors").exists():
            run.average.load_state(load_file(folder / "average.safetensors"))
        if run.teacher and (folder / "teacher.safetensors").exists():
            run.teacher.load_state(load_file(folder / "teacher.safetensors"))
        if (folder / "objective.safetensors").exists():
            run.objective.load_state(load_file(folder / "objective.safetensors"))
        run.step, run.tokens, run.seconds, run.history = state["step"], state["tokens"], state["seconds"], state["history"]
        torch.set_rng_state(torch.frombuffer(bytearray(base64.b64decode(state["random"])), dtype=torch.uint8))
        return True
    return False


def _read_state(folder: Path) -> dict:
    try:
        state = json.loads((folder / "state.json").read_bytes())
        if state["format"] > FORMAT:
            raise DataError("{folder} was written by a newer Luban", "", "upgrade Luban", folder=folder)
        for name, digest in state["sha256"].items():
            if _sha256(folder / name) != digest:
                raise DataError("{file} does not have the bytes that were written", file=folder / name)
        return state
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("{folder}: {error}", folder=folder, error=error) from None


def _write_tensors(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    shared: dict[int, str] = {}
    unique = {}
    for name, tensor in tensors.items():  # tied weights are one tensor; load_state_dict ties them again
        if tensor.numel() and shared.setdefault(tensor.data_ptr(), name) != name:
            tensor = tensor.clone()
        unique[name] = tensor.cpu()
    save_file(unique, path, metadata={"format": "pt"})
    with path.open("rb+") as stream:
        os.fsync(stream.fileno())


def _sha256(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
