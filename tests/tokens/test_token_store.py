"""Shards: what went in comes out, a killed run continues, and damage is named."""

from __future__ import annotations

import json
import shutil
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.corpus.documents import Document
from luban.foundation.errors import DataError
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens import encoding, writer
from luban.tokens import store as store_module
from luban.tokens.blocks import BLOCK_BYTES
from luban.tokens.encoding import cut_text, encode_documents
from luban.tokens.store import TokenStore
from luban.tokens.writer import StoreWriter, dtype_for


def files_of(folder):
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_documents_come_back(tokens, tokenizer, texts):
    store = TokenStore(tokens, "train")
    assert store.documents == len(texts) and len(store.index["shards"]) > 3
    for index, text in enumerate(texts):
        assert store.document(index).tolist() == tokenizer.encode(text)
    for start, stop in ((0, 0), (2, 5), (3, None), (0, 10**6), (10**6, None), (10**6, 2 * 10**6)):
        assert store.document(3, start, stop).tolist() == tokenizer.encode(texts[3])[start:stop]
    assert store.tokens == store.offsets[-1] == sum(len(tokenizer.encode(text)) for text in texts)
    assert store.bytes == sum(len(text.encode()) for text in texts)
    assert store.identity(7) == "train-7" and store.language(len(texts) - 3) == "zh"
    assert [store.language_names[index] for index in store.languages[-3:]] == ["zh", "en", ""]
    assert store.by_language["zh"]["documents"] == 150
    assert store.dtype == np.uint16 and store.document(0).base is not None  # a view, not a copy
    with pytest.raises(IndexError):
        store.document(store.documents)


def test_the_artifact_holds_its_tokenizer_and_every_split(tokens, tokenizer, encode, tmp_path):
    assert Tokenizer.load(tokens / "tokenizer").fingerprint() == tokenizer.fingerprint() == TokenStore(tokens, "train").index["tokenizer"]
    assert TokenStore(tokens, "validation").documents == 5 and TokenStore(tokens, "test").documents == 0
    work = encode(tmp_path / "again")
    assert work.licences == ["CC0"] and work.metrics["validation"]["documents"] == 5


def test_the_same_corpus_gives_the_same_bytes_whatever_the_batches(tokens, encode, tmp_path):
    other = encode(tmp_path / "other", batch_characters=999).path
    assert files_of(other) == files_of(tokens)


@pytest.mark.parametrize("documents", [0, 1, 60, 150, 201])
def test_a_killed_run_continues_to_the_same_bytes(tokens, encode, tmp_path, monkeypatch, documents):
    """Killed while adding a document: whole shards stay, the rest is encoded again."""
    path = tmp_path / "tokens"
    original = StoreWriter.add
    added = []

    def dying(self, *arguments, **named):
        if len(added) == documents:
            raise KeyboardInterrupt
        added.append(1)
        original(self, *arguments, **named)

    monkeypatch.setattr(StoreWriter, "add", dying)
    if documents < TokenStore(tokens, "train").documents:
        with pytest.raises(KeyboardInterrupt):
            encode(path)
    with pytest.raises(DataError, match="no tokens|not whole"):
        TokenStore(path, "train")
    counted = []
    monkeypatch.setattr(StoreWriter, "add", lambda self, *a, **n: (counted.append(1), original(self, *a, **n))[1])
    encode(path)
    assert files_of(path) == files_of(tokens)
    if documents >= 60:
        assert len(counted) < TokenStore(tokens, "train").documents + 5  # it did not begin anew


