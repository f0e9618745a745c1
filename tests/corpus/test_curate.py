"""The whole stage: what goes in comes out or is set aside with a reason; the same bytes however it was interrupted or divided."""

from __future__ import annotations

import gzip
import html.parser
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from corpus_helpers import DATA, curate, digest, documents, rejects, texts, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import luban
from luban.corpus import plan as plan_module
from luban.corpus import shards
from luban.corpus.card import print_card
from luban.foundation.console import console
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.messages import set_language


def test_the_shipped_texts_become_a_corpus(tmp_path):
    work = curate(tmp_path / "c", [DATA / "shakespeare.txt", DATA / "poems.jsonl.gz"], quality="prose", split={"validation": 0.02, "test": 0.05})
    found = documents(tmp_path / "c")
    everything = sum(found.values(), [])
    assert work.metrics["records"] == len(everything) + work.metrics["set_aside"]
    assert {d.language for d in everything} == {"en", "zh"}
    poem = next(d for d in everything if d.source == "poems.jsonl.gz:1")
    assert poem.metadata == {"title": "行宫", "author": "元稹"} and poem.text.startswith("行宫\n元稹\n\n寥落古行宫，")
    plays = "\n\n".join(d.text for d in sorted((d for d in everything if d.language == "en"), key=lambda d: int(d.source.split(":")[1])))
    original = (DATA / "shakespeare.txt").read_text(encoding="utf-8")
    assert "".join(plays.split()) == "".join(original.split()), "blocks lost or doubled a line"
    assert all("\n" + d.text.split("\n")[0] in "\n" + original for d in everything if d.language == "en")
    assert "MIT" in work.licences and "public domain" in work.licences
    assert not list((tmp_path / "c").glob(".work"))


def test_long_text_is_cut_at_empty_lines_only(tmp_path):
    paragraphs = [f"Paragraph {i} begins here\nand goes on over {i} lines\nbefore it ends." for i in range(3000)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    curate(tmp_path / "c", [tmp_path / "book.txt"], quality="off", deduplicate={"near": "off"})
    pieces = texts(tmp_path / "c")
    assert sorted(p for piece in pieces for p in piece.split("\n\n")) == sorted(paragraphs)
    assert 2000 <= sorted(map(len, pieces))[5] <= 2200


@pytest.mark.parametrize(
    ("separator", "expected"),
    [
        ("file", ["one\ntwo\n\nthree\n---\nfour"]),
        ("line", ["one", "two", "three", "---", "four"]),
        ("blank_line", ["one\ntwo", "three\n---\nfour"]),
        ("---", ["one\ntwo\n\nthree", "four"]),
        ("auto", ["one\ntwo\n\nthree\n---\nfour"]),
    ],
)
def test_document_separators(tmp_path, separator, expected):
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\n---\nfour\n")
    curate(tmp_path / "c", [tmp_path / "a.txt"], quality="off", document_separator=separator, deduplicate={"near": "off"}, split={"validation": 0})
    assert texts(tmp_path / "c") == expected


PAGE = """<!DOCTYPE html><html><head><title>t</title><script>var x = "hidden"</script></head><body>
<nav><ul><li><a href="/">Home</a></li><li><a href="/about">About us</a></li></ul></nav>
<main><article><h1>灯塔的历史</h1><p>灯塔的历史始于山顶上的一堆火，水手在夜里从远海就能看见。</p>
<p>The history of the lighthouse begins with a fire on a hill that sailors could see from the open sea at night.</p></article></main>
<footer>Copyright 2020, all rights reserved</footer></body></html>"""


def test_html_keeps_the_article_and_drops_the_frame(tmp_path):
    (tmp_path / "page.html").write_text(PAGE, encoding="utf-8")
    (tmp_path / "page2.html.gz").write_bytes(gzip.compress(PAGE.replace("灯塔", "风车").replace("<head>", '<head><meta charset="gbk">').encode("gbk")))
    write_jsonl(tmp_path / "pages.jsonl", [{"url": "http://a.example/", "html": PAGE.replace("灯塔", "水井")}])
    curate(tmp_path / "c", [tmp_path / "page.html", tmp_path / "page2.html.gz", tmp_path / "pages.jsonl"], quality="off", deduplicate={"near": "off"}, split={"validation": 0})
    for text, word in zip(texts(tmp_path / "c"), ("灯塔", "风车", "水井"), strict=True):
        assert f"{word}的历史始于山顶上的一堆火，水手在夜里从远海就能看见。" in text and "open sea" in text
        assert "hidden" not in text and "About us" not in text and "Copyright" not in text


def test_every_ending_and_compression_gives_the_same_documents(tmp_path):
    found = [f"文档 {i}：" + "春眠不觉晓" * i for i in range(1, 6)]
    rows = [{"text": text} for text in found]
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
    files = {
        "a.jsonl": lines, "b.jsonl.gz": gzip.compress(lines), "c.jsonl.zst": zstandard.compress(lines), "d.json": json.dumps(rows).encode(),
        "e.csv": ("text\n" + "\n".join(found)).encode("gb18030"), "f.tsv.gz": gzip.compress(("text\tn\n" + "\n".join(f"{t}\t1" for t in found)).encode()),
        "g.txt": "\n".join(found).encode("utf-16"), "h.md.zst": zstandard.compress("\n".join(found).encode()),
    }  # fmt: skip
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "i.parquet")
    for name in [*files, "i.parquet"]:
        curate(tmp_path / f"{name}-out", [tmp_path / name], document_separator="line", quality="off", split={"validation": 0}, deduplicate={"near": "off"})
        assert texts(tmp_path / f"{name}-out") == found, name


