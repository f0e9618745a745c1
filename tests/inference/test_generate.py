"""What luban.load returns, and the scoring of texts."""

from __future__ import annotations

import math

import pytest
import torch
from inference_model import make_model, write_tokenizer

from luban.foundation.errors import DataError
from luban.inference.generate import LoadedModel, generate, prompt_ids
from luban.inference.sampling import SamplingConfig
from luban.inference.scoring import score_documents, score_tokens
from luban.models.huggingface import save_model


@pytest.fixture
def loaded(model, tmp_path) -> LoadedModel:
    save_model(model, tmp_path)
    write_tokenizer(tmp_path)
    return LoadedModel.load(tmp_path)


def test_generate_chat_and_stream_agree(loaded):
    text = loaded.generate("你好", maximum_tokens=12, seed=3)
    assert text and loaded.generate(["你好", "x"], SamplingConfig(maximum_tokens=12, seed=3))[0] == text
    assert "".join(loaded.stream("你好", maximum_tokens=12, seed=3)) == text
    messages = [{"role": "user", "content": "你好"}]
    answer = loaded.chat(messages, maximum_tokens=12, seed=3)
    assert answer == loaded.chat("你好", maximum_tokens=12, seed=3) == "".join(loaded.stream(messages, maximum_tokens=12, seed=3))
    ids = loaded.tokenizer.encode("<|im_start|>user\n你好<|im_end|>\n<|im_start|>assistant\n", allow_special=True)
    assert generate(loaded.model, loaded.tokenizer, [ids], SamplingConfig(maximum_tokens=12, seed=3))[0].text == answer


def test_an_empty_prompt_starts_a_document(loaded):
    assert prompt_ids(loaded.tokenizer, "") == [loaded.tokenizer.end_of_text_id]
    assert len(generate(loaded.model, loaded.tokenizer, [""], SamplingConfig(maximum_tokens=4, stop_at_end=False))[0].ids) == 4
    assert generate(loaded.model, loaded.tokenizer, []) == []


def test_chat_without_a_template_says_so(model, tmp_path):
    save_model(model, tmp_path)
    write_tokenizer(tmp_path, template=None)
    with pytest.raises(DataError, match="no chat template"):
        LoadedModel.load(tmp_path).chat("hello")


@torch.inference_mode()
def brute_force(model, tokens: list[int], length: int, stride: int) -> list[float]:
    """Each token from a pass of its own over exactly the context its window gives it."""
    nats, done = [], 0
    while done < len(tokens) - 1:
        end = min(len(tokens) - 1, done + (length if done == 0 else stride))
        for target in range(done + 1, end + 1):
            context = tokens[max(0, end - length) : target]
            logprobs = model.logits(model(torch.tensor([context]))[0, -1]).log_softmax(-1)
            nats.append(-float(logprobs[tokens[target]]))
        done = end
    return nats


@pytest.mark.parametrize(("length", "stride", "start"), [(8, None, None), (8, 3, 256), (7, 7, 256), (8, 1, None), (64, None, 256)])
def test_every_token_is_scored_once(length, stride, start):
    model = make_model(torch.float64)
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(0, 256, (size,), generator=generator).tolist() for size in (5, 1, 0, 9, 8, 23, 2, 16, 17)]
    found = list(score_tokens(model, documents, sequence_length=length, batch_rows=2, start_id=start, stride=stride))
    assert len(found) == len(documents)
    for document, nats in zip(documents, found, strict=True):
        tokens = ([] if start is None else [start]) + document
        assert len(nats) == max(0, len(tokens) - 1)
        assert nats.tolist() == pytest.approx(brute_force(model, tokens, length, stride or length // 2), abs=1e-9)
    totals = list(score_documents(model, iter(documents), sequence_length=length, batch_rows=3, start_id=start, stride=stride))
    assert [count for _, count in totals] == [len(nats) for nats in found]
    assert [nats for nats, _ in totals] == pytest.approx([float(nats.sum()) for nats in found], abs=1e-9)


def test_scoring_reads_a_stream_and_pools_of_it():
    """Thousands of documents are neither collected first nor mixed up; logits exist a chunk at a time."""
    model = make_model()
    read = 0

    def documents():
        nonlocal read
        for index in range(500):
            read += 1
            yield [index % 256, (index * 7) % 256, 5]

    scores = score_documents(model, documents(), sequence_length=16, batch_rows=4, start_id=256)
    first = next(scores)
    assert read <= 64
    everything = [first, *scores]
    alone = list(score_documents(model, [[300 % 256, 2100 % 256, 5]], sequence_length=16, start_id=256))
    assert len(everything) == 500 and everything[300][1] == 3
    assert everything[300][0] == pytest.approx(alone[0][0], abs=1e-4)


def test_a_model_that_knows_nothing_scores_the_uniform_distribution():
    model = make_model(initializer_deviation=1e-9)
    ((nats, tokens),) = score_documents(model, [list(range(50))], sequence_length=16, start_id=256)
    assert nats / tokens == pytest.approx(math.log(259), rel=1e-5)
