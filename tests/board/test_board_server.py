"""The board's server, as a process of its own: what it finds, how it thins a log, what it sends again, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import time
from pathlib import Path

import pytest
from board_lab import Board, entries, line, make_run, write

from luban.board.library import Library
from luban.board.server import show_board
from luban.foundation.artifacts import locked
from luban.foundation.errors import DataError


def merged(held: dict | None, part: dict) -> dict:
    """What a page holds after an answer; the counterpart of `merge` in board.js."""
    if held is None or held["generation"] != part["generation"]:
        held = {"generation": part["generation"], "tables": {}, "events": [], "samples": []}
    for name, given in part["tables"].items():
        if not given["at"]:
            held["tables"][name] = given
            continue
        table = held["tables"][name]
        for axis, values in given["places"].items():
            table["places"][axis][given["at"] :] = values
        for column, lists in given["series"].items():
            for old, new in zip(table["series"][column], lists, strict=True):
                old[given["at"] :] = new
        table["rows"] = given["rows"]
    held["events"] += part["events"]["items"]
    held["samples"] += part["samples"]["items"]
    held["counts"] = {"events": part["events"]["count"], "samples": part["samples"]["count"]}
    return held


def known(held: dict) -> str:
    return json.dumps({"generation": held["generation"], "tables": {name: [table["level"], table["first"], table["rows"]] for name, table in held["tables"].items()}, **held["counts"]})


def summary_of(board: Board, run: str) -> dict:
    for _ in range(100):  # a run that was not there is looked for again a moment later
        if board.get("/api/run", run=run).status_code == 200:
            return next(one for one in board.get("/api/runs").json()["runs"] if one["id"] == run)
        time.sleep(0.05)
    raise AssertionError(run)


def test_runs_are_found_with_their_state(board, shelf):
    make_run(shelf / "found/done")
    make_run(shelf / "found/halted.partial", more='{"step": 101, "lo')
    make_run(shelf / "at-work/base.partial")
    write(shelf / "found/done/training/folds/0.log.jsonl", entries(1, 5))
    write(shelf / "found/done/training/checkpoints/training/log.jsonl", entries(1, 5))
    write(shelf / "found/.previous/old/training/log.jsonl", entries(1, 5))
    with locked(shelf / "at-work"):  # as the runner holds it
        os.utime(shelf / "at-work/base.partial/training/log.jsonl")
        assert summary_of(board, "at-work/base")["state"] == "running"
    done, halted = summary_of(board, "found/done"), summary_of(board, "found/halted")
    assert (done["state"], halted["state"]) == ("finished", "stopped")
    assert halted["step"] == 100 and halted["steps"] == 200 and halted["loss"] == json.loads(entries(100, 100))["loss"]
    ids = {run["id"] for run in board.get("/api/runs").json()["runs"]}
    assert "found/done/training/folds/0" in ids and not any("checkpoints" in one or "previous" in one for one in ids)
    write(shelf / "found/done/recipe.resolved.yaml", "of nobody")
    write(shelf / "found/recipe.resolved.yaml", "name: 配方\n")
    told = board.get("/api/run", run="found/done").json()
    assert told["config"] == {"sequence_length": "64", "optimizer.name": "adamw"} and told["recipe"] == "name: 配方\n" and told["metrics"] == {"steps": "100"}


@pytest.mark.parametrize("window", [None, (37, 1211), (900, 901), (-5, 10**9)])
def test_buckets_are_what_brute_force_gives(shelf, window):
    chance = random.Random(4)
    rows = [{"step": 2 * index + 1, "tokens": 7 * index, "seconds": index / 3, "loss": chance.choice([math.nan, None, chance.gauss(0, 1), chance.gauss(0, 1), 1e300])} for index in range(1500)]
    write(shelf / "thin/training/log.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    answer = Library(shelf).series("thin", 60, window, {})["tables"][""]
    width, first = 2 ** answer["level"], answer["first"]
    inside = [index for index, row in enumerate(rows) if window is None or window[0] <= row["step"] <= window[1]]
    assert first % width == 0 and first <= inside[0] and answer["rows"] > inside[-1] and (answer["rows"] - first) / width <= 60 + 1
    expected = []
    for start in range(first, answer["rows"], width):
        bucket = rows[start : min(start + width, answer["rows"])]
        values = [row["loss"] for row in bucket if row["loss"] is not None and math.isfinite(row["loss"])]
        place = (bucket[-1]["step"], bucket[-1]["tokens"], bucket[-1]["seconds"])
        expected.append((place, (sum(values) / len(values), min(values), max(values)) if values else (None, None, None)))
    series = answer["series"]["loss"] if width > 1 else answer["series"]["loss"] * 3
    found = [((step, tokens, seconds), three) for step, tokens, seconds, *three in zip(*(answer["places"][axis] for axis in ("step", "tokens", "seconds")), *series, strict=True)]
    for (place, three), (place_found, three_found) in zip(expected, found, strict=True):
        assert place_found == pytest.approx(place, rel=1e-6) and three_found == [value if value is None else pytest.approx(value, rel=1e-6, abs=1e-9) for value in three]


def test_a_growing_log_is_never_sent_twice_and_the_parts_make_the_whole(board, shelf):
    log = write(make_run(shelf / "grow/base.partial", 0) / "training" / "log.jsonl", "")
    summary_of(board, "grow/base")
    held, step, sent, chance = None, 0, [], random.Random(2)
    with log.open("a", encoding="utf-8") as stream:
        for _ in range(40):
            more = chance.choice([1, 1, 2, 7, 40])
            text = entries(step + 1, step + more)
            step += more
            if chance.random() < 0.3:
                text += line(step=step, validation={"loss": 1.0 / step}) + line(step=step, samples=[{"prompt": "p", "text": f"at {step}"}])
            cut = chance.randrange(len(text))
            for piece in (text[:cut], text[cut:]):  # a line may be half written when it is read
                stream.write(piece)
                stream.flush()
                part = board.series("grow/base", points=50, **({"known": known(held)} if held else {}))
                sent.append(len(json.dumps(part)))
                held = merged(held, part)
    whole = merged(None, board.series("grow/base", points=50))
    assert held["tables"] == whole["tables"] and held["samples"] == whole["samples"] and held["samples"][-1]["samples"][0]["text"].startswith("at ")
    assert whole["tables"][""]["rows"] == step
    nothing = board.series("grow/base", points=50, known=known(held))
    assert nothing["tables"] == {} and nothing["samples"]["items"] == [] and sorted(sent)[len(sent) // 2] < len(json.dumps(whole["tables"])) / 2
    (shelf / "grow/base.partial").rename(shelf / "grow/base")  # it has ended
    time.sleep(2.1)
    assert board.series("grow/base", points=50, known=known(held))["tables"] == {}  # the same file: nothing is read again


def test_steps_that_are_retracted_go(board, shelf):
    folder = make_run(shelf / "back/base.partial", 60)
    write(folder / "training" / "guard.jsonl", line(step=9, not_finite={"loss": "nan"}, sources=["a:1"]))
    summary_of(board, "back/base")
    held = merged(None, board.series("back/base"))
    assert held["tables"][""]["rows"] == 60 and held["events"][0]["kind"] == "not_finite" and "a:1" in held["events"][0]["detail"]
    fresh = write(folder / "training" / ".log.tmp", entries(1, 40))
    os.replace(fresh, folder / "training" / "log.jsonl")  # as Tracker.open does
    held = merged(held, board.series("back/base", known=known(held)))
    assert held["tables"][""]["places"]["step"] == list(range(1, 41)) and len(held["events"]) == 1
    with (folder / "training" / "log.jsonl").open("a") as stream:
        stream.write(entries(31, 50, seed=2) + line(step=50, event="preempted", signal="SIGUSR1"))  # appended over what was there
    held = merged(held, board.series("back/base", known=known(held)))
    assert held["tables"][""]["places"]["step"] == list(range(1, 51))
    assert [event["kind"] for event in held["events"]] == ["not_finite", "preempted"] and "SIGUSR1" in held["events"][1]["detail"]
    assert held["tables"][""]["series"]["loss"][0][30] == pytest.approx(json.loads(entries(31, 31, seed=2))["loss"], rel=1e-6)


HOSTILE = (
    b'not json\n[1, 2]\n"x"\n{"step": "5"}\n{"step": -1, "loss": 1}\n{"step": 1e999, "loss": 1}\n{"loss": 3}\n\x00\xff\xfe\n'
    + b'{"step": 2, "loss": NaN, "gradient_norm": Infinity, "x": [1], "y": {"a": 1}, "z": "2", "w": true}\n'
    + b'{"step": 3, "loss": ' + b"9" * 400 + b', "learning_rate": 1e-999}\n'
    + b"[" * 100_000 + b"\n" + b'{"step": 4, "loss": 1.5}\n{"step": 4.5, "samples": [{"prompt": "<img src=x>", "text": "' + b"<script>" * 5000 + b'"}, 3]}\n'
    + b'{"step": 5, "samples": {"a": 1}}\n{"step": 5, ' + b", ".join(b'"k%d": %d' % (number, number) for number in range(500)) + b"}\n"
    + b'{"step": 1' + b"0" * 5000 + b"}\n"
)  # fmt: skip


def test_whatever_a_file_holds_the_board_answers(board, shelf):
    log = shelf / "hostile/base/training/log.jsonl"
    write(log, "")
    log.write_bytes(HOSTILE + b"x" * (9 * 2**20) + b"\n" + entries(6, 20).encode())
    write(shelf / "hostile/base/training/about.json", '{"steps": "many", "config": {"a": {"b": [1, {"c": "<b>"}]}}, "rows": 3, "identity": [')
    write(shelf / "hostile/base/training/guard.jsonl", '{"step": 3}\n{"step": 4, "event": "<svg onload=alert(1)>", "time": {}}\n{"step": 4, "rollback": {"to": 2}}\nnull\n')
    write(shelf / "hostile/base/manifest.json", "[" * 5000)
    summary_of(board, "hostile/base")
    answer = board.series("hostile/base")
    while answer["reading"] < 1:
        answer = board.series("hostile/base")
    steps = answer["tables"][""]["places"]["step"]
    assert steps[-15:] == list(range(6, 21)) and 4 in steps and steps == sorted(steps) and answer["broken"] >= 4
    assert [event["kind"] for event in answer["events"]["items"]] == ["", "<svg onload=alert(1)>", "rollback"]
    assert board.get("/api/run", run="hostile/base").status_code == 200
    tables = ('{"": [0, 0, 99999]}, "events": -3, "samples": true', "[]", '{"": "x"}')
    for given in ("", "[]", "{", "[" * 3000, *(f'{{"generation": 0, "tables": {table}}}' for table in tables)):
        for values in ({}, {"from": "nan", "to": "1"}, {"from": "9", "to": "3"}, {"from": "1e30", "to": "2e30", "points": "1e12"}, {"points": "-4"}):
            assert board.get("/api/series", run="hostile/base", known=given, **values).status_code == 200


def test_nothing_outside_is_reached_and_nothing_is_written(board, shelf, tmp_path):
    secret = write(tmp_path / "secret/training/log.jsonl", entries(1, 3))
    make_run(shelf / "inside/base")
    (shelf / "inside/link").symlink_to(secret.parent.parent)
    (shelf / "inside/linked/training").mkdir(parents=True)
    (shelf / "inside/linked/training/log.jsonl").symlink_to(secret)
    (shelf / "inside/piped/training").mkdir(parents=True)
    os.mkfifo(shelf / "inside/piped/training/log.jsonl")  # opening it would wait for ever

    def state() -> dict:
        return {path: (path.lstat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest()) for path in sorted(shelf.rglob("*")) if path.is_file() and "hostile" not in path.parts}

    before = state()
    summary_of(board, "inside/base")
    assert not any(one["id"].startswith("inside/link/") for one in board.get("/api/runs").json()["runs"])
    for run in ("inside/linked", "inside/piped"):
        assert board.series(run)["tables"] == {}
    for run in (f"../{tmp_path.name}/secret", str(secret.parent.parent), "inside/link", "", "inside/base/..", "inside/base\x00", "inside/base.partial"):
        for path in ("/api/series", "/api/run"):
            assert board.get(path, run=run).status_code == 404
    for path in ("/../pyproject.toml", "/board.py", "/static/x", "/api"):
        assert board.client.get(path).status_code == 404
    assert board.client.post("/api/runs").status_code == 405 and state() == before


def test_only_this_machine_and_only_its_own_page(board):
    page = board.client.get("/")
    assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"] and page.headers["x-content-type-options"] == "nosniff"
    assert board.client.get("/", headers={"host": "evil.example"}).status_code == 403
    assert board.client.get("/api/runs", headers={"host": "127.0.0.1.evil.example:80"}).status_code == 403
    assert "access-control-allow-origin" not in board.client.get("/api/runs", headers={"origin": "http://evil.example"}).headers
    sizes = [len(board.client.get(path).content) for path in ("/", "/board.js", "/board.css")]
    assert sum(sizes) < 60_000


def test_a_folder_that_is_none_and_an_empty_one(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        show_board(tmp_path / "none")
    assert Library(tmp_path).runs() == []
    make_run(tmp_path / "base")
    assert [run["id"] for run in Library(tmp_path / "base").runs()] == ["base"] and [run["id"] for run in Library(tmp_path / "base/training").runs()] == ["base"]
    shutil.rmtree(tmp_path / "base")
    library = Library(tmp_path)
    assert library.series("base", 100, None, {}) is None


def test_many_runs_and_few_kept(tmp_path):
    for number in range(30):
        make_run(tmp_path / f"{number:02}/base", 3)
    library = Library(tmp_path)
    for place in list(library.places()):
        library.series(place, 100, None, {})
    assert len(library.runs()) == 30 and len(library._logs) == 24


def test_the_last_lines_are_found_behind_a_long_sample(tmp_path):
    folder: Path = make_run(tmp_path / "base.partial", 50, more=line(step=50, samples=[{"prompt": "p", "text": "长" * 100}]))
    assert Library(tmp_path).runs()[0]["step"] == 50 and folder.exists()
