"""Closed forms: parameters, floating-point operations and bytes of a model, without building it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from luban.models.families import family_of
from luban.models.shape import ShapeConfig

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


def _of_family(general: Callable[..., Any]) -> Callable[..., Any]:
    """``general`` (of the Llama kind), unless the shape's family has a closed form of the same name in its shape file."""

    @wraps(general)
    def chosen(shape: Any, *arguments: Any, **settings: Any) -> Any:
        return (family_of(shape.architecture).closed_form(general.__name__) or general)(shape, *arguments, **settings)

    return chosen


@_of_family
def parameters(shape: ShapeConfig) -> dict[str, int]:
    """Number of parameters by part, and ``total``.

    ``output`` is zero when the embeddings are tied; ``matrices`` are those that a token is multiplied with: all but
    the embedding's look-up, the norms and the biases (with tied embeddings the output product counts).
    """
    width, inner, vocabulary = shape.hidden_size, shape.feed_forward_size, shape.vocabulary_size
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    attention = 2 * width * queries + 2 * width * keys
    attention_biases = (queries + 2 * keys) * shape.query_bias + width * shape.output_bias
    feed_forward = 3 * width * inner
    feed_forward_biases = (2 * inner + width) * shape.feed_forward_bias
    norms = 2 * width + 2 * shape.head_dim * shape.query_key_norm
    counts = {
        "embedding": vocabulary * width,
        "attention": shape.layers * (attention + attention_biases),
        "feed_forward": shape.layers * (feed_forward + feed_forward_biases),
        "norms": shape.layers * norms + width,
        "output": 0 if shape.tied_embeddings else vocabulary * width,
    }
    counts["total"] = sum(counts.values())
    counts["matrices"] = shape.layers * (attention + feed_forward) + vocabulary * width
    return counts


@_of_family
def flops_per_token(shape: ShapeConfig, sequence_length: int, *, causal: bool = False, backward: bool = True) -> float:
    """Floating-point operations a token in training, forward and backward.

    ``6 M + 12 H sum_l min(T, window_l)`` with M the parameters in ``matrices``, H = heads * head_dim and T the sequence
    length: a multiply-add is two operations, the backward pass twice the forward, and a layer's attention is two products
    of T by H a token (PaLM, arXiv:2204.02311, appendix B). As is customary, the half of the scores that a causal mask
    discards is counted; ``causal=True`` counts only what is seen. ``backward=False`` gives the forward pass: a third.
    """
    forward = 2.0 * parameters(shape)["matrices"]
    for window in shape.windows:
        forward += 4.0 * shape.heads * shape.head_dim * _seen(sequence_length, window, causal)
    return forward * (3 if backward else 1)


def _seen(length: int, window: int | None, causal: bool) -> float:
    """Keys that a query is multiplied with, on average over a sequence."""
    reach = min(length, window or length)
    if not causal:
        return float(reach)
    return (reach * (reach + 1) / 2 + (length - reach) * reach) / length


@_of_family
def key_value_bytes(shape: ShapeConfig, tokens: int, dtype: str = "float32") -> int:
    """Bytes that a cache of keys and values takes for ``tokens`` tokens."""
    return 2 * shape.layers * shape.key_value_heads * shape.head_dim * tokens * BYTES[dtype]


def memory(
    shape: ShapeConfig,
    *,
    rows: int,
    sequence_length: int,
    dtype: str = "float32",
    master_dtype: str = "float32",
    optimizer_states: int = 2,
    recompute: bool = False,
) -> dict[str, int]:
    """Bytes that training takes with ``rows`` sequences at once, by purpose, and their ``total``.

    ``weights`` and ``gradients`` are in ``master_dtype``; where ``dtype`` is narrower (autocast), its ``casts`` of the
    matrices are held too. ``optimizer`` holds ``optimizer_states`` float32 numbers a parameter (AdamW: 2).
    ``activations`` are what the backward pass keeps, see ``activation_elements``.
    """
    count = parameters(shape)
    parts = {
        "weights": count["total"] * BYTES[master_dtype],
        "gradients": count["total"] * BYTES[master_dtype],
        "optimizer": count["total"] * optimizer_states * BYTES["float32"],
        "casts": count["matrices"] * BYTES[dtype] if BYTES[dtype] < BYTES[master_dtype] else 0,
        "activations": int(rows * sequence_length * activation_elements(shape, recompute) * BYTES[dtype]),
    }
    parts["total"] = sum(parts.values())
    return parts


@_of_family
def activation_elements(shape: ShapeConfig, recompute: bool = False) -> float:
    """Numbers a token that the layers keep for the backward pass, without the loss.

    With widths D of the stream, H of all queries, K of all keys and F inside SwiGLU, a layer keeps 6 D (of two norms the
    input, the normalised and the scaled; fused kernels on GPUs keep 4 D), 2 H + 2 K (turned queries and keys, values,
    attention's output) and 4 F (gate, its activation, the other half, the product); query-key norm adds 2 H + 2 K.
    With ``recompute`` a layer keeps its input alone, and one layer at a time is computed again.
    """
    queries, keys = shape.heads * shape.head_dim, shape.key_value_heads * shape.head_dim
    layer = 6 * shape.hidden_size + 2 * queries + 2 * keys + 4 * shape.feed_forward_size
    if shape.query_key_norm:
        layer += 2 * queries + 2 * keys
    kept = shape.layers * shape.hidden_size + layer if recompute else shape.layers * layer
    return kept + 2 * shape.hidden_size
