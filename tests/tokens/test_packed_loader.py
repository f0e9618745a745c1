"""Packing and order: every document once, nothing leaks, and nobody's rank or batch changes what is read."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.foundation.errors import ConfigError, DataError
from luban.tokens.loader import PackedLoader
from luban.tokens.order import ConcatenatedRows, FixedRows, Mixture, permutation
from luban.tokens.store import TokenStore
from luban.tokens.writer import StoreWriter

PACKINGS = ("concatenate", "best_fit", "none")


def store_of(folder, documents, begin=None, name="store"):
    """A store whose document i is ``documents[i]``; end of text is 0."""
    made = StoreWriter(
        folder / name / "train",
        vocabulary_size=5000,
        shard_tokens=50,
        facts={"tokenizer": "t", "end_of_text_id": 0, "begin_of_text_id": begin},
    )
    for index, tokens in enumerate(documents):
        made.add(tokens, language="en", identity=f"d{index}", size_bytes=len(tokens))
    made.finish()
    return TokenStore(folder / name, "train")


def numbered(sizes):
    """Documents in which every token tells its document: 100·(i+1) + place."""
    return [[100 * (i + 1) + place for place in range(size)] for i, size in enumerate(sizes)]


SIZES = [3, 0, 17, 5, 40, 1, 8, 8, 2, 29, 11, 6]


def same(one, other):
    return (
        all(
            torch.equal(getattr(one, name), getattr(other, name)) if getattr(one, name) is not None else getattr(other, name) is None
            for name in ("inputs", "targets", "weights", "positions", "segments")
        )
        and one.sources == other.sources
    )


def pieces_of(batch):
    """(inputs, targets, positions) of every segment with weight."""
    for row in range(batch.inputs.shape[0]):
        segments = torch.zeros_like(batch.inputs[row]) if batch.segments is None else batch.segments[row]
        for segment in segments.unique().tolist():
            if segment >= 0:
                here = segments == segment
                yield batch.inputs[row][here].tolist(), batch.targets[row][here].tolist(), batch.positions[row][here].tolist()


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("shuffle", [True, False])
def test_an_epoch_holds_every_target_once(tmp_path, packing, shuffle):
    documents = numbered(SIZES)
    loader = PackedLoader(
        [(store_of(tmp_path, documents), 1.0)], sequence_length=16, rows_per_step=1, seed=3, packing=packing, shuffle=shuffle
    )
    expected = Counter(token for document in documents for token in [*document, 0])
    assert loader.epoch_tokens == sum(expected.values())
    for epoch in range(3):
        found = Counter()
        for step in range(epoch * loader.epoch_steps, (epoch + 1) * loader.epoch_steps):
            batch = loader.step(step)
            found.update(batch.targets[batch.weights > 0].tolist())
        assert found == expected
    once = Counter(token for batch in loader.pass_once() for token in batch.targets[batch.weights > 0].tolist())
    assert once == expected


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("begin", [None, 7])
def test_each_piece_is_a_stretch_of_one_document(tmp_path, packing, begin):
    documents = numbered(SIZES)
    loader = PackedLoader([(store_of(tmp_path, documents, begin), 1.0)], sequence_length=16, rows_per_step=3, seed=0, packing=packing)
    sequences = [[0 if begin is None else begin, *document, 0] for document in documents]
    for batch in loader.pass_once():
        for inputs, targets, positions in pieces_of(batch):
            assert positions == list(range(len(inputs)))
            whole = [inputs[0], *targets]
            assert inputs == whole[:-1]
            assert any(whole == sequence[at : at + len(whole)] for sequence in sequences for at in range(len(sequence)))


def test_best_fit_cuts_only_what_no_row_can_hold(tmp_path):
    documents = numbered(SIZES)
    loader = PackedLoader([(store_of(tmp_path, documents), 1.0)], sequence_length=16, rows_per_step=1, seed=0, packing="best_fit")
    found = [targets for batch in loader.pass_once() for _, targets, _ in pieces_of(batch)]
    for document in documents:
        if len(document) + 1 <= 16:
            assert [*document, 0] in found
    assert (
        loader.rows_per_epoch
        < PackedLoader(loader_stores(loader), sequence_length=16, rows_per_step=1, seed=0, packing="none").rows_per_epoch
    )


def loader_stores(loader):
    return [(store, 1.0) for store in loader.stores]


def test_concatenated_rows_are_full_but_for_the_last(tmp_path):
    loader = PackedLoader([(store_of(tmp_path, numbered(SIZES)), 1.0)], sequence_length=16, rows_per_step=1, seed=0)
    counts = sorted((int(batch.weights.sum()) for batch in loader.pass_once()), reverse=True)
    assert counts[:-1] == [16] * (len(counts) - 1) and sum(counts) == loader.epoch_tokens
    batches = [loader.step(index) for index in range(loader.epoch_steps)]
    assert any(batch.segments is not None for batch in batches) and all(batch.inputs.dtype == torch.int64 for batch in batches)


@given(st.lists(st.integers(1, 40), min_size=1, max_size=600), st.integers(1, 50), st.integers(0, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_rows_are_those_of_a_plain_concatenation(sizes, width, epoch, shuffle):
    lengths = np.array(sizes, dtype=np.uint32)
    rows = ConcatenatedRows(lengths, width, seed=9, shuffle=shuffle)
    stream = [(int(item), place) for item in (permutation(len(sizes), 9, epoch) if shuffle else range(len(sizes))) for place in range(sizes[item])]
    assert rows.rows_per_epoch == -(-len(stream) // width)
    got = [[(item, place) for item, start, stop in rows.row(epoch, index) for place in range(start, stop)] for index in range(rows.rows_per_epoch)]
    expected = [stream[index * width : (index + 1) * width] for index in range(rows.rows_per_epoch)]
    assert sorted(got) == sorted(expected) if shuffle else got == expected


def test_a_step_does_not_read_one_document_from_end_to_end():
    rows = ConcatenatedRows(np.array([640, 640], dtype=np.uint32), 10, seed=9)
    starts = [rows.row(0, index)[0] for index in range(rows.rows_per_epoch)]
    assert all(len({piece.item for piece in starts[first : first + 16]}) == 2 for first in range(0, 128, 16))
    followed = sum(after.item == piece.item and after.start == piece.stop for piece, after in zip(starts, starts[1:], strict=False))
    assert followed < 8 and starts != [rows.row(1, index)[0] for index in range(rows.rows_per_epoch)]


def plain_best_fit(sizes, width):
    """Best-fit decreasing as the textbook has it: the room left in each row, searched one by one."""
    rooms = []
    for size in sorted(sizes, reverse=True):
        fitting = [row for row, room in enumerate(rooms) if room >= size]
        if fitting:
            rooms[min(fitting, key=lambda row: rooms[row])] -= size
        else:
            rooms.append(width - size)
    return sorted(width - room for room in rooms)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=200), st.integers(2, 40))
@settings(max_examples=100, deadline=None)
def test_best_fit_fills_rows_as_the_textbook_does(sizes, width):
    rows = FixedRows(np.array(sizes, dtype=np.uint32), width, seed=1, packing="best_fit")
    pieces = [min(width, size - start) for size in sizes for start in range(0, size, width)]
    assert sorted(rows.row_lengths().tolist()) == plain_best_fit(pieces, width)
    found = sorted(piece for row in range(rows.rows_per_epoch) for piece in rows.row(0, row))
    assert found == sorted((item, start, min(start + width, size)) for item, size in enumerate(sizes) for start in range(0, size, width))


@pytest.mark.parametrize("packing", PACKINGS)
def test_ranks_and_micro_batches_read_the_same(tmp_path, packing):
    loader = PackedLoader([(store_of(tmp_path, numbered(SIZES)), 1.0)], sequence_length=16, rows_per_step=4, seed=5, packing=packing)
    for index in (0, 3, 17):
        whole = loader.step(index)
        for ranks in (2, 4):
            shares = [loader.step(index, rank, ranks) for rank in range(ranks)]
            assert torch.equal(torch.cat([share.inputs for share in shares]), whole.inputs)
            assert torch.equal(torch.cat([share.weights for share in shares]), whole.weights)
            assert [source for share in shares for source in share.sources] == whole.sources
        for size in (1, 2):
            parts = [whole.rows(start, start + size) for start in range(0, 4, size)]
            assert torch.equal(torch.cat([part.targets for part in parts]), whole.targets)
            assert [source for part in parts for source in part.sources] == whole.sources
    other = PackedLoader(loader_stores(loader), sequence_length=16, rows_per_step=2, seed=5, packing=packing)
    assert torch.equal(torch.cat([other.step(6).inputs, other.step(7).inputs]), loader.step(3).inputs)
    with pytest.raises(ConfigError, match="shared by 3"):
        loader.step(0, 0, 3)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_step_is_a_pure_function_of_seed_and_index(tmp_path, packing):
    store = store_of(tmp_path, numbered(SIZES))

    def make(seed=5):
        return PackedLoader([(store, 1.0)], sequence_length=16, rows_per_step=3, seed=seed, packing=packing)

    walked = make()
    steps = [walked.step(index) for index in range(30)]
    for index in (29, 0, 13, 13):
        assert same(make().step(index), steps[index]) and same(walked.step(index), steps[index])
    assert not all(same(make(6).step(index), steps[index]) for index in range(5))


def test_order_is_written_in_stone():
    """Philox's raw words do not change with numpy's version; nor may the order of a run that is resumed after an upgrade."""
    assert permutation(12, 0, 0).tolist() == PERMUTATION_0_0
    assert sorted(permutation(1000, 1, 2)) == list(range(1000))
    assert permutation(12, 0, 1).tolist() != PERMUTATION_0_0


PERMUTATION_0_0 = [0, 8, 9, 3, 7, 5, 1, 11, 2, 10, 6, 4]


def test_a_mixture_keeps_its_shares_and_its_stores_orders(tmp_path):
    one = store_of(tmp_path, numbered([15] * 12), name="one")
    other = store_of(tmp_path, [[token + 2000 for token in document] for document in numbered([15] * 6)], name="other")
    loader = PackedLoader([(one, 3), (other, 1)], sequence_length=16, rows_per_step=64, seed=2, packing="none")
    rows = [row for step in range(64) for row in loader.step(step).inputs[:, 1].tolist()]
    taken = {"one": [row for row in rows if row < 2000], "other": [row for row in rows if row >= 2000]}
    assert len(taken["other"]) == 1024 and len(taken["one"]) == 3072
    for block in range(4):
        assert sum(row >= 2000 for row in rows[block * 1024 : (block + 1) * 1024]) == 256
    for name, documents in (("one", 12), ("other", 6)):  # each store is read epoch by epoch
        for epoch in range(5):
            assert len(set(taken[name][epoch * documents : (epoch + 1) * documents])) == documents
    seen = rows[: 37 * 64]
    assert loader.consumed(37) == {"one/train": sum(row < 2000 for row in seen), "other/train": sum(row >= 2000 for row in seen)}
    assert loader.rows_by_source() == {"one/train": 12, "other/train": 6}
    assert loader.repeats(64) == {"one/train": 256.0, "other/train": pytest.approx(1024 / 6)}
    assert {source.split("/")[0] for source in loader.step(0).sources} == {"one", "other"}
    assert Counter(source for batch in loader.pass_once() for source in batch.sources).most_common(1)[0][1] == 1


@given(st.lists(st.floats(0.001, 1000), min_size=2, max_size=32), st.integers(0, 200))
@settings(max_examples=100, deadline=None)
def test_any_weights_give_consecutive_rows_of_each_store(weights, block):
    mixture = Mixture(weights, seed=4)
    before, after = mixture._given(block), mixture._given(block + 1)
    assert sum(after) == 1024 * (block + 1)
    for k, share in enumerate(mixture.weights):
        assert abs(after[k] - share * 1024 * (block + 1)) <= len(weights)
        rows = [number for store, number in (mixture.choose(1024 * block + row) for row in range(1024)) if store == k]
        assert rows == list(range(before[k], after[k]))
    place = 1024 * block + 389  # in the middle of a block
    counted = Counter(mixture.choose(row)[0] for row in range(1024 * block, place))
    assert mixture.given(place) == [before[k] + counted[k] for k in range(len(weights))]


def test_mistakes_are_told(tmp_path):
    store = store_of(tmp_path, numbered([3]))
    for stores, match in (
        ([], "no tokens"),
        ([(store, 0)], "above zero"),
        ([(store, 1)] * 33, "33"),
        ([(store_of(tmp_path, [], name="empty"), 1)], "no documents"),
    ):
        with pytest.raises((ConfigError, DataError), match=match):
            PackedLoader(stores, sequence_length=8, rows_per_step=1, seed=0)
    odd = store_of(tmp_path, numbered([3]), name="odd")
    odd.index["tokenizer"] = "another"
    with pytest.raises(DataError, match="different tokenizers"):
        PackedLoader([(store, 1), (odd, 1)], sequence_length=8, rows_per_step=1, seed=0)


def test_text_of_the_real_corpus_is_in_the_rows(tokens, tokenizer, texts):
    loader = PackedLoader([(TokenStore(tokens, "train"), 1.0)], sequence_length=128, rows_per_step=8, seed=0, packing="best_fit")
    found = Counter(tokenizer.decode(targets) for batch in loader.pass_once() for _, targets, _ in pieces_of(batch))
    short = [text for text in texts if len(tokenizer.encode(text)) < 128]
    assert len(short) > 100 and all(found[text] >= 1 for text in short)
