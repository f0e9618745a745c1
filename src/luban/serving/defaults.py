"""How tokens are drawn where nobody says: the model's own generation_config.json, below what the user gave."""

from __future__ import annotations

from typing import Any

from luban.foundation.console import warn
from luban.foundation.errors import ConfigError
from luban.inference.config import SamplingConfig

_NAMES = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_of(generation: dict[str, Any], given: SamplingConfig) -> SamplingConfig:
    """``given``, with what it leaves open taken from a generation config (transformers' names and meanings)."""
    own = {name: generation[name] for name in _NAMES if generation.get(name) is not None}
    if generation.get("do_sample") is False and "temperature" not in own:
        own["temperature"] = 0.0
    try:
        return SamplingConfig().updated(**{**own, **given.explicit()})
    except ConfigError as error:
        warn("generation_config.json holds settings that cannot be used, and is left aside: {reason}", reason=str(error))
        return given
