"""Artifacts are whole or absent; locks are held by one; hashes follow content, not names."""

from __future__ import annotations

import subprocess
import sys

import pytest

from luban.foundation.artifacts import fingerprint, fingerprint_path, finish, locked, open_artifact, write_bytes
from luban.foundation.errors import DataError, LockedError


def make(tmp_path, name="a"):
    partial = tmp_path / f"{name}.partial"
    partial.mkdir()
    (partial / "data.bin").write_bytes(b"1234")
    return finish(partial, tmp_path / name, {"kind": "curate", "fingerprint": "f"})


def test_finish_and_open(tmp_path):
    made = make(tmp_path)
    assert open_artifact(made.path).fingerprint == "f"
    assert not (tmp_path / "a.partial").exists()
    with pytest.raises(DataError, match="needed here"):
        open_artifact(made.path, ("train",))


def test_what_a_kill_left_half_written_does_not_enter_an_artifact(tmp_path):
    inner = tmp_path / "a.partial" / "inner"
    inner.mkdir(parents=True)
    program = "import os, sys, pathlib; from luban.foundation import artifacts; os.replace = lambda *_: os._exit(9); artifacts.write_bytes(pathlib.Path(sys.argv[1]), b'{}')"
    assert subprocess.run([sys.executable, "-c", program, str(inner / "card.json")]).returncode == 9
    assert len(list(inner.iterdir())) == 1
    write_bytes(inner / "card.json", b"{}")
    made = finish(tmp_path / "a.partial", tmp_path / "a", {"kind": "curate", "fingerprint": "f"})
    assert [file.name for file in (made.path / "inner").iterdir()] == ["card.json"]
    assert list(made.manifest["files"]) == ["inner/card.json"]


def test_a_moved_artifact_keeps_working(tmp_path):
    made = make(tmp_path)
    made.path.rename(tmp_path / "elsewhere")
    assert open_artifact(tmp_path / "elsewhere").kind == "curate"


@pytest.mark.parametrize("damage", [lambda p: (p / "data.bin").write_bytes(b"12"), lambda p: (p / "data.bin").unlink(), lambda p: (p / "manifest.json").write_text("{"), lambda p: (p / "manifest.json").write_text("[]")])
def test_damage_is_found_and_named(tmp_path, damage):
    made = make(tmp_path)
    damage(made.path)
    with pytest.raises(DataError, match="damaged"):
        open_artifact(made.path)


def test_a_stopped_stage_is_explained(tmp_path):
    (tmp_path / "b.partial").mkdir()
    with pytest.raises(DataError, match="before it was whole"):
        open_artifact(tmp_path / "b")


def test_fingerprints_follow_content(tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "1.txt").write_text("hello")
    before = fingerprint_path(tmp_path / "x")
    (tmp_path / "x").rename(tmp_path / "y")
    assert fingerprint_path(tmp_path / "y") == before
    (tmp_path / "y" / "1.txt").write_text("hellp")
    assert fingerprint_path(tmp_path / "y") != before
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1})
    with pytest.raises(DataError, match="no such"):
        fingerprint_path(tmp_path / "absent")


def test_a_lock_refuses_the_second_and_dies_with_its_holder(tmp_path):
    code = f"from pathlib import Path\nfrom luban.foundation.artifacts import locked\nwith locked(Path({str(tmp_path)!r})):\n print('held', flush=True)\n input()"
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    with pytest.raises(LockedError, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.communicate()
    with locked(tmp_path):
        pass


def test_write_bytes_leaves_no_part(tmp_path, monkeypatch):
    write_bytes(tmp_path / "f", b"old")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(Exception, match="disk is full"):
        write_bytes(tmp_path / "f", b"new")
    assert (tmp_path / "f").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["f"]