def test_text_field_by_name_by_pattern_and_by_length(tmp_path):
    rows = [{"title": f"题 {i}", "story": f"很久以前，有座山，山里有座庙 {i}。", "n": i} for i in range(3)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    options = {"quality": "off", "split": {"validation": 0}, "deduplicate": {"near": "off"}}
    curate(tmp_path / "auto", [path], **options)
    assert texts(tmp_path / "auto") == [row["story"] for row in rows]
    curate(tmp_path / "pattern", [path], text_field="{title}\n\n{story}", **options)
    assert texts(tmp_path / "pattern") == [f"{row['title']}\n\n{row['story']}" for row in rows]
    assert documents(tmp_path / "pattern")["train"][1].metadata == {"n": 1}
    with pytest.raises(ConfigError, match="did you mean story"):
        curate(tmp_path / "wrong", [path], text_field="storie", **options)


def test_conversations_are_sent_to_the_right_stage(tmp_path):
    with pytest.raises(ConfigError, match="conversations or instructions"):
        curate(tmp_path / "c", [DATA / "chat.jsonl"])


def test_bad_records_are_set_aside_with_file_line_and_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    good = [json.dumps({"text": f"document number {i} of several"}).encode() for i in range(4)]
    path.write_bytes(b"\n".join([good[0], b"{broken", good[1], b'{"text": ""}', b'{"other": 1}', b'{"text": "\xff\xfe"}', good[2], b'{"text": 5}', good[3]]))
    work = curate(tmp_path / "c", [path], quality="off", deduplicate={"near": "off"}, split={"validation": 0})
    assert [d.source for d in documents(tmp_path / "c")["train"]] == ["a.jsonl:1", "a.jsonl:3", "a.jsonl:7", "a.jsonl:9"]
    assert [(row["source"], row["rule"]) for row in rejects(tmp_path / "c")] == [(f"a.jsonl:{line}", "unreadable") for line in (2, 4, 5, 6, 8)]
    assert work.metrics["records"] == 9
    assert [place["source"] for place in json.loads((tmp_path / "c" / "card.json").read_text())["bad_lines"]] == [f"a.jsonl:{line}" for line in (2, 4, 5, 6, 8)]


def test_a_folder_with_a_binary_file_and_damaged_ones(tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    (folder / "picture.png").write_bytes(bytes(range(256)) * 50)
    (folder / "story.txt").write_text("A story that is long enough to keep.")
    (folder / "cut.jsonl.gz").write_bytes(gzip.compress(b'{"text": "a line that is there"}\n' * 3000)[:-9])
    (folder / "no.parquet").write_bytes(b"PAR1 nothing")
    (folder / "empty.txt").write_bytes(b"")
    curate(tmp_path / "c", [folder], quality="off", split={"validation": 0})
    assert sorted(texts(tmp_path / "c")) == ["A story that is long enough to keep.", "a line that is there"]
    unreadable = {row["source"]: row["reason"] for row in rejects(tmp_path / "c") if row["rule"] == "unreadable"}
    assert set(unreadable) == {"texts/picture.png", "texts/cut.jsonl.gz", "texts/no.parquet"}


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [("a.txt", b"", "no document is left"), ("a.jsonl", b"{}\n", "no column holds text"), ("a.bin", bytes(range(256)) * 9, "no document is left"), ("a.csv", b"text\n", "no document is left")],
)
def test_nothing_to_keep_is_a_clear_error(tmp_path, name, data, message):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match=message):
        curate(tmp_path / "c", [tmp_path / name])
    assert not (tmp_path / "c" / "card.json").exists()


