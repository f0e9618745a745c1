"""Predict the next token of running text: pretraining and continued pretraining."""

from __future__ import annotations

from luban.objectives.base import DataRequest
from luban.objectives.text import Stores, TextObjective
from luban.tokens.loader import PackedLoader


class Causal(TextObjective):
    """Every token of every document is scored, the end-of-text token included."""

    name = "causal"
    kinds = ("decoder",)

    def reader(self, stores: Stores, data: DataRequest, seed: int) -> PackedLoader:
        packing = "concatenate" if data.packing == "auto" else data.packing
        return PackedLoader(stores, sequence_length=data.sequence_length, rows_per_step=data.rows_per_step, seed=seed, packing=packing)
