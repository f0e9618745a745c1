"""What is measured before step one: it leaves nothing behind, is written down and replayed, and gives way to the recipe, to strict determinism and to a missing compiler."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest
import torch
from resume_lab import FIXED, case, remains, train

from luban.foundation.artifacts import open_artifact
from luban.models.families import build_model
from luban.models.presets import preset
from luban.objectives import losses
from luban.tokens.batch import Batch
from luban.training import compiling, rehearsal


@pytest.fixture
def fields(tmp_path):
    """A training that is measured: with dropout, so that it draws random numbers."""
    given = case(tmp_path, "causal")
    return {**given, "shape": {**given["shape"], "architecture": "gpt2"}, "determinism": "auto", "length": "6 steps", "regularization": {"dropout": 0.1}, "validation": {"every": "100 steps"}}


def choices(artifact) -> dict:
    return json.loads((artifact.path / "training" / "choices.json").read_bytes())


def test_measuring_leaves_no_trace(fields, tmp_path, monkeypatch, capsys):
    """Passes of the first micro-batch and both forms of the loss, and then the bits of a run that measured nothing."""
    said = train(tmp_path, "said", {**fields, "compile": False, "cross_entropy": "chunked"})
    monkeypatch.setattr(compiling, "SLOWEST", 1e9)  # as if this might be a long run
    monkeypatch.setattr(rehearsal, "WORTH_A_LOOK", 1)
    monkeypatch.setattr(rehearsal, "CLEARLY", 0.0)
    capsys.readouterr()
    measured = train(tmp_path, "measured", fields)
    printed = capsys.readouterr().err
    assert "compile: false (compiling would take some 28" in printed and "cross_entropy: chunked (measured: plain" in printed
    assert remains(measured) == remains(said)
    assert choices(measured)["compile"] is False and choices(measured)["cross_entropy"] == "chunked"


def test_the_faster_form_is_taken_and_a_run_that_goes_on_keeps_it(fields, tmp_path, monkeypatch):
    """Killed after the choice, it goes on with what was chosen, though a new measurement would say the opposite."""
    monkeypatch.setattr(rehearsal, "WORTH_A_LOOK", 1)
    monkeypatch.setattr(rehearsal, "CLEARLY", float("inf"))
    if not (child := os.fork()):
        train(tmp_path, "model", fields, watch=lambda run: os.kill(os.getpid(), signal.SIGKILL) if run.step >= 4 else None)
        os._exit(1)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    monkeypatch.setattr(rehearsal, "CLEARLY", 0.0)
    forms = []
    again = train(tmp_path, "model", fields, watch=lambda run: forms.append(run.model.cross_entropy))
    assert set(forms) == {"plain"} and choices(again)["cross_entropy"] == "plain"
    assert remains(again) == remains(train(tmp_path, "said", {**fields, "cross_entropy": "plain", "compile": False}))


def test_strict_determinism_measures_nothing(fields, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rehearsal.Rehearsal, "__init__", lambda *_: pytest.fail("something was measured"))
    monkeypatch.setattr(compiling, "SLOWEST", 1e9)
    monkeypatch.setattr(rehearsal, "WORTH_A_LOOK", 1)
    made = train(tmp_path, "model", {**fields, "determinism": "strict"})
    assert "compile: false (determinism: strict" in capsys.readouterr().err
    assert choices(made)["compile"] is False and choices(made)["cross_entropy"] == "chunked"


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_both_forms_are_one_loss(smoothing):
    model = build_model(preset("tiny").updated(vocabulary_size=50)).initialize(0)
    tokens = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, tokens.roll(1, 1), torch.rand(3, 9), torch.arange(9).expand(3, -1), None, [])
    found = []
    for form in losses.CROSS_ENTROPIES:
        model.cross_entropy = form
        model.zero_grad()
        loss = losses.token_sum(model, batch, smoothing)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert not losses.may_be_plain(model, losses.CHUNK_LOGITS // 50 + 1)


def test_without_a_compiler_it_runs_as_it_is_and_says_so(fields, tmp_path, warm):
    """Real processes whose PATH has no g++: auto goes on, true is refused with what to install."""
    said = {}
    for wanted in ("auto", True):
        recipe = {"name": "plain", "stages": {"model": {"kind": "train", **FIXED, **fields, "data": str(fields["data"]), "compile": wanted, "length": "1 steps"}}}
        (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
        arguments = ["luban", "--language", "en", "run", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / str(wanted))]
        done = warm.run(f"import os, sys\nos.environ['PATH'] = {str(tmp_path)!r}\nsys.argv = {arguments!r}\nfrom luban.cli.main import main\nmain()")
        said[wanted] = " ".join((done.stdout + done.stderr).split())
        assert done.returncode == (2 if wanted is True else 0), said[wanted]
    assert "compile: false (torch.compile needs a C++ compiler (g++), which was not found)" in said["auto"]
    assert "compile: true needs a C++ compiler (g++), which was not found" in said[True] and "apt install g++" in said[True]


def test_kinds_of_blocks_are_counted_once(fields, tmp_path):
    seen = []
    train(tmp_path, "model", {**fields, "length": "1 steps", "shape": {**fields["shape"], "layers": 3}}, watch=lambda run: seen.append(compiling.kinds_of_blocks(run)))
    assert seen == [1]


ALONE = """
import json, os, sys
sys.path[:0] = json.loads(sys.argv[1])
from pathlib import Path
from resume_lab import train
from luban.training import compiling
folder, name, dies_at, margin, fields = Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]), float(sys.argv[5]), json.loads(sys.argv[6])
compiling.MARGIN = margin
train(folder, name, fields, watch=lambda run: os.kill(os.getpid(), 9) if run.step == dies_at else None)
"""


@pytest.mark.long
@pytest.mark.compiler
def test_a_compiled_run_that_was_killed_goes_on_compiled_to_the_same_bits(fields, tmp_path):
    """auto compiles where it pays, writes it down before step one, notes what it took, and the next process does not ask again. Each process is a fresh one: in a process that has compiled before,
    the compiler may choose other code for the same blocks."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor")}

    def alone(name: str, dies_at: int, margin: float, **more) -> int:
        given = json.dumps({**fields, "layers": "torch", "cross_entropy": "chunked", **more}, default=str)
        return subprocess.run([sys.executable, "-c", ALONE, json.dumps(sys.path), str(tmp_path), name, str(dies_at), str(margin), given], env=environment, capture_output=True).returncode

    assert alone("said", -1, 1.0, compile=True) == 0
    record = json.loads((tmp_path / "cache" / "luban" / compiling.RECORD).read_bytes())
    assert len(record) == 1 and next(iter(record.values()))["seconds"] > 0
    assert alone("model", 5, 0.0) == -signal.SIGKILL
    assert alone("model", -1, 1e9) == 0  # a new choice would be: not compiled
    said, again = (open_artifact(tmp_path / name) for name in ("said", "model"))
    assert choices(again)["compile"] is True and remains(again) == remains(said)
