"""What a training begins with: the tokenizer, and a model that is new or read from a directory."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from luban.adapters.attached import attach, new_parts
from luban.adapters.files import base_of, is_adapter, open_model, read_settings, text_folder
from luban.foundation.artifacts import Artifact, Work, listed, read_json
from luban.foundation.config import build
from luban.foundation.console import say
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model
from luban.models.narrow import hold_narrow, new_narrow, place_narrow
from luban.models.quantization_config import QuantizationConfig
from luban.models.shape_base import BaseShapeConfig
from luban.models.vector_files import read_vectors
from luban.models.vectors import WordVectors, initial_rows
from luban.objectives.base import Objective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.writer import INDEX
from luban.training.config import TrainConfig


def find_tokenizer(work: Work) -> Tokenizer:
    """The tokenizer that is named, or the one the data was encoded with, or the model's own; all must mean the same words."""
    encoded = [source.path / "tokenizer" for source in listed(work.inputs.get("data")) if isinstance(source, Artifact) and source.kind == "encode"]
    named = [getattr(source, "path", source) for source in (work.inputs["tokenizer"], work.inputs["model"], *listed(work.inputs.get("objective.teacher"))) if source is not None]
    folders = [*named[:1], *encoded] if work.inputs["tokenizer"] else [*encoded, *named]
    folders = [folder for folder in map(text_folder, folders) if (folder / "tokenizer.json").exists()]
    if not folders:
        raise ConfigError("there is no tokenizer to train with", "neither `tokenizer`, `model` nor `data` brings one", "name a train_tokenizer stage or a folder with tokenizer.json as tokenizer")
    tokenizer = Tokenizer.load(folders[0])
    for folder in encoded:
        own = Tokenizer.load(folder)
        _check_unchanged(own, folder)
        _check_same_words(own, tokenizer, folder.parent)
    return tokenizer


def _check_unchanged(tokenizer: Tokenizer, folder: Path) -> None:
    """DataError where the tokenizer beside encoded data is not the one that it was encoded with."""
    index = next(iter(sorted(folder.parent.glob(f"*/{INDEX}"))), None)
    made_with = read_json(index).get("tokenizer") if index else None  # of a damaged one the loader will say what is wrong
    if made_with and made_with != tokenizer.fingerprint():
        raise DataError("the tokenizer in {folder} was changed after {data} was encoded", "the ids in the data mean other words to it", "restore {folder}, or encode the corpus again", folder=folder, data=folder.parent)


def check_kind(config: TrainConfig, objective: Objective) -> None:
    """An objective reads certain kinds of model; another is refused before anything is read."""
    if config.shape.kind not in objective.kinds:
        raise ConfigError(
            "the objective {objective} cannot be learned by {architecture}, which is of the kind {kind}",
            "it needs: {kinds}",
            "choose another architecture in shape, another model, or another objective",
            objective=objective.name, architecture=config.shape.architecture, kind=config.shape.kind, kinds=", ".join(objective.kinds),
        )  # fmt: skip


def make_model(config: TrainConfig, work: Work, tokenizer: Tokenizer, objective: Objective) -> Model:
    """The model directory's weights, with room for tokens that were added to its tokenizer; or new weights; with the objective's head."""
    head = objective.head
    if not (source := work.inputs["model"]):
        if config.adapter or config.quantization:
            raise ConfigError("adapter needs a model to sit on", "a new model has learned nothing that could stay as it is", "name one as model, or leave adapter out")
        shape = for_tokenizer(config.shape, tokenizer)
        model = new_narrow(shape, work.seed) if config.weights == "bfloat16" else build_model(shape).initialize(work.seed)
        if work.inputs.get("embeddings"):
            _begin_embeddings(model, tokenizer, Path(str(getattr(work.inputs["embeddings"], "path", work.inputs["embeddings"]))), work.seed)
        return _held(model.with_head(head, work.seed) if head else model, config)
    folder = getattr(source, "path", source)
    if config.adapter and is_adapter(folder):
        raise ConfigError("model is an adapter, and adapter asks for a new one on top of it", "", "leave adapter out to go on with the one that is there, or make it part of its base first (luban merge)")
    if config.quantization and not (config.adapter or is_adapter(folder)):
        raise ConfigError("quantization is for a base that stays as it is", "rounded weights cannot learn", "add adapter: lora, or leave quantization out")
    model = _open(config, folder, head, work.seed)
    _check_finite(model, folder)
    if ((texts := text_folder(folder)) / "tokenizer.json").exists():
        own = Tokenizer.load(texts)
        _check_same_words(own, tokenizer, folder)
        if model.shape.vocabulary_size < tokenizer.vocabulary_size:
            added = range(model.shape.vocabulary_size, tokenizer.vocabulary_size)
            model.resize_vocabulary(tokenizer.vocabulary_size, {index: own.encode(tokenizer.decode([index], skip_special=False)) for index in added})
            say("{count} new tokens start as the mean of the pieces they replace", count=len(added))
            if config.adapter and "embeddings" not in config.adapter.also_train:
                raise ConfigError("{count} new tokens cannot be learned by an adapter alone", "their embeddings are part of the base, which stays as it is", "add also_train: [embeddings, output] to adapter", count=len(added))
    if config.adapter:
        attach(model, config.adapter, work.seed, tokenizer=tokenizer)
    return _held(model, config)


