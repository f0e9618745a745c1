"""Lets the tests of this folder use the small models and data that the tests of the objectives are made with."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from tiny import tiny_recipe

import luban

sys.path.insert(0, str(Path(__file__).parents[1] / "objectives"))


@pytest.fixture(scope="session")
def tokens(tmp_path_factory) -> Path:
    """Token shards of a small text, the same for all tests."""
    folder = tmp_path_factory.mktemp("data")
    recipe = tiny_recipe(folder)
    recipe["stages"]["corpus"]["sources"] = str(folder / "text.txt")
    recipe["stages"].pop("base")
    luban.run(recipe, out=folder / "run")
    return folder / "run" / "tokens"
