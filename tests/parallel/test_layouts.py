"""Tensor, context and expert groups, shards and what they make together: the same training as one process, the same checkpoints, and refusals that say what would do."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import yaml
from click.testing import CliRunner
from resume_lab import FIXED, case
from tiny import tiny_recipe
from torchrun_lab import EXACT, chosen, differs, follow

import luban
from luban.cli.main import cli
from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.models.families import family_of
from luban.parallel.legal import Parts, legal_layouts, nearest, refusals
from luban.pipeline import check_layouts
from luban.training import layout_parity
from luban.training.config import TrainConfig

JOURNEYS = [["llama", ["tensor2", "none", "full", "context2,full"]], ["qwen3_moe", ["expert2", "tensor2", "expert2,full", "none"]]]


def test_two_ranks_in_groups_say_what_one_process_says(tmp_path):
    """Each kind of group and family in float64; a whole training by the real stage; checkpoints that go from layout to layout; dropout that ranks of a group draw alike where they do the same."""
    cases = [
        "llama:adamw:tensor2:2", "llama:muon:tensor2,whole:2", "llama:adamw:context2,full:2", "gpt2:adamw:context2:2", "bert/kinds:adamw:tensor2:2", "bert:adamw:context2:2", "t5:adamw:tensor2:2",
        "bart:adamw:context2:2", "qwen2_moe:adamw:tensor2:1", "qwen2_moe:adamw:context2,expert2:1", "qwen3_moe:adamw:full,expert2:1",
    ]  # fmt: skip
    fields = {**FIXED, **case(tmp_path, "causal"), "micro_batch_rows": 1, "gradient_clip": 0.5}
    luban.train(**fields, out=tmp_path / "one")
    runs = [{**fields, "layout": {"tensor": 2}, "recompute": "selective", "out": tmp_path / "two"}]
    found = follow(tmp_path, 2, cases, runs, journeys=JOURNEYS, draws=["bert/kinds:tensor2"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["runs"] == [""]
    assert differs(tmp_path / "one", tmp_path / "two") == []
    assert found["journeys"] == [[], []]  # no tensor arrives with other bits
    assert found["draws"] == {"bert/kinds:tensor2": [0.0, 0.0]}


@pytest.mark.long
def test_four_ranks_in_groups_say_what_one_process_says(tmp_path):
    cases = [
        "llama:adamw:tensor2,full:2", "llama:adamw:tensor2,context2:2", "llama:muon:tensor2,full:2", "llama:adamw:tensor2,replicas2,gradients:2", "bert:adamw:tensor2,context2:2", "t5:adamw:tensor2,full:2",
        "bart:sgd:context2,replicas2:2", "qwen2_moe:adamw:full,expert2,tensor2:1", "qwen2_moe:adamw:context2,expert2,tensor2:1", "qwen3_moe:muon:expert4,full:1", "qwen3_moe:adamw:expert2,context2,full:1",
    ]  # fmt: skip
    found = follow(tmp_path, 4, cases, [], journeys=[["qwen2_moe", ["expert2,tensor2", "tensor2,full", "context2,expert4,full", "none"]]], draws=["t5:tensor2"])
    assert {name: values for name, values in found["cases"].items() if max(values) > EXACT} == {}
    assert found["journeys"] == [[]]
    assert found["draws"] == {"t5:tensor2": [0.0, 0.0]}


# ---- the command -------------------------------------------------------------------------------------------------------


@pytest.mark.long
def test_check_compares_the_layouts_of_a_recipe_and_fails_where_one_is_off(tmp_path, monkeypatch):
    recipe = tiny_recipe(tmp_path)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    monkeypatch.setitem(layout_parity.TOLERANCES, "float32", 0.0)  # which sums in another order cannot keep
    ended = CliRunner().invoke(cli, ["check", str(tmp_path / "recipe.yaml"), "--layouts", "--ranks", "1,2"], env={"COLUMNS": "160"})
    assert ended.exit_code == 1, ended.output
    lines = {line.split("  ")[0].strip(): line for line in ended.output.splitlines() if line.rstrip().endswith(("✓", "✗"))}
    assert {"one process", "replicas: 2", "shards: 2, shard: full", "shards: 2, shard: gradients", "shards: 2, shard: states", "tensor: 2", "context: 2", "pipeline: 2, schedule: 1f1b", "pipeline: 2, schedule: zero_bubble"} <= lines.keys()
    assert "✓" in lines["one process"]
    assert "✗" in lines["tensor: 2"]
    for line in lines.values():  # float64 holds
        assert max(map(float, line.split()[-5:-3])) <= 1e-9


ELEMENTS, WHOLE = {"shards: 2, shard: full", "shards: 2, shard: gradients", "shards: 2, shard: states"}, {"one process", "replicas: 2"}


@pytest.mark.parametrize(
    ("architecture", "fields", "there", "field"),
    [
        ("llama", {"optimizer": {"name": "adafactor"}}, {*WHOLE, "pipeline: 2, schedule: 1f1b"}, "optimizer.name"),
        ("llama", {"regularization": {"average": "exponential"}}, WHOLE, "regularization.average"),
        ("llama", {"engine": "layerwise"}, {"one process"}, "engine"),
        ("luban-lstm", {}, WHOLE, "shape.architecture"),
        ("llama", {}, {*WHOLE, *ELEMENTS, "tensor: 2", "context: 2", "pipeline: 2, schedule: 1f1b"}, None),
    ],
)
def test_layouts_that_training_refuses_are_not_compared(architecture, fields, there, field):
    config = build(TrainConfig, {"data": "text", **fields})
    chosen, refused = layout_parity.allowed(shape_of(architecture), config, layout_parity.Words(), (1, 2))
    texts = {trial.text for trials in chosen.values() for trial in trials}
    assert there <= texts and {name for name, _, _ in refused} >= ({field} if field else set())
    assert not texts & {text for each in refused.values() for text in each} and (texts & ELEMENTS == (ELEMENTS if field is None else set()))


def test_check_names_the_optimizer_that_ran_and_what_was_left_out(tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(tiny_recipe(tmp_path, optimizer={"name": "adafactor"}), sort_keys=False))
    ran = []

    def compare(shape, optimizer, counts, chosen):
        ran.append((optimizer, [trial.text for trial in chosen[2]]))
        return [layout_parity.Outcome(text, 2, *({"float64": 0.0, "float32": 0.0} for _ in range(2))) for text in ran[-1][1]]

    monkeypatch.setattr(check_layouts, "compare_layouts", compare)
    ended = CliRunner().invoke(cli, ["check", str(tmp_path / "recipe.yaml"), "--layouts", "--ranks", "1,2"], env={"COLUMNS": "400"})
    assert ended.exit_code == 0, ended.output
    ((optimizer, texts),) = ran
    said = " ".join(ended.output.split())
    assert optimizer == "adafactor" and "llama with adafactor" in said and not ELEMENTS & set(texts)
    assert "not tried, as training refuses optimizer.name: adafactor there (its state is of whole matrices" in said and said.count("shards: 2, shard: full") == 1


SHAPES = {
    "llama": {"key_value_heads": 2}, "roberta": {}, "t5": {}, "bart": {}, "qwen2_moe": {"key_value_heads": 2}, "mixtral": {},
}  # fmt: skip


def shape_of(architecture: str, **sizes: int):
    fields = {"architecture": architecture, "hidden_size": 64, "layers": 2, "heads": 4, "vocabulary_size": 100, "maximum_positions": 64, **sizes}
    return build(family_of(architecture).shape, {name: value for name, value in fields.items() if name == "architecture" or name in family_of(architecture).shape.model_fields})


@pytest.mark.long
@pytest.mark.parametrize("architecture", SHAPES)
def test_every_layout_of_four_ranks_trains_every_family_alike(architecture):
    found = layout_parity.compare_layouts(shape_of(architecture, **SHAPES[architecture]), "adamw", (1, 2, 4))
    assert len(found) > 20
    assert [outcome for outcome in found if not outcome.passed] == []


# ---- what is legal -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "heads", "experts", "length"), [(4, 4, 0, 0), (6, 6, 2, 12), (8, 4, 4, 8), (8, 2, 6, 0), (3, 4, 0, 8)])
def test_the_legal_layouts_are_those_that_brute_force_finds(ranks, heads, experts, length):
    shape = shape_of("qwen3_moe" if experts else "qwen3", heads=heads, key_value_heads=heads, head_dim=8, feed_forward_size=48, expert_size=12, **({"experts": experts, "experts_per_token": 1} if experts else {}))
    wanted = set()
    for sizes in itertools.product(range(1, ranks + 1), repeat=6):
        pipeline, replicas, shards, context, tensor, expert = sizes
        data = replicas * shards * context
        whole = pipeline * data * tensor == ranks and data % expert == 0
        fits = heads % tensor == 0 and (tensor == 1 or (48 % tensor == 0 and (not experts or 12 % tensor == 0))) and pipeline <= 2
        routed = expert == 1 or (experts > 0 and experts % expert == 0)
        if whole and fits and routed and length % (context * tensor) == 0:
            wanted.add(sizes)
    assert {dataclasses.astuple(parts) for parts in legal_layouts(shape, ranks, length)} == wanted


def test_the_nearest_layouts_are_legal_and_near():
    shape = shape_of("llama", heads=6, key_value_heads=6, head_dim=8, feed_forward_size=48)
    found = nearest(shape, Parts(tensor=4), 4, pipeline=1)
    assert all(parts.ranks == 4 and not list(refusals(shape, parts)) for parts in found)
    assert found[0].tensor == 2  # one factor of two from the wish
    assert math.prod(dataclasses.astuple(found[0])) == 4


def test_an_illegal_layout_is_refused_with_the_nearest_legal_ones():
    refused = {
        "layout.tensor: 4 does not fit the model: key_value_heads is 2, which 4 do not divide": {"model": "llama", "count": 4, "layout": {"tensor": 4}},
        "layout.tensor: 2 does not fit the model: its queries": {"model": "gpt2", "layout": {"tensor": 2}},
        "layout.context: 2 does not fit the model: luban-lstm has no plan for it": {"model": "luban-lstm", "layout": {"context": 2}},
        "layout.context: 2 does not fit the model: sequence_length is 47": {"layout": {"context": 2}, "sequence_length": 47},
        "layout.expert: 2 does not fit the model: llama has no experts": {"layout": {"expert": 2}},
        "layout.expert: 3 does not fit the model: experts is 4": {"model": "qwen3_moe", "count": 3, "layout": {"expert": 3}},
        "layout: tensor: 2 is no layout of 3 processes": {"count": 3, "layout": {"tensor": 2}},
        "layout: tensor: 2 is no layout of 1 processes": {"count": 1, "layout": {"tensor": 2}},
        "layout.pipeline: 4 does not fit the model: the model has 2 layers, and that takes 4 stages": {"count": 4, "layout": {"pipeline": 4}},
        "layout.pipeline: 2 does not fit the model: the model has 2 layers, and that takes 4 stages": {"layout": {"pipeline": 2, "schedule": "interleaved"}},
        "layout.pipeline: 6 does not fit the model: the model has 5 layers, and that takes 6 stages": {"model": "t5", "count": 6, "layout": {"pipeline": 6}},
        "layout.pipeline: 2 does not fit the model: luban-lstm has no plan for it": {"model": "luban-lstm", "layout": {"pipeline": 2}},
        "layout: pipeline: 2 is no layout of 3 processes": {"count": 3, "layout": {"pipeline": 2}},
    }
    for said, fields in refused.items():
        with pytest.raises(ConfigError) as caught:
            chosen(**fields)
        assert str(caught.value).startswith(said), caught.value
        assert "the nearest layouts of" in caught.value.text()


def test_what_groups_cannot_do_is_refused_by_name():
    two = {"layout": {"tensor": 2}}
    refused = {
        "regularization.neftune: 5.0": {"regularization": {"neftune": 5.0}, "layout": {"context": 2}},
        "optimizer.name: adafactor": {"optimizer": {"name": "adafactor"}, "layout": {"context": 2}},
        "precision: float16": {"precision": "float16", **two},
        "objective: ": {"model": "bert/alike", **two},
        "regularization.average: exponential": {"regularization": {"average": "exponential"}, **two},
    }
    for said, fields in refused.items():
        with pytest.raises(ConfigError, match=said):
            chosen(**fields)


@pytest.mark.parametrize(
    ("layout", "count", "what", "otherwise"),
    [
        ({"tensor": 2}, 2, "layout.tensor: 2", "layout.tensor: 1"),
        ({"shard": "full"}, 2, "layout.shard: full", "layout.shard: none"),
        ({"tensor": 2, "shard": "full"}, 4, "layout.shard: full, layout.tensor: 2", "layout.shard: none, layout.tensor: 1"),
    ],
)
def test_a_refusal_names_what_cuts_and_what_would_not(layout, count, what, otherwise):
    with pytest.raises(ConfigError) as caught:
        chosen(optimizer={"name": "adafactor"}, layout=layout, count=count)
    lines = str(caught.value).splitlines()
    assert lines[0] == f"optimizer.name: adafactor cannot be trained by {count} processes with {what}"
    assert lines[-1] == f"try: choose adamw, lion, sgd, muon, or {otherwise}"
