"""What adapters and tuned models change in their base, a layer at a time, and how several changes become one.

Nothing is held but the tensors of one layer, whatever the number of layers and of sources: each source makes its own when it is asked.
TIES: Yadav et al. 2023, arXiv:2306.01708. DARE: Yu et al. 2024, arXiv:2311.03099. Both act on the change of each tensor of the model
(the papers' task vector), not on the factors of a LoRA.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from luban.adapters.adapted import adapted_layers
from luban.models.base import Model, named_generator
from luban.models.stored import Stored

Layer = dict[str, Tensor]  # the tensors of one layer by their full names


@dataclass
class Source:
    """A model directory, or an adapter on one. ``model`` has no values: those of a layer are read when they are asked for."""

    stored: Stored
    model: Model
    tensors: Mapping[str, Tensor] = field(default_factory=dict)  # of the adapter's file

    @cached_property
    def adapted(self) -> set[str]:
        """The layers that the adapter sits on."""
        return set(adapted_layers(self.model, self.model.adapter.name)) if self.model.adapter else set()

    @cached_property
    def whole(self) -> dict[str, str]:
        """By the names of what the adapter's file holds whole their names in it."""
        return {name: f"{self.model.adapter.whole_prefix}{name}" for name in self.model.saved_whole} if self.model.adapter else {}

    @cached_property
    def places(self) -> set[str]:
        """The layers that may differ from the base's: of an adapter some, of a whole model all."""
        if self.model.adapter:
            return self.adapted | {place_of(name) for name in self.whole}
        return {place_of(name) for name, _ in self.model.named_parameters()}

    @torch.no_grad()
    def layer(self, place: str) -> Layer:
        """A layer's own tensors in float32, with the adapter in them. ConfigError where its method cannot be merged."""
        layer, method = self.model.get_submodule(place), self.model.adapter
        start = f"{place}." if place else ""
        without_values = dict(layer.named_parameters(recurse=False))
        for leaf, value in without_values.items():
            setattr(layer, leaf, nn.Parameter(self._value(f"{start}{leaf}", value), requires_grad=False))
        if place in self.adapted:
            with method.filled(place, layer, self.tensors) as adapter:
                method.merge_layer(place, layer, adapter)
        found = {f"{start}{leaf}": getattr(layer, leaf).detach() for leaf in without_values}
        for leaf, value in without_values.items():
            setattr(layer, leaf, value)
        return found

    def change(self, place: str, base: Layer, stands_on: Stored) -> Layer:
        """What it changes in a layer, whose tensors in the base ``stands_on`` are ``base``: an adapter in its own base's, a whole tensor in those."""
        found: Layer = {}
        for name, value in self.layer(place).items() if place in self.places else ():
            other = self.model.adapter and name not in self.whole and self.stored is not stands_on
            before = self._value(name, value) if other else base[name]
            if not torch.equal(value, before):
                found[name] = value.sub_(before)
        return found

    def _value(self, name: str, like: Tensor) -> Tensor:
        if name in self.whole:
            return self.tensors[self.whole[name]].to(torch.float32, copy=True)
        if name in self.stored:
            return self.stored.read(name, torch.float32)
        return torch.zeros(like.shape)  # a bias that BitFit made room for


