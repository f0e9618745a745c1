"""Keys and values that do not come from the tokens at hand, read by attention as a cache is: learned ones before every text (prefix tuning), and those of the other ranks' parts of a row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.models.masks import mask_of


class OnePass:
    """A cache for one forward pass, without memory of its own. Gradients flow through it."""

    length: int  # places before the tokens at hand

    def beside(self, mask: Tensor | None) -> Tensor | None:
        """What the tokens of an encoder see, of ``mask`` [rows, 1, seq, seq] over the tokens at hand; None: all."""
        raise NotImplementedError

    def source(self, layer: int) -> None:
        """Of a source nothing is kept: it is read in the same pass."""

    def keep_source(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """See :meth:`source`."""


class GivenKeys(OnePass):
    """Each layer's given pair, and behind it what the layer made.

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

    def beside(self, mask: Tensor | None) -> Tensor | None:
        return None if mask is None else F.pad(mask, (self.length, 0), value=True)


class GatheredKeys(OnePass):
    """Keys and values of all places of a row, of which each of ``ranks`` makes those of its part: ranks of a lower number have the places before. ``gather`` puts parts together along a dimension.

    ``segments`` and ``prefix`` [rows, seq] are those of whole rows, ``positions`` [rows or 1, seq] too. ``causal`` says whether a token sees what comes after it.
    """

    def __init__(self, rank: int, ranks: int, gather: Callable[[Tensor, int], Tensor], seq: int, positions: Tensor, segments: Tensor | None, prefix: Tensor | None = None, causal: bool = True):
        size = seq // ranks
        self.gather, self.length = gather, size * rank
        self.own = slice(self.length, self.length + size)
        self.causal, self.prefix, self.segments, self.whole_positions = causal, prefix, segments, positions
        self.total = self.own.stop if causal and prefix is None else seq  # what comes after is not looked at

    def positions(self, length: int) -> Tensor:
        """Positions [rows or 1, length] of this rank's tokens."""
        return self.whole_positions[:, self.own]

    def columns(self, length: int) -> Tensor:
        """Where this rank's tokens stand among the keys, [1, length]."""
        return torch.arange(self.own.start, self.own.stop, device=self.whole_positions.device)[None]

    def mask(self, length: int, window: int | None) -> Tensor | None:
        """What this rank's tokens see, [rows or 1, 1, length, total] of bool; None: all."""
        if not self.causal and self.segments is None:
            return None
        places = torch.arange(self.total, device=self.whole_positions.device)
        parts = [(None, None) if whole is None else (whole[:, self.own], whole[:, : self.total]) for whole in (self.segments, self.prefix)]
        return mask_of(places[self.own], places, *parts[0], *parts[1], window, self.causal)[:, None]

    def beside(self, mask: Tensor | None) -> Tensor | None:
        return self.mask(0, None)

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [rows, heads, total, head_dim] for those of this rank's tokens."""
        return tuple(self.gather(part, 2)[:, :, : self.total] for part in (keys, values))
