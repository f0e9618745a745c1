"""Smaller models of the same kind: the rungs from which the loss of a large one is foretold.

A rung has the family, the positions, the vocabulary and about the proportions of the large model. Depth falls with the cube root of the size, but not below four layers, since the step from one
layer to two is no scaling; width and what follows from it do the rest. Sizes are counted without embeddings, which fall with the width alone (Kaplan et al. 2020, arXiv:2001.08361).
"""

from __future__ import annotations

import math
from typing import Any

from luban.models.counts import parameters
from luban.models.shape import ShapeConfig
from luban.planning import dial

SHALLOW = 4  # layers that are kept whatever the size
STEP = 8  # widths are multiples of it
LEAST_HEAD, LEAST_HEADS = 16, 4  # heads are made narrower down to this width rather than fewer than that


def size_of(shape: ShapeConfig) -> int:
    """Parameters without the embedding and the output matrix."""
    counts = parameters(shape)
    return counts["total"] - counts["embedding"] - counts["output"]


def sizes(largest: float, count: int, times: float, ratio: float) -> list[float]:
    """``count`` sizes in a geometric row, the smallest first; the last is a ``times``-th of ``largest``."""
    return [largest / times / ratio**step for step in reversed(range(count))]


def smaller(shape: ShapeConfig, size: float) -> ShapeConfig:
    """The shape of a model of about ``size`` parameters without embeddings that is like ``shape``."""
    layers = max(min(SHALLOW, shape.layers), round(shape.layers * (size / size_of(shape)) ** (1 / 3)))
    found = [_of_width(shape, layers, width) for width in range(2 * STEP, shape.hidden_size + 1, STEP)] or [shape]
    return min(found, key=lambda one: abs(math.log(size_of(one) / size)))


def _of_width(shape: ShapeConfig, layers: int, width: int) -> ShapeConfig:
    head = min(shape.head_dim, max(LEAST_HEAD, width // LEAST_HEADS // STEP * STEP))
    heads = max(1, round(width / head * shape.heads * shape.head_dim / shape.hidden_size))
    groups = max(1, round(heads * shape.key_value_heads / shape.heads))
    while heads % groups:
        groups -= 1
    if shape.architecture == "qwen2":  # its heads fill the width
        heads = groups = max(1, width // head)
        head = width // heads // 2 * 2
        width = head * heads
    inner = max(STEP, STEP * round(shape.feed_forward_size / shape.hidden_size * width / STEP))
    kinds = shape.layer_types[:layers] if shape.layer_types else None
    return shape.updated(layers=layers, hidden_size=width, heads=heads, key_value_heads=groups, head_dim=head, feed_forward_size=inner, layer_types=kinds)


def moved_rates(optimizer: Any, large: ShapeConfig, small: ShapeConfig) -> dict[str, Any]:
    """The optimizer's fields for a rung: what was auto stays so, and a rate that was given for the large model is multiplied by what auto would change."""
    fields = optimizer.explicit()
    rates = [dial.learning_rates(optimizer.name, shape.hidden_size, "causal", False, shape.architecture, shape.layers) for shape in (large, small)]
    for name in ("learning_rate", "embedding_learning_rate", "matrix_learning_rate"):
        if isinstance(fields.get(name), float):
            fields[name] = float(f"{fields[name] * rates[1][name] / rates[0][name]:.4g}")
    return {"name": optimizer.name, **fields}
