"""`luban schema`: the JSON schema of recipes, for editors."""

from __future__ import annotations

import json

import click

from luban.foundation.messages import t


@click.command(help=t("Print the JSON schema of recipes, for editors: luban schema > recipe.schema.json"))
@click.argument("kind", required=False)
def command(kind: str | None) -> None:
    from luban.foundation.kinds import find_kind
    from luban.pipeline.schema import recipe_schema

    schema = find_kind(kind, "luban schema").config.model_json_schema() if kind else recipe_schema()
    click.echo(json.dumps(schema, ensure_ascii=False, indent=2))
