"""Lengths of training: ``"20M tokens"``, ``"500 steps"``, ``"3 epochs"``; and spans of time: ``"3h"``, ``"90 minutes"``."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from pydantic import GetCoreSchemaHandler
from pydantic_core import core_schema

from luban.foundation.messages import t

UNITS = ("tokens", "steps", "epochs")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_PATTERN = re.compile(r"^\s*([0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)\s*([kKMBGT]?)\s*(token|step|epoch)s?\s*$")


@dataclass(frozen=True)
class Duration:
    """A length in tokens, optimizer steps or epochs (passes over the data)."""

    value: float
    unit: str

    @classmethod
    def parse(cls, text: object) -> Duration:
        """Read ``"20M tokens"``; a bare whole number means steps. ValueError says what is accepted."""
        if isinstance(text, Duration):
            return text
        if isinstance(text, int) and not isinstance(text, bool):
            text = f"{text} steps"
        match = _PATTERN.match(text) if isinstance(text, str) else None
        if not match:
            raise ValueError(t('{text!r} is not a length; write "20M tokens", "500 steps" or "3 epochs"', text=text))
        number, scale, unit = match.groups()
        value = float(number.replace("_", "")) * _SCALE[scale.replace("K", "k")]
        if not math.isfinite(value) or value <= 0:
            raise ValueError(t("{text!r} is not a length above zero", text=text))
        if unit != "epoch":
            value = round(value)
        return cls(value, unit + "s")

    def steps(self, step_tokens: int, epoch_tokens: int) -> int:
        """Optimizer steps (at least one) when a step takes ``step_tokens`` and an epoch ``epoch_tokens``."""
        if self.unit == "steps":
            return max(1, int(self.value))
        tokens = self.value if self.unit == "tokens" else self.value * epoch_tokens
        return max(1, math.ceil(tokens / step_tokens - 1e-9))

    def __str__(self) -> str:
        number = int(self.value) if float(self.value).is_integer() else self.value
        for letter, scale in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
            if self.unit == "tokens" and number >= scale and number % (scale // 1000) == 0:
                return f"{number / scale:g}{letter} {self.unit}"
        return f"{number} {self.unit}"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict:
        return {"anyOf": [{"type": "string", "examples": ["20M tokens", "500 steps", "3 epochs"]}, {"type": "integer"}]}


_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_SPAN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*(?:(d)(?:ays?)?|(h)(?:ours?)?|(m)(?:in(?:ute)?s?)?|(s)(?:ec(?:ond)?s?)?)(?![a-z])\s*")


@dataclass(frozen=True)
class TimeSpan:
    """Time on the clock; ``text`` is how it was written."""

    seconds: float
    text: str

    @classmethod
    def parse(cls, text: object) -> TimeSpan:
        """Read ``"3h"``, ``"1d 12h"``, ``"90 minutes"``. ValueError says what is accepted; a bare number has no unit and is refused."""
        if isinstance(text, TimeSpan):
            return text
        found, place = 0.0, 0
        while isinstance(text, str) and place < len(text) and (match := _SPAN.match(text.lower(), place)):
            unit = next(letter for letter in match.groups()[1:] if letter)
            found, place = found + float(match[1]) * _SECONDS[unit], match.end()
        if not isinstance(text, str) or place < len(text) or not 0 < found < 1e12:
            raise ValueError(t('{text!r} is not a span of time; write "3h", "90 minutes" or "1d 12h"', text=text))
        return cls(found, text.strip())

    def __str__(self) -> str:
        return self.text

    @classmethod
    def __get_pydantic_core_schema__(cls, source: object, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: object, handler: object) -> dict:
        return {"type": "string", "examples": ["3h", "90 minutes", "1d 12h"]}
