"""The runner does what is missing or stale, continues where it was stopped, and loses nothing."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from tiny import tiny_recipe, write_text

from luban.foundation.artifacts import open_artifact
from luban.foundation.errors import ConfigError, DataError, LockedError
from luban.pipeline.inventory import inventory, remove
from luban.pipeline.recipe import read_recipe
from luban.pipeline.runner import plan, run_recipe

SLOW = """
import pathlib, time
def nap(run):
    while (pathlib.Path(__file__).parent / "hold").exists():
        time.sleep(0.02)
    if (pathlib.Path(__file__).parent / "slow").exists():
        time.sleep(0.15)
"""


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A folder with a tiny recipe that was run."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "slow.py").write_text(SLOW, encoding="utf-8")
    save(folder, tiny_recipe(folder, callbacks=["slow.py:nap"]))
    run_recipe(read_recipe(folder))
    return folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    """A copy of it to change: it also shows that a moved run keeps working."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


def save(folder: Path, recipe: dict) -> None:
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")


def statuses(folder: Path, *overrides: str) -> dict[str, str]:
    return {step.stage.name: step.status for step in plan(read_recipe(folder, list(overrides)))}


def out_of(folder: Path) -> Path:
    return next((folder / "runs").iterdir())


def weights(folder: Path, stage: str = "base") -> bytes:
    return (out_of(folder) / stage / "model.safetensors").read_bytes()


def test_a_second_run_does_nothing_even_when_moved(run):
    before = {path: path.stat().st_mtime_ns for path in out_of(run).rglob("*.safetensors")}
    assert set(statuses(run).values()) == {"fresh"}
    run_recipe(read_recipe(run))
    assert before == {path: path.stat().st_mtime_ns for path in out_of(run).rglob("*.safetensors")}


def test_only_what_is_stale_is_done_again(run):
    assert statuses(run, "base.optimizer.learning_rate=5e-3") == {"corpus": "fresh", "tokenizer": "fresh", "tokens": "fresh", "base": "stale"}
    assert set(statuses(run, "base.track.every=1", "base.checkpoint.keep=5").values()) == {"fresh"}, "machine fields make nothing stale"
    assert statuses(run, "tokenizer.vocabulary_size=310")["corpus"] == "fresh"
    assert statuses(run, "tokenizer.vocabulary_size=310")["base"] == "stale"
    assert set(statuses(run, "seed=4").values()) == {"stale"}


def test_changed_data_is_stale(run):
    with (run / "text.txt").open("a", encoding="utf-8") as stream:
        stream.write("\n\nthe lord of the night shall love the queen and the sword.")
    assert set(statuses(run).values()) == {"stale"}


def test_going_back_takes_the_old_artifact_back(run):
    first = weights(run)
    run_recipe(read_recipe(run, ["base.length=2 steps", "base.optimizer.learning_rate=5e-3"]))
    assert weights(run) != first
    assert statuses(run)["base"] == "restore"
    run_recipe(read_recipe(run))
    assert weights(run) == first


def test_clean_removes_only_what_is_stale(run):
    run_recipe(read_recipe(run, ["base.length=2 steps", "base.optimizer.learning_rate=5e-3"]))
    states = [(item.name, item.state) for item in inventory(out_of(run))]
    assert [name for name, state in states if state == "ready"] == ["corpus", "tokenizer", "tokens", "base"]
    stale = [item for item in inventory(out_of(run)) if item.state == "stale"]
    assert len(stale) == 1
    assert remove(stale) > 0
    assert statuses(run, "base.length=2 steps", "base.optimizer.learning_rate=5e-3")["base"] == "fresh"


def test_manifest_holds_lineage_config_and_cost(run):
    manifest = open_artifact(out_of(run) / "base").manifest
    assert manifest["inputs"]["data"][0]["name"] == "tokens"
    assert manifest["inputs"]["data"][0]["fingerprint"] == open_artifact(out_of(run) / "tokens").fingerprint
    assert manifest["resolved"]["optimizer"]["learning_rate"] == 1e-2
    assert manifest["resolved"]["shape"]["vocabulary_size"] == 300
    assert manifest["seed"] == 3
    for key in ("versions", "machine", "cost", "seconds", "started", "licences", "metrics", "fingerprint", "code_version"):
        assert key in manifest
    assert str(run) not in json.dumps(manifest["config"])


def luban_run(folder: Path, *more: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "luban", "--language", "en", "run", str(folder), *more], stderr=subprocess.PIPE, text=True)


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def start_slowly(folder: Path) -> subprocess.Popen:
    """Begin training again, with steps long enough to be hit."""
    shutil.rmtree(out_of(folder) / "base")
    (folder / "slow").touch()
    return luban_run(folder)


def test_a_killed_run_continues_to_the_same_bits(run):
    expected = weights(run)
    expected_log = deterministic_log(run)
    process = start_slowly(run)
    checkpoints = out_of(run) / "base.partial" / "training" / "checkpoints"
    wait_for(lambda: list(checkpoints.glob("step-????????")))
    process.kill()
    process.communicate()
    assert statuses(run)["base"] == "continue"
    (run / "slow").unlink()
    resumed = luban_run(run)
    message = resumed.communicate()[1]
    assert resumed.returncode == 0, message
    assert "continuing at step" in message
    assert weights(run) == expected
    assert deterministic_log(run) == expected_log


