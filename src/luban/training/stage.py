"""`train`: a model directory and, beside it in training/, the state and the log of how it was made."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from luban.foundation.artifacts import Artifact, Work, write_json
from luban.foundation.console import count_text, say, seconds_text
from luban.foundation.custom import load_custom
from luban.foundation.errors import ConfigError, Interrupted
from luban.models.base import Model
from luban.models.config_json import head_from, read_config
from luban.models.counts import flops_per_token, parameters
from luban.models.families import build_model
from luban.models.huggingface import load_model, save_model
from luban.models.heads import Head
from luban.models.shape_base import BaseShapeConfig
from luban.objectives.base import DataRequest, Loaders, Objective, load_objective
from luban.parallel.engine import TorchEngine
from luban.tokenizer.tokenizer import Tokenizer
from luban.training.averaging import Average
from luban.training.card import write_model_card
from luban.training.checkpoints import BEST, Checkpointer, restore
from luban.training.config import TrainConfig
from luban.training.folds import cross_validate
from luban.training.guards import Guard, StopSignals
from luban.training.hooks import Callback, Follower, Sampler, Validator
from luban.training.loop import train
from luban.training.optimizers import Optimizers
from luban.training.passes import make_passes
from luban.training.precision import DTYPES, choose_device, choose_precision, prepare_machine
from luban.training.run import Hook, Run
from luban.training.schedules import make_schedule
from luban.training.small_data import Unfreezer, add_noise, set_dropout
from luban.training.tracking import Tracker

VERSION = 1


def run(config: TrainConfig, work: Work) -> None:
    """Train, from random weights or a model directory, to a Hugging Face model directory.

    Every ``auto`` that shapes the result is a plain number by now (the runner asked planning).
    """
    if config.validation.folds:
        cross_validate(config, work, train_once)
    training, choices = train_once(config, work)
    model, tokenizer = training.model.eval(), training.tokenizer
    save_model(model.to("cpu"), work.path, end_ids=tokenizer.stop_ids, begin_id=tokenizer.begin_of_text_id, pad_id=tokenizer.pad_id)
    tokenizer.save(work.path)
    write_json(work.path / "generation_config.json", _generation(config, tokenizer))
    _report(training, work, choices)
    write_model_card(work)


def train_once(config: TrainConfig, work: Work, fold: int | None = None) -> tuple[Run, dict[str, Any]]:
    """One training in ``work.path/training``, from the start or where it was stopped, to the weights that are to be saved.

    ``fold`` holds out that one of the folds instead of the validation share. Raises Interrupted when a signal asked to stop.
    """
    folder = work.path / "training"
    folder.mkdir(parents=True, exist_ok=True)
    device = choose_device()
    objective = load_objective(config.objective if not isinstance(config.objective, str) else str(work.inputs.get("objective") or config.objective))
    _check_kind(config, objective)
    choices = _choices(config, folder, device, objective.by_example)
    known = _tokenizer(work)
    tokenizer = objective.adapt_tokenizer(known)
    loaders = objective.loaders(_data(config, work, tokenizer, fold))
    model = _model(config, work, tokenizer, objective).to(device)
    training = _assemble(config, choices, folder, model, tokenizer, objective, loaders)

    tracker = Tracker(folder, config.track, work.name)
    validator = _add_hooks(training, tracker, [load_custom(str(reference)) for reference in _listed(work, "callbacks")])
    if restore(training):
        for hook in training.hooks:
            if isinstance(hook, Unfreezer):
                hook.set(training.model, training.step)
        say("continuing at step {step} of {total}", step=training.step, total=training.schedule.total)
    tracker.open(training.step)
    _introduce(training, choices)
    try:
        if training.step == 0:
            validator.after_step(training)
        with StopSignals(training):
            train(training, Guard(folder))
    finally:
        tracker.close()
    if training.stop_reason.startswith("SIG"):
        raise Interrupted("stopped by {signal} at step {step} of {total}; everything is saved", "", "run the same command again: it continues", signal=training.stop_reason, step=training.step, total=training.schedule.total)

    validator.finish(training)
    return training, choices


def _choices(config: TrainConfig, folder: Path, device: torch.device, by_example: bool) -> dict[str, Any]:
    """What was chosen on this machine, written before step one and replayed when the run is continued."""
    file = folder / "choices.json"
    if file.exists():
        choices = json.loads(file.read_bytes())
        prepare_machine(choices["threads"], config.determinism == "strict")
        return choices
    threads = prepare_machine(config.threads, config.determinism == "strict")
    precision = choose_precision(config.precision, device)
    name = next(key for key, value in DTYPES.items() if value == precision)
    rows = config.micro_batch_rows
    if rows == "auto":
        # Measured on processors: micro-batches of about 2,048 tokens stay in cache and are the fastest.
        # Rows of examples are only as wide as the longest of a step, so there the engine counts tokens itself (0).
        rows = max(1, (2048 if device.type == "cpu" else 16384) // config.sequence_length) if not by_example else 0
    choices = {"device": device.type, "threads": threads, "precision": name, "micro_batch_rows": rows}
    write_json(file, choices)
    return choices


def _tokenizer(work: Work) -> Tokenizer:
    """The tokenizer that is named, or the one the data was encoded with, or the model's own; all must mean the same words."""
    encoded = [source.path / "tokenizer" for source in _listed(work, "data") if isinstance(source, Artifact) and source.kind == "encode"]
    named = [getattr(source, "path", source) for source in (work.inputs["tokenizer"], work.inputs["model"], *_listed(work, "objective.teacher")) if source is not None]
    folders = [*named[:1], *encoded] if work.inputs["tokenizer"] else [*encoded, *named]
    folders = [folder for folder in folders if (folder / "tokenizer.json").exists()]
    if not folders:
        raise ConfigError("there is no tokenizer to train with", "neither `tokenizer`, `model` nor `data` brings one", "name a train_tokenizer stage or a folder with tokenizer.json as tokenizer")
    tokenizer = Tokenizer.load(folders[0])
    for folder in encoded:
        _check_same_words(Tokenizer.load(folder), tokenizer, folder.parent)
    return tokenizer


