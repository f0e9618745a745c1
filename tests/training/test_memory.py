"""Memory that runs out for real: a limit of the system's is set, and the step asks for more."""

from __future__ import annotations

import json
import resource

import numpy as np
import pytest
import torch
from guard_lab import Child, train

from luban.foundation.artifacts import Work
from luban.foundation.config import build
from luban.foundation.errors import LubanError
from luban.foundation.hardware import resident_bytes
from luban.training import probe
from luban.training.config import TrainConfig
from luban.training.memory import account, advice, is_out_of_memory, limit_bytes

LIMITS = """
import pathlib, resource
held = []
def data():
    with open("/proc/self/status") as stream:
        return next(int(line.split()[1]) * 1024 for line in stream if line.startswith("VmData"))
def limits(run):
    if run.step == 2:
        first = data()
        while data() < first + (8 << 20):  # what other tests left free in the heap is taken
            held.append(bytearray(1 << 20))
        resource.setrlimit(resource.RLIMIT_DATA, (data() + (40 << 20), resource.RLIM_INFINITY))
        run.engine.micro_batch_rows = int(pathlib.Path(__file__).with_name("rows").read_text())
"""
WIDE = {"sequence_length": 64, "batch_tokens": 64 * 512, "length": "3 steps", "micro_batch_rows": 16, "validation": {"every": "100 steps"}, "checkpoint": {"every": "1 steps"}}


def limited(folder, rows: int) -> list[str]:
    (folder / "limits.py").write_text(LIMITS)
    (folder / "rows").write_text(str(rows))
    return [f"{folder / 'limits.py'}:limits"]


def test_running_out_names_what_took_the_memory_and_what_to_change(tmp_path, tokens):
    child = Child(tokens, tmp_path / "out", callbacks=limited(tmp_path, 512), **WIDE)
    message = child.end()
    assert child.returncode == 1 and "Traceback" not in message, message
    assert "out of memory in step 3" in message and "activations" in message and "micro_batch_rows: 256" in message and "512 rows" in message
    assert message.index("activations") < message.index("weights"), "the largest comes first"
    again = Child(tokens, tmp_path / "out", callbacks=limited(tmp_path, 16), **WIDE)
    assert "continuing at step 2" in again.end() and again.returncode == 0


def test_the_account_is_what_the_tensors_hold(tmp_path, tokens):
    seen = {}

    def watch(run):
        seen.update(account(run))
        seen["parameters"] = sum(parameter.numel() for parameter in run.model.parameters())

    from guard_lab import FIXED

    from luban.foundation.kinds import KINDS
    from luban.pipeline.api import one_stage
    from luban.pipeline.runner import run_recipe

    run_recipe(one_stage(KINDS["train"], (tokens,), out=tmp_path / "out", **{**FIXED, "length": "1 steps"}), watch=watch)
    assert seen["weights"] == seen["gradients"] == 4 * seen["parameters"]
    assert seen["optimizer"] == pytest.approx(8 * seen["parameters"], rel=0.01)  # two moments, and a counter for each parameter
    assert seen["activations"] > 0 and seen["logits"] > 0


def test_every_kind_of_running_out_is_recognised():
    with pytest.raises(RuntimeError) as of_torch:
        torch.empty(1 << 60)
    with pytest.raises(MemoryError) as of_numpy:
        np.empty(1 << 60, np.uint8)
    assert is_out_of_memory(of_torch.value) and is_out_of_memory(of_numpy.value) and is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert is_out_of_memory(OSError(12, "Cannot allocate memory")) and not is_out_of_memory(RuntimeError("shapes")) and not is_out_of_memory(OSError(2, "no such file"))
    assert 0 < resident_bytes() < limit_bytes()


@pytest.mark.parametrize("largest", ["activations", "logits", "optimizer", "gradients", "weights", "average"])
def test_advice_begins_with_what_is_largest_and_can_be_written(largest):
    config = build(TrainConfig, {"data": "x", "sequence_length": 64, "batch_tokens": 128})
    said = advice(largest, config, 8)
    assert said and len(said) == len(set(said))
    import yaml

    for text in said:
        config.updated(**yaml.safe_load(text))
    assert {"activations": "micro_batch_rows", "logits": "micro_batch_rows", "optimizer": "optimizer", "gradients": "engine", "weights": "weights", "average": "regularization"}[largest] in said[0]


@pytest.mark.parametrize(("fits", "most"), [(1, 64), (7, 64), (63, 64), (64, 64), (1000, 4096), (3, 3), (1, 1)])
def test_the_search_finds_the_largest_that_fits(tmp_path, monkeypatch, fits, most):
    """Memory as it is: a part that stays, and so much a row."""
    tried = []

    def trial(config, work, rows, limit):
        tried.append(rows)
        return {"peak": 1000 + 10 * rows, "parts": {}} if rows <= fits else {}

    monkeypatch.setattr(probe, "_try", trial)
    monkeypatch.setattr(probe, "available_bytes", lambda: (1000 + 10 * fits + 5) / probe.SHARE)
    found = probe.fitting_rows(build(TrainConfig, {"data": "x", "sequence_length": 64}), Work(tmp_path, {}), most)
    assert found <= fits and found >= fits - max(1, fits // 16) and len(tried) <= probe.TRIALS


def test_where_nothing_fits_it_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(probe, "_try", lambda *_: {})
    with pytest.raises(LubanError, match="not even one row of 64 tokens"):
        probe.fitting_rows(build(TrainConfig, {"data": "x", "sequence_length": 64}), Work(tmp_path, {}), 8)


@pytest.mark.long
def test_trials_in_real_processes_under_a_real_limit(tmp_path, tokens, monkeypatch):
    """Two trials around a limit: what fits trains, what does not is no error; and the fitted run learns the same bits as any other cutting of its steps."""
    fields = {**WIDE, "batch_tokens": 64 * 16384, "micro_batch_rows": "fit", "length": "1 steps"}
    known, real = {}, probe._try

    def remembered(config, work, rows, limit):
        known[rows] = real(config, work, rows, limit)
        return known[rows]

    monkeypatch.setattr(probe, "_try", remembered)
    monkeypatch.setattr(probe, "available_bytes", lambda: (1200 << 20) / probe.SHARE)
    artifact = train(tmp_path, tokens, **fields)
    rows = json.loads((artifact.path / "training" / "choices.json").read_bytes())["micro_batch_rows"]
    assert known[rows] and 16 < rows < 16384 and min(tried for tried, peak in known.items() if not peak) > rows
    assert artifact.metrics["tokens"] == 64 * 16384
    assert resource.getrlimit(resource.RLIMIT_DATA)[0] == resource.RLIM_INFINITY, "the limit was the child's"
