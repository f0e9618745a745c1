"""Masked language modelling: what is hidden, how often, together with what; the loss is transformers'."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from text_lab import open_objective, rows_of, same, segments_of, texts, tokenizer_of_style

from luban.foundation.errors import ConfigError
from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.objectives.masked import LONGEST_WORD
from luban.tokens.noising import Noise


def batches(loaders, steps=12):
    return [loaders.train.step(index) for index in range(steps)]


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return open_objective(tmp_path_factory.mktemp("masked"), "bert", "bert", name="masked")


@pytest.mark.parametrize("whole_words", [False, True])
def test_the_share_is_right_on_the_mean_and_bounded_in_a_row(tmp_path, whole_words):
    objective, loaders, request = open_objective(tmp_path, "bert", "bert", name="masked", whole_words=whole_words)
    differences, allowed_in_all = [], 0
    for batch in batches(loaders, 25):
        special = torch.from_numpy(request.tokenizer.is_special)[batch.targets]
        hidden, allowed = batch.weights.sum(1), ((segments_of(batch) >= 0) & ~special).sum(1)
        differences += (hidden - 0.15 * allowed).tolist()
        allowed_in_all += int(allowed.sum())
    bound = LONGEST_WORD if whole_words else 1
    assert max(map(abs, differences)) < bound
    error = np.std(differences) / math.sqrt(len(differences))
    assert abs(np.mean(differences)) < 3.5 * error and allowed_in_all > 5000


def test_eighty_ten_ten(bert):
    objective, _, request = bert
    ids = np.tile(objective.ordinary, 40)
    shown = objective.shown_instead(ids, Noise(17))
    counts = [(shown == objective.mask_id).sum(), ((shown != ids) & (shown != objective.mask_id)).sum(), (shown == ids).sum()]
    chance = 1 / len(objective.ordinary)  # that a random token is the same by accident
    expected = np.array([0.8, 0.1 * (1 - chance), 0.1 + 0.1 * chance]) * len(ids)
    assert stats.chisquare(counts, expected).pvalue > 0.01
    strange = shown[(shown != ids) & (shown != objective.mask_id)]
    assert not request.tokenizer.is_special[strange].any()
    assert stats.chisquare(np.bincount(strange % 7, minlength=7), np.bincount(objective.ordinary % 7) * len(strange) / len(objective.ordinary)).pvalue > 0.01


def test_special_tokens_stand_around_each_piece_and_are_never_hidden(bert):
    objective, loaders, request = bert
    tokenizer = request.tokenizer
    for batch in batches(loaders):
        assert not tokenizer.is_special[batch.targets[batch.weights > 0].numpy()].any()
        untouched = batch.weights == 0
        assert (batch.inputs[untouched] == batch.targets[untouched]).all()
        for row, pieces in zip(batch.targets, rows_of(batch), strict=True):
            for piece in (row[places] for places in pieces):
                assert piece[0] == tokenizer.cls_id and piece[-1] == tokenizer.sep_id
                assert not tokenizer.is_special[piece[1:-1].numpy()].any() or tokenizer.unk_id in piece


def test_words_are_hidden_whole(bert):
    objective, loaders, request = bert
    names = [request.tokenizer.core.id_to_token(index) for index in range(request.tokenizer.vocabulary_size)]
    continued = torch.tensor([name.startswith("##") for name in names])
    latin = torch.tensor([name.removeprefix("##").isascii() and name.removeprefix("##").isalpha() for name in names])
    pairs = 0
    for batch in batches(loaders):
        inside = continued[batch.targets[:, 1:]] & latin[batch.targets[:, 1:]] & latin[batch.targets[:, :-1]]
        pairs += int((inside & (batch.weights[:, 1:] > 0)).sum())
        assert (batch.weights[:, 1:][inside] == batch.weights[:, :-1][inside]).all()
    assert pairs > 100


@pytest.mark.parametrize("style, architecture", [("bert", "bert"), ("roberta", "roberta")])
def test_chinese_words_are_hidden_whole(tmp_path, style, architecture):
    objective, _, request = open_objective(tmp_path, style, architecture, name="masked", share=0.4)
    text = "明月春风故人来"
    ids = np.array(request.tokenizer.encode(text))
    import jieba

    words = list(jieba.cut(text))
    assert max(map(len, words)) > 1
    groups = objective.words.groups(ids.tolist())
    assert len(groups) == len(words)
    for seed in range(50):
        hidden = set(objective.hidden_places(ids, Noise(seed)).tolist())
        assert all(hidden.issuperset(group) or hidden.isdisjoint(group) for group in groups)


def test_noise_is_new_in_every_epoch_and_the_same_again(bert, tmp_path):
    _, loaders, _ = bert
    forward = [loaders.train.step(index) for index in range(4)]
    assert all(same(loaders.train.step(index), forward[index]) for index in (3, 0, 2, 1))
    again = open_objective(tmp_path, "bert", "bert", name="masked")[1]
    assert same(again.train.step(2), forward[2])
    assert all(same(*pair) for pair in zip(again.validation, loaders.validation, strict=True))
    same_text = open_objective(tmp_path / "one", "bert", "bert", name="masked", documents=["the king and the queen went to the wood"] * 2, rows=2, length=30)[1].train
    assert same_text.epoch_steps == 1
    first, second = same_text.step(0), same_text.step(1)
    assert torch.equal(first.targets, second.targets) and not torch.equal(first.weights, second.weights)


@pytest.mark.parametrize("style, name, characters", [("bert", "BertForMaskedLM", 200), ("roberta", "RobertaForMaskedLM", 300)])
def test_the_loss_is_that_of_transformers(tmp_path, style, name, characters):
    import transformers

    # One piece a row, so that transformers, which knows no segments, reads the same.
    objective, loaders, request = open_objective(tmp_path, style, style, name="masked", documents=[text[:characters] for text in texts()[:8]], length=180, rows=4, shape={"dropout": 0.0, "attention_dropout": 0.0})
    batch = loaders.train.step(0)
    assert segments_of(batch).max() == 0
    model = build_model(request.shape).initialize(3).eval()
    save_model(model, tmp_path / "model", pad_id=request.tokenizer.pad_id)
    theirs = getattr(transformers, name).from_pretrained(tmp_path / "model").eval()
    labels = batch.targets.masked_fill(batch.weights == 0, -100)
    with torch.no_grad():
        expected = theirs(input_ids=batch.inputs, attention_mask=(segments_of(batch) >= 0).long(), labels=labels).loss
        found = objective.terms(model, batch)["loss"].sum / objective.counts(batch)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


def test_packed_pieces_do_not_see_each_other(tmp_path):
    _, loaders, request = open_objective(tmp_path, "bert", "bert", name="masked", documents=[text[:30] for text in texts()[:30]])
    model = build_model(request.shape).initialize(3).eval()
    batch = loaders.train.step(0)
    row = next(row for row in range(8) if batch.segments[row].max() > 0)
    model_of = lambda inputs: model(inputs[None], segments=batch.segments[row : row + 1], positions=batch.positions[row : row + 1])  # noqa: E731
    changed = batch.inputs[row].clone()
    changed[batch.segments[row] == 1] = 7
    first = batch.segments[row] == 0
    with torch.no_grad():
        torch.testing.assert_close(model_of(changed)[0, first], model_of(batch.inputs[row])[0, first])


def test_a_tokenizer_without_a_mask_gets_one(tmp_path):
    objective, loaders, request = open_objective(tmp_path, "plain", "bert", name="masked")
    assert request.tokenizer.mask_id == tokenizer_of_style("plain").vocabulary_size
    assert (loaders.train.step(0).inputs == request.tokenizer.mask_id).any()


def test_odd_documents(tmp_path):
    odd = ["", "a", "x" * 3000, "好" * 500, " \n ", "a b " * 2000]
    _, loaders, request = open_objective(tmp_path, "bert", "bert", name="masked", documents=odd)
    seen = sum(int(batch.count) for batch in loaders.train.loader.pass_once())
    assert seen == 0  # nothing is scored before it is hidden
    pieces = [row[places] for batch in loaders.train.loader.pass_once() for row, found in zip(batch.inputs, rows_of(batch), strict=True) for places in found]
    inside = torch.cat([piece[1:-1] for piece in pieces])
    ids = torch.tensor([index for text in odd for index in request.tokenizer.encode(text)])
    assert torch.equal(inside.sort().values, ids.sort().values)
    assert all(batch.weights.any() for batch in [loaders.train.step(index) for index in range(loaders.train.epoch_steps)])


def test_settings_that_cannot_be(tmp_path):
    with pytest.raises(ConfigError, match="more than 1"):
        open_objective(tmp_path, "bert", "bert", name="masked", masked=0.9, random=0.2)
    with pytest.raises(ConfigError, match="packing"):
        open_objective(tmp_path, "bert", "bert", name="masked", packing="concatenate")
    with pytest.raises(ConfigError, match="no room"):
        open_objective(tmp_path, "bert", "bert", name="masked", length=2)
