"""Reading YAML with the line of every key, and dotted overrides such as ``base.learning_rate=1e-3``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from luban.foundation.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:[0-9][0-9_]*\.?[0-9_]*(?:[eE][-+]?[0-9]+)|[0-9][0-9_]*\.[0-9_]*|\.[0-9]+(?:[eE][-+]?[0-9]+)?|\.inf|\.nan)$", re.I),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """The mapping in a YAML file, and the line (from 1) of each dotted key."""
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise ConfigError("{path}: no such file", "", "luban new quickstart copies a shipped recipe to start from", path=path) from None
    except IsADirectoryError:
        raise ConfigError("{path} is a folder, not a recipe file", "", "name the .yaml file inside it", path=path) from None
    except PermissionError as error:
        raise ConfigError("{path} cannot be read: {error}", path=path, error=error.strerror) from None
    except UnicodeDecodeError as error:
        raise ConfigError("{path} is not UTF-8 text (byte {position})", "", "save it as UTF-8", path=path, position=error.start) from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, name: str) -> tuple[dict[str, Any], dict[str, int]]:
    """As :func:`read_yaml`, from a string; ``name`` stands for the file in errors."""
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            lines: dict[str, int] = {}
            if node is not None:
                _note_lines(node, "", lines, name, depth=0)
            data = loader.construct_document(node) if node is not None else None
        finally:
            loader.dispose()
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = mark.line + 1 if mark else 1
        problem = getattr(error, "problem", None) or str(error)
        raise ConfigError("{name}:{line}: not valid YAML: {problem}", "", "check the indentation, quotes and colons near that line", name=name, line=line, problem=problem) from None
    except (RecursionError, ValueError, TypeError, OverflowError) as error:
        raise ConfigError("{name}: not a readable recipe: {error}", name=name, error=error) from None
    if not isinstance(data, dict):
        why = "the file is empty" if data is None else "this file holds something else"
        raise ConfigError("{name}: a recipe is a mapping of keys to values", why, "luban new quickstart shows the form", name=name)
    return data, lines


def _note_lines(node: yaml.Node, prefix: str, lines: dict[str, int], name: str, depth: int) -> None:
    if depth > 50:
        raise ConfigError("{name}: nested more than 50 levels deep", name=name)
    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            label = str(key.value)
            if label in seen:
                raise ConfigError("{name}:{line}: the key {key!r} is written twice", "", "keep one of them", name=name, line=key.start_mark.line + 1, key=label)
            seen.add(label)
            lines[prefix + label] = key.start_mark.line + 1
            _note_lines(value, f"{prefix}{label}.", lines, name, depth + 1)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            lines[f"{prefix}{index}"] = value.start_mark.line + 1
            _note_lines(value, f"{prefix}{index}.", lines, name, depth + 1)


def parse_override(text: str) -> tuple[list[str], Any]:
    """``"base.learning_rate=1e-3"`` as a path and a YAML value."""
    path, equals, value = text.partition("=")
    keys = path.strip().split(".")
    if not equals or not all(keys):
        raise ConfigError("{text!r} is not an override", "", "write stage.field=value, for example base.learning_rate=1e-3", text=text)
    try:
        return keys, yaml.load(value, _Loader) if value.strip() else None
    except yaml.YAMLError:
        return keys, value


def apply_override(data: dict[str, Any], keys: list[str], value: Any) -> None:
    """Set ``value`` at a dotted path, making mappings on the way."""
    for key in keys[:-1]:
        inner = data.get(key)
        if not isinstance(inner, dict):
            inner = data[key] = {}
        data = inner
    data[keys[-1]] = value