def _check_kind(config: TrainConfig, objective: Objective) -> None:
    """An objective reads certain kinds of model; another is refused before anything is read."""
    if config.shape.kind not in objective.kinds:
        raise ConfigError(
            "the objective {objective} cannot be learned by {architecture}, which is of the kind {kind}",
            "it needs: {kinds}",
            "choose another architecture in shape, another model, or another objective",
            objective=objective.name, architecture=config.shape.architecture, kind=config.shape.kind, kinds=", ".join(objective.kinds),
        )  # fmt: skip


def _model(config: TrainConfig, work: Work, tokenizer: Tokenizer, objective: Objective) -> Model:
    """The model directory's weights, with room for tokens that were added to its tokenizer; or new weights; with the objective's head."""
    head = objective.head
    if not (source := work.inputs["model"]):
        model = build_model(_for_tokenizer(config.shape, tokenizer)).initialize(work.seed)
        return model.with_head(head, work.seed) if head else model
    folder = getattr(source, "path", source)
    model = load_model(folder, head=head, language_model=head is None, seed=work.seed)
    if (folder / "tokenizer.json").exists():
        own = Tokenizer.load(folder)
        _check_same_words(own, tokenizer, folder)
        if model.shape.vocabulary_size < tokenizer.vocabulary_size:
            added = range(model.shape.vocabulary_size, tokenizer.vocabulary_size)
            model.resize_vocabulary(tokenizer.vocabulary_size, {index: own.encode(tokenizer.decode([index], skip_special=False)) for index in added})
            say("{count} new tokens start as the mean of the pieces they replace", count=len(added))
    return model


