"""`train`: a model directory and, beside it in training/, the state and the log of how it was made."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from luban.adapters.files import save_adapter
from luban.foundation.artifacts import Work, listed, read_json, write_json
from luban.foundation.console import bytes_text, count_text, say, seconds_text, warn
from luban.foundation.custom import load_custom
from luban.foundation.errors import ConfigError, Interrupted
from luban.models.base import Model
from luban.models.config_json import head_from, read_config
from luban.models.counts import flops_per_token, parameters
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.objectives.base import DataRequest, Loaders, Objective, load_objective
from luban.objectives.config import ON_TEXT
from luban.parallel.layouts import Layout, take_to
from luban.parallel.ranks import Ranks, here
from luban.tokenizer.tokenizer import Tokenizer
from luban.training import state_files
from luban.training.averaging import Average
from luban.training.beginning import base_folder, check_kind, find_tokenizer, for_tokenizer, known_quantization, make_model
from luban.training.card import write_model_card
from luban.training.checkpoints import Checkpointer, branch, restore
from luban.training.compiling import CompileTimer, require_compiler
from luban.training.config import CheckpointConfig, TrackConfig, TrainConfig
from luban.training.consumed import Ledger
from luban.training.deepspeed_json import SWAP
from luban.training.engines import ENGINES, choose_recompute, make_engine
from luban.training.events import Events
from luban.training.folds import cross_validate
from luban.training.forgetting import Memory, general_text, remembers
from luban.training.goodput import Clock
from luban.training.guards import Guard
from luban.training.hooks import Agreement, Callback, Follower, Sampler, TimeKeeper, Validator
from luban.training.layers import LayerWatch
from luban.training.layout import choose_layout
from luban.training.loop import train
from luban.training.memory import Explainer
from luban.training.optimizers import freeze, require_learning
from luban.training.parity import check_parity
from luban.training.passes import make_passes, make_teacher
from luban.training.precision import DTYPES, choose_attention, choose_device, choose_layers, choose_precision, prepare_machine
from luban.training.probe import fitting_rows
from luban.training.randomness import seed_all
from luban.training.recheck import Rechecked
from luban.training.rehearsal import settle
from luban.training.retention import Cadence
from luban.training.run import Hook, Run
from luban.training.schedules import make_schedule
from luban.training.signals import StopSignals, WallClock, asked_to_leave
from luban.training.small_data import Unfreezer, add_noise, set_dropout
from luban.training.sources import note_sources
from luban.training.stragglers import Stragglers
from luban.training.tracking import Tracker
from luban.training.watchdog import Watchdog

VERSION = 1


def run(config: TrainConfig, work: Work) -> None:
    """Train, from random weights or a model directory, to a Hugging Face model directory.

    Every ``auto`` that shapes the result is a plain number by now (the runner asked planning).
    """
    if config.validation.folds:
        cross_validate(config, work, train_once)
    training, choices = train_once(config, work)
    model = training.engine.layout.whole_model(training.model)
    if model is None:  # the first process has all of it, and writes it
        return
    training.model, tokenizer = model.eval(), training.tokenizer
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
    """One training in ``work.path/training``, from the start or where it was stopped, to the weights that are to be saved. All ranks run it; only the first
    leaves files in the folder, what another would write goes to a folder that is dropped with it.

    ``fold`` holds out that one of the folds instead of the validation share. Raises Interrupted when a signal asked to stop.
    """
    folder, ranks = work.path / "training", here()
    written = ranks.scratch / ("" if fold is None else f"fold-{fold}") / "training" if ranks.scratch else folder
    for place in (folder, written):
        place.mkdir(parents=True, exist_ok=True)
    clock = Clock(written, config.track.energy)
    try:
        with clock.running(), Watchdog(clock, config.guards.watchdog, folder, ranks) as watchdog, StopSignals() as signals, Explainer(config).watching() as memory:
            memory.run = training = set_up(config, work, fold, written)
            training.clock = clock
            return _train(training, work, fold, written, watchdog, signals)
    except Interrupted:
        ranks.leave()
        raise


def set_up(config: TrainConfig, work: Work, fold: int | None, written: Path) -> Run:
    """A training before its first step: data, model, engine. ``written`` is where this rank may leave files."""
    folder, ranks = work.path / "training", here()
    device = choose_device(ranks.local_rank)
    objective = open_objective(config, work)
    choices = _choices(config, work, device, objective.by_example, ranks)
    tokenizer, loaders = read_data(config, work, objective, written.parent, fold)
    model = make_model(config, work, tokenizer, objective)
    if not _waits_on_host(config, choices, objective, ranks):
        model.to(device)
    for _ in ranks.in_turn():  # what takes long to find out, the first process leaves to the others
        objective.before_training(model, loaders, folder, DTYPES[choices["precision"]])
    seed_all(work.seed, ranks.rank)  # dropout and its kin, whatever ran in this process before
    made = assemble(config, choices, folder, model, tokenizer, objective, loaders, device=device)
    if config.layout.tensor > 1:
        seed_all(work.seed, made.engine.layout.seat)
    settle(made)
    return made


def _waits_on_host(config: TrainConfig, choices: dict[str, Any], objective: Objective, ranks: Ranks) -> bool:
    """Whether the model stays in the host's memory until each rank takes its part of it: a device may have no room for the whole."""
    asked = config.layout
    shard = asked.shard if asked.shard != "auto" else (choices.get("layout") or {}).get("shard", "full")
    cuts = shard != "none" or asked.tensor * asked.pipeline * asked.expert > 1
    looked_at = type(objective).before_training is not Objective.before_training or not isinstance(config.recompute, str) or config.regularization.adversarial.method != "none"  # before it is cut
    return cuts and not ranks.alone and config.engine == "torch" and not looked_at


