"""The ledger of the data that was learned from: against the loader itself, across a kill, other micro-batches, and data that was changed."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import xxhash
from resume_lab import case, train

from luban.cli.check import command
from luban.foundation.errors import DataError
from luban.pipeline.show import show_ledger
from luban.tokens.store import TokenStore
from luban.tokens.writer import StoreWriter
from luban.training.consumed import ranges, read_ledger, verify_ledger


def in_shards(store: Path) -> None:
    """The training split again, in shards of some hundred tokens."""
    former = TokenStore(store, "train")
    facts = {name: former.index[name] for name in ("tokenizer", "end_of_text_id", "begin_of_text_id")}
    texts = [former.document(number).tolist() for number in range(former.documents)]
    shutil.rmtree(store / "train")
    writer = StoreWriter(store / "train", vocabulary_size=former.index["vocabulary_size"], shard_tokens=300, facts=facts)
    for number, ids in enumerate(texts):
        writer.add(ids, language="", identity=f"{number}", size_bytes=len(ids))
    writer.finish()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A training of two and a half epochs that was killed twice, the fields that made it, and its loader."""
    folder = tmp_path_factory.mktemp("ledger")
    fields = {**case(folder, "causal"), "length": "30 steps", "packing": "none", "checkpoint": {"every": "7 steps"}, "validation": {"every": "40 steps"}}
    in_shards(fields["data"])
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


# ---- luban check RUN --ledger ------------------------------------------------------------------------------------------


def proved(folder: Path, capsys) -> tuple[int, str]:
    """Exit status and words of the command."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        command.main([str(folder), "--ledger"], standalone_mode=False)
    return int(ended.value.code), " ".join(capsys.readouterr().err.split())


def test_the_command_reads_everything_again_and_says_which_documents_of_which_shard(made, capsys):
    _, _, artifact, loader = made
    status, said = proved(artifact.path, capsys)
    assert status == 0 and "steps 1 to 30 read 30 places of the data in order, none twice, none skipped" in said and "was read again and is the same" in said
    store = loader.stores[0]
    shards = store.index["shards"]
    assert len(shards) > 3
    read = Counter(int(source.rpartition(":")[2]) for place in range(30) for source in loader.step(place).sources)  # identities are numbers of documents here
    first = 0
    for shard in shards:
        own = {number: count for number, count in read.items() if first <= number < first + shard["documents"]}
        row = rf"tokens/train +{shard['name']} +{len(own)} +{min(own)} +{max(own)} +{sum(own.values())} +{shard['xxh3']['.bin'][:12]}"
        assert re.search(row, said), (row, said)
        first += shard["documents"]


def test_a_changed_shard_is_named_by_the_command_and_by_a_run_that_would_go_on(made, tmp_path, capsys):
    folder, fields, artifact, _ = made
    shutil.copytree(artifact.path, tmp_path / "one")
    shutil.copytree(fields["data"], tmp_path / "tokens")
    assert proved(tmp_path / "one", capsys)[0] == 0  # where both have been moved
    shard = tmp_path / "tokens/train/00002.bin"
    content = bytearray(shard.read_bytes())
    content[40] ^= 1
    shard.write_bytes(content)
    status, said = proved(tmp_path / "one", capsys)
    assert status == 1 and "00002.bin is damaged: its checksum is not the one that was written" in said
    index = tmp_path / "tokens/train/index.json"  # and where its checksums were made to fit
    plain = json.loads(index.read_text())
    plain["shards"][2]["xxh3"][".bin"] = xxhash.xxh3_64_hexdigest(content)
    index.write_text(json.dumps(plain))
    status, said = proved(tmp_path / "one", capsys)
    assert status == 1 and "steps 1 to 30 read data that is not what it was: tokens/train: 00002 was changed" in said

    with pytest.raises(Exception, match="killed"):
        train(folder, "half", fields, dies_at=9)
    shutil.copytree(folder / "half.partial", tmp_path / "half.partial")
    with pytest.raises(DataError, match="the data is not what this training has read so far: tokens/train: 00002 was changed"):
        train(tmp_path, "half", {**fields, "data": tmp_path / "tokens"})


def test_skipped_places_are_told_unless_a_rollback_passed_over_them(made, tmp_path, capsys):
    _, fields, artifact, _ = made
    shutil.copytree(artifact.path, tmp_path / "one")
    shutil.copytree(fields["data"], tmp_path / "tokens")
    file = tmp_path / "one/training/consumed.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[2:]:
        line["places"] = [[first + 4, last + 4] for first, last in line["places"]]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "places 14–17 of the data were skipped, and no rollback says why" in proved(tmp_path / "one", capsys)[1]
    (tmp_path / "one/training/guard.jsonl").write_text(json.dumps({"step": 15, "event": "rollback", "to": 14, "passed_over": 4}) + "\n")
    status, said = proved(tmp_path / "one", capsys)
    assert status == 1 and "14–17 were passed over by rollbacks" in said and "steps 15 to 21 have read other data than this" in said
    file.write_text("".join(json.dumps(line) + "\n" for line in lines[:-1]))
    assert "the ledger ends with step 28, and the training with step 30" in proved(tmp_path / "one", capsys)[1]


def test_labelled_files_are_proved_by_their_rows(tmp_path, capsys):
    fields = {**case(tmp_path, "classification"), "regularization": {"curriculum": 0.7}}
    artifact = train(tmp_path, "one", fields)
    status, said = proved(artifact.path, capsys)
    assert status == 0 and re.search(r"rows\.jsonl +\d+ +\d+ +\d+ +24 +[0-9a-f]{12}", said), said
    rows = (tmp_path / "rows.jsonl").read_text(encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text(rows.replace('"label": "a"', '"label": "b"', 1), encoding="utf-8")
    status, said = proved(artifact.path, capsys)
    assert status == 1 and "read data that is not what it was: rows.jsonl: rows.jsonl was changed" in said
