"""Which activations of a block are kept for the backward pass, and which are computed again there.

none        everything that autograd saves
selective   the block's input, the results of its matrix products and of attention's kernel (the flash forms; Korthikanti et al. 2022, arXiv:2205.05198, and the
            policy that is customary since): norms, rotations, activation functions and their products are computed again, a few percent of the operations
full        the block's input alone: the whole block is computed again, a third of a step's operations more (Chen et al. 2016, arXiv:1604.06174)

Recurrent cells are one kernel and no product, so there selective keeps as much as full does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.checkpoint import checkpoint

from luban.models import attention as _attention  # noqa: F401  (defines luban::causal_attention)
from luban.models import products as _products  # noqa: F401  (defines luban::widened_product)
from luban.models.recompute_plan import MODES, Mode


def mode_of(wanted: bool | str | Sequence[str], blocks: Sequence[nn.Module], called: Sequence[Any]) -> Mode:
    """The mode of one call of a block: ``wanted`` is one for all, or one for each of ``blocks`` in their order."""
    if isinstance(wanted, bool):
        return "full" if wanted else "none"
    if isinstance(wanted, str):
        return wanted
    return next((mode for block, mode in zip(blocks, wanted, strict=True) if any(block is item for item in called)), "none")


def run(mode: Mode, block: Callable[..., Any], *inputs: Any) -> Any:
    """A block's output in one of the modes."""
    if mode == "none" or not torch.is_grad_enabled():
        return block(*inputs)
    if mode == "full":
        return checkpoint(block, *inputs, use_reentrant=False)
    return checkpoint(block, *inputs, use_reentrant=False, context_fn=_contexts)


KEPT = {
    torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.luban.widened_product.default, torch.ops.luban.causal_attention.default,
    *(getattr(torch.ops.aten, name).default for name in ("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention")),
}  # fmt: skip


class _Keep(TorchDispatchMode):
    """Holds the results of the operations in KEPT, in the order in which they are made; None for one that is changed in place later."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[Any] = []

    def __torch_dispatch__(self, operation: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        made = operation(*given, **(named or {}))
        if operation in KEPT:
            self.results.append(tree_map_only(Tensor, Tensor.detach, made))
        elif operation._schema.is_mutable:
            arguments = zip(given, operation._schema.arguments, strict=False)
            self._drop({_place(value) for value, said in arguments if isinstance(value, Tensor) and said.alias_info and said.alias_info.is_write})
        return made

    def _drop(self, changed: set[int]) -> None:
        self.results = [None if changed & {_place(leaf) for leaf in tree_leaves(made) if isinstance(leaf, Tensor)} else made for made in self.results]


class _Give(TorchDispatchMode):
    """Gives the held results back in the place of the operations, once each."""

    def __init__(self, kept: _Keep) -> None:
        super().__init__()
        self.kept, self.next = kept, 0

    def __torch_dispatch__(self, operation: Any, types: Any, given: tuple = (), named: dict | None = None) -> Any:
        if operation in KEPT:
            made, self.kept.results[self.next] = self.kept.results[self.next], None
            self.next += 1
            if made is not None:
                return made
        return operation(*given, **(named or {}))


def _contexts() -> tuple[_Keep, _Give]:
    kept = _Keep()
    return kept, _Give(kept)


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # known of tensors without values too


# ---- a budget ------------------------------------------------------------------------------------------------------


def measure(model: nn.Module, forward: Callable[[], Any], modes: Sequence[Mode] = MODES) -> list[dict[Mode, int]]:
    """Bytes that each of the model's blocks keeps for the backward pass in each mode, counted while ``forward`` runs the model once.

    Nothing is held while it is counted, and blocks that are alike are run once: a repeated one gives what the first gave. So this takes the time and memory of a block or two.
    """
    weights = {_place(parameter) for parameter in model.parameters()}
    blocks = list(model.blocks())
    found: dict[int, dict[Mode, int]] = {}
    known: dict[Any, tuple[dict[Mode, int], Any]] = {}

    def through(block: Callable[..., Any], *inputs: Any) -> Any:
        module = next((item for item in (block, *inputs) if any(item is one for one in blocks)), None)
        key = _likeness(block, inputs, module)
        if key not in known:
            counts = {mode: _kept_bytes(mode, block, inputs, weights) for mode in modes}
            known[key] = {mode: size for mode, (size, _) in counts.items()}, counts["none"][1]
        counted, made = known[key]
        if module is not None:
            found[id(module)] = {mode: counted[mode] + found.get(id(module), {}).get(mode, 0) for mode in modes}
        return made

    generator = torch.get_rng_state()
    model.__dict__["through"] = through  # in the place of the method, for as long as this lasts
    try:
        with torch.enable_grad():
            forward()
    finally:
        del model.__dict__["through"]
        torch.set_rng_state(generator)
    return [found.get(id(block), dict.fromkeys(modes, 0)) for block in blocks]


def _likeness(block: Callable[..., Any], inputs: Sequence[Any], module: nn.Module | None) -> Any:
    """The same for blocks of one class, with parameters and inputs of the same shapes and types."""
    owner = block if isinstance(block, nn.Module) else module
    parameters = tuple((tuple(p.shape), p.dtype, p.requires_grad) for p in owner.parameters()) if owner is not None else ()
    return type(owner), parameters, tuple((tuple(leaf.shape), leaf.dtype) if isinstance(leaf, Tensor) else leaf is None for leaf in tree_leaves(list(inputs)))


def _kept_bytes(mode: Mode, block: Callable[..., Any], inputs: Sequence[Any], weights: set[int]) -> tuple[int, Any]:
    """Bytes that the block keeps, and where it was run its output, without a graph."""
    kept: dict[int, Tensor] = {}  # by storage; the tensors are held until all are counted, so that no place is used a second time

    def pack(tensor: Tensor) -> Tensor:
        if _place(tensor) not in weights:
            kept[_place(tensor)] = tensor
        return tensor

    made, inputs, keep = None, [_as_stream(item) for item in inputs], _Keep()
    if mode == "none":
        with saved_tensors_hooks(pack, lambda tensor: tensor):
            made = tree_map_only(Tensor, Tensor.detach, block(*inputs))
    elif mode == "selective":
        with torch.no_grad(), keep:
            block(*inputs)
    for tensor in tree_leaves([keep.results, [] if mode == "none" else list(inputs)]):
        if isinstance(tensor, Tensor):
            pack(tensor)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()), made


def _as_stream(item: Any) -> Any:
    """A floating-point input as it comes from the block below: with a gradient."""
    return item.detach().requires_grad_() if isinstance(item, Tensor) and item.is_floating_point() else item
