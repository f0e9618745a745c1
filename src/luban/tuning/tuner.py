"""`luban tune`: shared stages once, then trials until there are enough, each told to a worker and settled when it ends; then the result."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.foundation.console import heading, say, seconds_text, warn
from luban.foundation.environment import let_waiting_threads_sleep
from luban.foundation.errors import Interrupted, LubanError
from luban.foundation.messages import language, t
from luban.pipeline.recipe import Recipe
from luban.pipeline.runner import plan, run_recipe
from luban.pipeline.spaces import ends, every
from luban.tuning import result
from luban.tuning.metric import plain_name
from luban.tuning.population import train_population
from luban.tuning.problem import Problem, refuse_ranks
from luban.tuning.report import importances, print_tables, short_names, value_text, write_report
from luban.tuning.study import Claim, TrialState, alone, budget, complete, next_claim, open_study, settled
from luban.tuning.trial import Order, Outcome, remove_heavy
from luban.tuning.workers import Workers, make_workers

HOPELESS = 3  # trials that fail, with none that succeeded, end the search


@dataclass(frozen=True)
class Best:
    """What a search found. ``recipe`` is best.yaml, ``model`` the best trial's artifact, ``report`` a page."""

    number: int
    value: float
    values: dict[str, Any]
    metric: str
    recipe: Path
    model: Path
    report: Path


