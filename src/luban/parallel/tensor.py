"""A model over the ranks of a tensor group: its plan (plans.py) put into effect, in place.

A matrix that is cut becomes a DTensor, so that shards, checkpoints and optimizers know what it is a part of; its layer becomes a subclass of its own class that works with the part. With
``sequence`` each rank holds a part of the sequence wherever the stream is only normalised and added to; without, all of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Shard, distribute_tensor

from luban.adapters.adapted import change_class
from luban.models.base import Model
from luban.models.embedding import Embedding
from luban.models.moe import Routing, SparseFeedForward
from luban.models.narrow import NarrowEmbedding
from luban.models.parts import added, added_parts, alike, evenly, first_row, gathered, gathered_once, own_part
from luban.models.products import product
from luban.models.quantized import QuantizedLinear
from luban.parallel.plans import Plan, ends
from luban.parallel.tensor_packed import PackedColumn, PackedRow, cut_columns, cut_rows
from luban.parallel.tensor_worn import Cut, cut_worn

SEQUENCE = 1  # the dimension of the stream [rows, seq, dim] that is cut


class ColumnLinear(nn.Linear):
    """Some of the outputs; the next layer takes them as they are."""

    def forward(self, states: Tensor) -> Tensor:
        return product(states, self.weight.to_local(), None if self.bias is None else self.bias.to_local())


class RowLinear(nn.Linear):
    """The sum over the ranks of what each makes of its inputs; the bias is added once."""

    write: Callable[[Tensor], Tensor]

    def forward(self, states: Tensor) -> Tensor:
        made = self.write(product(states, self.weight.to_local()))
        return made if self.bias is None else made + self.bias.to(made.dtype)


class SharedTable(Embedding):
    """A table of tokens whose rows are shared out; all ranks get all vectors."""

    narrow = False  # held in bfloat16, its vectors given in float32

    def forward(self, tokens: Tensor) -> Tensor:
        own, first = self.weight.to_local(), first_row(self.weight)
        if not len(own):
            return added(own.new_zeros(*tokens.shape, own.shape[1]) + 0 * own.sum(), self.weight.device_mesh)
        places = tokens - first
        inside = (places >= 0) & (places < len(own))
        vectors = F.embedding(torch.where(inside, places, 0), own) * inside[..., None]
        made = added(vectors, self.weight.device_mesh)
        return made.float() if self.narrow else made


class HeadTable(Embedding):
    """A table with a column for each head: those of this rank's heads."""

    narrow = False

    def forward(self, tokens: Tensor) -> Tensor:
        made = F.embedding(tokens, self.weight.to_local())
        return made.float() if self.narrow else made


class TensorMixture(SparseFeedForward):
    """A mixture whose experts are cut as other matrices are. All ranks of the group route alike; the experts' sums are added up once, where they are mixed."""

    mesh: DeviceMesh
    write: Callable[[Tensor], Tensor]

    def forward(self, states: Tensor) -> tuple[Tensor, Routing]:
        mixed, routing = super().forward(states)
        return self.write(mixed), routing

    def route(self, flat: Tensor) -> tuple[Tensor, Routing]:
        # What comes before adds up the gradients of all ranks, and this one is the same on each; what comes after gives each rank a part of it.
        weights, routing = super().route(evenly(flat, self.mesh))
        return alike(weights, self.mesh), routing


class SharedGate(nn.Linear):
    """How much of a shared expert is taken: the same on all ranks, multiplied with parts of a sum."""

    mesh: DeviceMesh

    def forward(self, states: Tensor) -> Tensor:
        return alike(super().forward(evenly(states, self.mesh)), self.mesh)


