"""Checkpoints: what is written is read back, damage is found and named, saving does not stop the steps, a full disk does not end a run."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import checkpoint_ranks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from resume_lab import case, remains, train
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from luban.foundation.artifacts import from_os_error, sha256_of
from luban.foundation.errors import DataError, Interrupted, LubanError
from luban.training import best, checkpoints, planned_storage, retention, storage
from luban.training.checkpoints import Checkpointer


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> dict:
    """A training with an average beside its weights."""
    return {**case(tmp_path_factory.mktemp("checkpoints"), "classification"), "regularization": {"average": "exponential"}, "validation": {"every": "3 steps", "share": 0.2, "maximum_examples": 6}}


@pytest.fixture(scope="module")
def whole(fields, tmp_path_factory):
    return train(tmp_path_factory.mktemp("whole"), "model", fields)


def newest(folder: Path) -> Path:
    return retention.saved(folder / "training")[-1]


# ---- on disk ----------------------------------------------------------------------------------------------------------


def test_every_type_and_shape_comes_back_and_safetensors_reads_the_file(tmp_path):
    kinds = [kind for kind in storage.NAMES if kind.is_floating_point or kind in (torch.int64, torch.uint8, torch.bool)]
    tensors = {f"model/{kind}": torch.arange(6).reshape(2, 3).to(kind) for kind in kinds} | {"model/empty": torch.zeros(0, 4), "model/turned": torch.randn(3, 5).t(), "optimizer/x::step": torch.tensor(2.5)}
    storage.save_tensors(tmp_path / "saved", tensors, {"step": 1})
    index = storage.read_index(tmp_path / "saved")
    storage.verify(tmp_path / "saved", index)
    found = storage.load_tensors(tmp_path / "saved", index, lambda _, shape, kind: torch.empty(shape, dtype=kind))
    theirs = {f"{part}/{name}": tensor for part in ("model", "optimizer") for name, tensor in load_file(tmp_path / "saved" / f"{part}.safetensors").items()}
    for name, tensor in tensors.items():
        for other in (found[name], theirs[name]):
            assert other.dtype == tensor.dtype and other.shape == tensor.shape and torch.equal(other.to(torch.float64), tensor.to(torch.float64)), name
    assert {file.suffix for file in (tmp_path / "saved").iterdir()} == {".safetensors", ".json"}


@pytest.mark.slow
def test_what_two_ranks_wrote_one_reads_and_the_other_way_round(tmp_path):
    whole = checkpoint_ranks.values()
    storage.save_tensors(tmp_path / "of-one", whole, {"step": 7})
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = [
        subprocess.Popen([sys.executable, checkpoint_ranks.__file__, str(tmp_path)], env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}, stderr=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    for rank in ranks:
        assert rank.communicate(timeout=300)[1] is not None and rank.returncode == 0
    index = storage.read_index(tmp_path / "of-two")
    storage.verify(tmp_path / "of-two", index)
    assert {"model-00000.safetensors", "model-00001.safetensors"} <= set(index["files"]) and len(index["tensors"]["model/rows"]["pieces"]) == 2
    found = storage.load_tensors(tmp_path / "of-two", index, lambda _, shape, kind: torch.empty(shape, dtype=kind))
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    for file in (tmp_path / "of-two").iterdir():
        json.loads(file.read_bytes()) if file.suffix == ".json" else load_file(file)


def test_what_one_process_holds_whole_is_written_as_the_planner_writes_it(tmp_path):
    tensors = {**checkpoint_ranks.values(), "average/none": torch.zeros(0, 3)}
    for name, save in (("alone", storage.save_tensors), ("planned", lambda folder, tensors, state: planned_storage.save(storage.Making(folder, state), tensors, None))):
        save(tmp_path / name, tensors, {"step": 7})
    assert [(file.name, file.read_bytes()) for file in sorted((tmp_path / "alone").iterdir())] == [(file.name, file.read_bytes()) for file in sorted((tmp_path / "planned").iterdir())]


def test_a_process_alone_imports_nothing_of_those_that_share():
    """torch's DTensor, and with it sympy, takes as long to import as all the rest of torch."""
    program = "import sys, luban.training.stage, luban.training.checkpoints; print([name for name in ('torch.distributed.tensor', 'torch.distributed.checkpoint', 'sympy', 'torch._dynamo') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout.strip() == "[]"


def overwrite(file: Path, content: bytes) -> None:
    """Write over a file in place: emptying it first costs some file systems twenty milliseconds."""
    with file.open("r+b") as stream:
        stream.write(content)
        stream.truncate()