def test_a_kill_between_files_and_index_leaves_no_trace(tokens, encode, tmp_path, monkeypatch):
    path = tmp_path / "tokens"
    original, calls = writer.write_json, []

    def dying(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        original(*arguments)

    monkeypatch.setattr(writer, "write_json", dying)
    with pytest.raises(KeyboardInterrupt):
        encode(path)
    monkeypatch.setattr(writer, "write_json", original)
    encode(path)
    assert files_of(path) == files_of(tokens)


def test_leftovers_of_another_tokenizer_are_not_continued(tmp_path):
    for facts in ({"tokenizer": "a"}, {"tokenizer": "b"}):
        store = StoreWriter(
            tmp_path / "train", vocabulary_size=10, shard_tokens=2, facts={**facts, "end_of_text_id": 0, "begin_of_text_id": None}
        )
        assert store.documents == 0
        for _ in range(3):
            store.add([1, 2], language="en", identity="x", size_bytes=2)
    store.finish()
    assert TokenStore(tmp_path, "train").documents == 3


@pytest.mark.parametrize("part", writer.PARTS)
def test_a_damaged_shard_is_named(tokens, tmp_path, part):
    shutil.copytree(tokens, tmp_path / "tokens")
    TokenStore(tmp_path / "tokens", "train").verify()
    file = tmp_path / "tokens" / "train" / f"00002{part}"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(DataError, match=rf"00002{part}.*checksum"):
        TokenStore(tmp_path / "tokens", "train").verify()
    file.write_bytes(data[:-2])
    with pytest.raises(DataError, match=f"00002{part} is damaged"):
        store = TokenStore(tmp_path / "tokens", "train")
        for index in range(store.documents):
            store.document(index), store.language(index), store.identity(index)
    file.unlink()
    with pytest.raises(DataError, match=f"00002{part}"):
        TokenStore(tmp_path / "tokens", "train").verify()


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    """A split of one shard of seven blocks of tokens and several of names, and its documents."""
    folder, draw = tmp_path_factory.mktemp("long"), np.random.default_rng(0)
    documents = [draw.integers(0, 1000, int(draw.integers(0, 900))) for _ in range(480)]
    made = StoreWriter(folder / "train", vocabulary_size=1000, shard_tokens=10**6, facts={"tokenizer": "t", "end_of_text_id": 0, "begin_of_text_id": None})
    for number, ids in enumerate(documents):
        made.add(ids.tolist(), language="en", identity=f"{number:>400}", size_bytes=len(ids))
    made.finish()
    return folder, documents


def flip(file, place):
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


def test_a_flipped_bit_inside_the_vocabulary_is_found_where_it_is_read(long, tmp_path):
    """Every document is right or refused, and refused are those that share a block with the bit; the rest of the shard can be read."""
    folder, documents = long
    shutil.copytree(folder, tmp_path / "tokens")
    file = tmp_path / "tokens" / "train" / "00000.bin"
    assert file.stat().st_size > 6 * BLOCK_BYTES
    flip(file, place := 3 * BLOCK_BYTES + 100)
    store = TokenStore(tmp_path / "tokens", "train")
    for index in np.random.default_rng(1).permutation(store.documents):
        first, last = 2 * int(store.offsets[index]), 2 * int(store.offsets[index + 1])
        if last > first and first // BLOCK_BYTES <= 3 <= (last - 1) // BLOCK_BYTES:
            with pytest.raises(DataError, match=rf"00000\.bin is damaged: bytes {3 * BLOCK_BYTES} to {4 * BLOCK_BYTES} are not those that were written"):
                store.document(index)
        else:
            assert store.document(index).tolist() == documents[index].tolist()
        assert store.identity(index) == f"{index:>400}"
    flip(file, place)
    flip(file.with_name("00000.ids.npy"), 2 * BLOCK_BYTES)
    store = TokenStore(tmp_path / "tokens", "train")
    assert store.identity(1).strip() == "1"
    with pytest.raises(DataError, match=r"00000\.ids\.npy is damaged: bytes 131072 to"):
        store.identity(2 * BLOCK_BYTES // 400)


def test_a_shard_of_an_earlier_version_is_read_and_compared_whole_or_with_a_note(long, tmp_path, capsys, monkeypatch):
    folder, documents = long
    shutil.copytree(folder, tmp_path / "tokens")
    split = tmp_path / "tokens" / "train"
    index = json.loads((split / "index.json").read_text())
    for part in (".bin.sums.npy", ".ids.npy.sums.npy"):
        (split / f"00000{part}").unlink()
        for facts in ("files", "xxh3"):
            del index["shards"][0][facts][part]
    (split / "index.json").write_text(json.dumps(index))
    store = TokenStore(tmp_path / "tokens", "train")
    store.look_over()
    assert all(store.document(number).tolist() == ids.tolist() and store.identity(number).strip() == str(number) for number, ids in enumerate(documents))
    monkeypatch.setattr(store_module, "SMALL_BYTES", 1000)
    store.look_over()
    assert "was encoded before shards had checksums of their blocks" in capsys.readouterr().err
    monkeypatch.undo()
    flip(split / "00000.bin", 0)
    with pytest.raises(DataError, match=r"00000\.bin is damaged: its checksum"):
        TokenStore(tmp_path / "tokens", "train").look_over()


def test_a_missing_or_torn_index_is_told(tokens, tmp_path):
    with pytest.raises(DataError, match="no tokens"):
        TokenStore(tmp_path, "train")
    shutil.copytree(tokens, tmp_path / "tokens")
    index = tmp_path / "tokens" / "train" / "index.json"
    index.write_text(index.read_text()[:50])
    with pytest.raises(DataError, match="damaged"):
        TokenStore(tmp_path / "tokens", "train")
    index.write_text(json.dumps({**json.loads((tokens / "train" / "index.json").read_text()), "format": 99}))
    with pytest.raises(DataError, match="newer"):
        TokenStore(tmp_path / "tokens", "train")


def test_an_empty_corpus_is_refused(encode, tmp_path):
    from tokenizer_samples import write_corpus

    with pytest.raises(DataError, match="no training text"):
        encode(tmp_path / "tokens", write_corpus(tmp_path / "empty", train=[], validation=[]))


def test_wide_ids_take_four_bytes(tmp_path):
    assert dtype_for(65_536) == np.uint16 and dtype_for(65_537) == np.uint32
    store = StoreWriter(
        tmp_path / "train",
        vocabulary_size=151_665,
        shard_tokens=1000,
        facts={"tokenizer": "t", "end_of_text_id": 151_643, "begin_of_text_id": None},
    )
    store.add([151_664, 1], language="zh", identity="一", size_bytes=5)
    store.finish()
    opened = TokenStore(tmp_path, "train")
    assert opened.document(0).tolist() == [151_664, 1] and opened.identity(0) == "一"


def test_a_large_store_opens_without_reading_it(tmp_path):
    """10,000 shards: only the index is read (each shard would be mapped at first use)."""
    facts = {"files": dict.fromkeys(writer.PARTS, 1), "xxh3": {}, "tokens": 10**8, "documents": 10**5, "bytes": 1}
    index = {
        "format": 1,
        "dtype": "<u2",
        "complete": True,
        "tokens": 10**12,
        "documents": 10**9,
        "bytes": 1,
        "languages": ["en"],
        "by_language": {},
        "end_of_text_id": 0,
        "begin_of_text_id": None,
    }
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "index.json").write_text(json.dumps({**index, "shards": [{"name": f"{i:05d}", **facts} for i in range(10_000)]}))
    start = time.perf_counter()
    assert TokenStore(tmp_path, "train").documents == 10**9
    assert time.perf_counter() - start < 1


def test_the_encoder_reads_no_more_than_two_batches_ahead(tokenizer):
    read = []

    def documents():
        for index in range(1000):
            read.append(index)
            yield Document(str(index), "word " * 20, "en")

    for done, _ in enumerate(encode_documents(tokenizer, documents(), batch_characters=1000)):
        assert len(read) <= done + 1 + 2 * 10
    assert done == 999


@given(st.text(alphabet="ab1 \n\t。中\u0301é.", max_size=200), st.integers(1, 20))
@settings(max_examples=300, deadline=None)
def test_text_encoded_in_pieces_gives_the_same_ids(tokenizer, text, size):
    pieces = cut_text(text, size)
    assert "".join(pieces) == text
    assert [index for piece in pieces for index in tokenizer.encode(piece)] == tokenizer.encode(text)


def test_a_long_document_is_cut_and_joined(tokenizer, monkeypatch):
    monkeypatch.setattr(encoding, "PIECE_CHARACTERS", 100)
    text = "First Citizen:\nBefore we proceed\n\n白日依山尽\n" * 50
    assert len(cut_text(text, 100)) > 10
    ((_, ids),) = encode_documents(tokenizer, [Document("1", text)], 10)
    assert ids == tokenizer.encode(text)
