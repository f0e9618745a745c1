"""Values of a recipe: named once, written $name, overridden by their bare name."""

from __future__ import annotations

from pathlib import Path

import pytest

from luban.foundation.config import Source
from luban.foundation.errors import ConfigError
from luban.pipeline.recipe import make_recipe, read_recipe
from luban.pipeline.values import with_values

RECIPE = """values:
  data: a.txt
  more: [b.txt, c.txt]
  size: 300
  split: {test: 0.1}
stages:
  corpus: {kind: curate, sources: [$data, $more, $data#5], split: $split, filters: []}
  words: {kind: train_tokenizer, corpus: corpus, vocabulary_size: $size, special_tokens: ["$", "$5", "a$data"]}
"""


def written(folder: Path, text: str = RECIPE) -> Path:
    file = folder / "recipe.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_value_stands_for_itself_and_keeps_its_type(tmp_path):
    recipe = read_recipe(written(tmp_path))
    assert recipe.stages["corpus"].config.sources == ["a.txt", "b.txt", "c.txt", "a.txt#5"]
    assert recipe.stages["corpus"].config.split.test == 0.1
    assert recipe.stages["words"].config.vocabulary_size == 300
    assert recipe.stages["words"].config.special_tokens == ["$", "$5", "aa.txt"]


def test_a_bare_name_overrides_and_a_stage_still_wins(tmp_path):
    recipe = read_recipe(written(tmp_path), ["data=mine.txt", "size=1e3", "words.vocabulary_size=77", "split.validation=0.2"])
    assert recipe.stages["corpus"].config.sources[0] == "mine.txt"
    assert recipe.stages["words"].config.vocabulary_size == 77
    assert (recipe.stages["corpus"].config.split.test, recipe.stages["corpus"].config.split.validation) == (0.1, 0.2)


def test_an_empty_override_is_the_empty_text():
    assert with_values({"model": "$model"}, {"model": ""}, Source()) == {"model": ""}


def test_nothing_is_replaced_without_values():
    assert with_values(["$HOME/x", "$nothing"], {}, Source()) == ["$HOME/x", "$nothing"]
    assert with_values("$HOME/x", {"data": 1}, Source()) == "$HOME/x"


@pytest.mark.parametrize(
    ("change", "overrides", "message"),
    [
        (("$size", "$sise"), [], "recipe.yaml:8: stages.words.vocabulary_size: there is no value called 'sise'"),
        (("  size:", "  corpus:"), [], "'corpus' is a stage or a key"),
        (("  size:", "  seed:"), [], "'seed' is a stage or a key"),
        (("  size:", "  a-b:"), [], "'a-b' cannot name a value"),
        (("", ""), ["dta=x"], "no stage or value called 'dta'"),
        (("size: 300", "size: many"), [], "stages.words.vocabulary_size"),
    ],
)
def test_mistakes_are_named(tmp_path, change, overrides, message):
    with pytest.raises(ConfigError) as raised:
        read_recipe(written(tmp_path, RECIPE.replace(*change) if change[0] else RECIPE), overrides)
    assert message in str(raised.value)


def test_a_run_of_other_values_is_another_run_and_of_the_same_the_same(tmp_path):
    from luban.pipeline.runner import plan

    for name in ("a.txt", "b.txt", "c.txt", "copy.txt"):
        (tmp_path / name).write_text("words" if name != "b.txt" else "others", encoding="utf-8")
    marks = [[step.fingerprint for step in plan(read_recipe(written(tmp_path), [f"data={name}"]))][0] for name in ("a.txt", "copy.txt", "b.txt")]
    assert marks[0] == marks[1] != marks[2]


def test_a_mapping_is_left_as_it_was():
    plain = {"values": {"data": "x.txt"}, "stages": {"corpus": {"kind": "curate", "sources": "$data"}}}
    make_recipe(plain, Path("."), "r", Source())
    assert plain["stages"]["corpus"]["sources"] == "$data"