def test_every_flipped_bit_and_every_cut_is_found_and_named(tmp_path):
    """In every file of a small checkpoint: a bit of each byte, and shorter files."""
    folder = tmp_path / "step"
    storage.save_tensors(folder, {"model/a": torch.randn(2, 3), "optimizer/a::step": torch.tensor(2.0)}, {"step": 12, "history": {"best": 1.5}})
    names = sorted(file.name for file in folder.iterdir())
    assert names == ["index.json", "model.safetensors", "optimizer.safetensors", "state.json"] and checkpoints._state_of(folder)["step"] == 12
    for name in names:
        content = (folder / name).read_bytes()
        flipped = (content[:place] + bytes([content[place] ^ (1 << bit)]) + content[place + 1 :] for place in range(len(content)) for bit in (place % 8,))
        for damaged in (*flipped, *(content[:size] for size in range(0, len(content), 7)), content[:-1], content + b" x"):
            overwrite(folder / name, damaged)
            with pytest.raises(DataError) as error:
                checkpoints._state_of(folder)
            assert name in str(error.value) or "newer Luban" in str(error.value)
        (folder / name).unlink()
        with pytest.raises(DataError, match=name):
            checkpoints._state_of(folder)
        (folder / name).write_bytes(content)
    assert checkpoints._state_of(folder)


def test_a_damaged_checkpoint_is_written_anew_when_the_run_comes_by_again(fields, whole, tmp_path):
    with pytest.raises(Exception, match="killed"):
        train(tmp_path, "model", fields, dies_at=5)
    state = newest(tmp_path / "model.partial") / "state.json"
    state.write_bytes(state.read_bytes().replace(b'"step": 3', b'"step": 2'))
    made = train(tmp_path, "model", fields)
    assert [folder.name for folder in retention.saved(made.path / "training")] == ["step-00000003", "step-00000006"]
    assert remains(made) == remains(whole)


def test_a_checkpoint_of_the_former_format_is_gone_on_from(fields, whole, tmp_path):
    with pytest.raises(Exception, match="killed"):
        train(tmp_path, "model", fields, dies_at=5)
    folder = newest(tmp_path / "model.partial")
    state = json.loads((folder / "state.json").read_bytes())
    for part in ("model", "optimizer", "average"):
        tensors = load_file(folder / f"{part}.safetensors")
        save_file(tensors | {name.partition("/")[2]: tensors[known.partition("/")[2]].clone() for name, known in state["aliases"].items() if name.startswith(part + "/")}, folder / f"{part}.safetensors")
    kept = {name: state[name] for name in ("step", "tokens", "seconds", "history", "total", "unchanged_until")}
    digests = {file.name: sha256_of(file) for file in folder.glob("*.safetensors")}
    (folder / "state.json").write_text(json.dumps({"format": 1, **kept, "random": state["random"][0]["torch"], "sha256": digests}))
    (folder / "index.json").unlink()
    assert remains(train(tmp_path, "model", fields))["weights"] == remains(whole)["weights"]


def test_what_cannot_be_right_is_refused_by_name(fields, whole, tmp_path):
    with pytest.raises(Exception, match="killed"):
        train(tmp_path, "model", fields, dies_at=5)
    folder = newest(tmp_path / "model.partial")
    state = storage.read_state(folder)
    tensors = storage.load_tensors(folder, storage.read_index(folder), lambda _, shape, kind: torch.empty(shape, dtype=kind))
    name = next(name for name in tensors if name.startswith("model/") and name.endswith("query.weight"))
    shutil.rmtree(folder)
    storage.save_tensors(folder, tensors | {name: torch.zeros(3, 3)}, state)
    with pytest.raises(DataError, match=r"checkpoint of another model: its .*query.weight is \[3, 3\]"):
        train(tmp_path, "model", fields)
    start = shutil.copytree(fields["model"], tmp_path / "start")
    weights = load_file(start / "model.safetensors")
    name = next(name for name in weights if name.endswith("query.weight"))
    weights[name][0, 0] = float("nan")
    save_file(weights, start / "model.safetensors", {"format": "pt"})
    with pytest.raises(DataError, match="1 values of .*query.weight are not finite"):
        train(tmp_path, "other", {**fields, "model": start})
    content = bytearray((start / "model.safetensors").read_bytes())
    place = content.index(b'"data_offsets":[') + 16
    content[place : place + 1] = b"9"
    (start / "model.safetensors").write_bytes(content)
    with pytest.raises(LubanError, match=r"model.safetensors"):
        train(tmp_path, "lying", {**fields, "model": start})


# ---- behind the steps -------------------------------------------------------------------------------------------------


