"""The `values` of a recipe: what is named once, written ``$name`` in stages, and changed by ``luban run recipe.yaml name=…``."""

from __future__ import annotations

import re
from typing import Any

from luban.foundation.config import Source
from luban.foundation.errors import ConfigError, nearest

NAME = re.compile(r"[A-Za-z_]\w*")
USE = re.compile(r"\$([A-Za-z_]\w*)")


def check_values(values: dict[str, Any], taken: list[str], source: Source) -> None:
    """Refuse names that could not be written ``$name``, or that an override could not tell from a stage or a key of the head."""
    for name in values:
        where = source.at(f"values.{name}")
        if not NAME.fullmatch(str(name)):
            raise ConfigError("{where}: {name!r} cannot name a value", "it is written $name in stages", "use letters, digits and _", where=where, name=name)
        if name in taken:
            raise ConfigError("{where}: {name!r} is a stage or a key of the recipe", "an override could mean either", "choose another name", where=where, name=name)


def with_values(plain: Any, values: dict[str, Any], source: Source, dotted: str = "") -> Any:
    """``plain`` with every ``$name`` replaced. A text that is nothing but ``$name`` becomes the value itself, whatever its type; in a
    longer text it is written out. Other dollar signs stay, unless the text is a name that no value has, in a recipe with values."""
    if isinstance(plain, dict):
        return {key: with_values(value, values, source, f"{dotted}.{key}" if dotted else str(key)) for key, value in plain.items()}
    if isinstance(plain, list):
        return [item for index, value in enumerate(plain) for item in _items(value, with_values(value, values, source, f"{dotted}.{index}"))]
    if not values or not isinstance(plain, str) or "$" not in plain:
        return plain
    if whole := USE.fullmatch(plain):
        if whole[1] not in values:
            raise ConfigError("{where}: there is no value called {name!r}", "values: {known}", "did you mean ${guess}?" if (guess := nearest(whole[1], values)) else "", where=source.at(dotted), name=whole[1], known=", ".join(values), guess=guess)
        return values[whole[1]]
    return USE.sub(lambda used: str(values[used[1]]) if used[1] in values else used[0], plain)


def _items(written: Any, value: Any) -> list[Any]:
    """In a list, a value that is a list gives its items: ``[$train, more.csv]`` with two files in ``train`` names three."""
    return value if isinstance(written, str) and isinstance(value, list) else [value]
