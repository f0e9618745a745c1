"""report.html, report.md and trials.json of a search, and its tables in the terminal.

The page is self-contained and wears the run card's style: it follows dark and light and the reader's language.
"""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.console import seconds_text, table
from luban.foundation.messages import language, t
from luban.pipeline.card import page_templates
from luban.pipeline.card_charts import number_text
from luban.pipeline.card_facts import Bar
from luban.pipeline.spaces import every
from luban.tuning.charts import best_so_far, curves, parallel
from luban.tuning.metric import plain_name
from luban.tuning.problem import Problem
from luban.tuning.study import complete, optuna, plain_trial, settled

SHOWN = 10  # trials of the terminal's table, the best first
ENOUGH = 4  # complete trials before importance means anything
REPORT = "report.html"


Importance = tuple[dict[str, float], str]


def write_report(problem: Problem, study: Any, importance: Importance = ({}, "")) -> Path:
    """Write the page, the Markdown and the plain data. ``importance`` is what :func:`importances` gives; it is left out of what is written while trials run."""
    trials = [plain_trial(trial) for trial in study.get_trials(deepcopy=False)]
    ranked = [trial.number for trial in complete(study, problem.maximize)]
    weights, method = importance
    folder = problem.tune_folder
    facts = {"name": problem.name, "stage": problem.stage, "metric": plain_name(problem.metric), "direction": "maximize" if problem.maximize else "minimize"}
    write_json(folder / "trials.json", {**facts, "importance": weights, "importance_method": method, "ranked": ranked, "trials": trials})
    page = _page(problem, trials, ranked, weights, method)
    html = page_templates(Path(__file__).parent).get_template("tune_report.html.j2").render(page)
    write_bytes(folder / REPORT, html.encode("utf-8", "replace"))
    write_bytes(folder / "report.md", _markdown(page).encode("utf-8", "replace"))
    return folder / REPORT


def importances(study: Any) -> Importance:
    """Each space's share of the metric's variation: fANOVA where scikit-learn is installed, else PED-ANOVA. Empty with too few trials, or where all are equal."""
    found = [trial for trial in settled(study) if trial.value is not None and trial.state.name == "COMPLETE"]
    if len(found) < ENOUGH or len({trial.value for trial in found}) < 2:
        return {}, ""
    forest = importlib.util.find_spec("sklearn") is not None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0) if forest else optuna.importance.PedAnovaImportanceEvaluator()
        try:
            shares = optuna.importance.get_param_importances(study, evaluator=evaluator)
        except (ValueError, RuntimeError):  # no space that every trial has, or no variation left in the trees
            return {}, ""
    return {name: float(share) for name, share in shares.items()}, "fANOVA" if forest else "PED-ANOVA"


def short_names(problem: Problem) -> dict[str, str]:
    """Each space's name as short as tells it from the others: ``learning_rate`` for ``base.optimizer.learning_rate``."""
    names = [space.name for space in every(problem.spaces)]
    short: dict[str, str] = {}
    for name in names:
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            ending = ".".join(parts[-count:])
            if sum(other == ending or other.endswith("." + ending) for other in names) == 1:
                break
        short[name] = ending
    return short


def value_text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def state_text(trial: dict[str, Any]) -> str:
    """What became of a trial."""
    said = t({"complete": "complete", "pruned": "pruned", "running": "running", "fail": "failed"}.get(trial["state"], trial["state"]))
    parent = f" ({t('copy of {number}', number=trial['parent'])})" if trial.get("parent") is not None else ""
    return said + parent + (f": {trial['error']}" if trial.get("error") else "")


def lineage(trials: list[dict], number: int, names: dict[str, str]) -> list[str]:
    """A population's best: the values it had, interval by interval, before it was copied into this trial. Empty for a trial that is no copy."""
    found, trial = [], trials[number]
    while trial.get("parent") is not None:
        parent = trials[trial["parent"]]
        values = ", ".join(f"{names[name]} {value_text(value)}" for name, value in parent["values"].items())
        found.insert(0, t("trial {number} until interval {interval}: {values}", number=parent["number"], interval=trial["born"], values=values))
        trial = parent
    return found


