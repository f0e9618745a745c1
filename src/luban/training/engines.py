"""Which engine turns the loop, and whether it can do what a config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from luban.adapters.method import Method, method_of
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.models import recompute
from luban.models.base import Model
from luban.models.narrow import check_narrow
from luban.models.recompute_plan import plan as plan_recompute
from luban.objectives.base import Objective
from luban.parallel.engine import Passes, TorchEngine
from luban.parallel.layerwise import LayerwiseEngine
from luban.parallel.layouts import Layout
from luban.parallel.zero import DeepSpeedEngine, Zero
from luban.training import state_files
from luban.training.config import TrainConfig
from luban.training.deepspeed_json import deepspeed_settings, require_deepspeed, show_settings
from luban.training.optimizers import Optimizers

ENGINES: dict[str, type[TorchEngine]] = {engine.name: engine for engine in (TorchEngine, LayerwiseEngine, DeepSpeedEngine)}
FLAT = ("adamw", "lion", "sgd")  # optimizers that look at each number by itself, and so take a flat row of them for a matrix
REPEATING = ("fgm", "pgd", "freelb")  # adversarial methods with several backward passes a step


def make_engine(config: TrainConfig, choices: dict[str, Any], model: Model, objective: Objective, precision: torch.dtype, passes: Passes, layout: Layout, folder: Path) -> TorchEngine:
    """The engine that the config names, with its optimizer. The layout has taken of the model what this process holds. ``folder`` is the run's own."""
    engine = ENGINES[config.engine]
    disk = config.optimizer.state == "disk"
    if disk and model.device.type != "cpu":
        raise ConfigError("optimizer.state: disk is for training on a processor", "a device would wait for each matrix's state", "set it to memory, or choose adamw_8bit or adafactor")
    optimizer = Optimizers(model, config.optimizer, config.regularization, engine is LayerwiseEngine, folder / state_files.FOLDER if disk else None)
    more: dict[str, Any] = {}
    if isinstance(layout, Zero):
        more["settings"] = deepspeed_settings(config, model, layout, choices["micro_batch_rows"], folder)
        show_settings(more["settings"], layout, folder)
    return engine(model, optimizer, objective, choices["micro_batch_rows"], precision, passes, layout, **more)


def check_engine(config: TrainConfig, rows: int) -> None:
    """ConfigError, naming the field, where the engine cannot do what a config of plain numbers asks for; a step has ``rows`` rows or examples."""
    engine = ENGINES[config.engine]
    for ability, field, value, advice in _asked(config, rows):
        if ability in engine.lacks:
            raise ConfigError("engine: {engine} cannot do {field}: {value}", engine.lacks[ability], advice, engine=engine.name, field=field, value=value, known=", ".join(FLAT))
    if engine is DeepSpeedEngine:
        _check_offload(config)
        require_deepspeed()
    elif engine is TorchEngine:
        _check_offloaded_shards(config)
    if config.weights == "bfloat16":
        check_narrow(config.shape)
        if config.adapter and getattr(config.adapter, "starts_with_pissa", False):
            raise ConfigError("weights: bfloat16 cannot do adapter: {method}", "it takes a part out of the base's matrices, whose rest would be rounded", "choose lora, or leave weights out", method=config.adapter.method)
        if config.regularization.average != "none":
            raise ConfigError("weights: bfloat16 cannot do regularization.average: {average}", "a slow average moves by less than the distance of two neighbours there", "leave one of them out", average=config.regularization.average)


def _check_offload(config: TrainConfig) -> None:
    offload = config.layout.offload
    for name, value, whole in (("optimizer", offload.optimizer, offload.optimizer == "nvme"), ("weights", offload.weights, offload.weights != "none")):
        if whole and config.layout.shard != "full":
            raise ConfigError("layout.offload.{name}: {value} needs layout.shard: full", "DeepSpeed offloads only what ZeRO 3 has cut", "set layout.shard: full, or leave layout.offload.{name} out", name=name, value=value)


def _check_offloaded_shards(config: TrainConfig) -> None:
    """Of torch's shards weights, gradients and states wait together."""
    asked = {name: getattr(config.layout.offload, name) for name in ("optimizer", "weights")}
    if set(asked.values()) == {"none"}:
        return
    for name, value in asked.items():
        if value != "cpu":
            why = "it has no files for what is offloaded" if value == "nvme" else "weights, gradients and the optimizer's state wait together there"
            raise ConfigError("engine: torch cannot do layout.offload.{name}: {value}", why, "set both optimizer and weights to cpu, or set engine: deepspeed", name=name, value=value)
    if config.layout.shard in ("auto", "none"):
        raise ConfigError("layout.offload with layout.shard: {shard}", "shards are offloaded, and nothing else", "set layout.shard: full, or leave layout.offload out", shard=config.layout.shard)


