"""Which layout several processes train in, and whether it can do what a config asks for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from luban.adapters.adapted import Wears
from luban.adapters.method import Method
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.models.base import Model
from luban.models.counts import parameters
from luban.models.quantized_model import quantized_layers
from luban.objectives.base import Objective
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.legal import Parts, nearest, refusals
from luban.parallel.plans import PLANS
from luban.parallel.ranks import Ranks
from luban.parallel.tensor_packed import misfit
from luban.parallel.zero import WEIGHTS, DeepSpeedEngine, Zero
from luban.training.config import OPTIMIZERS, TrainConfig
from luban.training.engines import ENGINES

ELEMENTWISE = ("adamw", "lion", "sgd", "muon")  # optimizers that know what to do with a shard: they look at no other number, or gather the matrix
STAGES = {"none": 1, "states": 1, "gradients": 2, "full": WEIGHTS}  # of ZeRO, by layout.shard
FILLED = 0.5  # share of a GPU's memory that weights, gradients and optimizer state may fill before they are cut into shards


def choose_layout(config: TrainConfig, model: Model, objective: Objective, ranks: Ranks, foreseen: dict[str, Any] | None = None, device: torch.device | None = None) -> Layout:
    """The layout of the config, for as many ranks as there are, on ``device`` (the model's, if none is given); where it leaves shards or replicas open, as ``foreseen`` has them (luban.pipeline.foresight). ConfigError, naming the field,
    where the ranks or the model's shape do not fit it, or something that is asked for cannot be done in it."""
    layout, device = config.layout, device or model.device
    if config.engine == DeepSpeedEngine.name:
        return _zero(config, model, objective, ranks, device)
    offload = layout.offload.weights != "none"
    if offload and ranks.alone:
        raise ConfigError("layout.offload in one process", "the torch engine offloads shards, and a process alone has none", "set engine: deepspeed or layerwise, or start more processes")
    if ranks.alone and layout.tensor == layout.context == layout.expert == layout.pipeline == 1:
        return Layout()
    if foreseen:
        config = _settled(config, model, objective, ranks, foreseen)
    shard = _shard(config, model, device)
    stages = stages_per_rank(config, model)
    parts = choose_parts(config, model, ranks.size, shard, stages)
    shard = shard if parts.held > 1 else "none"
    for field, value, why, advice in lacking_in_stages(config, model, objective, shard) if parts.pipeline > 1 else ():
        raise ConfigError("{field}: {value} cannot be trained in a pipeline of {ranks} processes", why, advice, field=field, value=value, ranks=parts.pipeline)
    for field, value, why, advice in lacking_of(config, model, objective, parts, shard != "none"):
        cuts = _cuts(parts, shard)
        asked, whole = (", ".join(f"{name}: {pair[place]}" for name, pair in cuts.items()) for place in (0, 1))
        raise ConfigError("{field}: {value} cannot be trained by {ranks} processes with {layout}", why, advice, field=field, value=value, ranks=ranks.size, layout=asked, whole=whole, known=", ".join(ELEMENTWISE))
    if parts == Parts(replicas=ranks.size):
        say("{ranks} processes, each with a whole model (layout.shard: none)", ranks=ranks.size)
        return Replicated(ranks)
    from luban.parallel.meshed import Meshed

    if parts.data == parts.ranks:
        say("{ranks} processes hold {replicas} × the model in shards (layout.shard: {shard})", ranks=ranks.size, replicas=parts.replicas, shard=shard)
    else:
        say("{ranks} processes: {parts} (layout.shard: {shard})", ranks=ranks.size, parts=parts.text, shard=shard)
    if parts.pipeline > 1:
        say("a pipeline of {stages} stages, {each} on each of {ranks} processes (layout.schedule: {schedule})", stages=parts.pipeline * stages, each=stages, ranks=parts.pipeline, schedule=layout.schedule)
    return Meshed(ranks, parts, shard, layout.sequence is not False, device, layout.schedule, stages, offload)


def _zero(config: TrainConfig, model: Model, objective: Objective, ranks: Ranks, device: torch.device) -> Zero:
    """DeepSpeed's: the stage of ZeRO that cuts what ``layout.shard`` names, or the optimizer's state alone."""
    shard = _shard(config, model, device)
    stage = STAGES[shard]
    once = ranks.size if shard == "none" else 1  # how many times the weights are held
    if config.layout.replicas not in ("auto", once):
        raise ConfigError("layout.replicas: {replicas} with engine: deepspeed", "ZeRO cuts over all processes", "leave layout.replicas out, or set engine: torch", replicas=config.layout.replicas)
    lacking = [*lacking_of(config, model, objective, Parts(replicas=ranks.size), stage == WEIGHTS)]
    if quantized_layers(model) and stage != WEIGHTS:
        lacking.append(("quantization", next(iter(quantized_layers(model))), "packed numbers are not cut into shards", "leave it out, or set engine: torch"))
    for field, value in (("adapter.method", model.adapter and model.adapter.config.method), ("regularization.freeze", config.regularization.freeze)):
        if value and stage == WEIGHTS:  # DeepSpeed notices a block's backward pass by the gradient of its inputs
            lacking.append((field, value, "where nothing below a block learns, DeepSpeed drops its weights before its backward pass", "choose layout.shard: gradients, or engine: torch"))
    if shard == "gradients" and not model.shards:
        why = "its gradients come in another order in each process, and DeepSpeed sums them in the order in which they come"
        lacking.append(("shape.architecture", model.shape.architecture, why, "choose {whole}"))
    for field, value, why, advice in lacking:
        raise ConfigError("{field}: {value} cannot be trained by DeepSpeed with layout.shard: {shard}", why, advice, field=field, value=value, shard=shard, whole="layout.shard: none", known=", ".join(ELEMENTWISE))
    say("{ranks} processes under DeepSpeed, ZeRO {stage} (layout.shard: {shard})", ranks=ranks.size, stage=stage, shard=shard)
    return Zero(ranks, stage, {"optimizer": config.layout.offload.optimizer, "weights": config.layout.offload.weights})


def stages_per_rank(config: TrainConfig, model: Model) -> int:
    """Stages that each process of a pipeline holds. ConfigError where the schedule has no use for so many."""
    wanted, schedule, ranks = config.layout.stages_per_rank, config.layout.schedule, config.layout.pipeline
    if ranks == 1:
        return 1
    if wanted == "auto":
        return 1 if schedule == "1f1b" or (schedule == "zero_bubble" and model.depth < 2 * ranks) else 2
    if (schedule == "1f1b") != (wanted == 1) and schedule != "zero_bubble":
        raise ConfigError(
            "layout.stages_per_rank: {count} with layout.schedule: {schedule}", "1f1b has one stage in each process, interleaved several, zero_bubble any number", "leave layout.stages_per_rank out",
            count=wanted, schedule=schedule,
        )  # fmt: skip
    return wanted


def _settled(config: TrainConfig, model: Model, objective: Objective, ranks: Ranks, foreseen: dict[str, Any]) -> TrainConfig:
    """The config with what is foreseen where it says auto. Shards that something else that it asks for rules out are left out, and that is said."""
    asked = config.layout
    chosen = {name: foreseen[name] for name in ("shard", "replicas") if getattr(asked, name) == "auto"}
    made = config.updated(layout={**asked.explicit(), **chosen})
    if chosen.get("shard", "none") != "none":
        parts = choose_parts(made, model, ranks.size, made.layout.shard, stages_per_rank(made, model))
        if lacking := next(lacking_of(made, model, objective, parts, True), None):
            say("layout.shard: none, though the planner finds too little memory for it: shards do not go together with {field}: {value}", field=lacking[0], value=lacking[1])
            return config.updated(layout={**asked.explicit(), "shard": "none"})
    return made


def choose_parts(config: TrainConfig, model: Model, ranks: int, shard: str, stages: int = 1) -> Parts:
    """How many ranks stand in each dimension. ConfigError where they do not multiply up, or the shape forbids it, with the nearest that would do."""
    wanted = config.layout
    fixed = {"context": wanted.context, "tensor": wanted.tensor}
    size = wanted.context * wanted.tensor * wanted.pipeline
    data = max(1, ranks // size)
    replicas = wanted.replicas if wanted.replicas != "auto" else data if shard == "none" else 1
    parts = Parts(wanted.pipeline, replicas, max(1, data // replicas), **fixed, expert=wanted.expert)
    if ranks % size or parts.ranks != ranks or (shard == "none" and parts.shards > 1):
        if size == 1:
            raise ConfigError(
                "layout.replicas: {replicas} with {ranks} processes and layout.shard: {shard}", "every process holds a whole model, or the processes divide by the number of models", "leave layout.replicas out",
                replicas=replicas, ranks=ranks, shard=shard,
            )  # fmt: skip
        raise ConfigError("layout: {parts} is no layout of {ranks} processes", "their numbers do not multiply up to it", "{nearest}", parts=parts.text, ranks=ranks, nearest=_nearest(config, model, parts, ranks, stages))
    for field, count, why, values in refusals(model.shape, parts, _length(config), stages):
        raise ConfigError("layout.{field}: {count} does not fit the model: {reason}", "", "{nearest}", field=field, count=count, reason=t(why, **values), nearest=_nearest(config, model, parts, ranks, stages))
    return parts


def _nearest(config: TrainConfig, model: Model, wanted: Parts, ranks: int, stages: int) -> str:
    found = nearest(model.shape, wanted, ranks, _length(config), stages)
    return t("the nearest layouts of {ranks} processes: {layouts}", ranks=ranks, layouts="; ".join(parts.text for parts in found))


def _length(config: TrainConfig) -> int:
    return 0 if config.sequence_length == "auto" else config.sequence_length


def _shard(config: TrainConfig, model: Model, device: torch.device) -> str:
    if config.layout.shard != "auto":
        return config.layout.shard
    if device.type != "cuda":
        return "none"
    held = parameters(model.shape)["total"] * (8 + OPTIMIZERS[config.optimizer.name]["state_bytes"])
    return "full" if held > FILLED * torch.cuda.get_device_properties(device).total_memory else "none"


def _cuts(parts: Parts, shard: str) -> dict[str, tuple[Any, Any]]:
    """The fields that cut the model, or rows of it, with what each is and what it would be where nothing is cut; layout.shard where none does."""
    groups = {f"layout.{name}": (getattr(parts, name), 1) for name in ("tensor", "context", "expert") if getattr(parts, name) > 1}
    return groups if groups and shard == "none" else {"layout.shard": (shard, "none"), **groups}


def lacking_of(config: TrainConfig, model: Model, objective: Objective, parts: Parts, sharded: bool) -> Iterator[tuple[str, Any, str, str]]:
    """(field, its value, why not, advice) of each thing that several processes cannot do; in the advice ``{whole}`` is the layout that cuts nothing, ``{known}`` the optimizers for pieces."""
    if reason := ENGINES[config.engine].lacks.get("ranks"):
        yield "engine", config.engine, reason, "choose engine: torch"
    if objective.scope == "batch" and (config.regularization.r_drop or type(objective).outputs is Objective.outputs):
        yield "objective", objective.name, "it compares the rows of a step, of which each process has some", "leave regularization.r_drop out, or train it in one process"
    if config.engine == "torch" and config.layout.offload.weights != "none":
        yield from _lacking_offloaded(config, parts)
    grouped = parts.tensor > 1 or parts.context > 1 or parts.expert > 1
    if grouped:
        yield from _lacking_in_groups(config, model, parts)
    if config.compile is True and sharded and (parts.pipeline > 1 or config.engine != "torch"):
        yield "compile", True, "torch's compiler does not see through shards beside stages, nor through DeepSpeed's", "leave compile out, or choose layout.shard: none"
    if parts.tensor > 1 and (name := misfit(model, PLANS[model.shape.architecture], parts.tensor)):
        yield "quantization", name, "its inputs would be cut inside a group of weights that share a scale", "choose another layout.tensor or quantization.group_size"
    if sharded or grouped:
        yield from _lacking_in_pieces(config, model, objective, grouped)


def _lacking_offloaded(config: TrainConfig, parts: Parts) -> Iterator[tuple[str, Any, str, str]]:
    """Where shards wait in the host's memory."""
    if parts.held == 1:
        yield "layout.offload.weights", "cpu", "it offloads shards, and nothing is cut into any", "lower layout.replicas, or leave layout.offload out"
    for field in ("pipeline", "expert"):
        if getattr(parts, field) > 1:
            yield f"layout.{field}", getattr(parts, field), "what stands beside its shards stays on the device, and layout.offload moves all or nothing", "leave layout.offload out"
    if config.precision == "float16":
        yield "precision", config.precision, "the scale of its losses is looked after on the device, and layout.offload has the gradients elsewhere", "choose bfloat16 or float32, or leave layout.offload out"


def _lacking_in_groups(config: TrainConfig, model: Model, parts: Parts) -> Iterator[tuple[str, Any, str, str]]:
    """Where ranks share rows, matrices or experts."""
    from luban.parallel.tensor_worn import on_experts, unfit  # which takes torch's tensors of several processes

    name, one = model.adapter and model.adapter.config.method, "leave layout.tensor, layout.context and layout.expert at 1"
    if parts.tensor > 1 and (place := unfit(model, PLANS[model.shape.architecture])):
        yield "adapter.method", f"{name} ({place})", "it stands elsewhere than on the matrices of blocks that are cut, or looks at whole ones", "choose lora on matrices in blocks, or leave layout.tensor at 1"
    if parts.expert > 1 and (place := next((place for place, layer in model.named_modules() if isinstance(layer, Wears) and on_experts(place)), "")):
        yield "adapter.targets", place, "experts are shared out", "leave adapter.targets at auto, which adapts what all tokens pass, or leave layout.expert at 1"
    if model.adapter and model.tokens_before:
        yield "adapter.method", name, "its places stand before those that are shared out", one
    if config.regularization.mixup:
        yield "regularization.mixup", config.regularization.mixup, "it mixes whole rows", one
    if config.regularization.neftune and parts.context > 1:
        yield "regularization.neftune", config.regularization.neftune, "its noise is that of whole rows", "leave it out"
    rate = max((module.p for module in model.modules() if isinstance(module, nn.Dropout)), default=0.0)
    if parts.tensor > 1 and rate and config.layout.sequence is False:
        yield "layout.sequence", False, "ranks of a tensor group would draw other numbers where they do the same work", "leave layout.sequence out, or set regularization.dropout: 0"
    if parts.tensor > 1 and getattr(model.shape, "router_jitter", 0.0):
        yield "shape.router_jitter", model.shape.router_jitter, "ranks of a tensor group would route other tokens", "set it to 0, or leave layout.tensor at 1"


def _narrow_learn(config: TrainConfig, model: Model) -> bool:
    """Whether matrices learn that are held in bfloat16; under an adapter they stay as they are."""
    return config.weights == "bfloat16" and (not model.adapter or any(parameter.requires_grad and parameter.dtype == torch.bfloat16 for parameter in model.parameters()))


def lacking_in_stages(config: TrainConfig, model: Model, objective: Objective, shard: str) -> Iterator[tuple[str, Any, str, str]]:
    """Where each rank holds some of the layers, and the micro-batches of a step pass through them once."""
    rules, one = config.regularization, "leave layout.pipeline at 1"
    if shard == "states":
        yield "layout.shard", shard, "a stage's passes go their own order, so no micro-batch is the last for all", "choose layout.shard: gradients or full"
    if shard != "none" and config.layout.schedule == "zero_bubble":
        yield "layout.shard", shard, "torch computes the gradients of weights apart there, past what would sum them into shards", "choose layout.shard: none, or another layout.schedule"
    if model.shape.kind == "encoder_decoder" and config.layout.schedule == "zero_bubble":
        yield "layout.schedule", "zero_bubble", "torch computes the gradients of weights apart only where what arrives passes them all, and a decoder begins with nothing that arrives", "choose 1f1b or interleaved"
    if model.depth < config.layout.pipeline * stages_per_rank(config, model):
        yield "layout.pipeline", config.layout.pipeline, "with this head the model has fewer layers than that takes stages", one
    for field, value, none in (("r_drop", rules.r_drop, 0), ("mixup", rules.mixup, 0), ("adversarial.method", rules.adversarial.method, "none")):
        if value != none:
            yield f"regularization.{field}", value, "it takes several passes, or a hand in one", one
    if config.guards.recheck_every:
        yield "guards.recheck_every", config.guards.recheck_every, "it takes several passes, or a hand in one", "set it to 0"
    for field, value, none in (("average", rules.average, "none"), ("unfreeze_every", rules.unfreeze_every, None)):
        if value != none:
            yield f"regularization.{field}", value, "it keeps or moves whole weights", one
    if objective.scope == "batch":
        yield "objective", objective.name, "it compares the rows of a step in parts", one
    if type(objective).prepare is not Objective.prepare or type(objective).prepare_step is not Objective.prepare_step:
        yield "objective", objective.name, "it passes rows through the model before the step", one
    if config.precision == "float16":
        yield "precision", config.precision, "torch's schedules run the backward pass, and scale no loss", "choose bfloat16 or float32"
    if _narrow_learn(config, model):
        yield "weights", config.weights, "how they are rounded is drawn for the whole model", "leave weights out"
    if model.adapter and (model.tokens_before or list(model.adapter.shared()) or type(model.adapter).after_gradients is not Method.after_gradients or type(model.adapter).penalties is not Method.penalties):
        yield "adapter.method", model.adapter.config.method, "it has parts that all layers share, or looks at all layers after each step", "choose another method, such as lora"
    if config.compile is True and config.layout.schedule == "zero_bubble":
        yield "compile", True, "torch does not compile a backward pass that is run in two parts", "leave compile out, or choose layout.schedule: 1f1b"


def _lacking_in_pieces(config: TrainConfig, model: Model, objective: Objective, grouped: bool) -> Iterator[tuple[str, Any, str, str]]:
    """Where a rank holds pieces of matrices."""
    rules, whole = config.regularization, "choose {whole}"
    if not model.shards:
        yield "shape.architecture", model.shape.architecture, "its layers use their weights outside of the call that would gather them", whole
    if _narrow_learn(config, model):
        yield "weights", config.weights, "its gradients are in float32, which pieces in bfloat16 do not take", whole
    if config.optimizer.name not in ELEMENTWISE:
        yield "optimizer.name", config.optimizer.name, "its state is of whole matrices, or of runs of numbers that would be cut", "choose {known}, or {whole}"
    if config.precision == "float16" and (grouped or config.engine != "torch"):
        yield "precision", config.precision, "the scale of its losses is not agreed on between the ranks of a group", "choose bfloat16 or float32, or share out shards and replicas alone"
    if model.adapter and (type(model.adapter).after_gradients is not Method.after_gradients or type(model.adapter).penalties is not Method.penalties):
        yield "adapter.method", model.adapter.config.method, "it looks at whole matrices after each step", "choose another method, or {whole}"
    if objective.scope == "batch":
        yield "objective", objective.name, "it compares the rows of a step in parts", whole
    if type(objective).prepare_step is not Objective.prepare_step:
        yield "objective", objective.name, "it would gather all weights for each token that it writes", whole
    for field, value, none in (("average", rules.average, "none"), ("adversarial.method", rules.adversarial.method, "none"), ("unfreeze_every", rules.unfreeze_every, None)):
        if value != none:
            yield f"regularization.{field}", value, "it keeps or moves whole weights", whole
