"""What recurrent models share: documents of a batch side by side, and states that a text is continued from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence


@dataclass(frozen=True)
class Documents:
    """The documents of rows, longest first, as recurrent layers want them: every document's first token, then every second, …

    ``order`` [tokens] are their places in [rows * seq]; ``sizes`` [longest] how many documents have so many tokens; ``rows``,
    ``starts`` and ``lengths`` [documents] where each stands.
    """

    order: Tensor
    sizes: Tensor
    rows: Tensor
    starts: Tensor
    lengths: Tensor

    @classmethod
    def of(cls, segments: Tensor) -> Documents:
        """Of segments [rows, seq]: each run of one number is a document, -1 is padding."""
        rows, seq = segments.shape
        kept = segments >= 0
        begins = kept & (segments != F.pad(segments, (1, 0), value=-1)[:, :-1])  # [rows, seq]
        places = torch.arange(seq, device=segments.device)
        times = places - torch.where(begins, places, 0).cummax(1).values  # [rows, seq]: the token's number in its document
        document = (begins.flatten().cumsum(0) - 1)[kept.flatten()]  # [tokens]
        place = kept.flatten().nonzero()[:, 0]  # [tokens]
        count = int(begins.sum())
        lengths = torch.bincount(document, minlength=count)  # [documents]
        ranking = lengths.argsort(descending=True, stable=True)
        rank = torch.empty_like(ranking).scatter_(0, ranking, torch.arange(count, device=segments.device))
        time = times.flatten()[place]
        starts = begins.flatten().nonzero()[:, 0][ranking]
        order = place[(time * count + rank[document]).argsort()]
        return cls(order, torch.bincount(time).cpu(), starts // seq, starts % seq, lengths[ranking])

    def pack(self, states: Tensor) -> PackedSequence:
        """Their states [rows, seq, dim] as a packed sequence."""
        return PackedSequence(states.flatten(0, 1).index_select(0, self.order), self.sizes)

    def unpack(self, data: Tensor, rows: int, seq: int) -> Tensor:
        """Packed states [tokens, dim] back in place [rows, seq, dim]; zeros in padding."""
        return data.new_zeros(rows * seq, data.shape[-1]).index_copy(0, self.order, data).view(rows, seq, -1)


def run_cells(layer: nn.RNNBase, data: Tensor, sizes: Tensor, start: Any = None) -> tuple[Tensor, Any]:
    """A recurrent layer over documents (what a PackedSequence holds: data [tokens, dim], batch_sizes), its outputs [tokens, dim] and last states. Documents of one length are a
    plain tensor [longest, documents, dim], which is faster."""
    if sizes[0] != sizes[-1]:
        packed, ends = layer(PackedSequence(data, sizes), start)
        return packed.data, ends
    outputs, ends = layer(data.view(len(sizes), int(sizes[0]), -1), start)
    return outputs.flatten(0, 1), ends


class StateCache:
    """States of fixed size, one set a slot: what recurrent models keep of a text, in the place of keys and values.

    A state is that after all tokens which were read, so :meth:`rows` must be told how many of a row's tokens are
    the text's and how many are padding; :meth:`advance` holds the caller to it.
    """

    def __init__(self, tensors: Sequence[Tensor], maximum: int):
        self.tensors = list(tensors)  # each [slots, …]
        self.device, self.slots, self.maximum = tensors[0].device, len(tensors[0]), maximum
        self.lengths = [0] * self.slots
        self._read = [0] * self.slots
        self.beginnings: dict[str, StateCache] = {}  # what a text may begin with, by name: caches of one slot

    def rows(self, first: int, count: int, lengths: Sequence[int] | None = None) -> StateRows:
        """Slots ``first`` … ``first + count - 1`` for one forward pass, in which each reads so many tokens (None: all of its row)."""
        return StateRows(self, first, count, lengths)

    def begin(self, first: int, count: int, name: str = "") -> None:
        """Let slots ``first`` … ``first + count - 1`` begin anew, with zeros or with what is kept under ``name``."""
        beginning = self.beginnings.get(name)
        for number, tensor in enumerate(self.tensors):
            tensor[first : first + count] = beginning.tensors[number] if beginning else 0
        for slot in range(first, first + count):
            self.lengths[slot] = self._read[slot] = beginning.lengths[0] if beginning else 0

    def note(self, slot: int, tokens: int) -> None:
        """A forward pass has moved the slot's state on by so many tokens."""
        self._read[slot] = self.lengths[slot] + tokens

    def advance(self, slot: int, tokens: int) -> None:
        """Say that a slot holds this many more tokens."""
        self.lengths[slot] += tokens
        assert self.lengths[slot] == self._read[slot] <= self.maximum

    def move(self, source: int, target: int) -> None:
        """Take over what ``source`` holds into ``target``, and free ``source``."""
        for tensor in self.tensors:
            tensor[target] = tensor[source]
        self.lengths[target], self._read[target] = self.lengths[source], self._read[source]
        self.begin(source, 1)

    def select(self, slots: Sequence[int]) -> None:
        """Let slot i hold what ``slots[i]`` held: the beams that live on."""
        chosen = torch.tensor(list(slots), device=self.device)
        for tensor in self.tensors:
            tensor[: len(chosen)] = tensor[chosen]
        for name in ("lengths", "_read"):
            held = getattr(self, name)
            setattr(self, name, [held[slot] for slot in slots] + held[len(slots) :])


