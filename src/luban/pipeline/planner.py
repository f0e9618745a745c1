"""From a recipe, or the name of a preset alone, to the jobs that planning reckons with: plain numbers, and what had to be assumed for them."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from luban.foundation.config import Source, build
from luban.foundation.console import say
from luban.foundation.errors import ConfigError, DataError, LubanError, nearest
from luban.foundation.messages import t
from luban.foundation.yaml_files import apply_override, parse_override
from luban.models.config_json import read_shape
from luban.models.presets import PRESETS, preset
from luban.models.shape import ShapeConfig
from luban.objectives.config import ON_CONVERSATIONS, ON_TEXT
from luban.pipeline.expected import expected
from luban.pipeline.recipe import Recipe, Stage, read_recipe
from luban.planning import dial
from luban.planning.before import places_before
from luban.planning.devices import Cluster
from luban.planning.job import Job, may_be_own
from luban.planning.resolve import check_room
from luban.planning.search import check_written
from luban.planning.step import BODIES
from luban.training.config import LayoutConfig, TrainConfig

VOCABULARY = 32000  # where nothing says how large it will be
GENERATING = ("translation", "summarization", "generation")
SCORED = {"masked": 0.15, "span_corruption": 0.2}


@dataclass
class Planned:
    """A train stage as a job, and what was assumed for it."""

    name: str
    job: Job
    config: TrainConfig
    assumed: list[str] = field(default_factory=list)


def planned(what: Path, overrides: list[str], cluster: Cluster, shape: str = "") -> list[Planned]:
    """The train stages of a recipe, or for the name of a preset one training of that shape, whose fields ``overrides`` set. ConfigError where there is nothing to plan."""
    if not what.exists() and str(what) in PRESETS:
        plain: dict[str, Any] = {"data": "text"}
        for text in overrides:
            apply_override(plain, *parse_override(text))
        for field in ("shape", "depth"):
            if field in plain:
                raise ConfigError("{field} beside the preset {name}, which is a shape", "", "leave it out, or write a recipe", field=field, name=what)
        found, assumed = preset(str(what)), []
        if found.vocabulary_size == "auto":
            found, assumed = found.updated(vocabulary_size=VOCABULARY), [t("a vocabulary of {count} tokens", count=VOCABULARY)]
        if found.architecture not in BODIES:
            raise ConfigError("{stage} is not planned: {architecture} is recurrent, or runs through transformers, and the arithmetic knows neither", stage=what, architecture=found.architecture)
        config = build(TrainConfig, plain, Source("plan"))
        if config.quantization and not config.adapter:
            raise ConfigError("quantization is for a base that stays as it is", "rounded weights cannot learn", "add adapter: lora, or leave quantization out")
        return [_planned(str(what), config, found.resolved(), cluster, None, assumed)]
    if not what.exists() and not what.suffix and len(what.parts) == 1 and (guess := nearest(str(what), PRESETS)):
        raise ConfigError("{what} is neither a recipe nor a preset", "", "did you mean {guess}?", what=what, guess=guess)
    recipe = read_recipe(what, overrides)
    found = list(_of_recipe(recipe, cluster, shape))
    if not found:
        raise ConfigError("{recipe} has no train stage that can be planned", "", "there is nothing to plan", recipe=what)
    return found


def check_layouts(recipe: Recipe, there: Cluster) -> None:
    """ConfigError where a train stage's layout, as the recipe writes it, is none of so many devices; stages whose shape nobody knows yet are passed over."""
    shapes: dict[str, Any] = {}
    for stage in recipe.stages.values():
        if stage.kind.name == "train":
            facts = expected(recipe, stage)
            try:
                shapes[stage.name] = shape = _shape(recipe, stage, shapes, facts, [], "")
            except LubanError:
                continue
            if said := written(stage.config.layout):
                check_written(replace(job_of(stage.config, shape, there, facts.get("tokens") or 1e9), written=said), there)


