"""The law is recovered from data that follows it, and a ladder of tiny models is trained, fitted, drawn, and not trained twice."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import yaml
from tiny import tiny_recipe

from luban.foundation.errors import ConfigError
from luban.models.shape import ShapeConfig
from luban.planning import dial
from luban.planning.ladder import moved_rates, size_of, sizes, smaller
from luban.training.config import OptimizerConfig
from luban.tuning.power_law import fit, forecast
from luban.tuning.scaling import scaling

SIZES = [25e3, 50e3, 100e3, 200e3]


def trainings(alpha: float, rng: np.random.Generator, noise: float = 0.008):
    """Losses that follow a law exactly but for noise, and the law."""

    def law(size: float) -> float:
        return 3.0 + 1.5 * (size / 50e3) ** -alpha

    return [(size, [law(size) + rng.normal(0, noise) for _ in range(3)]) for size in SIZES], law


@pytest.mark.parametrize("alpha", [0.2, 0.34, 0.6])
def test_the_interval_holds_the_loss_of_a_known_law(alpha):
    rng, held, misses, naive = np.random.default_rng(7), 0, [], []
    for number in range(25):
        points, law = trainings(alpha, rng)
        truth = law(8e5) + rng.normal(0, 0.008)
        fitted = fit(points)
        told = forecast(points, fitted, 8e5, number)
        held += told.low <= truth <= told.high
        misses.append(abs(told.loss - truth))
        naive.append(abs(np.mean(points[-1][1]) - truth))
    assert held >= 20  # of 25, where nine in ten are meant
    assert np.mean(misses) < 0.2 * np.mean(naive)


def test_without_noise_the_curve_goes_through_the_points():
    points, law = trainings(0.34, np.random.default_rng(1), noise=0.0)
    fitted = fit(points)
    assert fitted.loss(8e5) == pytest.approx(law(8e5), abs=2e-3) and fitted.alpha == pytest.approx(0.34, rel=0.02)
    with pytest.raises(ValueError, match="three sizes"):
        fit(points[:2])


def test_one_seed_and_a_law_that_does_not_fall_are_survived():
    flat = [(size, [4.0]) for size in SIZES]
    told = forecast(flat, fit(flat), 8e5)
    assert told.low < 4.0 < told.high and told.high - told.low < 0.2 and math.isfinite(told.alpha_high)


@pytest.mark.parametrize("depth", [4, 12, 24])
def test_rungs_have_their_size_and_proportions(depth):
    large = dial.shape_of_depth(depth, 1000, ShapeConfig())
    for wanted in sizes(size_of(large), 4, 4, 2):
        small = smaller(large, wanted)
        assert size_of(small) == pytest.approx(wanted, rel=0.12)
        assert 4 <= small.layers <= large.layers and small.hidden_size < large.hidden_size
        assert small.feed_forward_size / small.hidden_size == pytest.approx(large.feed_forward_size / large.hidden_size, rel=0.15)
    small = smaller(large, size_of(large) / 4)
    given = moved_rates(OptimizerConfig(name="adamw", learning_rate=1e-3), large, small)
    assert given["learning_rate"] == pytest.approx(1e-3 * large.hidden_size / small.hidden_size, rel=0.05)  # as auto falls with the width
    assert "learning_rate" not in moved_rates(OptimizerConfig(name="muon"), large, small)


def write(folder, **train):
    shape = {"layers": 2, "hidden_size": 96, "heads": 3, "head_dim": 32, "feed_forward_size": 256}
    recipe = tiny_recipe(folder, **{"shape": shape, "length": "4 steps", "optimizer": {"name": "muon"}, **train})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_a_ladder_is_trained_once_fitted_and_drawn(tmp_path):
    found = scaling(write(tmp_path), [], ladder=3, times=2, ratio=1.7, seeds=1, check=True, out=tmp_path / "run")
    folder = tmp_path / "run" / "scaling"
    plain = json.loads((folder / "results.json").read_bytes())
    assert [rung["parameters"] for rung in plain["rungs"]] == sorted(rung.size for rung in found.rungs) and len(plain["rungs"]) == 3
    assert all(len(rung["losses"]) == 1 and 0 < rung["losses"][0] < 10 for rung in [*plain["rungs"], plain["target"]])
    assert plain["forecast"]["low"] <= plain["forecast"]["loss"] <= plain["forecast"]["high"]
    assert plain["check"]["naive_miss"] == pytest.approx(abs(plain["naive"] - plain["check"]["loss"]))
    for mark, word in (("", "held-out loss by size"), (".zh", "留出损失")):
        assert ElementTree.parse(folder / f"law{mark}.svg").getroot().tag.endswith("svg") and word in (folder / f"law{mark}.svg").read_text(encoding="utf-8")
        assert f"law{mark}.svg" in (folder / f"report{mark}.md").read_text(encoding="utf-8")
    made = {file: file.stat().st_mtime_ns for file in folder.glob("*/base/manifest.json")}
    assert len(made) == 4
    again = scaling(tmp_path / "recipe.yaml", [], ladder=3, times=2, ratio=1.7, seeds=1, check=True, out=tmp_path / "run")
    assert made == {file: file.stat().st_mtime_ns for file in folder.glob("*/base/manifest.json")} and again.forecast == found.forecast
    own = json.loads((folder / "large-1" / "base" / "manifest.json").read_bytes())["resolved"]["shape"]
    assert (own["layers"], own["hidden_size"], own["feed_forward_size"]) == (2, 96, 256)  # the recipe's own model


@pytest.mark.parametrize("tokens", ["same", "proportional"])
def test_what_a_rung_reads(tmp_path, monkeypatch, tokens):
    orders = {}

    def noted(rungs, seeds, order):
        for rung in rungs:
            rung.losses = [3 + 100 / rung.size**0.5]
            orders[rung.name] = order(rung, 0).plain["stages"]["base"]

    monkeypatch.setattr("luban.tuning.scaling._train", noted)
    large = {"length": "8M tokens", "batch_tokens": 1024, "optimizer": {"name": "adamw", "learning_rate": 0.01}}
    found = scaling(write(tmp_path, **large), [], ladder=3, times=2, ratio=1.7, seeds=1, tokens=tokens, check=True, out=tmp_path / "run")
    assert orders["large"]["length"] == "8M tokens" and orders["large"]["batch_tokens"] == 1024 and orders["large"]["optimizer"]["learning_rate"] == 0.01
    assert all(orders[name]["optimizer"]["learning_rate"] > 0.01 for name in ("size-1", "size-2", "size-3"))
    read = [rung.tokens for rung in found.rungs]
    if tokens == "same":
        assert read == [found.target.tokens] * 3
        assert {orders[rung.name]["length"] for rung in found.rungs} == {"8M tokens"} and {orders[rung.name]["batch_tokens"] for rung in found.rungs} == {1024}
    else:
        assert read == pytest.approx([found.target.tokens * rung.size / found.target.size for rung in found.rungs], rel=0.01)
        assert [orders[rung.name]["batch_tokens"] for rung in found.rungs] == [1024 * dial.batch_tokens(count, 32, "causal") // dial.batch_tokens(found.target.tokens, 32, "causal") for count in read]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_ctrl_c_waits_until_the_training_has_saved_and_none_outlives_its_ladder(tmp_path, number):
    write(tmp_path, length="4000 steps", checkpoint={"every": "20 steps"})
    command = [sys.executable, "-m", "luban", "scaling", "recipe.yaml", "--ladder", "3", "--times", "2", "--ratio", "1.7", "--seeds", "1", "--out", "run"]
    started = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    folder, until = tmp_path / "run" / "scaling" / "size-1-1", time.monotonic() + 120
    while not any(folder.glob("base.partial/training/checkpoints/step-*")) and started.poll() is None and time.monotonic() < until:
        time.sleep(0.2)
    (training,) = Path(f"/proc/{started.pid}/task/{started.pid}/children").read_text().split()
    started.send_signal(number)
    _, words = started.communicate(timeout=60)
    if number == signal.SIGINT:
        assert started.returncode == 75 and "continues" in words, words
    while at_work(training) and time.monotonic() < until:
        time.sleep(0.1)
    assert not at_work(training)
    assert any(folder.glob("base.partial/training/checkpoints/step-*")) and not os.path.exists(folder / "base")


def at_work(number: str) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.parametrize(
    ("change", "asked", "words"),
    [
        ({"objective": "masked", "shape": {"architecture": "bert", "layers": 1, "hidden_size": 32, "heads": 2}}, {}, "no train stage begins a new model"),
        ({}, {"stage": "bass"}, "did you mean base"),
        ({"shape": {"layers": 1, "hidden_size": 32, "heads": 2}}, {}, "leaves no room"),
    ],
)
def test_what_gives_no_law_is_refused(tmp_path, change, asked, words):
    with pytest.raises(ConfigError) as caught:
        scaling(write(tmp_path, **change), [], seeds=1, out=tmp_path / "run", **asked)
    assert words in caught.value.text()
