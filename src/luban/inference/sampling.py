"""Choosing the next token of each row of a batch, each row by its own rules and its own chance."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luban.inference.config import SamplingConfig

__all__ = ["SamplingConfig", "sample", "uniform"]


def sample(
    logits: Tensor,
    settings: Sequence[SamplingConfig],
    chances: Sequence[float],
    seen: Tensor | None = None,
) -> Tensor:
    """Choose a token a row: ids [batch] from logits [batch, vocabulary].

    ``chances`` are numbers in [0, 1), one a row (see ``uniform``): a row's token depends on its own logits, settings
    and chance alone. ``seen`` [batch, vocabulary] of bool marks the tokens that the repetition penalty is about.
    The order is transformers': penalty, temperature, top-k, top-p, min-p.
    """
    if logits.device.type == "mps":  # Apple's GPUs have no float64, which the sums below need
        logits, seen = logits.cpu(), None if seen is None else seen.cpu()
    logits = penalised(logits.float(), settings, seen)
    if all(setting.temperature == 0 for setting in settings):
        return _likeliest(logits)
    probabilities = distribution(logits, settings)
    reached = probabilities.double().cumsum(dim=-1)  # [batch, vocabulary]
    chance = torch.tensor(chances, dtype=torch.float64, device=logits.device)[:, None]
    # The first token at which the sum exceeds the chance; such a token has a probability above zero.
    chosen = torch.searchsorted(reached, chance * reached[:, -1:], right=True).squeeze(1)
    chosen = torch.minimum(chosen, _last_possible(probabilities))
    greedy = torch.tensor([setting.temperature == 0 for setting in settings], device=logits.device)
    return torch.where(greedy, _likeliest(logits), chosen)


def _likeliest(logits: Tensor) -> Tensor:
    """The greatest of each row [batch]; on a processor numpy finds it in a tenth of the time that torch takes."""
    return torch.from_numpy(logits.numpy(force=True).argmax(axis=-1)) if logits.device.type == "cpu" else logits.argmax(dim=-1)


def penalised(logits: Tensor, settings: Sequence[SamplingConfig], seen: Tensor | None) -> Tensor:
    """Logits with seen tokens made less likely (CTRL, arXiv:1909.05858): positive ones divided, negative multiplied."""
    if seen is None or all(setting.repetition_penalty == 1 for setting in settings):
        return logits
    penalty = _column(logits, [setting.repetition_penalty for setting in settings])
    return torch.where(seen, torch.where(logits > 0, logits / penalty, logits * penalty), logits)


def distribution(logits: Tensor, settings: Sequence[SamplingConfig]) -> Tensor:
    """Probabilities [batch, vocabulary] after temperature and the filters; a row of temperature zero is left as one."""
    logits = logits / _column(logits, [setting.temperature or 1.0 for setting in settings])
    logits = _top_k(logits, [setting.top_k for setting in settings])
    logits = _top_p(logits, [setting.top_p for setting in settings])
    probabilities = logits.softmax(dim=-1)
    if any(setting.min_p > 0 for setting in settings):
        least = _column(logits, [setting.min_p for setting in settings]) * probabilities.amax(dim=-1, keepdim=True)
        probabilities = probabilities.masked_fill(probabilities < least, 0.0)
        probabilities = probabilities / probabilities.sum(dim=-1, keepdim=True)
    return probabilities


def _top_k(logits: Tensor, counts: list[int]) -> Tensor:
    """Keep the k largest of each row, and what ties with the last of them."""
    vocabulary = logits.shape[-1]
    counts = [min(count, vocabulary) if count else vocabulary for count in counts]
    widest = max((count for count in counts if count < vocabulary), default=0)
    if not widest:
        return logits
    largest = logits.topk(widest, dim=-1).values  # [batch, widest]
    last = torch.tensor([min(count, widest) - 1 for count in counts], device=logits.device)[:, None]
    limited = torch.tensor([count < vocabulary for count in counts], device=logits.device)[:, None]
    return logits.masked_fill((logits < largest.gather(1, last)) & limited, -torch.inf)


def _top_p(logits: Tensor, masses: list[float]) -> Tensor:
    """Keep the likeliest tokens whose predecessors together stay below the mass (arXiv:1904.09751)."""
    if all(mass >= 1 for mass in masses):
        return logits
    ordered, places = logits.sort(dim=-1, descending=True, stable=True)
    probabilities = ordered.softmax(dim=-1)
    before = probabilities.cumsum(dim=-1) - probabilities
    mass = _column(logits, [mass if mass < 1 else torch.inf for mass in masses])
    dropped = (before >= mass).scatter(1, places, before >= mass)
    return logits.masked_fill(dropped, -torch.inf)


def _column(like: Tensor, values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None]


def _last_possible(probabilities: Tensor) -> Tensor:
    """The last token of each row that can be chosen at all, should rounding lead past it."""
    possible = probabilities > 0
    return probabilities.shape[-1] - 1 - possible.flip(-1).int().argmax(dim=-1)


def uniform(seed: int, index: int) -> float:
    """The ``index``-th number in [0, 1) of a seed, a pure function of both (SplitMix64, doi:10.1145/2660193.2660195)."""
    mask = 2**64 - 1
    state = (_mixed(seed & mask) + (index + 1) * 0x9E3779B97F4A7C15) & mask
    return (_mixed(state) >> 11) * 2.0**-53


def _mixed(state: int) -> int:
    mask = 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & mask
    return state ^ (state >> 31)
