"""`train`: a model directory and, beside it in training/, the state and the log of how it was made."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luban.adapters.files import save_adapter
from luban.foundation.artifacts import Work, listed, write_json
from luban.foundation.console import count_text, say, seconds_text
from luban.foundation.custom import load_custom
from luban.foundation.errors import Interrupted
from luban.models.base import Model
from luban.models.config_json import head_from, read_config
from luban.models.counts import flops_per_token, parameters
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.objectives.base import DataRequest, Loaders, Objective, load_objective
from luban.objectives.config import ON_TEXT
from luban.tokenizer.tokenizer import Tokenizer
from luban.training.averaging import Average
from luban.training.beginning import base_folder, check_kind, find_tokenizer, for_tokenizer, known_quantization, make_model
from luban.training.card import write_model_card
from luban.training.checkpoints import BEST, Checkpointer, restore
from luban.training.config import TrainConfig
from luban.training.engines import ENGINES, choose_recompute, make_engine
from luban.training.folds import cross_validate
from luban.training.forgetting import Memory, general_text, remembers
from luban.training.guards import Guard, StopSignals
from luban.training.hooks import Callback, Follower, Sampler, Validator
from luban.training.loop import train
from luban.training.parity import check_parity
from luban.training.passes import make_passes, make_teacher
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
    tokenizer.save(work.path)
    write_json(work.path / "generation_config.json", _generation(config, tokenizer))
    if model.adapter:
        save_adapter(model.to("cpu"), work.path, base_folder(work), tokenizer, config.quantization or known_quantization(work))
        work.metrics["parity"] = check_parity(training, work.path)
    else:
        save_model(model.to("cpu"), work.path, end_ids=tokenizer.stop_ids, begin_id=tokenizer.begin_of_text_id, pad_id=tokenizer.pad_id)
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
    check_kind(config, objective)
    choices = _choices(config, folder, device, objective.by_example)
    known = find_tokenizer(work)
    tokenizer = objective.adapt_tokenizer(known)
    loaders = objective.loaders(_data(config, work, tokenizer, fold))
    model = make_model(config, work, tokenizer, objective).to(device)
    objective.before_training(model, loaders, folder, DTYPES[choices["precision"]])
    torch.manual_seed(work.seed)  # dropout and its kin, whatever ran in this process before
    training = _assemble(config, choices, folder, model, tokenizer, objective, loaders)

    tracker = Tracker(folder, config.track, work.name)
    validator = _add_hooks(training, tracker, [*(load_custom(str(reference)) for reference in listed(work.inputs.get("callbacks"))), *([work.watch] if work.watch else [])])
    if restore(training):
        for hook in training.hooks:
            if isinstance(hook, Unfreezer):
                hook.set(training.model, training.step)
        say("continuing at step {step} of {total}", step=training.step, total=training.schedule.total)
    tracker.open(training)
    memory = _memory(config, work, training, choices, fold)
    _introduce(training, choices)
    try:
        if training.step == 0:
            validator.after_step(training)
            if memory:
                memory.measure(training, "before")
        with StopSignals(training):
            train(training, Guard(folder))
    finally:
        tracker.close()
    if training.stop_reason.startswith("SIG"):
        raise Interrupted("stopped by {signal} at step {step} of {total}; everything is saved", "", "run the same command again: it continues", signal=training.stop_reason, step=training.step, total=training.schedule.total)

    validator.finish(training)
    if memory:
        memory.measure(training, "after")
    return training, choices


def _memory(config: TrainConfig, work: Work, training: Run, choices: dict[str, Any], fold: int | None) -> Memory | None:
    """What watches the general text of the base; none where nothing is tuned or no such text is known."""
    tuning = bool(config.adapter) or training.objective.name not in ON_TEXT
    if fold is not None or not remembers(training) or not (general := general_text(work, tuning)):
        return None
    request = replace(_data(config, work, training.tokenizer, None), data=general, validation=[], replay=[], mixture=[], packing="auto")
    return Memory(training, request, max(1, choices["micro_batch_rows"] or 2048 // config.sequence_length))


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
        if "accumulate" in ENGINES[config.engine].lacks:
            rows = config.batch_examples if by_example else max(1, config.batch_tokens // config.sequence_length)
    choices = {"device": device.type, "threads": threads, "precision": name, "micro_batch_rows": rows}
    write_json(file, choices)
    return choices


def _data(config: TrainConfig, work: Work, tokenizer: Tokenizer, fold: int | None) -> DataRequest:
    return DataRequest(
        data=listed(work.inputs.get("data")),
        validation=listed(work.inputs.get("validation_data")),
        replay=listed(work.inputs.get("replay.data")),
        replay_share=config.replay.share,
        tokenizer=tokenizer,
        sequence_length=config.sequence_length,
        shape=config.shape if work.inputs["model"] else for_tokenizer(config.shape, tokenizer),
        rows_per_step=max(1, config.batch_tokens // config.sequence_length),
        examples_per_step=config.batch_examples,
        seed=work.seed,
        packing=config.packing,
        validation_share=config.validation.share,
        fold=None if fold is None else (fold, config.validation.folds),
        mapping=config.mapping,
        mixture=config.mixture,
        work=work.path,
        teachers=[Path(getattr(source, "path", source)) for name in ("objective.teacher", "objective.reference") for source in listed(work.inputs.get(name))],
        model_head=_model_head(work),
        named={name.removeprefix("objective."): Path(getattr(source, "path", source)) for name in work.inputs if name.startswith("objective.") for source in listed(work.inputs.get(name))},
    )


def _model_head(work: Work) -> Head | None:
    """The head of the model directory that training starts from."""
    source = work.inputs["model"]
    return head_from(read_config(getattr(source, "path", source))) if source else None


def _assemble(config: TrainConfig, choices: dict, folder: Path, model: Model, tokenizer: Tokenizer, objective: Objective, loaders: Loaders) -> Run:
    step_tokens = (config.batch_examples if objective.by_example else max(1, config.batch_tokens // config.sequence_length)) * config.sequence_length
    total = config.length.steps(step_tokens, round(loaders.train.epoch_steps * step_tokens)) if objective.learns else 0
    precision = DTYPES[choices["precision"]]
    model.recompute = choose_recompute(config, model, choices["micro_batch_rows"] or 1)
    set_dropout(model, config.regularization)
    add_noise(model, config.regularization.neftune)
    if model.adapter:
        model.adapter.before_training(model, total)
    if config.compile:
        for block in model.blocks():
            block.compile()  # in place: parameter names stay
    teacher = make_teacher(config.regularization.adversarial, model)
    engine = make_engine(config, choices, model, objective, precision, make_passes(config.regularization, objective, model, teacher))
    made = Run(
        config=config,
        folder=folder,
        model=model,
        tokenizer=tokenizer,
        objective=objective,
        loaders=loaders,
        engine=engine,
        schedule=make_schedule(config.schedule, total, step_tokens, round(loaders.train.epoch_steps * step_tokens)),
        step_tokens=step_tokens,
        flops_per_token=flops_per_token(model.shape, config.sequence_length) - _unused_flops(model),
        teacher=teacher,
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
    hooks: list[Hook] = [Follower()] if training.average or training.teacher else []
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
        "learning_parameters": sum(value.numel() for value in training.engine.optimizer.names),
        **({"general": training.history["general"]} if training.history.get("general") else {}),
        **{key: training.history[key] for key in ("best_validation", "best_metric", "best_step", "before", "after") if key in training.history},
        **training.loaders.report,
    }
    if (adapter := training.model.adapter) and (found := adapter.report(training.model)):
        work.metrics["adapter"] = found
        adapter.show(training.model)
    work.resolved |= {"choices": choices, "template_fingerprint": training.tokenizer.fingerprint(), "objective": training.objective.name}
    if not training.schedule.unchanged_until:
        shutil.rmtree(training.folder / "checkpoints", ignore_errors=True)
        (training.folder / BEST).unlink(missing_ok=True)
    say("trained on {tokens} tokens in {time}", tokens=count_text(training.tokens), time=seconds_text(training.seconds))
