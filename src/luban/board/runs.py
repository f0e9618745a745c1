"""Which runs lie under a folder, and what each says of itself. Files are only read; links are not followed, so nothing outside is."""

from __future__ import annotations

import json
import os
import socket
import stat
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import MANIFEST
from luban.training.log import ABOUT, LOG

MOST_RUNS = 2000
DEEPEST = 8  # folders below the one that is shown
LARGEST = 4 * 2**20  # bytes of a manifest or recipe that are read
TAIL = 2**16  # bytes at the end of a log in which its last step is looked for
QUIET_SECONDS = 180.0  # a run on another machine counts as running so long after its last line
_PASSED_OVER = ("checkpoints", "events", "node_modules", "__pycache__")


@dataclass(frozen=True)
class Place:
    """Where a run lies. ``identity`` is its path without ``.partial``, so that it stays the same when the run ends."""

    identity: str
    folder: Path  # of the stage, or of what an aside log belongs to
    log: Path
    partial: bool

    @property
    def training(self) -> Path:
        return self.log.parent


def find_places(root: Path) -> dict[str, Place]:
    """Every training log under ``root``, by identity, in order of name; of a run that goes on, the part in the making."""
    found: dict[str, Place] = {}
    depth = len(root.parts)
    for folder, folders, files in os.walk(root, followlinks=False):
        here = Path(folder)
        folders[:] = sorted(name for name in folders if name not in _PASSED_OVER and not name.startswith(".")) if len(here.parts) - depth < DEEPEST else []
        if LOG in files and here == root:  # a training folder itself
            stage = here.parent if here.name == "training" else here
            found[stage.name.removesuffix(".partial")] = Place(stage.name.removesuffix(".partial"), stage, here / LOG, stage.name.endswith(".partial"))
        elif LOG in files and here.name == "training":
            _add(found, root, here.parent, here / LOG)
        for name in sorted(files):
            if name.endswith("." + LOG):  # what a search or a cross-validation has kept of a run
                _add(found, root, here / name.removesuffix("." + LOG), here / name)
        if len(found) >= MOST_RUNS:
            break
    return dict(sorted(found.items()))


def _add(found: dict[str, Place], root: Path, folder: Path, log: Path) -> None:
    parts = folder.relative_to(root).parts
    identity = "/".join(part.removesuffix(".partial") for part in parts) or root.name
    partial = any(part.endswith(".partial") for part in (folder.name, *parts))
    if identity not in found or partial:
        found[identity] = Place(identity, folder, log, partial)


def open_plain(path: Path) -> int | None:
    """A descriptor of a plain file; None for what is missing, a link, a pipe or a device."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    return None


def read_plain(path: Path, most: int = LARGEST, from_end: bool = False) -> bytes:
    """At most so many bytes of a plain file; nothing where it is none."""
    if (descriptor := open_plain(path)) is None:
        return b""
    with os.fdopen(descriptor, "rb") as stream:
        if from_end:
            stream.seek(max(0, os.fstat(stream.fileno()).st_size - most))
        return stream.read(most)


def parse(text: bytes) -> Any:
    """JSON, or None for what is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def read_object(path: Path) -> dict[str, Any]:
    value = parse(read_plain(path))
    return value if isinstance(value, dict) else {}


def state_of(place: Place) -> str:
    """"finished", "running" or "stopped"."""
    if not place.partial:
        return "finished"
    try:
        written = place.log.stat().st_mtime
    except OSError:
        return "stopped"
    stage = next(folder for folder in (place.folder, *place.folder.parents) if folder.name.endswith(".partial"))
    for lock in (stage.parent / ".lock", stage.parent / f".{stage.name.removesuffix('.partial')}.lock"):
        words = read_plain(lock, 200).decode("utf-8", "replace").split()
        if len(words) == 4 and words[1].isdecimal():  # process 123 on name
            here = words[3] == socket.gethostname()
            if _lives(int(words[1])) and written >= lock.stat().st_mtime - 1 if here else time.time() - written < QUIET_SECONDS:
                return "running"
    return "stopped"


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


def about(place: Place) -> dict[str, Any]:
    """What the run said of itself at its start."""
    return read_object(place.training / ABOUT) if place.log.name == LOG else {}


def manifest(place: Place) -> dict[str, Any]:
    """What the stage said at its end."""
    if place.log.name == LOG:
        return read_object(place.folder / MANIFEST)
    return read_object(place.log.with_name(place.log.name.removesuffix(LOG) + MANIFEST))


def summary(place: Place) -> dict[str, Any]:
    """One line of the list: how far the run is, and its last loss, from the end of its log."""
    told, last, loss = about(place), None, None
    for line in reversed(read_plain(place.log, TAIL, from_end=True).split(b"\n")):
        entry = parse(line) if line.startswith(b"{") else None
        if isinstance(entry, dict) and isinstance(entry.get("step"), (int, float)):
            last = entry["step"] if last is None else last
            if isinstance(entry.get("loss"), (int, float)):
                loss = entry["loss"]
                break
    try:
        changed = place.log.stat().st_mtime
    except OSError:
        changed = 0.0
    return {"id": place.identity, "state": state_of(place), "step": last, "steps": told.get("steps"), "loss": loss, "changed": changed}


def details(place: Place) -> dict[str, Any]:
    """The settings a run was made with, flat, and what is known of its data and its end."""
    told, made = about(place), manifest(place)
    config = told.get("config") or made.get("resolved") or made.get("config")
    recipe = next((text for folder in place.folder.parents if (text := read_plain(folder / "recipe.resolved.yaml", 2**20))), b"") if place.partial or made else b""
    metrics = made.get("metrics")
    return {
        "about": {key: value for key, value in told.items() if key not in ("config", "rows")},
        "config": flat(config),
        "rows": told.get("rows") if isinstance(told.get("rows"), dict) else {},
        "metrics": flat(metrics),
        "seconds": made.get("seconds"),
        "versions": made.get("versions"),
        "recipe": recipe.decode("utf-8", "replace"),
    }


def flat(value: Any, name: str = "", most: int = 1000) -> dict[str, str]:
    """Dotted names and short texts of what a nested value holds."""
    found: dict[str, str] = {}
    waiting = [(name, value)]
    while waiting and len(found) < most:
        name, value = waiting.pop()
        if isinstance(value, dict) and value:
            waiting += [(f"{name}.{key}" if name else str(key), inner) for key, inner in reversed(value.items())]
        elif name:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[name[:200]] = text if len(text) <= 500 else text[:500] + "…"
    return found
