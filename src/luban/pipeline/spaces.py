"""Search spaces: what stands in a recipe in the place of a value that ``luban tune`` is to find.

``{search: [1e-5, 1e-3], scale: log}`` is a range of numbers, ``{search: [1, 8], step: 1}`` one in steps, ``{search: [1, 5], unit: epochs}``
one of lengths, ``{choice: [a, b]}`` one of several values of any kind. An option of a choice may hold spaces of its own, which exist only
while it is chosen; so whole configs can be compared, each with its own settings.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from luban.foundation.config import Source
from luban.foundation.errors import ConfigError, nearest

Path = tuple[str | int, ...]
Number = int | float
SCALES = ("linear", "log")
PARTS = ("stages", "values")  # of a recipe, where a space may stand
_RANGE = ("search", "scale", "step", "unit")
_DIGITS = 4  # significant digits of what a range gives: a recipe stays readable, and says exactly what was run


@dataclass(frozen=True)
class Space:
    """One space. ``path`` leads to it in the plain recipe; ``labels`` name a choice's ``options``, and ``inner`` are each option's own spaces."""

    name: str
    path: Path
    low: Number = 0
    high: Number = 0
    log: bool = False
    step: Number | None = None
    unit: str = ""
    options: Sequence[Any] = ()
    labels: Sequence[str] = ()
    inner: Sequence[Sequence[Space]] = field(default=())

    @property
    def is_choice(self) -> bool:
        return bool(self.labels)

    @property
    def whole(self) -> bool:
        """True for a range of whole numbers."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    def value(self, drawn: Number | str) -> Any:
        """What a recipe would say for a drawn number or the label of an option."""
        if self.is_choice:
            return self.options[self.labels.index(str(drawn))]
        number = int(drawn) if self.whole else min(self.high, max(self.low, float(f"{drawn:.{_DIGITS}g}")))
        return f"{number} {self.unit}" if self.unit else number

    def grid(self, points: int) -> list[Number | str]:
        """Every value of a choice or of a range in steps; ``points`` values of another range, evenly on its scale."""
        if self.is_choice:
            return list(self.labels)
        if self.step is not None:
            count = math.floor((self.high - self.low) / self.step + 1e-9) + 1
            return [int(self.low + index * self.step) if self.whole else float(f"{self.low + index * self.step:.12g}") for index in range(count)]
        if self.whole and not self.log and self.high - self.low < points:
            return list(range(int(self.low), int(self.high) + 1))
        shares = [index / (points - 1) for index in range(points)]
        found = [self.low * (self.high / self.low) ** share if self.log else self.low + (self.high - self.low) * share for share in shares]
        return list(dict.fromkeys(round(value) for value in found)) if self.whole else [float(f"{value:.12g}") for value in found]


def is_space(value: Any) -> bool:
    """True for a mapping that says ``search`` or ``choice`` in the place of a value."""
    if not isinstance(value, Mapping):
        return False
    return "search" in value or ("choice" in value and len(value) == 1 and isinstance(value["choice"], list))


def find_spaces(plain: Mapping[str, Any], source: Source) -> list[Space]:
    """The spaces of a plain recipe, in the order they are written. ConfigError where one is not written as it should be."""
    return [space for part in PARTS if part in plain for space in _walk(plain[part], (part,), "", source)]


def refuse_spaces(plain: Mapping[str, Any], source: Source) -> None:
    """ConfigError at the first space: a recipe that is run, checked or planned holds values."""
    found = next((place for part in PARTS if part in plain for place in _places(plain[part], (part,))), None)
    if found is not None:
        where = source.at(".".join(map(str, found)))
        raise ConfigError("{where}: this is a search space, not a value", "a run trains once, with one value", "luban tune {recipe} tries many and writes best.yaml; or write one value here", where=where, recipe=source.file or "RECIPE")


def fill(plain: dict[str, Any], spaces: Sequence[Space], drawn: Mapping[str, Number | str]) -> dict[str, Any]:
    """The recipe with each space replaced by what was drawn for its name."""
    filled = copy.deepcopy(plain)
    for space in spaces:
        holder: Any = filled
        for key in space.path[:-1]:
            holder = holder[key]
        holder[space.path[-1]] = _chosen(space, drawn)
    return filled


def _chosen(space: Space, drawn: Mapping[str, Number | str]) -> Any:
    value = copy.deepcopy(space.value(drawn[space.name]))
    if not space.is_choice:
        return value
    inner = space.inner[space.labels.index(str(drawn[space.name]))]
    return fill({"option": value}, inner, drawn)["option"] if inner else value


def active(spaces: Sequence[Space], drawn: Mapping[str, Number | str]) -> Iterator[Space]:
    """The spaces that have a value: those of the chosen options too."""
    for space in spaces:
        yield space
        if space.is_choice and space.name in drawn:
            yield from active(space.inner[space.labels.index(str(drawn[space.name]))], drawn)


def every(spaces: Sequence[Space]) -> Iterator[Space]:
    """All spaces, of every option."""
    for space in spaces:
        yield space
        for inner in space.inner:
            yield from every(inner)


def ends(spaces: Sequence[Space]) -> Iterator[tuple[str, dict[str, Number | str]]]:
    """Drawings that between them reach both ends of every range and every option, each with the name of the space it is about; the first is the base."""
    base = _first(spaces)
    yield "", base
    yield from _ends(spaces, base)


