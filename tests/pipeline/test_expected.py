"""What is planned before anything is made is what is planned after: the vocabulary, and tokens counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import luban
from luban.foundation.artifacts import open_artifact
from luban.pipeline.expected import expected
from luban.pipeline.planner import planned
from luban.pipeline.recipe import Recipe, read_recipe
from luban.planning.devices import cluster
from tests.tiny import tiny_recipe


def written(folder: Path, recipe: dict[str, Any]) -> Recipe:
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"luban": 1, "out": "made", **recipe}, sort_keys=False))
    return read_recipe(folder / "recipe.yaml", [])


def test_a_recipe_is_planned_alike_before_and_after_its_stages_are_made(tmp_path):
    recipe = written(tmp_path, tiny_recipe(tmp_path, depth=1))
    size = (tmp_path / "text.txt").stat().st_size
    before = expected(recipe, recipe.stages["base"])
    assert before["vocabulary"] == 300 and before["tokens"] == size / 3.5  # not once for the corpus and once for the tokenizer's
    luban.run(tmp_path / "recipe.yaml", until="tokens")
    after = expected(recipe, recipe.stages["base"])
    tokens = open_artifact(tmp_path / "made" / "tokens").metrics["train"]["tokens"]
    assert after == {"vocabulary": 300, "tokens": tokens}
    (one,) = planned(tmp_path / "recipe.yaml", [], cluster("1xcpu-16GB"))
    assert one.job.shape.vocabulary_size == 300 and not one.assumed


def test_a_model_named_for_its_tokenizer_alone_is_no_text(tmp_path):
    written(tmp_path, tiny_recipe(tmp_path))
    luban.run(tmp_path / "recipe.yaml", until="tokenizer")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "tokenizer.json").write_bytes((tmp_path / "made" / "tokenizer" / "tokenizer.json").read_bytes())
    (tmp_path / "model" / "model.safetensors").write_bytes(b"\0" * 10**6)
    texts = tmp_path / "texts"
    texts.mkdir()
    (texts / "a.txt").write_text("word " * 700)
    recipe = written(tmp_path, {"name": "two", "stages": {"base": {"kind": "train", "data": "texts", "tokenizer": "model", "depth": 1}}})
    assert expected(recipe, recipe.stages["base"]) == {"vocabulary": 300, "tokens": 1000.0}


def test_an_automatic_vocabulary_follows_the_text(tmp_path):
    (tmp_path / "text.txt").write_text("word " * 200_000)
    stages = {"corpus": {"kind": "curate", "sources": "text.txt"}, "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus"}, "base": {"kind": "train", "data": "corpus", "tokenizer": "tokenizer", "depth": 1}}
    recipe = written(tmp_path, {"name": "auto", "stages": stages})
    assert expected(recipe, recipe.stages["base"])["vocabulary"] == 2944  # 2.9 times the root of a million bytes, in steps of 128


def test_rows_that_a_shape_asks_for_are_planned(tmp_path):
    shape = {"architecture": "llama", "layers": 2, "hidden_size": 64, "heads": 2, "vocabulary_size": 5000, "maximum_positions": 64}
    written(tmp_path, {"name": "own", "stages": {"base": {"kind": "train", "data": "nothing", "shape": shape}}})
    (one,) = planned(tmp_path / "recipe.yaml", [], cluster("1xcpu-16GB"))
    assert one.job.shape.vocabulary_size == 5000
