"""Decoding with a cache gives what a full forward pass gives, whatever the rows' lengths."""

from __future__ import annotations

import pytest
import torch
from inference_model import make_model

from luban.inference.cache import KeyValueCache

KINDS = {
    "llama": {},
    "one key head": {"key_value_heads": 1},
    "every head its own": {"key_value_heads": 4},
    "qwen3": {"architecture": "qwen3", "head_dim": 16},
    "mistral, sliding": {"architecture": "mistral", "sliding_window": 4},
    "qwen2, mixed": {"architecture": "qwen2", "sliding_window": 3, "layer_types": ["sliding_attention", "full_attention"]},
    "yarn": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}},
}
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-5}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_ragged_rows_decode_as_full_passes(kind, dtype):
    model = make_model(dtype, **KINDS[kind])
    generator = torch.Generator().manual_seed(2)
    texts = [torch.randint(0, 259, (length,), generator=generator) for length in (20, 14, 17)]
    prompts = [9, 3, 9]
    full = [model(text[None])[0] for text in texts]

    cache = KeyValueCache(model, slots=5, maximum=24)
    for block in (*cache.keys, *cache.values):
        block[1:4].uniform_(-9, 9)  # what earlier requests may have left
    padded = torch.zeros(3, 9, dtype=torch.long)
    for row, (text, size) in enumerate(zip(texts, prompts, strict=True)):
        padded[row, :size] = text[:size]
    hidden = model(padded, cache=cache.rows(1, 3))
    for row, size in enumerate(prompts):
        cache.advance(1 + row, size)
        torch.testing.assert_close(hidden[row, :size], full[row][:size], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
    for offset in range(8):
        tokens = torch.stack([text[size + offset] for text, size in zip(texts, prompts, strict=True)])[:, None]
        hidden = model(tokens, cache=cache.rows(1, 3))
        for row, size in enumerate(prompts):
            cache.advance(1 + row, 1)
            torch.testing.assert_close(hidden[row, 0], full[row][size + offset], atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_prompt_read_in_pieces_is_the_prompt(kind):
    """Several tokens after others, for rows of equal and of different lengths."""
    model = make_model(torch.float64, **KINDS[kind])
    texts = torch.randint(0, 259, (2, 20), generator=torch.Generator().manual_seed(4))
    full = model(texts)
    for starts in ((6, 6), (2, 7)):
        cache = KeyValueCache(model, slots=2, maximum=30)
        for row, start in enumerate(starts):
            model(texts[row : row + 1, :start], cache=cache.rows(row, 1))
            cache.advance(row, start)
        pieces = torch.stack([texts[row, start : start + 5] for row, start in enumerate(starts)])
        hidden = model(pieces, cache=cache.rows(0, 2))
        for row, start in enumerate(starts):
            torch.testing.assert_close(hidden[row], full[row, start : start + 5], atol=1e-9, rtol=1e-9)


@torch.inference_mode()
def test_a_moved_slot_goes_on_where_it_was():
    model = make_model(torch.float64)
    text = torch.randint(0, 259, (1, 12), generator=torch.Generator().manual_seed(4))
    full = model(text)
    cache = KeyValueCache(model, slots=3, maximum=16)
    model(text[:, :8], cache=cache.rows(2, 1))
    cache.advance(2, 8)
    cache.move(2, 0)
    assert cache.lengths == [8, 0, 0]
    hidden = model(text[:, 8:9], cache=cache.rows(0, 1))
    torch.testing.assert_close(hidden[0, 0], full[0, 8], atol=1e-9, rtol=1e-9)
