"""Search spaces in a recipe: how they are written, what they become, and what is refused."""

from __future__ import annotations

import itertools
import json

import pytest
from tuning_lab import sorter, write_recipe, write_reviews

from luban.foundation.config import Source
from luban.foundation.errors import ConfigError
from luban.foundation.yaml_files import parse_yaml
from luban.pipeline.recipe import read_recipe
from luban.pipeline.spaces import active, ends, every, fill, find_spaces, is_space
from luban.tuning.metric import AUTO
from luban.tuning.problem import read_problem
from luban.tuning.study import grid

WRITTEN = """
values: {rate: {search: [1e-5, 1e-3], scale: log}}
stages:
  base:
    kind: train
    length: {search: [1, 4], unit: epochs}
    gradient_clip: {search: [0.5, 2.0], step: 0.5}
    optimizer: {choice: [{name: adamw, learning_rate: {search: [1e-4, 1e-2], scale: log}}, {name: muon, momentum: {choice: [0.9, 0.95]}}]}
    betas: [{choice: [0.9, 0.8]}, 0.95]
"""


def spaces_of(text: str):
    plain, lines = parse_yaml(text, "r.yaml")
    return plain, find_spaces(plain, Source("r.yaml", lines))


def test_spaces_are_found_wherever_they_stand_and_become_what_was_drawn():
    plain, spaces = spaces_of(WRITTEN)
    assert [space.name for space in every(spaces)] == [
        "base.length", "base.gradient_clip", "base.optimizer", "base.optimizer(adamw).learning_rate", "base.optimizer(muon).momentum", "base.betas.0", "rate",
    ]  # fmt: skip
    drawn = {"base.length": 3, "base.gradient_clip": 1.5, "base.optimizer": "muon", "base.optimizer(muon).momentum": "0.95", "base.betas.0": "0.8", "rate": 0.000123456789}
    filled = fill(plain, spaces, drawn)
    assert filled["stages"]["base"] == {"kind": "train", "length": "3 epochs", "gradient_clip": 1.5, "optimizer": {"name": "muon", "momentum": 0.95}, "betas": [0.8, 0.95]}
    assert filled["values"]["rate"] == 0.0001235  # four digits, which is what is run and what is written
    assert [space.name for space in active(spaces, drawn)] == ["base.length", "base.gradient_clip", "base.optimizer", "base.optimizer(muon).momentum", "base.betas.0", "rate"]
    assert plain["stages"]["base"]["length"] == {"search": [1, 4], "unit": "epochs"}  # the recipe itself is left alone


def test_the_ends_of_every_range_and_every_option_are_tried():
    plain, spaces = spaces_of(WRITTEN)
    tried = [drawn for _, drawn in ends(spaces)]
    for space in every(spaces):
        wanted = set(space.labels) if space.is_choice else {space.low, space.high}
        assert wanted == {drawn[space.name] for drawn in tried if space.name in {one.name for one in active(spaces, drawn)}}
    assert all(not any(is_space(value) for value in fill(plain, spaces, drawn)["stages"]["base"].values()) for drawn in tried)


def test_a_grid_is_every_combination_and_crosses_an_options_own_spaces_only_there():
    _, spaces = spaces_of(WRITTEN)
    cells = grid(spaces)
    adamw, muon = 5, 2
    assert len(cells) == 4 * 4 * (adamw + muon) * 2 * 5
    assert len({json.dumps(cell, sort_keys=True) for cell in cells}) == len(cells)
    assert {cell["base.gradient_clip"] for cell in cells} == {0.5, 1.0, 1.5, 2.0}
    assert sorted({cell["rate"] for cell in cells}) == pytest.approx([1e-5, 10**-4.5, 1e-4, 10**-3.5, 1e-3])
    assert all(("base.optimizer(muon).momentum" in cell) == (cell["base.optimizer"] == "muon") for cell in cells)
    _, two = spaces_of("stages: {a: {x: {search: [1, 3]}, y: {choice: [p, q]}}}")
    assert grid(two) == [{"a.x": x, "a.y": y} for x, y in itertools.product([1, 2, 3], ["p", "q"])]


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ("{search: [1, 3], setp: 1}", "did you mean step"),
        ("{search: [3, 1]}", "the lower first"),
        ("{search: 5}", "is not a range"),
        ("{search: [1, a]}", "is not a range"),
        ("{search: [true, 3]}", "is not a range"),
        ("{search: [0.0, .inf]}", "is not a range"),
        ("{search: [0, 1]}", "write \\[0.0, 1.0\\]"),
        ("{search: [0.0, 1.0], scale: log}", "begins above zero"),
        ("{search: [0.1, 1.0], scale: lgo}", "write log or linear"),
        ("{search: [0.1, 1.0], step: 2}", "not a step"),
        ("{search: [0.1, 1.0], step: 0.1, scale: log}", "linear scales"),
        ("{choice: [a]}", "two or more different"),
        ("{choice: [1, 1]}", "two or more different"),
        ("{choice: [1, {search: [2, 1]}]}", "the lower first"),
        ("{search: [1, 3], unit: 4}", "a unit is a word"),
    ],
)
def test_what_is_not_a_space_is_named_with_its_line(space, said):
    with pytest.raises(ConfigError, match=said) as error:
        spaces_of(f"stages:\n  base:\n    words: {space}\n")
    assert "r.yaml:3: stages.base.words" in str(error.value)


