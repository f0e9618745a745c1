"""A search on a real Ray cluster of this machine, killed in the middle and taken up again: `pip install 'luban[tune,ray]'`, then `python scripts/check_ray.py`.

Ray is too heavy for the test suite. This script asserts what the suite asserts of processes: trials run side by side, a pruned one stops early, and after
kill -9 the trials that were running go on from their checkpoints, on whichever engine.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from tiny import tiny_recipe


def main() -> None:
    folder = Path(tempfile.mkdtemp())
    rate = {"search": [1e-5, 1e-1], "scale": "log"}
    recipe = tiny_recipe(folder, length="60 steps", checkpoint={"every": "4 steps"}, validation={"every": "6 steps"}, optimizer={"learning_rate": rate})
    recipe["tune"] = {"trials": 5, "pruner": "asha", "grace": 2, "engine": "ray", "jobs": 2}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", "luban", "--language", "en", "tune", str(folder / "recipe.yaml")]
    trials = folder / "runs" / "tiny" / "tune" / "trials"

    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    while first.poll() is None and not list(trials.glob("*/base.partial/training/checkpoints/step-*")):
        time.sleep(0.05)
    running = sorted(path.parent.name for path in trials.glob("*/base.partial"))
    first.send_signal(signal.SIGKILL)
    first.wait()
    print("killed while these ran:", ", ".join(running))
    time.sleep(5)  # Ray ends the tasks of a driver that is gone

    second = subprocess.run(command, stderr=subprocess.PIPE, text=True)
    print(second.stderr)
    assert second.returncode == 0
    found = json.loads((trials.parent / "trials.json").read_bytes())
    assert [trial["number"] for trial in found["trials"]] == list(range(5))
    assert all(trial["state"] in ("complete", "pruned") for trial in found["trials"])
    assert all(trial["steps"] < 60 for trial in found["trials"] if trial["state"] == "pruned")
    continued = [number for number in running if "continuing at step" in (trials / number / "output.txt").read_text(encoding="utf-8")]
    assert continued, "no killed trial was continued"
    print("continued from a checkpoint:", ", ".join(continued))


if __name__ == "__main__":
    main()