def cut_matrices(model: Model, plan: Plan, mesh: DeviceMesh, expert_mesh: DeviceMesh, sequence: bool) -> list[nn.Parameter]:
    """Leave of each matrix of ``plan`` this rank's part; returns the parameters that all ranks hold and of whose gradients each has a part.

    ``expert_mesh`` stands for the same ranks beside others, for the experts of mixtures.
    """
    write = (lambda made: added_parts(made, mesh, SEQUENCE)) if sequence else (lambda made: added(made, mesh))
    read = (lambda states: gathered(states, mesh, SEQUENCE)) if sequence else (lambda states: alike(states, mesh))
    size, summed = mesh.size(), []
    blocks = {f"{stack}." for stack in plan.stacks}
    mixtures = [name for name, module in model.named_modules() if isinstance(module, SparseFeedForward)]
    for name, module in model.named_modules():
        if name.endswith(plan.vocabulary) or (plan.output and name == plan.output):
            _cut(module, "weight", mesh, 0)
            if isinstance(module, Embedding):
                _become_table(module, SharedTable)
        elif any(f"{stack}" in name for stack in blocks):
            inside = any(name.startswith(f"{mixture}.") for mixture in mixtures)
            summed += _cut_in_block(module, name, plan, expert_mesh if ".experts." in name else mesh, write if not inside else (lambda made: made), sequence)
            for attribute in plan.heads[end] if (end := ends(name, plan.heads)) else ():
                setattr(module, attribute, getattr(module, attribute) // size)
            if isinstance(module, SparseFeedForward):
                change_class(module, TensorMixture)
                module.mesh, module.write = mesh, write
            elif name.endswith(".shared_expert_gate"):
                module.__class__, module.mesh = SharedGate, mesh
            if ends(name, plan.reads):
                module.register_forward_pre_hook(_reading(read, mesh, bool(ends(name, plan.source))))
            summed += _summed(module, name, plan, sequence)
    for name in plan.vocabulary_bias:
        owner, _, leaf = name.rpartition(".")
        if name in dict(model.named_parameters()):
            _cut(model.get_submodule(owner), leaf, mesh, 0)
    if sequence:
        for run in _runs(model, plan):
            for block in run:
                if any(isinstance(module, nn.Dropout) and module.p for module in block.modules()):
                    block.forward = _drawing_apart(block.forward, mesh)
            run[0].register_forward_pre_hook(lambda _, given: (own_part(given[0], mesh, SEQUENCE), *given[1:]))
            run[-1].register_forward_hook(lambda _, given, made: _first(made, lambda states: gathered_once(states, mesh, SEQUENCE)))
    return summed


def _drawing_apart(forward: Callable[..., Any], mesh: DeviceMesh) -> Callable[..., Any]:
    """A block's forward pass in which each rank draws its own numbers for its own part of the sequence or its own heads. Outside of blocks all ranks do the same work and draw the same, so
    afterwards they go on with the generator that they have in common, one number further."""

    def drawing(*given: Any) -> Any:
        seed = drawn() * mesh.size() + mesh.get_local_rank()
        devices = [torch.cuda.current_device()] if mesh.device_type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            return forward(*given)

    return drawing


def drawn() -> int:
    """A number that the ranks, whose generators stand alike, have in common."""
    return int(torch.randint(2**31, ()))


def _cut_in_block(module: nn.Module, name: str, plan: Plan, mesh: DeviceMesh, write: Callable[[Tensor], Tensor], sequence: bool) -> list[nn.Parameter]:
    """Returns what the module wears whose gradient each rank has a part of."""
    packed = isinstance(module, QuantizedLinear)
    if ends(name, plan.column):
        cut_columns(module, mesh, _cut) if packed else _cut(module, "weight", mesh, 0)
        if module.bias is not None:
            _cut(module, "bias", mesh, 0)
        change_class(module, PackedColumn if packed else ColumnLinear)
        return cut_worn(module, Cut(mesh, 0, None, _cut), sequence)
    if ends(name, plan.row):
        cut_rows(module, mesh, _cut) if packed else _cut(module, "weight", mesh, 1)
        change_class(module, PackedRow if packed else RowLinear)
        module.write = write
        return cut_worn(module, Cut(mesh, 1, write, _cut), sequence)
    if ends(name, plan.columns_of_table):
        _cut(module, "weight", mesh, 1)
        _become_table(module, HeadTable)
    return []


def _become_table(module: Embedding, kind: type[Embedding]) -> None:
    module.narrow = isinstance(module, NarrowEmbedding)
    module.__class__ = kind


def _summed(module: nn.Module, name: str, plan: Plan, sequence: bool) -> list[nn.Parameter]:
    """Parameters of its own that the module holds whole and of whose gradients each rank has a part."""
    place, _, worn = name.partition(".adapters.")
    if isinstance(module, (ColumnLinear, PackedColumn, HeadTable)) or name.endswith((".gate", ".shared_expert_gate")) or (worn and ends(place, plan.column + plan.row)):
        return []
    if isinstance(module, (RowLinear, PackedRow)):
        return [module.bias] if sequence and module.bias is not None else []
    return list(module.parameters(recurse=False)) if sequence or ends(place, plan.local) else []


def _runs(model: Model, plan: Plan) -> list[list[nn.Module]]:
    """The blocks that the stream passes one after another: those of a list, or of a stage."""
    if model.staged:
        return model.runs()
    return [list(module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and ends(name, plan.stacks)]


def _cut(module: nn.Module, leaf: str, mesh: DeviceMesh, dim: int) -> None:
    """Leave this rank's part of a parameter along ``dim``, whatever hangs on it."""
    old = getattr(module, leaf)
    new = nn.Parameter(distribute_tensor(old.detach(), mesh, [Shard(dim)], src_data_rank=None), requires_grad=old.requires_grad)
    vars(new).update(vars(old))
    setattr(module, leaf, new)


def _reading(read: Callable[[Tensor], Tensor], mesh: DeviceMesh, of_source: bool) -> Callable[..., Any]:
    """The sequence put together before a module; a source, which all hold, is read by each for its own heads."""

    def hook(module: nn.Module, given: tuple[Any, ...]) -> tuple[Any, ...]:
        given = (read(given[0]), *given[1:])
        return (*given[:4], alike(given[4], mesh), *given[5:]) if of_source else given

    return hook


def _first(made: Any, change: Callable[[Tensor], Tensor]) -> Any:
    return (change(made[0]), *made[1:]) if isinstance(made, tuple) else change(made)