def _open(config: TrainConfig, folder: Path, head: Head | None, seed: int) -> Model:
    if config.weights != "bfloat16":
        return open_model(folder, head=head, language_model=head is None, seed=seed, quantization=config.quantization)
    if is_adapter(folder):
        raise ConfigError("weights: bfloat16 is for a model or a new adapter on one, and {folder} is an adapter", "", "make it part of its base first (luban merge), or leave weights out", folder=folder)
    if config.quantization:  # embedding and output matrix in bfloat16, beside the blocks' in fewer bits
        model = open_model(folder, head=head, language_model=head is None, seed=seed, quantization=config.quantization)
    else:
        model = load_model(folder, torch.bfloat16, head=head, language_model=head is None, seed=seed, place=place_narrow)
    return hold_narrow_base(model) if config.adapter else model


@torch.no_grad()
def _check_finite(model: Model, folder: Path) -> None:
    """DataError naming the first matrix of a model directory that holds what is no number."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not bool(parameter.sum(dtype=torch.float32).isfinite()) and (bad := int((~parameter.isfinite()).sum())):
            raise DataError("{folder}: {count} values of {name} are not finite", "nothing can be learned from such weights", "take another checkpoint of the model, or a whole copy of its files", folder=folder, count=bad, name=name)


def _held(model: Model, config: TrainConfig) -> Model:
    """The model with its weights in the type that the config asks for."""
    return hold_narrow(model) if config.weights == "bfloat16" and not config.adapter else model


def hold_narrow_base(model: Model) -> Model:
    """The matrices that an adapter leaves as they are in bfloat16; what is new and learns (a task's head) in float32."""
    new = new_parts(model)
    hold_narrow(model)
    for name in new:
        owner, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(owner), leaf, nn.Parameter(model.get_parameter(name).detach().float()))
    return model


def base_folder(work: Work) -> Path:
    """The directory of the base that the adapter of this stage stands on."""
    folder = Path(getattr(work.inputs["model"], "path", work.inputs["model"]))
    return base_of(folder, *read_settings(folder)) if is_adapter(folder) else folder


def known_quantization(work: Work) -> QuantizationConfig | None:
    """How the base under the adapter that training goes on with is held."""
    folder = Path(getattr(work.inputs["model"], "path", work.inputs["model"]))
    note = read_settings(folder)[1] if is_adapter(folder) else {}
    return build(QuantizationConfig, note["quantization"]) if note.get("quantization") else None


def for_tokenizer(shape: BaseShapeConfig, tokenizer: Tokenizer) -> BaseShapeConfig:
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


@torch.no_grad()
def _begin_embeddings(model: Model, tokenizer: Tokenizer, path: Path, seed: int) -> None:
    """Word vectors (a fit artifact, or a word2vec or GloVe file) as the first values of the tokens that have one."""
    vectors = WordVectors.load(path) if path.is_dir() else read_vectors(path)
    known = tokenizer.core.get_vocab(with_added_tokens=True)
    tokens = sorted(known, key=known.__getitem__)
    rows, found = initial_rows(vectors, tokens, model.embedding.embedding_dim, seed, model.shape.initializer_deviation)
    places = torch.tensor([known[token] for token, there in zip(tokens, found, strict=True) if there], dtype=torch.long)
    model.embedding.weight[places] = torch.from_numpy(rows[found]).to(model.dtype)
    say("{count} of {total} tokens begin as word vectors of {path}", count=int(found.sum()), total=len(tokens), path=path.name)
