"""Continuous batching: many at once is the same as each alone, and every text ends where it should."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inference_model import make_model

from luban.foundation.errors import ConfigError
from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine
from luban.inference.generate import generate
from luban.inference.sampling import sample, uniform
from luban.inference.text import StopMatcher

PROMPTS = [list(b"To be"), list(b"a"), list(b"or not to be, that is"), list(b"the question: whether")]


@torch.inference_mode()
def brute_force(model, tokenizer, prompt: list[int], config: SamplingConfig) -> list[int]:
    """One token after another, each from a full forward pass."""
    ids: list[int] = []
    while len(ids) < config.maximum_tokens:
        logits = model.logits(model(torch.tensor([prompt + ids]))[:, -1])
        seen = torch.zeros(logits.shape, dtype=torch.bool)
        seen[0, prompt + ids] = True
        ids.append(int(sample(logits, [config], [uniform(config.seed, len(ids))], seen)[0]))
        if ids[-1] in tokenizer.stop_ids:
            break
    return ids


SETTINGS = [
    SamplingConfig(temperature=0, maximum_tokens=15, seed=0),
    SamplingConfig(maximum_tokens=25, seed=3),
    SamplingConfig(temperature=1.5, top_p=0.9, maximum_tokens=30, seed=4),
    SamplingConfig(top_k=5, repetition_penalty=1.5, maximum_tokens=8, seed=5),
    SamplingConfig(temperature=0, repetition_penalty=1.3, maximum_tokens=20, seed=6),
]


@pytest.fixture
def eager(tokenizer):
    """The tokenizer with a dozen more tokens that end a text, so that a random model often ends one."""
    changed = copy.copy(tokenizer)
    changed.stop_ids = [*tokenizer.stop_ids, *range(0, 24, 2)]
    return changed


def test_many_at_once_are_the_same_as_each_alone(model, eager):
    """More requests than slots, of different lengths and settings, coming and going: each answer is its own."""
    chooser = random.Random(0)
    jobs = [(chooser.choice(PROMPTS), chooser.choice(SETTINGS).updated(seed=index)) for index in range(23)]
    engine = Engine(model, eager, slots=5)
    requests = []
    for index, (prompt, config) in enumerate(jobs):
        requests.append(engine.submit(prompt, config))
        if index % 3 == 0:
            engine.step()
    engine.run()
    assert engine.idle and engine.cache.lengths == [0] * 5
    assert {request.finish_reason for request in requests} == {"stop", "length"}
    for request, (prompt, config) in zip(requests, jobs, strict=True):
        assert request.ids == brute_force(model, eager, prompt, config)
        assert request.finish_reason == ("stop" if request.ids[-1] in eager.stop_ids else "length")
    assert engine.generated_tokens == sum(len(request.ids) for request in requests)
    assert engine.prompt_tokens == sum(len(prompt) for prompt, _ in jobs)


def test_the_token_that_ends_a_text_is_no_part_of_it(model, eager):
    config = SamplingConfig(temperature=2.0, maximum_tokens=60, seed=1)
    ended = [answer for answer in generate(model, eager, PROMPTS, config) if answer.finish_reason == "stop"]
    assert ended
    for answer in ended:
        assert answer.ids[-1] in eager.stop_ids and not set(answer.ids[:-1]) & set(eager.stop_ids)
        assert answer.text == eager.decode(answer.ids[:-1])
    full = generate(model, eager, PROMPTS, config.updated(stop_at_end=False))
    assert all(len(answer.ids) == 60 for answer in full)


@pytest.mark.parametrize("kind", [{"architecture": "mistral", "sliding_window": 4}, {"architecture": "qwen3"}])
def test_other_families(kind, tokenizer):
    model = make_model(**kind)
    config = SETTINGS[1]
    answers = generate(model, tokenizer, PROMPTS, config, slots=3)
    assert [answer.ids for answer in answers] == [brute_force(model, tokenizer, prompt, config) for prompt in PROMPTS]


def test_a_seed_repeats_an_answer_and_none_does_not(model, tokenizer):
    config = SamplingConfig(maximum_tokens=20, stop_at_end=False)
    first, second = (generate(model, tokenizer, ["x"], config)[0].ids for _ in range(2))
    assert first != second
    seeded = config.updated(seed=9)
    assert generate(model, tokenizer, ["x", "x"], seeded)[0].ids == generate(model, tokenizer, ["y", "x", "z"], seeded)[1].ids


def test_pieces_joined_are_the_text(model, tokenizer):
    """The random model writes bytes that are no UTF-8; the stream says the same as decoding at once."""
    for seed in range(5):
        pieces: list[str] = []
        engine = Engine(model, tokenizer, slots=1)
        request = engine.submit(
            PROMPTS[0], SamplingConfig(maximum_tokens=40, seed=seed), lambda _, piece, pieces=pieces: pieces.append(piece)
        )
        engine.run()
        assert "".join(pieces) == request.text == tokenizer.decode(request.ids)
        assert len(pieces) == len(request.ids)


class Scripted(torch.nn.Module):
    """A model that writes a given text: the next token after position p is the p-th of the script."""

    takes_prefix, head = False, None

    def __init__(self, script: list[int], maximum: int = 4000):
        super().__init__()
        self.shape = make_model().shape.updated(maximum_positions=maximum)
        self.longest_text = maximum
        self.script = torch.tensor(script)
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.device, self.dtype, self.states_dtype = torch.device("cpu"), torch.float32, torch.float32

    def forward(self, tokens, *, cache):
        empty = torch.zeros(len(tokens), self.shape.key_value_heads, tokens.shape[1], self.shape.head_dim)
        cache.update(0, empty, empty)
        return cache.positions(tokens.shape[1])[..., None].float()

    def logits(self, hidden):
        return torch.nn.functional.one_hot(self.script[hidden[..., 0].long()], 259).float() * 9


def written(script: list[int], tokenizer, **config) -> tuple[list[str], object]:
    pieces: list[str] = []
    engine = Engine(Scripted(script), tokenizer, slots=2)
    plain = {"temperature": 0, "maximum_tokens": len(script), **config}
    request = engine.submit([65], SamplingConfig(**plain), lambda _, piece: pieces.append(piece))
    engine.run()
    return pieces, request


RARE = "𠮷野家的𪚥龘与👩‍👩‍👧‍👦🇨🇳，café ñ 𝔘𝔫𝔦 — 你好！"


def test_rare_characters_and_emoji_stream_whole(tokenizer):
    """A character of four bytes, each a token, appears once it is whole, and never as a replacement character."""
    pieces, request = written(tokenizer.encode(RARE), tokenizer)
    assert "".join(pieces) == request.text == RARE
    assert not any("\ufffd" in piece for piece in pieces)
    assert [piece for piece in pieces if piece] == list(RARE)


def test_a_cut_character_is_shown_at_the_end_as_decoding_shows_it(tokenizer):
    ids = tokenizer.encode("好𠮷")[:-1]
    pieces, request = written(ids, tokenizer)
    assert "".join(pieces) == request.text == tokenizer.decode(ids) == "好\ufffd"


@pytest.mark.parametrize("stop", [["END"], ["好的"], ["𠮷"], ["nothing", "D of"], ["END", "ENE"], ["EN 𠮷", "EN"]])
def test_stop_strings_end_the_text_and_are_never_shown(stop, tokenizer):
    text = "E EN 𠮷 is 好的 the END of ENE"
    found = min(text.find(one) for one in stop if one in text)
    pieces, request = written(tokenizer.encode(text), tokenizer, stop=stop)
    assert request.finish_reason == "stop"
    assert request.text == text[:found] == "".join(pieces)


def test_what_was_held_back_comes_at_the_end(tokenizer):
    pieces, request = written(tokenizer.encode("it is the EN"), tokenizer, stop=["END"])
    assert request.text == "it is the EN" and request.finish_reason == "length"
    assert pieces[-3:] == [" ", "", "EN"]
    end = tokenizer.stop_ids[0]
    _, request = written([*tokenizer.encode("it is the EN"), end, 65], tokenizer, stop=["END"])
    assert request.text == "it is the EN" and request.finish_reason == "stop" and request.ids[-1] == end


@settings(max_examples=300, deadline=None)
@given(st.lists(st.text("ab", max_size=3), max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_the_stop_matcher_against_searching_the_whole_text(pieces, stops):
    """Ends at the stop string that is complete first, as one who reads piece by piece can know."""
    matcher = StopMatcher(stops)
    shown, whole = "", ""
    for piece in pieces:
        shown += matcher.push(piece)
        whole += piece
        assert whole.startswith(shown) and not any(stop in shown for stop in stops)
        if matcher.stopped:
            break
    if matcher.stopped:
        assert shown == whole[: min(whole.find(stop) for stop in stops if stop in whole)]
        assert matcher.push("more") == matcher.flush() == ""
    else:
        assert shown + matcher.flush() == whole and not any(stop in whole for stop in stops)


def test_the_context_limits_prompt_and_answer(model, tokenizer):
    engine = Engine(model, tokenizer, slots=2, maximum_length=20)
    request = engine.submit([65] * 15, SamplingConfig(maximum_tokens=50, stop_at_end=False))
    full = engine.submit([65] * 19, SamplingConfig(maximum_tokens=50, stop_at_end=False))
    engine.run()
    assert len(request.ids) == 5 and len(full.ids) == 1 and request.finish_reason == full.finish_reason == "length"
    with pytest.raises(ConfigError, match="20 tokens, the context 20(.|\n)*19 tokens or fewer"):
        engine.submit([65] * 20, SamplingConfig())
    with pytest.raises(ConfigError, match="empty"):
        engine.submit([], SamplingConfig())
    with pytest.raises(ConfigError, match="token id 259"):
        engine.submit([3, 259], SamplingConfig())
    assert engine.idle


def test_cancelling_frees_the_slot_and_leaves_others_alone(model, tokenizer):
    config = SamplingConfig(maximum_tokens=30, seed=1, stop_at_end=False)
    expected = generate(model, tokenizer, [PROMPTS[1], PROMPTS[2]], config)
    ends: list[str] = []
    engine = Engine(model, tokenizer, slots=2)
    first = engine.submit(PROMPTS[0], config, lambda request, _: ends.append(request.finish_reason) if request.finished else None)
    second = engine.submit(PROMPTS[1], config)
    third = engine.submit(PROMPTS[2], config)
    waiting = engine.submit(PROMPTS[3], config)
    for _ in range(3):
        engine.step()
    assert third.ids == []
    first.cancel()
    waiting.cancel()
    engine.run()
    assert first.finish_reason == waiting.finish_reason == "cancelled" and ends == ["cancelled"]
    assert len(first.ids) == 4 and waiting.ids == []
    assert [second.ids, third.ids] == [answer.ids for answer in expected]


@torch.inference_mode()
def test_log_probabilities_are_the_models_own(model, tokenizer):
    """Of chosen and prompt tokens, in a batch with others that do not ask."""
    engine = Engine(model, tokenizer, slots=3)
    prompt = PROMPTS[2]
    asking = SamplingConfig(temperature=0.5, top_k=3, maximum_tokens=7, seed=1, top_logprobs=4, prompt_logprobs=True, stop_at_end=False)
    request = engine.submit(prompt, asking)
    other = engine.submit(PROMPTS[0], SamplingConfig(maximum_tokens=9))
    none = engine.submit(prompt, asking.updated(maximum_tokens=0, top_logprobs=None))
    engine.run()
    assert not other.logprobs and not other.prompt_logprobs
    assert none.ids == [] and none.text == "" and none.finish_reason == "length"
    whole = torch.tensor([prompt + request.ids])
    expected = model.logits(model(whole))[0].log_softmax(-1)
    scores = request.prompt_logprobs + request.logprobs
    assert [score.id for score in scores] == whole[0].tolist()
    assert scores[0].logprob is None
    for place, score in enumerate(scores[1:]):
        assert score.logprob == pytest.approx(expected[place, score.id].item(), abs=1e-4)
        values, ids = expected[place].topk(4)
        assert [token for token, _ in score.top] == ids.tolist()
        assert [value for _, value in score.top] == pytest.approx(values.tolist(), abs=1e-4)
    assert [score.logprob for score in none.prompt_logprobs] == pytest.approx(
        [score.logprob for score in request.prompt_logprobs], abs=1e-5
    )
