"""Predicted against measured peak memory of real training steps on this processor: allocator bytes, and the process's own beside them. ``python -m benchmarks.planner grid``.

What is measured is what torch's allocator for processors holds (allocator.py), less what it held before the model was made; the peak is that of the steps.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from benchmarks.planner import allocator
from luban.adapters.attached import attach
from luban.foundation.config import build
from luban.foundation.hardware import resident_bytes
from luban.models.families import build_model, family_of
from luban.models.narrow import new_narrow
from luban.models.quantized_model import random_quantized
from luban.objectives.base import load_objective
from luban.parallel.engine import OnePass, TorchEngine
from luban.parallel.layerwise import LayerwiseEngine
from luban.parallel.layouts import Layout as Ranked
from luban.planning.job import Job, Layout, may_be_own
from luban.planning.search import account_of
from luban.tokens.batch import Batch
from luban.training.config import TrainConfig
from luban.training.optimizers import Optimizers
from luban.training.precision import DTYPES, choose_attention, choose_layers

STEPS = 2  # in the second the optimizer's state is there


@dataclass(frozen=True)
class Case:
    """A training: a shape, rows of so many tokens, and fields of `train`."""

    name: str
    shape: dict[str, Any]
    sequence: int = 64
    step_rows: int = 8
    rows: int = 4
    train: dict[str, Any] = field(default_factory=dict)
    layout: dict[str, Any] = field(default_factory=dict)

    @property
    def made(self) -> Any:
        return build(family_of(self.shape["architecture"]).shape, self.shape).resolved()

    @property
    def config(self) -> TrainConfig:
        rates = {"learning_rate": 1e-3, "embedding_learning_rate": 1e-3, "matrix_learning_rate": 1e-3}
        optimizer = {**self.train.get("optimizer", {}), **rates}
        return build(TrainConfig, {"data": "none", "sequence_length": self.sequence, "batch_tokens": self.sequence * self.step_rows, **self.train, "optimizer": optimizer})


def shape(architecture: str, **fields: Any) -> dict[str, Any]:
    usual = {"architecture": architecture, "layers": 3, "hidden_size": 192, "heads": 3, "vocabulary_size": 1024, "maximum_positions": 256}
    return {**usual, **fields}


def cases() -> Iterator[Case]:
    """Families × recompute, optimizers in two kinds of run, adapters, what is learned before the texts, quantised bases, narrow weights, the layer-wise engine, bfloat16."""
    mixture = shape("qwen3_moe", experts=8, experts_per_token=2)
    for name, one in [(architecture, shape(architecture)) for architecture in ("llama", "qwen3", "gpt2", "bert", "t5", "bart")] + [("qwen3_moe", mixture)]:
        for mode in ("none", "selective", "full"):
            yield Case(f"{name}, recompute {mode}", one, train={"recompute": mode})
    wide = shape("llama", hidden_size=320, heads=5)
    for optimizer in ("adamw", "adamw_8bit", "adafactor", "lion", "muon", "sgd"):
        yield Case(f"llama, {optimizer}, weights weigh most", wide, 32, 2, 1, {"optimizer": {"name": optimizer}})
        yield Case(f"llama, {optimizer}, activations weigh most", shape("llama"), 64, 16, 16, {"optimizer": {"name": optimizer}})
    for method in ("lora", "dora", "rslora", "adalora", "vera", "ia3", "pfeiffer", "houlsby", "bitfit"):
        yield Case(f"llama, {method}", shape("llama"), 64, 8, 8, {"adapter": {"method": method}})
    for architecture in ("llama", "gpt2", "bert", "t5", "bart"):
        for method in ("prompt", "prefix", "p_tuning"):
            yield Case(f"{architecture}, {method}", shape(architecture), 64, 8, 8, {"adapter": {"method": method}})
    for settings in ({"method": "prefix", "projection": True}, {"method": "p_tuning", "network": "lstm"}):
        yield Case(f"llama, {settings['method']}'s network, recompute full", shape("llama"), 64, 8, 4, {"adapter": settings, "recompute": "full"})
    yield Case("bert, lora, recompute full", shape("bert"), 64, 8, 8, {"adapter": {"method": "lora"}, "recompute": "full"})
    for code in ("nf4", "int4", "int8"):
        yield Case(f"llama, lora on {code}", shape("llama"), 64, 8, 8, {"adapter": {"method": "lora"}, "quantization": {"format": code}})
    for optimizer in ("adafactor", "lion"):
        yield Case(f"llama, weights in bfloat16, {optimizer}", wide, 32, 2, 1, {"weights": "bfloat16", "optimizer": {"name": optimizer}})
        yield Case(f"llama, weights in bfloat16, layerwise, {optimizer}", wide, 32, 2, 2, {"weights": "bfloat16", "engine": "layerwise", "optimizer": {"name": optimizer}})
    yield Case("llama, layerwise, adamw", wide, 32, 2, 2, {"engine": "layerwise"})
    for architecture in ("llama", "qwen3", "gpt2", "bert"):
        yield Case(f"{architecture}, products in bfloat16", shape(architecture), train={"precision": "bfloat16"})
    for mode in ("selective", "full"):
        yield Case(f"llama, products in bfloat16, recompute {mode}", shape("llama"), train={"precision": "bfloat16", "recompute": mode})


def predicted(case: Case, layers: str = "auto") -> Any:
    """What the planner says, as an account (luban.planning.shadow)."""
    config, precision = case.config.updated(layers=layers), case.train.get("precision", "float32")
    job = Job(
        case.made, case.sequence, case.step_rows, case.rows, optimizer=config.optimizer.name, momentum=config.optimizer.settled("momentum"), precision=precision,
        weights=config.weights, engine=config.engine, recompute=config.recompute, adapter=config.adapter, quantization=config.quantization,
        own_layers=may_be_own(config, "cpu", precision),
    )  # fmt: skip
    return account_of(job, Layout(**case.layout))


def measured(case: Case, layers: str) -> tuple[int, int]:
    """Bytes that torch's allocator held at the most during the steps, and those of the process before the model was made. ``layers`` as `luban train` has it."""
    torch.set_num_threads(1)
    gc.collect()
    base, before = resident_bytes(), allocator.held()
    engine = engine_of(case, layers, Ranked())
    allocator.most()
    for step in range(STEPS):
        engine.forward_backward(batch_of(case, engine.model), 1.0)
        engine.clip(0.0 if engine.name == "layerwise" else 1.0)
        engine.step(1.0, step + 1, None)
    return allocator.most() - before, base


