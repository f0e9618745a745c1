"""Adapters beside a served base: a request chooses one by the name of its folder.

Each has a model of its own, with its own head, tokenizer and task, whose weights are the base's but for what the adapter changes: that is what
predicts under its name. Where base and adapter both write, the base wears it as well, so that texts under all names share a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from luban.adapters.adapted import adapted_layers, route, set_active
from luban.adapters.files import adapter_head, check_base, check_tokenizer, is_adapter, open_beside, read_settings, read_tensors, wear
from luban.foundation.console import warn
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import PREDICTORS, Predictor
from luban.models.base import Model
from luban.models.heads import Head
from luban.tokenizer.tokenizer import Tokenizer


@dataclass
class Beside:
    """An adapter that is served: what predicts under its name, and what the base wears to write under it (None: it does not)."""

    predictor: Predictor
    worn: tuple[str, ...] | None


def put_beside(model: Model, tokenizer: Tokenizer, base: Path, folders: Sequence[Path], *, writes: bool, other_template: bool = False) -> dict[str, Beside]:
    """Every adapter by the name of its folder. Raises ConfigError or DataError for what is no adapter of this base."""
    if folders and model.adapter:
        raise ConfigError("the model is itself an adapter, and adapters are given", "they all sit on one base", "serve the base and name every adapter")
    found: dict[str, Beside] = {}
    for folder in folders:
        name = folder.resolve().name
        if not is_adapter(folder):
            raise DataError("{folder} is not an adapter: it has no adapter_config.json", "", "give a folder that a training with `adapter` has made", folder=folder)
        if name in found:
            raise ConfigError("two adapters are named {name}", "requests choose by the name of the folder", "rename one of the folders", name=name)
        plain, note = read_settings(folder)
        check_base(folder, plain, note, base)
        head = adapter_head(folder, plain, read_tensors(folder))
        written = writes and (head is None or not head.replaces_output)
        own = tokenizer if written or not (folder / "tokenizer.json").exists() else Tokenizer.load(folder)
        if not other_template:
            check_tokenizer(folder, note, own)
        predictor = Predictor(open_beside(folder, base, model), own)
        if predictor.task not in PREDICTORS:
            raise DataError("there is no prediction for the task {task}", "", "known tasks: {known}", task=predictor.task, known=", ".join(PREDICTORS))
        found[name] = Beside(predictor, _put_on(model, folder, head, f"served_{len(found)}") if written else None)
    model.eval()
    return found


def _put_on(model: Model, folder: Path, head: Head | None, name: str) -> tuple[str, ...]:
    """Have the base wear an adapter when a request asks for it; the names of what it wears then."""
    if _reads_both_sides(head) != _reads_both_sides(model.head):
        raise ConfigError("{folder}: a prompt is read in another way than by the base", "one of the two was trained to see all of a prompt from both sides", "serve its folder by itself", folder=folder)
    plain, note = read_settings(folder)
    if note.get("quantization"):
        warn("{folder} was trained on a base in fewer bits: on this one it writes a little otherwise than it was measured to; served by itself it has its own", folder=folder)
    method = wear(model, plain, note, read_tensors(folder), name)
    if not adapted_layers(model, method.name) or model.saved_whole:
        raise ConfigError("{folder}: an adapter of the method {method} cannot share a batch with others", "it changes more than single layers", "serve its folder by itself, or merge it", folder=folder, method=method.config.method)
    set_active(model, ())  # a learned prompt or prefix that is active leaves no place for another
    _check_rows(model, method.name)
    return (method.name,)


def _reads_both_sides(head: Head | None) -> bool:
    return head is not None and head.task == "prefix"


@torch.inference_mode()
def _check_rows(model: Model, name: str) -> None:
    """Let one of two rows wear the adapter: ConfigError where that cannot be, in place of a wrong answer later."""
    with route(model).worn([(name,), ()], model.device):
        model(torch.zeros(2, 3, dtype=torch.long, device=model.device))