def _ends(spaces: Sequence[Space], base: dict[str, Number | str]) -> Iterator[tuple[str, dict[str, Number | str]]]:
    for space in spaces:
        if not space.is_choice:
            yield space.name, {**base, space.name: space.high}
            continue
        for index, label in enumerate(space.labels):
            with_option = {**base, space.name: label, **_first(space.inner[index])}
            if index:
                yield space.name, with_option
            yield from _ends(space.inner[index], with_option)


def _first(spaces: Sequence[Space]) -> dict[str, Number | str]:
    found: dict[str, Number | str] = {}
    for space in spaces:
        found[space.name] = space.labels[0] if space.is_choice else space.low
        if space.is_choice:
            found |= _first(space.inner[0])
    return found


def _places(plain: Any, path: Path) -> Iterator[Path]:
    if is_space(plain):
        yield path
    elif isinstance(plain, Mapping):
        for key, value in plain.items():
            yield from _places(value, (*path, key))
    elif isinstance(plain, list):
        for index, value in enumerate(plain):
            yield from _places(value, (*path, index))


def _walk(plain: Any, path: Path, prefix: str, source: Source) -> list[Space]:
    """``prefix`` is the name of the option that holds these spaces; paths start at the option then."""
    return [_parse(plain_at(plain, place[len(path) :]), place, prefix, source) for place in _places(plain, path)]


def plain_at(plain: Any, path: Path) -> Any:
    for key in path:
        plain = plain[key]
    return plain


def _parse(given: Mapping[str, Any], path: Path, prefix: str, source: Source) -> Space:
    dotted = ".".join(map(str, path))
    inside = ".".join(map(str, path[1:]))
    where, name = source.at(dotted), ".".join(part for part in (prefix, inside) if part)
    return _choice(given["choice"], path, name, where, source.under(dotted)) if "choice" in given and "search" not in given else _range(given, path, name, where)


def _choice(options: list[Any], path: Path, name: str, where: str, source: Source) -> Space:
    labels = [label_of(option) for option in options]
    if len(options) < 2 or len(set(labels)) < len(labels):
        raise ConfigError("{where}: a choice is a list of two or more different values", "", "write {{choice: [a, b]}}", where=where)
    inner = [_walk(option, ("option",), f"{name}({label})", source) for option, label in zip(options, labels, strict=True)]
    return Space(name, path, options=tuple(options), labels=tuple(labels), inner=tuple(map(tuple, inner)))


def label_of(option: Any) -> str:
    """How an option is called: itself, or what it says first where it is a config, or its text."""
    if is_space(option):
        return "search"
    if isinstance(option, Mapping) and option and isinstance(first := next(iter(option.values())), str) and next(iter(option)) in ("name", "method", "kind", "architecture"):
        rest = {key: value for key, value in list(option.items())[1:] if not is_space(value)}
        return first + (f" {_text(rest)}" if rest else "")
    return option if isinstance(option, str) else _text(option)


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str, separators=(",", ":")).replace('"', "")


def _range(given: Mapping[str, Any], path: Path, name: str, where: str) -> Space:
    for key in given:
        if key not in _RANGE:
            guess = nearest(str(key), _RANGE)
            raise ConfigError("{where}: a search space has no {key!r}", "", "did you mean {guess}?" if guess else "its keys: {known}", where=where, key=key, guess=guess, known=", ".join(_RANGE))
    bounds, scale, step = given["search"], given.get("scale", "linear"), given.get("step")
    if not isinstance(bounds, list) or len(bounds) != 2 or not all(map(_is_number, bounds)) or not bounds[0] < bounds[1]:
        raise ConfigError("{where}: {given} is not a range", "a range is two numbers, the lower first", "write {{search: [1e-5, 1e-3], scale: log}}; values that are no numbers are written {{choice: [a, b]}}", where=where, given=bounds)
    if scale not in SCALES:
        raise ConfigError("{where}: {given!r} is not a scale", "", "write log or linear", where=where, given=scale)
    if step is not None and (not _is_number(step) or step <= 0 or step > bounds[1] - bounds[0] or scale == "log"):
        raise ConfigError("{where}: {given!r} is not a step of this range", "a step is above zero, fits into the range, and is for linear scales", "leave step or scale out", where=where, given=step)
    if scale == "log" and bounds[0] <= 0:
        raise ConfigError("{where}: a range on a log scale begins above zero", "", "raise {low}, or leave scale out", where=where, low=bounds[0])
    if not isinstance(given.get("unit", ""), str):
        raise ConfigError("{where}: a unit is a word", "", "write {{search: [1, 5], unit: epochs}}", where=where)
    if bounds == [0, 1] and all(isinstance(bound, int) for bound in bounds) and step is None:
        raise ConfigError("{where}: whole numbers from 0 to 1, or all between?", "two whole numbers make a range of whole numbers", "write [0.0, 1.0] for a share, or {{choice: [0, 1]}}", where=where)
    low, high = bounds if all(isinstance(bound, int) for bound in bounds) and not isinstance(step, float) else map(float, bounds)
    return Space(name, path, low, high, scale == "log", step, given.get("unit", ""))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
