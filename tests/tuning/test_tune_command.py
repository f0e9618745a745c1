"""`luban tune` as a process: killed with -9, stopped with Ctrl-C, shared between tuners, and taken up again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from click.testing import CliRunner
from tuning_lab import sorter, trainer, trials_of

from luban.cli.main import cli
from luban.tuning.trial import Order
from luban.tuning.workers import Processes

RATES = {"optimizer": {"learning_rate": {"search": [1e-5, 1e-2], "scale": "log"}}, "length": "60 steps", "validation": {"every": "20 steps", "share": 0.3}}


def command(path: Path, *given: str) -> list[str]:
    return [sys.executable, "-m", "luban", "--language", "en", "tune", str(path), *given]


def started(path: Path, *given: str) -> subprocess.Popen:
    return subprocess.Popen(command(path, *given), stderr=subprocess.PIPE, text=True)


def wait_for_checkpoint(run: Path, process: subprocess.Popen, number: str = "*") -> None:
    """Until a trial that runs has saved once."""
    deadline = time.monotonic() + 120
    while not list(run.glob(f"tune/trials/{number}/base.partial/training/checkpoints/step-????????/state.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)


def test_the_spaces_are_shown_and_nothing_is_done(tmp_path, capfd):
    path = sorter(tmp_path, {"words": {"search": [1, 3]}, "model": {"choice": ["logistic", "centroid"]}})
    result = CliRunner().invoke(cli, ["tune", str(path), "--dry-run"])
    assert result.exit_code == 0 and not (tmp_path / "runs").exists()
    said = capfd.readouterr().err + result.output
    for words in ("sorter.linear.words", "1 … 3", "logistic, centroid", "maximize accuracy of sorter"):
        assert words in said


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_a_killed_search_continues_its_running_trials_and_repeats_none(tmp_path, jobs):
    path = trainer(tmp_path, {"trials": 3, "metric": "loss"}, **RATES)
    run = tmp_path / "runs/small"
    process = started(path, "--jobs", jobs)
    wait_for_checkpoint(run, process, "00001")
    process.kill()  # SIGKILL: nothing of it can clean up
    process.communicate()
    finished = {trial["number"] for trial in trials_of(run) if trial["state"] == "complete"} if (run / "tune/trials.json").exists() else set()
    left = [folder.parent.name for folder in run.glob("tune/trials/*/base.partial")]
    ran = subprocess.run(command(path, "--jobs", jobs), capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    parts = trials_of(run)
    assert [trial["state"] for trial in parts] == ["complete"] * 3
    if jobs == "1":  # several at a time know less of each other when they are drawn
        subprocess.run(command(path, "--out", str(tmp_path / "whole")), check=True, capture_output=True)
        whole = trials_of(tmp_path / "whole")
        assert [(trial["values"], trial["value"]) for trial in parts] == [(trial["values"], trial["value"]) for trial in whole]
    outputs = {folder.name: (folder / "output.txt").read_text(encoding="utf-8") for folder in run.glob("tune/trials/*")}
    assert "00001" in left and "continuing at step" in outputs["00001"]
    assert all(outputs[f"{number:05d}"].count("base (train)") == 1 for number in finished)


@pytest.mark.slow
@pytest.mark.parametrize(("jobs", "number"), [("1", signal.SIGINT), ("2", signal.SIGTERM)])
def test_ctrl_c_saves_and_names_the_command_that_continues(tmp_path, jobs, number):
    path = trainer(tmp_path, {"trials": 3, "metric": "loss"}, **{**RATES, "length": "400 steps"})
    process = started(path, "--jobs", jobs)
    wait_for_checkpoint(tmp_path / "runs/small", process)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 75, said
    assert f"luban tune {path} tune.jobs={jobs} continues" in said and "Traceback" not in said
    ran = subprocess.run(command(path), capture_output=True, text=True)  # which of the trials was at work hangs on the machine
    assert ran.returncode == 0 and re.search(r"trial \d is taken up where it was left", ran.stderr), ran.stderr
    assert [trial["state"] for trial in trials_of(tmp_path / "runs/small")] == ["complete"] * 3


@pytest.mark.slow
def test_two_tuners_share_one_sql_store(tmp_path):
    path = sorter(tmp_path, {"regularisation": {"search": [0.01, 100.0], "scale": "log"}}, trials=6, storage=f"sqlite:///{tmp_path}/trials.db")
    both = [started(path) for _ in range(2)]
    said = [process.communicate(timeout=120)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    trials = trials_of(tmp_path / "runs/reviews")
    assert [trial["number"] for trial in trials] == list(range(6)) and all(trial["state"] == "complete" for trial in trials)
    assert sum(text.count("✓ trial") for text in said) == 6  # each trial was run by one of them
    assert not os.path.exists(tmp_path / "runs/reviews/tune/study.journal")


def test_a_trial_that_is_stopped_before_it_can_hear_has_not_failed():
    workers = Processes(1)
    workers.start(Order(**{**{name: None for name in Order.__dataclass_fields__}, "number": 3}))  # its process is still loading
    workers.stop()
    assert workers.wait().state == "interrupted"
    workers.close()
