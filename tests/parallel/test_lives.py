"""A run of several processes stops, dies, goes on in another number of them, and says once what is wrong."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import yaml
from tiny import tiny_recipe
from torchrun_lab import CLOSE, differs, ended, luban_run, same_figures, started

import luban


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a recipe whose tokens are made, and the training of one process in `one`."""
    folder = tmp_path_factory.mktemp("ranks")
    recipe = tiny_recipe(folder, batch_tokens=160, micro_batch_rows=1, schedule={"shape": "constant"}, validation={"every": "4 steps"}, checkpoint={"every": "1 steps", "keep": 9})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "own.py").write_text(OWN)
    luban.run(folder / "recipe.yaml", out=folder / "one")
    return folder


OWN = '''
import os, signal, time
from pathlib import Path
def dies(run):
    flag = Path(__file__).with_name("die")
    if flag.exists() and run.step == int(flag.read_text()):
        flag.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
def waits(run):
    time.sleep(0.2)
'''


@pytest.mark.slow
def test_a_run_goes_on_in_another_number_of_processes_and_another_layout(home):
    """One process, then two with shards, then four with replicas, then one: the same documents in the same order, and the same figures."""
    out = started(home, "grown")
    luban.run(home / "recipe.yaml", "base.length=3 steps", out=home / "grown")
    ended(luban_run(2, home, out, "base.length=6 steps", "base.layout.shard=full"))
    ended(luban_run(4, home, out, "base.length=9 steps"))
    luban.run(home / "recipe.yaml", out=home / "grown")
    same_figures(home / "one" / "base", home / "grown" / "base", CLOSE)


@pytest.mark.slow
def test_a_killed_rank_ends_the_run_with_a_message_and_torchrun_starts_it_again(home):
    out = started(home, "killed")
    (home / "die").write_text("7")
    said = ended(luban_run(2, home, out, "base.callbacks=[own.py:dies]", "base.layout.shard=full"), 1)
    assert "rank 1 of 2: error: another process of this run ended without a word" in said
    assert said.count("error: ") == 1
    (home / "die").write_text("10")
    said = ended(luban_run(2, home, out, "base.callbacks=[own.py:dies]", "base.layout.shard=full", restarts=1))
    assert said.count("continuing at step") == 2
    assert differs(home / "one" / "base", home / "killed" / "base") == []


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_after_the_same_step(home):
    out = started(home, "stopped")
    process = luban_run(2, home, out, "base.callbacks=[own.py:waits]")
    log, deadline = home / "stopped" / "base.partial" / "training" / "log.jsonl", time.monotonic() + 120
    while not (log.exists() and log.read_text().count('"loss"') > 2) and time.monotonic() < deadline:
        time.sleep(0.1)
    ranks = [int(found) for found in subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()]
    os.kill(max(ranks), signal.SIGUSR1)
    said = ended(process, 75)
    assert "stopped by SIGUSR1 at step" in said
    luban.run(home / "recipe.yaml", "base.callbacks=[own.py:waits]", out=home / "stopped")
    assert differs(home / "one" / "base", home / "stopped" / "base") == []


@pytest.mark.slow
def test_an_error_of_any_rank_is_said_once_with_its_rank(home):
    out = started(home, "refused")
    said = ended(luban_run(2, home, out, "base.layout.replicas=3", "base.layout.shard=full"), 1)
    assert said.count("error: layout.replicas: 3 with 2 processes") == 1
    assert "Traceback" not in said.partition("torch.distributed")[0].partition("elastic")[0]
