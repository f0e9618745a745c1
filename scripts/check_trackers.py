"""The writers against the real packages, in a folder of their own: `pip install 'luban[mlflow,trackio,wandb]'`, then `python scripts/check_trackers.py`.

The test suite knows these packages as recorded fakes; here the same numbers are written twice, as by a run that was stopped and goes on, and read
back through each package's own interface. Nothing leaves the machine: W&B is told to stay offline.
"""

from __future__ import annotations

import math
import os
import sys
import tempfile
from pathlib import Path

from luban.foundation.config import build
from luban.training.config import TrackConfig
from luban.training.writers import open_writers

FOLDER = Path(tempfile.mkdtemp())
NUMBERS = {1: 3.5, 2: math.nan, 3: 2.25}


def write(**settings: str) -> None:
    """Two steps by one process, the third by another that goes on."""
    for steps in ((1, 2), (3,)):
        (writer,) = open_writers(FOLDER, build(TrackConfig, {"tensorboard": False, **settings}), "base", "base-1234")
        for step in steps:
            writer.scalars("train", {"loss": NUMBERS[step]}, step)
        writer.close()
        assert not writer.failed and not writer.lost


def check_mlflow() -> None:
    address = f"sqlite:///{FOLDER}/mlflow.db"
    write(mlflow="luban", mlflow_server=address)
    from mlflow import MlflowClient

    client = MlflowClient(address)
    (run,) = client.search_runs([client.get_experiment_by_name("luban").experiment_id])
    same({metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "train/loss")})
    assert run.info.status == "FINISHED" and run.info.run_name == "base"


def check_trackio() -> None:
    write(trackio="luban")
    from trackio.sqlite_storage import SQLiteStorage

    same({entry["step"]: entry["train/loss"] for entry in SQLiteStorage.get_logs("luban", "base-1234")})


def check_wandb() -> None:
    write(wandb="luban")
    assert len(list((FOLDER / "wandb").glob("offline-run-*-base-1234"))) >= 1


def same(found: dict[int, float]) -> None:
    assert sorted(found) == sorted(NUMBERS) and all(found[step] == value or (math.isnan(found[step]) and math.isnan(value)) for step, value in NUMBERS.items()), found


if __name__ == "__main__":
    os.environ |= {"TRACKIO_DIR": str(FOLDER / "trackio"), "WANDB_MODE": "offline", "WANDB_DIR": str(FOLDER)}
    for name in sys.argv[1:] or ("mlflow", "trackio", "wandb"):
        globals()[f"check_{name}"]()
        print(f"{name}: the numbers that were written are there")
