"""Artifacts: directories with a manifest that a stage makes in one piece.

While a stage runs it fills ``NAME.partial/``; when it is whole the manifest is written and the directory is
renamed to ``NAME/``. So a directory with a manifest is always complete, whatever killed its maker.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.foundation.console import bytes_text, say
from luban.foundation.errors import DataError, LockedError, LubanError

MANIFEST = "manifest.json"
FORMAT = 1


@dataclass(frozen=True)
class Artifact:
    """A finished artifact on disk. ``manifest`` holds what was written when it was whole."""

    path: Path
    manifest: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.manifest["kind"]

    @property
    def fingerprint(self) -> str:
        return self.manifest["fingerprint"]

    @property
    def metrics(self) -> dict[str, Any]:
        return self.manifest.get("metrics", {})

    @property
    def licences(self) -> list[str]:
        return self.manifest.get("licences", [])


Input = Artifact | Path


@dataclass
class Work:
    """What a running stage sees: its inputs, the directory to fill, and what to report for the manifest.

    ``inputs`` maps the dotted name of each input field to an Artifact, a Path, or a list of these (None if
    not given). ``path`` may hold what an earlier, killed run of the same fingerprint left: continue from it.
    ``watch`` is called with the run after each step of a training: how a room above looks in; what it raises ends the stage.
    ``foresee`` says what the planner makes of a training on these devices: what the stage takes where its config says auto.
    """

    path: Path
    inputs: dict[str, Input | list[Input] | None]
    seed: int = 0
    name: str = ""
    metrics: dict[str, Any] = field(default_factory=dict)
    licences: list[str] = field(default_factory=list)
    resolved: dict[str, Any] = field(default_factory=dict)
    cost: dict[str, Any] = field(default_factory=dict)  # time and energy, beside what the runner measures; differs between two runs of the same
    watch: Callable[[Any], None] | None = None
    foresee: Callable[[], dict[str, Any]] | None = None
    accepted: list[str] = field(default_factory=list)  # changes of the recipe or its data, under what is half done, that were accepted by name
    scrap: list[str] = field(default_factory=list)  # files and folders of ``path`` that only an unfinished stage needs: they go when the artifact has its name

    def licence(self, *names: str) -> None:
        """Record a licence that the artifact inherits."""
        self.licences = sorted({*self.licences, *names})


def listed(value: Any) -> list[Any]:
    """What a field or an input holds, none, one or many, as a list."""
    return value if isinstance(value, list) else [] if value is None else [value]


def open_artifact(path: Path, kinds: tuple[str, ...] = ()) -> Artifact:
    """The artifact at ``path``; a DataError says what is missing, damaged or of another kind."""
    manifest_path = path / MANIFEST
    try:
        manifest = json.loads(manifest_path.read_bytes())
        if not isinstance(manifest, dict) or not isinstance(manifest.get("kind"), str):
            raise ValueError("no kind in it")
    except FileNotFoundError:
        partial = path.with_name(path.name + ".partial")
        why = "a stage was stopped before it was whole ({partial} is there)" if partial.exists() else ""
        raise DataError("{path} is not an artifact: it has no manifest.json", why, "run its recipe again", path=path, partial=partial) from None
    except NotADirectoryError:
        raise DataError("{path} is a file, not an artifact", path=path) from None
    except ValueError as error:
        raise DataError("{path} is damaged: {error}", "", "remove the folder and run its recipe again", path=manifest_path, error=error) from None
    if manifest.get("format", 0) > FORMAT:
        raise DataError("{path} was written by a newer Luban (artifact format {found}; this one reads {known})", "", "upgrade Luban", path=path, found=manifest["format"], known=FORMAT)
    for name, size in manifest.get("files", {}).items():
        file = path / name
        if not file.exists() or file.stat().st_size != size:
            found = bytes_text(file.stat().st_size) if file.exists() else "nothing"
            raise DataError("{file} is damaged: {size} were written, {found} is there", "", "restore the file, or remove {path} and run its recipe again", file=file, size=bytes_text(size), found=found, path=path)
    artifact = Artifact(path, manifest)
    if kinds and artifact.kind not in kinds:
        raise DataError("{path} is made by {found!r}, but {wanted} is needed here", path=path, found=artifact.kind, wanted=" / ".join(kinds))
    return artifact


def is_artifact(path: Path) -> bool:
    return (path / MANIFEST).is_file()


def finish(partial: Path, final: Path, manifest: dict[str, Any], scrap: Sequence[str] = ()) -> Artifact:
    """Write the manifest into a whole ``partial`` directory and give it its name. The parent holds the old one aside. ``scrap`` is removed when nothing can be lost any more."""
    for cut_short in partial.rglob(".*.tmp*"):  # what write_bytes and its kin left where they were killed
        if cut_short.is_file():
            cut_short.unlink()
    files = {name: size for name, size in sizes(partial).items() if not any(name == gone or name.startswith(gone + "/") for gone in scrap)}
    manifest = {"format": FORMAT, **manifest, "files": files, **({"scrap": list(scrap)} if scrap else {})}
    write_json(partial / MANIFEST, manifest)
    if final.exists():
        raise AssertionError(f"{final} is in the way")
    os.rename(partial, final)
    sync_directory(final.parent)
    made = Artifact(final, manifest)
    remove_scrap(made)
    return made


def remove_scrap(artifact: Artifact) -> None:
    """Remove what the stage alone needed; again where it was killed while it did so."""
    for name in artifact.manifest.get("scrap", []):
        place = artifact.path / name
        if place.is_dir():
            shutil.rmtree(place, ignore_errors=True)
        else:
            place.unlink(missing_ok=True)


def sizes(folder: Path) -> dict[str, int]:
    """Bytes of every file under a folder, but for the manifest itself and what grows later."""
    found = {}
    for file in sorted(folder.rglob("*")):
        name = file.relative_to(folder).as_posix()
        if file.is_file() and name != MANIFEST:
            found[name] = file.stat().st_size
    return found


def fingerprint(*parts: Any) -> str:
    """A short stable hash of JSON-like values: 16 hexadecimal digits of SHA-256."""
    text = json.dumps(parts, sort_keys=True, ensure_ascii=False, default=str, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def fingerprint_path(path: Path) -> str:
    """The fingerprint of an artifact, or of the bytes and relative names of a file or folder."""
    if is_artifact(path):
        return open_artifact(path).fingerprint
    if path.is_file():
        return fingerprint("file", sha256_of(path))
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts))
        return fingerprint("folder", [(file.relative_to(path).as_posix(), sha256_of(file)) for file in files])
    raise DataError("{path}: no such file or folder", "", "check the path; a relative one starts at the recipe's folder", path=path)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. DataError where it cannot be read."""
    try:
        with path.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError("{path} cannot be read: {error}", path=path, error=error.strerror) from None


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that after a crash it is the old one or the new one, never a part."""
    temporary = path.with_name(f".{path.name}.tmp{os.getpid()}-{threading.get_native_id()}")  # threads may write the same file
    try:
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise from_os_error(error, path) from error
    sync_directory(path.parent)


def write_json(path: Path, value: Any) -> None:
    write_bytes(path, (json.dumps(value, ensure_ascii=False, indent=2, default=str) + "\n").encode("utf-8", "replace"))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; an empty one where the file is missing or damaged, or holds no object."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def sync_directory(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        pass  # some file systems cannot sync a directory; the rename itself is still atomic
    finally:
        os.close(descriptor)


def from_os_error(error: OSError, path: Path) -> LubanError:
    """A full disk or a refused write as an error that says what to do."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = path if path.is_dir() else path.parent
        free = bytes_text(shutil.disk_usage(folder).free) if folder.exists() else "?"
        return LubanError("{path}: the disk is full ({free} free)", "nothing that was finished is lost", "free some space (luban clean removes what is stale) and run the same command again: it continues", path=path, free=free)
    return LubanError("{path}: {error}", path=path, error=error.strerror or str(error))


@contextlib.contextmanager
def locked(folder: Path, wait: bool = False, name: str = "") -> Iterator[None]:
    """Hold the folder, or what is called ``name`` in it, for this process alone. The system drops the lock when the process ends, however it ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / f".{name}{'.' if name else ''}lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise from_os_error(error, folder) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 200, 0).decode("utf-8", "replace").strip() or "another process"
            if not wait:
                raise LockedError("{folder} is in use by {holder}", "two runs in one folder would spoil each other's work", "wait for it, stop it, or use --wait or another --out", folder=folder / name, holder=holder) from None
            say("waiting for {holder} to finish with {folder}", holder=holder, folder=folder / name)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
        yield
    finally:
        os.close(descriptor)
