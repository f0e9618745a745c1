"""The official client against a real server process; the truth is the same model in this process."""

from __future__ import annotations

import httpx
import openai
import pytest
import torch
from transformers import AutoModelForCausalLM

from luban.inference.generate import LoadedModel

QUESTION = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "床前明月光的下一句？"}]


@pytest.fixture(scope="module")
def client(server) -> openai.OpenAI:
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0)


def test_models(client):
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "luban"
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("gpt-4")


def test_chat_is_what_the_model_says(client, loaded: LoadedModel):
    answer = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=24)
    choice = answer.choices[0]
    assert choice.message.role == "assistant"
    assert choice.message.content == loaded.chat(QUESTION, temperature=0, maximum_tokens=24)
    assert choice.finish_reason == "length"
    prompt = loaded.tokenizer.encode_chat(QUESTION, add_generation_prompt=True)
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (len(prompt), 24, len(prompt) + 24)


def test_content_may_come_in_parts_and_developer_is_system(client):
    plain = client.chat.completions.create(model="tiny", messages=QUESTION, temperature=0, max_tokens=8)
    parts = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "床前明月光"}, {"type": "text", "text": "的下一句？"}]}]
    assert client.chat.completions.create(model="tiny", messages=parts, temperature=0, max_completion_tokens=8).choices[0].message == plain.choices[0].message


def test_chat_stream_joins_to_the_whole_answer(client):
    settings = {"model": "tiny", "messages": QUESTION, "temperature": 1.0, "top_p": 0.9, "seed": 5, "max_tokens": 40}
    whole = client.chat.completions.create(**settings)
    chunks = list(client.chat.completions.create(**settings, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks[:-1]] == [None] * (len(chunks) - 2) + [whole.choices[0].finish_reason]
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks[:-1])
    assert len(chunks) > 10
    without = list(client.chat.completions.create(**settings, stream=True))
    assert without[-1].choices[0].finish_reason and "".join(chunk.choices[0].delta.content or "" for chunk in without) == whole.choices[0].message.content


def test_seed_and_choices(client):
    settings = {"model": "tiny", "prompt": "What is", "temperature": 1.0, "max_tokens": 16}
    first, again, other = (client.completions.create(**settings, seed=seed).choices[0].text for seed in (1, 1, 2))
    assert first == again != other
    three = client.completions.create(**settings, seed=1, n=3)
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert [choice.text for choice in three.choices][:2] == [first, other]
    assert three.usage.completion_tokens == sum(3 * [16])


def test_truncation_settings_reach_the_sampler(client):
    greedy = client.completions.create(model="tiny", prompt="What", temperature=0, max_tokens=12).choices[0].text
    settings = {"model": "tiny", "prompt": "What", "temperature": 2.0, "max_tokens": 12}
    assert client.completions.create(**settings, top_p=1e-6).choices[0].text == greedy
    assert client.completions.create(**settings, extra_body={"top_k": 1}).choices[0].text == greedy
    assert client.completions.create(**settings, extra_body={"min_p": 1.0}).choices[0].text == greedy
    assert client.completions.create(**settings, seed=3, extra_body={"top_k": -1}).choices[0].text == client.completions.create(**settings, seed=3).choices[0].text != greedy
    penalised = client.completions.create(**{**settings, "temperature": 0}, extra_body={"repetition_penalty": 50.0}).choices[0].text
    assert penalised != greedy


def test_stop_strings(client):
    settings = {"model": "tiny", "prompt": "What is", "temperature": 0, "max_tokens": 30}
    text = client.completions.create(**settings).choices[0].text
    stop = text[6:9]
    assert stop.strip()
    for given in (stop, ["\x00never", stop]):
        answer = client.completions.create(**settings, stop=given).choices[0]
        assert (answer.text, answer.finish_reason) == (text[: text.index(stop)], "stop")
        chunks = list(client.completions.create(**settings, stop=given, stream=True))
        assert "".join(chunk.choices[0].text for chunk in chunks) == answer.text
        assert chunks[-1].choices[0].finish_reason == "stop"


def test_log_probabilities_are_those_of_transformers(client, model_folder, loaded: LoadedModel):
    prompt = "To be, or not 春眠"
    ids = loaded.tokenizer.encode(prompt)
    answer = client.completions.create(model="tiny", prompt=ids, max_tokens=5, temperature=0, logprobs=3, echo=True).choices[0]
    logprobs = answer.logprobs
    assert answer.text.startswith(prompt) and len(logprobs.tokens) == len(ids) + 5
    assert logprobs.token_logprobs[0] is None and logprobs.top_logprobs[0] is None
    reference = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    with torch.inference_mode():
        scores = reference(torch.tensor([ids])).logits[0].log_softmax(-1)  # [seq, vocabulary]
    expected = [scores[place, token].item() for place, token in enumerate(ids[1:])]
    assert logprobs.token_logprobs[1 : len(ids)] == pytest.approx(expected, abs=1e-4)
    assert logprobs.token_logprobs[len(ids)] == pytest.approx(scores[-1].max().item(), abs=1e-4)
    for place in range(1, len(ids)):
        best = scores[place - 1].topk(3).values.tolist()
        assert sorted(logprobs.top_logprobs[place].values(), reverse=True)[:3] == pytest.approx(best, abs=1e-4)
    for offset, token in list(zip(logprobs.text_offset, logprobs.tokens, strict=True))[: len(ids)]:
        assert token.startswith("bytes:") or answer.text[offset:].startswith(token)


