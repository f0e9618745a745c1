"""Serve a model in the foreground until stopped."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from luban.adapters.files import open_model, text_folder
from luban.foundation.artifacts import Artifact, Work, listed
from luban.foundation.console import count_text, say
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.hardware import machine
from luban.inference.engine import Engine
from luban.inference.packed import PackedDecoder
from luban.inference.predictor import ENSEMBLE, PREDICTORS, Predictor
from luban.models.config_json import read_config
from luban.models.counts import parameters
from luban.serving.adapters import Beside, put_beside
from luban.serving.batching import Predict, PredictionThread, on_thread
from luban.serving.config import ServeConfig
from luban.serving.defaults import sampling_of
from luban.serving.metrics import Metrics
from luban.serving.predictions import PredictionDesk, Predictions
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
    tokenizer = Tokenizer.load(text_folder(folder))
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
    beside = put_beside(model, tokenizer, folder, adapters, writes=writes, other_template=config.allow_template_mismatch)
    service = _writing(config, folder, predictor) if writes else _predicting(config, folder, predictor)
    if service.name in beside:
        raise ConfigError("{name} is the name of the model and of an adapter", "", "give the model another name", name=service.name)
    _answer_under_their_names(service, beside)
    return service


def _answer_under_their_names(service: Served, beside: dict[str, Beside]) -> None:
    for name, one in beside.items():
        predict: Predict = partial(one.predictor.predict, rows=service.config.rows)
        if isinstance(service, Service):
            predict = on_thread(service.thread.do, predict)
        others = WRITING if one.worn is not None else ()
        service.adapters[name] = Predictions(service.config, one.predictor, one.predictor.tokenizer, predict, _longest([one.predictor]), others)
        if isinstance(service, Service) and one.worn is not None:
            service.worn[name] = one.worn


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
    packed = PackedDecoder(model) if PackedDecoder.suits(model) else None
    thread = ModelThread(lambda: Engine(model, tokenizer, slots=config.slots, maximum_length=length, packed=packed), config.slots, metrics)
    predict = on_thread(thread.do, partial(predictor.predict, rows=config.rows))
    desk = PredictionDesk(config, PredictionThread(config.rows, config.batch_window_seconds, metrics))
    return Service(config, name, Predictions(config, predictor, tokenizer, predict, length, WRITING), desk, thread, metrics, counts)


def _predicting(config: ServeConfig, folder: Path, predictor: Predictor) -> Served:
    """A model of another task: predictions alone."""
    if predictor.task not in PREDICTORS:
        raise DataError("there is no prediction for the task {task}", "", "known tasks: {known}", task=predictor.task, known=", ".join(PREDICTORS))
    if config.maximum_length != "auto":
        raise ConfigError("maximum_length is for models that write on; the task of this one is {task}", "how much it reads was fixed in its training", "leave maximum_length at auto", task=predictor.task)
    ones, name = single(predictor), _name(config, folder)
    models = [one.model for one in ones]
    counts = sum(parameter.numel() for model in models for parameter in model.parameters())
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
    desk = PredictionDesk(config, PredictionThread(config.rows, config.batch_window_seconds, metrics))
    predictions = Predictions(config, predictor, ones[0].tokenizer, partial(predictor.predict, rows=config.rows), _longest(ones))
    return Served(config, name, predictions, desk, metrics, counts)


def _longest(predictors: Sequence[Predictor]) -> int | None:
    """Tokens of the longest text that all of them read; None where there is no bound."""
    return min((one.model.longest_text for one in predictors if isinstance(getattr(one.model.shape, "maximum_positions", None), int)), default=None)


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
