"""`luban predict MODEL FILE`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click

from luban.foundation.messages import t


@click.command(help=t("Predict with a model: labels, spans, answers, fills, texts or vectors, as JSON lines. SOURCE is a file of any recognised format, a folder of them, - for lines from standard input, or a text with --text."))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source", required=False)
@click.option("--text", multiple=True, help=t("Predict this text (or item, as JSON) instead of a file; may be given several times."))
@click.option("--out", type=click.Path(path_type=Path), help=t("Write the lines to this file. [default: standard output]"))
@click.option("--format", "form", type=click.Choice(["jsonl", "csv"]), default="jsonl", help=t("JSON lines, or a table that is written at the end. [default: jsonl]"))
@click.option("--keep", multiple=True, help=t("Keep this column of the input beside its prediction; may be given several times. `all` keeps every one."))
@click.option("--mapping", default="", help=t("Which column holds what, such as {text: review}. [default: recognised]"))
@click.option("--rows", type=click.IntRange(min=1), default=32, help=t("Rows of one forward pass. [default: 32]"))
def command(model: Path, source: str | None, text: tuple[str, ...], out: Path | None, form: str, keep: tuple[str, ...], mapping: str, rows: int) -> None:
    from luban.foundation.errors import ConfigError
    from luban.inference.predictor import Predictor
    from luban.pipeline.predict import Records, csv_lines, json_line

    if text and source is not None:
        raise ConfigError("--text and {source} are given", "one of them is predicted", "leave one out", source=source)
    if text and keep:
        raise ConfigError("--keep needs a file or standard input", "a --text has no columns", "leave --keep out")
    source = source or "-"
    named = _mapping(mapping)
    write = None if out is None else _writer(out, source)
    records = Records(Predictor.load(model), rows=rows, keep=keep, mapping=named)
    found: Iterable[dict[str, Any]] = records.of_texts(text) if text else records.of_lines() if source == "-" else records.of_file(Path(source), progress=out is not None)
    lines = csv_lines(found) if form == "csv" else map(json_line, found)
    if write is None:
        _print(lines)
    else:
        from luban.foundation.console import say

        write(lines)
        say("{count} predictions are in {file}", count=records.count - records.failed, file=out)
    records.say_rest()


def _print(lines: Iterable[str]) -> None:
    from luban.foundation.artifacts import from_os_error

    try:
        for line in lines:
            click.echo(line.encode("utf-8"))
    except BrokenPipeError:
        raise
    except OSError as error:  # a full disk behind a redirection
        raise from_os_error(error, Path(t("standard output"))) from error


def _mapping(text: str) -> dict[str, Any] | None:
    import yaml

    from luban.foundation.errors import ConfigError

    try:
        named = yaml.safe_load(text) if text else None
    except yaml.YAMLError:
        named = text
    if named is not None and not isinstance(named, dict):
        raise ConfigError("--mapping: {value!r} is no mapping", "", "write {{text: review}}", value=text)
    return named


def _writer(out: Path, source: str) -> Callable[[Iterable[str]], None]:
    """What writes lines to a file: beside it first, and in its place once whole. Refuses, before any work, a file that cannot be written."""
    from luban.foundation.artifacts import from_os_error
    from luban.foundation.console import say
    from luban.foundation.errors import ConfigError

    if source != "-" and Path(source).exists() and out.exists() and out.samefile(source):
        raise ConfigError("--out: {file} is the file that is read", "", "name another", file=out)
    if out.is_dir():
        raise ConfigError("--out: {file} is a folder", "", "name a file in it", file=out)
    special = out.exists() and not out.is_file()  # a pipe or a device has no other to take its place
    partial = out if special else out.with_name(out.name + ".partial")
    try:
        with partial.open("ab"):
            fresh = not special and partial.stat().st_size == 0
        if fresh:
            partial.unlink()
    except OSError as error:
        raise from_os_error(error, out) from error

    def write(lines: Iterable[str]) -> None:
        try:
            with partial.open("wb") as stream:
                for line in lines:
                    stream.write((line + "\n").encode("utf-8"))
                stream.flush()
                if not special:
                    os.fsync(stream.fileno())
            if not special:
                partial.replace(out)
        except OSError as error:
            _remove(partial, special)
            raise from_os_error(error, out) from error
        except KeyboardInterrupt:
            say("stopped; what was predicted so far is in {file}", file=partial)
            raise
        except BaseException:
            _remove(partial, special)
            raise

    return write


def _remove(partial: Path, special: bool) -> None:
    if not special:
        partial.unlink(missing_ok=True)
