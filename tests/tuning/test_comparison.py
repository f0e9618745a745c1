"""`luban compare`: every method once, each in a process of its own, and what it cost."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))

from test_task_training import QUICK, folder, train  # noqa: F401 (a fixture)

from luban.foundation.errors import ConfigError
from luban.tuning.comparison import compare


def write_recipe(folder, **more):  # noqa: F811
    stage = {"kind": "train", "model": str(folder / "base"), "objective": "classification", "data": "train.jsonl", "length": "20 steps", **{name: value for name, value in QUICK.items() if name != "shape"}, "optimizer": {"learning_rate": 0.01}, **more}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "which", "stages": {"tuned": stage}}), encoding="utf-8")
    return folder / "recipe.yaml"


@pytest.mark.slow
def test_methods_are_trained_once_each_and_shown(folder):  # noqa: F811
    train(folder, "base", length="2 steps")
    out = compare(write_recipe(folder, adapter={"method": "lora", "rank": 3}), [], ["full", "lora", "bitfit"], [], out=folder / "runs")
    found = {one["name"]: one for one in json.loads((out / "results.json").read_bytes())["candidates"]}
    assert list(found) == ["full", "lora", "bitfit"] and not any(one["error"] for one in found.values())
    assert found["full"]["learning_parameters"] > found["lora"]["learning_parameters"] > found["bitfit"]["learning_parameters"] > 0
    assert json.loads((out / "lora-1" / "tuned" / "luban_adapter.json").read_bytes())["adapter"]["rank"] == 3  # the recipe's own settings hold for its method
    page = (out / "report.html").read_text(encoding="utf-8")
    assert all(name in page for name in found) and "http" not in page.replace("http://www.w3.org", "")
    made = {name: (out / f"{name}-1" / "tuned" / "manifest.json").stat().st_mtime_ns for name in found}
    compare(folder / "recipe.yaml", [], ["full", "lora", "bitfit"], [], out=folder / "runs")
    assert made == {name: (out / f"{name}-1" / "tuned" / "manifest.json").stat().st_mtime_ns for name in found}


@pytest.mark.parametrize(
    ("methods", "bases", "words"),
    [(["lorra", "full"], [], "no method 'lorra'"), (["lora"], [], "nothing to compare"), ([], ["a/x", "b/x"], "both called x"), (["lora", "lora"], [], "both called lora")],
)
def test_what_cannot_be_compared_is_refused(tmp_path, methods, bases, words):
    (tmp_path / "base").mkdir()
    with pytest.raises(ConfigError, match=words):
        compare(write_recipe(tmp_path), [], methods, bases)


def test_a_recipe_without_a_base_is_refused(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"name": "new", "stages": {"base": {"kind": "train", "data": "text", "depth": 1}}}))
    with pytest.raises(ConfigError, match="no train stage starts from a model"):
        compare(tmp_path / "recipe.yaml", [], ["full", "lora"], [])
    with pytest.raises(ConfigError, match="no method 'lorra'"):
        compare(tmp_path / "recipe.yaml", [], ["full", "lorra"], [])
