"""The run card: one page that tells what was trained, on what, how long, and whether it helped.

``card.html`` is self-contained: no script, no font, no picture from elsewhere. It follows the reader's dark or light
setting and language.
"""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2

from luban import __version__
from luban.evaluation.report import main_figure, row_label, verdicts
from luban.foundation.artifacts import write_bytes
from luban.foundation.console import bytes_text, console, count_text, seconds_text
from luban.foundation.messages import language, t
from luban.pipeline.card_facts import (
    RunFacts,
    comparison,
    corpus_bytes,
    corpus_languages,
    data_facts,
    gather,
    machine_text,
    next_commands,
    training_facts,
    versions_text,
)

CARD = "card.html"


def write_card(run_folder: Path) -> Path:
    """Write ``card.html`` into the run's folder and return its path.

    Raises LubanError when no stage of the run is finished.
    """
    run = gather(run_folder)
    path = run_folder / CARD
    write_bytes(path, page_templates().get_template("card.html.j2").render(_page(run)).encode("utf-8", "replace"))
    return path


@lru_cache
def page_templates(*folders: Path) -> jinja2.Environment:
    """The card's template and the style and charts that other pages share with it; templates of ``folders`` are found too."""
    loader = jinja2.FileSystemLoader([Path(__file__).parent, *folders])
    return jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)


def _page(run: RunFacts) -> dict[str, Any]:
    """Everything the template shows."""
    trainings = [training_facts(stage) for stage in run.of_kind("train")]
    whole = sum(stage.seconds for stage in run.stages) or 1.0
    return {
        "t": t,
        "run": run,
        "lang": "zh-CN" if language() == "zh" else "en",
        "version": __version__,
        "summary": summary_text(run),
        "tiles": _tiles(run),
        "evaluations": [_evaluation(name, results) for name, results in run.evaluations.items()],
        "written": [{**sample, "prompt": sample["prompt"].strip("\n"), "text": sample["text"].strip("\n")} for results in run.evaluations.values() for sample in results.get("samples", [])],
        "times": [(stage.name, stage.kind, seconds_text(stage.seconds), 100 * stage.seconds / whole) for stage in run.stages if stage.artifact],
        "trainings": trainings,
        "data": [(stage.name, data_facts(stage), (stage.artifact.path / "card.html").is_file()) for stage in run.of_kind("curate")],
        "machine": machine_text(run),
        "versions": versions_text(run),
        "commands": next_commands(run, _typed(run.folder)),
        "bytes_text": bytes_text,
        "seconds_text": seconds_text,
    }


def _evaluation(name: str, results: dict[str, Any]) -> dict[str, Any]:
    """What one evaluation says: bars, verdicts, notes."""
    main, greater = main_figure(results)
    lead = t("Bits needed to code one byte of text the models never saw; shorter is better. The n-grams are character models trained on the same text; whiskers span 95 % of resampled documents.")
    if "task" in results:
        better = t("longer is better") if greater else t("shorter is better")
        lead = t("{metric} on the examples of the test; {better}. The baselines were fitted to the same training data; whiskers span 95 % of resampled examples.", metric=main, better=better)
    conversations = results.get("conversations", {})
    return {
        "name": name,
        "lead": lead,
        "groups": comparison(results),
        "verdicts": verdicts(results),
        "conversation_groups": [("", bars) for _, bars in comparison({"rows": conversations.get("rows", [])}, "loss")],
        "conversation_verdicts": verdicts(conversations, results),
        "notes": results.get("notes", []),
        "signature": _signature(results),
    }


def summary_text(run: RunFacts) -> str:
    """One sentence: what was trained, on what, how long."""
    models, corpora = run.of_kind("train"), run.of_kind("curate")
    parts = []
    if models and (size := models[0].artifact.metrics.get("parameters")):
        parts.append(t("A model of {parameters} parameters", parameters=count_text(size)))
    if corpora:
        languages = t(", ").join(corpus_languages(corpora[0]))
        size = bytes_text(corpus_bytes(corpora[0]))
        parts.append(t("{size} of text in {languages}", size=size, languages=languages) if languages else t("{size} of text", size=size))
    parts.append(t("made in {time}", time=seconds_text(run.seconds)))
    if machine := machine_text(run):
        parts.append(t("on {machine}", machine=machine))
    return " · ".join(parts)


