"""Serve a model in the foreground until stopped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from luban.adapters.adapted import adapted_layers, route, set_active
from luban.adapters.files import adapter_head, base_of, is_adapter, open_model, read_settings, read_tensors, wear
from luban.foundation.artifacts import Artifact, Work, listed
from luban.foundation.console import count_text, say
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.hardware import machine
from luban.inference.engine import Engine
from luban.inference.predictor import ENSEMBLE, PREDICTORS, Predictor
from luban.models.base import Model
from luban.models.config_json import read_config
from luban.models.counts import parameters
from luban.models.heads import Head
from luban.serving.batching import PredictionThread, on_thread
from luban.serving.config import ServeConfig
from luban.serving.defaults import sampling_of
from luban.serving.metrics import Metrics
from luban.serving.predictions import Predictions
from luban.serving.served import Served, single
from luban.serving.server import bind, serve_until_stopped
from luban.serving.service import WRITING, Service
from luban.serving.template_check import check_template
from luban.serving.worker import ModelThread
from luban.tokenizer.tokenizer import Tokenizer

VERSION = 1


def run(config: ServeConfig, work: Work) -> None:
    """Listen, load the model, say where it can be reached, and answer until a signal says stop."""
    folder = _model_folder(config, work)
    listener = bind(config.host, config.port)
    service = open_service(config, folder, [Path(getattr(source, "path", source)) for source in listed(work.inputs.get("adapters"))])
    serve_until_stopped(service, listener)


def open_service(config: ServeConfig, folder: Path, adapters: Sequence[Path] = ()) -> Served:
    """The model in ``folder`` with its ``adapters``, loaded and checked, behind a service that is not started yet."""
    if read_config(folder).get("model_type") == ENSEMBLE:
        return _predicting(config, folder, Predictor.load(folder))
    tokenizer = Tokenizer.load(folder)
    config = config.updated(sampling=sampling_of(tokenizer.generation, config.sampling).explicit())
    if not config.allow_template_mismatch:
        check_template(folder, tokenizer)
    device = machine().accelerator
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = open_model(folder, dtype, device, other_template=config.allow_template_mismatch)
    if tokenizer.vocabulary_size > model.shape.vocabulary_size:
        raise DataError(
            "{path}: the tokenizer has {tokens} tokens, the model {rows}",
            "they do not belong together",
            "restore tokenizer.json or the weights",
            path=folder,
            tokens=tokenizer.vocabulary_size,
            rows=model.shape.vocabulary_size,
        )
    predictor = Predictor(model, tokenizer)
    writes = model.shape.kind == "decoder" and (model.head is None or not model.head.replaces_output)
    if adapters and not writes:
        raise ConfigError("adapters are chosen by a request for models that write", "each adapter of a task has a head of its own", "serve the adapter's folder by itself")
    names = _put_on(model, tokenizer, adapters)
    service = _writing(config, folder, predictor) if writes else _predicting(config, folder, predictor)
    if clash := [name for name in names if name == service.name]:
        raise ConfigError("{name} is the name of the model and of an adapter", "", "give the model another name", name=clash[0])
    service.adapters = names
    return service


def _put_on(model: Model, tokenizer: Tokenizer, folders: Sequence[Path]) -> dict[str, tuple[str, ...]]:
    """Every adapter on the one model; the name of each, and what the model wears under it."""
    if folders and model.adapter:
        raise ConfigError("the model is itself an adapter, and adapters are given", "they all sit on one base", "serve the base and name every adapter")
    found: dict[str, tuple[str, ...]] = {}
    for folder in folders:
        name = folder.resolve().name
        if not is_adapter(folder):
            raise DataError("{folder} is not an adapter: it has no adapter_config.json", "", "give a folder that a training with `adapter` has made", folder=folder)
        if name in found:
            raise ConfigError("two adapters are named {name}", "requests choose by the name of the folder", "rename one of the folders", name=name)
        plain, note = read_settings(folder)
        if note.get("template_fingerprint") not in (None, tokenizer.fingerprint()):
            raise DataError("{folder}: the tokenizer or its chat template is not the one that the adapter was trained with", "the model would read another format than it learned", "serve it with the base it was trained on", folder=folder)
        base_of(folder, plain, note)
        tensors = read_tensors(folder)
        if _reads_both_sides(adapter_head(folder, plain, tensors)) != _reads_both_sides(model.head):
            raise ConfigError("{folder}: a prompt is read in another way than by the base", "one of the two was trained to see all of a prompt from both sides", "serve its folder by itself", folder=folder)
        method = wear(model, plain, note, tensors, f"served_{len(found)}")
        if not adapted_layers(model, method.name) or model.saved_whole:
            raise ConfigError("{folder}: an adapter of the method {method} cannot share a batch with others", "it changes more than single layers", "serve its folder by itself, or merge it", folder=folder, method=method.config.method)
        found[name] = (method.name,)
        set_active(model, ())  # a learned prompt or prefix that is active leaves no place for another
        _check_rows(model, method.name)
    model.eval()
    return found


def _reads_both_sides(head: Head | None) -> bool:
    return head is not None and head.task == "prefix"


@torch.inference_mode()
def _check_rows(model: Model, name: str) -> None:
    """Let one of two rows wear the adapter: ConfigError where that cannot be, in place of a wrong answer later."""
    with route(model).worn([(name,), ()], model.device):
        model(torch.zeros(2, 3, dtype=torch.long, device=model.device))


def _writing(config: ServeConfig, folder: Path, predictor: Predictor) -> Service:
    """A decoder with the output of a language model: completions, chat, and predictions, all on the model thread."""
    model, tokenizer = predictor.model, predictor.tokenizer
    counts = parameters(model.shape)["total"]
    name = _name(config, folder)
    length = _maximum_length(config, model.longest_text)
    say(
        "{name}: {count} parameters in {dtype} on {device}, up to {length} tokens, {slots} sequences at once",
        name=name,
        count=count_text(counts),
        dtype=str(model.dtype).removeprefix("torch."),
        device=model.device.type,
        length=length,
        slots=config.slots,
    )
    metrics = Metrics(name, config.slots)
    thread = ModelThread(lambda: Engine(model, tokenizer, slots=config.slots, maximum_length=length), config.slots, metrics)
    predict = on_thread(thread.do, partial(predictor.predict, rows=config.rows))
    predictions = Predictions(config, predictor, tokenizer, PredictionThread(predict, config.rows, config.batch_window_seconds, metrics), WRITING)
    return Service(config, name, predictor, predictions, thread, metrics, counts, length)


def _predicting(config: ServeConfig, folder: Path, predictor: Predictor) -> Served:
    """A model of another task: predictions alone."""
    if predictor.task not in PREDICTORS:
        raise DataError("there is no prediction for the task {task}", "", "known tasks: {known}", task=predictor.task, known=", ".join(PREDICTORS))
    if config.maximum_length != "auto":
        raise ConfigError("maximum_length is for models that write on; the task of this one is {task}", "how much it reads was fixed in its training", "leave maximum_length at auto", task=predictor.task)
    models, name = [one.model for one in single(predictor)], _name(config, folder)
    counts = sum(parameter.numel() for model in models for parameter in model.parameters())
    lengths = [model.longest_text for model in models if isinstance(getattr(model.shape, "maximum_positions", None), int)]
    say(
        "{name}: {task}, {count} parameters in {dtype} on {device}, {rows} items at once",
        name=name,
        task=predictor.task,
        count=count_text(counts),
        dtype=str(models[0].dtype).removeprefix("torch."),
        device=models[0].device.type,
        rows=config.rows,
    )
    metrics = Metrics(name, config.slots)
    thread = PredictionThread(partial(predictor.predict, rows=config.rows), config.rows, config.batch_window_seconds, metrics)
    predictions = Predictions(config, predictor, single(predictor)[0].tokenizer, thread)
    return Served(config, name, predictor, predictions, metrics, counts, min(lengths, default=None))


def _name(config: ServeConfig, folder: Path) -> str:
    return folder.resolve().name if config.name == "auto" else config.name


def _maximum_length(config: ServeConfig, made_for: int) -> int:
    if config.maximum_length == "auto":
        return made_for
    if config.maximum_length > made_for:
        raise ConfigError(
            "maximum_length: {asked} tokens are more than the {made_for} the model was made for",
            "beyond them its answers would be noise",
            "leave maximum_length at auto",
            asked=config.maximum_length,
            made_for=made_for,
        )
    return config.maximum_length


def _model_folder(config: ServeConfig, work: Work) -> Path:
    found = work.inputs.get("model")
    folder = found.path if isinstance(found, Artifact) else Path(found if isinstance(found, Path) else config.model)
    if not (folder / "config.json").is_file():
        raise DataError(
            "{path} is not a model directory: it has no config.json",
            "serve needs what a train stage makes, or a Hugging Face model directory",
            "give the name of a train stage, or the folder that holds config.json",
            path=folder,
        )
    return folder
