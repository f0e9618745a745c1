"""What adapters and tuned models change in their base, one tensor at a time, and how several changes become one.

TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2024, arXiv:2311.03099. Both act on the change of each tensor of the model
(the papers' task vector), not on the factors of a LoRA.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from luban.adapters.adapted import adapted_layers
from luban.models.base import Model, named_generator


def changes(model: Model) -> dict[str, Tensor]:
    """What the adapter that ``model`` wears changes in each of its base's tensors; the model stays as it is. ConfigError where the method cannot be merged."""
    method, found = model.adapter, {}
    for place, layer in adapted_layers(model, method.name).items():
        before = {leaf: value.detach().clone() for leaf, value in layer.named_parameters(recurse=False)}
        method.merge_layer(place, layer, layer.adapters[method.name])
        for leaf, value in layer.named_parameters(recurse=False):
            if leaf in before and not torch.equal(value, before[leaf]):
                found[f"{place}.{leaf}"] = value.detach() - before[leaf]
                with torch.no_grad():
                    value.copy_(before[leaf])
    return found


def combined(parts: Sequence[Tensor], weights: Sequence[float], how: str, density: float, seed: int, name: str) -> Tensor:
    """One change of the tensor ``name`` from several of the same shape."""
    if how.startswith("dare"):
        parts = [dropped(part, density, named_generator(seed, f"{name}:{number}")) for number, part in enumerate(parts)]
    if how == "ties":
        parts = [largest(part, density) for part in parts]
    weighted = torch.stack([part * weight for part, weight in zip(parts, weights, strict=True)])
    return agreeing(weighted, torch.tensor(weights)) if how.endswith("ties") else weighted.sum(0)


def largest(part: Tensor, density: float) -> Tensor:
    """The entries of the largest magnitude, a share ``density`` of all; the others zero."""
    kept = max(1, round(part.numel() * density))
    bound = part.abs().flatten().kthvalue(part.numel() - kept + 1).values
    return torch.where(part.abs() >= bound, part, torch.zeros_like(part))


def dropped(part: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A random share ``density`` of the entries, scaled up to the same expectation; the others zero."""
    kept = torch.rand(part.shape, generator=generator) < density
    return torch.where(kept.to(part.device), part / density, torch.zeros_like(part))


def agreeing(weighted: Tensor, weights: Tensor) -> Tensor:
    """Of [sources, …] weighted changes the mean, by weight, of those whose sign is that of the sum of all, times the sum of the weights."""
    sign = weighted.sum(0).sign()
    agree = (weighted.sign() == sign) & (weighted != 0)
    share = (agree * weights.abs().view(-1, *[1] * (weighted.dim() - 1))).sum(0)
    return torch.where(share > 0, (weighted * agree).sum(0) / share.clamp(min=1e-12) * weights.abs().sum(), torch.zeros_like(share))


def thin(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best product B [out, rank] · A [rank, in] of a change [out, in] (truncated singular values)."""
    left, values, right = torch.linalg.svd(change.float(), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]
