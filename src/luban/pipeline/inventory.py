"""What lies in run folders: finished, stale and unfinished artifacts and their weight."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from luban.foundation.artifacts import is_artifact, open_artifact
from luban.foundation.errors import DataError

ASIDE = ".previous"  # where a run keeps artifacts that became stale, until `luban clean`; they are taken back if the recipe returns to them


@dataclass(frozen=True)
class Item:
    """One directory of a run. ``state`` is "ready", "stale", "unfinished" or "damaged"."""

    name: str
    kind: str
    state: str
    path: Path
    size_bytes: int
    seconds: float


def find_runs(folder: Path) -> list[Path]:
    """The folder itself if it is a run, else the runs right under it."""
    if _is_run(folder):
        return [folder]
    return sorted(child for child in folder.iterdir() if child.is_dir() and _is_run(child)) if folder.is_dir() else []


def _is_run(folder: Path) -> bool:
    return (folder / "run.json").exists() or (folder / "recipe.resolved.yaml").exists() or (folder / ASIDE).is_dir()


def inventory(run: Path) -> list[Item]:
    """Every artifact of a run in the order of its recipe, then what lies aside and what is unfinished."""
    items = []
    for child in sorted(run.iterdir()):
        if child.name.endswith(".partial"):
            items.append(Item(child.name.removesuffix(".partial"), "", "unfinished", child, _weight(child), 0.0))
        elif is_artifact(child):
            items.append(_item(child, "ready"))
    aside = run / ASIDE
    for child in sorted(aside.iterdir()) if aside.is_dir() else []:
        items.append(_item(child, "stale") if is_artifact(child) else Item(child.name, "", "stale", child, _weight(child), 0.0))
    order = _order(run)
    return sorted(items, key=lambda item: (item.state != "ready", order.get(item.name, 99), item.name))


def _item(path: Path, state: str) -> Item:
    try:
        found = open_artifact(path)
    except DataError:
        return Item(path.name, "?", "damaged", path, _weight(path), 0.0)
    return Item(path.name, found.kind, state, path, _weight(path), found.manifest.get("seconds", 0.0))


def _order(run: Path) -> dict[str, int]:
    try:
        return {name: index for index, name in enumerate(json.loads((run / "run.json").read_bytes())["stages"])}
    except (OSError, ValueError, KeyError):
        return {}


def _weight(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def remove(items: list[Item]) -> int:
    """Delete the items' directories; returns the bytes freed."""
    freed = 0
    for item in items:
        shutil.rmtree(item.path)
        freed += item.size_bytes
    return freed