def test_chat_log_probabilities_spell_the_answer(client):
    settings = {"model": "tiny", "messages": QUESTION, "temperature": 0, "max_tokens": 20, "logprobs": True, "top_logprobs": 2}
    whole = client.chat.completions.create(**settings).choices[0]
    spelled = b"".join(bytes(token.bytes) for token in whole.logprobs.content)
    assert spelled.decode("utf-8", "replace") == whole.message.content
    assert all(token.top_logprobs[0].logprob == token.logprob and len(token.top_logprobs) == 2 for token in whole.logprobs.content)
    chunks = client.chat.completions.create(**settings, stream=True)
    streamed = [token for chunk in chunks if chunk.choices[0].logprobs for token in chunk.choices[0].logprobs.content]
    assert streamed == whole.logprobs.content


def test_prompts_in_all_their_forms(client, loaded: LoadedModel):
    texts = ["What is", "春眠不觉晓"]
    ids = [loaded.tokenizer.encode(text) for text in texts]
    expected = [loaded.generate(text, temperature=0, maximum_tokens=6) for text in texts]
    for prompt in (texts, ids):
        answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=6, n=2)
        assert [choice.text for choice in answer.choices] == [expected[0]] * 2 + [expected[1]] * 2
        assert answer.usage.prompt_tokens == sum(map(len, ids))
    assert client.completions.create(model="tiny", prompt=ids[0], temperature=0, max_tokens=6).choices[0].text == expected[0]
    assert client.completions.create(model="tiny", prompt="", temperature=0, max_tokens=6).usage.prompt_tokens == 1


def test_scoring_without_generating(client):
    answer = client.completions.create(model="tiny", prompt="What is this?", max_tokens=0, logprobs=0, echo=True)
    assert answer.choices[0].text == "What is this?" and answer.usage.completion_tokens == 0
    assert len(answer.choices[0].logprobs.tokens) == answer.usage.prompt_tokens
    chunks = list(client.completions.create(model="tiny", prompt="What is this?", max_tokens=0, logprobs=0, echo=True, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "What is this?"


def test_likelihoods_as_lm_eval_asks_for_them(client, loaded: LoadedModel):
    """lm_eval/models/openai_completions.py, LocalCompletionsAPI: one token is generated and cut off again."""
    contexts, continuations = ["What is", "To be, or"], [" this?", " not to be"]
    encoded = [(loaded.tokenizer.encode(context), loaded.tokenizer.encode(text)) for context, text in zip(contexts, continuations, strict=True)]
    payload = {"prompt": [context + text for context, text in encoded], "temperature": 0, "max_tokens": 1, "logprobs": 1, "seed": 1234, "echo": True}
    answer = client.completions.create(model="tiny", **payload)
    for choice, (context, text) in zip(answer.choices, encoded, strict=True):
        with torch.inference_mode():
            tokens = torch.tensor([context + text])
            scores = loaded.model.logits(loaded.model(tokens))[0].log_softmax(-1)
        expected = sum(scores[len(context) + place - 1, token].item() for place, token in enumerate(text))
        found = choice.logprobs.token_logprobs[len(context) : -1]
        assert len(found) == len(text) and sum(found) == pytest.approx(expected, abs=1e-3)
        greedy = all(scores[len(context) + place - 1].argmax().item() == token for place, token in enumerate(text))
        tops = choice.logprobs.top_logprobs[len(context) : -1]
        assert all(own == max(top.values()) for own, top in zip(found, tops, strict=True)) == greedy


def test_tokenize_and_back(server, loaded: LoadedModel):
    text = "春眠 𠀋 😀 <|im_end|>"
    found = httpx.post(server.url + "/tokenize", json={"model": "tiny", "prompt": text}).json()
    assert found["tokens"] == loaded.tokenizer.encode(text) and found["count"] == len(found["tokens"]) and found["max_model_len"] == 4096
    assert httpx.post(server.url + "/detokenize", json={"tokens": found["tokens"]}).json() == {"prompt": text}
    chat = httpx.post(server.url + "/tokenize", json={"messages": QUESTION}).json()
    assert chat["tokens"] == loaded.tokenizer.encode_chat(QUESTION, add_generation_prompt=True)
