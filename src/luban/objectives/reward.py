"""Reward models: a number for an answer, learned from which of two answers is better."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch.nn.functional as functional
from torch import Tensor

from luban.examples.reading import ExampleSet
from luban.examples.tasks import Preference
from luban.foundation.errors import LubanError
from luban.inference.rewards import frame_answer
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Term
from luban.objectives.config import RewardConfig
from luban.objectives.losses import wide
from luban.objectives.preferences import Preferences
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row


class Reward(Preferences):
    """−log σ(r(better) − r(worse) − margin), Bradley and Terry's model as in Ouyang et al. 2022 (arXiv:2203.02155), the margin as in Llama 2
    (arXiv:2307.09288), plus a term that keeps the mean of a pair's rewards near 0 (Eisenstein et al. 2023, arXiv:2312.09244)."""

    name = "reward"
    kinds: ClassVar[tuple[str, ...]] = ("decoder", "encoder")
    config: RewardConfig

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        by_template = data.shape.kind == "decoder" and data.tokenizer.chat_template is not None
        return Head("sequence", "reward", ("reward",), settings={"maximum_tokens": data.sequence_length, "by_template": by_template})

    def unit_of(self, example: Preference, tokenizer: Tokenizer) -> list[Row] | None:
        margin = np.float32((example.margin or 0.0) if self.config.margin else 0.0)
        rows = []
        for number, answer in enumerate((example.chosen, example.rejected)):
            try:
                framed = frame_answer(tokenizer, [*example.messages, *answer], self.head.settings, example.tools)
            except LubanError as error:
                reason = error.text().partition("\n")[0]  # translated already
                self.refuse(reason)
                return None
            rows.append(Row(np.array(framed.ids), np.full(1, float(not number), np.float32), types=np.array(framed.types), extra={"margin": margin}, source=example.source))
        if np.array_equal(rows[0].ids, rows[1].ids):
            self.refuse("cut at sequence_length its answers are the same")
            return None
        return rows

    def predictions(self, predictor: Any, examples: Any) -> list[dict[str, Any]]:
        return predictor.predict([self.item_of(example) for example in examples])

    def outputs(self, model: Model, batch: Batch) -> Tensor:
        """[pairs, 2] the rewards of the better and of the worse answer."""
        return wide(model.scores(model(batch.inputs, **batch.context()), batch.inputs, batch.segments, batch.extra)).view(-1, 2)

    def terms_of(self, outputs: Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        better, worse = outputs[:, 0], outputs[:, 1]
        losses = -functional.logsigmoid(better - worse - batch.extra["margin"][::2].to(outputs.dtype))
        found = {"loss": Term(losses.sum())}
        if self.config.center_coefficient:
            found["center"] = Term(((better + worse) ** 2).sum(), self.config.center_coefficient)
        return found | self.statistics(better, worse, batch, (batch.segments >= 0).sum(1))

    def unit_weights(self, batch: Batch) -> Tensor:
        """[pairs]"""
        return batch.weights[::2, 0]
