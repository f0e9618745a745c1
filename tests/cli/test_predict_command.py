"""`luban predict` at a shell: streams line by line, full disks, pipes that break, and what is asked for twice."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

sys.path.insert(0, str(Path(__file__).parents[1] / "serving"))

from prediction_lab import make_task_model

from luban.cli.predict import command
from luban.foundation.errors import ConfigError, DataError, LubanError


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_task_model(tmp_path_factory.mktemp("predicting") / "model", "classification")


def predict(*arguments: object, given: str | None = None) -> list[str]:
    """The lines that the command prints. A LubanError is raised as it is."""
    ran = CliRunner().invoke(command, [str(argument) for argument in arguments], input=given)
    if ran.exception is not None and not isinstance(ran.exception, SystemExit):
        raise ran.exception
    assert ran.exit_code == 0, ran.output
    return ran.stdout.splitlines()


def test_texts_files_and_lines(model, tmp_path):
    file = tmp_path / "t.csv"
    file.write_text("text,id\ngreat film,1\nAnna,2\n")
    for lines in (predict(model, file), predict(model, "--text", "great film", "--text", '{"text": "Anna"}'), predict(model, given="great film\nAnna\n")):
        assert len({json.loads(line)["source"] for line in lines}) == len(lines) == 2
    assert predict(model, file, "--format", "csv", "--keep", "id")[0].startswith("source,id,label,probabilities.good")
    assert predict(model, file, "--out", tmp_path / "o.jsonl") == [] and len((tmp_path / "o.jsonl").read_text().splitlines()) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.jsonl", "t.csv"]


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        (["t.csv", "--text", "a"], ConfigError, "leave one out"),
        (["--text", "a", "--keep", "id"], ConfigError, "no columns"),
        (["t.csv", "--mapping", "{a: ["], ConfigError, "no mapping"),
        (["t.csv", "--out", "t.csv"], ConfigError, "the file that is read"),
        (["t.csv", "--out", "."], ConfigError, "folder"),
        (["t.csv", "--out", "absent/x"], LubanError, "No such file"),
        (["t.csv", "--keep", "none"], ConfigError, "no column"),
        (["absent.csv"], DataError, "no such file"),
    ],
)
def test_mistakes(model, tmp_path, monkeypatch, arguments, error, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text\ngreat film\n")
    with pytest.raises(error, match=says):
        predict(model, *arguments)
    assert [path.name for path in tmp_path.iterdir()] == ["t.csv"] and (tmp_path / "t.csv").read_text() == "text\ngreat film\n"


def test_a_wrong_folder_leaves_no_file(tmp_path):
    with pytest.raises(DataError, match="no config.json"):
        predict(tmp_path, "--text", "a", "--out", tmp_path / "o")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk(model, tmp_path):
    with pytest.raises(LubanError, match="disk is full"):
        predict(model, "--text", "a", "--out", "/dev/full")
    assert Path("/dev/full").is_char_device()


def test_zero_rows_are_refused(model):
    assert CliRunner().invoke(command, [str(model), "--text", "a", "--rows", "0"]).exit_code == 2


def start(model: Path, *arguments: str, out: int = subprocess.PIPE) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-m", "luban", "--language", "en", "predict", str(model), *arguments], stdin=subprocess.PIPE, stdout=out, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_a_slow_writer_has_each_answer_at_once_and_may_stop(model):
    process = start(model)
    for number in (1, 2):
        process.stdin.write(b"great film\n")
        process.stdin.flush()
        assert json.loads(process.stdout.readline())["source"] == f"-:{number}"  # before the input ends
    process.stdin.write(b"\xff half")
    process.stdin.flush()
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and b"Traceback" not in errors and b"Fatal" not in errors


@pytest.mark.slow
def test_a_reader_that_leaves(model):
    process = start(model)
    process.stdout.close()
    _, errors = process.communicate(b"great film\n" * 2000, timeout=60)
    assert process.returncode in (1, 141) and b"Traceback" not in errors and b"Exception ignored" not in errors
