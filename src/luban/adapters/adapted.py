"""A layer with adapters on it: the same object, of a subclass of its own class, so that its weights keep their names."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError

Layer = Callable[..., Any]


class Routes:
    """Which rows of the batch at hand wear which adapters: shared by the layers of a model. None said: all rows wear the active ones."""

    def __init__(self) -> None:
        self.names: Sequence[tuple[str, ...]] = ()  # of each row
        self.device = torch.device("cpu")
        self._groups: dict[tuple[str, ...], list[tuple[tuple[str, ...], Tensor]]] = {}

    @contextmanager
    def worn(self, names: Sequence[tuple[str, ...]], device: torch.device) -> Iterator[None]:
        """Inside, each row of a batch wears adapters of its own."""
        self.names, self.device = names, device
        try:
            yield
        finally:
            self.names, self._groups = (), {}

    def groups(self, known: tuple[str, ...]) -> list[tuple[tuple[str, ...], Tensor]]:
        """Rows that are the same to a layer with the adapters ``known``: what they wear of these, and their numbers. Worked out once for all such layers."""
        if known not in self._groups:
            rows: dict[tuple[str, ...], list[int]] = {}
            for row, own in enumerate(self.names):
                rows.setdefault(tuple(name for name in own if name in known), []).append(row)
            self._groups[known] = [(own, torch.tensor(places, device=self.device)) for own, places in rows.items()]
        return self._groups[known]

    def check(self, layer: nn.Module, states: Any, rows: int) -> None:
        """ConfigError for a layer that does not take and give the batch row by row: experts see single tokens, recurrent layers all texts in one, and a
        whole mixture tells its choices too."""
        if not isinstance(states, Tensor) or len(states) != rows or (states.dim() < 3 and states.is_floating_point()):
            raise ConfigError("requests cannot choose adapters on {layer}: it does not see texts row by row", "", "serve this adapter's folder by itself, or merge it", layer=type(layer).__bases__[1].__name__)


class Wears:
    """What has adapters by name, of which some are active."""

    adapters: nn.ModuleDict
    active: tuple[str, ...]
    routes: Routes | None


class Adapted(Wears):
    """What :func:`adapt` makes of a layer: each active adapter stands around what lies beneath it, the base innermost.

    An adapter is a module that is called as ``adapter(beneath, layer, states)``: ``beneath`` gives the output of what is under it.
    """

    def forward(self, states: Tensor, *given: Any) -> Any:
        if self.routes is None or not self.routes.names:
            return self._worn(self.active)(states, *given)
        groups = self.routes.groups(tuple(self.adapters))
        if len(groups) == 1:
            return self._worn(groups[0][0])(states, *given)
        self.routes.check(self, states, len(self.routes.names))
        parts = [(rows, self._worn(names)(states.index_select(0, rows))) for names, rows in groups]
        self.routes.check(self, parts[0][1], len(parts[0][0]))
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
def _class_for(wearing: type, cls: type) -> type:
    return type(f"{wearing.__name__}{cls.__name__}", (wearing, cls), {})


def adapt(layer: nn.Module, name: str, adapter: nn.Module, wearing: type[Wears] = Adapted) -> None:
    """Put ``adapter`` on a layer, in place, above those that are there, and make it active. ``wearing`` goes before the layer's own class."""
    if not isinstance(layer, Wears):
        layer.__class__ = _class_for(wearing, type(layer))
        layer.adapters, layer.active, layer.routes = nn.ModuleDict(), (), None
    layer.adapters[name] = adapter
    layer.active = (*(known for known in layer.active if known != name), name)


def change_class(layer: nn.Module, cls: type) -> None:
    """Make a layer one of ``cls``, beneath its adapters where it wears some."""
    layer.__class__ = _class_for(type(layer).__bases__[0], cls) if isinstance(layer, Wears) else cls


def release(layer: nn.Module, name: str) -> None:
    """Take an adapter off; with the last one the layer is what it was."""
    if not isinstance(layer, Wears) or name not in layer.adapters:
        return
    del layer.adapters[name]
    layer.active = tuple(known for known in layer.active if known != name)
    if not len(layer.adapters):
        del layer.adapters, layer.active, layer.routes
        layer.__class__ = type(layer).__bases__[1]


def adapted_layers(model: nn.Module, name: str) -> dict[str, nn.Module]:
    """What wears the adapter ``name``, by its place in the model: layers, and the model itself where something stands before its texts."""
    return {place: layer for place, layer in model.named_modules() if isinstance(layer, Wears) and name in layer.adapters}


def set_active(model: nn.Module, names: tuple[str, ...]) -> None:
    """From here on every layer uses those of ``names`` that it wears, the first innermost."""
    for layer in model.modules():
        if isinstance(layer, Wears):
            layer.active = tuple(name for name in names if name in layer.adapters)


@contextmanager
def wearing(model: nn.Module, names: tuple[str, ...]) -> Iterator[None]:
    """Inside, every layer uses those of ``names`` that it wears."""
    before = [(layer, layer.active) for layer in model.modules() if isinstance(layer, Wears)]
    set_active(model, names)
    try:
        yield
    finally:
        for layer, active in before:
            layer.active = active


def active_names(model: nn.Module) -> tuple[str, ...]:
    """The adapters that all rows wear by default."""
    return tuple(dict.fromkeys(name for layer in model.modules() if isinstance(layer, Wears) for name in layer.active))


def route(model: nn.Module) -> Routes:
    """From here on the rows of a batch may wear different adapters, as :meth:`Routes.worn` says."""
    routes = Routes()
    for layer in model.modules():
        if isinstance(layer, Wears):
            layer.routes = routes
    return routes
