"""A model over a mesh of ranks: replicas, shards, context, tensor and expert groups, and what they make together, on torch's engines.

Three things are cut, each by its own room mate: matrices over a tensor group (tensor.py), the places of a row over a context group (context.py), the experts of a layer over an expert
group (experts.py). Around what is left stand torch's FSDP2 shards or nothing. All of it happens in place, once, before an optimizer knows the parameters; afterwards the engine sees a
model like any other.

Ranks of one tensor group hold the same rows and compute the same loss; ranks of one context group hold the same rows and score a part of their places each; gradients are added up over
replicas, shards and context, and over the tensor group where each of its ranks has a part of one.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, OffloadPolicy, fully_shard
from torch.distributed.tensor import DTensor

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.moe import Experts
from luban.models.tensor_files import NAMES, TYPES
from luban.parallel.context import cut_sequence
from luban.parallel.experts import share_out
from luban.parallel.layouts import Layout, empty_copy, local, places_of, whole, with_last
from luban.parallel.legal import Parts
from luban.parallel.pipelined import Line, turns
from luban.parallel.plans import PLANS
from luban.parallel.ranks import Ranks
from luban.parallel.stages import cut_into_stages, rank_of, stages_of
from luban.parallel.sums import add_gradients
from luban.parallel.tensor import cut_matrices
from luban.tokens.batch import Batch

if TYPE_CHECKING:
    from luban.objectives.base import Term
    from luban.parallel.engine import TorchEngine

# Said each time otherwise: that a part of a part is gathered in two operations; and that hidden states which are a view must not be changed in place, which nobody does.
logging.getLogger("torch.distributed.tensor._redistribute").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view tensor")


WITH_WORK = 1.25  # a model's weights with what it needs to write or to be measured


class Meshed(Layout):
    """``shard``: "none"; "states", weights are gathered once a step and gradients summed once, after its last micro-batch (ZeRO-1); "gradients", weights are kept from a block's forward to its backward pass (ZeRO-2); or "full", they are dropped in between and gathered again (ZeRO-3,
    Rajbhandari et al. 2020, arXiv:1910.02054). With the last two every micro-batch's gradients are summed and cut in its backward pass, so that no rank ever holds all of them.

    ``sequence``: ranks of a tensor group hold parts of the sequence where they would do the same work.

    ``offload``: between their uses shards wait in the host's memory, with their gradients, and the optimizer steps there.
    """

    name = "mesh"

    def __init__(self, ranks: Ranks, parts: Parts, shard: str, sequence: bool, device: torch.device, schedule: str = "1f1b", stages: int = 1, offload: bool = False):
        super().__init__(ranks)
        assert parts.ranks == ranks.size, f"{parts} on {ranks.size} ranks"
        self.device = device
        self.offload = offload
        self.parts, self.shard, self.sequence = parts, shard if parts.held > 1 else "none", sequence and parts.tensor > 1
        # Which rank stands where is the same in all of these; each names the dimensions that somebody asks for.
        self.held = self._mesh(device, replicas=parts.replicas, held=parts.held, tensor=parts.tensor)
        self.read = self._mesh(device, data=parts.data, context=parts.context, tensor=parts.tensor)
        self.copies = self._mesh(device, copies=parts.summed // parts.expert, expert=parts.expert, tensor=parts.tensor)
        self.summed = self._mesh(device, summed=parts.summed, tensor=parts.tensor)
        self.data_rank, self.data_size, self.data_group = self.read.get_local_rank("data"), parts.data, self.read.get_group("data")
        self.schedule, self.stages = schedule, stages
        self.turning = parts.pipeline > 1 and turns(schedule, stages)
        place = self.read.get_local_rank("pipeline")
        self.adds = self.read.get_local_rank("tensor") == 0 and place == rank_of(parts.pipeline * stages - 1, parts.pipeline * stages, parts.pipeline, self.turning)
        self.says = self.read.get_local_rank("tensor") == self.read.get_local_rank("context") == place == 0
        self.drops = self.shard == "full"
        self.together = self.shard != "none" or parts.expert > 1
        self.in_parts: list[nn.Parameter] = []  # held by all ranks of a tensor group, each with a part of the gradient
        self.line: Line | None = None
        self.shared: dict[str, dist.ProcessGroup] = {}  # parameters that other ranks of the pipeline hold too, by their names, with the group of these
        self.experts: list[nn.Parameter] = []  # of this rank's experts
        self.skeleton: Model | None = None
        self.holders: dict[str, int] = {}  # each parameter's name to the first rank that holds it
        self.copies_of: dict[str, float] = {}  # how many times it is held in all
        self.names: dict[nn.Parameter, str] = {}  # of this rank's parameters

    @property
    def seat(self) -> int:
        return self.ranks.rank - self.read.get_local_rank("tensor")

    def _group_of(self, chosen: list[int]) -> dist.ProcessGroup:
        """The ranks at these places of this rank's pipeline, where it stands at one of them."""
        places = np.arange(self.ranks.blocks * self.ranks.size).reshape(self.ranks.blocks, self.parts.pipeline, -1)
        groups = np.moveaxis(places[:, chosen], 1, -1).reshape(-1, len(chosen)).tolist()
        inside = {rank for group in groups for rank in group}
        return self.ranks.group_of(groups + [[rank] for rank in places.flatten().tolist() if rank not in inside])

    def _mesh(self, device: torch.device, **sizes: int) -> DeviceMesh:
        named = {"blocks": self.ranks.blocks, "pipeline": self.parts.pipeline, **sizes}
        places = torch.arange(math.prod(named.values())).view(tuple(named.values()))
        groups = [self.ranks.group_of(places.movedim(dim, -1).flatten(0, -2).tolist()) for dim in range(places.ndim)]
        return DeviceMesh.from_group(groups, device.type, mesh=places, mesh_dim_names=tuple(named))

    # ---- a model -----------------------------------------------------------------------------------------------------

    def place(self, model: Model) -> None:
        self.skeleton = empty_copy(model)
        marks = {name: vars(parameter) for name, parameter in model.named_parameters()}
        if self.parts.pipeline > 1:
            self._cut_into_stages(model)
        if self.parts.expert > 1:
            share_out(model, self.copies["expert"])
        if self.parts.tensor > 1:
            self.in_parts = cut_matrices(model, PLANS[model.shape.architecture], self.held["tensor"], (self.copies if self.parts.expert > 1 else self.held)["tensor"], self.sequence)
        if self.parts.context > 1:
            cut_sequence(model, self.read["context"])
        if self.shard != "none":
            self._cut_into_shards(model)
        for name, parameter in model.named_parameters():
            vars(parameter).update(marks[name])
        self._note_holders(model)

    def _cut_into_stages(self, model: Model) -> None:
        ranks, place = self.parts.pipeline, self.read.get_local_rank("pipeline")
        shared = cut_into_stages(model, stages_of(model.depth, ranks, self.stages, place, self.turning))
        self.line = Line(model, self.read.get_group("pipeline"), self.schedule, self.device, self.parts.context)
        holders = {name: tuple(sorted({self.line.rank_of(number) for number in numbers})) for name, numbers in shared.items()}
        groups = {places: self._group_of(list(places)) for places in dict.fromkeys(holders.values()) if len(places) > 1}  # all ranks make all groups, in the same order
        self.shared = {name: groups[places] for name, places in holders.items() if place in places and len(places) > 1}

    def _cut_into_shards(self, model: Model) -> None:
        mesh = self.held["replicas", "held"] if self.parts.replicas > 1 else self.held["held"]
        policy = CPUOffloadPolicy(pin_memory=self.device.type != "cpu") if self.offload else OffloadPolicy()
        model.runs_on = self.device if self.offload else None
        part_names = {name for name, parameter in model.named_parameters() if any(parameter is part for part in self.in_parts)}
        mixtures = [module for module in model.modules() if isinstance(module, Experts)] if self.parts.expert > 1 else []
        alone = {parameter for mixture in mixtures for parameter in mixture.parameters()} if self.copies["copies"].size() == 1 else set()
        for mixture in mixtures if not alone else ():
            _shard(mixture, self.copies["copies"], self.shard == "full", policy)
        beside = model.beside_blocks()
        if self.line:  # what stands outside the blocks, or is called from there, stays whole: a pipeline does not call the model that would gather it
            alone = alone | {parameter for module in beside for parameter in module.parameters()}
        for module in [*(beside if self.line is None else ()), *model.blocks()]:
            _shard(module, mesh, self.shard == "full", policy, alone)
        if self.line is None:
            _shard(model, mesh, False, policy, alone)  # what stands outside the blocks is used again at once, in the loss
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)  # gloo knows no sum that is scaled
                module.set_gradient_divide_factor(1.0)
        self.in_parts = [parameter for name, parameter in model.named_parameters() if name in part_names]

    def _note_holders(self, model: Model) -> None:
        self.experts = [parameter for module in model.modules() if isinstance(module, Experts) for parameter in module.parameters()] if self.parts.expert > 1 else []
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        own = {name: _pieces(parameter) for parameter, name in self.names.items()}
        for rank, names in enumerate(self.ranks.everyone(own)):
            for name, pieces in names.items():
                self.holders.setdefault(name, rank)
                self.copies_of[name] = self.copies_of.get(name, 0.0) + 1 / pieces

    @property
    def elsewhere(self) -> set[str]:
        return self.holders.keys() - set(self.names.values())

    @property
    def learning_elsewhere(self) -> list[str]:
        missing = self.elsewhere
        return [name for name, parameter in self.skeleton.named_parameters() if name in missing and parameter.requires_grad]

    def whole_model(self, model: Model) -> Model | None:
        self.settle(model)
        place = self._room()
        gathered = self._gathered(model, place)
        if not self.ranks.leads:
            return None
        for module, leaf, name in places_of(self.skeleton):
            setattr(module, leaf, gathered[name])
        return self.skeleton.train(model.training).to(place)

    def _room(self) -> torch.device:
        """Where a whole model is put together: on the device, if it fits beside what trains there, else in the host's memory."""
        if self.device.type != "cuda":
            return self.device
        free = torch.cuda.mem_get_info(self.device)[0] + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
        return self.device if WITH_WORK * sum(parameter.nbytes for parameter in self.skeleton.parameters()) < free else torch.device("cpu")

    def on_first(self, model: Model, work: Callable[[Model], Any]) -> Any:
        made = super().on_first(model, work)
        if self.ranks.leads:
            for module, leaf, _ in places_of(self.skeleton):  # the memory is needed
                known = getattr(module, leaf)
                setattr(module, leaf, nn.Parameter(torch.empty_like(known, device="meta"), requires_grad=known.requires_grad))
        return made

    @torch.no_grad()
    def _gathered(self, model: Model, place: torch.device) -> dict[str, nn.Parameter]:
        """Every parameter under each of its names, on rank 0 at ``place``; the others only take part."""
        found: dict[str, nn.Parameter] = {}
        once: dict[int, nn.Parameter] = {}
        own = dict(model.named_parameters())
        for name, like in self.skeleton.named_parameters(remove_duplicate=False):
            if id(like) not in once:
                values = whole(own[name].detach().to(self.device)) if name in own else None
                values = self._to_first(values, like, self.holders[name])
                once[id(like)] = nn.Parameter(values.to(place), requires_grad=like.requires_grad) if values is not None else like
            found[name] = once[id(like)]
        return found

    def _to_first(self, values: Tensor | None, like: Tensor, holder: int) -> Tensor | None:
        """On rank 0, what the first that holds a parameter has; None on the others."""
        if holder and self.ranks.rank == holder:
            dist.send(values.to(self.device).contiguous(), group_dst=0, group=self.ranks.group)
        if not self.ranks.leads:
            return None
        if holder:
            values = torch.empty(like.shape, dtype=like.dtype, device=self.held.device_type)
            dist.recv(values, group_src=holder, group=self.ranks.group)
        return values

    @torch.no_grad()
    def gather(self, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        found = super().gather(tensors)
        if self.line is None and self.parts.expert == 1:
            return found
        known = set()
        for rank, told in enumerate(self.ranks.everyone({name: [NAMES[tensor.dtype], *tensor.shape] for name, tensor in found.items()})):
            for name, (kind, *shape) in sorted(told.items()):
                if name not in known and (made := self._to_first(found.get(name), torch.empty(shape, dtype=TYPES[kind], device="meta"), rank)) is not None:
                    found[name] = made
                known.add(name)
        return found

    def settle(self, model: Model) -> None:
        for module in model.modules():
            if isinstance(module, FSDPModule):
                module.reshard()

    # ---- a step ------------------------------------------------------------------------------------------------------

    def spans(self, batch: Batch, size: int) -> list[tuple[int, int, bool]]:
        if self.line is None:
            return super().spans(batch, size)
        shares = [self.share(len(batch.inputs), batch.group, rank) for rank in (range(self.data_size) if self.together else [self.data_rank])]
        size = self.line.size(min(last - first for first, last in shares) // batch.group, size // batch.group)
        found = super().spans(batch, size * batch.group)
        missing = self.line.wanted(len(found)) - len(found) if found else 0
        return found + [(*found[0][:2], False)] * missing

    def learn(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]], counts: dict[str, float]) -> Iterator[dict[str, Tensor]]:
        if self.line is None:
            yield from super().learn(engine, self._at_the_last(engine.model, parts) if self.shard == "states" else parts, counts)
        elif made := list(parts):
            yield self.line.learn(engine, made, counts)

    @staticmethod
    def _at_the_last(model: Model, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[Batch, bool]]:
        """The micro-batches; what is gathered stays and no gradient is summed until the last of them."""
        shards = [module for module in model.modules() if isinstance(module, FSDPModule)]
        for part, last in with_last(parts):
            for module in shards:
                module.set_requires_gradient_sync(last, recurse=False)
                module.set_reshard_after_backward(last, recurse=False)
            yield part

    def score(self, engine: TorchEngine, parts: Iterator[tuple[Batch, bool]]) -> Iterator[tuple[dict[str, Term], bool]]:
        return super().score(engine, parts) if self.line is None else self.line.score(engine, parts)

    def sum_means(self, means: dict[str, Tensor]) -> dict[str, Tensor]:
        if self.line is None:
            return super().sum_means(means)
        if not self.line.terms:  # known where the last stage is
            self.line.terms = next(filter(None, self.ranks.everyone(list(means))), [])
        nothing = torch.zeros((), dtype=torch.float64 if self.line.model.dtype == torch.float64 else torch.float32, device=self.line.device)
        return super().sum_means({name: means.get(name, nothing) for name in self.line.terms})

    def cut(self, part: Batch, by_place: bool) -> tuple[Batch, bool]:
        part = part.padded(self.parts.context * (self.parts.tensor if self.sequence else 1))
        if self.parts.context == 1:
            return part, True
        rank = self.read.get_local_rank("context")
        return (part.scoring(rank, self.parts.context), True) if by_place else (part, rank == 0)

    def own_share(self, by_place: bool) -> float:
        return 1.0 / self.parts.context if by_place else 1.0

    def add(self, tensor: Tensor) -> Tensor:
        dist.all_reduce(tensor, group=self.summed.get_group("summed"))
        if self.line:  # the other stages have nothing to add
            dist.all_reduce(tensor, group=self.read.get_group("pipeline"))
        return tensor

    def sum_gradients(self, model: Model) -> None:
        if self.shard == "none" or self.line:
            experts = set(self.experts)
            inside = {parameter for block in model.blocks() for parameter in block.parameters()} if self.shard != "none" else set()
            inside -= {parameter for module in model.beside_blocks() for parameter in module.parameters()}
            learning = [parameter for parameter in model.parameters() if parameter.requires_grad and parameter not in inside]
            if self.parts.summed > 1:
                add_gradients([parameter for parameter in learning if parameter not in experts], self.summed.get_group("summed"))
            if experts and self.copies["copies"].size() > 1:
                add_gradients([parameter for parameter in learning if parameter in experts], self.copies.get_group("copies"))
        if parts := [parameter for parameter in self.in_parts if parameter.requires_grad]:
            add_gradients(parts, self.held.get_group("tensor"))
        for group in dict.fromkeys(self.shared.values()):
            add_gradients([parameter for parameter, name in self.names.items() if self.shared.get(name) is group and parameter.requires_grad], group)

    def clip(self, parameters: list[nn.Parameter], largest: float) -> tuple[Tensor, Tensor]:
        gradients = [local(parameter.grad) for parameter in parameters]
        places = {name: place for place, name in enumerate(self.holders)}
        squares = torch.zeros(len(places), dtype=torch.float64, device="cpu" if self.offload else self.device)
        own = [places[self.names[parameter]] for parameter in parameters]
        if parameters:
            shares = squares.new_tensor([self.copies_of[self.names[parameter]] for parameter in parameters])
            squares[own] = torch.stack(torch._foreach_norm(gradients)).double().square() / shares
        dist.all_reduce(squares, group=self.ranks.group)
        kind = gradients[0].dtype if gradients else torch.float32
        norms, norm = squares[own + [places[name] for name in self.learning_elsewhere]].sqrt().to(kind), squares.sum().sqrt().to(kind)
        if largest:
            share = (largest / (norm + 1e-6)).clamp(max=1.0)
            for gradient in gradients:
                gradient.mul_(share)
        return norm.to(self.device), norms.to(self.device)


def _shard(module: nn.Module, mesh: DeviceMesh, drop: bool, policy: OffloadPolicy, ignored: set[nn.Parameter] | None = None) -> None:
    try:
        fully_shard(module, mesh=mesh, reshard_after_forward=drop, offload_policy=policy, ignored_params=ignored or None)
    except (ValueError, NotImplementedError) as error:
        raise ConfigError("layout.shard: the weights of this model cannot be cut into shards: {error}", "", "choose layout.shard: none", error=str(error).splitlines()[0]) from error


def _pieces(parameter: Tensor) -> int:
    """How many pieces make up a parameter."""
    if not isinstance(parameter, DTensor):
        return 1
    return math.prod(1 if placement.is_replicate() else size for size, placement in zip(parameter.device_mesh.shape, parameter.placements, strict=True))
