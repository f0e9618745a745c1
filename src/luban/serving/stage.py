"""Serve a model in the foreground until stopped."""

from __future__ import annotations

from pathlib import Path

import torch

from luban.foundation.artifacts import Artifact, Work
from luban.foundation.console import count_text, say
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.hardware import machine
from luban.inference.engine import Engine
from luban.models.counts import parameters
from luban.models.huggingface import load_model
from luban.serving.config import ServeConfig
from luban.serving.defaults import sampling_of
from luban.serving.metrics import Metrics
from luban.serving.server import bind, serve_until_stopped
from luban.serving.service import Service
from luban.serving.template_check import check_template
from luban.serving.worker import ModelThread
from luban.tokenizer.tokenizer import Tokenizer

VERSION = 1


def run(config: ServeConfig, work: Work) -> None:
    """Listen, load the model, say where it can be reached, and answer until a signal says stop."""
    folder = _model_folder(config, work)
    listener = bind(config.host, config.port)
    service = open_service(config, folder)
    serve_until_stopped(service, listener)


def open_service(config: ServeConfig, folder: Path) -> Service:
    """The model in ``folder``, loaded and checked, behind a service that is not started yet."""
    tokenizer = Tokenizer.load(folder)
    config = config.updated(sampling=sampling_of(tokenizer.generation, config.sampling).explicit())
    if not config.allow_template_mismatch:
        check_template(folder, tokenizer)
    device = machine().accelerator
    dtype = torch.bfloat16 if device == "cuda" and torch.cuda.is_bf16_supported() else torch.float32
    model = load_model(folder, dtype=dtype, device=device).eval()
    if tokenizer.vocabulary_size > model.shape.vocabulary_size:
        raise DataError(
            "{path}: the tokenizer has {tokens} tokens, the model {rows}",
            "they do not belong together",
            "restore tokenizer.json or the weights",
            path=folder,
            tokens=tokenizer.vocabulary_size,
            rows=model.shape.vocabulary_size,
        )
    counts = parameters(model.shape)["total"]
    name = folder.resolve().name if config.name == "auto" else config.name
    length = _maximum_length(config, model.shape.maximum_positions)
    say(
        "{name}: {count} parameters in {dtype} on {device}, up to {length} tokens, {slots} sequences at once",
        name=name,
        count=count_text(counts),
        dtype=str(dtype).removeprefix("torch."),
        device=device,
        length=length,
        slots=config.slots,
    )
    metrics = Metrics(name, config.slots)
    thread = ModelThread(lambda: Engine(model, tokenizer, slots=config.slots, maximum_length=length), config.slots, metrics)
    return Service(config, name, tokenizer, thread, metrics, counts, length)


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