def processes_of(recipe: Recipe) -> tuple[int, str, str]:
    """The processes that the widest layout of a recipe's trainings needs as it is written, that training and that layout in words; one for those that leave it open."""
    found = (1, "", "")
    for stage in recipe.stages.values():
        if stage.kind.name == "train":
            sizes = {name: size for name, size in written(stage.config.layout) if isinstance(size, int) and name in ("pipeline", "replicas", "context", "tensor", "expert") and size > 1}
            others = math.prod(size for name, size in sizes.items() if name != "expert")
            shared = others // sizes.get("pipeline", 1) // sizes.get("tensor", 1)  # experts lie on these, and on shards
            count = others // shared * math.lcm(shared, sizes.get("expert", 1))
            found = max(found, (count, stage.name, ", ".join(f"{name}: {size}" for name, size in sizes.items())))
    return found


def made_for(what: Path, overrides: list[str]) -> str:
    """The cluster that a recipe names; empty for one that names none, and for a preset."""
    return read_recipe(what, overrides).cluster if what.exists() else ""


def _of_recipe(recipe: Recipe, cluster: Cluster, shape: str) -> Iterator[Planned]:
    shapes: dict[str, Any] = {}
    for stage in recipe.stages.values():
        if stage.kind.name != "train":
            continue
        assumed: list[str] = []
        facts = expected(recipe, stage)
        found = _shape(recipe, stage, shapes, facts, assumed, shape)
        shapes[stage.name] = found
        if found.architecture not in BODIES:
            say("{stage} is not planned: {architecture} is recurrent, or runs through transformers, and the arithmetic knows neither", stage=stage.name, architecture=found.architecture)
            continue
        yield _planned(stage.name, stage.config, found, cluster, facts.get("tokens"), assumed)


def _planned(name: str, config: TrainConfig, shape: Any, cluster: Cluster, epoch: float | None, assumed: list[str]) -> Planned:
    learned = _learned(config)
    _check_adapter(config, shape)
    if config.optimizer.state == "disk" and cluster.device.kind != "cpu":
        raise ConfigError("optimizer.state: disk is for training on a processor", "a device would wait for each matrix's state", "set it to memory, or choose adamw_8bit or adafactor")
    if epoch is None:
        epoch = 1e9 if learned in ON_TEXT else 5e7
        if config.length.unit == "epochs":
            assumed.append(t("{count} tokens of data, which are not here to be counted", count=f"{epoch:.0e}"))
    job = job_of(config, shape, cluster, epoch)
    check_room(job.sequence_length, shape.maximum_positions, places_before(job))
    if config.batch_tokens != "auto" and config.batch_tokens < job.sequence_length:
        raise ConfigError("batch_tokens {step} is less than one row of sequence_length {sequence}", "a step reads whole rows", "raise batch_tokens or lower sequence_length", step=config.batch_tokens, sequence=job.sequence_length)
    if config.engine == "deepspeed":
        assumed.append(t("DeepSpeed's ZeRO as torch's shards, and nothing offloaded"))
    return Planned(name, replace(job, written=written(config.layout)), config, assumed)


def _check_adapter(config: TrainConfig, shape: Any) -> None:
    """ConfigError where what an adapter is to sit on is not in the model, with what is: looked up in the model itself, without its weights."""
    if isinstance(getattr(config.adapter, "targets", "auto"), str):
        return
    import torch

    from luban.adapters.targets import find_targets
    from luban.models.families import build_model

    with torch.device("meta"):
        find_targets(build_model(shape), config.adapter.targets)


def written(asked: LayoutConfig) -> tuple[tuple[str, Any], ...]:
    """What a recipe says of its layout, and does not leave open."""
    known = asked.explicit()
    return tuple((name, known[name]) for name in ("pipeline", "replicas", "context", "tensor", "expert", "shard", "schedule", "stages_per_rank") if known.get(name, "auto") != "auto")


def _learned(config: TrainConfig) -> str:
    return getattr(config.objective, "of", config.objective_name)


