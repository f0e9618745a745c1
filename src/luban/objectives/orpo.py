"""Odds-ratio preference optimisation: learn the better answers, and raise their odds over the worse ones; one stage, no reference."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.objectives.config import ORPOConfig
from luban.objectives.preferences import PolicyObjective, Side
from luban.tokens.batch import Batch

SURE = -1e-7  # the largest log-probability whose odds are taken: those of certainty are infinite


class ORPO(PolicyObjective):
    """ORPO (Hong et al. 2024, arXiv:2403.07691): the cross-entropy of the better answers (the term ``sft``) plus ``beta`` times −log σ of the
    log odds ratio (the term ``loss``, with ``beta`` in it). Probabilities are the geometric mean over an answer's tokens."""

    name = "orpo"
    config: ORPOConfig
    imitation = 1.0

    def imitated(self, batch: Batch) -> Tensor:
        if not self.config.learn_prompt:
            return super().imitated(batch)
        places = batch.segments >= 0
        places[1::2] = False
        return places

    def compare(self, chosen: Side, rejected: Side) -> tuple[Tensor, Tensor, Tensor]:
        beta = self.config.beta
        log_odds = log_odds_of(chosen.mean) - log_odds_of(rejected.mean)  # [pairs]
        return -beta * functional.logsigmoid(log_odds), beta * chosen.mean, beta * rejected.mean


def log_odds_of(log_probability: Tensor) -> Tensor:
    """log p/(1−p) of log p, exact for small and for large p (Mächler 2012, log1mexp)."""
    known = log_probability.clamp(max=SURE)
    rest = torch.where(known > -math.log(2), torch.log(-torch.expm1(known)), torch.log1p(-torch.exp(known)))  # log(1−p)
    return known - rest
