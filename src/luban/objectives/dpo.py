"""Direct preference optimisation: the better answer is to gain more likelihood over the reference than the worse one."""

from __future__ import annotations

import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.objectives.config import DPOConfig
from luban.objectives.preferences import PolicyObjective, Side


class DPO(PolicyObjective):
    """DPO (Rafailov et al. 2023, arXiv:2305.18290), with smoothed labels (cDPO, Mitchell 2023); IPO (Azar et al. 2023, arXiv:2310.12036);
    the hinge of SLiC (Zhao et al. 2023, arXiv:2305.10425). The reward of an answer is ``beta`` times its gain over the reference."""

    name = "dpo"
    uses_reference = True
    config: DPOConfig

    def compare(self, chosen: Side, rejected: Side) -> tuple[Tensor, Tensor, Tensor]:
        beta, smoothing = self.config.beta, self.config.label_smoothing
        better, worse = chosen.gain, rejected.gain
        if self.config.length_normalized or self.config.loss == "ipo":  # IPO's authors divide by the length too
            better, worse = better / chosen.length, worse / rejected.length
        apart = better - worse  # [pairs]
        if self.config.loss == "ipo":
            losses = (apart - 1 / (2 * beta)) ** 2
        elif self.config.loss == "hinge":
            losses = torch.relu(1 - beta * apart)
        else:
            losses = -functional.logsigmoid(beta * apart) * (1 - smoothing) - functional.logsigmoid(-beta * apart) * smoothing
        return losses, beta * better, beta * worse
