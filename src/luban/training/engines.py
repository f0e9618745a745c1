"""Which engine turns the loop, which layout several processes train in, and whether they can do what a config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from luban.adapters.method import Method, method_of
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.models import recompute
from luban.models.base import Model
from luban.models.counts import parameters
from luban.models.narrow import check_narrow
from luban.models.quantized_model import quantized_layers
from luban.objectives.base import Objective
from luban.parallel.engine import Passes, TorchEngine
from luban.parallel.layerwise import LayerwiseEngine
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.ranks import Ranks
from luban.training.config import OPTIMIZERS, TrainConfig
from luban.training.optimizers import Optimizers

ENGINES: dict[str, type[TorchEngine]] = {engine.name: engine for engine in (TorchEngine, LayerwiseEngine)}
REPEATING = ("fgm", "pgd", "freelb")  # adversarial methods with several backward passes a step
ELEMENTWISE = ("adamw", "lion", "sgd", "muon")  # optimizers that know what to do with a shard: they look at no other number, or gather the matrix
FILLED = 0.5  # share of a GPU's memory that weights, gradients and optimizer state may fill before they are cut into shards


def make_engine(config: TrainConfig, choices: dict[str, Any], model: Model, objective: Objective, precision: torch.dtype, passes: Passes, layout: Layout) -> TorchEngine:
    """The engine that the config names, with its optimizer. The layout has taken of the model what this process holds."""
    engine = ENGINES[config.engine]
    optimizer = Optimizers(model, config.optimizer, config.regularization, apart=engine is LayerwiseEngine)
    return engine(model, optimizer, objective, choices["micro_batch_rows"], precision, passes, layout)


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
    if config.micro_batch_rows == "fit" or (config.micro_batch_rows != "auto" and config.micro_batch_rows < rows):
        yield "accumulate", "micro_batch_rows", config.micro_batch_rows, "leave micro_batch_rows out, and set batch_tokens or batch_examples to what one pass holds; recompute: full makes room"
    if config.guards.recheck_every:
        yield "repeat", "guards.recheck_every", config.guards.recheck_every, "set it to 0, or engine: torch"
    if config.guards.spikes == "skip":
        yield "refuse", "guards.spikes", config.guards.spikes, "choose rollback, or none"
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


# ---- several processes ------------------------------------------------------------------------------------------------


def choose_layout(config: TrainConfig, model: Model, objective: Objective, ranks: Ranks) -> Layout:
    """The layout of the config, for as many ranks as there are. ConfigError, naming the field, where something that is asked for cannot be done in it."""
    if ranks.alone:
        return Layout()
    shard = _shard(config, model)
    for field, value, why, advice in _lacking(config, model, objective, shard != "none"):
        raise ConfigError("{field}: {value} cannot be trained by {ranks} processes with layout.shard: {shard}", why, advice, field=field, value=value, ranks=ranks.size, shard=shard, known=", ".join(ELEMENTWISE))
    whole = ranks.size if shard == "none" else 1
    replicas = whole if config.layout.replicas == "auto" else config.layout.replicas
    if ranks.size % replicas or (shard == "none" and replicas != ranks.size):
        raise ConfigError(
            "layout.replicas: {replicas} with {ranks} processes and layout.shard: {shard}", "every process holds a whole model, or the processes divide by the number of models", "leave layout.replicas out",
            replicas=replicas, ranks=ranks.size, shard=shard,
        )  # fmt: skip
    if shard == "none" or replicas == ranks.size:
        say("{ranks} processes, each with a whole model (layout.shard: none)", ranks=ranks.size)
        return Replicated(ranks)
    from luban.parallel.sharded import Sharded

    say("{ranks} processes hold {replicas} × the model in shards (layout.shard: {shard})", ranks=ranks.size, replicas=replicas, shard=shard)
    return Sharded(ranks, shard == "full", replicas, model.device)


def _shard(config: TrainConfig, model: Model) -> str:
    if config.layout.shard != "auto":
        return config.layout.shard
    if model.device.type != "cuda":
        return "none"
    held = parameters(model.shape)["total"] * (8 + OPTIMIZERS[config.optimizer.name]["state_bytes"])
    return "full" if held > FILLED * torch.cuda.get_device_properties(model.device).total_memory else "none"


def _lacking(config: TrainConfig, model: Model, objective: Objective, sharded: bool) -> Iterator[tuple[str, Any, str, str]]:
    """(field, its value, why not, advice) of each thing that several processes cannot do yet."""
    one, whole = "train it in one process", "choose layout.shard: none"
    if reason := ENGINES[config.engine].lacks.get("ranks"):
        yield "engine", config.engine, reason, "choose engine: torch"
    if config.weights == "bfloat16":
        yield "weights", config.weights, "each process would round its weights by other random numbers", "choose weights: float32"
    if config.validation.folds:
        yield "validation.folds", config.validation.folds, "its many small trainings are not shared out", one
    if objective.name == "grpo":
        yield "objective", objective.name, "its answers are written by one process", one
    if objective.scope == "batch" and (config.regularization.r_drop or type(objective).outputs is Objective.outputs):
        yield "objective", objective.name, "it compares the rows of a step, of which each process has some", "leave regularization.r_drop out, or train it in one process"
    if config.regularization.mixup:
        yield "regularization.mixup", config.regularization.mixup, "each process would mix its own rows alone", one
    if sharded:
        yield from _lacking_in_shards(config, model, objective, whole)


def _lacking_in_shards(config: TrainConfig, model: Model, objective: Objective, whole: str) -> Iterator[tuple[str, Any, str, str]]:
    rules = config.regularization
    if not model.shards:
        yield "shape.architecture", model.shape.architecture, "its layers use their weights outside of the call that would gather them", whole
    if config.optimizer.name not in ELEMENTWISE:
        yield "optimizer.name", config.optimizer.name, "its state is of whole matrices, or of runs of numbers that shards would cut", "choose {known}, or layout.shard: none"
    if config.precision == "float16":
        yield "precision", config.precision, "the scale of its losses is not agreed on between shards", "choose bfloat16 or float32"
    if quantized_layers(model):
        yield "quantization", next(iter(quantized_layers(model))), "packed numbers are not cut into shards", whole
    if model.adapter and (type(model.adapter).after_gradients is not Method.after_gradients or type(model.adapter).penalties is not Method.penalties):
        yield "adapter.method", model.adapter.config.method, "it looks at whole matrices after each step", "choose another method, or layout.shard: none"
    if objective.scope == "batch":
        yield "objective", objective.name, "it compares the rows of a step in parts", whole
    for field, value, none in (("average", rules.average, "none"), ("adversarial.method", rules.adversarial.method, "none"), ("unfreeze_every", rules.unfreeze_every, None)):
        if value != none:
            yield f"regularization.{field}", value, "it keeps or moves whole weights", whole
    if config.compile:
        yield "compile", True, "compiled blocks are not cut into shards", "leave compile out, or choose layout.shard: none"
