"""The JSON schema of a whole recipe, made from the configs of the kinds."""

from __future__ import annotations

from typing import Any

from luban.foundation.kinds import KINDS
from luban.pipeline.recipe import RecipeConfig
from luban.pipeline.spaces import SCALES


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12. A stage is one of the kinds, told apart by `kind`."""
    definitions: dict[str, Any] = {}
    stages = []
    for name, kind in KINDS.items():
        schema = _any_of(kind.config.model_json_schema(ref_template="#/$defs/{model}"))
        definitions |= schema.pop("$defs", {})
        for cls in (schema, *definitions.values()):
            _allow_values(cls)
        schema["properties"] = {"kind": {"const": name, "description": kind.summary}, **schema["properties"]}
        schema["required"] = ["kind", *schema.get("required", [])]
        definitions[kind.config_name] = schema
        stages.append({"if": {"properties": {"kind": {"const": name}}}, "then": {"$ref": f"#/$defs/{kind.config_name}"}})
    recipe = RecipeConfig.model_json_schema()
    definitions |= recipe.pop("$defs", {})
    recipe["properties"]["stages"] = {
        "type": "object",
        "description": RecipeConfig.model_fields["stages"].description,
        "minProperties": 1,
        "additionalProperties": {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(KINDS)}}, "allOf": stages},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Luban recipe", **recipe, "$defs": definitions}


VALUE = {"type": "string", "pattern": r"^\$[A-Za-z_]\w*$", "description": "A value of the recipe."}
_NUMBERS = {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 2}
_RANGE = {"type": "object", "properties": {"search": _NUMBERS, "scale": {"enum": list(SCALES)}, "step": {"type": "number"}, "unit": {"type": "string"}}, "required": ["search"], "additionalProperties": False}
_CHOICE = {"type": "object", "properties": {"choice": {"type": "array", "minItems": 2}}, "required": ["choice"], "additionalProperties": False}
SPACE = {"anyOf": [_RANGE, _CHOICE], "description": "A search space, for luban tune."}


def _allow_values(schema: dict[str, Any]) -> None:
    """Let every field also be ``$name``, one of the recipe's `values`, or a search space."""
    for name, field in schema.get("properties", {}).items():
        if "const" not in field and VALUE not in field.get("anyOf", []):
            short = [{"enum": field.pop("short")}] if "short" in field else []
            schema["properties"][name] = {"anyOf": [field, *short, VALUE, SPACE], **{key: field[key] for key in ("description", "default") if key in field}}


def _any_of(schema: Any) -> Any:
    """One config of several may be written without the key that chooses it, so that more than one of them fits: any will do."""
    if isinstance(schema, dict):
        return {"anyOf" if key == "oneOf" else key: _any_of(value) for key, value in schema.items() if key != "discriminator"}
    return [_any_of(item) for item in schema] if isinstance(schema, list) else schema
