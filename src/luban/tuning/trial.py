"""One trial: its recipe run in its own folder, watched at its validations, and what came of it.

A trial that was killed is run again with the same number and values: the runner finds its unfinished stage and the training continues
from its newest checkpoint. So nothing here knows whether it begins or goes on.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
import time
import traceback
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luban.foundation.errors import ConfigError, Interrupted, LubanError
from luban.foundation.messages import t
from luban.pipeline.runner import run_recipe
from luban.training.checkpoints import save
from luban.training.hooks import Validator
from luban.training.run import Run
from luban.tuning.metric import current, mean_of, measure
from luban.tuning.problem import Problem

OUTPUT = "output.txt"  # in a trial's folder: everything it printed


@dataclass
class Order:
    """What a worker is told to run; plain data. ``until`` pauses a population's training after so many validations."""

    problem: dict[str, Any]
    number: int
    drawn: dict[str, Any]
    until: int | None = None
    threads: int | None = None
    language: str = "en"

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False, default=str)


@dataclass
class Outcome:
    """How a trial ended: complete, pruned, paused, failed or interrupted. ``fatal``: no other trial would do better."""

    number: int
    state: str
    value: float | None = None
    deviation: float | None = None
    values: list[float] = field(default_factory=list)
    steps: int = 0
    seconds: float = 0.0
    error: str = ""
    fatal: bool = False


class Pruned(Exception):
    """Raised after a validation to end a training that has fallen behind."""


class Paused(Exception):
    """Raised after a checkpoint to leave a training that is continued later."""


def run_order(order: Order) -> Outcome:
    """Run a trial, or go on with it, and say what came of it. Never raises for what a trial did."""
    problem = Problem(**order.problem)
    folder = problem.trial_folder(order.number)
    folder.mkdir(parents=True, exist_ok=True)
    watcher = Watcher(problem, order)
    begun = time.monotonic()
    with _told_to(folder / OUTPUT):
        outcome = _run(problem, order, folder, watcher)
    outcome.seconds, outcome.steps = time.monotonic() - begun, watcher.step
    return outcome


def _run(problem: Problem, order: Order, folder: Path, watcher: Watcher) -> Outcome:
    try:
        found = mean_of([_one_seed(problem, order, folder, offset, watcher) for offset in range(problem.config.seeds)])
        state = "complete" if math.isfinite(found.value) else "failed"
        return Outcome(order.number, state, found.value if state == "complete" else None, found.deviation, list(found.values), error="" if state == "complete" else t("the metric is not a finite number"))
    except Pruned:
        return Outcome(order.number, "pruned")
    except Paused:
        return Outcome(order.number, "paused", watcher.value)
    except (Interrupted, KeyboardInterrupt):
        return Outcome(order.number, "interrupted")
    except _Unusable as error:
        return Outcome(order.number, "failed", error=str(error), fatal=True)
    except LubanError as error:
        print(error, flush=True)
        return Outcome(order.number, "failed", error=str(error).splitlines()[0])
    except Exception as error:  # a trial may run out of memory, or meet a fault of some library at its own values: the search goes on
        traceback.print_exc()
        return Outcome(order.number, "failed", error=f"{type(error).__name__}: {error}".splitlines()[0][:300])


class _Unusable(ConfigError):
    """The metric is not among a stage's figures, whatever the values."""


def _one_seed(problem: Problem, order: Order, folder: Path, offset: int, watcher: Watcher) -> Any:
    """The value with one seed; a further seed's artifacts are read and removed."""
    out = folder if not offset else folder / f"seed-{offset + 1}"
    kept = out / "value.json"
    if offset and kept.exists():
        return measure(json.loads(kept.read_bytes()), problem.metric, problem.maximize, problem.stage)
    recipe = problem.trial_recipe(order.drawn, out, offset)
    _own_threads(recipe, problem, order)
    artifacts = run_recipe(recipe, wait=True, watch=None if offset else watcher)  # a killed tuner's worker may need a moment to end
    metrics = next(item for item in reversed(artifacts) if item.path.name == problem.stage).metrics
    try:
        found = measure(metrics, problem.metric, problem.maximize, problem.stage)
    except ConfigError as error:
        raise _Unusable(error.what, error.why, error.fix, **error.values) from None
    if offset:
        shutil.rmtree(out)
        out.mkdir()
        kept.write_text(json.dumps(metrics, default=str), encoding="utf-8")
    return found


