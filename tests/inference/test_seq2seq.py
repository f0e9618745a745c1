"""Texts from encoder–decoders and decoders: against transformers' generate, full recomputation and, where it can be, the true best text."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
import torch
from inference_model import make_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.inference.cache import KeyValueCache
from luban.inference.config import GenerationConfig
from luban.inference.sampling import distribution
from luban.inference.seq2seq import answers_from, generate_from, stream_from
from luban.inference.steps import completions
from luban.models.base import Model
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model

PLAIN = {"vocabulary_size": 29, "layers": 2, "decoder_layers": 2, "hidden_size": 32, "heads": 4, "maximum_positions": 60, "initializer": "normal"}
FAMILIES = {
    "t5": {"architecture": "t5", "initializer_deviation": 0.9, "end_ids": [1]},
    "bart": {"architecture": "bart", "initializer_deviation": 0.3, "decoder_start_id": 2, "end_ids": [2], "forced_end_id": 2, "forced_begin_id": 5},
    "mbart": {"architecture": "mbart", "initializer_deviation": 0.3, "decoder_start_id": 4, "end_ids": [2, 7]},
    "marian": {"architecture": "marian", "initializer_deviation": 0.3, "scaled_embedding": True, "activation": "relu", "end_ids": [0], "decoder_start_id": 28},
}
SOURCES = [[9, 3, 14, 5, 1], [7], [22, 22, 8], [3, 4, 5, 6, 7, 8, 9, 10, 11]]


def made(name: str, seed: int = 0, end_bias: float = 0.0, **changes: object) -> Model:
    """A random model; with ``end_bias`` it ends its texts sooner."""
    model = build_model(build(family_of(name).shape, {**PLAIN, **FAMILIES[name], **changes})).initialize(seed).eval()
    if end_bias and hasattr(model, "final_logits_bias"):
        with torch.no_grad():
            model.final_logits_bias[0, model.shape.end_ids] = end_bias
    elif end_bias:
        with torch.no_grad():
            model.embedding.weight[model.shape.end_ids] *= 2
    return model


def theirs_of(model: Model, folder) -> torch.nn.Module:
    save_model(model, folder, end_ids=model.shape.end_ids, pad_id=0 if 0 not in model.shape.end_ids else 27)
    return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def padded(sources: list[list[int]]) -> dict[str, torch.Tensor]:
    width = max(len(source) for source in sources)
    tokens = torch.tensor([source + [0] * (width - len(source)) for source in sources])
    mask = torch.tensor([[1] * len(source) + [0] * (width - len(source)) for source in sources])
    return {"input_ids": tokens, "attention_mask": mask}


def until_end(row: list[int], ends: list[int]) -> list[int]:
    return next((row[: place + 1] for place, token in enumerate(row) if token in ends), row)


SEARCHES = [
    {"beams": 4, "answers": 4},
    {"beams": 4, "answers": 2, "length_penalty": 0.0, "early_stopping": "never"},
    {"beams": 3, "answers": 3, "length_penalty": 2.0, "early_stopping": True},
    {"beams": 3, "answers": 1, "length_penalty": -1.0, "no_repeat_ngram": 2, "minimum_tokens": 3},
    {"beams": 5, "answers": 5, "length_penalty": 0.6, "early_stopping": "never", "no_repeat_ngram": 3, "repetition_penalty": 1.3},
]
THEIR_NAMES = {
    "beams": "num_beams", "answers": "num_return_sequences", "no_repeat_ngram": "no_repeat_ngram_size", "minimum_tokens": "min_new_tokens",
    "maximum_tokens": "max_new_tokens",
}  # fmt: skip


def in_their_words(settings: dict) -> dict:
    return {"do_sample": False, **{THEIR_NAMES.get(name, name): value for name, value in settings.items()}}


@pytest.mark.parametrize("name", FAMILIES)
def test_beam_search_finds_the_same_texts_and_scores_as_transformers(name, tmp_path):
    lengths = Counter()
    for seed, search in itertools.product((0, 1), SEARCHES):
        model = made(name, seed, end_bias=2.0)
        theirs = theirs_of(model, tmp_path)
        settings = {**search, "maximum_tokens": 12}
        answers = [answer for group in answers_from(model, SOURCES, GenerationConfig(**settings)) for answer in group]
        expected = theirs.generate(**padded(SOURCES), **in_their_words(settings), return_dict_in_generate=True, output_scores=True)
        assert [answer.ids for answer in answers] == [until_end(row[1:], model.shape.end_ids) for row in expected.sequences.tolist()], (seed, search)
        torch.testing.assert_close(torch.tensor([answer.score for answer in answers]), expected.sequences_scores, atol=1e-4, rtol=1e-4)
        lengths.update(len(answer.ids) for answer in answers)
        assert all(answer.ended == (answer.ids[-1] in model.shape.end_ids) for answer in answers)
    assert len(lengths) > 2, "texts of several lengths, some of them ended"


@pytest.mark.parametrize("name", FAMILIES)
def test_greedy_texts_are_those_of_transformers_and_of_full_recomputation(name, tmp_path):
    for seed in (0, 1, 2):
        model = made(name, seed, end_bias=1.0)
        theirs = theirs_of(model, tmp_path)
        for settings in ({"maximum_tokens": 14}, {"maximum_tokens": 10, "minimum_tokens": 6, "no_repeat_ngram": 2, "repetition_penalty": 1.5}):
            found = generate_from(model, SOURCES, GenerationConfig(**settings))
            expected = theirs.generate(**padded(SOURCES), **in_their_words(settings))
            assert found == [until_end(row[1:], model.shape.end_ids) for row in expected.tolist()]
        assert generate_from(model, SOURCES, GenerationConfig(maximum_tokens=14)) == [recomputed(model, source, 14) for source in SOURCES]


@torch.inference_mode()
def recomputed(model: Model, source: list[int], maximum: int) -> list[int]:
    """One text, everything read anew for each token."""
    shape, text = model.shape, []
    while len(text) < maximum and not (text and text[-1] in shape.end_ids):
        logits = model.logits(model(torch.tensor([[shape.decoder_start_id, *text]]), source=torch.tensor([source])))[0, -1]
        token = int(logits.argmax())
        if not text and shape.forced_begin_id is not None:
            token = shape.forced_begin_id
        elif len(text) == maximum - 1 and shape.forced_end_id is not None:
            token = shape.forced_end_id
        text.append(token)
    return text


@pytest.mark.parametrize("name", ["t5", "marian"])
def test_wide_beams_find_the_best_of_all_texts(name):
    """Five tokens, up to four places: every text is scored, and a beam as wide as all of them finds the best."""
    model = made(name, 3, vocabulary_size=6, decoder_start_id=0, end_ids=[1])
    source = [2, 3, 4]
    scored = {}
    with torch.inference_mode():
        memory = model.encode(torch.tensor([source]))
        for length in (1, 2, 3, 4):
            for text in itertools.product(range(6), repeat=length):
                if 1 in text[:-1] or (length < 4 and text[-1] != 1):
                    continue
                logprobs = model.logits(model(torch.tensor([[0, *text[:-1]]]), memory=memory)).log_softmax(-1)[0]
                scored[text] = float(sum(logprobs[place, token] for place, token in enumerate(text))) / length
    best = sorted(scored, key=scored.get, reverse=True)[:5]
    answers = answers_from(model, [source], GenerationConfig(beams=300, answers=5, maximum_tokens=4, early_stopping="never"))[0]
    assert [tuple(answer.ids) for answer in answers] == best
    assert [answer.score for answer in answers] == pytest.approx([scored[text] for text in best], abs=1e-5)


@pytest.mark.parametrize("name", FAMILIES)
def test_neighbours_and_order_change_nothing(name):
    model = made(name, 1, end_bias=1.0)
    for settings in (GenerationConfig(maximum_tokens=9), GenerationConfig(beams=3, answers=2, maximum_tokens=9), GenerationConfig(temperature=1.0, seed=3, answers=2, maximum_tokens=12)):
        together = answers_from(model, SOURCES, settings)
        alone = [answers_from(model, [source], settings)[0] for source in SOURCES]
        assert [[answer.ids for answer in group] for group in together] == [[answer.ids for answer in group] for group in alone]
        turned = answers_from(model, SOURCES[::-1], settings, rows=1)
        assert [[answer.ids for answer in group] for group in turned] == [[answer.ids for answer in group] for group in together[::-1]]


def test_sampled_tokens_follow_the_distribution():
    model = made("t5", 2)
    settings = GenerationConfig(temperature=0.7, top_k=4, maximum_tokens=1, answers=4000, seed=0)
    answers = answers_from(model, [SOURCES[0]], settings, rows=4000)[0]
    with torch.inference_mode():
        logits = model.logits(model(torch.tensor([[0]]), source=torch.tensor([SOURCES[0]])))[:, -1]
    expected = distribution(logits, [settings.choice()])[0]
    counts = Counter(answer.ids[0] for answer in answers)
    assert 1 < len(counts) <= 4
    for token, probability in enumerate(expected.tolist()):
        assert abs(counts[token] / 4000 - probability) < 0.035
    assert answers[0].score == pytest.approx(float(logits.log_softmax(-1)[0, answers[0].ids[0]]), abs=1e-5), "scores are the model's own"


def test_streaming_gives_the_same_piece_by_piece():
    model = made("marian", 1, end_bias=1.0)
    for settings in (None, GenerationConfig(temperature=1.0, seed=5, maximum_tokens=20)):
        stream = stream_from(model, SOURCES[0], settings)
        first = next(stream)
        assert not torch.is_inference_mode_enabled(), "between steps the caller's mode holds"
        assert [first, *stream] == generate_from(model, SOURCES[:1], settings)[0]
    with pytest.raises(ConfigError, match="cannot be streamed"):
        next(stream_from(model, SOURCES[0], GenerationConfig(beams=2)))


# --------------------------------------------------------------------------------------------------------------- decoders


@pytest.mark.parametrize("seed", [0, 1])
def test_a_decoder_continues_prompts_by_beam_search_as_transformers_does(seed, tmp_path):
    model = make_model(vocabulary_size=41).initialize(seed)
    save_model(model, tmp_path, end_ids=[6], pad_id=0)
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    prompts = [[5, 9, 2, 31], [7], [11, 12, 13, 14, 15, 16, 17]]
    for search in [{"maximum_tokens": 8}, *SEARCHES]:
        settings = {"maximum_tokens": 10, **search}
        groups = answers_from(model, prompts, GenerationConfig(**settings), end_ids=[6])
        for prompt, group in zip(prompts, groups, strict=True):
            tokens = torch.tensor([prompt])
            options = {**in_their_words(settings), "return_dict_in_generate": True, "output_scores": True}
            expected = theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **options)
            assert [answer.ids for answer in group] == [until_end(row[len(prompt) :], [6]) for row in expected.sequences.tolist()]
            if "beams" in search:
                assert [answer.score for answer in group] == pytest.approx(expected.sequences_scores.tolist(), abs=1e-4)


def test_a_decoder_stops_where_its_positions_end():
    model = make_model(vocabulary_size=41, maximum_positions=12)
    texts = generate_from(model, [[1] * 9, [2, 3]], GenerationConfig(maximum_tokens=20))
    assert [len(text) for text in texts] == [3, 10]
    assert [len(text) for text in generate_from(model, [[1] * 9, [2, 3]], GenerationConfig(maximum_tokens=20, beams=2))] == [3, 10]
    with pytest.raises(ConfigError, match="the prompt has 12 tokens"):
        generate_from(model, [[1] * 12])


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_learned_positions_end_and_sinusoids_go_on(name):
    model = made(name, 0, maximum_positions=10, end_ids=[])
    found = generate_from(model, [[3, 4]], GenerationConfig(maximum_tokens=40, beams=2))[0]
    assert len(found) == (10 if name == "bart" else 40)


def test_slots_of_the_decoders_cache_change_places():
    model = make_model()
    cache = KeyValueCache(model, 4, 8)
    tokens = torch.tensor([[1, 2, 3], [4, 5, 0], [6, 0, 0]])
    with torch.inference_mode():
        model(tokens, cache=cache.rows(0, 3))
        for slot, length in enumerate((3, 2, 1)):
            cache.advance(slot, length)
        cache.select([2, 0, 0])
        assert cache.lengths == [1, 3, 3, 0]
        hidden = model(torch.tensor([[7], [8], [9]]), cache=cache.rows(0, 3))
        for row, text in enumerate(([6, 7], [1, 2, 3, 8], [1, 2, 3, 9])):
            torch.testing.assert_close(hidden[row, -1], model(torch.tensor([text]))[0, -1], atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------------------------- what is not possible


def test_what_cannot_be_answered_is_an_error_in_words():
    model = made("t5")
    for sources, words in (([[3], []], "source 2 is empty"), ([[29]], "token id 29"), ([[-1]], "token id -1")):
        with pytest.raises(ConfigError, match=words):
            generate_from(model, sources)
    assert generate_from(model, []) == []
    with pytest.raises(ConfigError, match="does not write texts"):
        generate_from(made("bart").with_head(Head("sequence", "classification", ("a", "b"))), [[3]])


@pytest.mark.parametrize(
    "settings",
    [
        {"beams": 2, "temperature": 1.0}, {"beams": 2, "answers": 3}, {"answers": 2}, {"minimum_tokens": 9, "maximum_tokens": 8}, {"beams": 0},
        {"maximum_tokens": 0}, {"early_stopping": "soon"}, {"top_p": 0}, {"num_beams": 4},
    ],
)  # fmt: skip
def test_settings_that_contradict_are_refused(settings):
    with pytest.raises(ConfigError):
        build(GenerationConfig, settings)


def test_runs_of_tokens_that_came_before():
    assert completions([1, 2, 3, 1, 2], 3) == [3]
    assert completions([1, 2, 1, 3, 1], 2) == [2, 3]
    assert completions([4, 4], 1) == [4]
    assert completions([1], 3) == []


def test_a_saved_model_writes_the_same(tmp_path):
    model = made("bart", 4)
    save_model(model, tmp_path, end_ids=[2], pad_id=1)
    settings = GenerationConfig(beams=3, maximum_tokens=8)
    assert generate_from(load_model(tmp_path), SOURCES, settings) == generate_from(model, SOURCES, settings)


def test_texts_of_one_call_do_not_share_their_chances():
    model = made("t5")
    with torch.no_grad():  # every source gives the same even distribution
        for parameter in model.parameters():
            parameter.zero_()
    settings = GenerationConfig(temperature=1.0, seed=0, maximum_tokens=12)
    sources = [[5, 6, 1], [7, 8, 1], [5, 6, 1]]
    first, second, again = generate_from(model, sources, settings)
    assert first == again != second and generate_from(model, sources[1:2], settings) == [second] == [list(stream_from(model, sources[1], settings))]
