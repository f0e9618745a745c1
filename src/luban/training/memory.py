"""Out of memory: what took it, in numbers, and what to change."""

from __future__ import annotations

import errno
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from luban.foundation.console import bytes_text
from luban.foundation.errors import LubanError
from luban.foundation.hardware import memory_bytes, resident_bytes
from luban.foundation.messages import t
from luban.models.counts import activation_elements
from luban.objectives.losses import CHUNK_LOGITS
from luban.parallel.layouts import local
from luban.training.config import OPTIMIZERS, TrainConfig
from luban.training.run import Run

SIGNS = ("DefaultCPUAllocator", "out of memory", "Cannot allocate memory", "bad alloc", "std::bad_alloc", "not enough memory")
ASKED = re.compile(r"(?:allocate|Tried to allocate) ([0-9.]+) ?(bytes|KiB|MiB|GiB)")
UNITS = {"bytes": 1, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


class OutOfMemory(LubanError):
    """More memory was asked for than is there."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory was asked for and not had: Python's, numpy's, torch's on a processor or a GPU, the system's."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def account(run: Run) -> dict[str, int]:
    """Bytes by purpose: what is held is counted, what a step makes is estimated from the shape and the rows of a micro-batch."""
    config, model = run.config, run.model
    parameters = [local(parameter) for parameter in model.parameters()]
    learning = [local(parameter) for parameter in run.engine.optimizer.names]
    on_disk = config.optimizer.state == "disk"
    states = 0 if on_disk else sum(local(tensor).nbytes for tensor in run.engine.optimizer.state().values())
    found = {
        "weights": sum(parameter.nbytes for parameter in parameters),
        "gradients": 0 if config.engine == "layerwise" else sum(parameter.nbytes for parameter in learning),
        "optimizer": 0 if on_disk else states or round(OPTIMIZERS[config.optimizer.name]["state_bytes"] * sum(parameter.numel() for parameter in learning)),
    }
    tokens = max(1, run.engine.micro_batch_rows or run.engine.micro_batch_tokens // config.sequence_length) * config.sequence_length
    width = 4 if run.engine.precision == torch.float32 else 2
    if model.shape.architecture != "auto":
        found["activations"] = round(tokens * activation_elements(model.shape, model.recompute == "full") * width)
    if model.head is None or not model.head.replaces_output:
        scored = min(tokens, max(256, CHUNK_LOGITS // model.shape.vocabulary_size))
        found["logits"] = 2 * 4 * scored * model.shape.vocabulary_size  # and their gradient
    if run.average:
        found["average"] = sum(local(tensor).nbytes for tensor in run.average.state().values())
    return {name: size for name, size in found.items() if size}


def advice(largest: str, config: TrainConfig, rows: int) -> list[str]:
    """What to change, the most helpful first."""
    of_rows = [f"micro_batch_rows: {max(1, rows // 2)}"] if rows != 1 else [f"sequence_length: {max(16, config.sequence_length // 2)}"]
    of_state = [] if config.optimizer.name in ("adafactor", "adamw_8bit") else ["optimizer: {name: adafactor}", "optimizer: {name: adamw_8bit}"]
    recompute = [] if config.recompute == "full" else ["recompute: full"]
    narrow = [] if config.weights == "bfloat16" or config.adapter else ["weights: bfloat16", "adapter: lora"]
    first = {
        "activations": [*of_rows, *recompute], "logits": of_rows, "optimizer": of_state, "gradients": [*([] if config.engine == "layerwise" else ["engine: layerwise"]), *narrow[1:]],
        "weights": narrow, "average": ["regularization: {average: none}"],
    }.get(largest, [])  # fmt: skip
    return list(dict.fromkeys([*first, *of_rows, *recompute, *of_state, *narrow]))[:4]


def limit_bytes() -> int:
    """The memory that this process may have: of the device, the machine, the container, or what the shell allows it."""
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
    allowed = [soft for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA) if (soft := resource.getrlimit(kind)[0]) != resource.RLIM_INFINITY]
    return min([memory_bytes(), *allowed])


def explained(error: BaseException, config: TrainConfig, run: Run | None) -> OutOfMemory:
    """The error that names what took the memory and what to change."""
    held = torch.cuda.memory_allocated() if torch.cuda.is_initialized() else resident_bytes()
    values = {"held": bytes_text(held), "limit": bytes_text(limit_bytes())}
    found = ASKED.search(str(error))
    values["asked"] = bytes_text(float(found[1]) * UNITS[found[2]]) if found else "?"
    if run is None:
        return OutOfMemory(
            "out of memory before the first step: {asked} more were asked for; {held} are held, {limit} are there",
            "model, data and optimizer must fit beside each other",
            "{advice}; or close what else runs on this machine",
            **values, advice=" | ".join(advice("weights", config, 1)),
        )  # fmt: skip
    parts = account(run)
    largest = max(parts, key=parts.__getitem__)
    return OutOfMemory(
        "out of memory in step {step}: {asked} more were asked for; {held} are held, {limit} are there",
        "{parts}; activations and logits are those of {rows} rows in one forward pass, estimated",
        "{advice}; none but the optimizer, adapter, weights and sequence_length changes what is learned. The same command goes on from the last checkpoint",
        **values, step=run.step + 1, rows=run.engine.micro_batch_rows or "?", parts=", ".join(f"{t(name)} {bytes_text(size)}" for name, size in sorted(parts.items(), key=lambda pair: -pair[1])),
        advice=" | ".join(advice(largest, config, run.engine.micro_batch_rows or 2)),
    )  # fmt: skip


class Explainer:
    """Turns running out of memory into an error that says why. ``run`` is set as soon as there is one."""

    def __init__(self, config: TrainConfig):
        self.config = config
        self.run: Run | None = None

    @contextmanager
    def watching(self) -> Iterator[Explainer]:
        try:
            yield self
        except (MemoryError, RuntimeError, OSError) as error:
            if not is_out_of_memory(error):
                raise
            told = explained(error, self.config, self.run)
        else:
            return
        raise told
