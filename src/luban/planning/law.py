"""The loss that a size and an amount of data lead to, and what repeated data is worth: laws that others fitted, whose constants may be replaced.

``L(N, D) = E + A / N^alpha + B / D^beta`` with N all parameters, D the tokens read, L in nats a token (Hoffmann et al. 2022, arXiv:2203.15556, their third approach). Such constants belong to
one kind of text and one tokenizer: what carries over to others is how a budget is best divided, not the loss itself (`luban scaling` fits that on one's own data).
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from luban.foundation.errors import ConfigError, nearest

MANY_EPOCHS = 4  # passes up to which repeated data is worth about as much as new data (Muennighoff et al. 2023, arXiv:2305.16264)


@dataclass(frozen=True)
class Law:
    """The constants. ``repetitions`` and ``excess`` are R*_D and R*_N of Muennighoff et al. 2023 (arXiv:2305.16264): after about how many repetitions of the data, or multiples of the size that is
    best for it, nothing more is gained."""

    E: float = 1.69
    A: float = 406.4
    B: float = 410.7
    alpha: float = 0.34
    beta: float = 0.28
    repetitions: float = 15.387756
    excess: float = 5.309743

    def loss(self, parameters: float, tokens: float, unique: float = math.inf) -> float:
        """Nats a token after reading ``tokens``, of which ``unique`` are different ones."""
        fitting = self.best_parameters(unique) if tokens > unique else math.inf
        return self.E + self.A * _decayed(parameters, fitting, self.excess) ** -self.alpha + self.B * self.worth(tokens, unique) ** -self.beta

    def worth(self, tokens: float, unique: float) -> float:
        """How many new tokens would do as much."""
        return _decayed(tokens, unique, self.repetitions)

    @property
    def most_epochs(self) -> float:
        """Passes over the data beyond which more of them are not planned."""
        return 1 + self.repetitions

    def best_tokens(self, parameters: float) -> float:
        """Tokens with which a model of this size is the best that its operations, 6 N D, can buy."""
        return (self.beta * self.B / (self.alpha * self.A) * parameters**self.alpha) ** (1 / self.beta)

    def best_parameters(self, tokens: float) -> float:
        """The size for which so many tokens are best: the inverse of :meth:`best_tokens`."""
        return (self.alpha * self.A / (self.beta * self.B) * tokens**self.beta) ** (1 / self.alpha)

    def text(self) -> str:
        return ", ".join(f"{name}={value:g}" for name, value in asdict(self).items())


HOFFMANN = Law()


def _decayed(amount: float, unit: float, constant: float) -> float:
    """``U + U R* (1 - exp(-R / R*))`` with R = amount / U - 1: what repetitions of a unit are worth."""
    if amount <= unit:
        return amount
    return unit * (1 - constant * math.expm1(-(amount / unit - 1) / constant))


def read_law(text: str) -> Law:
    """``E=1.8,A=482`` changes some constants; the path of a JSON file with such keys does likewise. ConfigError for what is no constant or no positive number."""
    if not text:
        return HOFFMANN
    if "=" not in text:
        try:
            given = json.loads(Path(text).read_bytes())
            assert isinstance(given, dict)
        except (OSError, ValueError, AssertionError):
            raise ConfigError("--law: {text} is neither constants nor a JSON file of them", "", "write --law E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28", text=text) from None
    else:
        given = dict(part.strip().split("=", 1) if "=" in part else (part.strip(), "") for part in text.split(",") if part.strip())
    known = [field.name for field in fields(Law)]
    values = {}
    for name, value in given.items():
        if name not in known:
            guess = nearest(name, known)
            raise ConfigError("--law: there is no constant {name!r}", "", "did you mean {guess}?" if guess else "there are: {known}", name=name, guess=guess, known=", ".join(known))
        try:
            values[name] = float(value)
        except (TypeError, ValueError):
            values[name] = math.nan
        if not (math.isfinite(values[name]) and (values[name] > 0 or (name == "E" and values[name] == 0))):
            raise ConfigError("--law: {name} is {value!r}", "the constants are positive numbers", "write --law E=1.69,A=406.4,B=410.7,alpha=0.34,beta=0.28", name=name, value=value)
    return replace(HOFFMANN, **values)
