"""`luban new RECIPE [FOLDER]`: a shipped recipe becomes the user's own."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from luban.foundation.messages import t

SHIPPED = Path(__file__).resolve().parent.parent / "recipes"


@click.command(help=t("Copy a shipped recipe and its data into a folder: it is yours. Without a name, list the shipped ones."))
@click.argument("name", required=False)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
def command(name: str | None, folder: Path | None) -> None:
    from luban.foundation.console import say, table
    from luban.foundation.errors import ConfigError, nearest

    shipped = {path.name: path for path in sorted(SHIPPED.iterdir()) if (path / "recipe.yaml").exists()}
    if name is None:
        table(t("shipped recipes"), [t("name"), t("what it does")], [(key, _first_comment(path)) for key, path in shipped.items()])
        return
    if name not in shipped:
        guess = nearest(name, shipped)
        raise ConfigError("there is no shipped recipe {name!r}", "", "did you mean {guess}?" if guess else "luban new lists them: {known}", name=name, guess=guess, known=", ".join(shipped))
    target = folder or Path(name)
    if target.exists() and any(target.iterdir() if target.is_dir() else [target]):
        raise ConfigError("{folder} is there already and not empty", "it may hold your changes", "name another folder: luban new {name} my-{name}", folder=target, name=name)
    shutil.copytree(shipped[name], target, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    say("{folder}/recipe.yaml is yours. Next:", folder=target)
    say("  luban check {folder}/recipe.yaml", folder=target)
    say("  luban run {folder}/recipe.yaml", folder=target)


def _first_comment(path: Path) -> str:
    """The first line of the recipe, which says what it is for."""
    return (path / "recipe.yaml").read_text(encoding="utf-8").split("\n", 1)[0].lstrip("# ")
