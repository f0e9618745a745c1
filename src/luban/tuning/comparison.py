"""`luban compare`: one training by several methods, or from several bases, under one budget, and what each costs.

Each is a run of its own process, so that its peak of memory is its own; stages before it run once and are shared.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luban.adapters.config import NAMES
from luban.foundation.artifacts import write_json
from luban.foundation.config import Source, build
from luban.foundation.console import heading, say
from luban.foundation.errors import ConfigError, Interrupted, LubanError, nearest
from luban.foundation.messages import language, set_language
from luban.pipeline.config import TuneConfig
from luban.pipeline.recipe import Recipe, make_recipe, read_plain
from luban.pipeline.runner import run_recipe
from luban.tuning.metric import find_metric, mean_of, measure, plain_name
from luban.tuning.problem import needed_for, only, refuse_ranks

FOLDER = "compare"
FULL = "full"


@dataclass(frozen=True)
class Candidate:
    """One way to train: its name, and the dotted fields of the stage that it sets."""

    name: str
    fields: dict[str, Any]


@dataclass
class Found:
    """What came of a candidate: the figure over the seeds, and what it took."""

    name: str
    value: float = 0.0
    deviation: float | None = None
    values: list[float] = field(default_factory=list)
    before: float | None = None
    learning_parameters: int = 0
    parameters: int = 0
    peak_memory_bytes: int = 0
    training_seconds: float = 0.0
    saved_bytes: int = 0
    learning_rate: float | None = None
    general: list[float] = field(default_factory=list)  # bits a byte (or loss) of the base's own text, before and after
    error: str = ""


@dataclass
class Order:
    """What a process is told to run; plain data."""

    plain: dict[str, Any]
    folder: str
    file: str
    name: str
    out: str
    stage: str
    moved: dict[str, str]
    seed_offset: int
    language: str


def compare(recipe: Path, overrides: list[str], methods: list[str], bases: list[str], seeds: int = 1, stage: str | None = None, out: Path | None = None) -> Path:
    """Train every candidate and write compare/report.html, report.md and results.json in the run's folder; the folder comes back.

    A candidate that is there already is not trained again; one that fails is named, and the others go on. Raises ConfigError for a stage or a method that is not there.
    """
    refuse_ranks("compare")
    plain, folder, default_name, source = read_plain(recipe, overrides)
    made = make_recipe(plain, folder, default_name, source, out)
    _check_methods(methods)
    chosen = _stage(made, stage)
    candidates = _candidates(plain["stages"][chosen], made, methods, bases)
    metric, maximize = find_metric(build(TuneConfig, {}), made.stages[chosen], source)
    earlier = [name for name in made.stages if name != chosen and name in needed_for(made, chosen)]
    heading("{name}: {count} ways to train {stage}", name=made.name, count=len(candidates), stage=chosen)
    if earlier:
        run_recipe(only(made, earlier, {}, made.out))
    moved = {name: str((made.out / name).resolve()) for name in made.stages if name != chosen}
    found = []
    for candidate in candidates:
        changed = _with(plain, chosen, candidate.fields)
        orders = [Order(changed, str(folder), source.file, default_name, str(made.out / FOLDER / f"{candidate.name}-{number + 1}"), chosen, moved, number, language()) for number in range(seeds)]
        found.append(_result(candidate.name, orders, metric, maximize))
        _write(made, chosen, metric, maximize, found)
    from luban.tuning.comparison_report import write_report

    write_report(made.out / FOLDER, made.name, chosen, plain_name(metric), maximize, found)
    return made.out / FOLDER


def _result(name: str, orders: list[Order], metric: str, maximize: bool) -> Found:
    """Run a candidate under each seed, one process after another."""
    manifests = []
    for order in orders:
        say("{name}, seed {seed} of {seeds} …", name=name, seed=order.seed_offset + 1, seeds=len(orders))
        try:
            manifests.append(run_order(order))
        except LubanError as error:
            if isinstance(error, Interrupted):
                raise
            say("  {name} failed: {error}", name=name, error=str(error).splitlines()[0])
            return Found(name, error=str(error))
    figures = [manifest["metrics"] for manifest in manifests]
    values = mean_of([measure(own, metric, maximize, orders[0].stage) for own in figures])
    key = plain_name(metric)
    general = figures[0].get("general") or {}
    unit = "bits_per_byte" if "bits_per_byte" in general.get("after", {}) else "loss"
    result = Found(
        name, values.value, values.deviation, list(values.values or (values.value,)), before=(figures[0].get("before") or {}).get(key),
        learning_parameters=figures[0]["learning_parameters"], parameters=figures[0]["parameters"],
        peak_memory_bytes=max(manifest["cost"]["peak_memory_bytes"] for manifest in manifests), training_seconds=sum(own["training_seconds"] for own in figures) / len(figures),
        saved_bytes=sum(Path(orders[0].out, orders[0].stage, file).stat().st_size for file in manifests[0]["files"] if file.endswith(".safetensors") and "/" not in file),
        learning_rate=manifests[0]["resolved"].get("optimizer", {}).get("learning_rate") or manifests[0]["config"].get("optimizer", {}).get("learning_rate"),
        general=[general["before"][unit], general["after"][unit]] if "before" in general and "after" in general else [],
    )  # fmt: skip
    say("  {name}: {metric} {value:.4f}, {parameters} parameters learn, {memory} MB, {seconds:.0f} s", name=name, metric=key, value=result.value, parameters=result.learning_parameters, memory=round(result.peak_memory_bytes / 1e6), seconds=result.training_seconds)
    return result


def run_order(order: Order) -> dict[str, Any]:
    """The manifest of an order's stage, run in a process of its own, which lives no longer than this one. Ctrl-C waits until it has saved. LubanError with its last words where it failed."""
    started = subprocess.Popen([sys.executable, "-m", "luban.tuning.comparison"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True)
    try:
        with contextlib.suppress(BrokenPipeError):
            started.stdin.write(json.dumps(asdict(order), ensure_ascii=False, default=str) + "\n")
            started.stdin.flush()  # and left open: its end is the end of this process
        words = started.stderr.read()
        started.wait()
    except KeyboardInterrupt:  # it is in a session of its own, so that it hears of this once, from here; a second Ctrl-C ends both
        started.send_signal(signal.SIGINT)
        try:
            started.stderr.read()
            started.wait()
        except KeyboardInterrupt:
            started.kill()
        raise Interrupted("stopped", "", "run the same command again: it continues") from None
    if started.returncode == 130:
        raise Interrupted("stopped", "", "run the same command again: it continues")
    if started.returncode:
        raise LubanError("{words}", words=(words.strip().splitlines() or ["?"])[-1])
    return json.loads(Path(order.out, order.stage, "manifest.json").read_bytes())


def main() -> int:
    """Run one order from standard input, and no longer than whoever gave it."""
    order = Order(**json.loads(sys.stdin.readline()))
    threading.Thread(target=_end_with_the_orders, daemon=True).start()
    set_language(order.language)
    recipe = make_recipe(order.plain, Path(order.folder), order.name, Source(order.file))
    one = only(recipe, [order.stage], order.moved, Path(order.out))
    one.seed += order.seed_offset
    try:
        run_recipe(one)
    except LubanError as error:
        print(str(error).replace("\n", "; "), file=sys.stderr)
        return 130 if isinstance(error, Interrupted) else 1
    return 0


def _end_with_the_orders() -> None:
    sys.stdin.read()
    os._exit(0)  # who gave them is gone: what ran is continued from its checkpoint


def _stage(recipe: Recipe, name: str | None) -> str:
    """The train stage that is compared: the one that is named, or the last that starts from a model."""
    known = [stage.name for stage in recipe.stages.values() if stage.kind.name == "train" and stage.config.model]
    if name is None and known:
        return known[-1]
    if not known:
        raise ConfigError("no train stage starts from a model", "methods are compared on one base, bases by one method", "name a base in a train stage: model: FOLDER")
    if name not in known:
        raise ConfigError("there is no train stage called {name} that starts from a model", "", "stages that do: {known}", name=name, known=", ".join(known))
    return name


def _check_methods(methods: list[str]) -> None:
    for method in methods:
        if method != FULL and method not in NAMES:
            guess = nearest(method, [FULL, *NAMES])
            raise ConfigError("--methods: there is no method {method!r}", "", "did you mean {guess}?" if guess else "known are: {known}", method=method, guess=guess, known=", ".join([FULL, *NAMES]))


def _candidates(stage: dict[str, Any], recipe: Recipe, methods: list[str], bases: list[str]) -> list[Candidate]:
    """Every method on every base; what is not named stays as the recipe has it. Settings of an adapter in the recipe hold for its own method."""
    own = stage.get("adapter")
    own = {"method": own} if isinstance(own, str) else own or {}
    by_method = [(method, {"adapter": "none" if method == FULL else own if own.get("method") == method else {"method": method}}) for method in methods] or [("", {})]
    by_base = [(_short(base), {"model": _place(base, recipe)}) for base in bases] or [("", {})]
    made = [Candidate("-".join(part for part in (first, second) if part), {**one, **other}) for second, other in by_base for first, one in by_method]
    if len(made) < 2:
        raise ConfigError("there is nothing to compare", "one method from one base is a run", "name several: --methods full,lora or --bases a,b")
    names = [candidate.name for candidate in made]
    if len(set(names)) < len(names):
        raise ConfigError("two candidates are both called {name}", "", "name each once", name=next(name for name in names if names.count(name) > 1))
    return made


def _short(base: str) -> str:
    return base.rstrip("/").split("/")[-1]


def _place(base: str, recipe: Recipe) -> str:
    """A base as the recipe would write it: a stage, a package, or a path seen from where the command was given."""
    return base if base in recipe.stages or base.startswith("package:") else str(Path(base).resolve())


def _with(plain: dict[str, Any], stage: str, fields: dict[str, Any]) -> dict[str, Any]:
    return {**plain, "stages": {**plain["stages"], stage: {**plain["stages"][stage], **fields}}}


def _write(recipe: Recipe, stage: str, metric: str, maximize: bool, found: list[Found]) -> None:
    write_json(recipe.out / FOLDER / "results.json", {"name": recipe.name, "stage": stage, "metric": plain_name(metric), "greater_is_better": maximize, "candidates": [asdict(one) for one in found]})


if __name__ == "__main__":
    sys.exit(main())
