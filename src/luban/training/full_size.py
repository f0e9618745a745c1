"""A training at its full size without its memory: real rows, Luban's own layout, engine and optimizer on as many ranks as there will be, tensors that have a size and no values.

In a process of its own, since it stands as one rank among others that are not there (parallel/imagined.py). What can be known so: that every part of the way fits the others, what a rank
holds at the most, and what a checkpoint of it takes. Tensors are a processor's: kernels of GPUs keep other things for a moment, as larger parts of the logits.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work
from luban.foundation.errors import LubanError
from luban.training.config import TrainConfig

SECONDS = 1800.0  # of one rehearsal
PASSES = 2  # micro-batches of a step that are tried: a third is like the second; through a pipeline go twice as many as it has stages


def rehearse(config: TrainConfig, work: Work, ranks: int, rank: int = 0) -> dict[str, Any]:
    """What :func:`main` finds of a training on so many ranks, as one of them. LubanError with what went wrong there."""
    from luban.training.probe import as_plain

    check_rehearsable(config)
    asked = {"config": config.model_dump(mode="json"), "inputs": as_plain(work.inputs), "seed": work.seed, "ranks": ranks, "rank": rank}
    with tempfile.TemporaryDirectory(prefix="luban-rehearsal-") as folder:
        try:
            done = subprocess.run([sys.executable, "-m", "luban.training.full_size", folder], input=json.dumps(asked), capture_output=True, text=True, timeout=SECONDS)
        except subprocess.TimeoutExpired:
            raise LubanError("the rehearsal took longer than {time}", "", "rehearse fewer rows: micro_batch_rows: 1", time=f"{SECONDS:.0f} s") from None
    answer = done.stdout.strip().splitlines()[-1:] or ["{}"]
    if done.returncode or "peak_bytes" not in answer[0]:
        if "DataDependentOutputException" in done.stderr:
            raise LubanError("objective: {name} cannot be rehearsed with this model", "something there goes by the values of tensors, and those of a rehearsal have none", "see whether a tiny form of it trains: luban check RECIPE --layouts", name=config.objective.name)
        lines = [line for line in done.stderr.strip().splitlines() if line.strip()] or ["?"]
        raise LubanError("the rehearsal failed: {error}", "", "see whether a tiny form of it trains: luban check RECIPE --layouts", error="; ".join(line.split("]: ", 1)[-1].strip() for line in lines[-3:]) if done.returncode != 2 else answer[0])
    return json.loads(answer[0])


def main() -> None:
    """In its own process: the training comes as JSON, what was found goes out as JSON."""
    asked = json.load(sys.stdin)
    from luban.foundation.config import build
    from luban.foundation.console import hush
    from luban.parallel.imagined import imagine
    from luban.training.probe import as_inputs

    hush()
    imagine(asked["ranks"], asked["rank"])
    work = Work(Path(sys.argv[1]), as_inputs(asked["inputs"]), asked["seed"], "rehearsal")
    (work.path / "training").mkdir()
    try:
        found = at_full_size(build(TrainConfig, asked["config"]), work, asked["ranks"])
    except LubanError as error:
        print(error.text().replace("\n", " "))
        sys.exit(2)
    print(json.dumps(found))


def at_full_size(config: TrainConfig, work: Work, ranks: int) -> dict[str, Any]:
    """Two steps of a training in this process, which stands as one of ``ranks``: bytes by purpose and at the most, what a checkpoint takes, seconds by part."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    from luban.parallel.ranks import here
    from luban.training.held import Everywhere, Held
    from luban.training.layout import choose_layout
    from luban.training.stage import assemble, open_objective, read_data

    begun, seconds = time.monotonic(), {}

    def passed(part: str) -> None:
        seconds[part] = round(time.monotonic() - begun - sum(seconds.values()), 1)

    objective = open_objective(config, work)
    tokenizer, loaders = read_data(config, work, objective, work.path)
    passed("data")
    rows = config.micro_batch_rows if isinstance(config.micro_batch_rows, int) else 1
    choices = {"precision": "float32" if config.precision == "auto" else config.precision, "micro_batch_rows": rows, "attention": "torch", "layers": "torch", "compile": False, "cross_entropy": "chunked"}
    mode, held = FakeTensorMode(), Held()
    model = imagined_model(config, work, tokenizer, objective, mode)
    layout = choose_layout(config, model, objective, here())
    with mode:
        numbers = sum(parameter.numel() for parameter in model.parameters())
        run = assemble(config, choices, work.path / "training", model, tokenizer, objective, loaders, layout)
    passed("model and layout")
    step = loaders.train.step(0)
    if getattr(objective, "uses_reference", False):  # what the model that training starts from says of each row
        step.extra["reference"] = torch.zeros(len(step.inputs))
    batch = objective.prepare(step, model)
    counts = {"tokens": float(batch.inputs.numel())} | objective.counts(batch)
    parts = run.engine.micro_batches(batch)
    length, source = (max(0 if tensor is None else tensor.shape[1] for tensor in tensors) for tensors in zip(*((part.inputs, part.source) for part in parts), strict=True))
    line = getattr(layout, "line", None)
    imagined = [_imagined(part, mode) for part in parts[: 2 * line.count if line else PASSES]]
    with mode, held, Everywhere():
        weights = held.count(model.parameters())
        for several in (imagined if line else imagined[:1], imagined):  # in the second step the optimizer's state is there, and its second micro-batch finds the gradients of the first
            held.moment = "forward and backward pass"
            for _ in layout.learn(run.engine, ((part, True) for part in several), counts):
                pass
            gradients = sum(_bytes(parameter.grad) for parameter in model.parameters() if parameter.grad is not None)
            held.moment = "optimizer step"
            layout.sum_gradients(model)
            run.engine.clip(config.gradient_clip)
            run.engine.optimizer.step(1.0)
            run.engine.optimizer.zero_grad()
    passed("two steps")
    left_out = (len(parts) - len(imagined)) * line.kept_bytes(parts[0]) if line else 0
    peak = held.peak + left_out
    states = sum(map(_bytes, run.engine.optimizer.state().values()))
    files, own, whole = checkpoint_plan(run)
    passed("checkpoint")
    return {
        "ranks": ranks, "layout": getattr(getattr(layout, "parts", None), "text", layout.name), "shard": getattr(layout, "shard", "none"), "stages": getattr(layout, "stages", 1), "parameters": numbers, "vocabulary": model.shape.vocabulary_size, "length": length, "source_length": source, "rows": rows, "passes": len(parts), "peak_bytes": peak, "at": held.at,
        "parts": {"weights": weights, "gradients": gradients, "optimizer": states, "activations": peak - weights - gradients - states}, "moments": held.moments,
        "checkpoint": {"files": files, "bytes_of_rank": own, "bytes": whole}, "seconds": seconds, "torch": torch.__version__,
    }  # fmt: skip


