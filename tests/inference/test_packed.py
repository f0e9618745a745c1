"""A decoder laid out for single tokens says what the decoder says, and is made anew when the weights change."""

from __future__ import annotations

import pytest
import torch
from inference_model import make_model, write_tokenizer
from test_cache import KINDS, TOLERANCE

from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.foundation.config import build
from luban.inference import packed as module
from luban.inference.cache import KeyValueCache
from luban.inference.generate import LoadedModel, generate
from luban.inference.packed import PackedDecoder, Panels
from luban.inference.sampling import SamplingConfig
from luban.models.huggingface import save_model

WIDE = {"heads": 6, "key_value_heads": 6, "hidden_size": 384, "head_dim": 112, "architecture": "qwen3", "feed_forward_size": 344}  # several panels, filled up


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", [*KINDS.values(), {"architecture": "qwen2", "tied_embeddings": False}, WIDE], ids=str)
@torch.inference_mode()
def test_steps_are_full_passes(kind, dtype):
    model = make_model(torch.float64, **kind)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.uniform_(0.2, 1.2, generator=torch.Generator().manual_seed(3))
    texts = torch.randint(0, 259, (3, 20), generator=torch.Generator().manual_seed(2))
    expected = model(texts)
    model.to(dtype)
    packed = PackedDecoder(model)
    cache = KeyValueCache(model, slots=5, maximum=24)
    held = [9, 3, 9]
    model(texts[:, :9], cache=cache.rows(1, 3))
    for row, size in enumerate(held):
        cache.advance(1 + row, size)
    scale = expected.abs().max()
    for step in range(8):
        places = torch.tensor(held) + step
        hidden = packed(texts.gather(1, places[:, None]), cache=cache.rows(1, 3))[:, 0]
        wanted = expected[torch.arange(3), places]
        torch.testing.assert_close(hidden.double() / scale, wanted / scale, atol=TOLERANCE[dtype], rtol=TOLERANCE[dtype])
        torch.testing.assert_close(packed.logits(hidden), model.logits(hidden), atol=float(TOLERANCE[dtype] * scale), rtol=TOLERANCE[dtype])
        for row in range(3):
            cache.advance(1 + row, 1)


@pytest.mark.parametrize(("sizes", "width"), [((7,), None), ((1000,), None), ((96, 32), 32), ((320, 640), 320), ((5, 5), None)])
def test_panels_are_the_product(sizes, width):
    generator = torch.Generator().manual_seed(0)
    matrices = [(torch.randn(size, 24, dtype=torch.float64, generator=generator), bias) for size, bias in zip(sizes, (torch.ones(sizes[0], dtype=torch.float64), None), strict=False)]
    panels = Panels(matrices, width)
    states = torch.randn(3, 24, dtype=torch.float64, generator=generator)
    made, at = panels(states), 0
    for weight, bias in matrices:
        count = -(-len(weight) // panels.panels.shape[2])
        joined = made[at : at + count].transpose(0, 1).reshape(3, -1)
        torch.testing.assert_close(joined[:, : len(weight)], torch.nn.functional.linear(states, weight, bias))
        assert not joined[:, len(weight) :].any()
        at += count
    assert at == len(made)


def test_a_loaded_model_packs_for_several_texts_and_again_when_it_changed(model, tmp_path, monkeypatch):
    save_model(model, tmp_path)
    write_tokenizer(tmp_path)
    loaded = LoadedModel.load(tmp_path, device="cpu")
    settings = SamplingConfig(temperature=0, maximum_tokens=12, stop_at_end=False)
    prompts = ["你好", "x", "To be"]
    plain = [one.text for one in generate(loaded.model, loaded.tokenizer, prompts, settings)]
    assert loaded.generate(prompts[0], settings) == plain[0] and loaded._packed is None
    assert loaded.generate(prompts, settings) == plain
    first = loaded._packed
    assert loaded.generate(prompts, settings) == plain and loaded._packed is first
    with torch.no_grad():
        loaded.model.embedding.weight.normal_(generator=torch.Generator().manual_seed(5))
    changed = [one.text for one in generate(loaded.model, loaded.tokenizer, prompts, settings)]
    assert changed != plain and loaded.generate(prompts, settings) == changed and loaded._packed is not first
    assert LoadedModel(loaded.model, loaded.tokenizer)._laid_out() is None
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    assert not PackedDecoder.suits(loaded.model)


def test_other_models_stay_as_they_are():
    model = make_model()
    assert PackedDecoder.suits(model)
    assert not PackedDecoder.suits(make_model(torch.bfloat16))
    attach(model, build(NAMES["lora"], {"method": "lora", "rank": 2}), seed=0)
    assert not PackedDecoder.suits(model)
