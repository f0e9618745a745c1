"""The comparison of methods on the shipped data: its changes fit the recipes, and its table is made of results."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest

from benchmarks.methods.__main__ import METHODS, RECIPES, SETS, filled, table
from luban.adapters.config import NAMES
from luban.pipeline.recipe import make_recipe, read_plain
from luban.tuning.comparison import FULL, Found


@pytest.mark.parametrize("name", SETS)
def test_the_changes_of_a_set_fit_its_recipe(name, tmp_path):
    recipe, stage, _, changes = SETS[name]
    values = {"data": RECIPES / recipe / "data", "encoder": tmp_path}
    plain, folder, known, source = read_plain(RECIPES / recipe / "recipe.yaml", [filled(change, values) for change in changes])
    config = make_recipe(plain, folder, known, source, tmp_path).stages[stage].config
    assert config.model and set(METHODS.split(",")) <= {FULL, *NAMES}
    if name != "chat":
        assert config.validation.share == 0 and "test." in str(config.validation_data) and config.optimizer.learning_rate == "auto"


def test_the_table_is_best_first_in_both_languages(tmp_path):
    found = [asdict(Found("lora", 0.7, 0.02, learning_parameters=10, parameters=100)), asdict(Found("full", 0.8, None, before=0.5, learning_parameters=100, parameters=100)), asdict(Found("ia3", error="no"))]
    (tmp_path / "sentiment.json").write_text(json.dumps({"metric": "accuracy", "greater_is_better": True, "candidates": found}), encoding="utf-8")
    english, chinese = table(tmp_path, "en"), table(tmp_path, "zh")
    assert english.index("| full | 0.800 |") < english.index("| lora | 0.700 ± 0.020 |") and "ia3" not in english
    assert "训练前: 0.500" in chinese and chinese.count("|") == english.count("|")