def test_steps_go_on_while_a_checkpoint_is_written(fields, whole, tmp_path, monkeypatch):
    """The steps do not wait for a disk that takes until step 5 for the checkpoint of step 3, and each checkpoint holds what was when it was taken."""
    passed = threading.Event()
    real = storage.write_tensors

    def slow(path, tensors, note=None, digest=None):
        if path.parent.name == "step-00000003.partial":
            assert passed.wait(60)
        return real(path, tensors, note, digest)

    monkeypatch.setattr(storage, "write_tensors", slow)
    made = train(tmp_path, "model", {**fields, "checkpoint": {"every": "3 steps", "behind": True}}, watch=lambda run: passed.set() if run.step == 5 else None)
    assert passed.is_set() and remains(made) == remains(whole)
    told = [entry["checkpoint"] for entry in map(json.loads, (made.path / "training" / "log.jsonl").read_text().splitlines()) if "checkpoint" in entry]
    assert [set(entry) for entry in told] == [{"bytes", "stall_seconds", "stall_share"}] * 2 and made.metrics["checkpoints"]["saved"] == 2


def test_the_best_weights_are_written_behind_the_steps_and_before_the_checkpoint_that_knows_of_them(fields, tmp_path, monkeypatch):
    """The first best's file waits until two more steps are done; the checkpoint that was asked for after it waits in line."""
    passed, real = threading.Event(), best.replace_tensors
    early = []

    def slow(path, tensors, note):
        assert passed.wait(60)
        real(path, tensors, note)

    def watch(run):
        if run.step == 5 and not passed.is_set():
            early.extend(file.name for file in (*run.folder.glob("best-*"), *retention.saved(run.folder)))
            passed.set()

    chosen = {**fields, "validation": {"every": "3 steps", "share": 0.2, "maximum_examples": 6, "restore_best": True}}
    expected = remains(train(tmp_path, "calm", chosen))
    monkeypatch.setattr(best, "replace_tensors", slow)
    made = train(tmp_path, "model", {**chosen, "checkpoint": {"every": "3 steps", "behind": True}}, watch=watch)
    assert passed.is_set() and early == [] and remains(made) == expected


def test_no_checkpoint_knows_of_best_weights_that_could_not_be_written(fields, tmp_path, monkeypatch):
    def full(path, tensors, note):
        raise from_os_error(OSError(28, "No space left on device"), path)

    monkeypatch.setattr(best, "replace_tensors", full)
    with pytest.raises(LubanError, match=r"best-0000000\d.safetensors: the disk is full"):
        train(tmp_path, "model", {**fields, "validation": {"every": "1 steps", "share": 0.2, "restore_best": True}})
    assert retention.saved(tmp_path / "model.partial" / "training") == []


