"""The study behind a search: where its trials are written down, how values are drawn, and who may run which trial.

Optuna keeps the record and draws; what is Luban's own is that a trial outlives its process. Each running trial is held by a lock on its
folder, which the system drops however the process ends; a trial that is running and that nobody holds is taken up again.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import locked
from luban.foundation.errors import LockedError, LubanError, missing_extra
from luban.pipeline.spaces import Space, active
from luban.tuning.problem import Problem

try:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, Trial, TrialState
except ImportError:
    raise missing_extra("optuna", "tune") from None
from luban.tuning.cma_es import CmaEs

optuna.logging.set_verbosity(optuna.logging.ERROR)
GRID_POINTS = 5  # of a range without step
_GHOST_SECONDS = 60.0  # after which a trial that nobody ever held was left by a process killed in between
HELD_BY = "machine"


def open_study(problem: Problem) -> optuna.Study:
    """The study of this search, made if it is not there yet."""
    direction = "maximize" if problem.maximize else "minimize"
    with _storage_errors(problem):
        study = optuna.create_study(study_name=study_name(problem), storage=_storage(problem), sampler=optuna.samplers.RandomSampler(seed=0), direction=direction, load_if_exists=True)
        study.pruner = _pruner(problem, study)
        return study


def open_trial(problem: Problem, number: int) -> tuple[Trial, set[int]]:
    """A running trial, to report to, and what it has reported before."""
    study = open_study(problem)
    frozen = study.get_trials(deepcopy=False)[number]
    return Trial(study, frozen._trial_id), set(frozen.intermediate_values)


def study_name(problem: Problem) -> str:
    return f"{problem.name}-{problem.mark}"


def _storage(problem: Problem) -> optuna.storages.BaseStorage:
    if address := problem.config.storage:
        if "://" not in address:
            raise LubanError("tune.storage: {address!r} is not an address", "", "write postgresql://…, mysql://… or sqlite:///file.db; empty is a journal file in the run's folder", address=address)
        return optuna.storages.get_storage(address)
    problem.tune_folder.mkdir(parents=True, exist_ok=True)
    file = problem.tune_folder / "study.journal"
    lock = optuna.storages.journal.JournalFileOpenLock(str(file))
    _mend(file, lock)
    return optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file), lock))


def _mend(file: Path, lock: Any) -> None:
    """Take a half-written last line off: what a process left that was killed while it wrote. Optuna would refuse the whole file after the next line."""
    if not file.exists() or not file.stat().st_size or _last_byte(file) == b"\n":
        return
    lock.acquire()
    try:
        content = file.read_bytes()
        if not content.endswith(b"\n"):
            os.truncate(file, content.rfind(b"\n") + 1)
    finally:
        lock.release()


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1)


@contextlib.contextmanager
def _storage_errors(problem: Problem) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise LubanError("tune.storage: {address} cannot be opened: {error}", "its database driver is not installed", "pip install the driver, such as psycopg2-binary or pymysql", address=problem.config.storage, error=error) from None
    except optuna.exceptions.StorageInternalError as error:
        raise LubanError("tune.storage: {address} cannot be opened: {error}", "", "check the address, and that the database runs", address=problem.config.storage or problem.tune_folder, error=str(error).splitlines()[0]) from None


def _pruner(problem: Problem, study: optuna.Study) -> optuna.pruners.BasePruner:
    config = problem.config
    if config.pruner == "asha":  # Li et al., arXiv:1810.05934
        return optuna.pruners.SuccessiveHalvingPruner(min_resource=config.grace, reduction_factor=config.reduction)
    if config.pruner == "hyperband":  # Li et al., arXiv:1603.06560
        # The first complete trial tells how many validations there are, until then nothing is pruned. Optuna's own count takes steps to begin at 0.
        longest = next((trial.last_step for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)) if trial.last_step), 0)
        if longest >= config.grace:
            return optuna.pruners.HyperbandPruner(min_resource=config.grace, max_resource=longest, reduction_factor=config.reduction)
    if config.pruner == "median":  # a trial is compared from its `grace`-th validation on, once two others are complete
        return optuna.pruners.MedianPruner(n_startup_trials=2, n_warmup_steps=config.grace - 1)
    return optuna.pruners.NopPruner()


# ------------------------------------------------------------------------------------------------------- drawing


class Given(BaseSampler):
    """Draws what it is given by name; what is not in it, at random."""

    def __init__(self, values: Mapping[str, Any], seed: int):
        self.values, self.random = values, optuna.samplers.RandomSampler(seed=seed)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return {}

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]) -> dict[str, Any]:
        return {}

    def sample_independent(self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution) -> Any:
        if param_name in self.values:
            return self.values[param_name]
        return self.random.sample_independent(study, trial, param_name, param_distribution)


def sampler_for(problem: Problem, number: int, seed: int) -> BaseSampler:
    """A sampler for one trial. Its randomness follows from the recipe's seed and the trial's number, so that a search that was stopped draws what it would have drawn."""
    config, seed = problem.config, (seed * 1_000_003 + number) % 2**31
    startup = min(10, max(4, config.trials // 4)) if config.startup == "auto" else config.startup
    if config.sampler == "tpe":
        return optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup, multivariate=True)
    if config.sampler == "cma_es":
        return CmaEs(seed, max(1, startup))
    if config.sampler == "grid":
        return Given(grid(problem.spaces)[number], seed)
    return optuna.samplers.RandomSampler(seed=seed)


def grid(spaces: Sequence[Space]) -> list[dict[str, Any]]:
    """Every combination; an option's own spaces are crossed only where it is chosen."""
    return [dict(itertools.chain.from_iterable(cell)) for cell in itertools.product(*(_cells(space) for space in spaces))]


