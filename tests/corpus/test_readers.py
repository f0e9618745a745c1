"""Formats, encodings and damage, against files written by the libraries that own the formats."""

from __future__ import annotations

import csv
import gzip
import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from luban.corpus.readers import BadLine, find_files, open_stream, read_rows, recognise
from luban.foundation.errors import DataError

ROWS = [{"text": "first\u2028line", "n": 1}, {"text": "第二行，全角。", "n": 2}, {"text": 'with "quotes", commas\nand a line end', "n": 3}]


def rows_of(path) -> tuple[list[dict], list[BadLine]]:
    bad: list[BadLine] = []
    return [row for _, row in read_rows(path, on_bad=bad.append)], bad


def write(path, rows):
    if ".jsonl" in path.name:
        data = b"".join(json.dumps(row, ensure_ascii=False).encode() + b"\n" for row in rows)
    elif ".json" in path.name:
        data = json.dumps(rows, ensure_ascii=False, indent=1).encode()
    elif ".parquet" in path.name:
        pq.write_table(pa.Table.from_pylist(rows), path)
        return path
    else:
        held = io.StringIO()
        writer = csv.DictWriter(held, list(rows[0]), delimiter="\t" if ".tsv" in path.name else ",", quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        data = held.getvalue().encode()
    if path.suffix == ".gz":
        data = gzip.compress(data)
    if path.suffix == ".zst":
        data = zstandard.compress(data)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.jsonl.zst", "a.json.gz", "a.csv.gz", "a.csv.zst", "a.tsv.zst"])
def test_every_table_gives_the_rows_that_were_written(tmp_path, name):
    found, bad = rows_of(write(tmp_path / name, ROWS))
    assert [row["text"] for row in found] == [row["text"] for row in ROWS]
    assert [int(row["n"]) for row in found] == [1, 2, 3]
    assert bad == []


def test_compression_is_known_by_content_not_by_ending(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(gzip.compress(b'{"text": "x"}\n'))
    assert open_stream(path).read() == b'{"text": "x"}\n'
    assert recognise(path).compression == "gz"


@pytest.mark.parametrize(
    ("content", "name", "format"),
    [
        (b"<!DOCTYPE html><html><body>x</body></html>", "page", "html"),
        (b'{"text": "a"}\n{"text": "b"}\n', "data.txt.bak", "jsonl"),
        (b'[\n {"text": "a"}\n]', "demo.jsonl", "json"),
        (b'{"text": "a"}\n{"text": "b"}\n', "demo.json", "jsonl"),
        (b'{"version": 1,\n "data": [{"text": "a"}]}', "demo.json", "json"),
        (b"# title\n\nbody", "readme.md", "markdown"),
        (b"just words", "words.txt", "text"),
        (bytes(range(256)) * 4, "picture.png", "binary"),
        (b"", "empty.txt", "text"),
    ],
)
def test_format_is_recognised(tmp_path, content, name, format):
    path = tmp_path / name
    path.write_bytes(content)
    assert recognise(path).format == format


CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n" * 20


@pytest.mark.parametrize(
    ("data", "encoding"),
    [
        (CHINESE.encode(), "utf-8"),
        (CHINESE.encode("utf-8-sig"), "utf-8-sig"),
        (CHINESE.encode("gb18030"), "gb18030"),
        (CHINESE.encode("utf-16"), "utf-16-le"),
        (b"\xfe\xff" + CHINESE.encode("utf-16-be"), "utf-16-be"),
        (("name: value\n" + CHINESE).encode("utf-16-le"), "utf-16-le"),
        ("It’s “quoted” — in Windows-1252.\n".encode("cp1252") * 30, "utf-8"),
        (CHINESE.encode()[:100] + b"\xff\n" + CHINESE.encode() * 4, "utf-8"),
    ],
)
def test_encoding_is_recognised(tmp_path, data, encoding):
    path = tmp_path / "a.txt"
    path.write_bytes(data)
    assert recognise(path).encoding == encoding


@pytest.mark.parametrize("encoding", ["gb18030", "utf-16", "utf-16-be", "utf-8-sig"])
def test_rows_in_other_encodings(tmp_path, encoding):
    path = tmp_path / "a.jsonl"
    lines = "".join(json.dumps({"text": line}, ensure_ascii=False) + "\n" for line in CHINESE.splitlines())
    path.write_bytes((("\ufeff" if encoding == "utf-16-be" else "") + lines).encode(encoding))
    found, bad = rows_of(path)
    assert [row["text"] for row in found] == CHINESE.splitlines()
    assert not bad


def test_bad_lines_are_named_with_their_reason(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "one"}\n{"text": \n\n[1]\n\xff\xfe{}\n"word"\n{"text": "seven"}\r\n')
    bad: list[BadLine] = []
    rows = list(read_rows(path, on_bad=bad.append))
    assert rows == [(1, {"text": "one"}), (7, {"text": "seven"})]
    assert [(line.line, line.reason.split(" (")[0]) for line in bad] == [
        (2, "not valid JSON: Expecting value"), (4, "a JSON array, not an object"), (5, "not valid utf-8"), (6, "a JSON string, not an object"),
    ]  # fmt: skip


def test_bad_csv_rows_are_named_and_reading_goes_on(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('name,text\na,one\nb,two,three\nc,"four"x\nd,five\n')
    bad: list[BadLine] = []
    rows = list(read_rows(path, on_bad=bad.append))
    assert [row["name"] for _, row in rows] == ["a", "d"]
    assert [line.line for line in bad] == [3, 4]
    assert rows[1][0] == 5


def test_a_csv_without_a_header_loses_no_row(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text("He said so.\t他这么说。\nNo, never!\t不，从不！\n")
    found, _ = rows_of(path)
    assert found == [{"column_1": "He said so.", "column_2": "他这么说。"}, {"column_1": "No, never!", "column_2": "不，从不！"}]


def test_a_cut_off_json_array_keeps_what_came_before(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[{"text": "one"},\n {"text": "two"},\n {"text": "thr')
    found, bad = rows_of(path)
    assert [row["text"] for row in found] == ["one", "two"]
    assert [line.line for line in bad] == [3]


def test_a_json_array_larger_than_the_window(tmp_path):
    path = tmp_path / "a.json"
    rows = [{"text": "字" * 500, "n": n} for n in range(2000)]  # 3 MB: the window reads 256 KB
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=2), encoding="utf-8")
    numbered = list(read_rows(path, on_bad=lambda bad: pytest.fail(str(bad))))
    assert [row for _, row in numbered] == rows
    assert numbered[-1][0] == 2 + 4 * 1999


def test_a_cut_off_gzip_is_a_data_error(tmp_path):
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"text": "one"}\n' * 5000)[:-20])
    with pytest.raises(DataError, match="damaged or cut off"):
        rows_of(path)


def test_find_files(tmp_path):
    (tmp_path / "b" / ".git").mkdir(parents=True)
    for name in ("b/2.txt", "b/1.txt", "b/.hidden", "b/.git/config", "a.txt"):
        (tmp_path / name).write_text("x")
    found = find_files([tmp_path / "b", tmp_path / "a.txt", tmp_path / "b" / "1.txt"])
    assert [file.relative_to(tmp_path).as_posix() for file in found] == ["b/1.txt", "b/2.txt", "a.txt"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no files"):
        find_files([tmp_path / "empty"])
    with pytest.raises(DataError, match="no such file"):
        find_files([tmp_path / "missing"])


@given(st.lists(st.dictionaries(st.text(min_size=1), st.text() | st.integers() | st.none(), min_size=1), max_size=8))
def test_any_json_lines_come_back(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("rows") / "a.jsonl"
    path.write_bytes(b"".join(json.dumps(row, ensure_ascii=False).encode("utf-8") + b"\n" for row in rows))
    bad: list[BadLine] = []
    if recognise(path).format == "jsonl":
        assert [row for _, row in read_rows(path, on_bad=bad.append)] == rows
        assert not bad


@given(st.binary(max_size=2000), st.sampled_from([".jsonl", ".json", ".csv", ".tsv", ".parquet", ".gz", ".zst"]))
def test_random_bytes_end_in_rows_bad_lines_or_a_data_error(tmp_path_factory, data, ending):
    path = tmp_path_factory.mktemp("fuzz") / f"a{ending}"
    path.write_bytes(data)
    try:
        for number, row in read_rows(path, on_bad=lambda bad: None):
            assert number >= 1 and isinstance(row, dict)
    except DataError as error:
        assert str(path) in error.text()
