"""A model over the ranks of a context group: each has a part of the places of every row, and gathers the others' keys and values where it attends.

Everything outside of the model's layers sees whole rows: batches, masks, positions, heads and losses are what they are in one process. A model called with whole rows takes its part of
them, and its hidden states are gathered at the end. So of the activations only those of the layers are cut; the last hidden states, once a pass, are not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from luban.models.base import Model
from luban.models.classic import text_positions
from luban.models.encoder_decoder import EncoderDecoder
from luban.models.given import GatheredKeys
from luban.models.parts import gathered


def cut_sequence(model: Model, mesh: DeviceMesh) -> None:
    """Let the model, in place, work on its part of the places."""
    model.context_mesh = mesh
    model.__class__ = _kind(type(model))


@cache
def _kind(kind: type[Model]) -> type[Model]:
    above = _PartOfSource if issubclass(kind, EncoderDecoder) else _PartOfText
    return type(f"Part{kind.__name__}", (above, kind), {"__module__": __name__})


class _PartOfText:
    """A decoder or an encoder."""

    context_mesh: DeviceMesh

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None,
        cache: None = None, prefix: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Hidden states [rows, seq, dim] of tokens [rows, seq], all of them on each rank."""
        assert cache is None, "a context group reads whole texts"
        if self.staged:
            return super().forward(tokens)
        keys, part = self._part(tokens, positions, segments, types, prefix)
        hidden = super().forward(tokens[:, keys.own], **part)
        self._speak_of_all(tokens, segments)
        return gathered(hidden, self.context_mesh, 1)

    def _speak_of_all(self, tokens: Tensor, segments: Tensor | None) -> None:
        known = torch.zeros_like(tokens, dtype=torch.int32) if segments is None else segments
        self.gather_auxiliary(lambda found: gathered(found, self.context_mesh, 1), known)

    def run_stage(
        self, stage: Any, streams: Sequence[Tensor], tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, prefix: Tensor | None = None,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        """As a stage of all places does (stages.py): each rank passes its own part on, and the last stage's is put together."""
        keys, part = self._part(tokens, positions, segments, types, prefix)
        (made,) = super().run_stage(stage, streams, tokens[:, keys.own], **part)
        self._speak_of_all(tokens, segments)
        return (gathered(made, self.context_mesh, 1) if stage.is_last else made,)

    def _part(self, tokens: Tensor, positions: Tensor | None, segments: Tensor | None, types: Tensor | None, prefix: Tensor | None) -> tuple[GatheredKeys, dict[str, Any]]:
        """Where this rank's places stand among all, and what the model is called with for them."""
        keys = _keys(self.context_mesh, tokens, segments, prefix=prefix, causal=self.shape.kind == "decoder", positions=positions)
        return keys, {"positions": keys.positions(0), "cache": keys, "types": None if types is None else types[:, keys.own]}


class _PartOfSource:
    """An encoder–decoder: places of the source and places of the target."""

    context_mesh: DeviceMesh

    def through_source(self, states: Tensor | None, start: int, stop: int, source: Tensor, source_segments: Tensor | None, cache: None = None) -> Tensor:
        keys = _keys(self.context_mesh, source, source_segments, causal=False)
        states = super().through_source(states, start, stop, source[:, keys.own], _own(source_segments, keys), keys)
        return gathered(states, self.context_mesh, 1) if stop == self.trunk.encoder.count else states

    def through_target(
        self, states: Tensor | None, start: int, stop: int, tokens: Tensor, memory: Tensor, source_segments: Tensor | None, segments: Tensor | None, cache: None = None,
    ) -> Tensor:  # fmt: skip
        assert cache is None, "a context group reads whole texts"
        keys = _keys(self.context_mesh, tokens, segments)
        states = super().through_target(states, start, stop, tokens[:, keys.own], memory, source_segments, _own(segments, keys), keys)
        return gathered(states, self.context_mesh, 1) if stop == self.trunk.decoder.count else states


def _keys(mesh: DeviceMesh, tokens: Tensor, segments: Tensor | None, positions: Tensor | None = None, **rest: Any) -> GatheredKeys:
    positions = text_positions(tokens, segments, tokens.shape[1]) if positions is None else positions
    return GatheredKeys(mesh.get_local_rank(), mesh.size(), lambda part, dim: gathered(part, mesh, dim), tokens.shape[1], positions, segments, **rest)


def _own(segments: Tensor | None, keys: GatheredKeys) -> Tensor | None:
    return None if segments is None else segments[:, keys.own]
