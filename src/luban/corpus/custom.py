"""The user's own filters, ``my_file.py:name``: checked before the work and judged document by document."""

from __future__ import annotations

from collections.abc import Callable

from luban.foundation.custom import load_custom
from luban.foundation.errors import ConfigError


def load_filter(reference: str) -> Callable:
    """The function that ``/path/my_file.py:name`` names. Raises ConfigError if there is none."""
    function = load_custom(reference)
    if not callable(function):
        raise ConfigError("filters: {reference} is not a function", reference=reference)
    return function


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
