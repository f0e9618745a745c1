"""Denoising: masks that stand for spans of Poisson length, sentences in another order; the target is the text."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats
from text_lab import open_objective, rows_of, same, segments_of, texts

from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.tokens.noising import Noise


@pytest.fixture(scope="module")
def bart(tmp_path_factory):
    return open_objective(tmp_path_factory.mktemp("denoising"), "bart", "bart", name="denoising")


def spans_of(noisy: np.ndarray, length: int, mask: int) -> list[int] | None:
    """How many tokens of 1000, 1001, … the masks of a noisy copy stand for, a number for each run of masks; None if it is no such copy."""
    lengths, following, run = [], 1000, False
    for index in [*noisy.tolist(), 1000 + length]:
        if index == mask:
            run = True
            continue
        if index < following or (index > following and not run):
            return None
        if run:
            lengths.append(index - following)
        following, run = index + 1, False
    return lengths


def test_masks_stand_for_what_is_missing(bart):
    objective, _, _ = bart
    removed, sizes = [], []
    for seed in range(400):
        ids = np.arange(1000, 1100)
        noisy = objective.infilled(ids, Noise(seed))
        spans = spans_of(noisy, 100, objective.mask_id)
        assert spans is not None and sum(spans) == 100 - (noisy != objective.mask_id).sum()
        assert len(noisy) <= 100
        removed.append(sum(spans))
        sizes.append(len(noisy))
    assert set(removed) == {30}  # 0.3 of 100
    # A span stands for 3.5 tokens on the mean, so 30 tokens are about 30 / 3.5 masks (the last one is cut short).
    assert 30 / 3.5 < np.mean(sizes) - 70 < 30 / 3.5 + 1.5


def test_spans_have_poisson_lengths(bart):
    objective, _, _ = bart
    drawn = [length for seed in range(60) for length in objective._lengths(400, Noise(seed))]
    positive = np.array([length for length in drawn if length])
    table = stats.poisson(3.5)
    expected = np.array([*table.pmf(range(1, 8)), table.sf(7)]) / (1 - table.pmf(0)) * len(positive)
    found = np.bincount(np.minimum(positive, 8), minlength=9)[1:]
    assert stats.chisquare(found, expected).pvalue > 0.005
    share = drawn.count(0) / len(drawn)
    assert abs(share - table.pmf(0)) < 4 * math.sqrt(share / len(drawn))


@pytest.mark.parametrize("share", [0.0, 0.013, 0.5, 1.0])
def test_every_share_is_kept(tmp_path, share):
    objective, _, _ = open_objective(tmp_path, "bart", "bart", name="denoising", share=share, mean_span=1.0)
    removed = []
    for seed in range(200):
        length = 1 + seed % 40
        noisy = objective.infilled(np.arange(1000, 1000 + length), Noise(seed))
        spans = spans_of(noisy, length, objective.mask_id)
        assert spans is not None and len(noisy) <= length
        removed.append(sum(spans) - share * length)
    assert max(map(abs, removed)) < 1 and abs(np.mean(removed)) < 0.15


def test_sentences_come_in_another_order(bart):
    objective, _, request = bart
    text = "The king came. The queen left! Where did she go? To the wood. 春风来了。明月去了！"
    ids = np.array(request.tokenizer.encode(text))
    orders = set()
    for seed in range(60):
        shuffled = objective.permuted(ids, Noise(seed))
        assert sorted(shuffled.tolist()) == sorted(ids.tolist())
        orders.add(request.tokenizer.decode(shuffled.tolist()))
    assert len(orders) > 30 and all("The king came." in order and "春风来了。" in order for order in orders)


def test_the_target_is_the_text_with_its_ends(bart):
    objective, loaders, request = bart
    tokenizer = request.tokenizer
    begin, end = tokenizer.layout.single[0].id, tokenizer.layout.single[-1].id
    known = [tokenizer.decode(tokenizer.encode(text)) for text in texts()]
    for batch in loaders.validation[:2]:
        assert torch.equal(batch.weights, (segments_of(batch) >= 0).float())
        for row, pieces in zip(batch.targets, rows_of(batch), strict=True):
            for places in pieces:
                piece = row[places].tolist()
                assert piece[0] == begin and piece[-1] == end
                text = tokenizer.decode(piece)
                assert "\ufffd" in text or any(text in whole for whole in known)
    assert (loaders.train.step(0).source == tokenizer.mask_id).any()
    assert same(loaders.train.step(3), loaders.train.step(3)) and not same(loaders.train.step(3), loaders.train.step(4))


def test_the_loss_is_that_of_transformers(tmp_path):
    from transformers import BartForConditionalGeneration

    objective, loaders, request = open_objective(tmp_path, "bart", "bart", name="denoising", documents=[text[:300] for text in texts()[:8]], length=180, rows=4, shape={"dropout": 0.0})
    batch = loaders.train.step(0)
    assert segments_of(batch).max() == 0
    model = build_model(request.shape).initialize(3).eval()
    save_model(model, tmp_path / "model", pad_id=request.tokenizer.pad_id)
    theirs = BartForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    labels = batch.targets.masked_fill(batch.weights == 0, -100)
    with torch.no_grad():
        expected = theirs(input_ids=batch.source, attention_mask=(batch.source_segments >= 0).long(), labels=labels).loss
        found = objective.terms(model, batch)["loss"].sum / objective.counts(batch)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)
