"""What the planner makes of a training on the devices that are there: the layout and the micro-batch that a stage takes where its config says auto."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from luban.foundation.environment import launch
from luban.foundation.errors import LubanError
from luban.foundation.hardware import available_bytes
from luban.pipeline.planner import job_of
from luban.planning.devices import PROCESSOR, Cluster, like
from luban.planning.job import Job, Layout
from luban.planning.margins import Margin, margin_of
from luban.planning.search import memory_of, refused
from luban.planning.speed import speed

SHARE = 0.9  # of a processor's free memory, shared by the processes of the machine
DEVICE_TOKENS, PROCESSOR_TOKENS = 16384, 2048  # of a micro-batch: more keeps a device no busier


def foresee(config: Any) -> dict[str, Any]:
    """``layout`` (shard, replicas), ``micro_batch_rows`` and what they take: ``bytes`` of the ``room`` of a device, give or take ``share``. Of layouts in which the numbers that the config
    gives stand: each holding everything, if that fits with as large a micro-batch as is of use; else the fastest that fits with the config's own recompute; where none does, the one that needs least, and ``fits`` is false. Nothing for what the planner does not know.
    """
    place = launch()
    there = devices(place.world_size, place.local_world_size)
    margin = margin_of(there.device.kind, there.device.name)
    try:
        job = job_of(config, config.shape, there)
        found = [one for layout in _asked(config, job, there) if (one := _most_rows(job, layout, there, margin, config.micro_batch_rows))]
    except LubanError:
        return {}
    if not found:
        return {}
    fitting = [one for one in found if one[2]]
    most = max(job.rows for job, *_ in found)
    if whole := [one for one in fitting if one[1].held == 1 and one[0].rows == most]:
        job, layout, _, size = whole[0]
    elif fitting:
        job, layout, _, size = min(fitting, key=lambda one: speed(one[0], one[1], there).step * (1 + 0.02 * (one[1].shards > 1)))
    else:
        job, layout, _, size = min(found, key=lambda one: one[3])
    return {"layout": {"shard": layout.shard, "replicas": layout.replicas}, "micro_batch_rows": job.rows, "bytes": round(size * margin.ratio), "share": margin.memory, "room": round(there.device.memory), "fits": bool(fitting)}


def devices(count: int, local: int) -> Cluster:
    """As many devices as processes: the GPUs that torch sees, or each process's part of what is free of this machine's memory."""
    import torch

    if torch.cuda.is_available():
        seen = torch.cuda.get_device_properties(0)
        known = like(seen.name, seen.total_memory)
        known = known.die if known else replace(PROCESSOR, kind="gpu", name=seen.name, bfloat16=1e14, float16=1e14, float32=2e13, bandwidth=1e12)
        return Cluster(replace(known, memory=float(seen.total_memory)), count, local)
    return Cluster(replace(PROCESSOR, memory=SHARE * available_bytes() / local), count, local)


def _asked(config: Any, job: Job, there: Cluster) -> Iterator[Layout]:
    """The layouts of so many processes that the config leaves open: everything in each, shards over all of them or over those of a machine."""
    asked, count = config.layout, there.count
    if asked.pipeline > 1:  # who wants stages says who holds what
        return
    groups = asked.context * asked.tensor
    rest = max(1, count // groups)
    open_ones = dict.fromkeys([rest, 1, max(1, count // there.node)]) if asked.replicas == "auto" else [asked.replicas]
    for replicas in open_ones:
        shards = max(1, rest // replicas)
        for shard in ("none",) if shards * asked.context == 1 else ("none", "full", "gradients", "states"):
            layout = Layout(replicas, shards, shard, asked.tensor, asked.context, asked.expert)
            if asked.shard in ("auto", shard) and (shard != "none" or shards == 1) and layout.devices == count and not refused(job, layout):
                yield layout


def _most_rows(job: Job, layout: Layout, there: Cluster, margin: Margin, wanted: int | str) -> tuple[Job, Layout, bool, float] | None:
    """The job with the largest micro-batch that fits (or that is wanted), whether it fits, and its bytes."""
    enough = (PROCESSOR_TOKENS if job.device == "cpu" and wanted != "fit" else DEVICE_TOKENS) // job.sequence_length
    rows = min(max(1, enough), -(-job.step_rows // layout.readers)) if isinstance(wanted, str) and job.engine != "layerwise" else job.rows
    while True:
        tried = replace(job, rows=rows)
        memory = memory_of(tried, layout)
        fits = margin.upper(memory.total) <= there.device.memory
        if fits or rows == 1 or not isinstance(wanted, str) or job.engine == "layerwise":
            return tried, layout, fits, memory.total
        rows = rows // 2
