"""Gradient norms by layer: which one vanishes or explodes. The norms of the parameters are by-products of clipping, so they cost nothing until they are read."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor, nn

from luban.foundation.console import warn
from luban.training.config import GuardsConfig
from luban.training.events import Events
from luban.training.optimizers import layer_depths
from luban.training.run import Run
from luban.training.spikes import TO_DEVIATIONS

Norms = tuple[list[nn.Parameter | str], Tensor]  # parameters, or the names of those that other ranks hold, and [parameters] the norm of each one's gradient before clipping
WINDOW, FEWEST = 64, 16  # steps whose norms say what is usual; before there are so many nothing is unusual
LEAST = 0.2  # a deviation of the logarithm is taken to be at least this: a fifth up or down is nothing
NAMED = 5  # layers in a message
APART = 1e5  # a layer whose norm is so many times smaller or larger than the middle one's


class LayerWatch:
    """Names layers when the gradient's norm leaves its band, and every so many steps those that are far from the others."""

    def __init__(self, run: Run, config: GuardsConfig, folder: Path, log: Callable[[int, str, dict[str, float]], None]):
        self.config, self.log, self.events = config, log, Events(folder)
        depths, top = layer_depths(run.model), run.model.depth + 1
        self.layers: dict[nn.Parameter | str, str] = {parameter: _label(depths[name], top) for parameter, name in run.engine.optimizer.names.items()}
        if elsewhere := run.engine.layout.learning_elsewhere:
            depths = layer_depths(run.engine.layout.skeleton)
            self.layers |= {name: _label(depths[name], top) for name in elsewhere}
        self.forget()

    def forget(self) -> None:
        self.known: deque[float] = deque(maxlen=WINDOW)

    def look(self, step: int, figures: Mapping[str, float], norms: Norms) -> None:
        """Look at a step that has been made."""
        if self.config.layers_every and step % self.config.layers_every == 0:
            self._look_at_layers(step, norms)
        norm = figures["gradient_norm"]
        if not self.config.layers_threshold or not math.isfinite(norm):
            return
        here = math.log(max(norm, 1e-30))
        if len(self.known) >= FEWEST:
            usual = statistics.median(self.known)
            spread = max(LEAST, TO_DEVIATIONS * statistics.median(abs(value - usual) for value in self.known))
            if abs(here - usual) > self.config.layers_threshold * spread:
                self._speak(step, "gradient_exploded" if here > usual else "gradient_vanished", norm, math.exp(usual), norms)
        self.known.append(here)

    def _look_at_layers(self, step: int, norms: Norms) -> None:
        found = self.by_layer(norms)
        self.log(step, "layers", found)
        middle = statistics.median(found.values())
        if far := {name: value for name, value in found.items() if not middle / APART <= value <= middle * APART}:
            warn("step {step}: the gradients of {layers} are far from those of the other layers", step=step, layers=", ".join(f"{name} ({value:.1e})" for name, value in far.items()))
            self.events.add("layers_apart", step, layers=far, middle=middle)

    def _speak(self, step: int, event: str, norm: float, usual: float, norms: Norms) -> None:
        layers = self.worst(norms, smallest=norm < usual)
        warn("step {step}: the gradient norm is {norm:.3g}, usually {usual:.3g}; by layer: {layers}", step=step, norm=norm, usual=usual, layers=", ".join(f"{name} {value:.2g}" for name, value in layers.items()))
        self.events.add(event, step, gradient_norm=norm, usual=usual, layers=layers)

    def by_layer(self, norms: Norms) -> dict[str, float]:
        """Norm of each layer's gradient."""
        squares: dict[str, float] = {}
        for parameter, norm in zip(norms[0], norms[1].tolist(), strict=True):
            layer = self.layers.get(parameter, "others")
            squares[layer] = squares.get(layer, 0.0) + norm * norm
        return {layer: math.sqrt(square) for layer, square in squares.items()}

    def worst(self, norms: Norms, smallest: bool = False) -> dict[str, float]:
        """The layers with the largest norms, or the smallest; what is not finite comes first."""
        found = self.by_layer(norms)
        order = sorted(found, key=lambda name: (math.isfinite(found[name]), found[name] if smallest else -found[name]))
        return {name: found[name] for name in order[:NAMED]}


def _label(depth: int, top: int) -> str:
    return "embeddings" if depth == 0 else "head" if depth == top else f"layer {depth - 1}"
