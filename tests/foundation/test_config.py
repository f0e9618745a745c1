"""Configs are closed and answer mistakes with the nearest right name, the file and the line."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PositiveFloat

from luban.foundation.config import Auto, Config, Source, build, field, fields_with_role
from luban.foundation.durations import Duration
from luban.foundation.errors import ConfigError, LubanError
from luban.foundation.yaml_files import apply_override, parse_override, parse_yaml


class InnerConfig(Config):
    """Inner."""

    foreign: ClassVar[dict[str, str]] = {"lr": "learning_rate"}
    learning_rate: PositiveFloat | Auto = field("auto", "Peak learning rate.")


class OuterConfig(Config):
    """Outer."""

    renamed: ClassVar[dict[str, str]] = {"scheduler": "schedule"}
    inner: InnerConfig = field(InnerConfig(), "Inner.")
    schedule: Literal["cosine", "linear"] = field("cosine", "Curve.")
    length: Duration = field("3 epochs", "Length.", role="length")
    workers: int = field(2, "Workers.", role="machine")


def from_yaml(text: str):
    data, lines = parse_yaml(text, "r.yaml")
    return build(OuterConfig, data, Source("r.yaml", lines))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("inner:\n  learning_rte: 1\n", ("r.yaml:2", "inner.learning_rte", "did you mean learning_rate?")),
        ("inner: {lr: 1e-3}\n", ("r.yaml:1", "learning_rate here")),
        ("schedule: cosin\n", ("r.yaml:1", "'cosine' or 'linear'", "cosin")),
        ("\n\nlength: 3 epoks\n", ("r.yaml:3", "3 epochs")),
        ("inner: {learning_rate: -1}\n", ("greater than 0",)),
        ("inner: 5\n", ("r.yaml:1", "inner")),
    ],
)
def test_mistakes_name_the_line_and_the_nearest_key(text, expected):
    with pytest.raises(ConfigError) as caught:
        from_yaml(text)
    for part in expected:
        assert part in str(caught.value)


def test_renamed_keys_are_read_with_a_warning(capsys):
    assert from_yaml("scheduler: linear\n").schedule == "linear"
    assert "now called schedule" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="both"):
        from_yaml("scheduler: linear\nschedule: cosine\n")


def test_roles_split_the_fields():
    config = from_yaml("inner: {learning_rate: 1e-3}\n")
    assert fields_with_role(config, "result") == {"inner": {"learning_rate": 1e-3}, "schedule": "cosine"}
    assert fields_with_role(config, "length") == {"length": "3 epochs"}


@pytest.mark.parametrize("text", ["a: [", "a: 1\na: 2", "- 1", "a: {b: {b: 1, b: 2}}", "", "a: !!python/object:os.system x", "a: &x [*x]", "\t"])
def test_broken_yaml_is_a_clear_error(text):
    with pytest.raises(ConfigError, match="r.yaml"):
        parse_yaml(text, "r.yaml")


@given(st.text(max_size=200))
def test_no_text_crashes_the_reader(text):
    try:
        data, lines = parse_yaml(text, "r.yaml")
        build(OuterConfig, data, Source("r.yaml", lines))
    except LubanError as error:
        assert str(error)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8), lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["inner", "schedule", "length", "learning_rate", "x"]), inner, max_size=4)))
def test_no_value_crashes_the_builder(value):
    try:
        build(OuterConfig, value if isinstance(value, dict) else {"inner": value})
    except LubanError as error:
        assert str(error)


def test_overrides():
    data = {"base": {"depth": 4}}
    for text in ("base.depth=6", "base.optimizer.learning_rate=1e-3", "base.names=[a, b]"):
        apply_override(data, *parse_override(text))
    assert data == {"base": {"depth": 6, "optimizer": {"learning_rate": 1e-3}, "names": ["a", "b"]}}
    with pytest.raises(ConfigError, match="not an override"):
        parse_override("depth")


@pytest.mark.parametrize(("text", "value", "unit", "shown"), [("20M tokens", 20e6, "tokens", "20M tokens"), ("500 steps", 500, "steps", "500 steps"), (7, 7, "steps", "7 steps"), ("0.5 epochs", 0.5, "epochs", "0.5 epochs"), ("1e9 tokens", 1e9, "tokens", "1B tokens"), ("1_500 steps", 1500, "steps", "1500 steps")])
def test_durations(text, value, unit, shown):
    duration = Duration.parse(text)
    assert (duration.value, duration.unit, str(duration)) == (value, unit, shown)
    assert Duration.parse(str(duration)) == duration


def test_duration_in_steps():
    assert Duration.parse("2 epochs").steps(100, 1050) == 21
    assert Duration.parse("1000 tokens").steps(300, 0) == 4
    for wrong in ("0 steps", "x", "", None, "-3 epochs", "5", 1.5, True):
        with pytest.raises(ValueError):
            Duration.parse(wrong)
