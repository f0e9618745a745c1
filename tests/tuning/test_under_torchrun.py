"""What torchrun cannot start is refused at once, with what to do instead."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from luban.foundation.errors import ConfigError, LubanError
from luban.parallel import ranks
from luban.tuning.comparison import compare
from luban.tuning.lr_find import lr_find
from luban.tuning.tuner import tune


def started(monkeypatch, port: int) -> None:
    for name, value in {"RANK": 1, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}.items():
        monkeypatch.setenv(name, str(value))


@pytest.mark.parametrize(("verb", "start"), [("tune", lambda: tune(None)), ("compare", lambda: compare(Path("r.yaml"), [], [], [])), ("lr-find", lambda: lr_find(None))])
def test_a_search_is_the_work_of_one_process(monkeypatch, verb, start):
    started(monkeypatch, 29500)
    with pytest.raises(ConfigError, match=f"luban {verb} is the work of one process, and 2 were started"):
        start()
    monkeypatch.setenv("WORLD_SIZE", "1")
    with pytest.raises(Exception) as other:  # goes on, to what is not there
        start()
    assert "the work of one process" not in str(other.value)


def test_a_port_that_nobody_knows_is_refused_before_waiting_and_remembered(monkeypatch):
    monkeypatch.setattr(ranks, "_here", None)
    monkeypatch.setattr(ranks, "_unmet", None)
    started(monkeypatch, 0)
    for _ in range(2):
        with pytest.raises(LubanError, match="MASTER_PORT is 0"):
            ranks.here()
    assert ranks.first_to_fail()  # it may say so
    monkeypatch.setattr(ranks.dist, "rendezvous", lambda *given, **named: pytest.fail("it waits again"))
    started(monkeypatch, 29500)
    with pytest.raises(LubanError, match="MASTER_PORT is 0"):
        ranks.here()


@pytest.mark.slow
@pytest.mark.parametrize(("port", "verb", "words"), [("0", ["run"], "MASTER_PORT is 0"), ("29517", ["compare", "--methods", "lora,full"], "luban compare is the work of one process")])
def test_torchrun_itself(tmp_path, port, verb, words):
    """In seconds, without a traceback, and (where the ranks can meet) by one of them."""
    (tmp_path / "recipe.yaml").write_text("stages: {corpus: {kind: curate, sources: x.txt}}\n")
    command = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--master-port", port, "--nproc-per-node", "2", "-m", "luban", "--language", "en", verb[0], "recipe.yaml", *verb[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240, env={**os.environ, "OMP_NUM_THREADS": "1"})
    said = done.stdout + done.stderr
    assert done.returncode and words in said and 'File "/' not in said.partition(words)[0]
    assert said.count(words) == 1 or port == "0"
