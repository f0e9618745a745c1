"""A model of which a rank holds some stages of a pipeline: runs of blocks, and of what stands outside of them what its stages use.

The rest is taken out in place, and what stays keeps its names, so that optimizers, checkpoints and norms see a model with fewer parameters and nothing else. What stages of several ranks use
is held by each of these, and its gradients are added up: a tied table of tokens by both ends, the tables of an encoder–decoder also where the decoder begins.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.encoder_decoder import EncoderDecoder, moved_on
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
    return [stage for stage in all_stages(blocks, count) if rank_of(stage.number, count, ranks, turning) == rank]


def all_stages(blocks: int, count: int) -> list[Stage]:
    """So many stages of so many blocks."""
    return [Stage(number, count, blocks * number // count, blocks * (number + 1) // count) for number in range(count)]


def rank_of(stage: int, count: int, ranks: int, turning: bool) -> int:
    """The rank of a pipeline that holds a stage."""
    return min(stage, count - 1 - stage) if turning else stage % ranks


def cut_into_stages(model: Model, stages: Sequence[Stage]) -> dict[str, set[int]]:
    """Leave the model, in place, these of its stages. The names of the parameters that several stages use, each with the numbers of these."""
    lists = _lists(model)
    users = _users(model, lists, stages[0].count)
    shared = {f"{place}.{leaf}": numbers for place, numbers in users.items() if len(numbers) > 1 for leaf, _ in model.get_submodule(place).named_parameters()}
    depth, kept = model.depth, {number for stage in stages for number in range(stage.start, stage.stop)}
    if not isinstance(model.recompute, (bool, str)):
        model.recompute = [model.recompute[number] for number in sorted(kept)]
    blocks = model.blocks()
    used = {place: numbers for place, numbers in users.items() if numbers & {stage.number for stage in stages}}
    for place in users.keys() - used.keys():
        _take_out(model, place)
    borders = list(accumulate(len(layers) for _, layers in lists))
    for (start, stop), (place, layers) in zip(pairwise([0, *borders]), lists, strict=True):
        for number in set(range(start, stop)) - kept:
            _strip(layers, str(number - start), [name.removeprefix(f"{place}.") for name in used])
    model.unchanging &= frozenset(model.state_dict())
    model.stages, model.whole_depth, model.arrived = list(stages), depth, None
    model.held_blocks, model.borders, model.used = {number: blocks[number] for number in sorted(kept)}, borders, used
    model.__class__ = _kind(type(model))
    return shared


def _lists(model: Model) -> list[tuple[str, nn.ModuleList]]:
    """The lists of blocks that there are, in the order in which they are passed, by their names."""
    plan, below = STAGES[model.shape.architecture], "" if model.trunk is model else model.prefix
    known = dict(model.named_modules())
    return [(below + stack.layers, known[below + stack.layers]) for stack in plan.stacks if below + stack.layers in known]


def _users(model: Model, lists: list[tuple[str, nn.ModuleList]], count: int) -> dict[str, set[int]]:
    """The modules outside of the blocks that have parameters, and those inside that other blocks use too: their names, each with the numbers of the stages that use it."""
    plan, below = STAGES[model.shape.architecture], "" if model.trunk is model else model.prefix
    found: dict[str, set[int]] = {below + plan.table: set()}
    start, stages = 0, all_stages(model.depth, count)
    for stack, (_, layers) in zip(plan.stacks, lists, strict=False):
        here = [stage.number for stage in stages if stage.start < start + len(layers) and stage.stop > start]
        found[below + plan.table].add(here[0])
        for names, numbers in ((stack.first, here[:1]), (stack.last, here[-1:]), (stack.all, here)):
            found |= {below + name: set(numbers) for name in names}
        start += len(layers)
    if model.output_layer() is None and not (model.head is not None and model.head.replaces_output):
        found[below + plan.table].add(count - 1)  # it is the output too
    inside = tuple(f"{name}." for name in (*found, *(place for place, _ in lists)))
    above = {name for name, child in model.named_children() if not any(place.startswith(f"{name}.") for place in inside)}
    known = {name for name, module in model.named_modules() if any(True for _ in module.parameters())}
    return {name: numbers for name, numbers in (found | {name: {count - 1} for name in above}).items() if name in known}


def _take_out(model: nn.Module, place: str) -> None:
    """Nothing in the place of a module."""
    path, _, leaf = place.rpartition(".")
    model.get_submodule(path)._modules[leaf] = None


def _strip(owner: nn.Module, name: str, kept: list[str]) -> None:
    """Leave out a module, or all in it but what is to be kept. Names are the owner's."""
    inside = [place.removeprefix(f"{name}.") for place in kept if place.startswith(f"{name}.")]
    if name in kept:
        return
    if not inside:
        del owner._modules[name]
        return
    module = owner._modules[name]
    for child in list(module._modules):
        _strip(module, child, inside)


