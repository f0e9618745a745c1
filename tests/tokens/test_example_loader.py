"""Supervised examples as rows: padded and packed hold the same, bucketing wastes little, each example once an epoch."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from luban.foundation.errors import DataError
from luban.tokens.batch import Example
from luban.tokens.loader import ExampleLoader


def examples_of(count, seed=0, longest=60):
    rng = np.random.default_rng(seed)
    made = []
    for index in range(count):
        size = int(rng.integers(2, longest))
        made.append(
            Example(
                np.arange(size, dtype=np.int32) + 1000 * (index + 1),
                (rng.random(size) < 0.5).astype(np.float32) * (1 + index % 2),
                f"chat.jsonl:{index + 1}",
            )
        )
    return made


def pairs(batches):
    """Every (input, target, weight, position) that is no padding."""
    found = Counter()
    for batch in batches:
        used = torch.ones_like(batch.inputs, dtype=torch.bool) if batch.segments is None else batch.segments >= 0
        found.update(zip(*(getattr(batch, name)[used].tolist() for name in ("inputs", "targets", "weights", "positions")), strict=True))
    return found


def test_padded_and_packed_hold_the_same_targets():
    examples = examples_of(100)
    expected = Counter(
        (int(example.ids[i]), int(example.ids[i + 1]), float(example.weights[i + 1]), i)
        for example in examples
        for i in range(len(example.ids) - 1)
    )
    for packing in ("none", "best_fit"):
        loader = ExampleLoader(examples, sequence_length=64, rows_per_step=8, seed=1, packing=packing)
        assert pairs(loader.pass_once()) == expected
        assert loader.epoch_tokens == sum(expected.values())
    assert loader.rows_per_epoch < 60  # packed


@pytest.mark.parametrize("rows_per_step", [1, 7, 8, 64])
def test_each_example_once_an_epoch_in_another_order(rows_per_step):
    examples = examples_of(100)
    loader = ExampleLoader(examples, sequence_length=64, rows_per_step=rows_per_step, seed=1)
    rows = [source for step in range(-(-400 // rows_per_step)) for source in loader.step(step).sources]
    epochs = [rows[start : start + 100] for start in range(0, 400, 100)]
    assert all(Counter(epoch) == Counter(example.source for example in examples) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    assert loader.epoch_steps == -(-100 // rows_per_step)


def test_rows_of_like_length_meet():
    examples = examples_of(2000, longest=400)
    loader = ExampleLoader(examples, sequence_length=400, rows_per_step=16, seed=1)
    places = filled = 0
    for step in range(loader.epoch_steps):
        batch = loader.step(step)
        places += batch.inputs.numel()
        filled += batch.inputs.numel() if batch.segments is None else int((batch.segments >= 0).sum())
    assert filled / places > 0.93  # 0.53 without: the mean of 400 against the longest of 16
    widths = [loader.step(step).inputs.shape[1] for step in range(8)]
    assert widths != sorted(widths) and all(width % 8 == 0 for width in widths)


def test_ranks_share_a_step_and_micro_batches_can_be_trimmed():
    loader = ExampleLoader(examples_of(100), sequence_length=64, rows_per_step=8, seed=1, pad_id=9)
    whole = loader.step(3)
    halves = [loader.step(3, rank, 2) for rank in range(2)]
    assert torch.equal(torch.cat([half.inputs for half in halves]), whole.inputs)
    order = [int(row) for row in (whole.segments >= 0).sum(1)]
    for row in range(8):
        trimmed = whole.rows(row, row + 1, trim=True)
        assert trimmed.inputs.shape == (1, order[row]) and trimmed.count == float(whole.weights[row].sum())
        assert trimmed.sources == [whole.sources[row]]


def test_longer_examples_lose_their_end_and_tiny_ones_are_harmless():
    long = Example(np.arange(50, dtype=np.int32), np.ones(50, np.float32), "long")
    tiny = Example(np.array([5], dtype=np.int32), np.ones(1, np.float32), "tiny")
    for packing in ("none", "best_fit"):
        loader = ExampleLoader([long, tiny], sequence_length=16, rows_per_step=2, seed=0, packing=packing)
        targets = [int(token) for batch in loader.pass_once() for token in batch.targets[batch.weights > 0]]
        assert sorted(targets) == list(range(1, 17))


def test_one_document_a_row_without_padding_needs_no_segments():
    examples = [Example(np.arange(9, dtype=np.int32), np.ones(9, np.float32), str(index)) for index in range(4)]
    assert ExampleLoader(examples, sequence_length=64, rows_per_step=4, seed=0).step(0).segments is None


def test_validation_reads_in_order_and_fills_up_with_empty_rows():
    loader = ExampleLoader(examples_of(10), sequence_length=64, rows_per_step=4, seed=0, shuffle=False)
    batches = list(loader.pass_once())
    assert [source for batch in batches for source in batch.sources] == [f"chat.jsonl:{index}" for index in range(1, 11)]
    assert [batch.inputs.shape[0] for batch in batches] == [4, 4, 4] and batches[-1].weights[2:].sum() == 0
    assert pairs(loader.pass_once(0, 2)) + pairs(loader.pass_once(1, 2)) == pairs(loader.pass_once())


def test_no_examples_is_an_error():
    with pytest.raises(DataError, match="no examples"):
        ExampleLoader([], sequence_length=8, rows_per_step=1, seed=0)