def check_rehearsable(config: TrainConfig) -> None:
    """LubanError, naming the field, for what looks at values on its way, or waits for ranks that are not there."""
    method = config.adapter.method if config.adapter else ""
    lacking = [
        ("engine", config.engine, config.engine != "torch"),
        ("objective", config.objective.name, config.objective.name == "distillation"),  # whose teacher is read
        ("adapter.method", method, method in ("prompt", "p_tuning")),  # rows are as much wider as they have documents
    ]
    for field, value in ((field, value) for field, value, lacks in lacking if lacks):
        raise LubanError("{field}: {value} cannot be rehearsed", "a rehearsal has sizes and no values, and no other ranks to talk to", "luban plan reckons it; luban check RECIPE --layouts trains a tiny form of it", field=field, value=value)


def imagined_model(config: TrainConfig, work: Work, tokenizer: Any, objective: Any, mode: Any) -> Any:
    """The model of :func:`luban.training.beginning.make_model` as a FakeTensorMode has it: nothing is read of one on disk but its shape."""
    import torch

    from luban.adapters.attached import attach
    from luban.models.families import build_model
    from luban.models.narrow import hold_narrow
    from luban.models.quantized_model import empty_quantized
    from luban.training.beginning import for_tokenizer, hold_narrow_base

    def empty(shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        with mode:
            return torch.empty(shape, dtype=dtype)

    with mode:
        model = build_model(config.shape if work.inputs.get("model") else for_tokenizer(config.shape, tokenizer))
        if objective.head:
            model.wear(objective.head)
    if config.quantization:
        empty_quantized(model, config.quantization, empty)
    with mode:
        if config.weights == "bfloat16":
            model = hold_narrow_base(model) if config.adapter else hold_narrow(model)
        if config.adapter:
            attach(model, config.adapter, work.seed, tokenizer=tokenizer)
    return model.train()


def checkpoint_plan(run: Any) -> tuple[int, int, int]:
    """Files that this rank would write for a checkpoint, their bytes, and the bytes of all ranks together, as torch's planner cuts the state up (training/storage.py)."""
    from torch.distributed.checkpoint.default_planner import DefaultSavePlanner

    from luban.training.checkpoints import parts_of

    tensors = {f"{part}/{name}": tensor.detach() for part, named in parts_of(run).items() for name, tensor in named.items()}
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner(tensors, is_coordinator=True)
    items = planner.create_local_plan().items
    own = sum(item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize for item in items)
    whole = sum(tensor.numel() * tensor.dtype.itemsize for tensor in tensors.values())
    return len({item.index.fqn.partition("/")[0] for item in items}), own, whole


def _imagined(part: Any, mode: Any) -> Any:
    """A micro-batch without values; which places are scored was looked up before."""
    import torch

    def taken(value: Any) -> Any:
        return mode.from_tensor(value) if isinstance(value, torch.Tensor) else value

    named = {name: taken(value) for name, value in vars(part).items() if isinstance(value, torch.Tensor)}
    scored = taken(part.scored)
    return replace(part, **named, extra={name: taken(value) for name, value in part.extra.items()}, looked_up=(named["weights"], scored))


def _bytes(tensor: Any) -> int:
    tensor = getattr(tensor, "_local_tensor", tensor)
    return tensor.numel() * tensor.dtype.itemsize


if __name__ == "__main__":
    main()
