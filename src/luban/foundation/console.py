"""What Luban prints: one line a fact on standard error, progress with time left, and cards.

Progress is a live bar on a terminal and in a notebook, and a plain line now and then elsewhere (logs, CI).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from luban.foundation.environment import in_notebook
from luban.foundation.messages import t

if TYPE_CHECKING:
    from rich.console import Console

Item = TypeVar("Item")
_console: Console | None = None
_hushed: Console | None = None


def console() -> Console:
    """The console that everything is printed to: standard error, and standard output in a notebook."""
    global _console
    if _hushed is not None:
        return _hushed
    stream = sys.stdout if in_notebook() else sys.stderr
    if _console is None or _console.file is not stream:
        from rich.console import Console

        # In a notebook: plain lines in colour under the cell, which rich would otherwise make a display object each.
        notebook = {"force_jupyter": False, "force_terminal": True, "width": 110} if in_notebook() else {}
        _console = Console(file=stream, highlight=False, soft_wrap=True, **notebook)
    return _console


def hush(quiet: bool = True) -> None:
    """Print nothing from now on: another process speaks for this one. ``hush(False)`` lets it speak again."""
    global _hushed
    from rich.console import Console

    _hushed = Console(quiet=True) if quiet else None


def say(template: str, **values: object) -> None:
    """Print one line in the reader's language."""
    console().print(t(template, **values), markup=False)


def warn(template: str, **values: object) -> None:
    """Print one line that asks for attention."""
    console().print(t("warning") + ": " + t(template, **values), style="yellow", markup=False)


def heading(template: str, **values: object) -> None:
    """Print the title of an act."""
    console().print()
    console().print(t(template, **values), style="bold cyan", markup=False)


def seconds_text(seconds: float) -> str:
    """A time span for people: ``7.3s``, ``4m10s``, ``2h05m``, ``3d04h``."""
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02d}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02d}m" if hours < 48 else f"{hours // 24}d{hours % 24:02d}h"


def bytes_text(size: float) -> str:
    """A size for people, in powers of 1024: ``512 B``, ``3.4 MiB``."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if size < 1024 or unit == "TiB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def count_text(number: float) -> str:
    """A count for people: ``950``, ``12.3k``, ``8.4M``, ``6.7B``."""
    for scale, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= scale:
            return f"{number / scale:.3g}{letter}"
    return f"{number:g}"


@contextmanager
def progress(template: str, total: float | None = None, **values: object) -> Iterator[Any]:
    """``with progress("reading {path}", total=n, path=p) as advance: advance(k)``: shows rate and time left."""
    label = t(template, **values)
    if console().is_terminal and not in_notebook():
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn())
        with Progress(*columns, console=console(), transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda amount=1: bar.advance(task, amount)
        return
    yield _plain_progress(label, total)


def _plain_progress(label: str, total: float | None, every_seconds: float = 15.0) -> Any:
    start = last = time.monotonic()
    done = 0.0

    def advance(amount: float = 1) -> None:
        nonlocal last, done
        done += amount
        now = time.monotonic()
        if now - last >= every_seconds:
            last = now
            left = ", " + t("{time} left", time=seconds_text((total - done) * (now - start) / done)) if total and done else ""
            of = f"/{count_text(total)}" if total else ""
            console().print(f"{label}: {count_text(done)}{of}, {seconds_text(now - start)}{left}", markup=False)

    return advance


def track(items: Iterable[Item], template: str, total: float | None = None, **values: object) -> Iterator[Item]:
    """Iterate with progress shown."""
    with progress(template, total, **values) as advance:
        for item in items:
            yield item
            advance()


def table(title: str, columns: list[str], rows: Iterable[Iterable[object]]) -> None:
    """Print a small table."""
    from rich import box
    from rich.table import Table

    grid = Table(title=title or None, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
    for index, column in enumerate(columns):
        grid.add_column(column, justify="left" if index == 0 else "right", overflow="fold")
    for row in rows:
        grid.add_row(*(str(cell) for cell in row))
    console().print(grid, soft_wrap=False)
