"""The learning-rate range test: the suggestion on curves whose answer is known, and the real loop of a real stage."""

from __future__ import annotations

import hashlib
import json
import math
import xml.etree.ElementTree as ElementTree

import pytest
from tuning_lab import trainer

import luban
from luban.foundation.errors import ConfigError, LubanError
from luban.tuning.lr_find import Rise, smoothed, suggest

RATES = [10 ** (-7 + 7 * step / 199) for step in range(200)]


def test_the_steepest_point_and_the_lowest_are_found_where_they_were_planted():
    """A logistic fall around 1e-3, and an explosion from 1e-1 on."""
    losses = [1 + 4 / (1 + math.exp(4 * (math.log10(rate) + 3))) + 30 * max(0.0, math.log10(rate) + 1) ** 2 for rate in RATES]
    found = suggest(RATES, losses, 200)
    lag = 10 ** (0.5)  # the average looks back over a twentieth of the steps
    assert 1e-3 / lag <= found.steepest <= 1e-3 * lag
    assert 10**-1.7 <= found.lowest <= 10**-0.7
    assert found.tenth == found.lowest / 10 and found.rate == pytest.approx(min(found.steepest, found.tenth), rel=0.05)


def test_a_loss_that_never_falls_is_said():
    with pytest.raises(LubanError, match="did not fall at any learning rate"):
        suggest(RATES, [1.0 + 0.01 * step for step in range(200)], 200)
    with pytest.raises(LubanError, match="did not fall"):
        suggest(RATES[:1], [math.nan], 200)


def test_smoothing_is_the_bias_corrected_average():
    keep = 1 - 1 / 5
    losses = [3.0, 1.0, 2.0]
    assert smoothed(losses, 100) == pytest.approx([sum(keep ** (index - earlier) * losses[earlier] for earlier in range(index + 1)) / sum(keep**past for past in range(index + 1)) for index in range(3)])


def test_the_rise_is_by_the_same_factor_at_every_step():
    rise = Rise("constant", 0, 8, top=1e6)
    assert [rise.factor(step + 1) / rise.factor(step) for step in range(7)] == pytest.approx([1e6 ** (1 / 7)] * 7) and rise.factor(7) == pytest.approx(1e6)


def test_the_real_loop_is_used_and_the_stage_is_left_alone(tmp_path):
    path = trainer(tmp_path, {}, optimizer={"learning_rate": 1e-3}, length="2 steps", batch_examples=32)
    luban.run(path)
    base = tmp_path / "runs/small/base"
    before = {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in base.rglob("*") if file.is_file()}
    found = luban.lr_find(path, steps=40, low=1e-6, high=10.0)
    assert {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in base.rglob("*") if file.is_file()} == before
    folder = tmp_path / "runs/small/lr-find/base"
    assert sorted(file.name for file in folder.iterdir()) == ["plot.svg", "rates.json"]
    written = json.loads((folder / "rates.json").read_bytes())
    assert written["rate"] == found.rate and 1e-5 < found.rate < 1
    count = len(written["rates"])
    assert written["rates"] == pytest.approx([1e-6 * 1e7 ** (step / 39) for step in range(count)]) and (count == 40 or written["stopped"] == "diverged")
    first = [json.loads(line) for line in (base / "training/log.jsonl").read_text().splitlines() if "gradient_norm" in line][0]
    assert written["losses"][0] == first["loss"]  # the same data and weights as the stage's own first step
    picture = ElementTree.fromstring((folder / "plot.svg").read_text(encoding="utf-8"))
    assert picture.tag.endswith("svg") and not [node for node in picture.iter() if node.tag.endswith(("script", "image"))]


def test_mistakes_are_explained(tmp_path):
    path = trainer(tmp_path, {})
    with pytest.raises(ConfigError, match="did you mean base"):
        luban.lr_find(path, stage="bsae")
    with pytest.raises(ConfigError, match="must rise"):
        luban.lr_find(path, low=1.0, high=0.1)
