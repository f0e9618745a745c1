"""Configs are closed and answer mistakes with the nearest right name, the file and the line."""

from __future__ import annotations

from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import PositiveFloat

from luban.foundation.config import Auto, Config, Source, build, field, fields_with_role
from luban.foundation.durations import Duration, TimeSpan
from luban.foundation.errors import ConfigError, LubanError
from luban.foundation.messages import set_language, t
from luban.foundation.wrong_values import FORMS
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


def test_a_field_that_came_later_counts_only_where_it_is_used():
    class Watch(Config):
        kind: str = field("none", "Kind.")

    class Old(Config):
        depth: int = field(2, "Depth.")

    class New(Old):
        step: int | None = field(None, "Step.", later=True)
        watch: Watch = field(Watch(), "Watch.", later=True)

    assert fields_with_role(New(depth=3), "result") == fields_with_role(Old(depth=3), "result") == fields_with_role(New(depth=3, step=None, watch=Watch(kind="none")), "result")
    assert fields_with_role(New(step=4), "result") == {"depth": 2, "step": 4} and fields_with_role(New(watch=Watch(kind="all")), "result")["watch"] == {"kind": "all"}


class ListsConfig(Config):
    """Lists, and what a text means beside them."""

    texts: list[str] = field([], "Texts.")
    named: list[Literal["a", "b"]] | Auto = field("auto", "Some of them.")
    counts: list[PositiveFloat] = field([], "Numbers.", max_length=2)
    paths: str | list[str] = field([], "One text stays one.", input=True)
    triples: list[list[str]] = field([], "Lists of lists.")
    inner: list[InnerConfig] = field([], "Configs.")


@pytest.mark.parametrize(
    ("name", "given", "expected"),
    [
        ("texts", "mine.py:f", ["mine.py:f"]), ("texts", "a, b", ["a, b"]), ("texts", "auto", ["auto"]), ("texts", [], []), ("texts", "", []), ("named", "b", ["b"]), ("named", "auto", "auto"), ("counts", 2, [2.0]),
        ("counts", 0.5, [0.5]), ("paths", "x", "x"), ("triples", [["a", "b", "c"]], [["a", "b", "c"]]),
        ("texts", 3, None), ("texts", True, None), ("texts", {"a": 1}, None), ("named", "c", None), ("counts", "two", None), ("counts", -1, None), ("counts", True, None), ("triples", "a", None), ("inner", "a", None),
    ],
    ids=str,
)  # fmt: skip
def test_one_plain_value_stands_for_a_list_of_it(name, given, expected):
    """In build, in Python, by assignment, and in the schema alike."""
    import jsonschema

    schema = jsonschema.Draft202012Validator(ListsConfig.model_json_schema())
    if expected is None:
        with pytest.raises(ConfigError, match=name):
            build(ListsConfig, {name: given})
        assert not schema.is_valid({name: given})
        return
    made, assigned = build(ListsConfig, {name: given}), ListsConfig()
    setattr(assigned, name, given)
    assert getattr(made, name) == getattr(assigned, name) == getattr(ListsConfig(**{name: given}), name) == expected
    assert schema.is_valid({name: given}) and schema.is_valid({name: expected})
    assert fields_with_role(made, "result") == fields_with_role(build(ListsConfig, {name: expected}), "result")


class ValuesConfig(Config):
    """Values of all kinds."""

    length: Auto | int = field("auto", "Length.")
    rate: PositiveFloat | Auto = field("auto", "Rate.")
    share: float = field(0.5, "Share.", ge=0, lt=1)
    curve: Literal["cosine", "linear", "none"] = field("none", "Curve.")
    there: bool | Auto = field("auto", "Whether.")
    texts: list[str] = field([], "Texts.", max_length=2)
    inner: InnerConfig = field(InnerConfig(), "Inner.")
    span: TimeSpan | None = field(None, "Time.")


@pytest.mark.parametrize(
    ("name", "value", "english", "chinese"),
    [
        ("length", "abc", "must be a whole number or 'auto', and is 'abc'", "须为 整数 或 'auto'，而现在是 'abc'"),
        ("length", 1.5, "must be a whole number or 'auto', and is 1.5", "须为 整数 或 'auto'，而现在是 1.5"),
        ("rate", -1, "must be a number greater than 0 or 'auto', and is -1", "须为 大于 0 的数 或 'auto'，而现在是 -1"),
        ("rate", [], "must be a number or 'auto', and is []", "须为 数字 或 'auto'，而现在是 []"),
        ("share", 1, "must be a number less than 1, and is 1", "须为 小于 1 的数，而现在是 1"),
        ("share", -0.5, "must be a number of at least 0, and is -0.5", "须为 不小于 0 的数，而现在是 -0.5"),
        ("curve", None, "must be 'cosine', 'linear' or 'none', and is null", "须为 'cosine'、'linear' 或 'none'，而现在是 null"),
        ("there", "perhaps", "must be true, false or 'auto', and is 'perhaps'", "须为 true、false 或 'auto'，而现在是 'perhaps'"),
        ("texts", True, "must be a list, and is true", "须为 列表，而现在是 true"),
        ("texts", ["a", "b", "c"], "must be a list of at most 2 items, and is ['a', 'b', 'c']", "须为 至多 2 项的列表，而现在是 ['a', 'b', 'c']"),
        ("texts.1", ["a", 5], "must be text, and is 5", "须为 文本，而现在是 5"),
        ("inner", 5, "must be a mapping of keys to values, and is 5", "须为 键到值的映射，而现在是 5"),
    ],
)
def test_a_wrong_value_is_told_in_the_readers_language(name, value, english, chinese):
    for language, said in (("en", f"r.yaml:1: {name}: {english}"), ("zh", f"r.yaml:1: {name}：{chinese}")):
        set_language(language)
        with pytest.raises(ConfigError) as caught:
            build(ValuesConfig, {name.split(".")[0]: value}, Source("r.yaml", {name.split(".")[0]: 1}))
        assert str(caught.value).splitlines()[0] == said


def test_what_a_value_must_be_is_all_in_chinese():
    set_language("zh")
    said = [form for text in FORMS.values() if text != "{expected}" for form in text.split(" or ") if form not in ("true", "false", "null")]
    assert [form for form in said if t(form) == form] == []
    with pytest.raises(ConfigError, match="不是时间长度"):
        build(ValuesConfig, {"span": "3"})
