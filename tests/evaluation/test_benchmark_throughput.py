"""The benchmark of whole steps: its counts, its table, and that a side takes turns."""

from __future__ import annotations

import os
import subprocess
import sys
from multiprocessing.connection import Listener
from pathlib import Path

import pytest

from benchmarks.throughput.__main__ import interval, table
from benchmarks.throughput.shapes import SHAPES
from benchmarks.throughput.turns import ADDRESS, KEY

ROOT = Path(__file__).resolve().parents[2]


def test_operations_a_token_are_those_of_the_reference_models():
    assert SHAPES["S"].flops_per_token / 1e6 == pytest.approx(45.6, abs=0.1) and SHAPES["S"].tokens == 8192
    assert SHAPES["M"].flops_per_token / 1e6 == pytest.approx(685, abs=1) and SHAPES["M"].tokens == 2048


def test_the_table_gives_ratios_of_the_rounds_with_their_interval():
    found = {"shape": "S", "rates": [2e11] * 3, "sides": {"luban": {"seconds": [2.0, 2.0, 2.2], "ready_seconds": 5}, "trainer": {"seconds": [4.0, 5.0, 4.4], "warm_seconds": 7}}}
    rows = table(found).splitlines()[2:]
    assert rows[0] == "| luban train | 4,096 | 0.93 | 1 | 5 |"
    assert "| 2.00 [2.00, 2.50] |" in rows[1]
    assert interval([1.0]) == (1.0, 1.0)


def test_a_side_takes_the_steps_that_it_is_asked_for_and_leaves(tmp_path):
    side = f"""
import sys; sys.path.insert(0, {str(ROOT / "benchmarks" / "throughput")!r})
from turns import Turns
turns, taken = Turns({{"parameters": 3}}, warm=2), 0
while turns.begin():
    taken += 1
    turns.end()
print(taken)
"""
    address = str(tmp_path / "line")
    with Listener(address, "AF_UNIX", authkey=KEY) as listener:
        process = subprocess.Popen([sys.executable, "-c", side], env={**os.environ, ADDRESS: address}, stdout=subprocess.PIPE, text=True)
        line = listener.accept()
        assert line.recv()["parameters"] == 3
        for steps in (1, 4):
            line.send(steps)
            wall, processor = line.recv()
            assert wall > 0 and processor >= 0
        line.send(0)
    assert process.communicate(timeout=30)[0].split() == ["7"]
