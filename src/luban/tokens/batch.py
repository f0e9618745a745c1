"""What a loader hands to an objective, and one supervised example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor


@dataclass
class Example:
    """A supervised sequence: token ids [n], and the weight of each as a target [n] (0 = given, not learned)."""

    ids: np.ndarray  # [n] int32
    weights: np.ndarray  # [n] float32
    source: str = ""  # file and line it came from


@dataclass
class Row:
    """One framed example on its way into a batch: what stands in a row of its own."""

    ids: np.ndarray  # [n] int
    weights: np.ndarray  # [n] float32: of each place as a target; or [1]: the row counts as a whole
    targets: np.ndarray | None = None  # [n] int: what is to be predicted at each place, where places are scored
    types: np.ndarray | None = None  # [n] int: first or second text
    source_ids: np.ndarray | None = None  # [m] int: what the encoder of an encoder–decoder reads
    extra: dict[str, np.ndarray] = field(default_factory=dict)  # values of the row, of one shape in all rows
    source: str = ""  # file and line it came from


@dataclass
class Batch:
    """Rows of tokens with what must be predicted at each place, or of each row.

    ``segments`` numbers the document in its row that a place belongs to, -1 where the row is padding; None where each row is one
    document without padding. Attention stays inside a segment, and ``positions`` start anew in each. ``group`` rows that follow each
    other form one unit (the choices of a question, the documents of a query) and are never split.
    """

    inputs: Tensor  # [rows, seq] int64
    targets: Tensor  # [rows, seq] int64
    weights: Tensor  # [rows, seq] float32, 0 = not scored; [rows, 1] where a row is scored as a whole
    positions: Tensor  # [rows, seq] int64
    segments: Tensor | None  # [rows, seq] int32
    sources: list[str] = field(default_factory=list)  # documents in it, row by row
    row_sources: list[int] = field(default_factory=list)  # how many of ``sources`` belong to each row
    types: Tensor | None = None  # [rows, seq] int64, for encoders that tell two texts apart
    source: Tensor | None = None  # [rows, source_seq] int64, what an encoder–decoder reads
    source_segments: Tensor | None = None  # [rows, source_seq] int32
    extra: dict[str, Tensor] = field(default_factory=dict)  # [rows, …] labels and the like
    group: int = 1
    prefix: Tensor | None = None  # [rows, seq] bool: places of a decoder's input that all places of their segment see
    looked_up: tuple[Tensor, Tensor] | None = None  # weights, and the places [scored] where they are not 0, if that was looked up on the host
    micro_rows: int = 0  # rows that an objective which needs all of them at once passes through the model together; 0: all

    def rows(self, start: int, stop: int, trim: bool = False) -> Batch:
        """Some of the rows: a rank's share or a micro-batch. ``trim`` drops columns at the end that are padding in all of them."""
        first = sum(self.row_sources[:start])
        counts = self.row_sources[start:stop]
        width = _used(self.segments, start, stop) if trim else None
        source_width = _used(self.source_segments, start, stop) if trim else None
        parts = {name: _cut(getattr(self, name), start, stop, width) for name in _PLACES}
        parts |= {name: _cut(getattr(self, name), start, stop, source_width) for name in _SOURCE}
        extra = {name: value[start:stop] for name, value in self.extra.items()}
        return replace(self, **parts, extra=extra, sources=self.sources[first : first + sum(counts)], row_sources=counts)

    def padded(self, multiple: int, of_source: int = 0) -> Batch:
        """With padding at the end of each row, of the source too, so that ``multiple`` divides the columns, and ``of_source`` (if not 0, else the same) those of the source."""
        room, source_room = -self.inputs.shape[1] % multiple, 0 if self.source is None else -self.source.shape[1] % (of_source or multiple)
        if not room and not source_room:
            return self
        segments = torch.zeros_like(self.inputs, dtype=torch.int32) if self.segments is None and room else self.segments
        source_segments = torch.zeros_like(self.source, dtype=torch.int32) if self.source_segments is None and source_room else self.source_segments
        given = replace(self, segments=segments, source_segments=source_segments)
        places = [name for name in _PLACES if name != "weights" or self.weights.shape[1] == self.inputs.shape[1]]
        parts = {name: _filled(getattr(given, name), room) for name in places} | {name: _filled(getattr(given, name), source_room) for name in _SOURCE}
        made, width = replace(given, **parts), self.weights.shape[1]
        known = self.known_scored
        return made if known is None else replace(made, looked_up=(made.weights, known // width * made.weights.shape[1] + known % width))

    def scoring(self, part: int, parts: int) -> Batch:
        """The batch of which only the places in one of ``parts`` equal parts of the rows count."""
        size = self.inputs.shape[1] // parts
        weights = torch.zeros_like(self.weights)
        weights[:, part * size : (part + 1) * size] = self.weights[:, part * size : (part + 1) * size]
        return replace(self, weights=weights)

    def picked(self, places: Sequence[int]) -> Batch:
        """The rows at these places, in this order; a row may come twice."""
        chosen = torch.as_tensor(places, dtype=torch.long)
        first = np.cumsum([0, *self.row_sources])
        parts = {name: value if (value := getattr(self, name)) is None else value[chosen] for name in (*_PLACES, *_SOURCE)}
        sources = [source for place in places for source in self.sources[first[place] : first[place + 1]]] if self.row_sources else []
        return replace(self, **parts, extra={name: value[chosen] for name, value in self.extra.items()}, sources=sources, row_sources=[self.row_sources[place] for place in places] if self.row_sources else [])

    def to(self, device: str | torch.device) -> Batch:
        """The batch on another device. Which places are scored is looked up before, so that the host need not ask the device."""
        parts = {name: _moved(getattr(self, name), device) for name in (*_PLACES, *_SOURCE)}
        return replace(self, **parts, looked_up=(parts["weights"], _moved(self.scored, device)), extra={name: _moved(value, device) for name, value in self.extra.items()})

    def context(self) -> dict[str, Tensor]:
        """What a model is called with beside the inputs."""
        named = {"positions": self.positions, "segments": self.segments, "types": self.types, "prefix": self.prefix}
        if self.source is not None:
            named = {"segments": self.segments, "source": self.source, "source_segments": self.source_segments}
        return {name: value for name, value in named.items() if value is not None}

    @property
    def scored(self) -> Tensor:
        """Where the flattened weights are not 0, [scored]."""
        known = self.known_scored
        return self.weights.reshape(-1).nonzero().squeeze(1) if known is None else known

    @property
    def known_scored(self) -> Tensor | None:
        """:attr:`scored`, if that was looked up and still holds."""
        return self.looked_up[1] if self.looked_up is not None and self.looked_up[0] is self.weights else None

    @property
    def count(self) -> float:
        """Sum of the weights: what a mean over the batch divides by."""
        return float(self.weights.sum(dtype=torch.float64))


_PLACES = ("inputs", "targets", "weights", "positions", "segments", "types", "prefix")
_SOURCE = ("source", "source_segments")


def _used(segments: Tensor | None, start: int, stop: int) -> int | None:
    """Columns up to the last that is no padding in one of the rows."""
    if segments is None:
        return None
    used = (segments[start:stop] >= 0).any(0).nonzero()
    return int(used[-1]) + 1 if len(used) else 1


def _cut(value: Tensor | None, start: int, stop: int, width: int | None) -> Tensor | None:
    return None if value is None else value[start:stop, :width]


def _filled(value: Tensor | None, room: int) -> Tensor | None:
    """With ``room`` more columns: of padding in segments (int32), of zeros otherwise."""
    return value if value is None or not room else functional.pad(value, (0, room), value=-1 if value.dtype == torch.int32 else 0)


def _moved(value: Tensor | None, device: str | torch.device) -> Tensor | None:
    if value is None or torch.device(device).type != "cuda" or value.is_cuda:
        return None if value is None else value.to(device)
    return value.contiguous().pin_memory().to(device, non_blocking=True)


def batch_of(rows: Sequence[Row], pad_id: int, *, group: int = 1, multiple: int = 8) -> Batch:
    """Rows side by side, each padded at its end to the longest, rounded up to ``multiple``. An empty row (no ids) is all padding."""
    count = len(rows)
    width = _rounded(max((len(row.ids) for row in rows), default=1), multiple)
    inputs = np.full((count, width), pad_id, np.int64)
    segments = np.full((count, width), -1, np.int32)
    positions = np.zeros((count, width), np.int64)
    placed = any(len(row.weights) > 1 or row.targets is not None for row in rows)
    targets = np.full((count, width), pad_id, np.int64)
    weights = np.zeros((count, width if placed else 1), np.float32)
    types = np.zeros((count, width), np.int64) if any(row.types is not None for row in rows) else None
    for index, row in enumerate(rows):
        size = len(row.ids)
        inputs[index, :size], segments[index, :size], positions[index, :size] = row.ids, 0, np.arange(size)
        weights[index, : len(row.weights)] = row.weights
        if row.targets is not None:
            targets[index, :size] = row.targets
        if types is not None and row.types is not None:
            types[index, :size] = row.types
    made = Batch(
        torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(weights), torch.from_numpy(positions),
        torch.from_numpy(segments), [row.source for row in rows], [1] * count, None if types is None else torch.from_numpy(types), group=group,
    )  # fmt: skip
    if any(row.source_ids is not None for row in rows):
        _add_source(made, rows, pad_id, multiple)
    names = rows[0].extra if rows else {}
    made.extra = {name: torch.from_numpy(np.stack([row.extra[name] for row in rows])) for name in names}
    return made


def _add_source(made: Batch, rows: Sequence[Row], pad_id: int, multiple: int) -> None:
    width = _rounded(max(len(row.source_ids) for row in rows if row.source_ids is not None), multiple)
    source = np.full((len(rows), width), pad_id, np.int64)
    segments = np.full((len(rows), width), -1, np.int32)
    for index, row in enumerate(rows):
        if row.source_ids is not None:
            source[index, : len(row.source_ids)], segments[index, : len(row.source_ids)] = row.source_ids, 0
    made.source, made.source_segments = torch.from_numpy(source), torch.from_numpy(segments)


def _rounded(size: int, multiple: int) -> int:
    return max(1, -(-size // multiple) * multiple)