class StateRows:
    """Neighbouring slots during one forward pass."""

    def __init__(self, cache: StateCache, first: int, count: int, lengths: Sequence[int] | None):
        assert lengths is None or min(lengths) > 0, "each row reads something"
        self.cache, self.first, self.end, self.new = cache, first, first + count, lengths
        self.lengths = cache.lengths[first : self.end]

    def segments(self, seq: int) -> Tensor:
        """Which of the next tokens [rows, seq] are the text's: 0, and -1 for padding."""
        new = torch.tensor(self.new or [seq] * (self.end - self.first), device=self.cache.device)
        return torch.where(torch.arange(seq, device=self.cache.device) < new[:, None], 0, -1)

    def read(self) -> list[Tensor]:
        """The states [rows, …] so far."""
        return [tensor[self.first : self.end] for tensor in self.cache.tensors]

    def write(self, states: Sequence[Tensor], seq: int) -> None:
        """The states [rows, …] after a pass over ``seq`` columns."""
        for tensor, state in zip(self.cache.tensors, states, strict=True):
            tensor[self.first : self.end] = state.detach()
        for offset, new in enumerate(self.new or [seq] * (self.end - self.first)):
            self.cache.note(self.first + offset, new)


class TextCache:
    """The texts themselves, for models whose state is not known: each pass reads them whole. Slots as in :class:`StateCache`."""

    def __init__(self, slots: int, maximum: int, device: torch.device):
        self.slots, self.maximum, self.device = slots, maximum, device
        self.texts: list[list[int]] = [[] for _ in range(slots)]
        self.lengths = [0] * slots
        self.beginnings: dict[str, TextCache] = {}  # what a text may begin with, by name: caches of one slot

    def rows(self, first: int, count: int, lengths: Sequence[int] | None = None) -> TextRows:
        """Slots ``first`` … ``first + count - 1`` for one forward pass; a row has so many new tokens (None: all)."""
        return TextRows(self, first, count, lengths)

    def advance(self, slot: int, tokens: int) -> None:
        """Say that a slot holds this many more tokens."""
        self.lengths[slot] += tokens
        assert self.lengths[slot] == len(self.texts[slot]) <= self.maximum

    def begin(self, first: int, count: int, name: str = "") -> None:
        """Let slots ``first`` … ``first + count - 1`` begin anew, empty or with what is kept under ``name``."""
        own = self.beginnings[name].texts[0] if name in self.beginnings else []
        for slot in range(first, first + count):
            self.texts[slot], self.lengths[slot] = list(own), len(own)

    def move(self, source: int, target: int) -> None:
        """Take over what ``source`` holds into ``target``, and free ``source``."""
        self.texts[target], self.lengths[target] = self.texts[source], self.lengths[source]
        self.begin(source, 1)

    def select(self, slots: Sequence[int]) -> None:
        """Let slot i hold what ``slots[i]`` held: the beams that live on."""
        self.texts[: len(slots)] = [list(self.texts[slot]) for slot in slots]
        self.lengths[: len(slots)] = [self.lengths[slot] for slot in slots]


class TextRows:
    """Neighbouring slots of texts during one forward pass."""

    def __init__(self, cache: TextCache, first: int, count: int, lengths: Sequence[int] | None):
        self.cache, self.first, self.count, self.new = cache, first, count, lengths
        self.lengths = cache.lengths[first : first + count]

    def read(self, tokens: Tensor, model: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """Hidden states [rows, seq, dim] of new tokens [rows, seq] from ``model(texts, segments)`` over all there is."""
        rows, seq = tokens.shape
        new = self.new or [seq] * rows
        for offset, (row, size) in enumerate(zip(tokens.tolist(), new, strict=True)):
            slot = self.first + offset
            self.cache.texts[slot] = self.cache.texts[slot][: self.lengths[offset]] + row[:size]
        texts = self.cache.texts[self.first : self.first + rows]
        longest = max(map(len, texts))
        padded = torch.tensor([text + [0] * (longest - len(text)) for text in texts], device=tokens.device)
        sizes = torch.tensor([len(text) for text in texts], device=tokens.device)
        segments = torch.where(torch.arange(longest, device=tokens.device) < sizes[:, None], 0, -1)
        hidden = model(padded, segments)  # [rows, longest, dim]
        held = torch.tensor(self.lengths, device=tokens.device)
        places = (held[:, None] + torch.arange(seq, device=tokens.device)).clamp(max=longest - 1)  # [rows, seq]
        return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
