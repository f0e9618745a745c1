"""`luban check --probe`: the largest micro-batch that fits, shown without a run."""

from __future__ import annotations

import json
import re

import pytest
import yaml
from click.testing import CliRunner
from tiny import write_words

from luban.cli.main import cli
from luban.training import probe

SHAPE = {"architecture": "bert", "layers": 1, "hidden_size": 16, "heads": 2, "feed_forward_size": 32, "maximum_positions": 16}


@pytest.fixture
def recipe(tmp_path):
    """Two tasks in a row; the second stands on a model that is not made yet."""
    write_words(tmp_path / "tokenizer", ["good", "bad", "film"])
    (tmp_path / "x.jsonl").write_text("".join(json.dumps({"text": f"{word} film " * number, "label": word}) + "\n" for number in range(1, 21) for word in ("good", "bad")))
    common = {"kind": "train", "objective": "classification", "data": "x.jsonl", "sequence_length": 16, "batch_examples": 32, "length": "4 steps", "threads": 1}
    stages = {"first": {**common, "tokenizer": "tokenizer", "shape": SHAPE}, "second": {**common, "model": "first"}}
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "stages": stages}))
    return tmp_path / "recipe.yaml"


def said(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["--language", "en", "check", *arguments, "--no-dry-batch"])
    assert done.exit_code == 0, done.output
    return " ".join(done.output.split())


def test_the_largest_that_fits_is_shown_and_the_step_stays(recipe, monkeypatch):
    """Memory planted: a thousand bytes that stay and ten a row, room for five rows of the thirty-two."""
    asked = []

    def trial(config, work, rows, limit):
        asked.append((config.batch_examples, config.shape.layers, str(work.inputs["data"])))
        return {"peak": 1000 + 10 * rows, "parts": {"weights": 1 << 20, "activations": 3 << 20}} if rows <= 5 else {}

    monkeypatch.setattr(probe, "_try", trial)
    monkeypatch.setattr(probe, "available_bytes", lambda: 1055 / probe.SHARE)
    text = said(str(recipe), "--probe")
    assert "✓ first: micro_batch_rows 5 fits" in text and "a step keeps its 32 rows, in 7 micro-batches" in text
    assert "What takes it: activations 3.0 MiB, weights 1.0 MiB" in text
    assert "second: not probed, for first is not made yet" in text
    assert set(asked) == {(32, 1, str(recipe.with_name("x.jsonl")))}
    asked.clear()
    assert "not probed" not in said(str(recipe)) and not asked
    assert "engine layerwise takes each step whole" in said(str(recipe), "first.engine=layerwise", "first.gradient_clip=0", "--probe") and not asked


@pytest.mark.slow
def test_a_probe_in_processes_of_their_own(recipe):
    text = said(str(recipe), "first.batch_examples=2", "--probe")
    assert re.search(r"first: micro_batch_rows 2 fits, tried in a process of its own: [1-9][\d.]* [MG]iB of", text) and "weights" in text
    assert not recipe.with_name("runs").exists()