def test_a_huge_line_is_set_aside_and_the_next_is_read(tmp_path, monkeypatch):
    path = tmp_path / "a.jsonl"
    path.write_bytes(json.dumps({"text": "x" * (17 << 20)}).encode() + b"\n" + json.dumps({"text": "short and sweet"}).encode() + b"\n")
    curate(tmp_path / "c", [path], quality="off", split={"validation": 0})
    assert texts(tmp_path / "c") == ["short and sweet"]
    (row,) = rejects(tmp_path / "c")
    assert row["source"] == "a.jsonl:1" and "longer than" in row["reason"]


def test_a_slice_takes_the_first_records(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": f"record number {i}"} for i in range(50)])
    curate(tmp_path / "c", [f"{path}#7"], quality="off", deduplicate={"near": "off"}, split={"validation": 0})
    assert texts(tmp_path / "c") == [f"record number {i}" for i in range(7)]


# ------------------------------------------------------------------------------------------------ own filters


def test_the_users_own_filter(tmp_path):
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a short one"}, {"text": "a very much longer one than that"}])
    (tmp_path / "mine.py").write_text(
        "def long(text):\n    return True if len(text) > 20 else (False, f'{len(text)} characters')\ndef odd(text):\n    return 'yes'\ndef fails(text):\n    return text.nothing\n"
    )
    options = {"quality": "off", "split": {"validation": 0}}
    curate(tmp_path / "c", [path], filters=[f"{tmp_path}/mine.py:long"], **options)
    assert texts(tmp_path / "c") == ["a very much longer one than that"]
    assert [(row["rule"], row["reason"]) for row in rejects(tmp_path / "c")] == [("mine.py:long", "11 characters")]
    for name, message in (("odd", "a filter returns True"), ("fails", "AttributeError"), ("missing", "has no 'missing'")):
        with pytest.raises(ConfigError, match=message):
            curate(tmp_path / name, [path], filters=[f"{tmp_path}/mine.py:{name}"], **options)


# ---------------------------------------------------------------------- the same result, however it was done


def big_input(folder: Path) -> list[Path]:
    """Several files of every way to cut, small units, duplicates across files, bad lines."""
    lines = [json.dumps({"text": f"Record {i}: " + f"word{i * 7919 % 1000} " * 30 + f"ends {i}", "kind": i % 3}) for i in range(1200)]
    lines[10:20] = ["{bad"] * 10
    (folder / "a.jsonl").write_text("\n".join(lines + lines[:100]) + "\n")
    (folder / "b.txt").write_text("\n\n".join(f"Paragraph {i}\nwith the number {i * i} in it, and {i**3} too." for i in range(3000)))
    (folder / "c.jsonl.gz").write_bytes(gzip.compress("\n".join(lines[600:]).encode()))
    pq.write_table(pa.Table.from_pylist([{"text": f"Row {i} of the table holds {i * 31} and {i * 17}."} for i in range(2000)]), folder / "d.parquet", row_group_size=100)
    (folder / "e").mkdir()
    for i in range(30):
        (folder / "e" / f"{i}.md").write_text(f"# Page {i}\n\nThis page is about the number {i} and its square {i * i}.\n" * 20)
    return [folder / name for name in ("a.jsonl", "b.txt", "c.jsonl.gz", "d.parquet", "e")]


@pytest.fixture
def small_units(monkeypatch):
    monkeypatch.setattr(plan_module, "UNIT_BYTES", 40_000)


def test_any_number_of_workers_gives_the_same_bytes(tmp_path, small_units):
    sources = big_input(tmp_path)
    results = []
    for workers in (1, 2):
        work = curate(tmp_path / f"w{workers}", sources, quality="off", split={"validation": 0.1, "stratify_by": "language"}, workers=workers)
        results.append((digest(tmp_path / f"w{workers}"), work.metrics))
    assert results[0] == results[1]
    assert len(list((tmp_path / "w1" / "documents" / "train").iterdir())) > 10


def test_units_cut_no_record_and_name_the_right_line(tmp_path, small_units):
    sources = big_input(tmp_path)
    curate(tmp_path / "c", sources, quality="off", deduplicate={"exact": False, "near": "off"}, split={"validation": 0})
    found = documents(tmp_path / "c")["train"]
    for file in ("a.jsonl", "b.txt"):
        original = (tmp_path / file).read_text().split("\n")
        mine = [d for d in found if d.source.startswith(file)]
        for document in mine:
            line = original[int(document.source.rpartition(":")[2]) - 1]
            assert (json.loads(line)["text"] if file == "a.jsonl" else line) == document.text.split("\n" if file == "b.txt" else "\0")[0]
    rows = [d for d in found if d.source.startswith("d.parquet")]
    assert [(d.source, d.text.split(" ")[1]) for d in rows] == [(f"d.parquet:{i + 1}", str(i)) for i in range(2000)]
    assert len([d for d in found if d.source.startswith("c.jsonl.gz")]) == 600
    assert len([row for row in rejects(tmp_path / "c") if row["source"].startswith("a.jsonl")]) == 20


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
from corpus_helpers import curate
from luban.corpus import plan
plan.UNIT_BYTES = 40_000
curate(Path(sys.argv[1]), json.loads(sys.argv[2]), quality="off", split={"validation": 0.1}, workers=int(sys.argv[4]))
"""


@pytest.mark.parametrize(("workers", "until"), [(1, "*.cleaned.json"), pytest.param(2, "*.cleaned.json", marks=pytest.mark.slow), pytest.param(1, "*.written.json", marks=pytest.mark.slow)])
def test_a_killed_run_continues_to_the_same_bytes(tmp_path, workers, until):
    sources = [str(source) for source in big_input(tmp_path)]
    command = [sys.executable, "-c", SCRIPT, "TARGET", json.dumps(sources), str(Path(__file__).parent), str(workers)]
    command[3] = str(tmp_path / "whole")
    environment = {**os.environ, "PYTHONPATH": str(Path(luban.__file__).parent.parent) + os.pathsep + os.environ.get("PYTHONPATH", "")}
    subprocess.run(command, check=True, env=environment, capture_output=True)
    command[3] = str(tmp_path / "killed")
    running = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
    units = tmp_path / "killed" / ".work" / "units"
    while len(list(units.glob(until))) < 4:
        assert running.poll() is None, "it ended before it could be killed"
        time.sleep(0.002)
    os.kill(running.pid, signal.SIGKILL)
    running.wait()
    done = {file: file.stat().st_mtime_ns for file in units.glob("*.cleaned.json")}
    assert done and not (tmp_path / "killed" / "card.json").exists()
    continued = subprocess.run(command, check=True, env=environment, capture_output=True, text=True)
    assert "units were done before" in continued.stderr
    assert digest(tmp_path / "killed") == digest(tmp_path / "whole")


def test_a_file_of_the_corpus_grows_in_the_working_folder(tmp_path, monkeypatch):
    """Where a kill leaves a part of one, it goes with that folder."""
    sources = big_input(tmp_path)
    seen = []
    whole = shards.pq.write_table
    monkeypatch.setattr(shards.pq, "write_table", lambda table, place, **options: (seen.append(Path(place).parent), whole(table, place, **options)))
    curate(tmp_path / "c", sources, quality="off", workers=1)
    assert seen and all(tmp_path / "c" / ".work" in (place, *place.parents) for place in seen)


# --------------------------------------------------------------------------------------------------- the card


class Links(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.links, self.tags, self.text = [], set(), []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data):
        self.text.append(data)


def test_the_card_says_what_was_done_and_escapes_the_data(tmp_path, capsys):
    rows = [{"text": f"<script>alert({i})</script> and the number {i} in the text of it"} for i in range(20)] + [{"text": "静夜思：床前明月光，疑是地上霜。"}] * 3
    path = write_jsonl(tmp_path / "a.jsonl", [*rows, {"text": ""}])
    (tmp_path / "SOURCE.md").write_text("# texts\n\n- license: CC BY-SA 4.0\n")
    work = curate(tmp_path / "c", [path], quality="off", split={"validation": 0.2}, deduplicate={"near": "off"})
    facts = json.loads((tmp_path / "c" / "card.json").read_text())
    assert facts["records"] == 24 and facts["kept"] == 21 and facts["set_aside"] == 3
    assert facts["rejected"]["exact_duplicate"]["count"] == 2 and facts["rejected"]["unreadable"]["count"] == 1
    assert facts["duplicates"] | {"largest": None} == {"clusters": 1, "documents": 2, "largest": None}
    assert facts["duplicates"]["largest"][0]["size"] == 3
    assert sum(facts["lengths"].values()) == 21 and work.licences == ["CC-BY-SA-4.0"]
    kept = texts(tmp_path / "c")
    assert sum(split["bytes"] for split in facts["splits"].values()) == sum(len(text.encode()) for text in kept)
    page = (tmp_path / "c" / "card.html").read_text(encoding="utf-8")
    reader = Links()
    reader.feed(page)
    assert reader.links == [] and "script" not in reader.tags and "http" not in page and "静夜思" in page
    print_card(tmp_path / "c")
    console().file.flush()
    shown = capsys.readouterr().err
    assert "exact_duplicate" in shown and "CC-BY-SA-4.0" in shown and "validation" in shown


def test_the_card_in_chinese(tmp_path, capsys):
    set_language("zh")
    curate(tmp_path / "c", [write_jsonl(tmp_path / "a.jsonl", [{"text": f"第{i}首诗，春眠不觉晓。"} for i in range(9)])], quality="off", deduplicate={"near": "off"})
    page = (tmp_path / "c" / "card.html").read_text(encoding="utf-8")
    assert 'lang="zh-CN"' in page and "数据卡" in page and "文档" in page
    print_card(tmp_path / "c")
    assert "语言" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("files", "licence", "expected"),
    [
        ({"LICENSE": "MIT License\n\nPermission is hereby granted"}, "auto", ["MIT"]),
        ({"README.md": "about MIT and others\nLicense: Apache License, Version 2.0\n"}, "auto", ["Apache-2.0"]),
        ({"README.md": "a course at MIT"}, "auto", ["unknown"]),
        ({"NOTICES.md": "MIT"}, "auto", ["unknown"]),
        ({"LICENSES.md": "# Notices\n\n## a.txt\n\nCC BY 4.0\n\n## b.txt\n\nMIT\n"}, "auto", ["CC-BY-4.0"]),
        ({"LICENSE": "MIT"}, "CC0-1.0", ["CC0-1.0"]),
    ],
)
def test_licences(tmp_path, files, licence, expected):
    (tmp_path / "a.txt").write_text("some text to keep")
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert curate(tmp_path / "c", [tmp_path / "a.txt"], quality="off", licence=licence).licences == expected


# ---------------------------------------------------------------------------------------------------- fuzzing

LINES = st.lists(
    st.sampled_from([b'{"text": "hello there, world"}', b'{"text": 1}', b"{", b"", b"\xff\xfe\x00", b"\x00", b"plain words, many", "诗，词。".encode(), b"a,b,c", b'"', b"[", b"<html>", b"---"])
    | st.binary(max_size=60),
    max_size=30,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(LINES.map(b"\n".join), st.sampled_from(["txt", "jsonl", "json", "csv", "tsv", "html", "md", "parquet", "jsonl.gz", "txt.zst", "dat"]), st.sampled_from(["auto", "line", "blank_line"]))
def test_any_bytes_end_in_documents_counted_rejects_or_a_clear_error(tmp_path_factory, data, ending, separator):
    folder = tmp_path_factory.mktemp("fuzz")
    path = folder / f"a.{ending}"
    path.write_bytes(gzip.compress(data) if ending.endswith("gz") else data)
    try:
        work = curate(folder / "c", [path], document_separator=separator, split={"validation": 0})
    except (DataError, ConfigError) as error:
        assert error.what and "a." in error.text()
        return
    assert work.metrics["records"] == len(texts(folder / "c")) + len(rejects(folder / "c"))
    assert all(row["source"].startswith("a.") and row["rule"] for row in rejects(folder / "c"))


def test_a_known_language_is_taken_and_nothing_recognised(tmp_path, monkeypatch):
    monkeypatch.setattr("luban.corpus.clean.identify", lambda *_: pytest.fail("looked at"))
    curate(tmp_path / "c", [write_jsonl(tmp_path / "a.jsonl", [{"text": "床前明月光，疑是地上霜。"}, {"text": "ab"}])], quality="off", minimum_characters=1, language={"known": "zh"}, split={"validation": 0})
    assert [document.language for document in documents(tmp_path / "c")["train"]] == ["zh", "zh"]
