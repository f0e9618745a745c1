"""The verb merge: adapters, or models tuned from one base, become one model or one adapter.

Nothing is held whole: a layer is read from the base and from each source, changed, and written (see merging.py).
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from luban.adapters.attached import attach, settle
from luban.adapters.config import LoraConfig, MergeConfig
from luban.adapters.files import adapter_head, base_of, check_tokenizer, is_adapter, read_settings, read_tensors, save_adapter, text_folder, wear
from luban.adapters.merging import Merger, Source, place_of, thin
from luban.adapters.targets import is_linear, stored_transposed
from luban.foundation.artifacts import Work, listed
from luban.foundation.config import build
from luban.foundation.console import progress, say
from luban.foundation.errors import ConfigError, DataError
from luban.models.config_json import head_from, read_config
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.models.narrow import read_rounded
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import open_dequantized
from luban.models.stored import Stored, open_stored, put
from luban.tokenizer.tokenizer import Tokenizer

VERSION = 1
BESIDE = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "generation_config.json")
SHARD_BYTES = 2 * 10**9  # held until it is written


def run(config: MergeConfig, work: Work) -> None:
    """Open each source over its base, and write layer by layer the base with what they change."""
    folders = [Path(getattr(source, "path", source)) for source in listed(work.inputs["sources"])]
    base = _base(work, folders)
    weights = config.weights or [1.0 / len(folders)] * len(folders)
    if len(weights) != len(folders):
        raise ConfigError("weights: {count} are given for {sources} sources", "each source has one", "give one for each, or none", count=len(weights), sources=len(folders))
    directories = _Directories(folders)
    sources = [directories.source(folder) for folder in folders]
    known = directories.base(base)
    size = max(source.model.shape.vocabulary_size for source in sources)
    for stored in directories.opened:
        if stored.model.shape.vocabulary_size < size:
            stored.resize_vocabulary(size)
    for source in sources if config.into == "model" else ():
        if source.model.adapter:
            source.model.adapter.make_room(source.model, known.model)
    merger = Merger(Source(known, known.model), sources, weights, config.combine, config.density, work.seed)
    for source, folder in zip(sources, folders, strict=True):
        _check_shapes(source, known, folder)
    tokenizer = _tokenizer(folders)
    parameters = dict(known.model.named_parameters())
    if config.into == "adapter":
        _write_adapter(merger, _rank(config, sources), work.path, base, tokenizer)
    else:
        ids = {"end_ids": tokenizer.stop_ids, "begin_id": tokenizer.begin_of_text_id, "pad_id": tokenizer.pad_id}
        with progress("merging into {base}", total=len(parameters), base=base) as advance:

            def read(name: str) -> torch.Tensor:
                advance()
                return merger.read(name)

            save_model(known.model, work.path, dtype=getattr(torch, config.dtype), shard_bytes=SHARD_BYTES, read=read, **ids)
    texts = text_folder(folders[0])
    for name in BESIDE:
        if (texts / name).exists():
            shutil.copy(texts / name, work.path / name)
    work.metrics |= {"sources": len(folders), "tensors_changed": len(merger.changed), "parameters": sum(value.numel() for value in parameters.values())}
    work.resolved |= {"template_fingerprint": tokenizer.fingerprint()}
    say("{count} tensors changed by {sources} sources", count=len(merger.changed), sources=len(folders))


class _Directories:
    """The model directories that the sources stand on, each opened once, all with the head of the first source and in the bits that the adapters were trained on."""

    def __init__(self, folders: list[Path]):
        self.opened: list[Stored] = []
        self._known: dict[Path, Stored] = {}
        self.head = _same_head(folders)
        notes = [read_settings(folder)[1] if is_adapter(folder) else {} for folder in folders]
        held = [(note.get("quantization"), note.get("weights")) for note in notes]
        if any(one != held[0] for one in held):
            raise ConfigError("the sources stand on bases that are held in different bits", "their changes are of different numbers", "merge those that were trained on the same base")
        self.quantization, self.rounded = build(QuantizationConfig, held[0][0]) if held[0][0] else None, held[0][1] == "bfloat16"

    def base(self, folder: Path) -> Stored:
        """The weights of a model directory."""
        if (folder := folder.resolve()) not in self._known:
            given: dict[str, Any] = {"head": self.head, "language_model": self.head is None, "quiet": True}
            self._known[folder] = open_dequantized(folder, self.quantization, **given) if self.quantization else open_stored(folder, **given)
            if self.rounded:
                read_rounded(self._known[folder])
            self.opened.append(self._known[folder])
        return self._known[folder]

    def source(self, folder: Path) -> Source:
        """A model directory, or an adapter's on its base. ConfigError for an adapter whose method cannot be merged."""
        if not is_adapter(folder):
            stored = self.base(folder)
            return Source(stored, stored.skeleton())
        plain, note = read_settings(folder)
        tensors, stored = read_tensors(folder), self.base(base_of(folder, plain, note))
        model = stored.skeleton()
        method = wear(model, plain, note, tensors)
        if not method.merges:
            method.merge(model)  # which says why not
        check_tokenizer(folder, note)
        return Source(stored, model, tensors)