@cache
def _kind(kind: type[Model]) -> type[Model]:
    return type(f"Staged{kind.__name__}", (_StagedPair if issubclass(kind, EncoderDecoder) else _Staged, kind), {"__module__": __name__})


class _Staged:
    """A decoder or an encoder of which some stages are here."""

    staged: ClassVar[bool] = True
    stages: list[Stage]
    whole_depth: int
    held_blocks: dict[int, nn.Module]  # by their numbers among all
    borders: list[int]  # where each list of blocks ends
    used: dict[str, set[int]]  # modules outside of the blocks, by the stages that use them
    arrived: Tensor | None  # what the last stage has made of a micro-batch, for the loss that is made of it

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """The hidden states [rows, seq, dim] that have come through the pipeline: an objective may ask for those of its micro-batch, once."""
        arrived, self.arrived = self.arrived, None
        if arrived is None or arrived.shape[:2] != tokens.shape:
            raise ConfigError("layout.pipeline: the objective asks the model for more than the rows of its micro-batch, once", "they go through the stages of the pipeline together", "leave layout.pipeline at 1")
        return arrived

    def streams_before(self, stage: Stage) -> list[tuple[str, bool]]:
        """What comes to a stage from the one before: states for each place of the "inputs" or of the "source"; and whether for all places, where a context group has parts of them."""
        return [] if stage.is_first else [("inputs", False)]

    def run_stage(self, stage: Stage, streams: Sequence[Tensor], tokens: Tensor, **context: Any) -> tuple[Tensor, ...]:
        """What a stage makes of the streams [rows, seq, dim] that the one before has sent, or of the tokens; after the last, hidden states."""
        prefix = {"prefix": context.pop("prefix")} if "prefix" in context else {}
        states = streams[0] if streams else self.enter(tokens, **context)
        given = self.beside(states, tokens, **context, **prefix)
        states = self.run_layers(states, self.blocks_of(stage), given[stage.start : stage.stop])
        self.gather_auxiliary(lambda found: found, context.get("segments"))
        return (self.leave(states) if stage.is_last else states,)

    def blocks(self) -> list[nn.Module]:
        return list(self.held_blocks.values())

    def numbered_blocks(self) -> list[tuple[int, nn.Module]]:
        return list(self.held_blocks.items())

    def blocks_of(self, stage: Stage) -> list[nn.Module]:
        return [self.held_blocks[number] for number in range(stage.start, stage.stop)]

    def runs(self) -> list[list[nn.Module]]:
        """The blocks that are here, as one stream passes them: those of a stage, of each of its lists."""
        bounds = [(max(stage.start, start), min(stage.stop, stop)) for stage in self.stages for start, stop in pairwise([0, *self.borders])]
        return [[self.held_blocks[number] for number in range(start, stop)] for start, stop in bounds if start < stop]

    @property
    def depth(self) -> int:
        return self.whole_depth

    @property
    def device(self) -> torch.device:
        return self.runs_on or next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(parameter for parameter in self.parameters() if parameter.ndim > 1).dtype

    def parameters_of(self, stage: Stage) -> list[nn.Parameter]:
        """Those that a stage uses."""
        modules = [*self.blocks_of(stage), *(self.get_submodule(place) for place, numbers in self.used.items() if stage.number in numbers)]
        return list(dict.fromkeys(parameter for module in modules for parameter in module.parameters()))


class _StagedPair(_Staged):
    """An encoder–decoder: the encoder's stages pass on the source's states; the decoder's theirs, and those of the whole source."""

    def streams_before(self, stage: Stage) -> list[tuple[str, bool]]:
        border = self.borders[0]
        return [] if stage.is_first else [*([("inputs", False)] if stage.start > border else []), ("source", stage.start >= border)]

    def run_stage(
        self, stage: Stage, streams: Sequence[Tensor], tokens: Tensor, source: Tensor | None = None, source_segments: Tensor | None = None, segments: Tensor | None = None, **rest: Tensor,
    ) -> tuple[Tensor, ...]:  # fmt: skip
        border = self.borders[0]
        if source is None:  # one text for a head, as EncoderDecoder reads it
            source, source_segments, tokens = tokens, segments, moved_on(tokens, segments, self.shape.decoder_start_id)
        memory = streams[-1] if streams else None
        if stage.start < border:
            memory = self.through_source(memory, stage.start, min(stage.stop, border), source, source_segments)
        if stage.stop <= border:
            return (memory,)
        states = streams[0] if stage.start > border else None
        states = self.through_target(states, max(stage.start - border, 0), stage.stop - border, tokens, memory, source_segments, segments)
        return (states,) if stage.is_last else (states, memory)
