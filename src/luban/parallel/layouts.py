"""Layouts: what each rank holds of a model that several train together, and which rows of a step it takes.

A step is the same whatever the layout: its rows are put together in global order and cut into shares of whole units, one for each of the ranks that share rows; what a mean divides by is
counted over the whole step before; so gradients and means are sums over ranks, and nothing is averaged. Ranks that share a model's matrices or a row's places have a share of rows in
common (meshed.py).
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.models.base import Model
from luban.models.products import here
from luban.models.tensor_files import NAMES, TYPES
from luban.parallel.ranks import Ranks
from luban.parallel.sums import Sums
from luban.tokens.batch import Batch

if TYPE_CHECKING:
    from luban.objectives.base import Term
    from luban.parallel.engine import TorchEngine


class Layout:
    """One process that holds everything: nothing to share, nothing to add up."""

    name = "one process"
    together = False  # whether the ranks must pass through the model equally often, since each pass gathers weights
    in_step = False  # whether they must do so in a step, since each backward pass sums gradients
    drops = False  # whether weights are dropped between their uses in a pass, so that nothing that was cast of them may stay either

    def __init__(self, ranks: Ranks | None = None):
        self.ranks = ranks or Ranks()
        self.data_rank, self.data_size, self.data_group = self.ranks.rank, self.ranks.size, self.ranks.group  # this one among those that share a step's rows
        self.says = self.adds = True  # whether counts, and sums, that this rank finds of a batch are not those that another has found too
        self._names: list[str] | None = None  # of the means, the same on all ranks

    @property
    def seat(self) -> int:
        """Whose random numbers this rank draws: its own, or those of the first of the ranks that do the same work."""
        return self.ranks.rank

    # ---- a model -----------------------------------------------------------------------------------------------------

    def place(self, model: Model) -> None:
        """Take of the model what this rank holds, before an optimizer knows its parameters."""

    def whole_model(self, model: Model) -> Model | None:
        """A model with all weights in this process, on rank 0; None on the others. The model itself, where it is whole anyway."""
        return model if self.ranks.leads else None

    def on_first(self, model: Model, work: Callable[[Model], Any]) -> Any:
        """What ``work`` makes of the whole model on rank 0 (plain data), to all ranks."""
        whole = self.whole_model(model)
        return self.ranks.tell(None if whole is None else work(whole))

    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        """On rank 0, all tensors of a state of which each rank holds some, whole; on the others, their own."""
        return {name: whole(tensor.detach()) for name, tensor in tensors.items()}

    def settle(self, model: Model) -> None:
        """Forget weights that were gathered: they may change now."""

    @property
    def elsewhere(self) -> set[str]:
        """Names of parameters that other ranks hold, and this one does not."""
        return set()

    @property
    def learning_elsewhere(self) -> list[str]:
        """Names of those of them that learn, in the order in which :meth:`clip` tells their norms."""
        return []

    # ---- a step ------------------------------------------------------------------------------------------------------

    def share(self, rows: int, group: int, rank: int) -> tuple[int, int]:
        """The first row of a rank's share and the one after its last: whole units, as even as can be, none where there are too few."""
        units, ranks = rows // group, self.data_size
        return units * rank // ranks * group, units * (rank + 1) // ranks * group

    def spans(self, batch: Batch, size: int) -> list[tuple[int, int, bool]]:
        """(first row, row after the last, whether it counts) of this rank's micro-batches of ``size`` rows; those without anything scored are left out.

        A rank with less to do than the others must have repeats the first span of the step without counting it: once where it has nothing at all, and in
        layouts that gather weights or sum gradients in each pass as often as they do.
        """
        scored = batch.weights.flatten(1).any(1)  # [rows]
        every = [
            [(start, min(start + size, last)) for start in range(first, last, size) if bool(scored[start : min(start + size, last)].any())]
            for first, last in (self.share(len(batch.inputs), batch.group, rank) for rank in range(self.data_size))
        ]
        own = every[self.data_rank]
        least = max(map(len, every)) if self.together or self.in_step else min(1, max(map(len, every)))
        filling = next((spans[0] for spans in every if spans), None)
        return [(*span, True) for span in own] + [(*filling, False) for _ in range(least - len(own))]

    def own_batches(self, batches: list[Batch]) -> list[Batch]:
        """The batches that this rank evaluates; where all pass through the model together, all of them, of which it takes its share of rows."""
        return batches if self.together else batches[self.data_rank :: self.data_size]

    def cut(self, part: Batch, by_place: bool) -> tuple[Batch, bool]:
        """A micro-batch with the places that this rank scores, where each place counts by itself (``by_place``), and whether what it finds counts."""
        return part, True

    def own_share(self, by_place: bool) -> float:
        """This rank's part of what the ranks that have a micro-batch in common all say of it."""
        return 1.0

    def learn(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]], counts: dict[str, float]) -> Iterator[dict[str, Tensor]]:
        """Pass the micro-batches of a step, and whether they count, forward and back; each term's part of the step's mean."""
        for part, counted in parts:
            engine.own_rows = counted
            yield engine.passes.backward(engine, part, counts)

    def score(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[dict[str, Term], bool]]:
        """The objective's terms of each micro-batch, without gradients, and whether it counts."""
        for part, counted in parts:
            yield engine.plain_terms(part), counted

    def gather_rows(self, own: Tensor, batch: Batch) -> Tensor:
        """[rows, …] of the whole step from this rank's share of them; gradients flow into its own."""
        sizes = [last - first for first, last in (self.share(len(batch.inputs), batch.group, rank) for rank in range(self.data_size))]
        padded = own.detach().new_zeros(max(sizes), *own.shape[1:])
        padded[: len(own)] = own.detach()
        found = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(found, padded, group=self.data_group)
        return torch.cat([own if rank == self.data_rank else found[rank][:size] for rank, size in enumerate(sizes)])

    def share_out(self, units: int, work: Callable[[int, int], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What ``work(first, last)`` gives of so many units (objectives/base.py), each rank having worked on its share; one without a share does nothing, and gets all too."""
        first, last = self.share(units, 1, self.data_rank)
        if self.ranks.alone:
            return work(first, last)
        made = work(first, last) if last > first else {}
        shapes = self.ranks.everyone({name: [NAMES[tensor.dtype], *tensor.shape] for name, tensor in made.items()})
        return {name: self._joined(made.get(name), [told.get(name) for told in shapes]) for name in sorted(next(filter(None, shapes)))}

    def _joined(self, own: Tensor | None, told: list[list[Any] | None]) -> Tensor:
        """All ranks' rows of a tensor, from this one's and the types and shapes [type, rows, …] of all (None of one that has none)."""
        known = [shape for shape in told if shape]
        padded = torch.zeros([max(sizes) for sizes in zip(*(shape[1:] for shape in known), strict=True)], dtype=TYPES[known[0][0]])
        if own is not None:
            padded[tuple(map(slice, own.shape))] = own
        found = [torch.empty_like(padded) for _ in told]
        dist.all_gather(found, padded, group=self.data_group)
        return torch.cat([rows[: shape[1]] for rows, shape in zip(found, told, strict=True) if shape])

    @contextmanager
    def alike(self) -> Iterator[None]:
        """While it lasts all ranks draw the same numbers from torch's generators, by a seed that the first one draws; then each draws on as if nothing had been."""
        seed = torch.randint(2**62, ())
        self.ranks.sum(seed.mul_(self.ranks.leads))
        devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(int(seed))
            yield

    # ---- gradients ---------------------------------------------------------------------------------------------------

    def sum_gradients(self, model: Model) -> None:
        """Add up what the ranks' shares of a step gave, after its last backward pass."""

    def sum_means(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        """The means of the whole step from each rank's parts of them."""
        if self.ranks.alone or not means:
            return means
        names = sorted(means)
        if self._names is None:
            assert all(other == names for other in self.ranks.everyone(names)), f"the ranks have terms of other names than {names}"
            self._names = names
        assert names == self._names, f"the terms were {self._names}, and are {names}"
        summed = self.add(torch.stack([means[name].double() for name in names]))
        return {name: summed[names.index(name)].to(mean.dtype) for name, mean in means.items()}

    def add(self, tensor: Tensor) -> Tensor:
        """The tensor, in place, with the sum over the ranks that have parts of a step's means."""
        return self.ranks.sum(tensor)

    def clip(self, parameters: list[nn.Parameter], largest: float) -> tuple[Tensor, Tensor]:
        """The norm [] of all gradients, and [parameters] those of each, as they were, and behind them those of what learns elsewhere; gradients above ``largest`` (if not 0) are scaled down to it."""
        norms = torch.stack(torch._foreach_norm([parameter.grad for parameter in parameters])) if parameters else torch.zeros(0)
        norm = torch.linalg.vector_norm(norms)
        if largest:
            nn.utils.clip_grads_with_norm_(parameters, largest, norm)
        return norm, norms


class Replicated(Layout):
    """Every rank holds everything and passes its share of the rows through it; gradients are summed in the backward pass of the last micro-batch (data parallelism).

    This is not torch's DistributedDataParallel, whose forward pass must be the whole loss, once, on every rank: a step here may have several passes (R-Drop, adversarial
    training) or none on a rank, and its gradient is a sum. Weights stay alike, since every rank adds the same numbers to the same weights.
    """

    name = "replicas"
    sums: Sums | None = None

    def learn(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]], counts: dict[str, float]) -> Iterator[dict[str, Tensor]]:
        learning = [parameter for parameter in engine.model.parameters() if parameter.requires_grad]
        if self.sums is None or list(map(id, self.sums.parameters)) != list(map(id, learning)):
            if self.sums:
                self.sums.close()
            self.sums = Sums(learning, self.ranks.group)
        yield from super().learn(engine, self._told(parts) if engine.passes.once else parts, counts)

    def _told(self, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[Batch, bool]]:
        for part, last in with_last(parts):
            if last:
                self.sums.begin()
            yield part

    def sum_gradients(self, model: Model) -> None:
        self.sums.end()


def with_last(parts: Iterator[Any]) -> Iterator[tuple[Any, bool]]:
    """Each of some things, and whether it is the last."""
    waiting = list(itertools.islice(parts, 1))
    while waiting:
        following = list(itertools.islice(parts, 1))
        yield waiting[0], not following
        waiting = following


# ---- tensors that are held in shards -------------------------------------------------------------------------------


def in_shards(tensor: Tensor | None) -> bool:
    """Whether ranks hold parts of a tensor: it is a DTensor, whose module takes as long to import as all of torch."""
    return hasattr(tensor, "full_tensor")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor; a view."""
    return here(tensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, gathered from the ranks that hold it."""
    return tensor.full_tensor() if in_shards(tensor) else tensor


def spread(own: Tensor, like: Tensor) -> Tensor:
    """A tensor of ``like``'s whole shape of which each rank holds ``own``, as it holds ``like``."""
    if not in_shards(like) or own.shape != like.to_local().shape:
        return own
    if own.device.type != like.device_mesh.device_type:  # it waits in the host's memory, from where DTensor would take it
        made = torch.empty_like(like, dtype=own.dtype)
        made.to_local().copy_(own)
        return made
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(own, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride())


def placed(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, the same on all ranks, held as ``like`` is where it has its shape."""
    value = value.to(like.device) if value.ndim else value
    if not in_shards(like) or in_shards(value) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None).to(like.device)


# ---- a model's structure, without what it holds -----------------------------------------------------------------------


def empty_copy(model: Model) -> Model:
    """The model's structure, its parameters without values; buffers are the model's own."""
    buffers = {id(buffer): buffer for buffer in model.buffers()}
    empty = {id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad) for parameter in model.parameters()}
    return copy.deepcopy(model, buffers | empty)


def places_of(model: Model) -> list[tuple[nn.Module, str, str]]:
    """(module, attribute, name) of every parameter, each of a tied one's places too."""
    return [(module, leaf, f"{path}.{leaf}" if path else leaf) for path, module in model.named_modules() for leaf in list(module._parameters) if module._parameters[leaf] is not None]


@torch.no_grad()
def take_to(model: Model, device: torch.device) -> None:
    """Take to the device what of a placed model is not there yet; what is there, or waits in the host's memory, stays as it is, with all that is noted on it."""
    for module in model.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.device != device and not (model.runs_on and in_shards(parameter)):
                parameter.data = parameter.data.to(device)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = buffer.to(device)
