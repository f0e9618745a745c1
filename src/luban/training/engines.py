"""Which engine turns the loop, and whether it can do what a config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from luban.adapters.method import Method, method_of
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.models import recompute
from luban.models.base import Model
from luban.models.narrow import check_narrow
from luban.objectives.base import Objective
from luban.parallel.engine import Passes, TorchEngine
from luban.parallel.layerwise import LayerwiseEngine
from luban.training.config import TrainConfig
from luban.training.optimizers import Optimizers

ENGINES: dict[str, type[TorchEngine]] = {engine.name: engine for engine in (TorchEngine, LayerwiseEngine)}
REPEATING = ("fgm", "pgd", "freelb")  # adversarial methods with several backward passes a step


def make_engine(config: TrainConfig, choices: dict[str, Any], model: Model, objective: Objective, precision: torch.dtype, passes: Passes) -> TorchEngine:
    """The engine that the config names, with its optimizer."""
    engine = ENGINES[config.engine]
    optimizer = Optimizers(model, config.optimizer, config.regularization, apart=engine is LayerwiseEngine)
    return engine(model, optimizer, objective, choices["micro_batch_rows"], precision, passes)


def check_engine(config: TrainConfig, rows: int) -> None:
    """ConfigError, naming the field, where the engine cannot do what a config of plain numbers asks for; a step has ``rows`` rows or examples."""
    engine = ENGINES[config.engine]
    for ability, field, value, advice in _asked(config, rows):
        if ability in engine.lacks:
            raise ConfigError("engine: {engine} cannot do {field}: {value}", engine.lacks[ability], advice, engine=engine.name, field=field, value=value)
    if config.weights == "bfloat16":
        check_narrow(config.shape)
        if config.adapter or config.quantization:
            raise ConfigError("weights: bfloat16 is for training all of a model", "under an adapter the base stays as it is", "hold it in fewer bits by quantization: nf4, or leave weights out")
        if config.regularization.average != "none":
            raise ConfigError("weights: bfloat16 cannot do regularization.average: {average}", "a slow average moves by less than the distance of two neighbours there", "leave one of them out", average=config.regularization.average)


def _asked(config: TrainConfig, rows: int) -> Iterator[tuple[str, str, Any, str]]:
    """(ability, field, its value, advice) of each thing that an engine may not be able to do."""
    if config.gradient_clip:
        yield "clip", "gradient_clip", config.gradient_clip, "set gradient_clip: 0; adafactor bounds each matrix's update by itself, lion's has one size"
    if config.micro_batch_rows != "auto" and config.micro_batch_rows < rows:
        yield "accumulate", "micro_batch_rows", config.micro_batch_rows, "leave micro_batch_rows out, and set batch_tokens or batch_examples to what one pass holds; recompute: full makes room"
    if config.precision == "float16":
        yield "scale", "precision", config.precision, "choose float32 or bfloat16"
    if config.regularization.adversarial.method in REPEATING:
        yield "repeat", "regularization.adversarial.method", config.regularization.adversarial.method, "choose smart, or engine: torch"
    if config.adapter and type(method_of(config.adapter)).after_gradients is not Method.after_gradients:
        yield "look", "adapter.method", config.adapter.method, "choose another method, or engine: torch"


def choose_recompute(config: TrainConfig, model: Model, rows: int) -> str | list[str]:
    """What each block computes again: the mode that is asked for, or for a budget in bytes the plan that a measurement of each block's activations gives."""
    wanted = config.recompute
    if wanted == "selective" and config.compile:
        say("recompute: none (a compiled block keeps its products alone: the compiler sees to that)")
        return "none"
    if (wanted if isinstance(wanted, str) else "selective") not in model.recompute_modes:
        raise ConfigError("recompute: {wanted} is not known for {name}, which runs through transformers", "", "choose {known}", wanted=wanted, name=model.shape.architecture, known=", ".join(model.recompute_modes))
    if isinstance(wanted, str):
        return wanted
    modes = ("none", "full") if config.compile else recompute.MODES
    tokens = torch.zeros(rows, config.sequence_length, dtype=torch.long, device=model.device)
    source = {"source": tokens} if model.shape.kind == "encoder_decoder" else {}
    sizes = recompute.measure(model, lambda: model(tokens, **source), modes)
    plan = recompute.plan(sizes, int(wanted))
    held = sum(size[mode] for size, mode in zip(sizes, plan, strict=True))
    say(
        "recompute: {plan} (of {budget:.2f} GiB the blocks' activations take {held:.2f}, without it {all:.2f})",
        plan=", ".join(f"{plan.count(mode)} {mode}" for mode in recompute.MODES if mode in plan),
        budget=wanted / 2**30, held=held / 2**30, all=sum(size["none"] for size in sizes) / 2**30,
    )  # fmt: skip
    return plan
