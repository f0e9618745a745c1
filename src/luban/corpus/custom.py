"""The user's own filters, ``my_file.py:name``: loaded from the file that the recipe names, and from nowhere else."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

from luban.foundation.errors import ConfigError, nearest

Verdict = bool | tuple[bool, str]


def load_function(file: Path, name: str, where: str) -> Callable:
    """The function ``name`` of a Python file. Raises ConfigError, naming the field ``where``, if there is none."""
    if not file.is_file():
        raise ConfigError("{where}: {file}: no such file", "", "a relative path starts at the recipe's folder", where=where, file=file)
    spec = importlib.util.spec_from_file_location(f"luban_custom_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise ConfigError("{where}: {file} is not a Python file", where=where, file=file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever the user's file does wrong while it is read
        raise ConfigError("{where}: {file} cannot be loaded: {kind}: {error}", where=where, file=file, kind=type(error).__name__, error=error) from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ConfigError("{where}: {file} has no function {name!r}", "it has {known}", "did you mean {guess}?", where=where, file=file, name=name, known=", ".join(known) or "-", guess=nearest(name, known) or "?")
    return function


def split_reference(text: str, where: str) -> tuple[str, str]:
    """``my_file.py:name`` as its two parts."""
    file, colon, name = text.rpartition(":")
    if not colon or not name.isidentifier() or not file:
        raise ConfigError("{where}: {text!r} does not name a function", "", "write my_file.py:name", where=where, text=text)
    return file, name


def judge(function: Callable, name: str, text: str) -> tuple[bool, str]:
    """Call the user's filter. Raises ConfigError if it fails or returns something else than a verdict."""
    try:
        verdict = function(text)
    except Exception as error:
        raise ConfigError("filters: {name} failed: {kind}: {error}", "on the text {text!r}", "", name=name, kind=type(error).__name__, error=error, text=text[:80]) from error
    if isinstance(verdict, tuple) and len(verdict) == 2 and isinstance(verdict[0], bool):
        return verdict[0], str(verdict[1])
    if isinstance(verdict, bool):
        return verdict, ""
    raise ConfigError("filters: {name} returned {value!r}", "a filter returns True, or False and a reason", "", name=name, value=verdict)
