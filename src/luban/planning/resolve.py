"""What `auto` becomes: from a config and its inputs to plain numbers, printed and saved with the artifact."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Artifact, Work, listed
from luban.foundation.config import Config
from luban.foundation.console import say
from luban.foundation.errors import ConfigError
from luban.foundation.paths import named_files
from luban.models.config_json import read_shape
from luban.models.presets import preset
from luban.models.shape import ShapeConfig
from luban.models.shape_base import BaseShapeConfig
from luban.objectives.config import ON_CONVERSATIONS, ON_TEXT
from luban.planning import dial


def resolve(kind: str, config: Config, work: Work) -> Config:
    """The config with plain numbers where it said auto. Fields that are right only on this machine stay the stage's."""
    return resolve_train(config, work) if kind == "train" else config


def resolve_train(config: Any, work: Work, shape: BaseShapeConfig | None = None) -> Any:
    """Shape (if it is not known) from preset, model or depth; then sequence, batch and rates from it and the amount of data."""
    facts = train_facts(config, work)
    shape = shape or _shape(config, work, facts)
    task = _learned(config) not in (*ON_TEXT, *ON_CONVERSATIONS)
    # A task's rows are padded to the longest of a step only, so its length is a bound and no cost.
    before = getattr(config.adapter, "tokens", 0)  # a learned prompt or prefix takes places of its own
    sequence = config.sequence_length if config.sequence_length != "auto" else min(shape.maximum_positions - before, 512 if task else 2048)
    check_room(sequence, shape.maximum_positions, before)
    tokens = _tokens(config, facts)
    step = config.batch_tokens if config.batch_tokens != "auto" else dial.batch_tokens(tokens, sequence, _learned(config))
    if step < sequence:
        raise ConfigError("batch_tokens {step} is less than one row of sequence_length {sequence}", "a step reads whole rows", "raise batch_tokens or lower sequence_length", step=step, sequence=sequence)
    optimizer = {**config.optimizer.explicit(), **_rates(config, shape, bool(work.inputs.get("model")))}
    chosen = {"shape": shape.model_dump(), "depth": shape.layers, "sequence_length": sequence, "batch_tokens": step, "batch_examples": 32 if config.batch_examples == "auto" else config.batch_examples, "optimizer": optimizer}
    chosen["gradient_clip"] = (0.0 if config.engine == "layerwise" else 1.0) if config.gradient_clip == "auto" else config.gradient_clip
    said = {name: value for name, value in (("depth", shape.layers), ("sequence_length", sequence), ("batch_tokens", step)) if getattr(config, name) == "auto"}
    if config.optimizer.learning_rate == "auto":
        said["optimizer.learning_rate"] = optimizer["learning_rate"]
    if said:
        say("auto: {choices}", choices=", ".join(f"{name} {value}" for name, value in said.items()))
    from luban.training.engines import check_engine  # with torch, which showing a plan does without until here

    config = config.updated(**chosen)
    check_engine(config, config.batch_examples if task else config.batch_tokens // sequence)
    return config


def check_room(sequence: int, maximum: int, before: int) -> None:
    """ConfigError where a row of so many tokens, and what is learned ``before`` it, are more than the model has positions."""
    if sequence > maximum:
        raise ConfigError("sequence_length {sequence} is more than the model's maximum_positions {maximum}", "", "lower it, or set shape.maximum_positions (or shape.rope_scaling)", sequence=sequence, maximum=maximum)
    if sequence + before > maximum:
        raise ConfigError(
            "sequence_length {sequence} leaves no room for adapter.tokens {before} among the model's maximum_positions {maximum}", "a learned prompt or prefix takes places of its own", "lower it to {room}, or set shape.maximum_positions (or shape.rope_scaling)",
            sequence=sequence, before=before, maximum=maximum, room=maximum - before,
        )  # fmt: skip


def _learned(config: Any) -> str:
    """The objective that decides lengths and rates: of a distillation the one that is distilled."""
    return getattr(config.objective, "of", config.objective_name)


def _rates(config: Any, shape: BaseShapeConfig, from_model: bool) -> dict[str, float]:
    """The optimizer's fields that say auto."""
    optimizer = config.optimizer
    suggested = dial.learning_rates(optimizer.name, shape.hidden_size, _learned(config), from_model, shape.architecture, shape.layers)
    if optimizer.name == "adafactor" and optimizer.relative_step:
        suggested = dial.relative_rates(suggested, shape.hidden_size, _learned(config), from_model)
    if config.adapter:
        suggested = dial.adapter_rates(suggested, config.adapter.method)
    suggested = dial.optimizer_rates(suggested, optimizer.name)
    if optimizer.learning_rate != "auto" and optimizer.name != "muon":
        suggested["embedding_learning_rate"] = optimizer.learning_rate
    suggested |= {name: optimizer.settled(name) for name in ("betas", "momentum", "weight_decay")}
    return {name: value for name, value in suggested.items() if getattr(optimizer, name) == "auto"}


def train_facts(config: Any, work: Work) -> dict[str, int]:
    """``vocabulary_size`` and ``train_tokens`` of the inputs, as far as they are known."""
    facts: dict[str, int] = {}
    for item in listed(work.inputs.get("data")):
        if isinstance(item, Artifact) and item.kind == "encode":
            facts["train_tokens"] = facts.get("train_tokens", 0) + item.metrics["train"]["tokens"]
            facts["vocabulary_size"] = item.metrics.get("vocabulary_size") or vocabulary_of(item.path / "tokenizer")
        elif not isinstance(item, Artifact):
            size = sum(file.stat().st_size for file in named_files(item))
            facts["train_tokens"] = facts.get("train_tokens", 0) + size // 3
    tokenizer = next(iter([*listed(work.inputs.get("tokenizer")), *listed(work.inputs.get("objective.teacher"))]), None)
    if tokenizer is not None:
        path = getattr(tokenizer, "path", tokenizer)
        unmade = isinstance(tokenizer, Artifact) and not path.exists()  # `check` looks ahead
        facts["vocabulary_size"] = tokenizer.metrics["vocabulary_size"] if unmade else vocabulary_of(path)
    return facts


def _shape(config: Any, work: Work, facts: dict[str, int]) -> BaseShapeConfig:
    if model := work.inputs.get("model"):
        if isinstance(config.shape, str) or config.shape.explicit() or config.depth != "auto":  # an empty shape asks for nothing
            raise ConfigError("both model and a new shape are given", "a model that training continues from keeps its shape", "leave out depth and shape, or model")
        return read_shape(getattr(model, "path", model))
    vocabulary = facts.get("vocabulary_size")
    if vocabulary is None:
        raise ConfigError("a new model needs a tokenizer to know its vocabulary", "", "name a train_tokenizer stage or a folder with tokenizer.json as tokenizer")
    if isinstance(config.shape, str):
        return preset(config.shape).updated(vocabulary_size=vocabulary)
    if config.depth == "auto" and "layers" in config.shape.model_fields_set and "hidden_size" in config.shape.model_fields_set:
        return config.shape.updated(vocabulary_size=_room(config.shape, vocabulary)).resolved(maximum_positions=512)
    depth = config.depth if config.depth != "auto" else dial.depth_for_tokens(_tokens(config, facts))
    if not isinstance(config.shape, ShapeConfig):
        return config.shape.updated(vocabulary_size=_room(config.shape, vocabulary)).resolved(depth=depth, maximum_positions=512)
    return dial.shape_of_depth(depth, _room(config.shape, vocabulary), config.shape)


def _room(shape: BaseShapeConfig, vocabulary: int) -> int:
    """Rows of the table: the tokenizer's, or as many more as the recipe asks for."""
    given = shape.explicit().get("vocabulary_size", "auto")
    if given == "auto":
        return vocabulary
    if given < vocabulary:
        raise ConfigError("shape.vocabulary_size: {given} is less than the {vocabulary} tokens of the tokenizer", "every token needs a row of the embedding", "leave it out, or give a number that is large enough", given=given, vocabulary=vocabulary)
    return given


def _tokens(config: Any, facts: dict[str, int]) -> int:
    """Tokens the run reads, as far as that can be known before its batch is."""
    epoch = facts.get("train_tokens", 1_000_000)
    if config.length.unit == "steps":
        return int(config.length.value) * (config.batch_tokens if config.batch_tokens != "auto" else 4096)
    return int(config.length.value) if config.length.unit == "tokens" else int(config.length.value * epoch)


def vocabulary_of(folder: Path) -> int:
    """Tokens of the tokenizer.json that is named, or that lies in a folder."""
    file = folder / "tokenizer.json" if folder.is_dir() else folder
    content = json.loads(file.read_bytes())
    known = content["model"]["vocab"]
    ids = known.values() if isinstance(known, dict) else range(len(known))
    return max([*ids, *(token["id"] for token in content.get("added_tokens", []))]) + 1
