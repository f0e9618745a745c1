"""Streamed text is the whole text, for characters that are cut into several tokens."""

from __future__ import annotations

import openai
import pytest


@pytest.mark.parametrize("seed", range(6))
def test_rare_characters_and_emoji(scribe, seed):
    client = openai.OpenAI(base_url=scribe.url + "/v1", api_key="none", max_retries=0)
    settings = {"model": "scribe", "messages": [{"role": "user", "content": "写"}], "seed": seed, "temperature": 1.0, "max_tokens": 200 + seed}
    whole = client.chat.completions.create(**settings).choices[0]
    pieces = [chunk.choices[0].delta.content or "" for chunk in client.chat.completions.create(**settings, stream=True)]
    assert "".join(pieces) == whole.message.content
    body = whole.message.content[:-1] if whole.finish_reason == "length" else whole.message.content  # a length may cut a character
    assert set(body) <= {chr(code) for code in (*range(0x1F603, 0x1F610), *range(0x20083, 0x20090), 0x4DB5)}
    assert all(len(piece) <= 1 for piece in pieces[:-1])


def test_a_stop_string_of_rare_characters(scribe):
    client = openai.OpenAI(base_url=scribe.url + "/v1", api_key="none", max_retries=0)
    settings = {"model": "scribe", "prompt": "写", "seed": 3, "temperature": 1.0, "max_tokens": 200, "extra_body": {"min_p": 0.5}}
    texts = [client.completions.create(**{**settings, "seed": seed}).choices[0].text for seed in range(8)]
    seed = max(range(8), key=lambda index: len(texts[index]))
    stop = texts[seed][2:4]
    chunks = list(client.completions.create(**{**settings, "seed": seed}, stop=stop, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == texts[seed][: texts[seed].index(stop)]
    assert chunks[-1].choices[0].finish_reason == "stop"


def test_the_end_of_a_turn_ends_the_answer(scribe):
    client = openai.OpenAI(base_url=scribe.url + "/v1", api_key="none", max_retries=0)
    answers = [client.chat.completions.create(model="scribe", messages=[{"role": "user", "content": "写"}], seed=seed, logprobs=True) for seed in range(12)]
    ended = [answer for answer in answers if answer.choices[0].finish_reason == "stop"]
    assert ended
    for answer in ended:
        choice = answer.choices[0]
        assert "<|im_end|>" not in choice.message.content
        assert answer.usage.completion_tokens == len(choice.logprobs.content) + 1  # the token that ends the turn is counted, not shown
