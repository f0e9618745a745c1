"""Population-based training (Jaderberg et al., arXiv:1711.09846): values that change while models train.

The population trains side by side, one interval at a time. After each, the worst are dropped, and in the place of each stands a copy of one of the
best: a new trial whose folder holds a copy of that one's checkpoint, and whose values are those with a perturbation. It is then continued as any
stopped training is. Every decision follows from the recipe's seed, the interval and what the study holds, so a killed search repeats it.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luban.foundation.artifacts import write_bytes
from luban.foundation.console import say
from luban.pipeline.runner import stage_fingerprint
from luban.pipeline.spaces import Space, every
from luban.training.retention import saved
from luban.tuning.problem import Problem
from luban.tuning.study import Claim, Given, TrialState, alone, hold, take
from luban.tuning.trial import remove_heavy

if TYPE_CHECKING:
    from luban.tuning.tuner import Search

MEMBER, BORN, PARENT = "member", "born", "parent"  # of a trial: its place in the population, the interval it began with, whose copy it is


def train_population(search: Search) -> None:
    """Train all members to the end, replacing the worst after every interval."""
    size = search.problem.config.population.size
    interval = 0
    while not search.stopping and not search.fatal:
        members = [_member(search, place, interval) for place in range(size)]
        states = _interval(search, members, interval + 1)
        if search.stopping or search.fatal:
            break
        if not any(state == "paused" for state in states.values()):
            return
        interval += 1
        _replace(search, interval)
    for claim in search.claims.values():
        claim.drop()


def _member(search: Search, place: int, interval: int) -> Any:
    """The trial that holds a place now, made if none does."""
    found = [trial for trial in search.study.get_trials(deepcopy=False) if trial.user_attrs.get(MEMBER) == place]
    if found:
        return found[-1]
    with alone(search.problem):
        search.study.sampler = Given({}, search.seed * 1_000_003 + place)
        _ask(search, place, 0, None)
    return _member(search, place, interval)


def _ask(search: Search, place: int, born: int, parent: int | None) -> None:
    claim = take(search.problem, search.study.ask())
    for name, value in ((MEMBER, place), (BORN, born), (PARENT, parent)):
        if value is not None:
            claim.trial.set_user_attr(name, value)
    search.claims[claim.number] = claim


def _interval(search: Search, members: list[Any], until: int) -> dict[int, str]:
    """Bring every member to the end of an interval; those that are there already, of a search that was stopped, wait."""
    states = {trial.number: "paused" for trial in members if trial.state == TrialState.RUNNING and _reached(trial) >= until}
    todo = [trial for trial in members if trial.state == TrialState.RUNNING and trial.number not in states]
    while (todo or search.workers.busy) and not search.fatal:
        while todo and len(search.workers.busy) < search.workers.jobs and not search.stopping:
            claim = _claim(search, todo.pop(0))
            if claim is not None:
                search.begin(claim, until)
        if not search.workers.busy:
            break
        outcome = search.next_outcome()
        states[outcome.number] = outcome.state
    return states


def _claim(search: Search, trial: Any) -> Claim | None:
    return search.claims.get(trial.number) or hold(search.problem, search.study, trial)


def _replace(search: Search, interval: int) -> None:
    """Drop the worst of an interval, each for a copy of one of the best with other values."""
    problem, config = search.problem, search.problem.config.population
    trials = search.study.get_trials(deepcopy=False)
    ran = [trial for trial in trials if interval in trial.intermediate_values]
    ranked = sorted(ran, key=lambda trial: (-trial.intermediate_values[interval] if problem.maximize else trial.intermediate_values[interval], trial.number))
    if len(ranked) < 2:
        return
    count = min(max(1, int(config.size * config.share)), len(ranked) // 2)
    failed = [trial for trial in trials if trial.state == TrialState.FAIL and MEMBER in trial.user_attrs and _reached(trial) < interval]
    draw = random.Random(search.seed * 1_000_003 + interval)
    for loser in [*failed, *reversed(ranked[len(ranked) - count :])]:
        winner, seed = ranked[draw.randrange(count)], draw.getrandbits(32)
        if not any(trial.user_attrs.get(MEMBER) == loser.user_attrs[MEMBER] and trial.number > loser.number for trial in trials):
            _copy(search, loser, winner, interval, seed)
        if loser.state == TrialState.RUNNING:
            search.study.tell(loser.number, state=TrialState.PRUNED)
            if claim := search.claims.pop(loser.number, None):
                claim.drop()
            remove_heavy(problem.trial_folder(loser.number))


def _reached(trial: Any) -> int:
    """Intervals that a trial, or the one that it is a copy of, has trained for."""
    return max([trial.user_attrs.get(BORN, 0), *trial.intermediate_values])


def _copy(search: Search, loser: Any, winner: Any, interval: int, seed: int) -> None:
    problem = search.problem
    values = perturbed(list(every(problem.spaces)), winner.params, problem.config.population.perturbation, random.Random(seed))
    with alone(problem):
        search.study.sampler = Given(values, seed)
        number = len(search.study.get_trials(deepcopy=False))
        copy_checkpoint(problem, winner, values, problem.trial_folder(number))
        _ask(search, loser.user_attrs[MEMBER], interval, winner.number)
    names = ", ".join(f"{name.rpartition('.')[2]} {winner.params[name]:.3g} → {value:.3g}" if isinstance(value, float) else f"{name.rpartition('.')[2]} {winner.params[name]} → {value}" for name, value in values.items())
    say("  trial {loser} gives way to a copy of trial {winner}: trial {number}, {names}", loser=loser.number, winner=winner.number, number=number, names=names)


def copy_checkpoint(problem: Problem, winner: Any, values: dict[str, Any], folder: Path) -> None:
    """The winner's unfinished stage with its newest checkpoint, marked as that of the new values: the runner takes it for a stopped run."""
    source = problem.trial_folder(winner.number) / f"{problem.stage}.partial"
    target = folder / source.name
    shutil.rmtree(target, ignore_errors=True)
    training = target / "training"
    (training / "checkpoints").mkdir(parents=True)
    for file in (source / "training").iterdir():
        if file.name in ("choices.json", "log.jsonl", "consumed.jsonl") or file.match("best-*.safetensors"):
            shutil.copyfile(file, training / file.name)
    newest = saved(source / "training")[-1]
    shutil.copytree(newest, training / "checkpoints" / newest.name)
    recipe = problem.trial_recipe(values, folder)
    marks: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        marks[name] = stage_fingerprint(recipe, stage, marks)
    write_bytes(target / ".stage", marks[problem.stage].encode("ascii"))


def perturbed(spaces: Sequence[Space], values: dict[str, Any], factor: float, draw: random.Random) -> dict[str, Any]:
    """Numbers times or divided by ``factor``, inside their range; of a choice the option before or after."""
    found: dict[str, Any] = {}
    for space in spaces:
        value = values[space.name]
        up = draw.random() < 0.5
        if space.is_choice:
            place = space.labels.index(value) + (1 if up else -1)
            found[space.name] = space.labels[min(len(space.labels) - 1, max(0, place))]
            continue
        moved = value * factor if up else value / factor
        if space.step is not None or space.whole:
            step = space.step or 1
            moved = space.low + round((moved - space.low) / step) * step
            moved = moved if moved != value else value + (step if up else -step)
        found[space.name] = min(space.high, max(space.low, moved))
    return found

