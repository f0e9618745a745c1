"""The kinds of stage: where each one's config and work are, found without importing either."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING

from luban.foundation.errors import ConfigError, nearest

if TYPE_CHECKING:  # `luban --help` lists the kinds without loading pydantic
    from luban.foundation.config import Config


@dataclass(frozen=True)
class Kind:
    """A verb, its room, and the name of its config class. A terminal kind makes no artifact and runs last. A kind that runs ``together`` is the work of all
    processes that torchrun started, others are that of the first. ``compiles`` are C++ sources under the package that it may need, which can be made while others are at work."""

    name: str
    room: str
    config_name: str
    summary: str
    terminal: bool = False
    module: str = "stage"  # of the room, where its work is
    together: bool = False
    compiles: tuple[str, ...] = ()

    @property
    def config(self) -> type[Config]:
        return getattr(importlib.import_module(f"luban.{self.room}.config"), self.config_name)

    @property
    def stage(self) -> ModuleType:
        return importlib.import_module(f"luban.{self.room}.{self.module}")


KINDS = {
    kind.name: kind
    for kind in (
        Kind("curate", "corpus", "CurateConfig", "Clean, deduplicate and split raw text into a corpus."),
        Kind("gather", "examples", "GatherConfig", "Gather the texts of labelled files into a corpus.", module="gather"),
        Kind("train_tokenizer", "tokenizer", "TrainTokenizerConfig", "Train a tokenizer on a corpus, or adopt and extend one."),
        Kind("encode", "tokens", "EncodeConfig", "Encode a corpus into token shards."),
        Kind("augment", "examples", "AugmentConfig", "Make more training rows of labelled examples, in English and Chinese.", module="augment"),
        Kind("train", "training", "TrainConfig", "Train a model from scratch, or continue one.", together=True, compiles=("models/attention.cpp", "models/own_layers.cpp")),
        Kind("merge", "adapters", "MergeConfig", "Make adapters part of their base, or of several one.", module="merge"),
        Kind("fit", "fitting", "FitConfig", "Fit what needs no loop: n-gram models, word vectors, linear models over TF-IDF."),
        Kind("ensemble", "fitting", "EnsembleConfig", "Let several models of a task answer together.", module="ensemble"),
        Kind("evaluate", "evaluation", "EvaluateConfig", "Score models on held-out text, beside n-gram baselines."),
        Kind("serve", "serving", "ServeConfig", "Serve a model over an OpenAI-compatible API with a chat page.", terminal=True),
    )
}


def find_kind(name: object, where: str) -> Kind:
    """The kind by name, or a ConfigError with the nearest one."""
    if isinstance(name, str) and name.replace("-", "_") in KINDS:
        return KINDS[name.replace("-", "_")]
    guess = nearest(str(name), KINDS)
    raise ConfigError("{where}: there is no kind of stage called {name!r}", "", "did you mean {guess}?" if guess else "kinds: {known}", where=where, name=name, guess=guess, known=", ".join(KINDS))
