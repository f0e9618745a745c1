"""What is said of a value that a config does not take: what it must be, and what it is."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from luban.foundation.messages import t

FORMS = {  # by pydantic's types of errors, filled from their context
    "literal_error": "{expected}",
    "enum": "{expected}",
    "int_type": "a whole number",
    "int_parsing": "a whole number",
    "int_parsing_size": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "float_parsing": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "bool_parsing": "true or false",
    "string_type": "text",
    "path_type": "text",
    "list_type": "a list",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys to values",
    "model_type": "a mapping of keys to values",
    "model_attributes_type": "a mapping of keys to values",
    "none_required": "null",
    "byte_size": "a number of bytes such as 512MB",
    "byte_size_unit": "a number of bytes such as 512MB",
    "greater_than": "a number greater than {gt}",
    "greater_than_equal": "a number of at least {ge}",
    "less_than": "a number less than {lt}",
    "less_than_equal": "a number of at most {le}",
    "too_short": "a list of at least {min_length} items",
    "too_long": "a list of at most {max_length} items",
    "string_too_short": "text of at least {min_length} characters",
    "string_too_long": "text of at most {max_length} characters",
    "string_pattern_mismatch": "text of the form {pattern}",
}


def wrong_value(where: str, details: Sequence[dict[str, Any]]) -> str:
    """The sentence on a value at ``where``; ``details`` are pydantic's, one for each alternative that its type has."""
    value = shown(details[0]["input"])
    if all(detail["type"] in FORMS for detail in details):
        return t("{where}: must be {forms}, and is {value}", where=where, forms=_either(details), value=value)
    own = dict.fromkeys(_message(detail) for detail in details)
    given = "" if isinstance(details[0]["input"], dict) else t(" (given: {value})", value=value)
    return f"{where}: {' / '.join(own)}{given}"


def shown(value: object) -> str:
    """A value about as YAML has it, cut where it is long."""
    if isinstance(value, dict):
        return t("a mapping of keys to values")
    plain = {None: "null", True: "true", False: "false"} if value is None or isinstance(value, bool) else {}
    text = plain.get(value) if plain else repr(value) if isinstance(value, str | int | float | list | tuple) else str(value)
    return text if len(text) <= 80 else text[:79] + "…"


def _message(detail: dict[str, Any]) -> str:
    """A sentence on one alternative: that of a validator of ours, or of what it must be."""
    if detail["type"] in FORMS:
        return t("must be {forms}", forms=_either([detail]))
    if detail["type"] == "unknown_choice":
        key, _, known = detail["msg"].partition(" is one of: ")
        return t("{key} is one of: {known}", key=key, known=known)
    return t(detail["msg"].removeprefix("Value error, "))


def _either(details: Sequence[dict[str, Any]]) -> str:
    """``a whole number or 'auto'``: the words that a value may be stand last."""
    forms = []
    for detail in sorted(details, key=lambda detail: detail["type"] in ("literal_error", "enum")):
        facts = {name: f"{fact:g}" if isinstance(fact, float) else fact for name, fact in detail.get("ctx", {}).items()}
        forms += re.split(r", | or ", facts["expected"]) if "expected" in facts else [t(form, **facts) for form in FORMS[detail["type"]].split(" or ")]
    *others, last = dict.fromkeys(forms)
    return t("{others} or {last}", others=t(", ").join(others), last=last) if others else last
