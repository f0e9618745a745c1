"""`depth`, the one dial of a new model, and what `auto` becomes when nothing else is said.

The rules were fitted on small models here (docs/notebook.md) and follow what is customary above: width 48 a layer in small models
and 64 in larger ones (Karpathy's nanochat), heads of 64, feed-forward 8/3 of the width, learning rates of new models that fall with
width and depth so that a rate found on a small model holds for a larger one, batches that grow with about the square root of the tokens read.
"""

from __future__ import annotations

import math

from luban.models.shape import ShapeConfig
from luban.objectives.config import ON_PREFERENCES, ON_TEXT

HEAD = 64


def shape_of_depth(depth: int, vocabulary_size: int, given: ShapeConfig) -> ShapeConfig:
    """A Qwen3-style decoder of ``depth`` layers; fields that ``given`` names itself are kept."""
    width = _multiple(48 * depth, HEAD) if depth < 12 else HEAD * depth
    derived = {
        "architecture": "qwen3",
        "layers": depth,
        "hidden_size": width,
        "heads": width // HEAD,
        "key_value_heads": width // HEAD if depth < 16 else _shared(width // HEAD),
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


def _shared(heads: int) -> int:
    """Heads of keys and values: the divisor of ``heads`` that comes nearest to a quarter of them."""
    return min((count for count in range(1, heads + 1) if heads % count == 0), key=lambda count: abs(math.log(4 * count / heads)))


def depth_for_tokens(tokens: int) -> int:
    """The depth whose parameters are about a fifth of the tokens read (Hoffmann et al., arXiv 2203.15556), from 4 to 32."""
    depth = 4
    while depth < 32 and 20 * 12 * (depth + 1) * (HEAD * (depth + 1)) ** 2 <= tokens:
        depth += 1
    return depth


# Tuning rates beside BERT's. T5 divides nothing in attention and has the scale in its weights: 1e-4 to 3e-4 are customary (transformers' page on T5).
FAMILIES = {"t5": 10, "mt5": 10}


def learning_rates(optimizer: str, width: int, objective: str, from_model: bool, architecture: str = "", depth: int = 4) -> dict[str, float]:
    """Peak rates of AdamW (``learning_rate``), the embeddings, and Muon's matrices: for a new model of text :func:`_new_rates`.

    The others are shares of 3e-3 at width 192, which falls with the square root of the width: a third in going on from a model, in tuning on
    instructions half (small models) to a twentieth (large ones), on preferences :func:`_preference_rates`. On a task what is customary for encoders:
    2e-5 at width 768 (Devlin et al. 2019), as the inverse square of the width around it, times what the family wants (``FAMILIES``).
    """
    narrow = math.sqrt(192 / width)
    if objective in ON_PREFERENCES:
        return _preference_rates(width, objective)
    if objective not in ON_TEXT and objective != "instruction":
        rate = min(1e-3, min(2e-4, 2e-5 * (768 / width) ** 2) * FAMILIES.get(architecture, 1)) if from_model else 1e-3 * narrow
        return {"learning_rate": _two_digits(rate), "embedding_learning_rate": _two_digits(rate), "matrix_learning_rate": _two_digits(0.02 if not from_model else 0.002)}
    if objective != "instruction" and not from_model:
        return _new_rates(optimizer, width, depth)
    share = 1 / 3 if objective != "instruction" else 0.5 if width <= 512 else 0.1 if width <= 1024 else 0.05
    rate = 3e-3 * narrow * share
    embedding = 3e-2 * narrow * share if optimizer == "muon" else rate
    return {"learning_rate": _two_digits(rate), "embedding_learning_rate": _two_digits(embedding), "matrix_learning_rate": _two_digits(0.02 * share)}


def _new_rates(optimizer: str, width: int, depth: int) -> dict[str, float]:
    """Rates of a new model, fitted to one sweep over width 64 to 512 and depth 2 to 16 (benchmarks/transfer.py, docs/notebook.md).

    A step of AdamW moves every weight by about its rate, and what a product of ``width`` such changes adds up to grows with the width: rates fall
    with it (muP: Yang et al. 2022, arXiv:2203.03466). Here that is true of the embeddings too, as they are the output matrix as well.
    Muon's updates have singular values near 1 at any width, by which their rate need not fall (Bernstein & Newhouse 2024, arXiv:2409.20325); that it
    does best by falling with the square root was measured. With depth all layers' changes add up in the stream; from four layers on their rate falls.
    """
    narrow = 192 / width
    if optimizer == "muon":
        rates = {"learning_rate": 3e-3 * math.sqrt(narrow), "embedding_learning_rate": 3e-2 * narrow, "matrix_learning_rate": 0.02 * math.sqrt(narrow * min(1.0, 4 / depth))}
    else:
        rates = {"learning_rate": 1e-3 * narrow, "embedding_learning_rate": 1e-3 * narrow, "matrix_learning_rate": 0.02 * math.sqrt(narrow)}
    return {name: _two_digits(rate) for name, rate in rates.items()}


def _preference_rates(width: int, objective: str) -> dict[str, float]:
    """A gentle push on a finished chat model: a share of pretraining's rate that falls to the 5e-7 at width 4096 with which DPO, KTO and SimPO
    were published. ORPO, which learns the answers as well, takes ten times as much (8e-6 in its paper), at most what instructions take."""
    whole = 3e-3 * math.sqrt(192 / width)
    share = 0.1 if width <= 256 else 0.03 if width <= 512 else 0.005 if width <= 1024 else 0.00077
    if objective == "orpo":
        share = min(10 * share, 0.5)
    rate = _two_digits(whole * share)
    return {"learning_rate": rate, "embedding_learning_rate": rate, "matrix_learning_rate": _two_digits(0.02 * share)}


# How much faster an adapter learns than the whole model would, and its highest rate. Thin matrices: 25 times, which is 5e-4 at BERT's width and 2.5e-4 where
# the whole model takes 1e-5 (as Hu et al. 2021 on RoBERTa; customary at 7B). Single vectors and prompts, of which each number must move much: more. Papers'
# rates that were lower (3e-3 for IA3, ten times for LoRA) left most of the score behind on a few hundred examples (docs/notebook.md).
ADAPTERS = {
    "lora": (25, 3e-3), "dora": (25, 3e-3), "rslora": (10, 3e-3), "pissa": (5, 1e-3), "lora_plus": (2, 5e-4), "adalora": (250, 2e-2), "vera": (300, 5e-2), "ia3": (300, 3e-2),
    "houlsby": (25, 3e-3), "pfeiffer": (25, 3e-3), "bitfit": (20, 5e-3), "prefix": (600, 5e-2), "p_tuning": (250, 5e-2), "prompt": (200, 5e-2),
}  # fmt: skip


def adapter_rates(rates: dict[str, float], method: str) -> dict[str, float]:
    """The rates of full tuning turned into an adapter's."""
    multiple, highest = ADAPTERS[method]
    return {name: value if name == "matrix_learning_rate" else _two_digits(min(value * multiple, highest)) for name, value in rates.items()}


# AdamW's rate times this. Lion: between the third and the tenth of its paper (Chen et al. 2023, arXiv:2302.06675, section 5), as its every update has root mean square 1.
# SGD's updates are as large as the gradients, not as the rate, so its rate is of another kind: about 0.1 where AdamW takes 3e-3 (customary since He et al. 2016); better measured.
# Adafactor's updates are bounded as AdamW's are, so their rates are the same (docs/notebook.md).
SHARES = {"lion": 0.2, "sgd": 30.0}


def optimizer_rates(rates: dict[str, float], optimizer: str) -> dict[str, float]:
    """AdamW's rates turned into another optimizer's; Muon's matrices have their own."""
    share = SHARES.get(optimizer, 1.0)
    return {name: value if name == "matrix_learning_rate" else _two_digits(value * share) for name, value in rates.items()}


def relative_rates(rates: dict[str, float], width: int, objective: str, from_model: bool) -> dict[str, float]:
    """Adafactor's with ``relative_step``, shares of each parameter's size, so that they know no width: 0.01 for a new model (Shazeer & Stern 2018, arXiv:1804.04235, section 8), 0.001 in
    tuning (Raffel et al. 2020, arXiv:1910.10683, section 3.1.2), on preferences as much less as AdamW's."""
    rate = 1e-3 if from_model else 1e-2
    if objective in ON_PREFERENCES:
        rate = 1e-2 * rates["learning_rate"] / (3e-3 * math.sqrt(192 / width))
    return {name: value if name == "matrix_learning_rate" else _two_digits(rate) for name, value in rates.items()}


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
