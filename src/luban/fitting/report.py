"""report.md of a fit stage, its tables on the console, and the figures that go into the manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_bytes
from luban.foundation.console import table
from luban.foundation.messages import t


def figures(results: dict[str, Any]) -> dict[str, Any]:
    """The few numbers of the manifest."""
    held_out = results.get("held_out", {})
    chosen: dict[str, Any] = {
        name: round(value["value"], 5) for name, value in held_out.items() if isinstance(value, dict) and isinstance(value.get("value"), float)
    }
    for name in ("training", "similarity"):
        chosen |= {f"{name}_{key}": value for key, value in results.get(name, {}).items() if isinstance(value, int | float)}
    chosen |= {name: results[name] for name in ("examples", "features", "entries", "dimension") if name in results}
    return chosen


def show_nearest(results: dict[str, Any]) -> None:
    """The nearest words as a table on the console."""
    rows = [[word, "  ".join(name for name, _ in near)] for word, near in results["nearest"].items()]
    if rows:
        table(t("nearest words"), [t("word"), t("neighbours")], rows)


def write(folder: Path, results: dict[str, Any]) -> None:
    """Write report.md in the reader's language."""
    lines = [f"# {t('fit')}: {results['method']}", ""]
    if "training" in results:
        lines += [f"- {name}: {value}" for name, value in results["training"].items()] + [""]
    if "orders" in results:
        lines += _table([t("order"), t("n-grams seen"), t("kept")], [[row["order"], row["seen"], row["kept"]] for row in results["orders"]])
    for name, score in results.get("held_out", {}).items():
        if isinstance(score, dict) and "value" in score:
            low, high = score["interval"] or (None, None)
            spread = f" [{low:.4g}, {high:.4g}]" if low is not None else ""
            lines.append(f"- {name}: {score['value']:.4g}{spread} {score['unit']} `{score['signature']}`")
        else:
            lines.append(f"- {name}: {score}")
    lines.append("")
    if results.get("nearest"):
        lines += _table(
            [t("word"), t("neighbours")],
            [[_cell(word), ", ".join(f"{_cell(name)} {value:.2f}" for name, value in near)] for word, near in results["nearest"].items()],
        )
    for item in results.get("analogies", []):
        first, second, third = item["of"]
        lines.append(f"- {first} : {second} = {third} : " + (", ".join(name for name, _ in item["answers"]) or t("a word has no vector")))
    if similarity := results.get("similarity"):
        lines += ["", f"- spearman: {similarity['spearman']:.4f} ({similarity['pairs']} {t('pairs')}, {similarity['missing']} {t('without vectors')})"]
    for prompt, following in results.get("next", {}).items():
        lines.append(f"- {prompt!r} → " + ", ".join(f"{name!r} {value:.3f}" for name, value in following))
    for label, features in results.get("weightiest", {}).items():
        lines.append(f"- {label}: " + ", ".join(repr(feature[2:]) for feature in features))
    for sample in results.get("samples", []):
        lines += ["", "```text", sample.replace("```", "'''"), "```"]
    write_bytes(folder / "report.md", ("\n".join(lines).rstrip() + "\n").encode("utf-8", "replace"))


def _table(columns: list[str], rows: list[list[Any]]) -> list[str]:
    return [
        "| " + " | ".join(columns) + " |",
        "| " + " | ".join("---" for _ in columns) + " |",
        *("| " + " | ".join(str(cell) for cell in row) + " |" for row in rows),
        "",
    ]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", "⏎")
