"""A budget becomes a size, a number of tokens and a recipe: the law against brute force, the count against the text itself, the choice against its neighbours."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import numpy as np
import pytest
import yaml
from click.testing import CliRunner
from tiny import WORDS

import luban
from luban.cli.main import cli
from luban.foundation.errors import ConfigError, DataError
from luban.models.counts import parameters
from luban.models.shape import ShapeConfig
from luban.pipeline import budget, counting
from luban.pipeline.budget import DEPTHS, SPENT, Budget, choose, make_budget, show, times_text, warnings
from luban.pipeline.counting import Counted, count
from luban.planning import dial
from luban.planning.devices import cluster
from luban.planning.law import HOFFMANN, Law, read_law
from luban.planning.margins import Margin

SHAKESPEARE = Path(luban.__file__).parent / "recipes/quickstart/data/shakespeare.txt"
SURE = Margin(0.05, 0.4)
PLENTY = Counted(1, 1, 1 << 20, 4e10, 32000, 4.0)  # ten billion tokens
LITTLE = Counted(1, 1, 1 << 20, 1.1e6, 3072, 3.4)  # a play's worth


def write_words(folder: Path, size: int) -> Path:
    rng = random.Random(1)
    words = [*WORDS, *("".join(rng.choices("abcdefghij", k=rng.randint(3, 8))) for _ in range(400))]
    folder.mkdir()
    text = ""
    while len(text.encode()) < size:
        text += " ".join(rng.choices(words, k=12)) + ("\n\n" if rng.random() < 0.2 else "\n")
    (folder / "text.txt").write_text(text, encoding="utf-8")
    return folder


# ---- the law -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("operations", [1e18, 1e21, 5.76e23])
def test_the_best_tokens_are_those_of_brute_force(operations):
    sizes = np.geomspace(1e6, 1e12, 60001)
    best = sizes[np.argmin([HOFFMANN.loss(size, operations / 6 / size) for size in sizes])]
    assert HOFFMANN.best_tokens(best) == pytest.approx(operations / 6 / best, rel=2e-3)
    assert HOFFMANN.best_parameters(HOFFMANN.best_tokens(best)) == pytest.approx(best)


def test_repeated_data_is_worth_less_and_less():
    series = [sum((1 - 1 / (1 + HOFFMANN.repetitions)) ** step for step in range(epochs)) for epochs in (1, 4, 16, 200)]  # the geometric series of which the form is an approximation
    assert [HOFFMANN.worth(epochs * 1e6, 1e6) / 1e6 for epochs in (1, 4, 16, 200)] == pytest.approx(series, rel=0.04)
    assert HOFFMANN.loss(1e8, 1e9) == HOFFMANN.loss(1e8, 1e9, 1e9) < HOFFMANN.loss(1e8, 1e9, 1e8) < HOFFMANN.loss(1e8, 1e9, 1e7)


def test_constants_are_replaceable(tmp_path):
    assert read_law("") == HOFFMANN and read_law("E=1.8, alpha=0.35") == Law(E=1.8, alpha=0.35)
    (tmp_path / "law.json").write_text(json.dumps({"A": 482}))
    assert read_law(str(tmp_path / "law.json")) == Law(A=482.0)
    for text, words in (("a=1", "did you mean A"), ("E=-1", "positive"), ("A=x", "'x'"), ("absent.json", "neither")):
        with pytest.raises(ConfigError) as caught:
            read_law(text)
        assert words in caught.value.text()


# ---- the count -----------------------------------------------------------------------------------------------------


def test_a_sample_foretells_the_whole(tmp_path, monkeypatch):
    folder = write_words(tmp_path / "texts", 400_000)
    text = (folder / "text.txt").read_text(encoding="utf-8")
    rows = "".join(json.dumps({"text": part, "source": "somewhere on the web"}) + "\n" for part in text.split("\n\n"))
    (folder / "rows.jsonl.gz").write_bytes(gzip.compress(rows.encode()))
    (folder / "picture.png").write_bytes(bytes(range(256)) * 40)
    whole = count([folder])
    assert whole.exact and whole.text_bytes == pytest.approx(2 * len(text.encode()), rel=0.02)
    monkeypatch.setattr(counting, "LOOKED_AT", 300_000)
    part = count([folder], whole.vocabulary)
    assert not part.exact and part.sampled < 0.6 * whole.sampled
    assert part.text_bytes == pytest.approx(whole.text_bytes, rel=0.15) and part.tokens == pytest.approx(whole.tokens, rel=0.15)  # what unpacking has read ahead is a part of so small a file
    (tmp_path / "empty.txt").write_text("")
    with pytest.raises(DataError, match="no text"):
        count([tmp_path / "empty.txt"])


# ---- the choice ----------------------------------------------------------------------------------------------------


def test_more_time_makes_a_larger_and_better_model_within_the_time():
    one = cluster("1xRTX4090")
    small, large = (choose(PLENTY, one, SURE, Budget(seconds=3600.0 * hours), HOFFMANN) for hours in (1, 16))
    assert small.best.parameters < large.best.parameters and small.best.loss > large.best.loss
    for chosen, hours in ((small, 1), (large, 16)):
        assert chosen.best.seconds == pytest.approx(SPENT * 3600 * hours, rel=0.05) and chosen.best.loss == min(each.loss for each in chosen.every)
        assert chosen.best is not chosen.every[-1]  # deeper ones were looked at and are worse
        assert chosen.best.config.batch_tokens % chosen.best.config.sequence_length == 0
    money = make_budget(None, 32.0, None, None, 2.0, 1)
    assert money.seconds == 16 * 3600


def test_tokens_and_parameters_decide_the_other():
    one = cluster("1xA100-80GB")
    by_size = choose(PLENTY, one, SURE, Budget(parameters=1.2e8), HOFFMANN).best
    assert 0.7 < by_size.parameters / 1.2e8 < 1.4 and by_size.tokens == pytest.approx(HOFFMANN.best_tokens(by_size.parameters))
    by_tokens = choose(PLENTY, one, SURE, Budget(tokens=3e9), HOFFMANN).best
    assert by_tokens.tokens == 3e9 and 0.6 < by_tokens.parameters / HOFFMANN.best_parameters(3e9) < 1.6
    fewer = choose(PLENTY, one, SURE, Budget(tokens=3e9), Law(B=4000.0)).best  # where data weighs more, models are smaller
    assert fewer.parameters < by_tokens.parameters


@pytest.mark.parametrize("vocabulary", [3072, 32000, 65536])
def test_seven_billion_parameters_are_on_the_dial(vocabulary):
    sizes = {depth: parameters(dial.shape_of_depth(depth, vocabulary, ShapeConfig()))["total"] for depth in DEPTHS}
    assert [depth for depth, size in sizes.items() if 6.6e9 < size < 7.4e9] == [54]


def test_a_size_that_is_asked_for_is_met_or_said(monkeypatch):
    monkeypatch.setattr(budget, "DEPTHS", DEPTHS[-6:])
    seven, seventy = (choose(LITTLE, cluster("8xA100-80GB"), SURE, Budget(parameters=size), HOFFMANN) for size in (7e9, 7e10))
    assert 6.5e9 < seven.best.parameters < 7.5e9 and not any("asked for" in line for line in warnings(seven))
    assert seventy.best.depth == DEPTHS[-1] and "70B parameters were asked for" in next(warnings(seventy))


def test_too_few_rows_are_told_from_too_little_memory(capsys):
    """A step that leaves devices without a row says nothing of deeper models, whose matrices or layers may be shared out."""
    chosen = choose(LITTLE, cluster("64xH100"), SURE, Budget(seconds=3600.0), HOFFMANN)
    assert chosen.few_rows and not chosen.too_large and chosen.every[-1].depth > chosen.few_rows[0]
    show(chosen)
    assert "do not fit there" not in (said := "".join(capsys.readouterr())) and f"--cluster {chosen.enough}xH100 would do for depth {chosen.few_rows[0]}" in " ".join(said.split())
    enough = choose(LITTLE, cluster(f"{chosen.enough}xH100"), SURE, Budget(seconds=3600.0), HOFFMANN)
    assert chosen.few_rows[0] in [one.depth for one in enough.every]
    with pytest.raises(ConfigError) as caught:
        choose(LITTLE, cluster("512xH100"), SURE, Budget(seconds=3600.0), HOFFMANN)
    assert "fewer rows" in caught.value.text() and "fewer devices" in caught.value.text()
    with pytest.raises(ConfigError) as caught:
        choose(LITTLE, cluster("1xcpu-0.01GB"), SURE, Budget(seconds=3600.0), HOFFMANN)
    assert "larger ones" in caught.value.text()
    large = choose(LITTLE, cluster("8xT4"), SURE, Budget(parameters=7e9), HOFFMANN)
    assert large.too_large[0] > large.best.depth
    show(large)
    assert f"depth {large.too_large[0]} and more do not fit there" in "".join(capsys.readouterr())


@pytest.mark.parametrize("name", ["TPU-v4", "Ascend-910B"])
def test_devices_that_are_not_trained_on_are_named(name):
    assert f"Luban does not train on {name}" in next(warnings(choose(PLENTY, cluster(f"8x{name}"), SURE, Budget(tokens=1e8), HOFFMANN)))


@pytest.mark.parametrize(
    ("asked", "words"),
    [((1, 2, None, None, 1), "2 budgets"), ((None, None, None, None, 1), "0 budgets"), ((None, 5, None, None, 0), "--price"), ((None, None, "lots", None, 0), "300M"), ((None, None, None, "-3M", 0), "above zero")],
)
def test_a_budget_is_one_number(asked, words):
    with pytest.raises(ConfigError) as caught:
        make_budget(*asked, 8)
    assert words in caught.value.text()
    assert make_budget(None, None, "2.5B", None, 0, 8).tokens == 2.5e9 and make_budget(None, None, None, "125m", 0, 8).parameters == 1.25e8


@pytest.mark.parametrize("depth", DEPTHS)
def test_every_depth_of_the_dial_is_a_shape(depth):
    shape = dial.shape_of_depth(depth, 1000, ShapeConfig())
    assert shape.heads % shape.key_value_heads == 0


# ---- the recipe ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tongue", ["en", "zh"])
def test_the_recipe_is_whole_and_checks(tmp_path, tongue, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_words(tmp_path / "texts", 120_000)
    asked = ["--language", tongue, "plan", "--data", "texts", "--hours", "0.05", "--cluster", "1xcpu-8GB", "--write", "mine/plan.yaml"]
    (tmp_path / "mine").mkdir()
    ran = CliRunner().invoke(cli, asked)
    assert ran.exit_code == 0, ran.exception
    text = (tmp_path / "mine" / "plan.yaml").read_text(encoding="utf-8")
    recipe = yaml.safe_load(text)
    assert [stage["kind"] for stage in recipe["stages"].values()] == ["curate", "train_tokenizer", "encode", "train", "evaluate", "serve"]
    assert recipe["stages"]["corpus"]["sources"] == ["../texts"]
    base = recipe["stages"]["base"]
    rates = dial.learning_rates("muon", dial.shape_of_depth(base["depth"], 1000, ShapeConfig()).hidden_size, "causal", False, depth=base["depth"])
    assert base["optimizer"] == {"name": "muon", **rates} and "2305.16264" in text  # so little text is read many times
    ran = CliRunner().invoke(cli, ["--language", tongue, "check", "mine/plan.yaml", "--no-dry-batch"])
    assert ran.exit_code == 0, ran.output
    again = CliRunner().invoke(cli, asked)
    assert isinstance(again.exception, ConfigError) and (tmp_path / "mine" / "plan.yaml").read_text(encoding="utf-8") == text
    CliRunner().invoke(cli, ["--language", "en", "check", "absent"])


@pytest.mark.slow
def test_what_was_counted_is_what_encoding_gives(tmp_path):
    (tmp_path / "text.txt").write_bytes(SHAKESPEARE.read_bytes()[:300_000])
    ran = CliRunner().invoke(cli, ["plan", "--data", str(tmp_path / "text.txt"), "--tokens", "200k", "--cluster", "1xcpu-8GB", "--write", str(tmp_path / "plan.yaml"), "--json"])
    assert ran.exit_code == 0, ran.exception
    plan = json.loads(ran.output[ran.output.index("{") :])
    made = luban.run(tmp_path / "plan.yaml", "corpus.workers=1", until="tokens")
    found = sum(part["tokens"] for name, part in made[-1].metrics.items() if name in ("train", "validation", "test"))
    assert plan["data"]["tokens"] == pytest.approx(found, rel=0.1)
    assert made[1].metrics["vocabulary_size"] == pytest.approx(plan["data"]["vocabulary"], rel=0.02)
    assert plan["best"]["tokens"] == 200_000


def test_a_recipe_for_several_devices_says_so_and_is_launched(tmp_path, monkeypatch):
    """Its layout needs them all: one that no longer names them is told how many, and is no invalid recipe for it."""
    monkeypatch.chdir(tmp_path)
    write_words(tmp_path / "texts", 60_000)
    planned = CliRunner().invoke(cli, ["plan", "--data", "texts", "--hours", "0.01", "--cluster", "4xA100", "--write", "plan.yaml"])
    text = (tmp_path / "plan.yaml").read_text("utf-8")
    assert planned.exit_code == 0 and "\ncluster: 4xA100-80GB\n" in text and "  luban launch plan.yaml" in planned.output
    assert "cluster:" not in recipe_of(tmp_path, "1xcpu-8GB")
    (tmp_path / "plan.yaml").write_text(text.replace("cluster: 4xA100-80GB\n", ""), "utf-8")
    checked = CliRunner().invoke(cli, ["check", "plan.yaml", "--no-dry-batch", "base.layout={replicas: 2, tensor: 2, shard: none}"])
    said = " ".join(checked.output.split())
    assert checked.exit_code == 0 and "! base: layout replicas: 2, tensor: 2 needs 4 processes" in said and "ready: luban launch plan.yaml" in said
    alone = CliRunner().invoke(cli, ["check", "plan.yaml", "--no-dry-batch", "base.layout={replicas: 1, shard: none}"])
    assert alone.exit_code == 0 and "processes" not in alone.output and "ready: luban run plan.yaml" in " ".join(alone.output.split())


def recipe_of(folder, devices):
    """The recipe that a small budget on these devices leads to."""
    file = folder / f"{devices}.yaml"
    assert CliRunner().invoke(cli, ["plan", "--data", "texts", "--hours", "0.01", "--cluster", devices, "--write", str(file)]).exit_code == 0
    return file.read_text("utf-8")


def test_fewer_tokens_than_are_ever_planned_are_answered_with_the_least(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_words(tmp_path / "texts", 60_000)
    planned = CliRunner().invoke(cli, ["plan", "--data", "texts", "--tokens", "5", "--cluster", "1xcpu-8GB", "--write", "plan.yaml"])
    assert planned.exit_code == 0 and "5 tokens were asked for; the least that is planned at depth 1" in (tmp_path / "plan.yaml").read_text("utf-8")


@pytest.mark.parametrize(("times", "text"), [(16.38, "16.4"), (16.02, "16"), (4.0, "4"), (1.25, "1.2"), (0.0321, "0.032")])
def test_how_often_text_is_read_is_right_to_a_digit(times, text):
    assert times_text(times) == text