def _for_tokenizer(shape: BaseShapeConfig, tokenizer: Tokenizer) -> BaseShapeConfig:
    """A new model's shape with what it must know of its tokenizer: room for its tokens, and which of them pad, begin and end a text."""
    known = {
        "vocabulary_size": max(shape.vocabulary_size, tokenizer.vocabulary_size),
        "padding_id": tokenizer.pad_id,
        "decoder_start_id": tokenizer.begin_of_text_id if tokenizer.begin_of_text_id is not None else tokenizer.pad_id,
        "end_ids": [tokenizer.end_of_text_id],
    }
    return shape.updated(**{name: value for name, value in known.items() if name in type(shape).model_fields})


def _check_same_words(known: Tokenizer, tokenizer: Tokenizer, owner: Path) -> None:
    """Tokens are known by their numbers: each that ``owner`` was made with must be the same token in ``tokenizer``."""
    theirs = tokenizer.core.get_vocab(with_added_tokens=True)
    moved = [token for token, index in known.core.get_vocab(with_added_tokens=True).items() if theirs.get(token) != index]
    if moved:
        raise ConfigError(
            "the tokenizer of {owner} is not the one of this stage: {count} of its tokens have a different id, {example!r} for one",
            "the model would read other words than were written",
            "use one tokenizer for model and data, or one that extends the model's (train_tokenizer with pretrained and extend)",
            owner=owner,
            count=len(moved),
            example=moved[0],
        )


def _listed(work: Work, name: str) -> list[Any]:
    """An input field's values, none, one or many, as a list."""
    value = work.inputs.get(name)
    return value if isinstance(value, list) else [value] if value is not None else []