def job_of(config: TrainConfig, shape: Any, cluster: Cluster, epoch: float = 1e9) -> Job:
    """The training that a config asks for on such devices; what is auto becomes what the runner would make of it. ``epoch`` is the tokens of the data."""
    learned, device = _learned(config), cluster.device
    task = learned not in (*ON_TEXT, *ON_CONVERSATIONS)
    sequence = config.sequence_length if config.sequence_length != "auto" else min(shape.maximum_positions - getattr(config.adapter, "tokens", 0), 512 if task else 2048)
    tokens = config.length.value * (epoch if config.length.unit == "epochs" else 1)
    step = config.batch_tokens if config.batch_tokens != "auto" else dial.batch_tokens(int(tokens if config.length.unit != "steps" else epoch), sequence, learned)
    rows = (32 if config.batch_examples == "auto" else config.batch_examples) if task else max(1, step // sequence)
    if config.length.unit == "steps":
        tokens = config.length.value * rows * sequence
    precision = config.precision
    if precision == "auto":
        precision = "float32" if device.kind == "cpu" else "bfloat16" if device.bfloat16 else "float16"
    micro = rows if config.engine == "layerwise" else config.micro_batch_rows if isinstance(config.micro_batch_rows, int) else 1
    return Job(
        shape, sequence, rows, micro, tokens, config.optimizer.name, config.optimizer.settled("momentum"), precision, config.weights, config.engine, config.recompute, config.adapter, config.quantization,
        learned, 2 if task and learned not in GENERATING else 0, config.regularization.average != "none", SCORED.get(learned, 1.0), "cpu" if device.kind == "cpu" else "gpu",
        sequence if shape.kind == "encoder_decoder" else 0, config.compile is True, may_be_own(config, device.kind, precision), state=config.optimizer.state, offload=config.engine == "torch" and config.layout.offload.weights != "none",
    )  # fmt: skip


def _shape(recipe: Recipe, stage: Stage, shapes: dict[str, Any], facts: dict[str, Any], assumed: list[str], given: str) -> Any:
    """The shape that a stage trains: of its model, of a preset, of numbers, or of a depth."""
    config = stage.config
    if stage.inputs.get("model"):
        value = stage.inputs["model"][0]
        if value in shapes:
            return shapes[value]
        return _model_shape(recipe.path_of(value), given, assumed)
    if isinstance(config.shape, str):
        found = preset(config.shape)
        return found.updated(vocabulary_size=facts["vocabulary"]) if "vocabulary" in facts else found
    asked = config.shape.explicit().get("vocabulary_size", "auto")
    vocabulary = max(facts.get("vocabulary", 0), 0 if asked == "auto" else asked)
    if not vocabulary:
        vocabulary = VOCABULARY
        assumed.append(t("a vocabulary of {count} tokens", count=VOCABULARY))
    if config.depth == "auto" and {"layers", "hidden_size"} <= config.shape.model_fields_set:
        return config.shape.updated(vocabulary_size=vocabulary).resolved(maximum_positions=512)
    tokens = config.length.value * (facts.get("tokens", 1e9) if config.length.unit == "epochs" else 1 if config.length.unit == "tokens" else 4096)
    depth = config.depth if config.depth != "auto" else dial.depth_for_tokens(math.ceil(tokens))
    if not isinstance(config.shape, ShapeConfig):
        return config.shape.updated(vocabulary_size=vocabulary).resolved(depth=depth, maximum_positions=512)
    return dial.shape_of_depth(depth, vocabulary, config.shape)


def _model_shape(path: Path, given: str, assumed: list[str]) -> Any:
    """Of a model directory that is there; else of the preset that is named, or that the directory is called by."""
    if (path / "config.json").exists():
        return read_shape(path)
    name = given or preset_called(path)
    assumed.append(t("the shape of {name} for {path}, which is not here", name=name, path=path))
    return preset(name)


def preset_called(path: Path) -> str:
    """The preset that a model directory which is not here is called by. DataError where it has no such name."""
    name = next((known for known in sorted(PRESETS, key=len, reverse=True) if known in path.name.lower().replace("_", "-")), "")
    if not name:
        raise DataError("{path}: no such model directory", "its shape is what is planned for", "give --shape with the name of a preset: {known}", path=path, known=", ".join(PRESETS))
    return name
