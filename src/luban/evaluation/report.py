"""Results for people: a page of Markdown, and a table in the terminal. Both say when a difference is none."""

from __future__ import annotations

import json
from typing import Any

from luban.foundation.artifacts import Artifact
from luban.foundation.console import console, table
from luban.foundation.errors import DataError
from luban.foundation.messages import t


def read_results(artifact: Artifact) -> dict[str, Any]:
    """results.json of an evaluate artifact. Raises DataError when it is missing or damaged."""
    file = artifact.path / "results.json"
    try:
        return json.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise DataError("{file} cannot be read: {error}", "", "run the recipe that makes it again", file=file, error=error) from None


def print_results(artifact: Artifact) -> None:
    """Show an evaluation in the terminal."""
    from luban.evaluation.labelled import show

    results = read_results(artifact)
    if "task" in results:
        show(results)
    else:
        print_table(results)


def print_table(results: dict[str, Any]) -> None:
    """The table, what the differences mean, and the samples."""
    title = t("held-out text: {documents} documents, {bytes} bytes", documents=results["documents"], bytes=f"{results['bytes']:,}")
    table(title, *_grid(results, " ± "))
    talk = results.get("conversations") or {}
    if talk:
        rows = [[row["name"], _number(row["scores"]["all"]["loss"], " ± ")] for row in talk["rows"]]
        table(t("loss on the assistant's words, {count} held-out conversations", count=talk["documents"]), ["", t("nats a token")], rows)
    if own := _own_grid(results):
        table(t("your own metrics"), *own)
    for clear, sentence in verdicts(results) + verdicts(talk, results):
        console().print(("  ● " if clear else "  ○ ") + sentence, markup=False, style="" if clear else "yellow")
    for sample in results.get("samples", []):
        from rich.text import Text

        text = sample["text"].strip("\n").replace("\n", " ⏎ ")
        console().print(Text.assemble("  ", (sample["model"], "dim"), " ", (sample["prompt"].strip("\n").replace("\n", " ⏎ "), "bold"), (" → ", "dim"), (text, "cyan")))


def markdown(results: dict[str, Any]) -> str:
    """The report as a page."""
    columns, rows = _grid(results, " ± ")
    lead = t(
        "{documents} documents ({bytes} bytes) of the {split} split that no model was trained on. ± is half of a 95 % bootstrap interval over documents.",
        documents=results["documents"],
        bytes=f"{results['bytes']:,}",
        split=results["split"],
    )
    parts = ["# " + t("Evaluation"), "", lead, ""]
    parts += _markdown_table(columns, rows)
    talk = results.get("conversations") or {}
    if talk:
        parts += ["", "## " + t("loss on the assistant's words, {count} held-out conversations", count=talk["documents"]), ""]
        parts += _markdown_table(["", t("nats a token")], [[row["name"], _number(row["scores"]["all"]["loss"], " ± ")] for row in talk["rows"]])
    if own := _own_grid(results):
        parts += ["", "## " + t("your own metrics"), ""]
        parts += _markdown_table(*own)
    parts += ["", f"## {t('What the differences mean')}", ""]
    parts += [f"- {sentence}" for _, sentence in verdicts(results) + verdicts(talk, results)]
    parts += [f"- {note}" for note in results.get("notes", [])]
    if results.get("samples"):
        parts += ["", f"## {t('Samples')}", ""]
        for sample in results["samples"]:
            parts += [f"**{sample['model']}**", "", *("    " + line for line in (sample["prompt"] + "⟶" + sample["text"]).splitlines()), ""]
    parts += ["", f"## {t('Signatures')}", ""]
    parts += [f"- {row_label(row)}: `{row['scores']['all']['bits_per_byte']['signature']}`" for row in results["rows"]]
    return "\n".join(parts) + "\n"


def main_figure(results: dict[str, Any]) -> tuple[str, bool]:
    """The figure that an evaluation is judged by, and whether more of it is better."""
    return results.get("main", "bits_per_byte"), bool(results.get("greater_is_better", False))


def verdicts(results: dict[str, Any], named_by: dict[str, Any] | None = None) -> list[tuple[bool, str]]:
    """What the comparisons over all text allow one to say; the flag is true where a difference is more than noise."""
    names = {row["name"]: row_label(row) for row in (named_by or results).get("rows", [])}
    said = []
    for item in results.get("comparisons", []):
        if item.get("language", "all") != "all":
            continue
        difference = item["difference"]
        values = {key: names.get(item[key], item[key]) for key in ("before", "after")}
        values |= {"change": f"{abs(difference['value']):.3f}", "unit": t(difference["unit"]) if difference["unit"] else item.get("metric", "")}
        if item["within_noise"]:
            interval = "{:+.3f} … {:+.3f}".format(*difference["interval"]) if difference["interval"] else t("too few documents for one")
            said.append((False, t("{after} and {before} cannot be told apart: the difference is no larger than chance (interval {interval} {unit})", interval=interval, **values)))
        elif (difference["value"] > 0) == item.get("greater_is_better", False):
            said.append((True, t("{after} is better than {before} by {change} {unit}, more than chance explains", **values)))
        else:
            said.append((True, t("{after} is worse than {before} by {change} {unit}, more than chance explains", **values)))
    return said


def _own_grid(results: dict[str, Any]) -> tuple[list[str], list[list[str]]] | None:
    """The user's metrics, a row a model; None when there are none."""
    rows = [row for row in results["rows"] if row.get("own")]
    names = list(rows[0]["own"]) if rows else []
    return (["", *names], [[row_label(row), *(f"{row['own'][name]:.4g}" for name in names)] for row in rows]) if names else None


def row_label(row: dict[str, Any]) -> str:
    """What a row of the results is called, in the reader's language."""
    if row.get("role") == "untrained":
        return t("untrained")
    if row.get("role") == "baseline" and row.get("order"):
        return t("{order}-gram", order=row["order"])
    return str(row.get("name", ""))


def language_name(code: str) -> str:
    """English or Chinese by name, any other language by its code."""
    names = {"en": "English", "zh": "Chinese", "und": "undetermined"}
    return t(names[code]) if code in names else code


def _grid(results: dict[str, Any], plus_minus: str) -> tuple[list[str], list[list[str]]]:
    """One row a model; bits per byte overall and per language, then loss and perplexity overall."""
    languages = [name for name in results.get("languages", {}) if len(results["languages"]) > 1]
    columns = ["", t("bits a byte"), *(language_name(name) for name in languages), t("loss"), t("perplexity")]
    rows = []
    for row in results["rows"]:
        whole = row["scores"]["all"]
        cells = [_number(row["scores"][group]["bits_per_byte"], plus_minus) for group in ("all", *languages)]
        rows.append([row_label(row), *cells, f"{whole['loss']['value']:.3f}", f"{whole['perplexity']['value']:.1f}"])
    return columns, rows


def _number(score: dict[str, Any], plus_minus: str) -> str:
    interval = score.get("interval")
    return f"{score['value']:.3f}" + (f"{plus_minus}{(interval[1] - interval[0]) / 2:.3f}" if interval else "")


def _markdown_table(columns: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(columns) + " |", "|" + " --- |" * len(columns), *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)]
