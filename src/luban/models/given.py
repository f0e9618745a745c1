"""Keys and values that stand before every text: learned by prefix tuning, and read by attention as a cache is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class GivenKeys:
    """A cache for one forward pass without memory of its own: each layer's given pair, and behind it what the layer made. Gradients flow through it.

    ``pairs`` are keys and values of each layer, [heads, given, head_dim]; ``places`` [rows or 1, seq] the positions of the pass's tokens in
    their documents, the given ones counted. All documents of a row see the given keys, so unlike other caches this one goes with segments.
    """

    def __init__(self, pairs: Sequence[tuple[Tensor, Tensor]], places: Tensor):
        self.pairs, self.places = pairs, places
        self.length = pairs[0][0].shape[1]

    def positions(self, length: int) -> Tensor:
        """Positions [rows or 1, length] of the tokens."""
        return self.places

    def columns(self, length: int) -> Tensor:
        """Where the tokens stand among the keys, [1, length]."""
        return self.length + torch.arange(length, device=self.places.device)[None]

    def mask(self, length: int, window: int | None) -> Tensor:
        """[rows or 1, 1, length, given + length] of bool: what is given as far as the window reaches, and the tokens by the plain causal rule."""
        device = self.places.device
        distance = self.places[:, :, None] - torch.arange(self.length, device=device)  # [rows or 1, length, given]
        numbers = torch.arange(length, device=device)
        own = (numbers[:, None] - numbers).expand(len(distance), length, length)
        distance = torch.cat([distance, own], dim=-1)
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return seen[:, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, given + length, head_dim] for new ones [rows, heads, length, head_dim]."""
        given = (part.to(keys.dtype).expand(len(keys), -1, -1, -1) for part in self.pairs[layer])
        return tuple(torch.cat([part, new], dim=2) for part, new in zip(given, (keys, values), strict=True))

    def source(self, layer: int) -> None:
        """Of a source nothing is kept: it is read in the same pass."""

    def keep_source(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See :meth:`source`."""