def _asked(config: TrainConfig, rows: int) -> Iterator[tuple[str, str, Any, str]]:
    """(ability, field, its value, advice) of each thing that an engine may not be able to do."""
    if config.gradient_clip:
        yield "clip", "gradient_clip", config.gradient_clip, "set gradient_clip: 0; adafactor bounds each matrix's update by itself, lion's has one size"
    if config.micro_batch_rows == "fit" or (config.micro_batch_rows != "auto" and config.micro_batch_rows < rows):
        yield "accumulate", "micro_batch_rows", config.micro_batch_rows, "leave micro_batch_rows out, and set batch_tokens or batch_examples to what one pass holds; recompute: full makes room"
    if config.optimizer.state == "disk":
        yield "apart", "optimizer.state", "disk", "set engine: layerwise, or choose adamw_8bit or adafactor, whose state is small"
    if config.guards.recheck_every:
        yield "repeat", "guards.recheck_every", config.guards.recheck_every, "set it to 0, or engine: torch"
    if config.guards.spikes == "skip":
        yield "refuse", "guards.spikes", config.guards.spikes, "choose rollback, or none"
    if config.precision == "float16":
        yield "scale", "precision", config.precision, "choose float32 or bfloat16"
    if config.regularization.adversarial.method in REPEATING:
        yield "repeat", "regularization.adversarial.method", config.regularization.adversarial.method, "choose smart, or engine: torch"
    torch_instead = "leave it out, or set engine: torch"
    if config.optimizer.name not in FLAT:
        yield "matrices", "optimizer.name", config.optimizer.name, "choose {known}, or engine: torch"
    if config.weights != "float32":
        yield "narrow", "weights", config.weights, torch_instead
    for field, value in (("r_drop", config.regularization.r_drop), ("mixup", config.regularization.mixup), ("adversarial.method", config.regularization.adversarial.method)):
        if value and value != "none":
            yield "passes", f"regularization.{field}", value, torch_instead
    if config.regularization.l1:
        yield "penalise", "regularization.l1", config.regularization.l1, torch_instead
    if config.regularization.unfreeze_every:
        yield "unfreeze", "regularization.unfreeze_every", config.regularization.unfreeze_every, torch_instead
    if config.compile is True:
        yield "compile", "compile", True, torch_instead
    if config.micro_batch_rows == "fit":
        yield "probe", "micro_batch_rows", "fit", "give a number, or leave it out"
    for field in ("tensor", "context", "expert", "pipeline"):
        if (count := getattr(config.layout, field)) > 1:
            yield "groups", f"layout.{field}", count, torch_instead
    for field in ("optimizer", "weights"):
        if (place := getattr(config.layout.offload, field)) != "none":
            yield "offload", f"layout.offload.{field}", place, "leave it out, or set engine: deepspeed"
    if config.adapter and type(method_of(config.adapter)).after_gradients is not Method.after_gradients:
        yield "look", "adapter.method", config.adapter.method, "choose another method, or engine: torch"


def choose_recompute(config: TrainConfig, model: Model, rows: int) -> str | list[str]:
    """What each block computes again: the mode that is asked for, or for a budget in bytes the plan that a measurement of each block's activations gives."""
    wanted = config.recompute
    if wanted == "selective" and model.compiled:
        say("recompute: none (a compiled block keeps its products alone: the compiler sees to that)")
        return "none"
    if (wanted if isinstance(wanted, str) else "selective") not in model.recompute_modes:
        raise ConfigError("recompute: {wanted} is not known for {name}, which runs through transformers", "", "choose {known}", wanted=wanted, name=model.shape.architecture, known=", ".join(model.recompute_modes))
    if isinstance(wanted, str):
        return wanted
    modes = ("none", "full") if model.compiled else recompute.MODES
    tokens = torch.zeros(rows, config.sequence_length, dtype=torch.long, device=model.device)
    source = {"source": tokens} if model.shape.kind == "encoder_decoder" else {}
    sizes = recompute.measure(model, lambda: model(tokens, **source), modes)
    plan = plan_recompute(sizes, int(wanted))
    held = sum(size[mode] for size, mode in zip(sizes, plan, strict=True))
    say(
        "recompute: {plan} (of {budget:.2f} GiB the blocks' activations take {held:.2f}, without it {all:.2f})",
        plan=", ".join(f"{plan.count(mode)} {mode}" for mode in recompute.MODES if mode in plan),
        budget=wanted / 2**30, held=held / 2**30, all=sum(size["none"] for size in sizes) / 2**30,
    )  # fmt: skip
    return plan
