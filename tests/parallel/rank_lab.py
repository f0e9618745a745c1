"""Small models with batches of uneven rows, and what an engine makes of some steps of them: for one process and for several alike."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as functional

from luban.foundation.config import build
from luban.models.base import Model
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.objectives.base import Objective, Term
from luban.objectives.losses import token_sum
from luban.parallel.engine import TorchEngine
from luban.parallel.layouts import Layout, local, whole
from luban.tokens.batch import Batch, Row, batch_of
from luban.training.config import OptimizerConfig
from luban.training.optimizers import Optimizers

WORDS = 61
SHAPES: dict[str, dict[str, Any]] = {
    "mistral": {"layers": 4, "key_value_heads": 2, "tied_embeddings": False},
    "llama": {"layers": 2, "key_value_heads": 2, "tied_embeddings": True},
    "qwen2": {"layers": 2, "tied_embeddings": False},
    "qwen3": {"layers": 2, "key_value_heads": 2, "sliding_window": 5},
    "gpt2": {"layers": 2},
    "roberta": {"layers": 2},
    "bart": {"layers": 3, "decoder_layers": 1},
    "mbart": {"layers": 2},
    "qwen2_moe": {"layers": 2, "dense_layers": [0], "experts": 4, "experts_per_token": 2, "expert_size": 16, "shared_expert_size": 24, "router_z_weight": 0.01},
    "bert": {"layers": 2},
    "t5": {"layers": 2, "decoder_layers": 3},
    "mixtral": {"layers": 4, "experts": 4, "experts_per_token": 2},
    "qwen3_moe": {"layers": 2, "experts": 4, "experts_per_token": 2, "expert_size": 16},
    "luban-lstm": {"layers": 1},
}


class Words(Objective):
    """Each next word, or each word."""

    unit = "token"

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch)), "half": Term(batch.weights.sum() / 2, 0.0)}


class Kinds(Objective):
    """A label for each row."""

    unit = "example"

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        return model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term((functional.cross_entropy(outputs, batch.extra["labels"], reduction="none") * batch.weights[:, 0]).sum())}


class Alike(Kinds):
    """Rows of one label have vectors that point the same way: every row is compared with every other."""

    scope = "batch"

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        vectors, labels = functional.normalize(outputs, dim=-1), batch.extra["labels"]
        return {"loss": Term(((vectors @ vectors.T - (labels[:, None] == labels).to(vectors.dtype)).square() * batch.weights).sum())}


def make(name: str) -> tuple[Model, Objective, list[Batch]]:
    """A model in float64, an objective for it, and the batches of three steps: five units, one unit (so that a rank has none), four."""
    architecture, _, kind = name.partition("/")
    fields = {"architecture": architecture, "hidden_size": 32, "heads": 4, "feed_forward_size": 48, "vocabulary_size": WORDS, "maximum_positions": 32, **SHAPES[architecture]}
    family = family_of(architecture)
    known = {key: value for key, value in fields.items() if value is not None and (key == "architecture" or key in family.shape.model_fields)}
    model = build_model(build(family.shape, known).resolved()).initialize(3).double()
    objective: Objective = Words()
    if kind:
        model = model.with_head(Head("sequence", "classification", ("a", "b", "c"), "single_label"), 3)
        objective = {"kinds": Kinds, "alike": Alike}[kind]()
    group = 2 if kind else 1
    return model, objective, [_batch(units * group, group, architecture, bool(kind), seed) for seed, units in enumerate((5, 2 if kind == "alike" else 1, 4))]


def _batch(count: int, group: int, architecture: str, labelled: bool, seed: int) -> Batch:
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        ids = draw.integers(5, WORDS, int(draw.integers(3, 14)))
        if labelled:
            rows.append(Row(ids, np.ones(1, np.float32), extra={"labels": np.int64(draw.integers(3))}))
        else:
            source = {"source_ids": draw.integers(5, WORDS, int(draw.integers(3, 9)))} if architecture in ("t5", "bart", "mbart") else {}
            rows.append(Row(ids, (draw.random(len(ids)) < 0.7).astype(np.float32), targets=np.roll(ids, -1), **source))
    made = batch_of(rows, 0, group=group)
    return replace(made, weights=made.weights.double())


def train(name: str, layout: Layout, optimizer: str = "adamw", micro_rows: int = 2, clip: float = 0.5, steps: int = 3, dropout: float = 0.0, recompute: str = "none", precision: torch.dtype = torch.float32, overflow: int = 0) -> dict[str, Any]:
    """Losses, gradient norms, a validation and the weights of some steps; in step ``overflow`` one number of the gradients is infinite, and the step is refused."""
    model, objective, batches = make(name)
    model.recompute = recompute
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):  # whose draws are each rank's own
            module.p = dropout
    layout.place(model)
    config = OptimizerConfig(name=optimizer, learning_rate=1e-2, embedding_learning_rate=1e-2, matrix_learning_rate=1e-2)
    engine = TorchEngine(model, Optimizers(model, config), objective, micro_rows, precision, layout=layout)
    figures = []
    model.train()
    for number in range(steps):
        means = engine.forward_backward(batches[number % len(batches)])
        held = getattr(layout, "held", None)
        if number + 1 == overflow and (held is None or held.get_local_rank("held") == held["held"].size() - 1):  # of the last shard, wherever it is held
            local(next(parameter.grad for parameter in model.parameters() if parameter.grad is not None)).view(-1)[0] = float("inf")
        norm = engine.clip(clip)
        engine.step(1.0, number + 1, norm.isfinite())
        figures.append({**{key: float(value) for key, value in means.items()}, "norm": float(norm) if norm.isfinite() else -1.0, "scale": engine.scaler.get_scale()})
    figures.append(engine.evaluate(batches))
    return {"figures": figures, "weights": {key: whole(value.detach()).clone() for key, value in model.named_parameters()}, "engine": engine}


def apart(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The largest difference of two trainings, of figures as a share of them and of weights."""
    assert [list(step) for step in one["figures"]] == [list(step) for step in other["figures"]], (one["figures"], other["figures"])
    figures = max(abs(value - second[key]) / max(1.0, abs(value)) for first, second in zip(one["figures"], other["figures"], strict=True) for key, value in first.items())
    weights = max(float((one["weights"][key] - value).abs().max()) for key, value in other["weights"].items())
    return max(figures, weights)
