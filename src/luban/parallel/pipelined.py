"""A step through the stages of a pipeline, on torch's schedules (torch.distributed.pipelining).

1f1b          one stage a rank; each passes a micro-batch forward and one back in turn
interleaved   several stages a rank, so that less time is spent waiting (torch names arXiv:2104.04473)
zero_bubble   the gradients of weights fill the gaps: two stages a rank in a V, or another number one after another (torch names arXiv:2401.10241 for both)

Every rank of a pipeline reads the same rows; between stages go the stream and what the mixtures behind have noted of their balance, all micro-batches of a step in one shape. The last stage ends in the loss, already scaled by what the step's mean
divides by, so that torch scales nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B, ScheduleInterleavedZeroBubble, ScheduleZBVZeroBubble

from luban.objectives.base import Term
from luban.parallel.stages import Stage
from luban.tokens.batch import Batch

if TYPE_CHECKING:
    from luban.parallel.engine import TorchEngine

SCHEDULES = ("1f1b", "interleaved", "zero_bubble")


def turns(schedule: str, each: int) -> bool:
    """Whether the stages go through the ranks and back, in a V."""
    return schedule == "zero_bubble" and each == 2


class Line:
    """The pipeline that a rank's stages belong to, with the group of its ranks; each place in it may be ``context`` ranks that have parts of the rows' places."""

    def __init__(self, model: Any, group: dist.ProcessGroup, schedule: str, device: torch.device, context: int = 1):
        self.model, self.group, self.kind, self.device, self.context = model, group, schedule, device, context
        self.ranks, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.each, self.count = len(model.stages), model.stages[0].count
        self.turning = turns(schedule, self.each)
        if schedule == "zero_bubble":  # Luban's own layers are one step of autograd, which would be taken twice
            model.split_backward, model.own_layers = True, False
        self.modules: list[_Module] = []
        self.made: tuple[Any, Any] = (None, None)  # of the last step: number and shape of its micro-batches, and their schedule
        self.engine: TorchEngine | None = None
        self.parts: list[tuple[Batch, bool]] = []
        self.counts: dict[str, float] = {}
        self.terms: list[str] = []  # names of the objective's, once they are known
        self.means: list[dict[str, Tensor]] = []

    def size(self, units: int, wanted: int) -> int:
        """Units of a micro-batch of a step of so many: ``wanted``, or fewer where there would be fewer micro-batches than stages."""
        return max(1, min(wanted, units // self.count))

    def wanted(self, number: int) -> int:
        """How many micro-batches the schedule can do that is to do so many."""
        if self.kind == "1f1b":
            return max(number, self.count)
        return number if self.turning or number <= self.ranks else -(-number // self.ranks) * self.ranks

    # ---- learning ----------------------------------------------------------------------------------------------------

    def learn(self, engine: TorchEngine, parts: list[tuple[Batch, bool]], counts: dict[str, float]) -> dict[str, Tensor]:
        """Gradients of a step's micro-batches; each term's part of the mean, where the last stage is."""
        self.engine, self.parts, self.counts, self.means = engine, even(parts, bool(self.model.notes)), counts, []
        schedule = self._schedule()
        for module in self.modules:
            module.passed = 0
        schedule.step(target=torch.arange(len(parts)), return_outputs=False)
        return {name: torch.stack([found[name] for found in self.means]).sum(0) for name in (self.means[0] if self.means else ())}

    def _schedule(self) -> Any:
        shape, number = self.parts[0][0].inputs.shape, len(self.parts)
        if self.made[0] != (number, shape):
            self.made = (number, shape), self._make(number, shape)
        return self.made[1]

    def _make(self, number: int, shape: torch.Size) -> Any:
        stream = tuple(tensor.requires_grad_() for tensor in self._passed_on(shape, "meta"))
        loss = torch.empty((), device="meta", requires_grad=True)
        self.modules = [_Module(self, stage) for stage in self.model.stages]
        stages = [
            PipelineStage(module, stage.number, stage.count, self.device, input_args=() if stage.is_first else stream, output_args=loss if stage.is_last else stream, group=self.group)
            for module, stage in zip(self.modules, self.model.stages, strict=True)
        ]
        settings = {"n_microbatches": number, "loss_fn": lambda made, _: made, "scale_grads": False}
        if self.kind == "1f1b":
            return Schedule1F1B(stages[0], **settings)
        kinds = {"interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleZBVZeroBubble if self.turning else ScheduleInterleavedZeroBubble}
        return kinds[self.kind](stages, **settings)

    def arriving_bytes(self, shape: torch.Size) -> int:
        """Memory that torch keeps for what comes to this rank's stages from either side, of each micro-batch of a step of tokens [rows, seq]."""
        return sum((not stage.is_first) + (not stage.is_last) for stage in self.model.stages) * sum(tensor.nbytes for tensor in self._passed_on(shape, "meta"))

    def through(self, stage: Stage, number: int, states: Tensor | None, before: Tensor | None) -> Any:
        """What a stage makes of a micro-batch of the step, of the stream and what was noted before it; the last makes its loss []."""
        engine, (part, counted) = self.engine, self.parts[number]
        with engine.autocast():
            made = self.model.run_stage(stage, states, part.inputs, **part.context())
            noted = self.model.note(before) if self.model.notes else None
            if not stage.is_last:
                return self._left(made) if noted is None else (self._left(made), self._left(noted))
            self.model.arrived, self.model.noted = made, noted
            engine.own_rows = counted
            loss, means = engine.loss(engine.terms(part), self.counts)
        self.means.append(means)
        return loss if noted is None else loss + 0 * noted.sum()  # a gradient goes back, whatever the balance weighs

    def _left(self, made: Tensor) -> Tensor:
        """What leaves a stage: torch sends a gradient back for it, whether anything learns there or not, and drops its graph in place where the gradients of weights are computed apart."""
        if made._is_view() and self.model.split_backward:
            made = made.clone()
        return made if made.requires_grad else made.detach().requires_grad_()

    # ---- scoring -----------------------------------------------------------------------------------------------------

    def score(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[dict[str, Term], bool]]:
        """The objective's terms of each micro-batch, where the last stage is; nothing elsewhere. As many at a time as there are ranks, so that all have something to do."""
        waiting = list(parts)
        while waiting:
            now, waiting = waiting[: self.ranks], waiting[self.ranks :]
            held: list[Tensor | None] = [None] * len(now)
            for stage in self.model.stages:
                sends = []
                for place, (part, counted) in enumerate(now):
                    with engine.autocast():
                        made = held[place] = self.model.run_stage(stage, self._arriving(stage, part, held[place]), part.inputs, **part.context()).contiguous()
                        self.model.arrived = made if stage.is_last else None
                        terms = engine.objective.terms(self.model, part) if stage.is_last else {}
                    if stage.is_last:
                        yield terms, counted
                    elif (to := self._rank_of(stage.number + 1)) != self.rank:
                        sends.append(dist.isend(made, group=self.group, group_dst=to))
                for sent in sends:
                    sent.wait()

    def _arriving(self, stage: Stage, part: Batch, held: Tensor | None) -> Tensor | None:
        if stage.is_first or self._rank_of(stage.number - 1) == self.rank:
            return None if stage.is_first else held
        states = self._stream(part.inputs.shape, self.device)
        dist.recv(states, group=self.group, group_src=self._rank_of(stage.number - 1))
        return states

    def _stream(self, shape: torch.Size, device: torch.device | str) -> Tensor:
        """Memory for what goes from stage to stage of tokens [rows, seq]: [rows, this rank's part of seq, dim]."""
        return torch.empty(shape[0], shape[1] // self.context, self.model.shape.hidden_size, dtype=self.model.states_dtype, device=device)

    def _passed_on(self, shape: torch.Size, device: torch.device | str) -> list[Tensor]:
        """Memory for all that goes from stage to stage in learning."""
        stream = self._stream(shape, device)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        return [stream, torch.empty(self.model.notes, dtype=wide, device=device)] if self.model.notes else [stream]

    def _rank_of(self, stage: int) -> int:
        return min(stage, self.count - 1 - stage) if self.turning else stage % self.ranks


class _Module(nn.Module):
    """A stage as torch's schedules call it: with the stream, but for the first. Its micro-batches come in their order."""

    def __init__(self, line: Line, stage: Stage):
        super().__init__()
        self.passed = 0  # micro-batches of the step
        self.through = lambda number, states, before: line.through(stage, number, states, before)
        self.own = {"parameters": line.model.parameters_of(stage)}

    def forward(self, states: Tensor | None = None, before: Tensor | None = None) -> Any:
        self.passed += 1
        return self.through(self.passed - 1, states, before)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(self.own["parameters"])


def even(parts: list[tuple[Batch, bool]], told: bool = False) -> list[tuple[Batch, bool]]:
    """The micro-batches in one shape: short rows end in padding, and where rows are missing the first ones are repeated without counting; ``told``, they are marked as padding."""
    rows, width = max(len(part.inputs) for part, _ in parts), max(part.inputs.shape[1] for part, _ in parts)
    return [(_filled(part, rows, told).padded(width), counted) for part, counted in parts]


def _filled(part: Batch, rows: int, told: bool) -> Batch:
    here = len(part.inputs)
    if here == rows:
        return part
    made = part.picked([row % here for row in range(rows)])
    weights = made.weights.clone()
    weights[here:] = 0
    segments = made.segments
    if told:
        segments = torch.zeros_like(made.inputs, dtype=torch.int32) if segments is None else segments.clone()
        segments[here:] = -1
    return replace(made, weights=weights, segments=segments, looked_up=None)
