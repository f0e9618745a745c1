"""Simple preference optimisation: the better answer is to be likelier a token than the worse one, by a margin, and no reference is needed."""

from __future__ import annotations

import torch.nn.functional as functional
from torch import Tensor

from luban.objectives.config import SimPOConfig
from luban.objectives.preferences import PolicyObjective, Side


class SimPO(PolicyObjective):
    """SimPO (Meng et al. 2024, arXiv:2405.14734). The reward of an answer is ``beta`` times its log-likelihood a token."""

    name = "simpo"
    config: SimPOConfig

    def compare(self, chosen: Side, rejected: Side) -> tuple[Tensor, Tensor, Tensor]:
        better, worse = self.config.beta * chosen.mean, self.config.beta * rejected.mean
        apart = better - worse - self.config.gamma  # [pairs]
        smoothing = self.config.label_smoothing
        return -functional.logsigmoid(apart) * (1 - smoothing) - functional.logsigmoid(-apart) * smoothing, better, worse
