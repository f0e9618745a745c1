"""A step through the stages of a pipeline, on torch's schedules (torch.distributed.pipelining).

1f1b          one stage a rank; each passes a micro-batch forward and one back in turn
interleaved   several stages a rank, so that less time is spent waiting (torch names arXiv:2104.04473)
zero_bubble   the gradients of weights fill the gaps: two stages a rank in a V, or another number one after another (torch names arXiv:2401.10241 for both)

Every rank of a pipeline reads the same rows; between stages go the streams (an encoder–decoder has two) and what the mixtures behind have noted of their balance, all micro-batches of a step in one shape. The last stage ends in the loss, already scaled by what the step's mean
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
from luban.parallel.stages import Stage, all_stages, rank_of
from luban.tokens.batch import Batch

if TYPE_CHECKING:
    from luban.parallel.engine import TorchEngine

Sizes = dict[str, tuple[int, int]]
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
        self.made: tuple[Any, Any] = (None, None)  # of the last step: number and sizes of its micro-batches, and their schedule
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
        made = len(self.parts), sizes_of(self.parts[0][0])
        if self.made[0] != made:
            self.made = made, self._make(*made)
        return self.made[1]

    def _make(self, number: int, sizes: Sizes) -> Any:
        loss = torch.empty((), device="meta", requires_grad=True)
        self.modules = [_Module(self, stage) for stage in self.model.stages]
        stages = [
            PipelineStage(
                module, stage.number, stage.count, self.device, input_args=self._learned(stage, sizes), output_args=loss if stage.is_last else self._learned(self._following(stage), sizes), group=self.group,
            )
            for module, stage in zip(self.modules, self.model.stages, strict=True)
        ]  # fmt: skip
        settings = {"n_microbatches": number, "loss_fn": lambda made, _: made, "scale_grads": False}
        if self.kind == "1f1b":
            return Schedule1F1B(stages[0], **settings)
        kinds = {"interleaved": ScheduleInterleaved1F1B, "zero_bubble": ScheduleZBVZeroBubble if self.turning else ScheduleInterleavedZeroBubble}
        return kinds[self.kind](stages, **settings)

    def kept_bytes(self, part: Batch) -> int:
        """Memory that torch keeps to the end of a step of each such micro-batch: places for what comes to this rank's stages from either side, and but for 1f1b what they send to other ranks."""
        own, kept = {stage.number for stage in self.model.stages}, 0
        for stage in self.model.stages:
            for side in (stage, self._following(stage)):
                if side and not side.is_first:
                    sent = self.kind != "1f1b" and not {side.number - 1, side.number} <= own
                    kept += (1 + sent) * sum(tensor.nbytes for tensor in self._passed_on(side, sizes_of(part), "meta"))
        return kept

    def through(self, stage: Stage, number: int, arrived: tuple[Tensor, ...]) -> Any:
        """What a stage makes of a micro-batch of the step, of the streams and what was noted before it; the last makes its loss []."""
        engine, (part, counted) = self.engine, self.parts[number]
        *streams, before = arrived if self.model.notes and not stage.is_first else (*arrived, None)
        with engine.autocast():
            made = self.model.run_stage(stage, streams, part.inputs, **part.context())
            noted = self.model.note(before) if self.model.notes else None
            if not stage.is_last:
                left = [self._left(tensor) for tensor in (*made, *([] if noted is None else [noted]))]
                return left[0] if len(left) == 1 else tuple(left)
            (self.model.arrived,), self.model.noted = made, noted
            engine.own_rows = counted
            loss, means = engine.loss(engine.terms(part), self.counts)
        self.means.append(means)
        return loss if noted is None else loss + 0 * noted.sum()  # a gradient goes back, whatever the balance weighs

    def _left(self, made: Tensor) -> Tensor:
        """What leaves a stage: torch sends a gradient back for it, whether anything learns there or not, and drops its graph in place where the gradients of weights are computed apart."""
        if self.model.split_backward and (made._is_view() or made.is_leaf):
            made = made.clone()
        return (made.view_as(made) if made.is_leaf else made) if made.requires_grad else made.detach().requires_grad_()

    # ---- scoring -----------------------------------------------------------------------------------------------------

    def score(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[dict[str, Term], bool]]:
        """The objective's terms of each micro-batch, where the last stage is; nothing elsewhere. As many at a time as there are ranks, so that all have something to do."""
        waiting = list(parts)
        while waiting:
            now, waiting = waiting[: self.ranks], waiting[self.ranks :]
            held: list[list[Tensor]] = [[]] * len(now)
            for stage in self.model.stages:
                sends = []
                for place, (part, counted) in enumerate(now):
                    with engine.autocast():
                        made = held[place] = [stream.contiguous() for stream in self.model.run_stage(stage, self._arriving(stage, part, held[place]), part.inputs, **part.context())]
                        self.model.arrived = made[0] if stage.is_last else None
                        terms = engine.objective.terms(self.model, part) if stage.is_last else {}
                    if stage.is_last:
                        yield terms, counted
                    elif (to := self.rank_of(stage.number + 1)) != self.rank:
                        sends += [dist.isend(stream, group=self.group, group_dst=to) for stream in made]
                for sent in sends:
                    sent.wait()

    def _arriving(self, stage: Stage, part: Batch, held: list[Tensor]) -> list[Tensor]:
        if stage.is_first or self.rank_of(stage.number - 1) == self.rank:
            return held
        streams = self._streams(stage, sizes_of(part), self.device)
        for stream in streams:
            dist.recv(stream, group=self.group, group_src=self.rank_of(stage.number - 1))
        return streams

    # ---- what goes from stage to stage -------------------------------------------------------------------------------

    def _streams(self, stage: Stage, sizes: Sizes, device: torch.device | str) -> list[Tensor]:
        """Memory for the streams that come to a stage: [rows, seq, dim], of seq this rank's part or all."""
        places = [(sizes[of][0], sizes[of][1] // (1 if whole else self.context)) for of, whole in self.model.streams_before(stage)]
        return [torch.empty(*place, self.model.shape.hidden_size, dtype=self.model.states_dtype, device=device) for place in places]

    def _passed_on(self, stage: Stage, sizes: Sizes, device: torch.device | str) -> list[Tensor]:
        """Memory for all that comes to a stage in learning."""
        streams = self._streams(stage, sizes, device)
        wide = torch.promote_types(self.model.dtype, torch.float32)
        return [*streams, torch.empty(self.model.notes, dtype=wide, device=device)] if self.model.notes and streams else streams

    def _learned(self, stage: Stage, sizes: Sizes) -> tuple[Tensor, ...]:
        return tuple(tensor.requires_grad_() for tensor in self._passed_on(stage, sizes, "meta"))

    def _following(self, stage: Stage) -> Stage | None:
        """The stage after this one, wherever it is held."""
        return None if stage.is_last else all_stages(self.model.depth, self.count)[stage.number + 1]

    def rank_of(self, stage: int) -> int:
        """Who holds a stage, of the ranks of the pipeline."""
        return rank_of(stage, self.count, self.ranks, self.turning)


class _Module(nn.Module):
    """A stage as torch's schedules call it: with the stream, but for the first. Its micro-batches come in their order."""

    def __init__(self, line: Line, stage: Stage):
        super().__init__()
        self.passed = 0  # micro-batches of the step
        self.through = lambda number, arrived: line.through(stage, number, arrived)
        self.own = {"parameters": line.model.parameters_of(stage)}

    def forward(self, *arrived: Tensor) -> Any:
        self.passed += 1
        return self.through(self.passed - 1, arrived)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        return iter(self.own["parameters"])


def even(parts: list[tuple[Batch, bool]], told: bool = False) -> list[tuple[Batch, bool]]:
    """The micro-batches in one shape: short rows end in padding, and where rows are missing the first ones are repeated without counting; ``told``, they are marked as padding."""
    sizes = [sizes_of(part) for part, _ in parts]
    rows, width, source = (max(size[of][dim] for size in sizes) for of, dim in (("inputs", 0), ("inputs", 1), ("source", 1)))
    return [(_filled(part, rows, told).padded(width, source), counted) for part, counted in parts]


def sizes_of(part: Batch) -> Sizes:
    """Rows and places of a batch's inputs, and of its source, which without one are the inputs."""
    return {"inputs": tuple(part.inputs.shape), "source": tuple((part.inputs if part.source is None else part.source).shape)}


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
    return replace(made, weights=weights, segments=segments, looked_up=None if part.known_scored is None else (weights, part.known_scored))  # the rows that count come first
