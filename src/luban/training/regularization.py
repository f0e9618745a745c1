"""The typed config of what makes small data go further."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt

from luban.foundation.config import Auto, Config, field
from luban.foundation.durations import Duration

Share = Annotated[float, Field(ge=0, le=1)]


class AdversarialConfig(Config):
    """Training on inputs that are made a little harder: the token embeddings are moved along the gradient of the loss."""

    method: Literal["none", "fgm", "pgd", "freelb", "smart"] = field(
        "none", "fgm: one step (Miyato et al. 2017); pgd: several (Madry et al. 2018); freelb: several, each one's gradient used (Zhu et al. 2020); smart: keep the output smooth around the input (Jiang et al. 2020)."
    )
    epsilon: PositiveFloat | Auto = field(
        "auto", "Largest move of an example's embeddings (norm over the example; smart: of one value); auto is 2 % of the norm of its own embeddings (smart: 0.01)."
    )
    steps: PositiveInt = field(3, "Steps of the search (pgd, freelb).", unit="steps")
    step_size: PositiveFloat | Auto = field("auto", "Size of one step (pgd, freelb, smart); auto is 1.5 epsilon over the steps (smart: 0.001).")
    weight: NonNegativeFloat = field(1.0, "Weight of the adversarial loss beside the plain one (fgm, pgd, smart).")
    proximal: NonNegativeFloat = field(
        0.0, "smart: weight of the proximal point, the divergence of the outputs from those of a slow average of the weights, so that no step goes far (1 in Jiang et al. 2020); 0 leaves it out."
    )
    momentum: Annotated[float, Field(ge=0, lt=1)] = field(0.99, "smart: share of the old weights in that slow average at each step; higher follows later.")


class RegularizationConfig(Config):
    """What keeps a model from learning its few examples by heart."""

    dropout: Share | Auto = field("auto", "Dropout in the model's layers; auto leaves what the model was made with.")
    l1: NonNegativeFloat = field(0.0, "Weight of the sum of absolute weights, matrices only.")
    layer_decay: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Learning rate of each layer as a share of the one above it; 1 is the same for all (Howard & Ruder 2018).")
    head_rate: PositiveFloat = field(1.0, "Learning rate of a new head as a multiple of the peak.")
    freeze: list[str] = field([], "What does not learn: embeddings, layers:N (the lowest N), trunk (all but the head), or a part of a parameter's name.")
    unfreeze_every: Duration | None = field(None, "Gradual unfreezing: the trunk starts frozen, and one layer more learns after each such length, from the top (Howard & Ruder 2018).")
    average: Literal["none", "exponential", "validations"] = field(
        "none", "Average of the weights over the run, which is what is validated and saved: exponential (moving average), or the mean over the last validations (a soup, Wortsman et al. 2022)."
    )
    average_decay: Share = field(0.999, "exponential: share of the old average at each step.")
    average_last: PositiveInt = field(3, "validations: how many of the last ones are averaged.", unit="validations")
    r_drop: NonNegativeFloat = field(0.0, "R-Drop: weight of the divergence between two passes with different dropout (Liang et al. 2021).")
    mixup: NonNegativeFloat = field(0.0, "Mixup of the hidden states and labels of pairs of examples: parameter of the Beta distribution (Zhang et al. 2018; encoders, classification).")
    neftune: NonNegativeFloat = field(0.0, "Uniform noise on the embeddings, alpha / sqrt(tokens × width) (NEFTune, Jain et al. 2023).")
    adversarial: AdversarialConfig = field(AdversarialConfig(), "Adversarial training.")
    curriculum: Share = field(0.0, "Share of the run over which examples come from the short ones to all (Platanios et al. 2019); 0 shuffles all from the start.")

    foreign: ClassVar[dict[str, str]] = {
        "neftune_noise_alpha": "neftune",
        "hidden_dropout_prob": "dropout",
        "ema": "average: exponential",
        "swa": "average: validations",
        "layerwise_lr_decay": "layer_decay",
    }