def _base(work: Work, folders: list[Path]) -> Path:
    """The base that is named, or the one that all adapters name."""
    if work.inputs["base"]:
        return Path(getattr(work.inputs["base"], "path", work.inputs["base"]))
    found = {base_of(folder, *read_settings(folder)) for folder in folders if is_adapter(folder)}
    if len(found) != 1 or not all(is_adapter(folder) for folder in folders):
        raise ConfigError("base is not clear: {known}", "changes are added to one base", "name it as base", known=", ".join(map(str, sorted(found))) or "-")
    return found.pop()


def _same_head(folders: list[Path]) -> Head | None:
    """The head of all sources. ConfigError where one has another."""
    heads = [adapter_head(folder, read_settings(folder)[0], read_tensors(folder)) if is_adapter(folder) else head_from(read_config(folder)) for folder in folders]
    for head, folder in zip(heads, folders, strict=True):
        if (head is None) != (heads[0] is None) or (head and (head.structure, head.labels) != (heads[0].structure, heads[0].labels)):
            raise ConfigError("{folder} has another head than {first}", "what one says cannot be added to what the other says", "merge models of one task with the same labels", folder=folder, first=folders[0])
    return heads[0]


def _tokenizer(folders: list[Path]) -> Tokenizer:
    """That of the first source. ConfigError where another learned to read another format; words that were added to one may be more than the other's."""
    first, *others = (Tokenizer.load(text_folder(folder)) for folder in folders)
    for other, folder in zip(others, folders[1:], strict=True):
        if (other.chat_template, [other.decode([id], skip_special=False) for id in other.stop_ids]) != (first.chat_template, [first.decode([id], skip_special=False) for id in first.stop_ids]):
            raise ConfigError("{folder} has another chat template, or ends its turns otherwise, than {first}", "the merged model would read a format that half of it never learned", "merge models that were trained with one template", folder=folder, first=folders[0])
    return first


def _check_shapes(source: Source, known: Stored, folder: Path) -> None:
    """What a source changes must be there in the base."""
    base = {name: value.shape for name, value in known.model.named_parameters()}
    for name, value in source.model.named_parameters():
        if place_of(name) in source.places and base.get(name) != value.shape:
            raise DataError("{folder}: the tensor {name} is not one of the base", "it was made from another model", "merge models of one base", folder=folder, name=name)


def _rank(config: MergeConfig, sources: list[Source]) -> int:
    if config.rank != "auto":
        return config.rank
    ranks = [getattr(source.model.adapter.config, "rank", None) if source.model.adapter else None for source in sources]
    if None in ranks:
        raise ConfigError("rank: the sources have none of their own", "a LoRA of their change needs one", "give rank")
    return sum(ranks)


def _write_adapter(merger: Merger, rank: int, folder: Path, base: Path, tokenizer: Tokenizer) -> None:
    """The change as a LoRA adapter: matrices of linear layers as thin products, everything else whole."""
    model = merger.base.stored.skeleton()
    linear = {f"{place}.weight": module for place, module in model.named_modules() if is_linear(module) and place not in merger.new}
    products, whole = {}, {}
    for place in dict.fromkeys(place_of(name) for name, _ in model.named_parameters()):
        if merger.concerns(place):
            before = merger.base.layer(place)
            for name, change in merger.changes(place, before).items():
                if name in linear:
                    products[place] = thin(change.t() if stored_transposed(linear[name]) else change, rank)
                else:
                    whole[name] = before[name].add_(change)
    own = set(map(id, model.parameters()))
    attach(model, LoraConfig(targets=list(products), rank=rank, alpha=float(rank)), seed=0)
    for place, (second, first) in products.items():
        adapter = model.get_submodule(place).adapters["default"]
        adapter.lora_A.weight = nn.Parameter(nn.functional.pad(first, (0, 0, 0, rank - len(first))))
        adapter.lora_B.weight = nn.Parameter(nn.functional.pad(second, (0, rank - len(first))))
    for name, value in whole.items():
        put(model, name, value)
    settle(model, model.adapter, list(whole), own)
    save_adapter(model, folder, base, tokenizer)