def _own_threads(recipe: Any, problem: Problem, order: Order) -> None:
    """How the work is done, which is no part of what is made: threads shared between jobs, validations and checkpoints at a population's pauses."""
    for stage in recipe.stages.values():
        if stage.kind.name != "train":
            continue
        if order.threads and stage.config.threads == "auto":
            stage.config = stage.config.updated(threads=order.threads)
        if order.until is not None and stage.name == problem.stage and (interval := problem.config.population.interval) != "auto":
            stage.config = stage.config.updated(validation={**stage.config.validation.explicit(), "every": interval})


class Watcher:
    """Looks at the judged training after each step: tells the study its metric at every validation, and ends it there when the pruner says so."""

    def __init__(self, problem: Problem, order: Order):
        self.problem, self.order = problem, order
        self.step, self.folds = 0, 0
        self.value: float | None = None
        self.trial: Any = None
        self.reported: set[int] = set()

    def __call__(self, run: Run) -> None:
        folder = run.folder.parent  # STAGE.partial, or training/folds/N in it
        in_fold = folder.parent.name == "folds"
        if (folder.parents[2] if in_fold else folder).name != f"{self.problem.stage}.partial":
            return
        if run.config.validation.folds:
            self.step += 1
            self._after_folds(folder.parent if in_fold else run.folder / "folds", run)
            return
        self.step = run.step
        validator = next(hook for hook in run.hooks if isinstance(hook, Validator))
        if not validator.batches or not run.every(validator.every):
            return
        index = -(-run.step // validator.every)
        value = current(run.history["after"], self.problem.metric, run.history["best_metric"])
        if value is not None:
            self._report(index, value, whole=run.finished)
        if self.order.until is not None and index >= self.order.until and not run.finished and not run.stop_reason:
            save(run)
            raise Paused

    def _after_folds(self, folder: Path, run: Run) -> None:
        """A fold that is done says more than its validations: the mean so far is what is compared."""
        done = sorted(folder.glob("*.json"))
        if len(done) > self.folds:
            self.folds = len(done)
            found = [current(json.loads(file.read_bytes()), self.problem.metric, run.history.get("best_metric", "")) for file in done]
            known = [value for value in found if value is not None]
            if known:
                self._report(len(done), sum(known) / len(known))

    def _report(self, index: int, value: float, whole: bool = False) -> None:
        """``index`` counts validations, or folds, from 1: rungs are of equal length whatever a trial's batch is. A ``whole`` training has cost all that it can: it is complete."""
        self.value = value
        if self.trial is None:
            from luban.tuning.study import open_trial  # only here: a trial of a stage that has no validations needs no study

            self.trial, self.reported = open_trial(self.problem, self.order.number)
        if index not in self.reported:
            self.reported.add(index)
            self.trial.report(value, index)
        if self.problem.config.pruner != "none" and not whole and index >= self.problem.config.grace and self.trial.should_prune():
            raise Pruned


@contextlib.contextmanager
def _told_to(file: Path) -> Iterator[None]:
    """What the trial prints goes to a file of its own, so that the terminal shows one line a trial."""
    with file.open("a", encoding="utf-8") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        yield


def remove_heavy(folder: Path) -> None:
    """Leave of a trial what it printed, its logs and manifests; weights, checkpoints and the rest go."""
    for stage in sorted(folder.iterdir()) if folder.exists() else []:
        if not stage.is_dir():
            continue
        name = stage.name.removesuffix(".partial")
        for source, kept in ((stage / "training" / "log.jsonl", f"{name}.log.jsonl"), (stage / "manifest.json", f"{name}.manifest.json")):
            if source.exists():
                shutil.copyfile(source, folder / kept)
        shutil.rmtree(stage, ignore_errors=True)
