"""`luban new RECIPE [FOLDER]`: a shipped recipe becomes the user's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from luban.foundation.messages import language, t

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"
GROUPS = ("Start here", "Labels and numbers", "Spans and relations", "Text from text", "Search and choice", "Language models")  # in this order


@click.command(help=t("Copy a shipped recipe and its data into a folder: it is yours. Without a name, list the shipped ones."))
@click.argument("name", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def command(name: str | None, folder: Path | None) -> None:
    from luban.foundation.console import say
    from luban.foundation.errors import ConfigError, nearest

    shipped = all_shipped()
    if name is None:
        show_shipped(shipped)
        return
    if name not in shipped:
        guess = nearest(name, shipped)
        raise ConfigError("there is no shipped recipe {name!r}", "", "did you mean {guess}?" if guess else "luban new lists them: {known}", name=name, guess=guess, known=", ".join(shipped))
    target = folder or Path(name.replace("/", "-"))
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigError("{folder} is there already and not empty", "it may hold your changes", "name another folder: luban new {name} my-{name}", folder=target, name=name)
    others = [path.name for path in shipped.values() if path.parent == shipped[name].parent]
    shutil.copytree(shipped[name].parent, target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", *others))
    shutil.copy(shipped[name], target / "recipe.yaml")
    say("{folder}/recipe.yaml is yours. Next:", folder=target)
    say("  luban check {folder}/recipe.yaml", folder=target)
    say("  luban run {folder}/recipe.yaml", folder=target)
    if values := _values(target):
        say("  with your own data: luban run {folder}/recipe.yaml {values}", folder=target, values=" ".join(f"{value}=…" for value in values))


def all_shipped() -> dict[str, Path]:
    """Every shipped recipe's file by its name: the folder's, and where a folder holds several ``folder/file``."""
    found = {}
    for file in sorted(SHIPPED.glob("*/*.yaml")):
        found[file.parent.name if file.stem == "recipe" else f"{file.parent.name}/{file.stem}"] = file
    return found


def show_shipped(shipped: dict[str, Path]) -> None:
    """Print every recipe with one line on when to choose it, those of one group together."""
    from luban.foundation.console import say

    groups: dict[str, list[tuple[str, str, str]]] = {group: [] for group in GROUPS}
    for name, path in shipped.items():
        groups.setdefault(about(path, "en")[0], []).append((name, *about(path, language())))
    width = max(map(len, shipped)) + 2
    for found in filter(None, groups.values()):
        say("{line}", line=found[0][1])
        for name, _, purpose in found:
            say("{line}", line=f"  {name:<{width}}{purpose}")
    say("luban new NAME copies one into a folder")


def about(path: Path, tongue: str) -> tuple[str, str]:
    """The group of a recipe (its file or folder) and when to choose it: its first comment line in English, its second in Chinese, each "group: purpose"."""
    path = path / "recipe.yaml" if path.is_dir() else path
    lines = [line.lstrip("# ") for line in path.read_text(encoding="utf-8").split("\n", 2)[:2]]
    group, _, purpose = lines[1].partition("：") if tongue == "zh" else lines[0].partition(": ")
    return group, purpose


def _values(folder: Path) -> list[str]:
    """The names of the recipe's values that are paths to data."""
    from luban.foundation.yaml_files import read_yaml

    values = read_yaml(folder / "recipe.yaml")[0].get("values") or {}
    return [name for name, value in values.items() if "data/" in str(value)]
