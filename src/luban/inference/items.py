"""The things that are predicted: what an item may hold, checked by name before any model reads it, and what came out as plain JSON."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from luban.foundation.errors import DataError
from luban.foundation.messages import t

MAXIMUM_TOP = 1000  # fills or next words that an item may ask for


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_top(value: Any) -> bool:
    return _is_count(value) and value <= MAXIMUM_TOP


def _is_span(value: Any) -> bool:
    ends = [value.get("start"), value.get("end")] if isinstance(value, dict) else [None]
    return all(isinstance(end, int) and not isinstance(end, bool) and end >= 0 for end in ends)


def _are_ranges(value: Any) -> bool:
    return isinstance(value, list | tuple) and all(
        isinstance(pair, list | tuple) and len(pair) == 2 and all(isinstance(end, int) and not isinstance(end, bool) for end in pair) for pair in value
    )


def _are_controls(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(part, str | int | float) for part in value.values())


_TEXT, _TEXTS = (_is_text, "a text"), (_are_texts, "a list of texts")
_SPAN = (_is_span, "an object with start and end, in characters of the text")
# What the names mean is the same for every task; which of them a task reads is said where it predicts.
FORMS: dict[str, tuple[Callable[[Any], bool], str]] = {
    **dict.fromkeys(("text", "pair", "question", "context", "query", "prompt", "input", "prefix", "suffix"), _TEXT),
    **dict.fromkeys(("documents", "choices"), _TEXTS),
    **dict.fromkeys(("head", "tail"), _SPAN),
    "words": (_are_ranges, "a list of [start, end]"),
    "controls": (_are_controls, "an object of texts"),
    "top": (_is_top, "a number from 1 to 1000"),
    "dimensions": (_is_count, "a whole number above 0"),
}


def as_items(items: Iterable[Any]) -> list[dict[str, Any]]:
    """Items as mappings: a bare text stands for ``{"text": …}``. Raises DataError, naming the item, for what is neither."""
    return [_as_item(item, number) for number, item in enumerate(items)]


def _as_item(item: Any, number: int) -> dict[str, Any]:
    if isinstance(item, str):
        return {"text": item}
    if not isinstance(item, Mapping):
        raise DataError("item {number} is neither a text nor a mapping: {given}", "", "give a text, or its parts under their names, such as {{text: …}}", number=number + 1, given=repr(item)[:80])
    return dict(item)


def check_forms(item: Mapping[str, Any], number: int) -> dict[str, Any]:
    """An item from someone who is not to be trusted, without what is None. Raises DataError for a known name with a value of another form."""
    kept = {str(name): value for name, value in item.items() if value is not None}
    for name, value in kept.items():
        fits, form = FORMS.get(name, (None, ""))
        if fits is not None and not fits(value):
            raise DataError("item {number}: {name!r} is not {form}: {given}", "", "", number=number + 1, name=name, form=t(form), given=repr(value)[:80])
    return kept


def texts_in(value: Any) -> Iterator[str]:
    """Every text in plain data, however deep."""
    waiting = [value]
    while waiting:
        some = waiting.pop()
        if isinstance(some, str):
            yield some
        elif isinstance(some, Mapping):
            waiting += reversed(list(some.values()))
        elif isinstance(some, list | tuple):
            waiting += reversed(some)


def plain(value: Any) -> Any:
    """A prediction as JSON has it: numbers of arrays as numbers, and null for what is no number (a broken model's NaN)."""
    if isinstance(value, Mapping):
        return {str(name): plain(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):  # an array, or a number of one
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
