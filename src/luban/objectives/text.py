"""What the objectives on running text share: token stores, their shares, held-out batches, and rows of pieces that are changed at random."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import islice

import numpy as np
import torch

from luban.foundation.artifacts import Artifact
from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Loader, Loaders, Objective, Term
from luban.objectives.losses import logits_sum, scored_logits, token_sum
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise, Transformed
from luban.tokens.store import TokenStore

VALIDATION_BATCHES = 64  # enough for a curve; `evaluate` scores every held-out document
Stores = list[tuple[TokenStore, float]]


class TextObjective(Objective):
    """Base of the objectives on running text. A subclass says how documents become batches (``reader``)."""

    unit, scope = "token", "example"

    def reader(self, stores: Stores, data: DataRequest, seed: int) -> Loader:
        """The loader of some stores; it also gives everything once (``pass_once``)."""
        raise AssertionError(f"{type(self).__name__} defines no reader")

    def loaders(self, data: DataRequest) -> Loaders:
        stores = [TokenStore(self._encoded(source).path, "train") for source in data.data]
        replayed = [TokenStore(self._encoded(source).path, "train") for source in data.replay]
        for store in {store.folder: store for store in (*stores, *replayed)}.values():
            store.look_over()
        loader = self.reader(weighted(stores, replayed, data.replay_share, data.mixture), data, data.seed)
        report = {"train_tokens": sum(store.tokens for store in stores), "train_documents": sum(store.documents for store in stores)}
        licences = [name for source in (*data.data, *data.replay) for name in source.licences]
        return Loaders(loader, self._validation(data), report, licences)

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch))}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        return scored_logits(model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(logits_sum(outputs, batch))}

    def _encoded(self, source: object) -> Artifact:
        if not (isinstance(source, Artifact) and source.kind == "encode"):
            raise ConfigError(
                "the objective {objective} reads token shards, and {source} is not one", "",
                "name an encode stage as data, or give a text path to `luban train`, which adds the stages in between",
                objective=self.name, source=getattr(source, "path", source),
            )  # fmt: skip
        return source

    def _validation(self, data: DataRequest) -> list[Batch]:
        """Held-out documents in a fixed order, at most 64 batches of them: the validation split, or all of `validation_data`."""
        split = "train" if data.validation else "validation"
        stores = [TokenStore(self._encoded(source).path, split) for source in (data.validation or data.data)]
        stores = [store for store in stores if store.documents]
        return list(islice(self.reader(weighted(stores, []), data, 0).pass_once(), VALIDATION_BATCHES)) if stores else []


class NoisyText(TextObjective):
    """Base of the objectives that hide, move or cut text: whole pieces of documents in rows, changed anew in every epoch by ``change``."""

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        """The pieces before they are changed, with room for what the change adds."""
        raise AssertionError(f"{type(self).__name__} defines no pieces")

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        """The batch that is learned from; what is random in it comes from the noise of each row."""
        raise AssertionError(f"{type(self).__name__} defines no change")

    def prepare_change(self, data: DataRequest) -> None:
        """What ``change`` needs to know of tokenizer and model."""

    def loaders(self, data: DataRequest) -> Loaders:
        self.prepare_change(data)
        self.head = Head("language_model", self.name, settings={"maximum_tokens": data.sequence_length, **self.settings()})
        return super().loaders(data)

    def settings(self) -> dict[str, object]:
        """What prediction needs to know beside the longest text."""
        return {}

    def reader(self, stores: Stores, data: DataRequest, seed: int) -> Transformed:
        if data.packing == "concatenate":
            raise ConfigError("packing: concatenate is not for the objective {objective}", "it reads whole pieces of text, each by itself", "leave packing out", objective=self.name)
        return Transformed(self.pieces(stores, data, seed), self.change, seed)

    def cut(
        self, stores: Stores, data: DataRequest, seed: int, longest: int, cost: Callable[[np.ndarray], np.ndarray],
        before: Sequence[int] = (), after: Sequence[int] = (), every_piece: bool = True,
    ) -> PieceLoader:  # fmt: skip
        """Documents cut into pieces of at most ``longest`` tokens."""
        return PieceLoader(
            stores, sequence_length=data.sequence_length, rows_per_step=data.rows_per_step, seed=seed, longest=longest, cost=cost,
            pad_id=data.tokenizer.pad_id, before=before, after=after, every_piece=every_piece,
            packing="none" if data.packing == "none" else "best_fit",
        )  # fmt: skip


def weighted(stores: list[TokenStore], replayed: list[TokenStore], share: float = 0.0, mixture: Sequence[float] = ()) -> Stores:
    """Each store by its share of the mixture, or by its size; together the replayed ones are ``share`` of the rows read."""
    if mixture and len(mixture) != len(stores):
        raise ConfigError("mixture has {shares} shares for {stores} data sources", "", "give one share for each of `data`, in their order", shares=len(mixture), stores=len(stores))
    wanted = list(mixture) or [float(store.tokens) for store in stores]
    old = sum(store.tokens for store in replayed)
    kept = 1 - share if old else 1.0
    return [(store, kept * part / sum(wanted)) for store, part in zip(stores, wanted, strict=True)] + [(store, share * store.tokens / old) for store in replayed if share]


def around(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer's family sets before and behind one text."""
    slots = tokenizer.layout.single
    place = next(index for index, slot in enumerate(slots) if slot.part >= 0)
    return [slot.id for slot in slots[:place]], [slot.id for slot in slots[place + 1 :]]


def document_ends(tokenizer: Tokenizer) -> tuple[int, int]:
    """The token that stands before a document for a decoder, and the one behind it."""
    end = tokenizer.end_of_text_id
    return end if tokenizer.begin_of_text_id is None else tokenizer.begin_of_text_id, end
