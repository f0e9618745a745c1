"""Prefix language models: who sees whom, what is scored, and that writing reads its prompt as training did."""

from __future__ import annotations

import pytest
import torch
from text_lab import open_objective, rows_of, same, texts

from luban.foundation.errors import ConfigError
from luban.inference.config import SamplingConfig
from luban.inference.generate import generate
from luban.models.base import Model
from luban.models.families import build_model
from luban.models.masks import attention_mask

SHAPES = {"llama": {}, "gpt2": {}, "mistral": {"sliding_window": 6}, "mixtral": {"experts": 2, "experts_per_token": 1}}


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return open_objective(tmp_path_factory.mktemp("prefix"), "plain", "llama", name="prefix", documents=[text[:100] for text in texts()])


def model_for(request, head) -> Model:
    model = build_model(request.shape).initialize(3)
    return model.with_head(head).eval()


def test_the_mask_is_the_papers():
    prefix = torch.tensor([[True, True, True, False, False, True, False]])
    segments = torch.tensor([[0, 0, 0, 0, 0, 1, 1]])
    mask = attention_mask(7, segments, None, torch.device("cpu"), prefix)[0, 0]
    for query in range(7):
        for key in range(7):
            alike = segments[0, query] == segments[0, key]
            assert mask[query, key] == (alike and (key <= query or bool(prefix[0, key])))
    near = attention_mask(7, None, 2, torch.device("cpu"), prefix)[0, 0]
    assert not near[0, 2] and near[0, 1] and near[1, 2] and not near[4, 2]


def test_the_given_part_is_not_scored_and_the_rest_is(llama):
    objective, loaders, request = llama
    shares = []
    for index in range(6):
        batch = loaders.train.step(index)
        for row, pieces in enumerate(rows_of(batch)):
            for places in pieces:
                given = int(batch.prefix[row, places].sum())
                assert batch.prefix[row, places[:given]].all()
                expected = [float(place >= given - 1) for place in range(len(places) - 1)] + [0.0] if given else [1.0] * (len(places) - 1) + [0.0]
                assert batch.weights[row, places].tolist() == expected
                assert torch.equal(batch.targets[row, places[:-1]], batch.inputs[row, places[1:]])
                if len(places) > 12:
                    shares.append((given - 1) / (len(places) - 2))
    assert 0.0 <= min(shares) < 0.2 and 0.8 < max(shares) <= 0.91 and abs(sum(shares) / len(shares) - 0.5) < 0.08
    assert same(loaders.train.step(2), loaders.train.step(2))


@pytest.mark.parametrize("architecture", SHAPES)
def test_given_tokens_see_each_other_and_nothing_behind(tmp_path, architecture):
    objective, loaders, request = open_objective(tmp_path, "plain", architecture, name="prefix", shape=SHAPES[architecture])
    model = build_model(request.shape).initialize(3).double().eval()
    tokens = torch.arange(20, 30)[None]
    prefix = torch.arange(10)[None] < 4
    with torch.no_grad():
        base = model(tokens, prefix=prefix)
        for place in range(10):
            changed = tokens.clone()
            changed[0, place] = 99
            moved = (model(changed, prefix=prefix) - base).abs().amax(-1)[0] > 1e-12
            assert moved[place:].any() and (moved[:4].all() if place < 4 else not moved[:place].any())


def test_packed_pieces_learn_as_if_alone(llama):
    objective, loaders, request = llama
    batch = loaders.train.step(0)
    model = build_model(request.shape).initialize(3).double().eval()
    with torch.no_grad():
        alone = 0.0
        for row, pieces in enumerate(rows_of(batch)):
            for places in pieces:
                hidden = model(batch.inputs[row, places][None], prefix=batch.prefix[row, places][None])[0]
                nats = torch.nn.functional.cross_entropy(model.logits(hidden).float(), batch.targets[row, places], reduction="none")
                alone += float((nats * batch.weights[row, places]).sum())
        assert float(objective.terms(model, batch)["loss"].sum) == pytest.approx(alone, rel=1e-5)


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_writing_reads_the_prompt_from_both_sides(tmp_path, architecture):
    objective, _, request = open_objective(tmp_path, "plain", architecture, name="prefix")
    model = model_for(request, objective.head)
    prompts = [request.tokenizer.encode("the king and"), request.tokenizer.encode("明月几时有，把酒问青天")]
    answers = generate(model, request.tokenizer, prompts, SamplingConfig(temperature=0, maximum_tokens=8, stop_at_end=False))
    for prompt, answer in zip(prompts, answers, strict=True):
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(8):
                given = torch.arange(len(ids))[None] < len(prompt)
                ids.append(int(model.logits(model(torch.tensor([ids]), prefix=given)[0, -1]).argmax()))
        assert answer.ids == ids[len(prompt) :]


def test_an_encoder_decoder_reads_the_first_part_and_writes_the_rest(tmp_path):
    objective, loaders, request = open_objective(tmp_path, "t5", "t5", name="prefix", documents=texts()[:40])
    tokenizer = request.tokenizer
    end = tokenizer.end_of_text_id
    ends = 0
    for batch in loaders.validation:
        for row, pieces in enumerate(rows_of(batch)):
            for places in pieces:
                number = batch.segments[row, places[0]]
                source, target = batch.source[row][batch.source_segments[row] == number].tolist(), batch.targets[row, places].tolist()
                assert source[-1] == end
                ends += target[-1] == end
                text = tokenizer.decode([*source, *target])
                assert any(text in tokenizer.decode(tokenizer.encode(whole)) for whole in texts()[:40])
    assert ends == 40  # only a document's last piece ends


def test_what_reads_from_left_to_right_only_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="both sides"):
        open_objective(tmp_path, "plain", "luban-lstm", name="prefix", shape={"heads": None, "feed_forward_size": None})
    with pytest.raises(ConfigError, match="more than"):
        open_objective(tmp_path, "plain", "llama", name="prefix", shortest=0.9, longest=0.1)
