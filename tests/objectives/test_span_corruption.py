"""Span corruption: T5's counts, sentinels and targets; source and target give the text back; the loss is transformers'."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from text_lab import open_objective, same, texts

from luban.foundation.errors import ConfigError
from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.tokens.noising import Noise


@pytest.fixture(scope="module")
def t5(tmp_path_factory):
    return open_objective(tmp_path_factory.mktemp("spans"), "t5", "t5", name="span_corruption")


def put_back(source: list[int], target: list[int], sentinels: list[int]) -> list[int]:
    """The text, from the spans behind their sentinels."""
    spans: dict[int, list[int]] = {}
    current: list[int] = []
    for index in target:
        if index in sentinels:
            current = spans[index] = []
        else:
            current.append(index)
    return [piece for index in source for piece in (spans[index] if index in sentinels else [index])]


def test_the_papers_figure(t5):
    """"Thank you for inviting me to your party last week." in ten tokens, two spans cut out."""
    objective, _, _ = t5
    ids = np.arange(500, 520)  # 20 tokens: three cut out, in one span
    source, target = objective.corrupted(ids, Noise(1))
    first, second, end = objective.sentinels[0], objective.sentinels[1], objective.after[0]
    assert (source == first).sum() == 1 and source[-2:].tolist() == [first, end]
    assert target[0] == first and target[-2:].tolist() == [second, end] and len(target) == 3 + 3


@pytest.mark.parametrize("share, mean", [(0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.9, 1.0)])
def test_counts_are_the_papers(tmp_path, share, mean):
    objective, _, _ = open_objective(tmp_path, "t5", "t5", name="span_corruption", share=share, mean_span=mean)
    sentinels = objective.sentinels.tolist()
    for length in (1, 2, 3, 7, 20, 57, 90):
        ids = np.arange(length) + 300
        source, target = objective.corrupted(ids, Noise(length))
        source, target = source.tolist()[:-1], target.tolist()[:-1]
        noise = 0 if length == 1 else min(max(round(length * share), 1), length - 1)
        spans = 0 if not noise else min(max(round(noise / mean), 1), noise, length - noise)
        used = [index for index in source if index in sentinels]
        assert used == sentinels[:spans] and [index for index in target if index in sentinels] == sentinels[: spans + 1]
        assert len(source) == length - noise + spans and len(target) == noise + spans + 1 and target[-1] == sentinels[spans]
        assert put_back(source, target, sentinels) == ids.tolist()
        if spans:
            assert source[0] not in sentinels and source[-1] in sentinels  # text first, a span last


def test_an_epoch_gives_every_document_back(t5, tmp_path):
    objective, loaders, request = t5
    sentinels, end = objective.sentinels.tolist(), objective.after[0]
    found: Counter = Counter()
    documents: Counter = Counter()
    for index in range(loaders.train.epoch_steps):
        batch = loaders.train.step(index)
        assert batch.source.shape[1] <= request.sequence_length and batch.inputs.shape[1] <= request.sequence_length
        for row in range(8):
            for number in batch.segments[row][batch.segments[row] >= 0].unique():
                source, target = batch.source[row][batch.source_segments[row] == number].tolist(), batch.targets[row][batch.segments[row] == number].tolist()
                read = batch.inputs[row][batch.segments[row] == number].tolist()
                assert source[-1] == target[-1] == end and read == [request.shape.decoder_start_id, *target[:-1]]
                found.update(put_back(source[:-1], target[:-1], sentinels))
    for text in texts():
        documents.update(request.tokenizer.encode(text))
    assert documents <= found  # the last step may begin the next epoch
    assert sum(found.values()) < 1.2 * sum(documents.values())


def test_the_loss_is_that_of_transformers(tmp_path):
    from transformers import T5ForConditionalGeneration

    objective, loaders, request = open_objective(tmp_path, "t5", "t5", name="span_corruption", documents=[text[:150] for text in texts()[:8]], length=100, rows=4, shape={"dropout": 0.0, "head_dim": 16})
    batch = loaders.train.step(0)
    assert batch.segments.max() == 0
    model = build_model(request.shape).initialize(3).eval()
    save_model(model, tmp_path / "model", pad_id=request.tokenizer.pad_id)
    theirs = T5ForConditionalGeneration.from_pretrained(tmp_path / "model").eval()
    labels = batch.targets.masked_fill(batch.weights == 0, -100)
    with torch.no_grad():
        expected = theirs(input_ids=batch.source, attention_mask=(batch.source_segments >= 0).long(), labels=labels).loss
        found = objective.terms(model, batch)["loss"].sum / objective.counts(batch)["loss"]
    assert float(found) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize("style, architecture", [("t5", "t5"), ("bart", "bart")])
def test_packed_pieces_learn_as_if_alone(tmp_path, style, architecture):
    objective, loaders, request = open_objective(tmp_path, style, architecture, name="span_corruption", documents=[text[:40] for text in texts()[-12:]], rows=2, shape={"dropout": 0.0})
    batch = loaders.train.step(0)
    assert batch.segments.max() > 0
    model = build_model(request.shape).initialize(3).eval()
    with torch.no_grad():
        alone = 0.0
        for row in range(2):
            for number in batch.segments[row][batch.segments[row] >= 0].unique():
                here, there = batch.segments[row] == number, batch.source_segments[row] == number
                hidden = model(batch.inputs[row][here][None], source=batch.source[row][there][None])
                alone += float(torch.nn.functional.cross_entropy(model.logits(hidden)[0], batch.targets[row][here], reduction="sum"))
        assert float(objective.terms(model, batch)["loss"].sum) == pytest.approx(alone, rel=1e-4)


def test_missing_sentinels_are_added(tmp_path):
    _, loaders, request = open_objective(tmp_path, "bart", "bart", name="span_corruption")
    assert len(request.tokenizer.sentinel_ids) == 100
    assert loaders.train.step(0).source.max() < request.shape.vocabulary_size


def test_position_is_all_there_is(t5):
    _, loaders, _ = t5
    forward = [loaders.train.step(index) for index in range(3)]
    assert all(same(loaders.train.step(index), forward[index]) for index in (2, 0, 1))


def test_a_row_that_is_too_short(tmp_path):
    with pytest.raises(ConfigError, match="too short"):
        open_objective(tmp_path, "t5", "t5", name="span_corruption", length=3)
