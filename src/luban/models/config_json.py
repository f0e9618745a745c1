"""config.json: a shape as transformers writes it, old and new, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from luban.foundation.config import Source, build
from luban.foundation.errors import DataError
from luban.models.shape import MOST_LAYERS, ShapeConfig

CLASSES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM", "qwen3": "Qwen3ForCausalLM", "mistral": "MistralForCausalLM"}
# Our field, transformers' key, and what transformers takes when the key is missing (None: it must be there).
KEYS = (
    ("vocabulary_size", "vocab_size", None),
    ("hidden_size", "hidden_size", None),
    ("layers", "num_hidden_layers", None),
    ("heads", "num_attention_heads", None),
    ("feed_forward_size", "intermediate_size", None),
    ("norm_epsilon", "rms_norm_eps", 1e-6),
    ("tied_embeddings", "tie_word_embeddings", False),
    ("initializer_deviation", "initializer_range", 0.02),
)
POSITIONS = {"llama": 2048, "qwen2": 32768, "qwen3": 32768, "mistral": 131072}


def read_config(folder: Path) -> dict[str, Any]:
    """The plain content of ``folder/config.json``. Raises DataError when it is missing or no JSON object."""
    file = folder / "config.json"
    try:
        plain = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise DataError(
            "{folder} is not a model directory: it has no config.json",
            "",
            "give the folder that holds config.json and model.safetensors",
            folder=folder,
        ) from None
    except ValueError as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
    if not isinstance(plain, dict):
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error="no JSON object")
    return plain


def read_shape(folder: Path) -> ShapeConfig:
    """The shape that a model directory was written with. Raises DataError for what Luban has no decoder for."""
    return shape_from(read_config(folder), str(folder / "config.json"))


def shape_from(plain: dict[str, Any], file: str = "config.json") -> ShapeConfig:
    """The shape that the content of a config.json describes."""
    name = plain.get("model_type")
    if not isinstance(name, str) or name not in CLASSES:
        raise DataError(
            "{file}: model_type {name!r} is not known",
            "Luban's decoder reads: {known}",
            "choose a model of one of these families",
            file=file,
            name=name,
            known=", ".join(CLASSES),
        )
    if (activation := plain.get("hidden_act", "silu")) not in ("silu", "swish"):
        raise DataError("{file}: hidden_act {name!r} is not known", "Luban's decoder has silu", file=file, name=activation)
    values: dict[str, Any] = {"architecture": name}
    for ours, theirs, default in KEYS:
        if plain.get(theirs, default) is None:
            raise DataError("{file}: {key} is missing", "", "restore the file", file=file, key=theirs)
        values[ours] = plain.get(theirs, default)
    values["key_value_heads"] = plain.get("num_key_value_heads") or (
        8 if name == "mistral" and "num_key_value_heads" not in plain else "auto"
    )
    values["maximum_positions"] = plain.get("max_position_embeddings", POSITIONS[name])
    values["head_dim"] = plain.get("head_dim") or (128 if name == "qwen3" else "auto")
    if name == "qwen2":
        values["head_dim"] = "auto"
    if name in ("llama", "qwen3"):
        values["attention_bias"] = bool(plain.get("attention_bias", False))
    if name == "llama":
        values["feed_forward_bias"] = bool(plain.get("mlp_bias", False))
    values |= _rope(plain, file)
    values |= _windows(plain, name, file)
    return build(ShapeConfig, values, Source(file))


def _rope(plain: dict[str, Any], file: str) -> dict[str, Any]:
    """rope_parameters (transformers 5), or rope_theta and rope_scaling (before)."""
    parameters = plain.get("rope_parameters") or plain.get("rope_scaling") or {}
    if not isinstance(parameters, dict) or any(isinstance(value, dict) for value in parameters.values()):
        raise DataError("{file}: rotary positions that differ between layers are not known", file=file)
    scaling = {key: value for key, value in parameters.items() if value is not None and key not in ("type", "rope_theta")}
    theta = parameters.get("rope_theta") or plain.get("rope_theta") or 10000.0
    kind = scaling.setdefault("rope_type", parameters.get("type", "default"))
    if scaling.pop("partial_rotary_factor", 1.0) != 1.0 or plain.get("partial_rotary_factor", 1.0) not in (None, 1.0):
        raise DataError("{file}: partial rotary positions are not known", "Luban's decoder turns whole heads", file=file)
    if kind == "default":
        return {"rope_theta": theta}
    if kind not in ("linear", "dynamic", "llama3", "yarn"):
        raise DataError(
            "{file}: rope_type {name!r} is not known", "Luban knows default, linear, dynamic, llama3 and yarn", file=file, name=kind
        )
    if kind in ("llama3", "yarn") and plain.get("original_max_position_embeddings"):
        scaling["original_max_position_embeddings"] = plain["original_max_position_embeddings"]
    return {"rope_theta": theta, "rope_scaling": scaling}


def _windows(plain: dict[str, Any], name: str, file: str) -> dict[str, Any]:
    if name == "llama":
        return {}
    if name == "mistral":
        return {"sliding_window": plain.get("sliding_window", 4096)}
    if not plain.get("use_sliding_window", False):
        return {}
    window, layers, first = plain.get("sliding_window", 4096), plain["num_hidden_layers"], plain.get("max_window_layers", 28)
    for key, value in (("num_hidden_layers", layers), ("max_window_layers", first)):
        if not isinstance(value, int):
            raise DataError("{file}: {key} is no whole number", "", "restore the file", file=file, key=key)
    kinds = plain.get("layer_types") or [
        "sliding_attention" if index >= first else "full_attention" for index in range(min(layers, MOST_LAYERS))
    ]
    return {"sliding_window": window, "layer_types": kinds} if window else {}


def config_json(
    shape: ShapeConfig, dtype: str, *, end_ids: list[int] | None = None, begin_id: int | None = None, pad_id: int | None = None
) -> dict[str, Any]:
    """The content of config.json for a shape: what transformers 4 and 5, vLLM and llama.cpp's converter read.

    ``dtype`` is the weights' type, such as ``"float32"``. Rotary positions are written in the old form and in the new.
    """
    plain: dict[str, Any] = {"architectures": [CLASSES[shape.architecture]], "model_type": shape.architecture, "hidden_act": "silu"}
    plain |= {theirs: getattr(shape, ours) for ours, theirs, _ in KEYS}
    plain |= {
        "num_key_value_heads": shape.key_value_heads,
        "max_position_embeddings": shape.maximum_positions,
        "head_dim": shape.head_dim,
        "attention_dropout": 0.0,
        "use_cache": True,
        "bos_token_id": begin_id,
        "eos_token_id": end_ids[0] if end_ids and len(end_ids) == 1 else end_ids or None,
        "pad_token_id": pad_id,
        "torch_dtype": dtype,
        "dtype": dtype,
    }
    scaling = shape.rope_scaling.model_dump(exclude_none=True) if shape.rope_scaling else None
    if scaling and scaling["rope_type"] in ("llama3", "yarn"):
        scaling.setdefault("original_max_position_embeddings", shape.maximum_positions)
    plain |= {"rope_theta": shape.rope_theta, "rope_scaling": scaling}
    plain["rope_parameters"] = {"rope_theta": shape.rope_theta, **(scaling or {"rope_type": "default"})}
    if shape.architecture in ("llama", "qwen3"):
        plain["attention_bias"] = shape.attention_bias
    if shape.architecture == "llama":
        plain["mlp_bias"] = shape.feed_forward_bias
    if shape.architecture == "mistral":
        plain["sliding_window"] = shape.sliding_window if any(shape.windows) else None
    if shape.architecture in ("qwen2", "qwen3"):
        sliding = [window is not None for window in shape.windows]
        plain |= {
            "use_sliding_window": any(sliding),
            "sliding_window": shape.sliding_window if any(sliding) else None,
            "max_window_layers": sliding.index(True) if any(sliding) else shape.layers,
            "layer_types": ["sliding_attention" if slides else "full_attention" for slides in sliding],
        }
    return plain
