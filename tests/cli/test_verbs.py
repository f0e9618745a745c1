"""Every verb answers, in English and in Chinese, and mistakes cost no traceback."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from click.testing import CliRunner

from luban.cli.main import VERBS, cli
from luban.foundation.config import walk_fields
from luban.foundation.errors import ConfigError
from luban.foundation.kinds import KINDS

LUBAN = [sys.executable, "-m", "luban"]


@pytest.fixture
def run(warm):
    def run(*arguments: str, code: int = 0) -> str:
        ran = warm.run(list(arguments))
        assert ran.returncode == code, ran.stderr
        assert "Traceback" not in ran.stderr
        return ran.stdout + ran.stderr

    return run


def test_a_cold_start_says_the_same(run, tmp_path, monkeypatch):
    """The other tests fork a process that has imported Luban; this one starts Python anew."""
    monkeypatch.chdir(tmp_path)
    for arguments, code in ((["--language", "en", "show", "absent"], 3), (["--language", "zh", "run", "absent.yaml"], 2)):
        ran = subprocess.run([*LUBAN, *arguments], capture_output=True, text=True)
        assert ran.returncode == code and ran.stdout + ran.stderr == run(*arguments, code=code)


@pytest.mark.parametrize("verb", [*VERBS, *(name.replace("_", "-") for name in KINDS)])
def test_every_verb_has_help(verb):
    result = CliRunner().invoke(cli, [verb, "--help"])
    assert result.exit_code == 0, result.output
    assert "Usage" in result.output


@pytest.mark.parametrize("kind", KINDS.values(), ids=lambda kind: kind.name)
def test_every_option_says_its_default_and_unit(kind):
    output = " ".join(CliRunner().invoke(cli, [kind.name.replace("_", "-"), "--help"], terminal_width=100000).output.split())
    for name, info in walk_fields(kind.config):
        assert f"--{name.replace('_', '-')}" in output
        assert info.description, f"{kind.name}.{name} has no documentation"
        assert "default: " in output
    result = CliRunner().invoke(cli, [kind.name.replace("_", "-"), "--help"]).output
    assert result.count("default:") + result.count("required") >= len(list(walk_fields(kind.config))) - result.count("de-") - 3


def test_schema_is_a_json_schema_that_the_shipped_recipe_fits(run):
    import jsonschema
    import yaml

    from luban.cli.new import SHIPPED

    schema = json.loads(run("schema"))
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    for recipe in SHIPPED.glob("*/recipe.yaml"):
        assert not list(validator.iter_errors(yaml.safe_load(recipe.read_text(encoding="utf-8"))))
    assert list(validator.iter_errors({"stages": {"x": {"kind": "train", "data": "d", "depht": 3}}}))


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rnu"], 2, "did you mean run"),
        (["run", "absent.yaml"], 2, "no such file"),
        (["show", "absent"], 3, "no such file"),
        (["new", "quickstrat"], 2, "did you mean quickstart"),
        (["train", "absent.txt", "--out", "x/y"], 3, "no such file"),
        (["train", "absent.txt", "--depth", "none"], 2, "depth"),
        (["train", "absent.txt", "--objective", "clasification"], 2, "did you mean classification"),
        (["train", "absent.txt", "--objective", "masked", "--objective", "causal"], 2, "given 2 times"),
        (["clean", "absent"], 2, "does not exist"),
        (["chat", "absent"], 3, "absent"),
    ],
)
def test_mistakes_are_explained(run, arguments, code, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert message in run("--language", "en", *arguments, code=code)


def test_messages_are_chinese_when_asked(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "错误" in run("--language", "zh", "run", "absent.yaml", code=2)
    assert "学习率" in run("--language", "zh", "train", "--help")


def test_new_refuses_to_overwrite(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run("--language", "en", "new", "quickstart")
    (tmp_path / "quickstart" / "recipe.yaml").write_text("mine")
    assert "not empty" in run("--language", "en", "new", "quickstart", code=2)
    assert (tmp_path / "quickstart" / "recipe.yaml").read_text() == "mine"
    assert "quickstart" in run("new")


def test_runs_show_check_and_clean_on_a_real_run(run, quickstart):
    folder = str(quickstart / "runs")
    assert "base" in run("--language", "en", "runs", folder)
    for what in ("runs/quickstart", "runs/quickstart/corpus", "runs/quickstart/tokenizer", "runs/quickstart/base", "runs/quickstart/report", "data/chat.jsonl", "data/poems.jsonl.gz", "data/shakespeare.txt"):
        assert run("--language", "en", "show", str(quickstart / what))
    assert "nothing to remove" in run("--language", "en", "clean", folder, "--yes")
    checked = run("--language", "en", "check", str(quickstart / "recipe.yaml"))
    assert "dry batch" in checked and "ready" in checked


def test_check_names_what_is_wrong(run, quickstart, tmp_path):
    import shutil

    shutil.copytree(quickstart, tmp_path / "copy", ignore=shutil.ignore_patterns("runs"))
    (tmp_path / "copy" / "data" / "chat.jsonl").unlink()
    assert "chat.jsonl: no such file" in run("--language", "en", "check", str(tmp_path / "copy" / "recipe.yaml"), "--no-dry-batch", code=1)


def test_a_short_name_and_its_settings_on_one_command_line(monkeypatch):
    from luban.pipeline import api, runner

    found = {}
    monkeypatch.setattr(api, "one_stage", lambda kind, primary, **given: found.update(given))
    monkeypatch.setattr(runner, "run_recipe", lambda recipe, **given: None)
    cli(["train", "x.jsonl", "--objective.beta", "0.2", "--objective", "dpo", "--adapter", "lora", "--adapter.rank", "4", "--quantization", "nf4"], standalone_mode=False)
    assert found["objective"] == {"name": "dpo", "beta": 0.2} and found["adapter"] == {"method": "lora", "rank": 4} and found["quantization"] == "nf4"


def test_a_list_of_one_is_written_as_the_one_on_the_command_line_too(monkeypatch, tmp_path):
    from luban.pipeline import runner
    from luban.pipeline.recipe import read_recipe

    made = []
    monkeypatch.setattr(runner, "run_recipe", lambda recipe, **given: made.append(recipe))
    given = ["--callbacks", "mine.py:f", "--samples.prompts", "3", "--adapter", "lora", "--adapter.targets", "q_proj", "--mixture", "2"]
    cli(["train", "x", "--model", "m", *given], standalone_mode=False)
    (tmp_path / "recipe.yaml").write_text("stages: {train: {data: x, model: m, callbacks: mine.py:f, samples: {prompts: '3'}, adapter: {method: lora, targets: q_proj}, mixture: 2}}")
    for recipe in (*made, read_recipe(tmp_path / "recipe.yaml")):
        stage = recipe.stages["train"]
        assert stage.inputs["callbacks"] == ["mine.py:f"] and stage.config.callbacks == ["mine.py:f"]
        assert stage.config.samples.prompts == ["3"] and stage.config.adapter.targets == ["q_proj"] and stage.config.mixture == [2.0]


@pytest.mark.parametrize(("options", "said"), [(["--cluster", "99xNOPE"], "--cluster 99xNOPE: nothing of this check reads it\nwhy: it belongs to --rehearse"), (["--ranks", "7"], "it belongs to --layouts, --rehearse"), (["--cluster", "2xcpu", "--layouts"], "it belongs to --rehearse")])
def test_check_refuses_options_of_what_it_does_not_do(tmp_path, options, said):
    with pytest.raises(ConfigError, match=said) as refused:
        CliRunner().invoke(cli, ["--language", "en", "check", str(tmp_path / "recipe.yaml"), *options], catch_exceptions=False)
    assert refused.value.exit_code == 2
