"""The ledger of the data that was learned from: against the loader itself, across a kill, other micro-batches, and data that was changed."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from resume_lab import case, train

from luban.foundation.errors import DataError
from luban.pipeline.show import show_ledger
from luban.training.consumed import ranges, read_ledger, verify_ledger


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training of two and a half epochs that was killed twice, the fields that made it, and its loader."""
    folder = tmp_path_factory.mktemp("ledger")
    fields = {**case(folder, "causal"), "length": "30 steps", "packing": "none", "checkpoint": {"every": "7 steps"}, "validation": {"every": "40 steps"}}
    for step in (9, 25):
        with pytest.raises(Exception, match="killed"):
            train(folder, "one", fields, dies_at=step)
    seen = []
    artifact = train(folder, "one", fields, watch=lambda run: seen.append(run.loaders.train.loader))
    return folder, fields, artifact, seen[-1]


def test_it_says_what_the_loader_gives_and_no_document_comes_twice_in_an_epoch(made):
    _, _, artifact, loader = made
    lines = read_ledger(artifact.path / "training")
    assert [line["steps"] for line in lines] == [[1, 7], [8, 14], [15, 21], [22, 28], [29, 30]]
    verify_ledger(lines, loader)
    places = [place for line in lines for first, last in line["places"] for place in range(first, last + 1)]
    assert places == list(range(30))
    read = [source for place in places for source in loader.step(place).sources]
    assert Counter(source.rpartition(":")[0] for source in read) == sum((Counter(line["pieces"]) for line in lines), Counter())
    rows = [(batch.sources[row], batch.inputs[row][batch.weights[row] > 0].numpy().tobytes()) for batch in map(loader.step, places) for row in range(len(batch.inputs))]
    epoch = loader.rows_per_epoch  # with a row for each piece of a document
    assert len(set(rows[:epoch])) == epoch
    assert sum(len(text) for _, text in rows[:epoch]) == 8 * loader.epoch_tokens, "every token once in an epoch"


def test_other_micro_batches_and_no_kill_read_the_same(made, capsys):
    folder, fields, artifact, _ = made
    other = train(folder, "two", {**fields, "micro_batch_rows": 1})
    one, two = ((item.path / "training" / "consumed.jsonl").read_bytes() for item in (artifact, other))
    assert one == two
    show_ledger(other.path)
    assert "no place was read twice" in capsys.readouterr().err


def test_what_does_not_fit_is_found(made, tmp_path):
    _, _, artifact, loader = made
    lines = read_ledger(artifact.path / "training")

    class Changed:
        def step(self, index):
            batch = loader.step(index)
            if index == 16:
                batch.inputs[0, 0] += 1
            return batch

    with pytest.raises(DataError, match="steps 15 to 21"):
        verify_ledger(lines, Changed())
    for place, wrong in ((1, lines[0]), (2, {**lines[2], "places": [[13, 19]]}), (2, {**lines[2], "places": [[14, 19]]})):
        (tmp_path / "consumed.jsonl").write_text("".join(json.dumps(wrong if number == place else line) + "\n" for number, line in enumerate(lines)))
        with pytest.raises(DataError, match=f"consumed.jsonl:{place + 1}"):
            read_ledger(tmp_path)


def test_places_as_ranges():
    assert ranges([0, 1, 2, 5, 6, 9]) == [[0, 2], [5, 6], [9, 9]] and ranges([]) == []