@dataclass
class Search:
    """One search in this process."""

    problem: Problem
    study: Any
    seed: int
    workers: Workers
    command: str
    begun: float = field(default_factory=time.monotonic)
    claims: dict[int, Claim] = field(default_factory=dict)
    stopping: str = ""
    fatal: str = ""

    @property
    def out_of_time(self) -> bool:
        minutes = self.problem.config.minutes
        return minutes is not None and time.monotonic() - self.begun > 60 * minutes

    def order(self, claim: Claim, until: int | None = None) -> Order:
        jobs = self.problem.config.jobs
        threads = max(1, (os.cpu_count() or 1) // jobs) if jobs > 1 and self.problem.config.engine == "processes" else None
        return Order(self.problem.to_json(), claim.number, claim.drawn, until, threads, language())

    def begin(self, claim: Claim, until: int | None = None) -> None:
        self.claims[claim.number] = claim
        self.workers.start(self.order(claim, until))

    def next_outcome(self) -> Outcome:
        """The next trial to end or pause. An interrupted one stays running in the study, and asks the others to stop."""
        while True:
            try:
                outcome = self.workers.wait()
                break
            except KeyboardInterrupt:
                if self.stopping:
                    raise
                self._stop("SIGINT")
        if outcome.state == "interrupted":
            self._stop(outcome.error or "SIGINT")
        elif outcome.state == "paused":
            note_cost(self.claims[outcome.number].trial, outcome)
            return outcome
        else:
            settle(self, outcome)
        self.claims.pop(outcome.number).drop()
        return outcome

    def _stop(self, reason: str) -> None:
        if not self.stopping:
            self.stopping = reason
            if self.workers.busy:
                say("stopping: {count} trials finish their step and save", count=len(self.workers.busy))
            self.workers.stop()


def tune(problem: Problem, command: str = "luban tune RECIPE") -> Best:
    """Search, or go on with a search that was stopped. Raises Interrupted when it was asked to stop, LubanError when nothing succeeded."""
    refuse_ranks("tune")
    let_waiting_threads_sleep()
    result.set_aside_other(problem)
    with alone(problem):  # two tuners that begin together would both make the tables
        study = open_study(problem)
    base = next(ends(problem.spaces))[1]
    introduce(problem, study)
    with _signals():
        try:
            make_shared(problem.shared_recipe(base))
            with make_workers(problem.config.engine, problem.config.jobs) as workers:
                search = Search(problem, study, problem.recipe(base).seed, workers, command)
                train_population(search) if problem.config.sampler == "population" else _trials(search)
        except (KeyboardInterrupt, Interrupted) as error:
            raise _interrupted(problem, study, command) from error
    if search.fatal:
        raise LubanError("the search ends here: {error}", error=search.fatal)
    if search.stopping:
        raise _interrupted(problem, study, command)
    return finish(problem, study)


def make_shared(recipe: Recipe) -> None:
    """Run what all trials share, where it is not there as it should be."""
    if any(step.status != "fresh" for step in plan(recipe)):
        run_recipe(recipe, wait=True)


def _trials(search: Search) -> None:
    """Keep the workers busy while there are trials to begin or to go on with."""
    while not search.stopping and not search.fatal:
        while len(search.workers.busy) < search.workers.jobs and not search.stopping:
            claim = next_claim(search.problem, search.study, search.seed, not search.out_of_time)
            if claim is None:
                break
            if claim.continued:
                say("trial {number} is taken up where it was left", number=claim.number)
            search.begin(claim)
        if not search.workers.busy:
            return
        search.next_outcome()
    while search.workers.busy:
        search.next_outcome()


def settle(search: Search, outcome: Outcome) -> None:
    """Write down how a trial ended, say it in a line, and let go of what is not the best's."""
    problem, study = search.problem, search.study
    trial = search.claims[outcome.number].trial
    note_cost(trial, outcome)
    for name, value in (("deviation", outcome.deviation), ("each", outcome.values), ("error", outcome.error)):
        if value not in (None, "", []):
            trial.set_user_attr(name, value)
    state = {"complete": TrialState.COMPLETE, "pruned": TrialState.PRUNED}.get(outcome.state, TrialState.FAIL)
    study.tell(outcome.number, outcome.value, state=state, skip_if_finished=True)
    if state != TrialState.COMPLETE:
        remove_heavy(problem.trial_folder(outcome.number))
    ranked = complete(study, problem.maximize)
    result.keep_best(problem, [trial.number for trial in ranked], [trial.number for trial in ranked])
    say_trial(problem, study, outcome)
    write_report(problem, study)
    failed = [trial for trial in settled(study) if trial.state == TrialState.FAIL]
    if outcome.fatal or (not ranked and len(failed) >= HOPELESS and len(failed) == len(settled(study))):
        search.fatal = outcome.error if outcome.fatal else t("the first {count} trials failed: {error}", count=len(failed), error=outcome.error)


def note_cost(trial: Any, outcome: Outcome) -> None:
    """What a trial took, over all the times it was taken up."""
    trial.set_user_attr("seconds", round(outcome.seconds + trial.user_attrs.get("seconds", 0.0), 2))
    if outcome.steps:
        trial.set_user_attr("steps", outcome.steps)


def say_trial(problem: Problem, study: Any, outcome: Outcome) -> None:
    """One line a trial."""
    ranked, trials = complete(study, problem.maximize), study.get_trials(deepcopy=False)
    names = short_names(problem)
    drawn = ", ".join(f"{names[name]} {value_text(value)}" for name, value in trials[outcome.number].params.items())
    spread = f" ± {outcome.deviation:.3g}" if outcome.deviation is not None else ""
    said = f"{plain_name(problem.metric)} {outcome.value:.4g}{spread}" if outcome.value is not None else t(outcome.state) + (f": {outcome.error.splitlines()[0]}" if outcome.error else "")
    best = t("best {value:.4g} of trial {number}", value=ranked[0].value, number=ranked[0].number) if ranked else ""
    mark = {"complete": "✓", "pruned": "–"}.get(outcome.state, "✗")
    say(
        "{mark} trial {number} of {total} | {said} | {drawn} | {time} | {best}",
        mark=mark, number=outcome.number, total=max(budget(problem), len(trials)), said=said, drawn=drawn, time=seconds_text(outcome.seconds), best=best,
    )  # fmt: skip


def introduce(problem: Problem, study: Any) -> None:
    heading("{name}: {direction} {metric} of {stage}", name=problem.name, direction=t("maximize" if problem.maximize else "minimize"), metric=plain_name(problem.metric), stage=problem.stage)
    done = len(settled(study))
    say("{spaces} spaces, {trials} trials by {sampler}, pruned by {pruner}; {done} are done; everything is in {folder}", spaces=len(list(every(problem.spaces))), trials=budget(problem), sampler=problem.config.sampler, pruner=problem.config.pruner, done=done, folder=problem.tune_folder)
    if problem.shared:
        say("shared by all trials: {shared}; made for each: {stages}", shared=", ".join(problem.shared), stages=", ".join(problem.stages))
    if problem.config.sampler == "cma_es" and any(space.is_choice for space in every(problem.spaces)):
        warn("cma_es moves numbers only; choices are drawn at random")
    if problem.config.pruner != "none" and problem.recipe(next(ends(problem.spaces))[1]).stages[problem.stage].kind.name != "train":
        warn("{stage} has no validations on the way: no trial can be pruned", stage=problem.stage)


def finish(problem: Problem, study: Any) -> Best:
    """Tables, report, best.yaml and the best model in its place."""
    ranked = complete(study, problem.maximize)
    if not ranked:
        raise LubanError("no trial is complete, so there is no best one", "{failed} failed, {pruned} were pruned", "look at {folder}, or allow more trials", failed=_count(study, TrialState.FAIL), pruned=_count(study, TrialState.PRUNED), folder=problem.tune_folder / "trials")
    best = ranked[0]
    recipe = result.write_best(problem, best.number, best.value, best.params)
    model = problem.trial_folder(best.number) / problem.stage
    if problem.config.sampler != "population":  # whose values changed on the way: no run of best.yaml would make the same
        result.promote(problem, best.number)
        model = problem.run_folder / problem.stage
    importance = importances(study)
    report = write_report(problem, study, importance)
    print_tables(problem, study, importance)
    found = Best(best.number, best.value, dict(best.params), plain_name(problem.metric), recipe, model, report)
    say("✓ best: {metric} {value:.4g} of trial {number}; model: {model}; report: {report}", metric=found.metric, value=best.value, number=best.number, model=model, report=report)
    say("  luban run {recipe}", recipe=recipe)
    return found


def _count(study: Any, state: TrialState) -> int:
    return sum(trial.state == state for trial in study.get_trials(deepcopy=False))


def _interrupted(problem: Problem, study: Any, command: str) -> Interrupted:
    with contextlib.suppress(LubanError):
        write_report(problem, study)
    left = _count(study, TrialState.RUNNING)
    return Interrupted("stopped: {done} trials are done, {left} are saved where they were", "", "{command} continues", done=len(settled(study)), left=left, command=command)


@contextlib.contextmanager
def _signals() -> Iterator[None]:
    """SIGTERM is heard as Ctrl-C is."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:  # not the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)

