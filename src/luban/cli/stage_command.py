"""The command of a kind of stage: its options are the fields of its config, with unit and default."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args, get_origin

import click
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from luban.foundation.config import chooser, is_input, plain_items, short_names, unit_of, walk_fields
from luban.foundation.errors import ConfigError
from luban.foundation.kinds import Kind
from luban.foundation.messages import t
from luban.foundation.yaml_files import apply_override, parse_override


def make_command(kind: Kind) -> click.Command:
    """`luban train DATA --optimizer.learning_rate 1e-3 --out DIR`."""
    from luban.pipeline.api import primary_field

    config = kind.config
    primary = primary_field(config)
    fields = dict(walk_fields(config))
    options = [make_option(name, info) for name, info in fields.items()]
    own = [
        click.Argument(["primary"], nargs=-1, metavar=f"[{primary.upper()}]..."),
        *options,
        click.Option(["--seed"], type=int, default=1, help=t("Seed of everything random. [default: 1]")),
        click.Option(["--wait"], is_flag=True, help=t("Wait for another run in the same folder instead of stopping.")),
        *(_change_options() if kind.name == "train" else []),
        click.Option(["--dry-run"], is_flag=True, help=t("Print what would be done, and do nothing.")),
    ]
    if not kind.terminal:
        own.append(click.Option(["--out"], default=f"runs/{kind.name}", help=t("Folder of the artifact. [default: {folder}]", folder=f"runs/{kind.name}")))

    def run(primary: tuple[str, ...], seed: int, wait: bool, dry_run: bool, out: str | None = None, change: str | None = None, **given: tuple[str, ...]) -> None:
        from luban.cli.run import print_plan
        from luban.pipeline.api import one_stage
        from luban.pipeline.runner import run_recipe

        plain: dict[str, Any] = {}
        for name, texts in given.items():
            if texts:
                dotted = name.replace("__", ".")
                if any(values and other.startswith(f"{name}__") for other, values in given.items()) and (key := chooser(fields[dotted])):
                    dotted = f"{dotted}.{key}"  # `--objective dpo --objective.beta 0.2`: the name is one field of several
                apply_override(plain, dotted.split("."), value_of(dotted, fields[dotted], texts))
        recipe = one_stage(kind, primary, out=Path(out) if out else None, seed=seed, **plain)
        print_plan(recipe) if dry_run else run_recipe(recipe, wait=wait, change=change or "refuse")

    help_text = t(kind.summary) + "\n\n" + t("Bare arguments fill `{field}`. Options are the fields of a `{kind}` stage in a recipe.", field=primary, kind=kind.name)
    return click.Command(kind.name.replace("_", "-"), callback=run, params=own, help=help_text)


def _change_options() -> list[click.Option]:
    return [
        click.Option(["--restart", "change"], flag_value="restart", help=t("Train anew where a half-done training has other settings now; what is there goes to .previous/.")),
        click.Option(["--accept-change", "change"], flag_value="accept", help=t("Go on with a half-done training that has other settings now.")),
    ]


def make_option(name: str, info: FieldInfo) -> click.Option:
    default = _default(info)
    facts = [t("unit: {unit}", unit=t(unit_of(info))) if unit_of(info) else "", t("required") if default is None else t("default: {value}", value=default)]
    text = t(info.description or "") + " [" + "; ".join(fact for fact in facts if fact) + "]"
    spellings = {f"--{name}", f"--{name.replace('_', '-')}"}
    return click.Option([*sorted(spellings), name.replace(".", "__")], multiple=True, help=text, metavar=_metavar(info))


def _default(info: FieldInfo) -> str | None:
    value = info.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return None
    if hasattr(value, "model_dump"):
        value = value.model_dump(mode="json", exclude_unset=True)
    return json.dumps(value, ensure_ascii=False, default=str).strip('"') or "empty"


def _metavar(info: FieldInfo) -> str:
    if is_input(info):
        return "PATH"
    names = {getattr(choice, "__name__", "") for choice in (info.annotation, *get_args(info.annotation))}
    for found, shown in (("Duration", "LENGTH"), ("TimeSpan", "TIME"), ("bool", "BOOL"), ("int", "INTEGER"), ("float", "NUMBER")):
        if found in names:
            return shown
    return "VALUE"


def _takes_list(annotation: Any) -> bool:
    return list in (annotation, get_origin(annotation)) or any(map(_takes_list, get_args(annotation)))


def value_of(name: str, info: FieldInfo, texts: tuple[str, ...]) -> Any:
    """The option's texts as a recipe would hold them: text stays text where the field takes text."""
    takes_text = str in (info.annotation, *get_args(info.annotation), *plain_items(info.annotation)) or bool(short_names(info))
    if len(texts) > 1 and not _takes_list(info.annotation):
        raise ConfigError("--{name} is given {count} times", "it has one value", "", name=name, count=len(texts))
    values = [text if takes_text and text[:1] not in "[{" else parse_override(f"x={text}")[1] for text in texts]
    return values if len(values) > 1 else values[0]
