"""What may stand for files: a path, a part of what it holds (``data.csv#500``), two files line by line (``a.en,b.zh``)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path


def without_part(path: Path | str) -> str:
    """The path without the slice behind ``#``; a file that has a # in its own name stays whole."""
    text = str(path)
    return text if _exists(Path(text)) else text.rpartition("#")[0] or text


def named_files(path: Path | str) -> list[Path]:
    """The file or folder that a path names, without a slice; or the files that it names with commas between.

    A path that is there, commas and all, is itself; so is one that names nothing.
    """
    text = without_part(path)
    return together(text) or [Path(text)]


def together(text: str, at: Callable[[str], Path] = Path) -> list[Path]:
    """The files that a text names with commas between, where ``at`` puts each; nothing for a text that is one path.

    Of two files either may have commas in its name: the first comma that has a file on both sides parts them.
    """
    if "," not in text or _exists(at(text)):
        return []
    for pieces in _readings(text):
        files = [at(piece.strip()) for piece in pieces if piece.strip()]
        if len(files) == len(pieces) and all(_exists(file) and file.is_file() for file in files):
            return files
    return []


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # too long, or a zero byte: a text rather than a path
        return False


def _readings(text: str) -> Iterator[list[str]]:
    for place, letter in enumerate(text):
        if letter == ",":
            yield [text[:place], text[place + 1 :]]
    yield text.split(",")