def _cells(space: Space) -> list[list[tuple[str, Any]]]:
    if not space.is_choice:
        return [[(space.name, value)] for value in space.grid(GRID_POINTS)]
    return [[(space.name, label), *inner.items()] for label, spaces in zip(space.labels, space.inner, strict=True) for inner in grid(spaces)]


def budget(problem: Problem) -> int:
    """How many trials there will be at the most."""
    return min(problem.config.trials, len(grid(problem.spaces))) if problem.config.sampler == "grid" else problem.config.trials


def draw(problem: Problem, trial: Trial) -> dict[str, Any]:
    """Every active space's value; those a trial already has are taken as they are."""
    drawn: dict[str, Any] = {}
    while (space := next((space for space in active(problem.spaces, drawn) if space.name not in drawn), None)) is not None:
        drawn[space.name] = _suggest(trial, space)
    return drawn


def _suggest(trial: Trial, space: Space) -> Any:
    if space.is_choice:
        return trial.suggest_categorical(space.name, space.labels)
    if space.whole:
        return trial.suggest_int(space.name, int(space.low), int(space.high), log=space.log, step=int(space.step or 1))
    return trial.suggest_float(space.name, space.low, space.high, log=space.log, step=space.step)


# ------------------------------------------------------------------------------------------------------ claiming


class Claim:
    """A trial that this process may run until :meth:`drop`."""

    def __init__(self, trial: Trial, number: int, drawn: dict[str, Any], stack: contextlib.ExitStack, continued: bool):
        self.trial, self.number, self.drawn, self.continued = trial, number, drawn, continued
        self._stack = stack

    def drop(self) -> None:
        self._stack.close()


@contextlib.contextmanager
def alone(problem: Problem) -> Iterator[None]:
    """While it lasts, no other tuner in this folder takes or makes a trial."""
    with locked(problem.tune_folder, True, "claims"):
        yield


def next_claim(problem: Problem, study: optuna.Study, seed: int, fresh: bool) -> Claim | None:
    """A trial that its process left, or, if ``fresh``, a new one; None when there is none to be had."""
    with alone(problem):
        trials = study.get_trials(deepcopy=False)
        for frozen in trials:
            if frozen.state == TrialState.RUNNING and (claim := hold(problem, study, frozen)):
                return claim
        if not fresh or len(trials) >= budget(problem):
            return None
        study.sampler = sampler_for(problem, len(trials), seed)
        trial = study.ask()
        return take(problem, trial)


def hold(problem: Problem, study: optuna.Study, frozen: FrozenTrial) -> Claim | None:
    """A running trial that nobody holds, on this machine or in a folder that is shared; None where it is held, or out of reach."""
    machine = frozen.user_attrs.get(HELD_BY)
    started = frozen.datetime_start.timestamp() if frozen.datetime_start else 0.0
    if machine is None and time.time() - started < _GHOST_SECONDS:
        return None
    if machine not in (None, socket.gethostname()) and not problem.trial_folder(frozen.number).exists():
        return None
    study.sampler = Given(frozen.params, frozen.number)
    return take(problem, Trial(study, frozen._trial_id), continued=True)


def take(problem: Problem, trial: Trial, continued: bool = False) -> Claim | None:
    stack = contextlib.ExitStack()
    try:
        stack.enter_context(locked(problem.trial_folder(trial.number), False, "claim"))
    except LockedError:
        return None
    drawn = draw(problem, trial)
    trial.set_user_attr(HELD_BY, socket.gethostname())
    return Claim(trial, trial.number, drawn, stack, continued)


def settled(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that have ended, in order."""
    return [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]


def complete(study: optuna.Study, maximize: bool) -> list[FrozenTrial]:
    """Complete trials, the best first; of equals the earlier."""
    found = [trial for trial in study.get_trials(deepcopy=False) if trial.state == TrialState.COMPLETE]
    return sorted(found, key=lambda trial: (-trial.value if maximize else trial.value, trial.number))


def plain_trial(trial: FrozenTrial) -> dict[str, Any]:
    """A trial as JSON would hold it."""
    return json.loads(json.dumps({
        "number": trial.number, "state": trial.state.name.lower(), "value": trial.value, "values": trial.params,
        "curve": {str(step): value for step, value in sorted(trial.intermediate_values.items())}, **trial.user_attrs,
    }, default=str))  # fmt: skip