def _data(config: TrainConfig, work: Work, tokenizer: Tokenizer, fold: int | None) -> DataRequest:
    return DataRequest(
        data=_listed(work, "data"),
        validation=_listed(work, "validation_data"),
        replay=_listed(work, "replay.data"),
        replay_share=config.replay.share,
        tokenizer=tokenizer,
        sequence_length=config.sequence_length,
        shape=config.shape if work.inputs["model"] else _for_tokenizer(config.shape, tokenizer),
        rows_per_step=max(1, config.batch_tokens // config.sequence_length),
        examples_per_step=config.batch_examples,
        seed=work.seed,
        packing=config.packing,
        validation_share=config.validation.share,
        fold=None if fold is None else (fold, config.validation.folds),
        mapping=config.mapping,
        mixture=config.mixture,
        work=work.path,
        teachers=[Path(getattr(source, "path", source)) for source in _listed(work, "objective.teacher")],
        model_head=_model_head(work),
    )


def _model_head(work: Work) -> Head | None:
    """The head of the model directory that training starts from."""
    source = work.inputs["model"]
    return head_from(read_config(getattr(source, "path", source))) if source else None


def _assemble(config: TrainConfig, choices: dict, folder: Path, model: Model, tokenizer: Tokenizer, objective: Objective, loaders: Loaders) -> Run:
    step_tokens = (config.batch_examples if objective.by_example else max(1, config.batch_tokens // config.sequence_length)) * config.sequence_length
    total = config.length.steps(step_tokens, round(loaders.train.epoch_steps * step_tokens)) if objective.learns else 0
    precision = DTYPES[choices["precision"]]
    model.recompute = config.recompute
    set_dropout(model, config.regularization)
    add_noise(model, config.regularization.neftune)
    optimizer = Optimizers(model, config.optimizer, config.regularization)
    if config.compile:
        for block in model.blocks():
            block.compile()  # in place: parameter names stay
    made = Run(
        config=config,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        loaders=loaders,
        engine=TorchEngine(model, optimizer, objective, choices["micro_batch_rows"], precision, make_passes(config.regularization, objective, model)),
        schedule=make_schedule(config.schedule, total, step_tokens, round(loaders.train.epoch_steps * step_tokens)),
        step_tokens=step_tokens,
        flops_per_token=flops_per_token(model.shape, config.sequence_length) - _unused_flops(model),
    )
    if config.regularization.average != "none":
        made.average = Average(model, config.regularization)
    if config.regularization.curriculum:
        loaders.train.pace(round(total * config.regularization.curriculum))
    made.measure_peak()
    return made


def _unused_flops(model: Model) -> float:
    """Operations a token that the closed form counts for the product with the vocabulary, which a task head does without."""
    return 6.0 * model.shape.vocabulary_size * model.shape.hidden_size if model.head is not None and model.head.replaces_output else 0.0


def _add_hooks(training: Run, tracker: Tracker, callbacks: list[Any]) -> Validator:
    config, total = training.config, training.schedule.total

    def steps(every: Any, auto: int) -> int:
        return max(1, auto) if every == "auto" else every.steps(training.step_tokens, round(training.loaders.train.epoch_steps * training.step_tokens))

    decay = {training.schedule.decay_start} if config.schedule.shape == "warmup_stable_decay" else set()
    validator = Validator(steps(config.validation.every, -(-total // 10)), config.validation, training.loaders, tracker)
    sampler = Sampler(steps(config.samples.every, -(-total // 4)), config.samples, training.objective.conversational, tracker)
    checkpointer = Checkpointer(steps(config.checkpoint.every, min(500, total // 10)), config.checkpoint.keep, decay)
    training.hooks = [tracker, *_weight_hooks(training), validator, sampler, *map(Callback, callbacks), checkpointer]
    return validator


def _weight_hooks(training: Run) -> list[Hook]:
    """What moves with the weights themselves: an average that follows them, layers that begin to learn."""
    hooks: list[Hook] = [Follower()] if training.average else []
    if every := training.config.regularization.unfreeze_every:
        steps = every.steps(training.step_tokens, round(training.loaders.train.epoch_steps * training.step_tokens))
        hooks.append(Unfreezer(training.model, steps))
    return hooks


def _introduce(training: Run, choices: dict[str, Any]) -> None:
    shape = training.model.shape
    say(
        "{parameters} parameters, {layers} layers of {width}, vocabulary {vocabulary}; {steps} steps of {tokens} tokens; {threads} threads, {peak:.0f} GFLOP/s measured",
        parameters=count_text(parameters(shape)["total"]),
        layers=shape.layers,
        width=shape.hidden_size,
        vocabulary=shape.vocabulary_size,
        steps=training.schedule.total,
        tokens=training.step_tokens,
        threads=choices["threads"],
        peak=training.peak_flops / 1e9,
    )


def _generation(config: TrainConfig, tokenizer: Tokenizer) -> dict[str, Any]:
    """Stop tokens, and how to sample: what the recipe says for its samples, over what the model it started from said."""
    sampling = config.samples.sampling.explicit()
    chosen = {name: sampling[name] for name in ("temperature", "top_p", "top_k", "min_p", "repetition_penalty") if name in sampling}
    if chosen:
        chosen["do_sample"] = chosen.get("temperature", 1.0) > 0
    return {**tokenizer.generation, **chosen, "eos_token_id": tokenizer.stop_ids, "pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.begin_of_text_id}


def _report(training: Run, work: Work, choices: dict[str, Any]) -> None:
    """Numbers for the manifest; checkpoints shrink to what a longer run would continue from."""
    work.licence(*training.loaders.licences)
    work.metrics |= {
        "steps": training.step,
        "tokens": training.tokens,
        "training_seconds": round(training.seconds, 1),
        "loss": training.last.get("loss"),
        "parameters": parameters(training.model.shape)["total"],
        **{key: training.history[key] for key in ("best_validation", "best_metric", "best_step", "before", "after") if key in training.history},
        **training.loaders.report,
    }
    work.resolved |= {"choices": choices, "template_fingerprint": training.tokenizer.fingerprint(), "objective": training.objective.name}
    if not training.schedule.unchanged_until:
        shutil.rmtree(training.folder / "checkpoints", ignore_errors=True)
        (training.folder / BEST).unlink(missing_ok=True)
    say("trained on {tokens} tokens in {time}", tokens=count_text(training.tokens), time=seconds_text(training.seconds))
