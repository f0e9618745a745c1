"""A layer with adapters on it: the same object, of a subclass of its own class, so that its weights keep their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

Layer = Callable[..., Any]


class Routes:
    """Which rows of the batch at hand wear which adapters: shared by the layers of a model. No groups: all rows wear the active ones."""

    def __init__(self) -> None:
        self.groups: list[tuple[tuple[str, ...], Tensor]] = []


class Adapted:
    """What :func:`adapt` makes of a layer: each active adapter stands around what lies beneath it, the base innermost.

    An adapter is a module that is called as ``adapter(beneath, layer, states)``: ``beneath`` gives the output of what is under it.
    """

    adapters: nn.ModuleDict
    active: tuple[str, ...]
    routes: Routes | None

    def forward(self, states: Tensor, *given: Any) -> Any:
        if self.routes is None or not self.routes.groups:
            return self._worn(self.active)(states, *given)
        parts = [(rows, self._worn(names)(states.index_select(0, rows))) for names, rows in self.routes.groups]
        if len(parts) == 1:
            return parts[0][1]
        whole = parts[0][1].new_empty(len(states), *parts[0][1].shape[1:])
        for rows, part in parts:
            whole.index_copy_(0, rows, part)
        return whole

    def _worn(self, names: tuple[str, ...]) -> Layer:
        """The layer in those of the adapters ``names`` that it has."""
        beneath: Layer = super().forward
        for name in names:
            if name in self.adapters:
                beneath = _around(self.adapters[name], beneath, self)
        return beneath


def _around(adapter: nn.Module, beneath: Layer, layer: nn.Module) -> Layer:
    return lambda states, *given: adapter(beneath, layer, states, *given)


@cache
def _class_for(cls: type) -> type:
    return type(f"Adapted{cls.__name__}", (Adapted, cls), {})


def adapt(layer: nn.Module, name: str, adapter: nn.Module) -> None:
    """Put ``adapter`` on a layer, in place, above those that are there, and make it active."""
    if not isinstance(layer, Adapted):
        layer.__class__ = _class_for(type(layer))
        layer.adapters, layer.active, layer.routes = nn.ModuleDict(), (), None
    layer.adapters[name] = adapter
    layer.active = (*(known for known in layer.active if known != name), name)


def release(layer: nn.Module, name: str) -> None:
    """Take an adapter off; with the last one the layer is what it was."""
    if not isinstance(layer, Adapted) or name not in layer.adapters:
        return
    del layer.adapters[name]
    layer.active = tuple(known for known in layer.active if known != name)
    if not len(layer.adapters):
        del layer.adapters, layer.active, layer.routes
        layer.__class__ = type(layer).__mro__[2]


def adapted_layers(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """The layers that wear the adapter ``name``, by their place in the model."""
    return {place: layer for place, layer in model.named_modules() if isinstance(layer, Adapted) and name in layer.adapters}


def set_active(model: nn.Module, names: tuple[str, ...]) -> None:
    """From here on every layer uses those of ``names`` that it wears, the first innermost."""
    for layer in model.modules():
        if isinstance(layer, Adapted):
            layer.active = tuple(name for name in names if name in layer.adapters)


def active_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters that all rows wear by default."""
    return tuple(dict.fromkeys(name for layer in model.modules() if isinstance(layer, Adapted) for name in layer.active))


def route(model: nn.Module) -> Routes:
    """From here on the rows of a batch may wear different adapters: what is written into the groups decides."""
    routes = Routes()
    for layer in model.modules():
        if isinstance(layer, Adapted):
            layer.routes = routes
    return routes


def groups_of(names: Sequence[tuple[str, ...]], device: torch.device) -> list[tuple[tuple[str, ...], Tensor]]:
    """Rows with the same adapters together, as :class:`Routes` has them, from each row's own."""
    rows: dict[tuple[str, ...], list[int]] = {}
    for row, worn in enumerate(names):
        rows.setdefault(worn, []).append(row)
    return [(worn, torch.tensor(own, device=device)) for worn, own in rows.items()]