class Merger:
    """The layers of a base with the changes of several sources in them. ``changed`` are the names of the tensors that were found to differ."""

    def __init__(self, base: Source, sources: Sequence[Source], weights: Sequence[float], how: str, density: float, seed: int):
        self.base, self.sources, self.weights = base, sources, weights
        self.how, self.density, self.seed = how if len(sources) > 1 else "linear", density, seed
        self.new = {place_of(name) for name in base.stored.model.fresh}  # a head's weights have no base: they are averaged
        self.changed: list[str] = []
        self._layer: Layer = {}

    def read(self, name: str) -> Tensor:
        """A tensor of the merged model. Those of a layer are made together, and should be asked for one after the other."""
        if name not in self._layer:
            self._layer.clear()
            self._layer = self.layer(place_of(name))
        return self._layer.pop(name)

    def concerns(self, place: str) -> bool:
        """Whether a layer may be another than the base's."""
        return any(place in source.places for source in self.sources)

    def layer(self, place: str) -> Layer:
        """The merged tensors of a layer; of one that no source changes as they are stored."""
        if not self.concerns(place):
            start = f"{place}." if place else ""
            return {f"{start}{leaf}": self.base.stored.read(f"{start}{leaf}") for leaf, _ in self.base.model.get_submodule(place).named_parameters(recurse=False)}
        merged = self.base.layer(place)
        for name, change in self.changes(place, merged).items():
            merged[name].add_(change)
        return merged

    def changes(self, place: str, base: Layer) -> Layer:
        """What all sources together change in the layer whose tensors in the base are ``base``."""
        weights, how = (self.weights, self.how) if place not in self.new else ([weight / sum(self.weights) for weight in self.weights], "linear")
        found = combined([partial(source.change, place, base, self.base.stored) for source in self.sources], weights, how, self.density, self.seed)
        self.changed += found
        return found


def place_of(name: str) -> str:
    """The layer that a parameter belongs to."""
    return name.rpartition(".")[0]


def combined(sources: Sequence[Callable[[], Layer]], weights: Sequence[float], how: str, density: float, seed: int) -> Layer:
    """One change of each tensor of a layer from those of several sources. Where signs are compared each source is asked for its own twice, so that one at a time is held."""
    bounds: dict[tuple[int, str], Tensor] = {}  # finding them is most of the work

    def parts() -> Iterator[tuple[str, Tensor, float]]:
        for number, (source, weight) in enumerate(zip(sources, weights, strict=True)):
            for name, part in source().items():
                if how.startswith("dare"):
                    part = dropped(part, density, named_generator(seed, f"{name}:{number}"))
                if how == "ties":
                    if (number, name) not in bounds:
                        bounds[number, name] = bound_of(part, density)
                    part = part.where(part.abs() >= bounds[number, name], 0.0)
                yield name, part * weight, abs(weight)

    total: Layer = {}
    for name, part, _ in parts():
        total[name] = total[name].add_(part) if name in total else part
    return agreeing(total, parts, sum(map(abs, weights))) if how.endswith("ties") else total


def agreeing(total: Layer, parts: Callable[[], Iterator[tuple[str, Tensor, float]]], weight_of_all: float) -> Layer:
    """The mean, by weight, of those entries of ``parts`` (name, weighted change, weight) whose sign is that of their sum ``total``, times the weight of all."""
    found: Layer = {name: torch.zeros_like(value) for name, value in total.items()}
    shares: Layer = {name: torch.zeros_like(value) for name, value in total.items()}
    for name, part, weight in parts():
        agrees = (part.sign() == total[name].sign()) & (part != 0)
        found[name] += part * agrees
        shares[name] += agrees * weight
    return {name: value.div_(shares[name].clamp_(min=1e-12)).mul_(weight_of_all) for name, value in found.items()}


def bound_of(part: Tensor, density: float) -> Tensor:
    """The least magnitude among the share ``density`` of the entries whose magnitude is largest."""
    kept = max(1, round(part.numel() * density))
    return part.abs().flatten().kthvalue(part.numel() - kept + 1).values


def dropped(part: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """A random share ``density`` of the entries, scaled up to the same expectation; the others zero."""
    kept = torch.rand(part.shape, generator=generator) < density
    return torch.where(kept.to(part.device), part / density, torch.zeros_like(part))


def thin(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best product B [out, rank] · A [rank, in] of a change [out, in] (truncated singular values)."""
    left, values, right = torch.linalg.svd(change.float(), full_matrices=False)
    rank = min(rank, len(values))
    root = values[:rank].sqrt()
    return left[:, :rank] * root, root[:, None] * right[:rank]
