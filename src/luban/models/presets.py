"""Well-known shapes by name, and what a shape costs, from closed forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from luban.foundation.config import build
from luban.foundation.console import bytes_text, count_text
from luban.foundation.errors import ConfigError, nearest
from luban.foundation.messages import t
from luban.models.counts import flops_per_token, key_value_bytes, memory, parameters
from luban.models.families import family_of
from luban.models.shape_base import BaseShapeConfig

_LLAMA2: dict[str, Any] = {"vocabulary_size": 32000, "maximum_positions": 4096, "norm_epsilon": 1e-5, "tied_embeddings": False}
_QWEN3: dict[str, Any] = {
    "architecture": "qwen3",
    "vocabulary_size": 151936,
    "maximum_positions": 40960,
    "rope_theta": 1e6,
    "head_dim": 128,
    "key_value_heads": 8,
}
_GPT2: dict[str, Any] = {"architecture": "gpt2", "vocabulary_size": 50257, "maximum_positions": 1024}
_BERT: dict[str, Any] = {"architecture": "bert", "vocabulary_size": 30522, "maximum_positions": 512}
_ROBERTA: dict[str, Any] = {"architecture": "roberta", "vocabulary_size": 50265, "maximum_positions": 512}
_SMALL_BERT: dict[str, Any] = {"architecture": "bert", "maximum_positions": 512}
_T5: dict[str, Any] = {"architecture": "t5", "vocabulary_size": 32128, "head_dim": 64, "maximum_positions": 512, "end_ids": [1]}
_T5_V1_1: dict[str, Any] = {**_T5, "feed_forward": "gated-gelu", "tied_embeddings": False}
_BART: dict[str, Any] = {
    "architecture": "bart", "vocabulary_size": 50265, "maximum_positions": 1024, "decoder_start_id": 2, "end_ids": [2], "forced_end_id": 2,
}  # fmt: skip
# "Attention is all you need", table 3; Marian's implementation of it.
_TRANSFORMER: dict[str, Any] = {
    "architecture": "marian", "activation": "relu", "scaled_embedding": True, "initializer": "xavier_uniform", "maximum_positions": 1024,
}  # fmt: skip

# The numbers are those of each model's published config.json. The small ones leave the vocabulary to the tokenizer.
PRESETS: Mapping[str, dict[str, Any]] = {
    "tiny": {"layers": 4, "hidden_size": 128, "heads": 4, "key_value_heads": 2, "maximum_positions": 256},
    "small": {"layers": 6, "hidden_size": 384, "heads": 6, "key_value_heads": 2, "maximum_positions": 512},
    "base": {"layers": 12, "hidden_size": 768, "heads": 12, "key_value_heads": 4, "maximum_positions": 2048},
    "smollm2-135m": {
        "vocabulary_size": 49152, "layers": 30, "hidden_size": 576, "heads": 9, "key_value_heads": 3, "feed_forward_size": 1536,
        "maximum_positions": 8192, "rope_theta": 1e5, "norm_epsilon": 1e-5,
    },
    "llama-2-7b": {**_LLAMA2, "layers": 32, "hidden_size": 4096, "heads": 32, "feed_forward_size": 11008},
    "llama-2-13b": {**_LLAMA2, "layers": 40, "hidden_size": 5120, "heads": 40, "feed_forward_size": 13824},
    "llama-2-70b": {**_LLAMA2, "layers": 80, "hidden_size": 8192, "heads": 64, "key_value_heads": 8, "feed_forward_size": 28672},
    "llama-3-8b": {
        "vocabulary_size": 128256, "layers": 32, "hidden_size": 4096, "heads": 32, "key_value_heads": 8, "feed_forward_size": 14336,
        "maximum_positions": 8192, "rope_theta": 5e5, "norm_epsilon": 1e-5, "tied_embeddings": False,
    },
    "qwen2.5-7b": {
        "architecture": "qwen2", "vocabulary_size": 152064, "layers": 28, "hidden_size": 3584, "heads": 28, "key_value_heads": 4,
        "feed_forward_size": 18944, "maximum_positions": 131072, "rope_theta": 1e6, "tied_embeddings": False,
    },
    "qwen3-0.6b": {**_QWEN3, "layers": 28, "hidden_size": 1024, "heads": 16, "feed_forward_size": 3072},
    "qwen3-8b": {**_QWEN3, "layers": 36, "hidden_size": 4096, "heads": 32, "feed_forward_size": 12288, "tied_embeddings": False},
    "mistral-7b": {
        "architecture": "mistral", "vocabulary_size": 32000, "layers": 32, "hidden_size": 4096, "heads": 32, "key_value_heads": 8,
        "feed_forward_size": 14336, "maximum_positions": 32768, "norm_epsilon": 1e-5, "tied_embeddings": False, "sliding_window": 4096,
    },
    "gpt2": {**_GPT2, "layers": 12, "hidden_size": 768},
    "gpt2-medium": {**_GPT2, "layers": 24, "hidden_size": 1024},
    "gpt2-large": {**_GPT2, "layers": 36, "hidden_size": 1280},
    "gpt2-xl": {**_GPT2, "layers": 48, "hidden_size": 1600},
    "bert-tiny": {**_SMALL_BERT, "layers": 2, "hidden_size": 128},
    "bert-mini": {**_SMALL_BERT, "layers": 4, "hidden_size": 256},
    "bert-small": {**_SMALL_BERT, "layers": 4, "hidden_size": 512},
    "bert-base": {**_BERT, "layers": 12, "hidden_size": 768},
    "bert-base-chinese": {**_BERT, "vocabulary_size": 21128, "layers": 12, "hidden_size": 768},
    "bert-large": {**_BERT, "layers": 24, "hidden_size": 1024},
    "roberta-base": {**_ROBERTA, "layers": 12, "hidden_size": 768},
    "roberta-large": {**_ROBERTA, "layers": 24, "hidden_size": 1024},
    "minilm-l6-h384": {**_BERT, "layers": 6, "hidden_size": 384, "heads": 12},
    "t5-tiny": {"architecture": "t5", "layers": 2, "hidden_size": 128, "heads": 4, "maximum_positions": 256},
    "t5-small": {**_T5, "layers": 6, "hidden_size": 512, "heads": 8, "feed_forward_size": 2048},
    "t5-base": {**_T5, "layers": 12, "hidden_size": 768, "heads": 12, "feed_forward_size": 3072},
    "t5-large": {**_T5, "layers": 24, "hidden_size": 1024, "heads": 16, "feed_forward_size": 4096},
    "t5-v1_1-small": {**_T5_V1_1, "layers": 8, "hidden_size": 512, "heads": 6, "feed_forward_size": 1024},
    "t5-v1_1-base": {**_T5_V1_1, "layers": 12, "hidden_size": 768, "heads": 12, "feed_forward_size": 2048},
    "bart-tiny": {"architecture": "bart", "layers": 2, "hidden_size": 128, "heads": 4, "maximum_positions": 256},
    "bart-base": {**_BART, "layers": 6, "hidden_size": 768, "heads": 12, "feed_forward_size": 3072},
    "bart-large": {**_BART, "layers": 12, "hidden_size": 1024, "heads": 16, "feed_forward_size": 4096},
    "transformer-tiny": {**_TRANSFORMER, "layers": 2, "hidden_size": 128, "heads": 4, "maximum_positions": 256},
    "transformer-base": {**_TRANSFORMER, "layers": 6, "hidden_size": 512, "heads": 8, "feed_forward_size": 2048},
    "transformer-big": {**_TRANSFORMER, "layers": 6, "hidden_size": 1024, "heads": 16, "feed_forward_size": 4096, "dropout": 0.3},
    "moe-tiny": {
        "architecture": "qwen3_moe", "layers": 4, "hidden_size": 128, "heads": 4, "key_value_heads": 2, "experts": 8, "experts_per_token": 2,
        "maximum_positions": 256,
    },
    "mixtral-8x7b": {
        "architecture": "mixtral", "vocabulary_size": 32000, "layers": 32, "hidden_size": 4096, "heads": 32, "key_value_heads": 8,
        "feed_forward_size": 14336, "experts": 8, "experts_per_token": 2, "maximum_positions": 32768, "rope_theta": 1e6, "norm_epsilon": 1e-5,
        "tied_embeddings": False, "load_balance_weight": 0.02,
    },
    "qwen1.5-moe-a2.7b": {
        "architecture": "qwen2_moe", "vocabulary_size": 151936, "layers": 24, "hidden_size": 2048, "heads": 16, "feed_forward_size": 5632,
        "experts": 60, "experts_per_token": 4, "expert_size": 1408, "shared_expert_size": 5632, "maximum_positions": 8192, "rope_theta": 1e6,
        "tied_embeddings": False, "load_balance_weight": 0.001,
    },
    "qwen3-30b-a3b": {
        **_QWEN3, "architecture": "qwen3_moe", "layers": 48, "hidden_size": 2048, "heads": 32, "key_value_heads": 4, "feed_forward_size": 6144,
        "experts": 128, "experts_per_token": 8, "expert_size": 768, "tied_embeddings": False, "load_balance_weight": 0.001,
    },
    # Merity et al. 2018 (arXiv:1708.02182), with a projection in the place of a narrower last layer.
    "lstm-small": {"architecture": "luban-lstm", "layers": 3, "hidden_size": 400, "cell_size": 1150, "dropout": 0.4, "maximum_positions": 512},
    "bilstm-small": {"architecture": "luban-bilstm", "layers": 2, "hidden_size": 256, "cell_size": 512, "maximum_positions": 512},
    "recurrent-small": {"architecture": "luban-recurrent", "layers": 1, "hidden_size": 512, "maximum_positions": 256},
}  # fmt: skip


def preset(name: str) -> Any:
    """The shape of a preset. Raises ConfigError with the nearest name for one that is not known."""
    if name not in PRESETS:
        guess = nearest(name, PRESETS)
        raise ConfigError(
            "no preset of a model's shape is called {name!r}",
            "",
            "did you mean {guess}? There are: {known}" if guess else "there are: {known}",
            name=name,
            guess=guess,
            known=", ".join(PRESETS),
        )
    return build(family_of(PRESETS[name].get("architecture", "llama")).shape, PRESETS[name])


def describe(shape: BaseShapeConfig, *, sequence_length: int | None = None, rows: int = 1) -> list[tuple[str, str]]:
    """Parameters, operations a token and memory of a shape as lines (label, text) for people, without building it.

    Memory is for AdamW in mixed precision: float32 weights, gradients and two states, bfloat16 arithmetic.
    """
    shape.require_resolved()
    length = sequence_length or min(shape.maximum_positions, 2048)
    count = parameters(shape)
    training = memory(shape, rows=rows, sequence_length=length, dtype="bfloat16")
    lines = [
        (t("parameters"), f"{count_text(count['total'])} ({count['total']:,})"),
        (t("of these in the embedding"), count_text(count["embedding"] + count["output"])),
        (t("operations a token, training"), count_text(flops_per_token(shape, length))),
        (t("operations a token, reading"), count_text(flops_per_token(shape, length, backward=False))),
        (t("weights in float32 / bfloat16"), f"{bytes_text(4 * count['total'])} / {bytes_text(2 * count['total'])}"),
        (
            t("training: weights, gradients, optimizer"),
            bytes_text(training["weights"] + training["gradients"] + training["optimizer"] + training["casts"]),
        ),
        (t("training: activations of {rows} rows of {length} tokens", rows=rows, length=length), bytes_text(training["activations"])),
    ]
    if shape.kind != "encoder":
        lines.append((t("key-value cache of 1,000 tokens in bfloat16"), bytes_text(key_value_bytes(shape, 1000, "bfloat16"))))
    return lines
