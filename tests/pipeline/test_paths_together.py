"""Two parallel files as one string: in recipes, on the command line and in Python; names that hold commas or # stay whole."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner

import luban
from luban.cli.main import cli
from luban.examples.reading import read_examples
from luban.foundation.errors import DataError
from luban.foundation.paths import named_files, together, without_part
from luban.pipeline.check import check
from luban.pipeline.recipe import read_recipe
from luban.pipeline.runner import open_inputs, plan


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Files under data/, and another folder to work in."""
    (tmp_path / "data").mkdir()
    (tmp_path / "elsewhere").mkdir()
    for name, text in (("a.src", "the king {}"), ("b.tgt", "der König {}"), ("c.src", "a sword {}"), ("d,1.tgt", "ein Schwert {}")):
        (tmp_path / "data" / name).write_text("".join(text.format(number) + "\n" for number in range(20)), encoding="utf-8")
    (tmp_path / "data" / "re,views#1.csv").write_text("text,label\n" + "".join(f"text {number},{number % 2}\n" for number in range(20)), encoding="utf-8")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return tmp_path


def test_what_a_path_names(folder):
    data = folder / "data"
    whole = data / "re,views#1.csv"
    assert named_files(whole) == [whole] and named_files(f"{whole}#500") == [whole] and without_part(f"{whole}#8/label") == str(whole)
    assert named_files(f"{data}/a.src,{data}/b.tgt#10%@7") == [data / "a.src", data / "b.tgt"]
    assert named_files(f"{data}/c.src, {data}/d,1.tgt") == [data / "c.src", data / "d,1.tgt"] == named_files(f" {data}/c.src ,{data}/d,1.tgt")
    assert together(f"{data}/a.src,{data}/b.tgt,{data}/c.src") == [data / "a.src", data / "b.tgt", data / "c.src"]
    for nothing in ("a.src,b.tgt", ",", f"{data}/a.src,", f"{data}/a.src,{data}", "x" * 5000 + ",y", "a\0,b", ""):
        assert together(nothing) == [], nothing


def recipe_of(folder, data, **fields):
    stage = {"kind": "gather", "data": data, "task": "text_pairs", "validation_share": 0, **fields}
    (folder / "recipe.yaml").write_text(yaml.safe_dump({"name": "r", "stages": {"texts": stage}}), encoding="utf-8")
    return read_recipe(folder / "recipe.yaml")


def test_a_recipe_reads_both_from_its_own_folder(folder):
    together_, listed = "data/a.src,data/b.tgt", ["data/a.src", "data/b.tgt"]
    for written in (together_, listed, f"{together_}#20"):
        recipe = recipe_of(folder, written)
        assert all(tick.passed for tick in check(recipe, dry_batch=False)), written
        (artifact,) = luban.run(folder / "recipe.yaml")
        assert artifact.metrics["documents"]["train"] == 40
        assert [step.status for step in plan(recipe)] == ["fresh"]
    recipe = recipe_of(folder, f"{together_}#5")
    (artifact,) = luban.run(folder / "recipe.yaml")
    assert artifact.metrics["documents"]["train"] == 10
    before = next(plan(recipe)).fingerprint
    (folder / "data" / "b.tgt").write_text("x\n" * 20, encoding="utf-8")
    assert next(plan(recipe)).fingerprint != before  # both halves count


def test_pairs_keep_together_whatever_they_are_called(folder):
    data = folder / "data"
    found = read_examples([f"{data}/a.src,{data}/b.tgt", f"{data}/c.src,{data}/d,1.tgt#5"], "text_pairs")
    assert {(example.input[:5], example.output[:3]) for example in found.examples} == {("the k", "der"), ("a swo", "ein")} and len(found.examples) == 25
    found = read_examples([f"{data}/a.src,{data}/b.tgt", f"{data}/c.src,{data}/d,1.tgt"], "embedding", weights=[2, 0.5])
    assert len(found.examples) == 50


def test_the_half_that_is_missing_is_named(folder):
    recipe = recipe_of(folder, "data/a.src,data/nowhere.tgt#5")
    for refuse in (lambda: list(plan(recipe)), lambda: open_inputs(recipe, recipe.stages["texts"])):
        with pytest.raises(DataError, match="nowhere.tgt: no such file") as error:
            refuse()
        assert "a.src" not in str(error.value)
    with pytest.raises(DataError, match="x.src,y.tgt: no such file"):
        list(plan(recipe_of(folder, "x.src,y.tgt")))


def test_the_command_line_and_python_take_it_too(folder, monkeypatch):
    monkeypatch.chdir(folder / "data")
    said = CliRunner().invoke(cli, ["gather", "a.src,b.tgt", "--task", "text_pairs", "--out", str(folder / "cli")])
    assert said.exit_code == 0, said.output
    said = CliRunner().invoke(cli, ["gather", "re,views#1.csv", "--task", "classification", "--out", str(folder / "one")])
    assert said.exit_code == 0, said.output
    model = luban.train("a.src,b.tgt", objective="translation", shape={"architecture": "t5"}, depth=1, length="1 steps", sequence_length=32, out=folder / "model")
    assert model.metrics["examples"] + model.metrics["validation_examples"] == 20
    assert len(luban.predict(folder / "model", "a.src,b.tgt#3")) == 3
    assert len(luban.predict(folder / "model", "a text, with a comma")) == 1