def test_a_killed_training_has_the_best_weights_that_its_checkpoints_claim(tmp_path):
    """SIGKILL at three places while a slow disk writes best weights and checkpoints; each time whatever a checkpoint claims is there and whole, and at the end nothing is lost."""
    chosen = {**case(tmp_path, "causal"), "length": "12 steps", "validation": {"every": "1 steps", "restore_best": True}, "checkpoint": {"every": "2 steps", "behind": True}}
    expected = remains(train(tmp_path, "calm", chosen))
    training, real, claims = tmp_path / "wild.partial" / "training", best.replace_tensors, []

    def slow(path, tensors, note):
        time.sleep(0.05)
        real(path, tensors, note)

    for last in (3, 6, 9):
        if not (child := os.fork()):
            best.replace_tensors = slow
            train(tmp_path, "wild", chosen, watch=lambda run, last=last: os.kill(os.getpid(), signal.SIGKILL) if run.step >= last else None)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        for folder in retention.saved(training):
            step = checkpoints._state_of(folder)["history"]["best_step"]
            with safe_open(training / f"best-{step:08d}.safetensors", "pt") as file:
                assert file.metadata()["sha256"] == best._digest({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
            claims.append(step)
    assert len(set(claims)) > 2 and remains(train(tmp_path, "wild", chosen)) == expected


def test_what_fails_behind_the_steps_is_not_lost(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(storage, "write_index", lambda *_: (_ for _ in ()).throw(ZeroDivisionError("planted")))
    with pytest.raises(ZeroDivisionError, match="planted"):
        train(tmp_path, "model", {**fields, "length": "40 steps"})


def test_a_signal_waits_for_what_is_being_written(fields, whole, tmp_path):
    def asks(run):
        if run.step == 4:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 4 of 6"):
        train(tmp_path, "model", fields, watch=asks)
    assert [folder.name for folder in retention.saved(tmp_path / "model.partial" / "training")] == ["step-00000003", "step-00000004"]
    made = train(tmp_path, "model", fields)
    assert [folder.name for folder in retention.saved(made.path / "training")] == ["step-00000003", "step-00000006"]  # the one between is not kept
    assert remains(made) == remains(whole)


# ---- a disk without room ----------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path):
    """A folder with room for one checkpoint and a model, and what limits it: a file system of that size, or where none can be mounted the largest size of a file."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1100k", "tmpfs", str(folder)], capture_output=True).returncode == 0:
        yield folder
        subprocess.run(["umount", "-l", str(folder)], check=True)
        return
    former, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    def limit(on: bool) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000 if on else former[0], former[1]))

    class Limited(type(folder)):
        limits = staticmethod(limit)

    yield Limited(folder)
    limit(False)
    signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("foreseen", [True, False])
def test_a_full_disk_is_said_and_the_run_goes_on(fields, whole, small_disk, monkeypatch, capsys, foreseen):
    if not foreseen:  # as with a quota, or another writer on the same disk
        monkeypatch.setattr(Checkpointer, "_has_room", lambda *_, **__: True)
    limited = getattr(small_disk, "limits", None)

    def watch(run):
        if limited:
            limited(run.step >= 4)

    made = train(small_disk, "model", {**fields, "regularization": {}, "checkpoint": {"every": "2 steps"}}, watch=watch)
    said = " ".join(capsys.readouterr().err.split())
    assert "the run goes on, its last checkpoint is that of step" in said
    assert made.metrics["steps"] == 6 and made.metrics["checkpoints"]["skipped"] > 0
    kept = retention.saved(made.path / "training")
    assert kept and all(checkpoints._state_of(folder) for folder in kept) and not list(made.path.glob("training/checkpoints/*.partial"))


def test_a_full_disk_when_the_state_must_be_saved_is_an_error(fields, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000})())

    def asks(run):
        run.stop_wish = "SIGTERM" if run.step == 4 else ""

    with pytest.raises(LubanError, match="the disk is full: step 4 could not be saved"):
        train(tmp_path, "model", fields, watch=asks)


# ---- when, and what stays ---------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=30)
@given(cost=some.floats(0.1, 100), failures=some.floats(1e4, 1e6), step=some.floats(1e-2, 1.0))
def test_the_interval_loses_the_least_time(cost, failures, step):
    """Against the loss itself, what saving takes plus half an interval a failure, a tenth longer and shorter."""
    cadence = retention.Cadence(0, 10**9, failures)
    cadence.settle(1e-3 * cost, cost, step)

    def lost(steps: float) -> float:
        return 1.001 * cost / (steps * step) + steps * step / (2 * failures)

    assert lost(cadence.every) <= min(lost(cadence.every * 1.1), lost(cadence.every / 1.1))


def test_bounds_of_the_interval_and_ephemeral_ones():
    cadence = retention.Cadence(0, 1000, 3600.0, ephemeral_seconds=5.0)
    assert cadence.every == 100  # nothing is measured yet
    assert cadence.settle(0.5, 0.5, 1.0) == [85, 5]
    assert cadence.settle(0.1, 50.0, 1.0) == [100, 5]  # a tenth of the run
    assert cadence.settle(50.0, 50.0, 1.0) == [5000, 5]  # the loop stands still for a hundredth of the time at most
    cadence.take([10, 3])
    due = []
    for step in range(1, 31):
        if kind := cadence.due(step):
            cadence.saved(step, kind)
            due.append((step, kind))
    assert [step for step, kind in due if kind == "regular"] == [10, 20, 30] and [step for step, kind in due if kind == "ephemeral"] == [3, 6, 9, 13, 16, 19, 23, 26, 29]


@settings(deadline=None, max_examples=30)
@given(steps=some.lists(some.integers(1, 60), unique=True, min_size=1), ephemeral=some.sets(some.integers(1, 60)), keep=some.integers(1, 4), every=some.sampled_from([0, 7, 10]))
def test_what_stays(tmp_path_factory, steps, ephemeral, keep, every):
    folder = tmp_path_factory.mktemp("kept")
    for step in sorted(steps):
        one = folder / "checkpoints" / f"step-{step:08d}"
        one.mkdir(parents=True)
        (one / "state.json").write_text(json.dumps({"kind": "ephemeral" if step in ephemeral else "regular", "history": {"best_step": step // 2}}))
    retention.prune(folder, keep, every, {33})
    left = {retention.number_of(one) for one in retention.saved(folder)}
    regular = sorted(set(steps) - ephemeral)
    assert left == {step for step in steps if step == max(steps) or step in regular[-keep:] or step == 33 or (every and step % every == 0)}
    assert retention.best_steps(folder) == {step // 2 for step in left} and not list(folder.rglob("*.aside"))