def deterministic_log(folder: Path) -> list[tuple]:
    entries = [json.loads(line) for line in (out_of(folder) / "base" / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    return [(entry["step"], entry.get("loss"), entry.get("gradient_norm"), entry.get("validation")) for entry in entries]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_asks_to_be_run_again(run, number):
    expected = weights(run)
    process = start_slowly(run)
    wait_for(lambda: (out_of(run) / "base.partial" / "training" / "log.jsonl").exists() and len((out_of(run) / "base.partial" / "training" / "log.jsonl").read_text().splitlines()) > 2)
    os.kill(process.pid, number)
    message = process.communicate()[1]
    assert process.returncode == 75, message
    assert "everything is saved" in message and "Traceback" not in message
    run_recipe(read_recipe(run))
    assert weights(run) == expected


def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(run, capsys):
    expected = weights(run)
    process = start_slowly(run)
    checkpoints = out_of(run) / "base.partial" / "training" / "checkpoints"
    wait_for(lambda: len(list(checkpoints.glob("step-????????"))) >= 2)
    process.kill()
    process.communicate()
    newest = sorted(checkpoints.glob("step-????????"))[-1] / "model.safetensors"
    content = bytearray(newest.read_bytes())
    content[-3] ^= 1
    newest.write_bytes(content)
    run_recipe(read_recipe(run))
    assert "is damaged" in capsys.readouterr().err
    assert weights(run) == expected


def test_two_runs_in_one_folder_are_refused(run):
    process = start_slowly(run)
    wait_for(lambda: (out_of(run) / "base.partial").exists())
    with pytest.raises(LockedError, match="is in use by process"):
        run_recipe(read_recipe(run))
    process.kill()
    process.communicate()


def test_a_longer_run_continues_where_the_schedule_allows(tmp_path):
    recipe = tiny_recipe(tmp_path, schedule={"shape": "constant", "warmup": "2 steps"})
    save(tmp_path, recipe)
    run_recipe(read_recipe(tmp_path, ["base.length=24 steps"]))
    straight = weights(tmp_path)
    shutil.rmtree(out_of(tmp_path) / "base")
    run_recipe(read_recipe(tmp_path))
    assert statuses(tmp_path, "base.length=24 steps")["base"] == "grow"
    assert statuses(tmp_path, "base.length=6 steps")["base"] == "fresh"
    run_recipe(read_recipe(tmp_path, ["base.length=24 steps"]))
    assert weights(tmp_path) == straight
    steps = [entry[0] for entry in deterministic_log(tmp_path) if entry[1] is not None]
    assert steps == list(range(1, 25))


def test_a_run_that_decayed_grows_from_before_its_decay(tmp_path):
    recipe = tiny_recipe(tmp_path, schedule={"shape": "warmup_stable_decay", "warmup": "2 steps"})
    save(tmp_path, recipe)
    run_recipe(read_recipe(tmp_path, ["base.length=24 steps"]))
    straight = weights(tmp_path)
    shutil.rmtree(out_of(tmp_path) / "base")
    run_recipe(read_recipe(tmp_path))
    run_recipe(read_recipe(tmp_path, ["base.length=24 steps"]))
    assert weights(tmp_path) == straight


def test_cosine_is_trained_again_when_its_length_grows(run):
    run_recipe(read_recipe(run, ["base.length=14 steps"]))
    assert open_artifact(out_of(run) / "base").metrics["steps"] == 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["bsae.length=2 steps"], "did you mean base"),
        (["base.lenght=2 steps"], "did you mean length"),
        (["base.num_train_epochs=3"], 'length: "3 epochs"'),
        (["base.kind=trian"], "did you mean train"),
        (["base.data=tokenss"], "did you mean tokens"),
        (["luban=99"], "upgrade Luban"),
        (["stages=3"], "stages"),
    ],
)
def test_mistakes_in_a_recipe(run, change, message):
    with pytest.raises(ConfigError, match=message):
        read_recipe(run, change)


def test_a_missing_input_is_named(run):
    (run / "text.txt").unlink()
    with pytest.raises(DataError, match="text.txt"):
        list(plan(read_recipe(run)))


def test_a_disk_that_is_full_for_a_while_costs_a_checkpoint_and_no_more(run, monkeypatch, capsys):
    import luban.training.storage as storage

    expected = weights(run)
    shutil.rmtree(out_of(run) / "base")
    real = storage.write_tensors

    def full(path, tensors, note=None, digest=None):
        if "step-00000006" in str(path):
            raise OSError(28, "No space left on device")
        return real(path, tensors, note, digest)

    monkeypatch.setattr(storage, "write_tensors", full)
    run_recipe(read_recipe(run))
    said = " ".join(capsys.readouterr().err.split())
    assert "the disk is full" in said and "the run goes on, its last checkpoint is that of step 3" in said
    assert weights(run) == expected


def test_a_second_run_can_wait(run):
    (run / "hold").touch()
    process = start_slowly(run)
    wait_for(lambda: (out_of(run) / "base.partial").exists())
    second = luban_run(run, "--wait")
    assert "waiting for process" in second.stderr.readline()
    (run / "slow").unlink()
    (run / "hold").unlink()
    assert process.communicate() and process.returncode == 0
    message = second.communicate()[1]
    assert second.returncode == 0 and "up to date" in message


def test_a_corpus_is_enough_to_train_on(tmp_path):
    recipe = tiny_recipe(tmp_path)
    for name in ("tokenizer", "tokens"):
        del recipe["stages"][name]
    recipe["stages"]["base"]["data"] = "corpus"
    save(tmp_path, recipe)
    assert list(read_recipe(tmp_path).stages) == ["corpus", "base-tokenizer", "base-tokens", "base"]


def test_implied_stages(tmp_path):
    write_text(tmp_path)
    save(tmp_path, {"stages": {"model": {"kind": "train", "data": "text.txt", "depth": 1}}})
    recipe = read_recipe(tmp_path)
    assert [(stage.name, stage.kind.name) for stage in recipe.stages.values()] == [("model-corpus", "curate"), ("model-tokenizer", "train_tokenizer"), ("model-tokens", "encode"), ("model", "train")]
