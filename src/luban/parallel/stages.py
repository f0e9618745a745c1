"""A model of which a rank holds some stages of a pipeline: runs of blocks, the table of tokens with the first, what stands above the blocks with the last.

The rest is taken out in place, and what stays keeps its names, so that optimizers, checkpoints and norms see a model with fewer parameters and nothing else. A tied table of tokens is held
by both ends; where these are two ranks its gradients are added up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.parallel.plans import STAGES


@dataclass(frozen=True)
class Stage:
    """The blocks from ``start`` to before ``stop``; ``number`` of ``count`` stages in all."""

    number: int
    count: int
    start: int
    stop: int

    @property
    def is_first(self) -> bool:
        return self.number == 0

    @property
    def is_last(self) -> bool:
        return self.number == self.count - 1


def stages_of(blocks: int, ranks: int, each: int, rank: int, turning: bool) -> list[Stage]:
    """The stages that a rank of a pipeline holds: every ``ranks``-th, or ``turning`` those that a V through the ranks and back meets."""
    count = ranks * each
    numbers = [rank, count - 1 - rank] if turning else range(rank, count, ranks)
    return [Stage(number, count, blocks * number // count, blocks * (number + 1) // count) for number in numbers]


def ends_of(ranks: int, turning: bool) -> tuple[int, int]:
    """The ranks of a pipeline that hold its first and its last stage."""
    return (0, 0) if turning else (0, ranks - 1)


def cut_into_stages(model: Model, stages: Sequence[Stage]) -> bool:
    """Leave the model, in place, these of its stages. Whether this rank has a tied table of tokens for one of the two ends alone."""
    plan, trunk = STAGES[model.shape.architecture], model.get_submodule(model.prefix[:-1])
    first, last = any(stage.is_first for stage in stages), any(stage.is_last for stage in stages)
    depth, kept = model.depth, [number for stage in stages for number in range(stage.start, stage.stop)]
    tied = model.output_layer() is None and not (model.head is not None and model.head.replaces_output)
    if not isinstance(model.recompute, (bool, str)):
        model.recompute = [model.recompute[number] for number in sorted(kept)]
    layers = trunk.get_submodule(plan.layers)
    for number in set(range(depth)) - set(kept):
        del layers._modules[str(number)]
    for name in () if first else plan.first:
        if not (last and tied and name == plan.table):
            _leave_out(trunk, name)
    if not last:
        for name in plan.last:
            _leave_out(trunk, name)
        for name, module in list(model.named_children()):
            if module is not trunk and any(True for _ in module.parameters()):
                _leave_out(model, name)
    model.unchanging &= frozenset(model.state_dict())
    model.stages, model.whole_depth, model.arrived = list(stages), depth, None
    model.__class__ = _kind(type(model))
    return tied and first != last


def _leave_out(owner: nn.Module, name: str) -> None:
    """Nothing in the place of a module, where there is one."""
    path, _, leaf = name.rpartition(".")
    if leaf in (modules := owner.get_submodule(path)._modules):
        modules[leaf] = None


@cache
def _kind(kind: type[Model]) -> type[Model]:
    return type(f"Staged{kind.__name__}", (_Staged, kind), {"__module__": __name__})


class _Staged:
    """A decoder or an encoder of which some stages are here."""

    staged: ClassVar[bool] = True
    stages: list[Stage]
    whole_depth: int
    arrived: Tensor | None  # what the last stage has made of a micro-batch, for the loss that is made of it

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """The hidden states [rows, seq, dim] that have come through the pipeline: an objective may ask for those of its micro-batch, once."""
        arrived, self.arrived = self.arrived, None
        if arrived is None or arrived.shape[:2] != tokens.shape:
            raise ConfigError("layout.pipeline: the objective asks the model for more than the rows of its micro-batch, once", "they go through the stages of the pipeline together", "leave layout.pipeline at 1")
        return arrived

    def run_stage(self, stage: Stage, states: Tensor | None, tokens: Tensor, **context: Any) -> Tensor:
        """What a stage makes of the stream [rows, seq, dim] that the one before has sent, or of the tokens; after the last, hidden states."""
        prefix = {"prefix": context.pop("prefix")} if "prefix" in context else {}
        if states is None:
            states = self.enter(tokens, **context)
        given = self.beside(states, tokens, **context, **prefix)
        states = self.run_layers(states, self.runs()[self.stages.index(stage)], given[stage.start : stage.stop])
        self.gather_auxiliary(lambda found: found, context.get("segments"))
        return self.leave(states) if stage.is_last else states

    def numbered_blocks(self) -> list[tuple[int, nn.Module]]:
        numbers = sorted(number for stage in self.stages for number in range(stage.start, stage.stop))
        return list(zip(numbers, self.blocks(), strict=True))

    def runs(self) -> list[list[nn.Module]]:
        """The blocks of each stage that is here."""
        here = dict(self.numbered_blocks())
        return [[here[number] for number in range(stage.start, stage.stop)] for stage in self.stages]

    @property
    def depth(self) -> int:
        return self.whole_depth

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter for parameter in self.parameters() if parameter.ndim > 1).dtype

    def parameters_of(self, stage: Stage) -> list[nn.Parameter]:
        """Those that a stage uses."""
        inside = {parameter for block in self.blocks() for parameter in block.parameters()}
        own = [parameter for block in self.runs()[self.stages.index(stage)] for parameter in block.parameters()]
        return own + [parameter for parameter in self.parameters() if parameter not in inside and (stage.is_first or stage.is_last)]
