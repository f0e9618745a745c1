"""A short form of `make chaos`: one training, killed twice with SIGKILL, against the same training undisturbed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_training_that_is_killed_again_and_again_ends_with_the_same_bits(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.chaos", "--kills", "2", "--steps", "14"], cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == 2 and found["differences"] == []