def open_objective(config: TrainConfig, work: Work) -> Objective:
    """What is learned, by its config or from the user's own file."""
    objective = load_objective(config.objective if not isinstance(config.objective, str) else str(work.inputs.get("objective") or config.objective))
    check_kind(config, objective)
    return objective


def read_data(config: TrainConfig, work: Work, objective: Objective, folder: Path, fold: int | None = None) -> tuple[Tokenizer, Loaders]:
    """The tokenizer of a training, and its loaders: each step's rows are a function of these arguments. What could not be used is noted in ``folder``."""
    tokenizer = objective.adapt_tokenizer(find_tokenizer(work))
    loaders = objective.loaders(_data(config, work, tokenizer, fold, folder))
    if config.regularization.curriculum:
        loaders.train.pace(round(_total_steps(config, objective, loaders) * config.regularization.curriculum))
    return tokenizer, loaders


def _total_steps(config: TrainConfig, objective: Objective, loaders: Loaders) -> int:
    step_tokens = _step_tokens(config, objective)
    return config.length.steps(step_tokens, round(loaders.train.epoch_steps * step_tokens)) if objective.learns else 0


def _step_tokens(config: TrainConfig, objective: Objective) -> int:
    return (config.batch_examples if objective.by_example else max(1, config.batch_tokens // config.sequence_length)) * config.sequence_length


def _train(training: Run, work: Work, fold: int | None, written: Path, watchdog: Watchdog, signals: StopSignals) -> tuple[Run, dict[str, Any]]:
    """From the last checkpoint, if there is one, to the end."""
    config, choices, ranks = training.config, training.choices, here()
    tracker = Tracker(written, config.track if ranks.leads else TrackConfig(tensorboard=False), work.name)
    guard = Guard(training, config.guards, LayerWatch(training, config.guards, written, tracker.figures), written)
    guards: list[Hook] = [guard, watchdog]
    if config.guards.recheck_every:
        training.engine.passes = recheck = Rechecked(training, config.guards, written)
        guards.append(recheck)
    guards.append(Ledger(training, ranks.lead(lambda: note_sources(work, training.folder)), work.accepted))
    validator = _add_hooks(training, tracker, guards, [*(load_custom(str(reference)) for reference in listed(work.inputs.get("callbacks"))), *([work.watch] if work.watch else [])])
    if restore(training, another_length=bool(work.accepted)):
        say("continuing at step {step} of {total}", step=training.step, total=training.schedule.total)
    elif config.from_step:
        _branch(training, config, work)
    training.resumed()
    guard.events.retract(training.step)
    with contextlib.closing(tracker), contextlib.closing(training.checkpointer):  # the checkpointer first: what it is writing becomes whole
        tracker.open(training)
        memory = _memory(config, work, training, choices, fold)
        _introduce(training, choices)
        if training.step == 0:
            with training.clock.section("evaluation"), training.as_written():
                validator.after_step(training)
                if memory:
                    memory.measure(training, "before")
        signals.run = training
        train(training, guard)
    if guard.error:
        raise guard.error
    if asked_to_leave(training.stop_reason):
        guard.events.add("stopped", training.step, reason=training.stop_reason)
        raise Interrupted("stopped by {signal} at step {step} of {total}; everything is saved", "", "run the same command again: it continues", signal=training.stop_reason, step=training.step, total=training.schedule.total)

    signals.run = None
    with training.clock.section("evaluation"), training.as_written():
        validator.finish(training)
        if memory:
            memory.measure(training, "after")
    return training, choices


def _branch(training: Run, config: TrainConfig, work: Work) -> None:
    """Begin in the midst of another training."""
    if not (source := work.inputs["model"]):
        raise ConfigError("from_step names a checkpoint of model, and there is no model", "", "name the train stage as model, or leave from_step out")
    folder = Path(getattr(source, "path", source))
    branch(training, folder / "training", config.from_step)
    say("branching from {folder} at step {step} of {total}", folder=folder, step=training.step, total=training.schedule.total)


def _memory(config: TrainConfig, work: Work, training: Run, choices: dict[str, Any], fold: int | None) -> Memory | None:
    """What watches the general text of the base; none where nothing is tuned or no such text is known."""
    tuning = bool(config.adapter) or training.objective.name not in ON_TEXT
    if fold is not None or not remembers(training) or not (general := general_text(work, tuning)):
        return None
    request = replace(_data(config, work, training.tokenizer, None), data=general, validation=[], replay=[], mixture=[], packing="auto")
    return Memory(training, request, max(1, choices["micro_batch_rows"] or 2048 // config.sequence_length))


def _choices(config: TrainConfig, work: Work, device: torch.device, by_example: bool, ranks: Ranks) -> dict[str, Any]:
    """What was chosen on this machine, written before step one and replayed when the run is continued; threads only where as many processes share the machine."""
    file = work.path / "training" / "choices.json"
    known = ranks.lead(lambda: _read_choices(file, config))
    if known is not None:  # a run that was continued elsewhere may lack the compiler that it began with
        require_compiler(known["compile"], device)
        known["attention"] = choose_attention(known.get("attention", "torch"), device, DTYPES[known["precision"]])
        known["layers"] = choose_layers(config, known["attention"]) if known["layers"] == "own" else "torch"
    same = known is not None and known.get("processes", 1) == ranks.size
    threads = prepare_machine(known["threads"] if same else config.threads, config.determinism == "strict", ranks.local_size)
    if same:
        return known
    if known is not None:
        known |= {"processes": ranks.size, "threads": threads, "layout": _foreseen(config, work, ranks).get("layout") if _leaves_layout(config, ranks) else None}
        if ranks.leads:
            write_json(file, known)
        return known
    require_compiler(config.compile, device)
    precision = choose_precision(config.precision, device)
    name = next(key for key, value in DTYPES.items() if value == precision)
    rows = config.micro_batch_rows
    open_rows = rows == "fit" or (rows == "auto" and device.type != "cpu" and not by_example)
    foreseen = _foreseen(config, work, ranks) if open_rows or _leaves_layout(config, ranks) else {}
    if rows == "auto":
        # Measured on processors: micro-batches of about 2,048 tokens stay in cache and are the fastest.
        # Rows of examples are only as wide as the longest of a step, so there the engine counts tokens itself (0).
        rows = max(1, (2048 if device.type == "cpu" else 16384) // config.sequence_length) if not by_example else 0
        if "accumulate" in ENGINES[config.engine].lacks:
            rows = config.batch_examples if by_example else max(1, config.batch_tokens // config.sequence_length)
        elif open_rows and foreseen:
            rows = min(rows, foreseen["micro_batch_rows"])
    if rows == "fit":
        whole = config.batch_examples if by_example else max(1, config.batch_tokens // config.sequence_length)
        rows = ranks.lead(lambda: fitting_rows(config, work, -(-whole // ranks.size), foreseen.get("micro_batch_rows", 1)))
    attends = choose_attention(config.attention, device, precision)
    choices = {
        "device": device.type, "processes": ranks.size, "threads": threads, "precision": name, "micro_batch_rows": rows, "attention": attends, "layers": choose_layers(config, attends),
        "layout": foreseen.get("layout") if _leaves_layout(config, ranks) else None,
        "compile": config.compile, "cross_entropy": config.cross_entropy,  # auto: measured when the model stands (rehearsal.py)
    }  # fmt: skip
    if ranks.leads:
        write_json(file, choices)
    return choices


def _leaves_layout(config: TrainConfig, ranks: Ranks) -> bool:
    """Whether the processes are to be told what each of them holds."""
    return not ranks.alone and config.layout.shard == "auto"


def _foreseen(config: TrainConfig, work: Work, ranks: Ranks) -> dict[str, Any]:
    """What the planner makes of the training on these devices, said once; nothing where nobody asked it."""
    found = ranks.lead(lambda: work.foresee() if work.foresee else {})
    if found:
        say(
            "planned: layout.shard {shard}, micro-batches of {rows} rows, {need} ±{share:.0%} of {room} on each device", shard=found["layout"]["shard"], rows=found["micro_batch_rows"],
            need=bytes_text(found["bytes"]), share=found["share"], room=bytes_text(found["room"]),
        )  # fmt: skip
        if not found["fits"]:
            warn("by the planner's arithmetic the training does not fit: luban plan says what would")
    return found


def _read_choices(file: Path, config: TrainConfig) -> dict[str, Any] | None:
    """What an earlier process of the run has chosen; chosen anew where the file is missing or damaged. What the recipe says itself by now counts before it."""
    found = read_json(file)
    if not {"threads", "precision", "micro_batch_rows"} <= found.keys():
        return None
    said = {name: value for name in ("threads", "precision", "micro_batch_rows", "attention", "layers", "compile", "cross_entropy") if (value := getattr(config, name)) not in ("auto", "fit")}
    return {"layers": "torch", "compile": False, "cross_entropy": "chunked"} | found | said  # as they were before there was a choice


def _data(config: TrainConfig, work: Work, tokenizer: Tokenizer, fold: int | None, folder: Path | None = None) -> DataRequest:
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
        work=folder or work.path,
        teachers=[Path(getattr(source, "path", source)) for name in ("objective.teacher", "objective.reference") for source in listed(work.inputs.get(name))],
        model_head=_model_head(work),
        named={name.removeprefix("objective."): Path(getattr(source, "path", source)) for name in work.inputs if name.startswith("objective.") for source in listed(work.inputs.get(name))},
    )


def _model_head(work: Work) -> Head | None:
    """The head of the model directory that training starts from."""
    source = work.inputs["model"]
    return head_from(read_config(getattr(source, "path", source))) if source else None


def assemble(config: TrainConfig, choices: dict, folder: Path, model: Model, tokenizer: Tokenizer, objective: Objective, loaders: Loaders, layout: Layout | None = None, device: torch.device | None = None) -> Run:
    """A run of a model that was just made: its layout (the one that is given, or the config's) takes what this rank holds to the device that trains (the model's, if none is given), and its engine and optimizer stand on that."""
    device = device or model.device
    step_tokens, total = _step_tokens(config, objective), _total_steps(config, objective, loaders)
    precision = DTYPES[choices["precision"]]
    model.own_attention, model.own_layers = choices.get("attention", "torch") == "own", choices["layers"] == "own"
    model.compiled = choices["compile"] is True
    model.recompute = choose_recompute(config, model, choices["micro_batch_rows"] or 1)
    set_dropout(model, config.regularization)
    add_noise(model, config.regularization.neftune)
    if model.adapter:
        model.adapter.before_training(model, total)
    teacher = make_teacher(config.regularization.adversarial, model)
    layout = layout or choose_layout(config, model, objective, here(), choices.get("layout"), device)
    freeze(model, config.regularization.freeze)  # while all of it is here
    require_learning(model)
    layout.place(model)
    take_to(model, device)
    engine = make_engine(config, choices, model, objective, precision, make_passes(config.regularization, objective, model, teacher), layout, folder)
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
        choices=choices,
    )
    if config.regularization.average != "none":
        made.average = Average(model, config.regularization)
    made.measure_peak()
    return made


def _unused_flops(model: Model) -> float:
    """Operations a token that the closed form counts for the product with the vocabulary, which a task head does without."""
    return 6.0 * model.shape.vocabulary_size * model.shape.hidden_size if model.head is not None and model.head.replaces_output else 0.0


def _add_hooks(training: Run, tracker: Tracker, guards: list[Hook], callbacks: list[Any]) -> Validator:
    config, total = training.config, training.schedule.total

    def steps(every: Any, auto: int) -> int:
        return max(1, auto) if every == "auto" else every.steps(training.step_tokens, round(training.loaders.train.epoch_steps * training.step_tokens))

    decay = {training.schedule.decay_start} if config.schedule.shape == "warmup_stable_decay" else set()
    validator = Validator(steps(config.validation.every, -(-total // 10)), config.validation, training.loaders, tracker)
    sampler = Sampler(steps(config.samples.every, -(-total // 4)), config.samples, training.objective.conversational, tracker)
    training.checkpointer = Checkpointer(training, cadence_of(config.checkpoint, steps, total), steps(config.checkpoint.permanent, 1) if config.checkpoint.permanent else 0, decay, tracker.figures)
    limit = [WallClock(config.wall_clock, training.clock.started)] if config.wall_clock else []
    training.hooks = [tracker, *guards, CompileTimer(training), *_weight_hooks(training), validator, TimeKeeper(validator.every, tracker), Stragglers(validator.every, Events(training.folder)), sampler, *map(Callback, callbacks), *limit, Agreement(), training.checkpointer]
    return validator


def cadence_of(config: CheckpointConfig, steps: Callable[[Any, int], int], total: int) -> Cadence:
    """When checkpoints are due; ``steps`` makes steps of a length."""
    return Cadence(0 if config.every == "auto" else steps(config.every, 1), total, config.failures_every.seconds, config.ephemeral.seconds if config.ephemeral else 0.0)


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
        "learning_parameters": sum(value.numel() for value in ([each for each in training.model.parameters() if each.requires_grad] if training.engine.layout.elsewhere else training.engine.optimizer.names)),
        **({"general": training.history["general"]} if training.history.get("general") else {}),
        **{key: training.history[key] for key in ("best_validation", "best_metric", "best_step", "before", "after") if key in training.history},
        **training.loaders.report,
        "checkpoints": training.checkpointer.report(),
    }
    training.clock.leave("done")
    work.cost |= training.clock.report()
    work.metrics |= {"guard": found} if (found := training.history.get("guard")) and any(found.values()) else {}
    if (adapter := training.model.adapter) and (found := adapter.report(training.model)):
        work.metrics["adapter"] = found
        adapter.show(training.model)
    work.resolved |= {"choices": choices, "template_fingerprint": training.tokenizer.fingerprint(), "objective": training.objective.name}
    work.scrap += [f"training/{state_files.FOLDER}", f"training/{SWAP}"]
    if not training.schedule.unchanged_until:  # a longer run could not go on from here
        work.scrap += [*(f"training/{file.name}" for file in training.folder.glob("best-*.safetensors")), *(f"training/{name}" for name in training.checkpointer.passing())]
    say("trained on {tokens} tokens in {time}", tokens=count_text(training.tokens), time=seconds_text(training.seconds))
