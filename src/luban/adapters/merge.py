"""The verb merge: adapters, or models tuned from one base, become one model or one adapter."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from torch import Tensor

from luban.adapters.attached import attach, settle
from luban.adapters.config import LoraConfig, MergeConfig
from luban.adapters.files import base_of, is_adapter, open_model, read_settings, save_adapter
from luban.adapters.merging import changes, combined, thin
from luban.adapters.targets import is_linear
from luban.foundation.artifacts import Work, listed
from luban.foundation.config import build
from luban.foundation.console import say
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.huggingface import save_model
from luban.models.quantization_config import QuantizationConfig
from luban.tokenizer.tokenizer import Tokenizer

VERSION = 1
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")


def run(config: MergeConfig, work: Work) -> None:
    """Open each source over the base, take what it changes, combine, and write."""
    folders = [Path(getattr(source, "path", source)) for source in listed(work.inputs["sources"])]
    base = _base(work, folders)
    weights = config.weights or [1.0 / len(folders)] * len(folders)
    if len(weights) != len(folders):
        raise ConfigError("weights: {count} are given for {sources} sources", "each source has one", "give one for each, or none", count=len(weights), sources=len(folders))
    held = [read_settings(folder)[1].get("quantization") if is_adapter(folder) else None for folder in folders]
    if any(one != held[0] for one in held):
        raise ConfigError("the sources stand on bases that are held in different bits", "their changes are of different numbers", "merge those that were trained on the same base")
    models = [open_model(folder, dequantized=True) for folder in folders]
    first = models[0]
    _check_same_head(models, folders)
    known = open_model(base, head=first.head, language_model=first.head is None, quantization=build(QuantizationConfig, held[0]) if held[0] else None, dequantized=True)
    if known.shape.vocabulary_size < first.shape.vocabulary_size:
        known.resize_vocabulary(first.shape.vocabulary_size)
    for model in models if config.into == "model" else ():
        if model.adapter:
            model.adapter.make_room(model, known)
    base_state = {name: value.detach() for name, value in known.named_parameters()}
    parts = [_changes(model, base_state, folder) for model, folder in zip(models, folders, strict=True)]
    new = set(known.fresh)  # a head's weights have no base: they are averaged
    change: dict[str, Tensor] = {}
    for name in dict.fromkeys(name for part in parts for name in part):
        given = [part.get(name, torch.zeros_like(base_state[name])) for part in parts]
        shares = [weight / sum(weights) for weight in weights] if name in new else weights
        change[name] = combined(given, shares, "linear" if name in new or len(folders) == 1 else config.combine, config.density, work.seed, name)
    tokenizer = Tokenizer.load(folders[0])
    if config.into == "adapter":
        _write_adapter(known, change, _rank(config, models), work.path, base, tokenizer)
    else:
        with torch.no_grad():
            for name, value in change.items():
                base_state[name].add_(value)
        save_model(known, work.path, end_ids=tokenizer.stop_ids, begin_id=tokenizer.begin_of_text_id, pad_id=tokenizer.pad_id)
    for name in BESIDE:
        if (folders[0] / name).exists():
            shutil.copy(folders[0] / name, work.path / name)
    work.metrics |= {"sources": len(folders), "tensors_changed": len(change), "parameters": sum(value.numel() for value in base_state.values())}
    work.resolved |= {"template_fingerprint": tokenizer.fingerprint()}
    say("{count} tensors changed by {sources} sources", count=len(change), sources=len(folders))


def _base(work: Work, folders: list[Path]) -> Path:
    """The base that is named, or the one that all adapters name."""
    if work.inputs["base"]:
        return Path(getattr(work.inputs["base"], "path", work.inputs["base"]))
    found = {base_of(folder, *read_settings(folder)) for folder in folders if is_adapter(folder)}
    if len(found) != 1 or not all(is_adapter(folder) for folder in folders):
        raise ConfigError("base is not clear: {known}", "changes are added to one base", "name it as base", known=", ".join(map(str, sorted(found))) or "-")
    return found.pop()


def _check_same_head(models: list[Model], folders: list[Path]) -> None:
    for model, folder in zip(models, folders, strict=True):
        if (model.head is None) != (models[0].head is None) or (model.head and (model.head.structure, model.head.labels) != (models[0].head.structure, models[0].head.labels)):
            raise ConfigError("{folder} has another head than {first}", "what one says cannot be added to what the other says", "merge models of one task with the same labels", folder=folder, first=folders[0])


def _changes(model: Model, base: dict[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """What one source changes in the base's tensors."""
    if model.adapter:
        found, whole = changes(model), model.saved_whole
    else:
        found, whole = {}, [name for name, _ in model.named_parameters()]
    own = dict(model.named_parameters())
    for name in whole:
        if name not in base or own[name].shape != base[name].shape:
            raise DataError("{folder}: the tensor {name} is not one of the base", "it was made from another model", "merge models of one base", folder=folder, name=name)
        if not torch.equal(own[name], base[name]):
            found[name] = found.get(name, 0) + own[name].detach() - base[name]
    return found


def _rank(config: MergeConfig, models: list[Model]) -> int:
    if config.rank != "auto":
        return config.rank
    ranks = [getattr(model.adapter.config, "rank", None) if model.adapter else None for model in models]
    if None in ranks:
        raise ConfigError("rank: the sources have none of their own", "a LoRA of their change needs one", "give rank")
    return sum(ranks)


def _write_adapter(model: Model, change: dict[str, Tensor], rank: int, folder: Path, base: Path, tokenizer: Tokenizer) -> None:
    """The change as a LoRA adapter: matrices of linear layers as thin products, everything else whole."""
    linear = {f"{place}.weight": place for place, module in model.named_modules() if is_linear(module)}
    places = [linear[name] for name in change if name in linear and name not in model.fresh]
    before = set(map(id, model.parameters()))
    attach(model, LoraConfig(targets=places, rank=rank, alpha=float(rank)), seed=0)
    with torch.no_grad():
        for name, value in change.items():
            if (place := linear.get(name)) in places:
                layer = model.get_submodule(place)
                second, first = thin(value.t() if getattr(layer, "transposed", False) else value, rank)
                adapter = layer.adapters["default"]
                adapter.lora_A.weight.zero_()[: len(first)].copy_(first)
                adapter.lora_B.weight.zero_()[:, : len(first)].copy_(second)
            else:
                model.get_parameter(name).add_(value)
    settle(model, model.adapter, [name for name in change if linear.get(name) not in places], before)
    save_adapter(model, folder, base, tokenizer)
