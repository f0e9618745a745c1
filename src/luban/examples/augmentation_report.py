"""report.json and report.md of an augment stage: what was made by which method, what was not and why, and samples to look at."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban.examples.reading import ExampleSet
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.console import say, table, warn
from luban.foundation.messages import t

_SHOWN = 200  # characters of a text
_BAD = 20  # rows set aside that are named


def reason_text(problem: str) -> str:
    """Why nothing was made, in the reader's language."""
    return {
        "unchanged": lambda: t("nothing could be changed"),
        "empty": lambda: t("the text would be empty"),
        "repeated": lambda: t("such a row is there already"),
        "held out": lambda: t("such a row is held out"),
        "spans lost": lambda: t("an entity could not be found again"),
        "cut": lambda: t("the model's text was cut off"),
        "too long": lambda: t("the text is too long for the model"),
    }[problem]()


def write(folder: Path, results: dict[str, Any], found: ExampleSet) -> None:
    """Write both reports, and say the main counts."""
    results["bad_lines"] = [{"file": Path(bad.file).name, "line": bad.line, "reason": bad.reason} for bad in found.bad[:_BAD]]
    write_json(folder / "report.json", results)
    rows = [
        [name, counts.get("tried", 0), counts.get("made", 0), "; ".join(f"{reason_text(key)}: {number}" for key, number in _problems(counts))]
        for name, counts in results["methods"].items()
    ]
    head = [t("method"), t("tried"), t("rows made"), t("not made, and why")]
    table(t("augmentation"), head, rows)
    say("{made} rows were made of {originals}", made=results["made"], originals=results["originals"])
    if results["methods"] and not results["made"]:
        warn("no row was made: look at the reasons in report.md")
    lines = [f"# {t('augmentation')}: {results['task']}", "", t("{made} rows were made of {originals}", made=results["made"], originals=results["originals"]), ""]
    if results["left_out"]:
        lines += [t("{count} rows stand in the held-out files too, and are left out", count=results["left_out"]), ""]
    if results["bad_rows"]:
        lines += [t("{count} records were set aside; the first ones:", count=results["bad_rows"]), ""]
        lines += [f"- {bad['file']}:{bad['line']}: {_cell(bad['reason'])}" for bad in results["bad_lines"]] + [""]
    lines += [*_table(head, rows)]
    if results["labels"]:
        lines += _table([t("label"), t("originals"), t("rows made")], [[_cell(label), own["originals"], own["made"]] for label, own in results["labels"].items()])
    for name, samples in results["samples"].items():
        lines += [f"## {name}", ""]
        lines += _table([t("source"), t("before"), t("after")], [[_cell(one["source"]), _cell(one["before"]), _cell(one["after"])] for one in samples])
    write_bytes(folder / "report.md", ("\n".join(lines).rstrip() + "\n").encode("utf-8", "replace"))


def _problems(counts: dict[str, int]) -> list[tuple[str, int]]:
    return sorted((key, number) for key, number in counts.items() if key not in ("tried", "made"))


def _cell(text: str) -> str:
    text = text.replace("|", "\\|").replace("\n", "⏎")
    return text if len(text) <= _SHOWN else text[: _SHOWN - 1] + "…"


def _table(head: list[str], rows: list[list[Any]]) -> list[str]:
    if not rows:
        return []
    return ["| " + " | ".join(head) + " |", "|" + " --- |" * len(head), *("| " + " | ".join(map(str, row)) + " |" for row in rows), ""]
