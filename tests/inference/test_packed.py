"""A decoder laid out in panels says what the decoder says, each text whatever its neighbours, and is made anew when the weights change."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from inference_model import make_model, write_tokenizer
from test_cache import KINDS

from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.foundation.config import build
from luban.inference import packed as module
from luban.inference.cache import KeyValueCache
from luban.inference.generate import LoadedModel, generate
from luban.inference.packed import PackedDecoder, Panels
from luban.inference.sampling import SamplingConfig
from luban.models.decoder import Decoder
from luban.models.huggingface import save_model

pytestmark = pytest.mark.compiler
WIDE = {"architecture": "qwen3", "hidden_size": 208, "head_dim": 112, "heads": 6, "key_value_heads": 1, "feed_forward_size": 344}  # panels, and rows of them, that are not full
PROMPTS = [9, 3, 24, 1, 9, 7, *[5] * 29]  # more texts than a block of tokens, in any build


def packable(**changes: object) -> Decoder:
    return make_model(**({"hidden_size": 64} | changes))


@pytest.mark.parametrize("kind", [*KINDS.values(), {"architecture": "qwen2", "tied_embeddings": False}, WIDE], ids=str)
@pytest.mark.parametrize("count", [1, 3, len(PROMPTS)])
@torch.inference_mode()
def test_prompts_and_steps_are_full_passes(kind, count, monkeypatch):
    monkeypatch.setattr(module, "TOKENS", 40)  # so that a prompt is read in parts
    model = packable(**kind)
    for parameter in model.parameters():
        if parameter.dim() == 1:  # norms and biases that do something
            parameter.uniform_(0.2, 1.2, generator=torch.Generator().manual_seed(3))
    texts = torch.randint(0, 259, (count, 28), generator=torch.Generator().manual_seed(2))
    packed, cache, held = PackedDecoder(model), KeyValueCache(model, slots=count + 2, maximum=40), PROMPTS[:count]
    exact = deepcopy(model).double()
    expected = exact(texts)  # [rows, seq, dim]
    for block in (*cache.keys, *cache.values):
        block[1 : 1 + count].uniform_(-9, 9)  # what earlier requests may have left
    found = packed(texts[:, : max(held)], cache=cache.rows(1, count, held))
    for row, size in enumerate(held):
        torch.testing.assert_close(found[row, :size].double(), expected[row, :size], rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        cache.advance(1 + row, size)
    for step in range(4):
        places = torch.tensor(held) + step
        found = packed(texts.gather(1, places[:, None]), cache=cache.rows(1, count))[:, 0]
        torch.testing.assert_close(found.double(), expected[torch.arange(count), places], rtol=1e-5, atol=1e-5 * float(expected.abs().max()))
        for row in range(count):
            cache.advance(1 + row, 1)
    torch.testing.assert_close(packed.logits(found).double(), exact.logits(found.double()), rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("rows", [1, 2, 5, 8, 13, 16, 31, 100])
@pytest.mark.parametrize(("sizes", "inputs"), [((7,), 16), ((96, 32, 40), 300), ((1000,), 129)])
def test_panels_are_the_product(sizes, inputs, rows):
    generator = torch.Generator().manual_seed(0)
    group = [(torch.randn(size, inputs, generator=generator) * inputs**-0.5, bias) for size, bias in zip(sizes, (torch.randn(sizes[0], generator=generator), None, None), strict=False)]
    states = torch.randn(rows, inputs, generator=generator)
    expected = torch.cat([F.linear(states.double(), weight.double(), None if bias is None else bias.double()) for weight, bias in group], dim=1)
    torch.testing.assert_close(Panels([group])(states).double(), expected, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_a_text_is_the_same_to_the_last_bit_among_others_and_with_any_number_of_threads():
    model = packable(vocabulary_size=300, layers=3)
    packed, threads = PackedDecoder(model), torch.get_num_threads()
    texts = torch.randint(0, 259, (19, 12), generator=torch.Generator().manual_seed(5))

    def written(rows: list[int], count: int) -> list[torch.Tensor]:
        torch.set_num_threads(count)
        cache = KeyValueCache(model, slots=len(rows), maximum=16)
        made = [packed(texts[rows, :11], cache=cache.rows(0, len(rows)))]
        for slot in range(len(rows)):
            cache.advance(slot, 11)
        made.append(packed(texts[rows, 11:], cache=cache.rows(0, len(rows))))
        torch.set_num_threads(threads)
        return [made[0][rows.index(7)], made[1][rows.index(7)], packed.logits(made[1][:, 0])[rows.index(7)]]

    alone = written([7], 1)
    for rows, count in (([7], 3), ([3, 7], 1), (list(range(19)), 2)):
        assert all(torch.equal(one, other) for one, other in zip(written(rows, count), alone, strict=True))


def test_a_loaded_model_packs_when_it_first_writes_and_again_when_it_changed(tmp_path, monkeypatch):
    save_model(packable(), tmp_path)
    write_tokenizer(tmp_path)
    loaded = LoadedModel.load(tmp_path, device="cpu")
    settings = SamplingConfig(temperature=0, maximum_tokens=12, stop_at_end=False)
    prompts = ["你好", "x", "To be"]
    plain = [one.text for one in generate(loaded.model, loaded.tokenizer, prompts, settings)]
    assert loaded._packed is None and loaded.generate(prompts[0], settings) == plain[0]
    first = loaded._packed
    assert loaded.generate(prompts, settings) == plain and loaded._packed is first is not None
    assert "".join(loaded.stream(prompts[2], settings)) == plain[2]
    monkeypatch.setattr(module, "LONGEST", 2)  # the model reads, the panels write
    assert loaded.generate(prompts, settings) == plain
    with torch.no_grad():
        loaded.model.embedding.weight.normal_(generator=torch.Generator().manual_seed(5))
    changed = [one.text for one in generate(loaded.model, loaded.tokenizer, prompts, settings)]
    assert changed != plain and loaded.generate(prompts, settings) == changed and loaded._packed is not first
    assert LoadedModel(loaded.model, loaded.tokenizer)._laid_out() is None
    monkeypatch.setattr(module, "available_bytes", lambda: 1000)
    assert not PackedDecoder.suits(loaded.model)


def test_other_models_and_machines_without_a_compiler_stay_as_they_are(monkeypatch):
    model = packable()
    assert PackedDecoder.suits(model)
    assert not PackedDecoder.suits(packable(dtype=torch.bfloat16)) and not PackedDecoder.suits(make_model())  # heads of 8 numbers
    monkeypatch.setattr(module, "load", lambda: None)
    assert not PackedDecoder.suits(model)
    monkeypatch.undo()
    attach(model, build(NAMES["lora"], {"method": "lora", "rank": 2}), seed=0)
    assert not PackedDecoder.suits(model)
