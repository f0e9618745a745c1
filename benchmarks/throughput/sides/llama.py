"""The shape as transformers writes it."""

from __future__ import annotations

from shapes import Shape
from transformers import LlamaConfig


def config(shape: Shape) -> LlamaConfig:
    return LlamaConfig(
        hidden_size=shape.width, intermediate_size=shape.feed_forward, num_hidden_layers=shape.layers, num_attention_heads=shape.heads, num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary, max_position_embeddings=shape.sequence, tie_word_embeddings=True,
    )  # fmt: skip
