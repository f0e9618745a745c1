"""Models that keep something else than keys and values write what full passes say, one by one, side by side and in beams."""

from __future__ import annotations

import itertools

import pytest
import torch
import transformers
from inference_model import make_model

from luban.inference.cache import KeyValueCache, new_cache
from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.generate import generate
from luban.inference.scoring import score_documents
from luban.inference.seq2seq import answers_from, generate_from
from luban.models.families import build_model
from luban.models.huggingface import load_model
from luban.models.lstm_shape import LstmShapeConfig
from luban.models.moe_shape import MixtureShapeConfig
from luban.models.recurrent_shape import RecurrentShapeConfig

PLAIN = {"vocabulary_size": 259, "layers": 2, "maximum_positions": 96, "initializer": "normal", "initializer_deviation": 0.4}
SHAPES = {
    "lstm": LstmShapeConfig(**PLAIN, hidden_size=16, cell_size=24),
    "gru": LstmShapeConfig(**PLAIN, hidden_size=16, cell="gru"),
    "mixtral": MixtureShapeConfig(**PLAIN, hidden_size=32, heads=4, key_value_heads=2, feed_forward_size=24),
    "qwen2_moe": MixtureShapeConfig(**PLAIN, architecture="qwen2_moe", hidden_size=32, heads=4, feed_forward_size=24, experts_per_token=3),
}
PROMPTS = [list(b"To be"), list(b"a"), list(b"or not to be, that is"), list(b"the question: whether"), list(b"To be")]


@torch.inference_mode()
def greedy(model, prompt: list[int], count: int) -> list[int]:
    ids: list[int] = []
    while len(ids) < count:
        ids.append(int(model.logits(model(torch.tensor([prompt + ids]))[:, -1]).argmax()))
    return ids


@pytest.mark.parametrize("name", SHAPES)
def test_the_engine_writes_what_full_passes_say(name, tokenizer):
    """Prompts of different lengths read side by side; fewer slots than prompts, so that states are moved."""
    model = build_model(SHAPES[name]).initialize(1).eval()
    settings = SamplingConfig(temperature=0, maximum_tokens=9, stop_at_end=False)
    found = [answer.ids for answer in generate(model, tokenizer, PROMPTS, settings, slots=3)]
    assert found == [greedy(model, prompt, 9) for prompt in PROMPTS]
    nats = [total for total, _ in score_documents(model, PROMPTS, sequence_length=40)]
    for prompt, total in zip(PROMPTS, nats, strict=True):
        chances = model.logits(model(torch.tensor([prompt])))[0, :-1].log_softmax(-1)
        assert total == pytest.approx(-chances.gather(1, torch.tensor(prompt[1:])[:, None]).sum().item(), abs=1e-3)


def test_who_brings_no_state_gets_keys_and_values():
    assert isinstance(new_cache(make_model(), 2, 8), KeyValueCache)
    assert not isinstance(new_cache(build_model(SHAPES["lstm"]), 2, 8), KeyValueCache)


def pair(attention: str):
    shape = RecurrentShapeConfig(vocabulary_size=7, layers=1, decoder_layers=2, hidden_size=12, maximum_positions=40, attention=attention, initializer="normal", initializer_deviation=0.8)
    return build_model(shape).initialize(2).eval()


SOURCES = [[3, 4, 5, 6], [1], [2, 6, 1, 1, 5, 4, 2], [5, 5]]


@torch.inference_mode()
def chances(model, source: list[int], text: list[int]) -> torch.Tensor:
    """Log-probabilities [len(text) + 1, vocabulary] by one full pass."""
    return model.logits(model(torch.tensor([[0, *text]]), source=torch.tensor([source])))[0].log_softmax(-1)


@pytest.mark.parametrize("attention", ["additive", "dot"])
def test_a_recurrent_pair_writes_greedily_and_in_beams(attention):
    """Greedy: a full pass for each token. Beams as many as there are texts: the likeliest of all texts, found by trying each."""
    model = pair(attention)
    found = generate_from(model, SOURCES, GenerationConfig(beams=1, temperature=0, maximum_tokens=6), end_ids=[2])
    for source, ids in zip(SOURCES, found, strict=True):
        expected: list[int] = []
        while len(expected) < 6 and 2 not in expected:
            expected.append(int(chances(model, source, expected)[-1].argmax()))
        assert ids == expected
    answers = answers_from(model, SOURCES, GenerationConfig(beams=50, answers=3, maximum_tokens=2, length_penalty=0.0), end_ids=[2])
    for source, best in zip(SOURCES, answers, strict=True):
        scored = {}
        for text in itertools.product(range(7), repeat=2):
            cut = list(text[:1]) if text[0] == 2 else list(text)
            table = chances(model, source, cut)
            scored[tuple(cut)] = sum(table[place, token].item() for place, token in enumerate(cut))
        expected = sorted(scored.items(), key=lambda item: -item[1])[:3]
        assert [tuple(answer.ids) for answer in best] == [ids for ids, _ in expected]
        assert [answer.score for answer in best] == pytest.approx([score for _, score in expected], abs=1e-4)


def test_a_pair_through_transformers_writes_what_transformers_writes(tmp_path):
    config = transformers.PegasusConfig(
        vocab_size=31, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
        max_position_embeddings=40, init_std=1.0, pad_token_id=0, eos_token_id=1, forced_eos_token_id=None,
    )  # fmt: skip
    torch.manual_seed(0)
    theirs = transformers.PegasusForConditionalGeneration(config).eval()
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    for beams in (1, 3):
        found = generate_from(ours, SOURCES, GenerationConfig(beams=beams, temperature=0, maximum_tokens=7, length_penalty=1.0), end_ids=[1])
        for source, ids in zip(SOURCES, found, strict=True):
            expected = theirs.generate(torch.tensor([source]), num_beams=beams, do_sample=False, max_new_tokens=7, length_penalty=1.0)[0, 1:].tolist()
            assert ids == expected


def test_a_decoder_through_transformers_writes_what_transformers_writes(tmp_path, tokenizer):
    torch.manual_seed(0)
    config = transformers.GPTNeoXConfig(
        vocab_size=259, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=96, initializer_range=0.4,
    )  # fmt: skip
    theirs = transformers.GPTNeoXForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path)
    found = generate(load_model(tmp_path), tokenizer, PROMPTS, SamplingConfig(temperature=0, maximum_tokens=8, stop_at_end=False), slots=2)
    for prompt, answer in zip(PROMPTS, found, strict=True):
        expected = theirs.generate(torch.tensor([prompt]), max_new_tokens=8, do_sample=False, eos_token_id=None, pad_token_id=0)[0, len(prompt) :]
        assert answer.ids == expected.tolist()
