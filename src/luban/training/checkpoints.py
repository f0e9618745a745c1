"""Checkpoints of a run: all that a later process needs to go on to the same bits.

A checkpoint is a snapshot of the tensors, taken between two steps, that a thread of its own writes aside, checksums and renames while the steps go on; storage.py says how it
lies on disk, retention.py when it is due and what stays. Beside the checkpoints lie the weights of the best validations, ``best-00000120.safetensors``, which the same thread writes:
in order, so that a checkpoint which knows of some is whole only when they are.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from luban.foundation.artifacts import from_os_error, sha256_of
from luban.foundation.console import bytes_text, warn
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.foundation.hardware import available_bytes
from luban.parallel.layouts import in_shards, local, spread
from luban.parallel.ranks import here
from luban.training import storage
from luban.training.best import prune_best
from luban.training.randomness import random_state, set_random_state
from luban.training.retention import GUESSED_BYTES_PER_SECOND, Cadence, number_of, place_of, prune, saved, set_aside
from luban.training.run import Run
from luban.training.signals import asked_to_leave

SPARE_BYTES = 1 << 17  # for state and index, beside the tensors


@dataclass
class Snapshot:
    """What is written: tensors by ``part/name``, and plain data."""

    step: int
    tensors: dict[str, torch.Tensor]
    state: dict[str, Any]

    @property
    def bytes(self) -> int:
        """Of the tensors, as this rank holds them."""
        return sum(local(tensor).nbytes for tensor in self.tensors.values())


class Checkpointer:
    """Saves when it is due, behind the steps, one checkpoint at a time; a hook that stands last.

    A disk that has no room is said and does not end the run: the checkpoints before stay whole, and the next one is tried again. Where the run is to end with its state saved (a
    signal, a limit) it is an error.
    """

    section = "checkpoints"

    def __init__(self, run: Run, cadence: Cadence, permanent_every: int, permanent: set[int], note: Callable[[int, str, dict[str, float]], None]):
        self.config, self.folder, self.cadence = run.config.checkpoint, run.folder, cadence
        self.permanent_every, self.permanent, self.note = permanent_every, permanent, note
        self.pool = ThreadPoolExecutor(1, "luban-checkpoint")
        self.pending: Future[float] | None = None  # the checkpoint that is being written
        self.beside: Future[None] | None = None  # what else is
        self.count, self.stalled, self.stall, self.writing, self.skipped = 0, 0.0, 0.0, 0.0, 0  # of this process; ``stall`` and ``writing`` of the last save
        self.begun = time.monotonic()

    def after_step(self, run: Run) -> None:
        if self.beside and self.beside.done():
            self._wait_beside()
        if self.pending and self.pending.done() and here().alone:
            self._wait_checkpoint()
        kind = "regular" if run.finished or run.step in self.permanent or (self.permanent_every and run.step % self.permanent_every == 0) else self.cadence.due(run.step)
        if kind or run.stop_reason:
            self.save(run, kind or "ephemeral")

    def resumed(self, run: Run) -> None:
        """The run stands at a checkpoint."""
        self.cadence.last = self.cadence.last_of_any = run.step

    def save(self, run: Run, kind: str) -> None:
        """Begin a checkpoint; where the run ends with it, finish it too."""
        begun = time.monotonic()
        self._wait_checkpoint()
        run.before_checkpoint()
        copies = not run.stop_reason and not run.finished and self._copies(tensor for named in parts_of(run).values() for tensor in named.values())
        taken = snapshot(run, kind, copies)
        final = place_of(self.folder, run.step)
        if not final.exists() and self._has_room(taken, must=bool(run.stop_reason)):
            self.count += 1
            if copies:
                self.pending = self.pool.submit(self._write, final, taken, self.beside)
            else:
                self._wait_beside()
                self.writing = self._try(final, taken, must=bool(run.stop_reason))
        self.cadence.saved(run.step, kind)
        self.stall = time.monotonic() - begun
        self.stalled += self.stall
        writing = (self.writing or taken.bytes / GUESSED_BYTES_PER_SECOND) if copies else 0.0  # else it is part of the stall
        self.cadence.take(here().tell(self.cadence.settle(self.stall, writing, run.seconds / run.step)))
        self.note(run.step, "checkpoint", {"bytes": taken.bytes, "stall_seconds": self.stall, "stall_share": self.stalled / (time.monotonic() - self.begun)})

    def behind(self, tensors: dict[str, torch.Tensor], write: Callable[[dict[str, torch.Tensor]], None]) -> None:
        """Let tensors as they are now be written beside the checkpoints; the next checkpoint becomes whole after them, or not at all. Where there is no memory for a copy they are written now."""
        self._wait_beside()
        if not self._copies(tensors.values()):
            write(tensors)
            return
        known: dict[Any, torch.Tensor] = {}  # of tied weights one copy
        held = {}
        for name, tensor in tensors.items():
            place = _address(tensor)
            held[name] = known[place] if place in known else known.setdefault(place, _copied(tensor))
        self.beside = self.pool.submit(write, held)

    def wait(self) -> None:
        """Let what is being written become whole. What failed there fails here; a disk without room for a checkpoint is said."""
        self._wait_beside()
        self._wait_checkpoint()

    def _wait_beside(self) -> None:
        if beside := self.beside:
            self.beside = None
            beside.result()

    def _wait_checkpoint(self) -> None:
        if pending := self.pending:
            self.pending = None
            try:
                self.writing = pending.result()
            except OSError as error:
                self._say(error)

    def close(self) -> None:
        """The end of the run, whatever ended it."""
        begun = time.monotonic()
        try:
            self.wait()
        finally:
            self.stalled += time.monotonic() - begun
            self.pool.shutdown()

    def passing(self) -> list[str]:
        """What need not stay when the run is done: all checkpoints but the permanent ones."""
        if not self.permanent_every:
            return ["checkpoints"]
        return [f"checkpoints/{found.name}" for found in saved(self.folder) if number_of(found) % self.permanent_every]

    def report(self) -> dict[str, Any]:
        """For the manifest: checkpoints of this process, and what share of its time the loop stood still for them."""
        return {"saved": self.count, "skipped": self.skipped, "stall_seconds": round(self.stalled, 4), "stall_share": self.stalled / max(1e-9, time.monotonic() - self.begun)}

    def _copies(self, tensors: Iterable[torch.Tensor]) -> bool:
        """Whether tensors are copied and written behind the steps; `auto`: where the copy takes no more than a quarter of the memory that is free."""
        if self.config.behind != "auto":
            return self.config.behind
        return sum(local(tensor).nbytes for tensor in tensors) < available_bytes() / 4

    def _has_room(self, taken: Snapshot, must: bool) -> bool:
        """Whether the disk has room for one more; checkpoints that need not stay go before that is said."""
        needed = sum(here().everyone(taken.bytes)) + SPARE_BYTES

        def free() -> int:
            self.folder.mkdir(parents=True, exist_ok=True)
            return shutil.disk_usage(self.folder).free

        def decide() -> bool:
            if free() < needed:
                self._prune()
            return free() >= needed

        if here().lead(decide):
            return True
        if must:
            raise _no_room(self.folder, taken.step)
        self.skipped += 1
        warn("no checkpoint at step {step}: it takes {needed}, and {free} are free; the run goes on, its last checkpoint is that of step {last}", step=taken.step, needed=bytes_text(needed), free=bytes_text(free()), last=_last(self.folder))
        return False

    def _write(self, final: Path, taken: Snapshot, before: Future[None] | None = None) -> float:
        """In the thread: the seconds that it took. What was handed to the thread ``before`` is written by now; where that failed, this fails."""
        begun = time.monotonic()
        if before:
            before.result()
        write(final, taken)
        if here().leads:
            self._prune()
        return time.monotonic() - begun

    def _try(self, final: Path, taken: Snapshot, must: bool) -> float:
        try:
            return self._write(final, taken)
        except OSError as error:
            if must:
                raise _no_room(self.folder, taken.step) if _is_full(error) else from_os_error(error, final) from error
            self._say(error)
            return 0.0

    def _say(self, error: OSError) -> None:
        self.skipped += 1
        self.count -= 1
        reason = from_os_error(error, self.folder).text().splitlines()[0]
        warn("a checkpoint could not be written: {reason}; the run goes on, its last checkpoint is that of step {last}", reason=reason, last=_last(self.folder))

    def _prune(self) -> None:
        prune(self.folder, self.config.keep, self.permanent_every, self.permanent)
        if self.beside is None or self.beside.done():  # else what is being written would be taken for what a killed process left
            prune_best(self.folder)


def _is_full(error: OSError) -> bool:
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _last(folder: Path) -> int | str:
    return number_of(saved(folder)[-1]) if saved(folder) else "-"


def _no_room(folder: Path, step: int) -> LubanError:
    return LubanError(
        "the disk is full: step {step} could not be saved", "the last checkpoint is that of step {last}; what came after it is done again",
        "free some space (luban clean removes what is stale) and run the same command again", step=step, last=_last(folder),
    )  # fmt: skip


# ---- taking and writing -----------------------------------------------------------------------------------------------


def save(run: Run) -> Path:
    """Write a checkpoint of the run as it stands, now. A LubanError where the disk refuses; the checkpoints before stay whole."""
    _wait_for_writer(run)
    final = place_of(run.folder, run.step)
    if not final.exists():
        run.before_checkpoint()
        try:
            write(final, snapshot(run, "regular", False))
        except OSError as error:
            raise from_os_error(error, final) from error
    return final


def write(final: Path, taken: Snapshot) -> None:
    """Write a snapshot: aside, through to the disk, then under its name."""
    final.parent.mkdir(parents=True, exist_ok=True)
    storage.save_tensors(final, taken.tensors, taken.state, here().files)


def snapshot(run: Run, kind: str, copies: bool) -> Snapshot:
    """The run between two steps. With ``copies`` it stays as it is while steps go on. A tensor under two names (tied weights) is held once."""
    tensors: dict[str, torch.Tensor] = {}
    aliases: dict[str, str] = {}
    held: dict[Any, str] = {}
    parts = parts_of(run)  # kept until the end: of two tensors at one address one would be a copy of nothing
    for part, named in parts.items():
        for name, tensor in named.items():
            key, tensor = f"{part}/{name}", tensor.detach()
            if not in_shards(tensor) and tensor.numel() and (known := held.setdefault(_address(tensor), key)) != key:
                aliases[key] = known
            else:
                tensors[key] = _copied(tensor) if copies else tensor
    state = {
        "format": storage.FORMAT,
        "kind": kind,
        "step": run.step,
        "tokens": run.tokens,
        "seconds": run.seconds,
        "last": dict(run.last),
        "stop_reason": run.stop_reason,
        "history": json.loads(json.dumps(run.history)),  # as it is now
        "total": run.schedule.total,
        "unchanged_until": run.schedule.unchanged_until,
        "loader": {"place": run.place},  # loaders are functions of seed and place, so this is all
        "random": here().everyone(random_state()),
        "aliases": {name: known for of_rank in here().everyone(aliases) for name, known in of_rank.items()},
    }
    if run.engine.scaler.is_enabled():
        state["scaler"] = run.engine.scaler.state_dict()
    return Snapshot(run.step, tensors, state)


def parts_of(run: Run) -> dict[str, dict[str, torch.Tensor]]:
    """What a checkpoint holds, by part and name."""
    found = {"model": run.engine.weights(), "optimizer": run.engine.optimizer_state()}
    if run.average:
        found["average"] = run.average.state()
    if run.teacher:
        found["teacher"] = run.teacher.state()
    if kept := run.objective.state():
        found["objective"] = kept
    return found


def _address(tensor: torch.Tensor) -> Any:
    """Which numbers a tensor is of, the same for two names of one."""
    return tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()


def _copied(tensor: torch.Tensor) -> torch.Tensor:
    if in_shards(tensor):
        return spread(tensor.to_local().clone(), tensor)
    return tensor.clone() if tensor.device.type == "cpu" else tensor.cpu()


# ---- going back -------------------------------------------------------------------------------------------------------


def restore(run: Run, another_length: bool = False) -> bool:
    """Bring the run to its newest whole checkpoint that a run of this length would have passed too, or with ``another_length`` to the newest that is not beyond its end; False when there is
    none. Newer ones are set aside. ConfigError where there are checkpoints, and it can go on from none of them."""
    _wait_for_writer(run)
    folder = run.folder
    chosen = here().lead(lambda: _choose(folder, run, another_length))
    if not chosen:
        return False
    state = _load(run, Path(chosen))
    run.seconds, run.history, run.last = state["seconds"], state["history"], state.get("last", {})
    reason = state.get("stop_reason", "")
    if state["total"] == run.schedule.total and not asked_to_leave(reason) and not reason.startswith("guards."):
        run.stop_reason = reason  # it had ended by itself, and its process before the model was saved
    return True


def branch(run: Run, source: Path, step: int) -> None:
    """Bring a new run to the checkpoint after ``step`` of another training, whose folder is ``source``: weights, optimizer, place in the data, random states. What was
    the best so far and what was read belongs to that one. DataError where it has no such checkpoint, or a damaged one."""
    folder = place_of(source, step)
    if not folder.exists():
        known = ", ".join(str(number_of(found)) for found in saved(source)) or "-"
        raise DataError("{folder} has no checkpoint of step {step}; it has: {known}", "", "checkpoint.permanent keeps them; schedules constant and warmup_stable_decay leave the last ones", folder=source.parent, step=step, known=known)
    here().lead(lambda: _state_of(folder)["step"])
    _load(run, folder)
    if run.finished:
        raise ConfigError("from_step: {step} leaves no step to do, since length is {total} steps", "length counts the steps before the branch too", "raise length", step=step, total=run.schedule.total)


def _load(run: Run, folder: Path) -> dict[str, Any]:
    """Bring tensors, random states, step and place in the data of a checkpoint into the run; returns its state."""
    state, tensors = _read(folder, run)
    _check_model(run, folder, {name.removeprefix("model/"): tensor for name, tensor in tensors.items() if name.startswith("model/")})
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in tensors.items():
        part, _, name = key.partition("/")
        parts.setdefault(part, {})[name] = tensor
    run.engine.load_weights(parts["model"])
    run.engine.load_optimizer_state(parts.get("optimizer", {}))
    for part, keeper in (("average", run.average), ("teacher", run.teacher), ("objective", run.objective)):
        if keeper and part in parts:
            keeper.load_state(parts[part])
    if "scaler" in state and run.engine.scaler.is_enabled():
        run.engine.scaler.load_state_dict(state["scaler"])
    if (seat := run.engine.layout.seat) < len(state["random"]):  # a rank that was not there draws on as it was seeded
        set_random_state(state["random"][seat])
    run.step, run.tokens, run.place = state["step"], state["tokens"], state.get("loader", {}).get("place", state["step"])
    return state


def _wait_for_writer(run: Run) -> None:
    """Let the checkpoint that is being written behind the steps become whole."""
    for hook in run.hooks:
        if isinstance(hook, Checkpointer):
            hook.wait()


def _choose(folder: Path, run: Run, another_length: bool) -> str:
    """The newest whole checkpoint that this run may go on from. What is damaged is named and set aside, and so is what is passed over, if an older one serves."""
    passed: list[tuple[Path, dict[str, Any]]] = []
    total = run.schedule.total
    for aside in (folder / "checkpoints").glob("step-????????.partial"):
        shutil.rmtree(aside, ignore_errors=True)
    for found in reversed(saved(folder)):
        try:
            state = _state_of(found)
        except DataError as error:
            warn("{folder} is damaged and is skipped: {error}", folder=found, error=error)
            set_aside(found)
            continue
        if state["step"] <= (total if another_length or state["total"] == total else min(state["unchanged_until"], run.schedule.unchanged_until)):
            for newer, _ in passed:
                set_aside(newer)
            return str(found)
        passed.append((found, state))
    if passed:
        found, state = passed[0]
        raise ConfigError(
            "{folder} is of a training of {was} steps, and one of {total} steps cannot go on from it", "its steps so far would have had other learning rates, or are more",
            "set length back; or name another folder for the run; or delete the checkpoints to begin anew", folder=found, was=state["total"], total=total,
        )  # fmt: skip
    return ""


def _state_of(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint all of whose files have the bytes that were written. DataError names the one that has not."""
    try:
        if not (folder / storage.INDEX).exists() and "sha256" in (state := storage.read_state(folder)):  # format 1
            for name, digest in state["sha256"].items():
                if sha256_of(folder / name) != digest:
                    raise DataError("{file} does not have the bytes that were written", file=folder / name)
            return state
        storage.verify(folder, storage.read_index(folder))
        return storage.read_state(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError("{folder}: {error}", folder=folder, error=error) from None


def _read(folder: Path, run: Run) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """State and tensors of a whole checkpoint, each tensor in the layout of this rank's own."""
    state = storage.read_state(folder)
    if not (folder / storage.INDEX).exists():
        state["random"] = [{**random_state(), "torch": state["random"]}]
        return state, {f"{file.stem}/{name}": tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}
    ours = dict(run.model.named_parameters(remove_duplicate=False))

    def like(key: str, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
        names = key.partition("/")[2].split("::")  # a parameter's, before or behind what is kept of it
        parameter = next((ours[name] for name in names if name in ours), None)
        if in_shards(parameter) and parameter.shape == shape:
            return torch.empty_like(parameter, dtype=dtype, requires_grad=False)
        return torch.empty(shape, dtype=dtype)

    elsewhere = run.engine.layout.elsewhere

    def ours_of(key: str) -> bool:
        return not any(name in elsewhere for name in key.partition("/")[2].split("::"))

    tensors = storage.load_tensors(folder, storage.read_index(folder), like, ours_of)
    return state, tensors | {name: tensors[known] for name, known in state["aliases"].items() if ours_of(known)}


def _check_model(run: Run, folder: Path, found: dict[str, torch.Tensor]) -> None:
    """DataError where a checkpoint is of another model than the run's."""
    wanted, given = run.engine.shapes(), {name: list(tensor.shape) for name, tensor in found.items()}
    for name in sorted(wanted.keys() | given.keys()):
        was, now = (shapes.get(name, "-") for shapes in (given, wanted))
        if was != now:
            raise DataError(
                "{folder} is a checkpoint of another model: its {name} is {was}, this model's is {now}", "", "remove the folder, or give the run the shape it began with",
                folder=folder, name=name, was=was, now=now,
            )  # fmt: skip