def _tiles(run: RunFacts) -> list[tuple[str, str, str]]:
    """The few figures that stand at the top: label, figure, and a word beside it."""
    tiles = []
    main, greater = main_figure(run.results)
    values = {row_label(row): score["value"] for row in run.results.get("rows", []) if (score := row.get("scores", {}).get("all", {}).get(main))}
    models = [row_label(row) for row in run.results.get("rows", []) if row.get("role") == "model" and row_label(row) in values]
    if models:
        best = (max if greater else min)(models, key=values.__getitem__)
        beside = [f"{row_label(row)} {values[row_label(row)]:.2f}" for row in run.results["rows"] if row.get("role") == "baseline" and row_label(row) in values]
        tiles.append((t("bits a byte, held-out text") if main == "bits_per_byte" else main, f"{values[best]:.3f}", t(", ").join([best, *beside])))
    if trained := run.of_kind("train"):
        metrics = [stage.artifact.metrics for stage in trained]
        if size := metrics[0].get("parameters"):
            tiles.append((t("parameters"), count_text(size), ""))
        if tokens := sum(values.get("tokens") or 0 for values in metrics):
            tiles.append((t("tokens trained on"), count_text(tokens), ""))
    tiles.append((t("time"), seconds_text(run.seconds), ""))
    tiles.append((t("stages"), str(sum(stage.finished for stage in run.stages)), t("of {count}", count=len(run.stages)) if not all(stage.finished for stage in run.stages) else ""))
    return tiles


def _signature(results: dict[str, Any]) -> str:
    for row in results.get("rows", []):
        if row.get("role") == "model" and (score := row.get("scores", {}).get("all", {}).get(main_figure(results)[0])):
            return str(score.get("signature", ""))
    return ""


def _typed(folder: Path) -> str:
    """The folder as a person would type it from where they are."""
    relative = os.path.relpath(folder)
    return relative if not relative.startswith("..") else str(folder)


def print_summary(run_folder: Path) -> None:
    """The card in the terminal: compact, ending with three commands to try."""
    from rich import box
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    run = gather(run_folder)
    blocks: list[Any] = [Text(summary_text(run), style="dim")]
    stages = Table.grid(padding=(0, 2))
    whole = max((stage.seconds for stage in run.stages), default=0) or 1.0
    for stage in run.stages:
        bar = "━" * max(1, round(24 * stage.seconds / whole)) if stage.finished else t("not finished")
        took = seconds_text(stage.seconds) if stage.finished else ""
        stages.add_row(Text(stage.name, style="bold"), Text(stage.kind, style="dim"), Text(took), Text(bar, style="cyan" if stage.finished else "yellow"))
    blocks += [Text(), stages]
    for name, results in run.evaluations.items():
        blocks += _bars(results, name if len(run.evaluations) > 1 else "")
    blocks += [Text(), Text(t("where it lies"), style="bold"), Text(f"  {_typed(run.folder)}/", overflow="fold")]
    if (run.folder / CARD).is_file():
        blocks.append(Text(f"  {_typed(run.folder / CARD)}", overflow="fold"))
    blocks += [Text(), Text(t("next"), style="bold")]
    width = max(len(command) for command, _ in next_commands(run, _typed(run.folder)))
    blocks += [Text.assemble("  ", (command.ljust(width), "bold cyan"), "  ", (purpose, "dim"), overflow="fold") for command, purpose in next_commands(run, _typed(run.folder))]
    console().print(Panel(Group(*blocks), title=Text(f" {run.name} ", style="bold"), box=box.ROUNDED, border_style="cyan", padding=(1, 2)), soft_wrap=False)


def _bars(results: dict[str, Any], name: str) -> list[Any]:
    """One evaluation in the terminal: a bar a row, and what may be said of them."""
    from rich.table import Table
    from rich.text import Text

    main, blocks = main_figure(results)[0], []
    for title, bars in comparison(results)[:3]:
        grid = Table.grid(padding=(0, 2))
        for bar in bars:
            style = {"model": "bold green", "baseline": "blue"}.get(bar.role, "dim")
            grid.add_row(Text("  " + bar.label, style=style), Text(bar.text, style=style), Text("█" * max(1, round(bar.width * 0.24)), style=style))
        blocks += [Text(), Text(f"{name + ', ' if name else ''}{t('bits a byte') if main == 'bits_per_byte' else main}: {title}", style="bold"), grid]
    return blocks + [Text("  " + sentence, style="" if clear else "yellow") for clear, sentence in verdicts(results)]