def test_a_column_called_choice_is_no_space():
    assert not is_space({"choice": "answer"}) and not is_space({"choice": ["a", "b"], "text": "t"}) and is_space({"choice": ["a", "b"]})


def test_a_run_refuses_a_space_and_says_what_to_type(tmp_path):
    path = sorter(tmp_path, {"words": {"search": [1, 3]}})
    with pytest.raises(ConfigError, match="this is a search space") as error:
        read_recipe(path)
    assert f"luban tune {path}" in str(error.value) and "stages.sorter.linear.words" in str(error.value)


@pytest.mark.parametrize(
    ("linear", "tune", "said"),
    [
        ({"words": {"search": [1, 9]}}, {}, "reaches 9"),
        ({"model": {"choice": ["logistic", "magic"]}}, {}, "reaches magic"),
        ({"wrods": {"search": [1, 3]}}, {}, "did you mean words"),
        ({"words": 2}, {}, "no search space"),
        ({"words": {"search": [1, 3]}}, {"smapler": "grid"}, "did you mean sampler"),
        ({"words": {"search": [1, 3]}}, {"stage": "sort"}, "did you mean sorter"),
        ({"words": {"search": [1, 3]}}, {"sampler": "population"}, "needs a train stage"),
        ({"words": {"search": [1, 3]}}, {"sampler": "population", "pruner": "asha"}, "leave pruner"),
    ],
)
def test_mistakes_are_found_before_the_first_trial(tmp_path, linear, tune, said):
    with pytest.raises(ConfigError, match=said):
        read_problem(sorter(tmp_path, linear, **tune))


def test_a_population_moves_only_what_a_training_can_change(tmp_path):
    write_reviews(tmp_path)
    stage = {"kind": "train", "data": "reviews.jsonl", "objective": "classification", "model": "package:numpy", "batch_examples": {"choice": [8, 16]}}
    path = write_recipe(tmp_path, {"tune": {"sampler": "population"}, "stages": {"base": stage}})
    with pytest.raises(ConfigError, match="a population cannot search base.batch_examples"):
        read_problem(path)


def test_stages_that_no_space_changes_are_shared_and_the_last_changed_one_is_judged(tmp_path):
    (tmp_path / "text.txt").write_text("one two\n\nthree", encoding="utf-8")
    stages = {
        "corpus": {"kind": "curate", "sources": "text.txt"},
        "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": "$size"},
        "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "tokenizer"},
        "base": {"kind": "train", "data": "tokens", "optimizer": {"learning_rate": {"search": [1e-4, 1e-2], "scale": "log"}}},
        "counts": {"kind": "fit", "data": "corpus"},
        "report": {"kind": "evaluate", "models": "base", "data": "corpus"},
    }
    path = write_recipe(tmp_path, {"values": {"size": {"choice": [300, 400]}}, "stages": stages})
    problem = read_problem(path)
    assert (problem.stage, problem.shared, problem.stages) == ("base", ["corpus"], ["tokenizer", "tokens", "base"])
    assert (problem.metric, problem.maximize) == (AUTO + "loss", False)
    path = write_recipe(tmp_path, {"values": {"size": 300}, "stages": stages})
    problem = read_problem(path)
    assert (problem.shared, problem.stages) == (["corpus", "tokenizer", "tokens"], ["base"])
    with pytest.raises(ConfigError, match="changes nothing that counts is made from"):
        read_problem(path, ["tune.stage=counts"])


def test_the_schema_knows_spaces_and_the_tune_block():
    import jsonschema

    from luban.pipeline.schema import recipe_schema

    validator = jsonschema.Draft202012Validator(recipe_schema())
    stage = {"kind": "fit", "data": "x", "linear": {"words": {"search": [1, 3]}, "model": {"choice": ["logistic", "centroid"]}}}
    assert not list(validator.iter_errors({"tune": {"sampler": "grid", "population": {"size": 4}}, "stages": {"a": stage}}))
    assert list(validator.iter_errors({"tune": {"smapler": "grid"}, "stages": {"a": stage}}))
    assert list(validator.iter_errors({"stages": {"a": {**stage, "lowercase": {"search": [1]}}}}))
