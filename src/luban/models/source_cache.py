"""What an encoder–decoder keeps while it writes: keys and values of the tokens written, and of the source."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

FIRST_TOKENS = 32  # room that is made at first; it doubles when it is used up


class SourceCache:
    """Keys and values of ``slots`` texts that are written in step, so that all are of one length, and of the sources they look at.

    A source is kept once for all the texts (beams) that neighbour each other and look at it. The interface is that of
    luban.inference.cache.KeyValueCache; a forward pass always takes all texts.
    """

    def __init__(self, slots: int, maximum: int):
        self.slots, self.maximum = slots, maximum
        self.lengths = [0] * slots
        self.beginnings: dict[str, SourceCache] = {}  # what a text may begin with, by name: caches of one slot
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, each [slots, heads, room, head_dim]
        self._sources: dict[int, tuple[Tensor, Tensor]] = {}  # by layer, each [sources, heads, source_seq, head_dim]

    @property
    def length(self) -> int:
        """Tokens held, the same in every row."""
        return self.lengths[0]

    def rows(self, first: int, count: int, lengths: Sequence[int] | None = None) -> SourceCache:
        """The cache of one forward pass over all texts."""
        assert first == 0 and count == len(self.lengths)
        return self

    def begin(self, first: int, count: int, name: str = "") -> None:
        """Let all texts begin, with nothing or with what is kept under ``name``."""
        assert first == 0 and count == self.slots
        beginning = self.beginnings.get(name)
        self.lengths = [beginning.length if beginning else 0] * self.slots
        self._kept = {layer: tuple(block.expand(count, -1, -1, -1) for block in pair) for layer, pair in beginning._kept.items()} if beginning else {}

    def advance(self, slot: int, tokens: int) -> None:
        """Say that a slot holds this many more tokens."""
        self.lengths[slot] += tokens
        assert self.lengths[slot] <= self.maximum

    def update(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Store new keys and values [rows, heads, new, head_dim]; all that the new tokens attend to comes back."""
        held, end = self.length, self.length + keys.shape[2]
        kept = self._kept.get(layer)
        if kept is None or kept[0].shape[2] < end:
            room = min(self.maximum, max(FIRST_TOKENS, 2 * held, end))
            grown = tuple(new.new_empty(*new.shape[:2], room, new.shape[3]) for new in (keys, values))
            for old, block in zip(kept or (), grown, strict=False):
                block[:, :, :held] = old[:, :, :held]
            kept = self._kept[layer] = grown[0], grown[1]
        for block, new in zip(kept, (keys, values), strict=True):
            block[:, :, held:end] = new
        return kept[0][:, :, :end], kept[1][:, :, :end]

    def source(self, layer: int) -> tuple[Tensor, Tensor] | None:
        """The source's keys and values [sources, heads, source_seq, head_dim], None before they are kept."""
        return self._sources.get(layer)

    def keep_source(self, layer: int, keys: Tensor, values: Tensor) -> None:
        """Store them."""
        self._sources[layer] = keys, values

    def select(self, slots: Sequence[int]) -> None:
        """Let slot i hold what ``slots[i]`` held: the beams that live on, and no others. A source's beams stay together."""
        if list(slots) == list(range(len(self.lengths))):
            return
        share = max(1, len(self.lengths) // max((len(keys) for keys, _ in self._sources.values()), default=len(self.lengths)))
        sources = [slot // share for slot in slots[::share]]
        self._kept = _chosen(self._kept, slots)
        if self._sources and sources != list(range(len(next(iter(self._sources.values()))[0]))):
            self._sources = _chosen(self._sources, sources)
        self.lengths = [self.lengths[slot] for slot in slots]


def _chosen(blocks: dict[int, tuple[Tensor, Tensor]], rows: Sequence[int]) -> dict[int, tuple[Tensor, Tensor]]:
    device = next(iter(blocks.values()))[0].device if blocks else torch.device("cpu")
    chosen = torch.tensor(list(rows), device=device)
    return {layer: (keys.index_select(0, chosen), values.index_select(0, chosen)) for layer, (keys, values) in blocks.items()}
