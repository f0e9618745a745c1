"""`depth`, the one dial of a new model, and what `auto` becomes when nothing else is said.

The rules were fitted on small models here (docs/notebook.md) and follow what is customary above: width 48 a layer in small models
and 64 in larger ones (Karpathy's nanochat), heads of 64, feed-forward 8/3 of the width, learning rates that fall with the square
root of the width, batches that grow with about the square root of the tokens read.
"""

from __future__ import annotations

import math

from luban.models.shape import ShapeConfig
from luban.objectives.config import ON_TEXT

HEAD = 64


def shape_of_depth(depth: int, vocabulary_size: int, given: ShapeConfig) -> ShapeConfig:
    """A Qwen3-style decoder of ``depth`` layers; fields that ``given`` names itself are kept."""
    width = _multiple(48 * depth, HEAD) if depth < 12 else HEAD * depth
    derived = {
        "architecture": "qwen3",
        "layers": depth,
        "hidden_size": width,
        "heads": width // HEAD,
        "key_value_heads": width // HEAD if depth < 16 else max(1, width // HEAD // 4),
        "head_dim": HEAD,
        "feed_forward_size": _multiple(width * 8 / 3, 64),
        "maximum_positions": 512 if depth < 8 else 2048,
        "tied_embeddings": depth < 24,
        "initializer": "zero_output",
    }
    kept = given.explicit()
    if "layers" in kept and "hidden_size" not in kept:
        derived["layers"] = kept["layers"]
    for name in ("heads", "key_value_heads", "head_dim", "feed_forward_size"):
        if "hidden_size" in kept and name not in kept:
            derived.pop(name)
    if "heads" in kept:
        for name in ("key_value_heads", "head_dim"):
            derived.pop(name, None)
    elif "hidden_size" in kept:
        derived["heads"] = max(1, kept["hidden_size"] // HEAD)
    return ShapeConfig(**{**derived, **kept, "vocabulary_size": vocabulary_size})


def depth_for_tokens(tokens: int) -> int:
    """The depth whose parameters are about a fifth of the tokens read (Hoffmann et al., arXiv 2203.15556), from 4 to 32."""
    depth = 4
    while depth < 32 and 20 * 12 * (depth + 1) * (HEAD * (depth + 1)) ** 2 <= tokens:
        depth += 1
    return depth


def learning_rates(optimizer: str, width: int, objective: str, from_model: bool) -> dict[str, float]:
    """Peak rates of AdamW (``learning_rate``), the embeddings, and Muon's matrices.

    Muon's rate does not depend on the width (its updates have singular values near 1); AdamW's fall with its square root.
    Going on from a model takes a third of the rates, tuning on instructions half (small models) to a twentieth (large ones), tuning
    on a task what is customary for encoders: 2e-5 at width 768 (Devlin et al. 2019), as the inverse square of the width around it.
    """
    narrow = math.sqrt(192 / width)
    if objective not in ON_TEXT and objective != "instruction":
        rate = min(2e-4, 2e-5 * (768 / width) ** 2) if from_model else 1e-3 * narrow
        return {"learning_rate": _two_digits(rate), "embedding_learning_rate": _two_digits(rate), "matrix_learning_rate": _two_digits(0.02 if not from_model else 0.002)}
    share = 1.0
    if objective == "instruction":
        share = 0.5 if width <= 512 else 0.1 if width <= 1024 else 0.05
    elif from_model:
        share = 1 / 3
    rate = 3e-3 * narrow * share
    embedding = 3e-2 * narrow * share if optimizer == "muon" else rate
    return {"learning_rate": _two_digits(rate), "embedding_learning_rate": _two_digits(embedding), "matrix_learning_rate": _two_digits(0.02 * share)}


def batch_tokens(tokens: int, sequence_length: int, objective: str) -> int:
    """Tokens a step for a run that reads ``tokens``: 2,048 at a million, 0.3 M at ten billion; whole rows."""
    wanted = 2048 * (tokens / 1e6) ** 0.55
    if objective == "instruction":
        wanted = min(wanted, 65536)
    rows = 2 ** round(math.log2(max(1.0, min(wanted, 2**22) / sequence_length)))
    return rows * sequence_length


def _multiple(value: float, of: int) -> int:
    return max(of, of * math.ceil(value / of))


def _two_digits(value: float) -> float:
    return float(f"{value:.2g}")