def engine_of(case: Case, layers: str, layout: Ranked) -> TorchEngine:
    """The training's engine, its model placed as the layout has it."""
    config, made = case.config, case.made
    precision = DTYPES[case.train.get("precision", "float32")]
    if config.quantization:
        model = random_quantized(made, config.quantization, 0)
    else:
        model = new_narrow(made, 0) if config.weights == "bfloat16" else build_model(made).initialize(0)
    attends = choose_attention("auto", torch.device("cpu"), precision)
    model.own_attention, model.own_layers = attends == "own", choose_layers(config.updated(layers=layers), attends) == "own"
    if config.adapter:
        attach(model, config.adapter, 0).before_training(model, 100)
    model.recompute = config.recompute
    layout.place(model)
    kind = LayerwiseEngine if config.engine == "layerwise" else TorchEngine
    optimizer = Optimizers(model, config.optimizer, config.regularization, apart=kind is LayerwiseEngine)
    model.train()
    return kind(model, optimizer, load_objective("causal"), case.rows, precision, OnePass(), layout)


def batch_of(case: Case, model: Any) -> Batch:
    """Random tokens for a step."""
    tokens = torch.randint(0, model.shape.vocabulary_size, (case.step_rows, case.sequence + 1))
    places = torch.arange(case.sequence).expand(case.step_rows, -1).contiguous()
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(case.step_rows, case.sequence), places, None, [])
    if model.shape.kind == "encoder_decoder":
        batch.source = batch.inputs
    return batch


def table(wanted: str, layers: str) -> tuple[str, list[float]]:
    """A line of Markdown for each case whose name has ``wanted`` in it, and the errors."""
    lines, errors = ["| training | measured MiB | predicted MiB | error | the peak is in the |", "| --- | --- | --- | --- | --- |"], []
    for case in cases():
        if wanted not in case.name:
            continue
        truth, base = measured(case, layers)
        account = predicted(case, layers)
        errors.append(account.peak / truth - 1)
        lines.append(f"| {case.name} | {truth / 2**20:.2f} | {account.peak / 2**20:.2f} | {errors[-1]:+.1%} | {account.peak_moment} |")
        print(lines[-1], f"process {base / 2**20:.0f} MiB", flush=True)
    return "\n".join(lines), errors
