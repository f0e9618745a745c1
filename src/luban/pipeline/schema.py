"""The JSON schema of a whole recipe, made from the configs of the kinds."""

from __future__ import annotations

from typing import Any

from luban.foundation.kinds import KINDS
from luban.pipeline.recipe import RecipeConfig


def recipe_schema() -> dict[str, Any]:
    """Draft 2020-12. A stage is one of the kinds, told apart by `kind`."""
    definitions: dict[str, Any] = {}
    stages = []
    for name, kind in KINDS.items():
        schema = kind.config.model_json_schema(ref_template="#/$defs/{model}")
        definitions |= schema.pop("$defs", {})
        schema["properties"] = {"kind": {"const": name, "description": kind.summary}, **schema["properties"]}
        schema["required"] = ["kind", *schema.get("required", [])]
        definitions[kind.config_name] = schema
        stages.append({"if": {"properties": {"kind": {"const": name}}}, "then": {"$ref": f"#/$defs/{kind.config_name}"}})
    recipe = RecipeConfig.model_json_schema()
    recipe["properties"]["stages"] = {
        "type": "object",
        "description": RecipeConfig.model_fields["stages"].description,
        "minProperties": 1,
        "additionalProperties": {"type": "object", "required": ["kind"], "properties": {"kind": {"enum": list(KINDS)}}, "allOf": stages},
    }
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Luban recipe", **recipe, "$defs": definitions}
