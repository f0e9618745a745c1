"""Luban's side: the start that both sides share, and the training by its own recipe machinery."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import luban
from benchmarks.tasks import clock
from luban.foundation.artifacts import Artifact, Work
from luban.foundation.config import Source
from luban.models.huggingface import save_model
from luban.objectives.base import Loaders, Objective, load_objective
from luban.pipeline.recipe import make_recipe
from luban.pipeline.runner import open_inputs
from luban.planning.resolve import resolve
from luban.tokenizer.tokenizer import Tokenizer
from luban.training import stage
from luban.training.beginning import find_tokenizer, make_model
from luban.training.config import TrainConfig
from luban.training.precision import prepare_machine
from luban.training.schedules import Schedule, make_schedule

SEED = 1
NEVER = "1000000 steps"


@dataclass
class Start:
    """What both sides begin with: a model directory that holds the new head's first values, and the same batches."""

    folder: Path
    config: TrainConfig
    objective: Objective
    loaders: Loaders
    tokenizer: Tokenizer
    schedule: Schedule
    seed: int  # of the stage, with which its first step's random numbers begin


def train_stage(fields: dict[str, Any], threads: int) -> dict[str, Any]:
    """A train stage that does nothing beside its steps: no samples, checkpoints or validations on the way, and the last weights are kept."""
    return {
        "kind": "train", "threads": threads, "precision": "float32", "checkpoint": {"every": NEVER}, "track": {"tensorboard": False, "every": 1000000},
        "callbacks": [f"{Path(clock.__file__).resolve()}:after_step"], **fields,
        "validation": {"every": NEVER, "restore_best": False, "maximum_examples": 32, **fields.get("validation", {})},
    }  # fmt: skip


def tuning(row: Any, training: Path, test: Path, mapping: dict[str, Any], model: dict[str, Any], threads: int, seed: int = SEED, **more: Any) -> dict[str, Any]:
    """The recipe of a row's tuning; ``model`` says where it starts: ``{"model": folder}`` or ``{"shape": preset, "tokenizer": folder}``."""
    fields = {
        "objective": row.objective, "data": str(training), "validation_data": str(test), "mapping": mapping, **model,
        "sequence_length": row.length, "batch_examples": row.batch, "length": f"{row.epochs:g} epochs",
        "optimizer": {"learning_rate": row.rate, "weight_decay": 0.01, "betas": [0.9, 0.999]},
        "schedule": {"shape": "linear", "final": 0.0, "warmup": "auto"}, **more,
    }  # fmt: skip
    return {"name": row.name, "seed": seed, "stages": {"tuned": train_stage(fields, threads)}}


def begin(recipe: dict[str, Any], folder: Path) -> Start:
    """Make and save the weights that the recipe's last stage starts from, by the stage's own functions."""
    made = make_recipe(recipe, Path("."), "start", Source(), folder.parent)
    last = list(made.stages.values())[-1]
    work = Work(folder, open_inputs(made, last), made.seed, last.name)
    config = resolve("train", last.config, work)
    objective = load_objective(config.objective)
    prepare_machine(config.threads, False)
    tokenizer = objective.adapt_tokenizer(find_tokenizer(work))
    loaders = objective.loaders(stage._data(config, work, tokenizer, None))
    model = make_model(config, work, tokenizer, objective)
    save_model(model, folder, end_ids=tokenizer.stop_ids, begin_id=tokenizer.begin_of_text_id, pad_id=tokenizer.pad_id)
    tokenizer.save(folder)
    rows = config.batch_examples if objective.by_example else max(1, config.batch_tokens // config.sequence_length)
    step_tokens = rows * config.sequence_length
    total = config.length.steps(step_tokens, round(loaders.train.epoch_steps * step_tokens))
    schedule = make_schedule(config.schedule, total, step_tokens, round(loaders.train.epoch_steps * step_tokens))
    return Start(folder, config, objective, loaders, tokenizer, schedule, work.seed)


def from_start(recipe: dict[str, Any], start: Start) -> dict[str, Any]:
    """The recipe, its last stage starting from the saved weights."""
    stages = dict(recipe["stages"])
    name = list(stages)[-1]
    stages[name] = {key: value for key, value in stages[name].items() if key not in ("shape", "tokenizer", "depth")} | {"model": str(start.folder)}
    return {**recipe, "stages": stages}


def train(recipe: dict[str, Any], out: Path) -> tuple[Artifact, tuple[float, float]]:
    """Run the recipe; (the model's artifact, (wall, processor) seconds of its steps)."""
    artifact = luban.run(recipe, out=out)[-1]
    return artifact, clock.read(artifact.path / "training")
