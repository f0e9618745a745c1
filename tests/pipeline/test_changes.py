"""A half-done training whose settings or data change, and a training that branches from the checkpoint of another."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import tiny_recipe

import luban
from luban.foundation.artifacts import open_artifact
from luban.foundation.config import Source
from luban.foundation.errors import ConfigError, DataError
from luban.pipeline.recipe import make_recipe
from luban.pipeline.runner import plan

CONSTANT = {"shape": "constant", "warmup": "2 steps"}
DIES = "def dies(run):\n    if run.step == 7:\n        raise SystemError('killed')\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """A recipe whose training, of nine steps, is done."""
    folder = tmp_path_factory.mktemp("made")
    luban.run(recipe(folder, length="9 steps", schedule=CONSTANT), out=folder / "run")
    return folder


def recipe(folder: Path, **train) -> dict:
    made = tiny_recipe(folder, **train)
    made["stages"]["corpus"]["sources"] = str(folder / "text.txt")
    return made


def half(made: Path, folder: Path, **train) -> dict:
    """A copy of the run, killed in its training after the checkpoint of step 6."""
    shutil.copytree(made, folder, dirs_exist_ok=True)
    shutil.rmtree(folder / "run" / "base")
    (folder / "dies.py").write_text(DIES)
    given = {"length": "9 steps", "schedule": CONSTANT, "callbacks": [f"{folder / 'dies.py'}:dies"], **train}
    with pytest.raises(Exception, match="killed"):
        luban.run(recipe(folder, **given), out=folder / "run")
    (folder / "dies.py").write_text("def dies(run):\n    pass\n")
    return given


def test_a_change_under_a_half_done_training_is_refused_by_name_and_accepted_by_name(made, tmp_path):
    given = half(made, tmp_path)
    changed = recipe(tmp_path, **{**given, "optimizer": {"learning_rate": 1e-3}})
    with pytest.raises(ConfigError, match=r"optimizer.learning_rate \(0.01 → 0.001\)(.|\n)*--restart(.|\n)*--accept-change"):
        luban.run(changed, out=tmp_path / "run")
    steps = {step.stage.name: (step.status, step.reason) for step in plan(make_recipe(changed, Path("."), "recipe", Source(), tmp_path / "run"))}
    assert steps["base"] == ("changed", "optimizer.learning_rate (0.01 → 0.001), callbacks changed")
    artifact = luban.run(changed, out=tmp_path / "run", change="accept")[-1]
    log = [json.loads(line) for line in (artifact.path / "training" / "log.jsonl").read_text().splitlines()]
    rates = {entry["step"]: entry["learning_rate"] for entry in log if "learning_rate" in entry}
    assert rates[6] == pytest.approx(1e-2) and rates[7] == pytest.approx(1e-3) and artifact.manifest["accepted_changes"] == [steps["base"][1]]


def test_another_length_under_a_half_done_training_loses_nothing(made, tmp_path):
    given = half(made, tmp_path, schedule={"shape": "cosine", "warmup": "2 steps"})
    (tmp_path / "dies.py").write_text(DIES)  # as it was
    checkpoints = tmp_path / "run" / "base.partial" / "training" / "checkpoints"
    for length in ("12 steps", "8 steps"):
        with pytest.raises(ConfigError, match=rf"length \(9 steps → {length}\)(.|\n)*--restart(.|\n)*--accept-change"):
            luban.run(recipe(tmp_path, **{**given, "length": length}), out=tmp_path / "run")
    assert [folder.name for folder in checkpoints.glob("step-*")] == ["step-00000003", "step-00000006"]
    with pytest.raises(Exception, match="killed"):
        luban.run(recipe(tmp_path, **{**given, "length": "12 steps"}), out=tmp_path / "run", change="restart")
    assert len(list((tmp_path / "run" / ".previous").glob("base-*.1.partial/training/checkpoints/step-00000006"))) == 1
    (tmp_path / "dies.py").write_text("def dies(run):\n    pass\n")
    artifact = luban.run(recipe(tmp_path, **{**given, "length": "8 steps"}), out=tmp_path / "run", change="accept")[-1]
    assert artifact.metrics["steps"] == 8 and "length (12 steps → 8 steps)" in artifact.manifest["accepted_changes"][0]


def test_a_length_that_checkpoints_are_beyond_is_an_error_and_loses_nothing(made, tmp_path):
    given = half(made, tmp_path)
    (tmp_path / "dies.py").write_text(DIES)  # as it was
    with pytest.raises(ConfigError, match="step-00000006 is of a training of 9 steps, and one of 2 steps cannot go on from it(.|\n)*set length back"):
        luban.run(recipe(tmp_path, **{**given, "length": "2 steps"}), out=tmp_path / "run")
    assert (tmp_path / "run" / "base.partial" / "training" / "checkpoints" / "step-00000006").exists()


def test_changed_data_is_refused_and_begun_anew_when_asked_to(made, tmp_path):
    given = half(made, tmp_path)
    (tmp_path / "dies.py").write_text(DIES)  # as it was
    text = (tmp_path / "text.txt").read_text(encoding="utf-8")
    other = recipe(tmp_path, **given)
    (tmp_path / "text.txt").write_text(text.replace("king", "queen"), encoding="utf-8")
    with pytest.raises(ConfigError, match="base is half trained, and its recipe is not what it was: data changed"):
        luban.run(other, out=tmp_path / "run")
    with pytest.raises(Exception, match="killed"):
        luban.run(other, out=tmp_path / "run", change="restart")
    assert list((tmp_path / "run" / ".previous").glob("base-*.partial"))


def test_the_decay_branches_from_a_checkpoint_to_the_bits_of_one_run(made, tmp_path):
    schedule = {"shape": "warmup_stable_decay", "warmup": "2 steps", "decay_share": 0.25}
    fields = recipe(made)["stages"]["base"]
    fields.pop("kind"), fields.pop("shape")
    shape = recipe(made)["stages"]["base"]["shape"]
    straight = luban.train(out=tmp_path / "straight", seed=3, **{**fields, "data": made / "run" / "tokens", "shape": shape, "length": "12 steps", "schedule": schedule})
    more = {**fields, "data": made / "run" / "tokens", "model": made / "run" / "base", "length": "12 steps", "schedule": schedule}
    branched = luban.train(out=tmp_path / "branched", seed=3, from_step=9, **more)
    one, other = (load_file(artifact.path / "model.safetensors") for artifact in (straight, branched))
    assert one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
    assert open_artifact(tmp_path / "branched").metrics["steps"] == 12
    with pytest.raises(DataError, match="no checkpoint of step 8; it has: 6, 9"):
        luban.train(out=tmp_path / "none", seed=3, from_step=8, **more)
    with pytest.raises(ConfigError, match="leaves no step to do"):
        luban.train(out=tmp_path / "short", seed=3, from_step=9, **{**more, "length": "9 steps"})