def print_tables(problem: Problem, study: Any, importance: Importance) -> None:
    """The best trials, and what mattered."""
    trials = [plain_trial(trial) for trial in study.get_trials(deepcopy=False)]
    ranked = [trial.number for trial in complete(study, problem.maximize)]
    columns, rows = _rows(problem, trials, ranked)
    table(t("trials, the best first"), columns, rows[:SHOWN])
    weights, method = importance
    if weights:
        names = short_names(problem)
        table(t("importance ({method})", method=method), [t("space"), t("share")], [(names[name], f"{share:.0%}") for name, share in weights.items()])


def _rows(problem: Problem, trials: list[dict], ranked: list[int]) -> tuple[list[str], list[list[str]]]:
    names = short_names(problem)
    used = [name for name in names if any(name in trial["values"] for trial in trials)]
    stepped = any(trial.get("steps") for trial in trials)
    order = [*ranked, *(trial["number"] for trial in trials if trial["number"] not in ranked)]
    rows = []
    for number in order:
        trial = trials[number]
        spread = f" ± {trial['deviation']:.2g}" if trial.get("deviation") is not None else ""
        value = f"{trial['value']:.5g}{spread}" if trial["value"] is not None else ""
        rows.append([str(number), value, *(value_text(trial["values"].get(name, "")) for name in used), *([str(trial.get("steps") or "")] if stepped else []), seconds_text(trial.get("seconds", 0.0)), state_text(trial)])
    return [t("trial"), plain_name(problem.metric), *(names[name] for name in used), *([t("steps")] if stepped else []), t("time"), t("state")], rows


def _page(problem: Problem, trials: list[dict], ranked: list[int], weights: dict[str, float], method: str) -> dict[str, Any]:
    names = short_names(problem)
    columns, rows = _rows(problem, trials, ranked)
    counts = {state: sum(trial["state"] == state for trial in trials) for state in ("complete", "pruned", "fail", "running")}
    seconds = sum(trial.get("seconds", 0.0) for trial in trials)
    best = trials[ranked[0]] if ranked else None
    tiles = [(t("best {metric}", metric=plain_name(problem.metric)), f"{best['value']:.5g}" if best else "–", t("trial {number}", number=best["number"]) if best else "")]
    tiles += [(t(label), str(counts[state]), "") for label, state in (("complete", "complete"), ("pruned", "pruned"), ("failed", "fail")) if counts[state] or state == "complete"]
    tiles.append((t("time"), seconds_text(seconds), ""))
    top = max(weights.values(), default=1.0) or 1.0
    done = [trial for trial in trials if trial["value"] is not None]
    return {
        "t": t,
        "lang": "zh-CN" if language() == "zh" else "en",
        "name": problem.name,
        "summary": t("{direction} {metric} of {stage}, {trials} trials by {sampler}, pruned by {pruner}", direction=t("maximize" if problem.maximize else "minimize"), metric=plain_name(problem.metric), stage=problem.stage, trials=len(trials), sampler=problem.config.sampler, pruner=problem.config.pruner),
        "tiles": tiles,
        "best_values": [(names.get(name, name), value_text(value)) for name, value in best["values"].items()] if best else [],
        "lineage": lineage(trials, ranked[0], names) if ranked else [],
        "history": best_so_far(done, problem.maximize, plain_name(problem.metric)),
        "curves": curves(trials, ranked[0] if ranked else None, plain_name(problem.metric)),
        "parallel": parallel([trial for trial in done if trial["state"] == "complete"], list(every(problem.spaces)), names, problem.maximize, plain_name(problem.metric)),
        "importance": [Bar(names[name], "model", f"{share:.0%}", 100 * share / top, None, None) for name, share in weights.items()],
        "method": method,
        "columns": columns,
        "rows": rows,
        "best_number": str(ranked[0]) if ranked else "",
        "number_text": number_text,
    }


def _markdown(page: dict[str, Any]) -> str:
    lines = [f"# {page['name']}", "", page["summary"], ""]
    if page["best_values"]:
        lines += [f"{t('best')}: " + ", ".join(f"{name} {value}" for name, value in page["best_values"]), ""]
    lines += [*(f"- {line}" for line in page["lineage"]), ""] if page["lineage"] else []
    if page["importance"]:
        lines += [f"{t('importance ({method})', method=page['method'])}: " + ", ".join(f"{bar.label} {bar.text}" for bar in page["importance"]), ""]
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (page["columns"], ["---"] * len(page["columns"]), *page["rows"])]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in cells)]) + "\n"
