"""C++ beside a module: compiled once, kept where the user's cache is, made for the process where it cannot be kept."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from luban.foundation.compiled import begin, compiled

pytestmark = pytest.mark.compiler
SOURCE = '#include "vectors.h"\nextern "C" float sum(const float* of) { return sum_of(load(of)); }\n'


def sum_of(library: ctypes.CDLL) -> float:
    library.sum.restype = ctypes.c_float
    return library.sum((ctypes.c_float * 16)(*[1.0] * 16))


def test_compiled_once_and_anew_when_the_source_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "small.cpp"
    source.write_text(SOURCE)
    assert sum_of(compiled(source)) in (4, 8, 16)  # as many as a vector has
    (kept,) = (tmp_path / "cache/luban").iterdir()
    monkeypatch.setenv("CXX", str(Path(__file__)))  # no program at all
    assert compiled(source) is None
    monkeypatch.delenv("CXX")
    made = kept.stat().st_mtime_ns
    assert compiled(source) and kept.stat().st_mtime_ns == made
    source.write_text(SOURCE.replace("sum_of(load(of))", "of[0] + 1"))
    assert sum_of(compiled(source)) == 2 and len(list(kept.parent.iterdir())) == 2


def test_code_that_cannot_be_kept_or_compiled(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("no folder")
    source = tmp_path / "small.cpp"
    source.write_text(SOURCE)
    assert sum_of(compiled(source)) in (4, 8, 16)
    source.write_text("no C++")
    assert compiled(source) is None and compiled(tmp_path / "none.cpp") is None


def test_what_was_begun_is_waited_for_and_not_made_twice(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source, broken = tmp_path / "small.cpp", tmp_path / "broken.cpp"
    source.write_text(SOURCE)
    broken.write_text("no C++")
    begin(source, broken)
    monkeypatch.setattr("luban.foundation.compiled._compile", lambda *_: pytest.fail("compiled again"))
    assert sum_of(compiled(source)) in (4, 8, 16)
    monkeypatch.undo()
    assert compiled(broken) is None
