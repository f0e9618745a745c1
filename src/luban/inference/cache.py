"""Keys and values of what was read so far, in slots of one preallocated block a layer.

Rows that decode together are neighbouring slots, so that attention reads them in place and nothing is gathered.
Lengths are kept on the host: no step waits for the device to tell them.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from luban.adapters.before import before_of, befores_of
from luban.models.decoder import Decoder
from luban.models.masks import attention_mask


def new_cache(model: Any, slots: int, maximum: int) -> Any:
    """What a model keeps of ``slots`` texts of up to ``maximum`` tokens while it writes them.

    A model that keeps something else than keys and values brings its own by a method ``new_cache(slots, maximum)``; what that
    returns has ``rows``, ``advance``, ``begin``, ``beginnings``, ``move``, ``select``, ``slots`` and ``lengths`` as :class:`KeyValueCache`.
    What adapters put before texts is computed once, kept under their names, and has room beside ``maximum``; all slots begin with the active one's.
    """
    make, befores = getattr(model, "new_cache", None) or partial(KeyValueCache, model), befores_of(model)
    made = make(slots, max(befores.values(), default=0) + maximum)
    for name, tokens in befores.items():
        made.beginnings[name] = model.begin(name, make(1, tokens))
    made.begin(0, slots, before_of(model, None))
    return made


class KeyValueCache:
    """``slots`` texts of up to ``maximum`` tokens; ``lengths`` says how many each holds."""

    def __init__(self, model: Decoder, slots: int, maximum: int):
        shape = model.shape
        size = (slots, shape.key_value_heads, maximum, shape.head_dim)
        # Zeros, not whatever was there: a masked position is multiplied with zero, and zero times NaN is NaN.
        self.keys = [torch.zeros(size, dtype=model.states_dtype, device=model.device) for _ in range(shape.layers)]
        self.values = [torch.zeros(size, dtype=model.states_dtype, device=model.device) for _ in range(shape.layers)]
        self.device, self.slots, self.maximum = model.device, slots, maximum
        self.beginnings: dict[str, KeyValueCache] = {}  # what a text may begin with, by name: caches of one slot
        self.lengths = [0] * slots

    def rows(self, first: int, count: int, lengths: Sequence[int] | None = None) -> CacheRows:
        """Slots ``first`` … ``first + count - 1`` as the cache of one forward pass.

        ``lengths`` are how many of each row's new tokens are the text's. States need to know (see ``new_cache``); here it is told afterwards, and
        says only where positions end.
        """
        return CacheRows(self, first, count, lengths)

    def begin(self, first: int, count: int, name: str = "") -> None:
        """Let slots ``first`` … ``first + count - 1`` begin anew, empty or with what is kept under ``name``."""
        beginning, end = self.beginnings.get(name), first + count
        tokens = beginning.lengths[0] if beginning else 0
        if beginning:
            for block, kept in zip((*self.keys, *self.values), (*beginning.keys, *beginning.values), strict=True):
                block[first:end, :, :tokens] = kept[:, :, :tokens]
        self.lengths[first:end] = [tokens] * count

    def advance(self, slot: int, tokens: int) -> None:
        """Say that a slot holds this many more tokens. What lies beyond its length is overwritten later."""
        self.lengths[slot] += tokens
        assert self.lengths[slot] <= self.maximum

    def move(self, source: int, target: int) -> None:
        """Take over what ``source`` holds into ``target``, and free ``source``."""
        length = self.lengths[source]
        for block in (*self.keys, *self.values):
            block[target, :, :length] = block[source, :, :length]
        self.lengths[target], self.lengths[source] = length, 0

    def select(self, slots: Sequence[int]) -> None:
        """Let slot i hold what ``slots[i]`` held: the beams that live on."""
        if list(slots) == list(range(len(slots))):
            return
        longest = max(self.lengths[slot] for slot in slots)
        chosen = torch.tensor(list(slots), device=self.device)
        for block in (*self.keys, *self.values):
            block[: len(chosen), :, :longest] = block[chosen, :, :longest]
        self.lengths = [self.lengths[slot] for slot in slots] + self.lengths[len(slots) :]


class CacheRows:
    """Neighbouring slots during one forward pass; the decoder's ``Cache``."""

    def __init__(self, cache: KeyValueCache, first: int, count: int, new: Sequence[int] | None):
        self.cache, self.first, self.end = cache, first, first + count
        self.lengths = cache.lengths[first : self.end]
        self.longest = max(self.lengths)
        self.even = min(self.lengths) == self.longest
        self.held = torch.tensor(self.lengths, device=cache.device)  # [rows]
        self.numbers = torch.arange(count, device=cache.device)  # [rows]
        padded = new is not None and min(new) != max(new)
        self.last = torch.tensor(new, device=cache.device) + self.held - 1 if padded else None  # [rows]

    def columns(self, length: int) -> Tensor:
        """Where the next tokens stand among the keys, [rows, length]."""
        return self.held[:, None] + torch.arange(length, device=self.held.device)

    def positions(self, length: int) -> Tensor:
        """Positions [rows, length] of the next tokens; padding has that of the last one, for a table of positions may end there."""
        columns = self.columns(length)
        return columns if self.last is None else columns.minimum(self.last[:, None])

    def mask(self, length: int, window: int | None) -> Tensor | None:
        """[rows, 1, length, keys] of bool; None where the plain causal rule says it all."""
        keys = self.longest + length
        if self.longest == 0:
            return attention_mask(length, None, window, self.held.device)
        if length == 1 and self.even and (window is None or keys <= window):
            return None
        distance = self.columns(length)[:, :, None] - torch.arange(keys, device=self.held.device)  # [rows, length, keys]
        seen = distance >= 0 if window is None else (distance >= 0) & (distance < window)
        return seen[:, None]

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [rows, kv_heads, length, head_dim] at each row's end; all there is comes back."""
        length = keys.shape[2]
        stored = []
        for block, new in ((self.cache.keys[layer], keys), (self.cache.values[layer], values)):
            rows = block[self.first : self.end]  # [rows, kv_heads, maximum, head_dim]
            if self.even:
                rows[:, :, self.longest : self.longest + length] = new
            elif length == 1:
                rows[self.numbers, :, self.held] = new[:, :, 0].to(rows.dtype)
            else:
                rows[self.numbers[:, None], :, self.columns(length)] = new.transpose(1, 2).to(rows.dtype)
            stored.append(rows[:, :, : self.longest + length])
        return stored[0], stored[1]
