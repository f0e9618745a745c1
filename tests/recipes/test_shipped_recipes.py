"""Every shipped recipe: its form, its data's licences, `luban check`, and a reduced run from the first stage to the report."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from luban.cli.main import cli
from luban.cli.new import GROUPS, SHIPPED, about
from luban.foundation.artifacts import open_artifact
from luban.pipeline.check import check
from luban.pipeline.recipe import read_recipe
from luban.pipeline.runner import run_recipe

NAMES = sorted(path.parent.name for path in SHIPPED.glob("*/recipe.yaml"))
OWN = [name for name in NAMES if name != "quickstart"]  # which has tests of its own
WITH_DATA = [name for name in OWN if (SHIPPED / name / "data").exists()]
TINY = {"layers": 1, "hidden_size": 16, "heads": 2}
BESIDE = {  # what a tiny model from random weights needs that a given one brings
    "augmented": ["augmented.tokenizer=head"], "teacher-2": ["teacher-2.tokenizer=teacher-1"], "teacher-3": ["teacher-3.tokenizer=teacher-1"], "vectors": ["vectors.objective.matryoshka=[8]"],
}  # fmt: skip
SLOW = ("counting", "distillation", "domain", "entities-zh", "families", "few-shot", "joint-relations", "preferences")  # recipes of many stages


def plain(name: str) -> dict:
    return yaml.safe_load((SHIPPED / name / "recipe.yaml").read_text(encoding="utf-8"))


def reduced(name: str) -> list[str]:
    """Overrides that make every network tiny, every run two steps, and every file a handful of examples."""
    recipe = plain(name)
    found = []
    for key, value in recipe.get("values", {}).items():
        if key == "model":
            found.append("model=")
        elif isinstance(value, str) and "data/" in value:
            sliced = f"${key}#" in str(recipe["stages"])  # a slice of a slice is none
            size = "" if sliced or key == "chats" else "#4/label" if "/label" in value else "#24" if not value.endswith((".txt", "poems.jsonl.gz", ".txt.gz")) else "#100"
            found.append(f"{key}={value.partition('#')[0]}{size}")
    for stage, body in recipe["stages"].items():
        if body["kind"] == "train":
            shape = {"architecture": "bert", **TINY} if body.get("model") == "$model" else body.get("shape")
            if isinstance(shape, dict):
                width = {"cell_size": 16} if shape.get("architecture") == "luban-lstm" else {}
                shape = {key: value for key, value in shape.items() if key not in ("layers", "hidden_size", "heads", "dropout")} | ({**TINY, **width} if not width else {"layers": 1, "hidden_size": 16})
                found.append(f"{stage}.shape={json.dumps(shape)}")
            if "depth" in body:
                found.append(f"{stage}.depth=1")
            found += [f"{stage}.length=2 steps", f"{stage}.threads=1", f"{stage}.validation.every=2 steps", f"{stage}.track.tensorboard=false"]
            found += BESIDE.get(stage, [])
            found += [f"{stage}.regularization.freeze=[]"] if "freeze" in body.get("regularization", {}) else []
        if body["kind"] == "evaluate" and "baselines" in body:
            found += [f"{stage}.maximum_bytes=2000", f"{stage}.baseline_bytes=50000"]
        if body["kind"] == "curate":
            found.append(f"{stage}.workers=1")
        if body["kind"] == "train_tokenizer":
            found += [f"{stage}.extend_learned=20"] if "extend_learned" in body else [f"{stage}.vocabulary_size=400"] if body.get("style") != "bert" else []
    return found


# ------------------------------------------------------------------------------------------------------------ their form


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_reads_well(name):
    text = (SHIPPED / name / "recipe.yaml").read_text(encoding="utf-8")
    lines = text.split("\n")
    assert all(len(line) <= 160 for line in lines)
    assert name == "quickstart" or len(lines) <= 36
    assert about(SHIPPED / name, "en")[0] in GROUPS
    group, purpose = about(SHIPPED / name, "zh")
    assert re.search(r"[\u4e00-\u9fff]{2}", group) and re.search(r"[\u4e00-\u9fff]{4}", purpose)
    kinds = [body["kind"] for body in plain(name)["stages"].values()]
    assert "evaluate" in kinds or name == "counting"


def test_groups_have_one_chinese_name_each():
    assert len({(about(SHIPPED / name, "en")[0], about(SHIPPED / name, "zh")[0]) for name in NAMES}) == len(GROUPS)


def test_new_lists_them_all_in_both_languages():
    for tongue, word in (("en", "Start here"), ("zh", "从这里开始")):
        printed = CliRunner().invoke(cli, ["--language", tongue, "new"]).output
        assert printed.startswith(word)
        for name in NAMES:
            assert re.search(rf"^  {name} +\S", printed, re.MULTILINE), name


def test_new_says_how_to_bring_data(tmp_path):
    printed = CliRunner().invoke(cli, ["--language", "en", "new", "sentiment", str(tmp_path / "mine")]).output
    assert "data=… test=…" in printed.replace("\n", "")
    assert (tmp_path / "mine" / "data" / "README.md").exists()


@pytest.mark.parametrize("name", WITH_DATA)
def test_data_says_where_it_comes_from(name):
    folder = SHIPPED / name / "data"
    notes = (folder / "README.md").read_text(encoding="utf-8")
    assert re.search(r"^licence: \S", notes, re.MULTILINE) and re.search(r"[\u4e00-\u9fff]{4}", notes)
    assert not re.search(r"\bNC\b|non-?commercial", notes)
    for file in folder.iterdir():
        assert file.name == "README.md" or f"`{file.name}`" in notes


def test_all_samples_together_are_small():
    assert sum(file.stat().st_size for name in WITH_DATA for file in (SHIPPED / name / "data").iterdir()) <= 700_000  # with the quickstart's, under 3 MB


# -------------------------------------------------------------------------------------------------------------- they run


@pytest.mark.parametrize("name", OWN)
def test_check_passes(name, tmp_path):
    shutil.copytree(SHIPPED / name, tmp_path / name)
    recipe = read_recipe(tmp_path / name / "recipe.yaml", reduced(name))
    failed = [tick.text for tick in check(recipe, dry_batch=False) if not tick.passed and not tick.text.startswith("disk")]
    assert not failed


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in OWN])
def test_a_reduced_run_ends_in_a_report(name, tmp_path):
    shutil.copytree(SHIPPED / name, tmp_path / name)
    recipe = read_recipe(tmp_path / name / "recipe.yaml", reduced(name))
    made = run_recipe(recipe)
    assert [artifact.path.name for artifact in made] == list(recipe.stages)
    for stage in recipe.stages.values():
        if stage.kind.name == "evaluate":
            report = Path(recipe.out / stage.name)
            assert json.loads((report / "results.json").read_text(encoding="utf-8"))["rows"]
        if stage.kind.name == "train" and name in WITH_DATA:
            assert open_artifact(recipe.out / stage.name).licences, "the data's licence stands in the model's manifest"
