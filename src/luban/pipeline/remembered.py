"""What a finished training held at the most, put beside what the planner says of it, in the ledger that later plans read (luban.planning.margins)."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work, read_json
from luban.foundation.environment import launch
from luban.foundation.errors import LubanError
from luban.pipeline.planner import job_of
from luban.planning.devices import PROCESSOR, Cluster, like
from luban.planning.job import Layout
from luban.planning.margins import add
from luban.planning.search import memory_of

PROCESS = 0.5 * 2**30  # that a process holds on a processor before it has a model, about
WORTH = 4 * 2**30  # on a processor less than this tells of the process rather than of the training


def remember(config: Any, work: Work) -> None:
    """Add a line for a training of one process. Trainings that the planner does not know, or that held too little to tell, leave none."""
    folder = work.path / "training"
    if launch().world_size > 1 or not ((folder / "log.jsonl").exists() and (folder / "choices.json").exists()):
        return
    import torch

    measured = _most(folder / "log.jsonl")
    accelerated = torch.cuda.is_available()
    if not accelerated:
        measured -= PROCESS
    if measured < (2**30 if accelerated else WORTH):
        return
    device = like(torch.cuda.get_device_name(), torch.cuda.get_device_properties(0).total_memory) if accelerated else PROCESSOR
    if device is None:
        return
    choices = read_json(folder / "choices.json")
    job = replace(job_of(config, config.shape, Cluster(device, 1, 1)), precision=choices["precision"])
    if rows := choices["micro_batch_rows"]:
        job = replace(job, rows=min(rows, job.step_rows))
    try:
        predicted = memory_of(job, Layout()).total
    except LubanError:
        return
    add({"device": device.name, "architecture": job.shape.architecture, "measured": round(measured), "predicted": round(predicted), "name": work.name})


def _most(log: Path) -> float:
    """The most that the log says was held."""
    most = 0.0
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            most = max(most, float(json.loads(line).get("memory_bytes") or 0.0))
        except (ValueError, TypeError, AttributeError):
            continue
    return most
