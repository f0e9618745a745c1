"""Predict the next token of running text: pretraining and continued pretraining."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

import torch

from luban.foundation.artifacts import Artifact
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.objectives.base import DataRequest, Loaders, Objective, Term
from luban.objectives.losses import logits_sum, scored_logits, token_sum
from luban.tokens.batch import Batch
from luban.tokens.loader import PackedLoader
from luban.tokens.store import TokenStore

VALIDATION_BATCHES = 64  # enough for a curve; `evaluate` scores every held-out document


class Causal(Objective):
    """Every token of every document is scored, the end-of-text token included."""

    name, unit, scope = "causal", "token", "example"
    kinds = ("decoder",)

    def loaders(self, data: DataRequest) -> Loaders:
        stores = [TokenStore(_encoded(source).path, "train") for source in data.data]
        replayed = [TokenStore(_encoded(source).path, "train") for source in data.replay]
        loader = PackedLoader(_weighted(stores, replayed, data.replay_share, data.mixture), sequence_length=data.sequence_length, rows_per_step=data.rows_per_step, seed=data.seed, packing=data.packing)
        report = {"train_tokens": sum(store.tokens for store in stores), "train_documents": sum(store.documents for store in stores)}
        licences = [name for source in (*data.data, *data.replay) for name in source.licences]
        return Loaders(loader, _validation(data), report, licences)

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch))}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        return scored_logits(model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(logits_sum(outputs, batch))}


def _encoded(source: object) -> Artifact:
    if not (isinstance(source, Artifact) and source.kind == "encode"):
        raise ConfigError("the causal objective reads token shards, and {source} is not one", "", "name an encode stage as data, or give a text path to `luban train`, which adds the stages in between", source=getattr(source, "path", source))
    return source


def _weighted(stores: list[TokenStore], replayed: list[TokenStore], share: float = 0.0, mixture: Sequence[float] = ()) -> list[tuple[TokenStore, float]]:
    """Each store by its share of the mixture, or by its size; together the replayed ones are ``share`` of the rows read."""
    if mixture and len(mixture) != len(stores):
        raise ConfigError("mixture has {shares} shares for {stores} data sources", "", "give one share for each of `data`, in their order", shares=len(mixture), stores=len(stores))
    wanted = list(mixture) or [float(store.tokens) for store in stores]
    old = sum(store.tokens for store in replayed)
    kept = 1 - share if old else 1.0
    return [(store, kept * part / sum(wanted)) for store, part in zip(stores, wanted, strict=True)] + [(store, share * store.tokens / old) for store in replayed if share]


def _validation(data: DataRequest) -> list[Batch]:
    """Held-out documents in a fixed order, at most 64 batches of them: the validation split, or all of `validation_data`."""
    split = "train" if data.validation else "validation"
    stores = [TokenStore(_encoded(source).path, split) for source in (data.validation or data.data)]
    stores = [store for store in stores if store.documents]
    if not stores:
        return []
    loader = PackedLoader(_weighted(stores, []), sequence_length=data.sequence_length, rows_per_step=data.rows_per_step, seed=0)
    return list(islice(loader.pass_once(), VALIDATION_BATCHES))
