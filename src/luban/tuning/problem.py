"""What is searched: a recipe with spaces, the stage that is judged, its metric, and which stages all trials share."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from os.path import relpath
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import fingerprint
from luban.foundation.config import Config, Source, build, fields_with_role
from luban.foundation.environment import launch
from luban.foundation.errors import ConfigError, LubanError, nearest
from luban.foundation.yaml_files import apply_override
from luban.pipeline.config import TuneConfig
from luban.pipeline.recipe import PACKAGE, Recipe, Stage, input_values, make_recipe, read_plain
from luban.pipeline.runner import stage_fingerprint
from luban.pipeline.spaces import Space, ends, fill, find_spaces, plain_at
from luban.tuning.metric import find_metric

FOLDER = "tune"  # of a run, for all that tuning writes
JUDGED = ("train", "fit", "ensemble")

Drawn = Mapping[str, int | float | str]


@dataclass(frozen=True)
class Problem:
    """Plain data, so that a worker anywhere can be told it in JSON. ``stages`` are those of a trial, the judged one last; ``shared`` run once before them."""

    plain: dict[str, Any]
    folder: str
    file: str
    name: str
    out: str
    tune: dict[str, Any]
    stage: str
    metric: str
    maximize: bool
    shared: list[str]
    stages: list[str]
    mark: str  # of everything that makes trials comparable

    @cached_property
    def spaces(self) -> list[Space]:
        return find_spaces(self.plain, Source(self.file))

    @cached_property
    def config(self) -> TuneConfig:
        return build(TuneConfig, self.tune)

    @property
    def run_folder(self) -> Path:
        return Path(self.out)

    @property
    def tune_folder(self) -> Path:
        return Path(self.out) / FOLDER

    def trial_folder(self, number: int) -> Path:
        return self.tune_folder / "trials" / f"{number:05d}"

    def plain_of(self, drawn: Drawn) -> dict[str, Any]:
        """The plain recipe with the values filled in."""
        return {key: value for key, value in fill(self.plain, self.spaces, drawn).items() if key != "tune"}

    def recipe(self, drawn: Drawn) -> Recipe:
        """The whole recipe with the values filled in."""
        return make_recipe(self.plain_of(drawn), Path(self.folder), self.name, Source(self.file), Path(self.out))

    def shared_recipe(self, drawn: Drawn) -> Recipe:
        """The stages that are the same for every trial; their artifacts are those of the run itself."""
        return only(self.recipe(drawn), self.shared, {}, Path(self.out))

    def trial_recipe(self, drawn: Drawn, out: Path, seed_offset: int = 0) -> Recipe:
        """A trial's own stages, in a folder of its own, reading the shared ones where they are."""
        found = only(self.recipe(drawn), self.stages, {name: str((Path(self.out) / name).resolve()) for name in self.shared}, out)
        found.seed += seed_offset
        return found

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def refuse_ranks(verb: str) -> None:
    """ConfigError where torchrun started several processes: each would do all of the trainings."""
    if (count := launch().world_size) > 1:
        raise ConfigError(
            "luban {verb} is the work of one process, and {count} were started", "each of them would do all of its trainings, in one folder",
            "start it without torchrun (luban tune --jobs trains several at once), then train with what was found: torchrun … -m luban run", verb=verb, count=count,
        )  # fmt: skip


def read_problem(path: Path, overrides: list[str] = (), out: Path | None = None) -> Problem:
    """Read a recipe with spaces, and try both ends of each. Raises ConfigError with the file, the line and the key."""
    plain, folder, default_name, source = read_plain(path, overrides)
    return make_problem(plain, folder, default_name, source, out)


def make_problem(plain: dict[str, Any], folder: Path, default_name: str, source: Source, out: Path | None = None) -> Problem:
    config = build(TuneConfig, plain.get("tune") or {}, source.under("tune"))
    spaces = find_spaces(plain, source)
    if not spaces:
        raise ConfigError("{file}: the recipe has no search space", "every field has its value", "write {{search: [1e-5, 1e-3], scale: log}} or {{choice: [a, b]}} in the place of a value, or use luban run", file=source.file or "recipe")
    tried = [(name, _try(plain, spaces, drawn, name, folder, default_name, source, out)) for name, drawn in ends(spaces)]
    base = tried[0][1]
    changed: dict[str, set[str]] = {}
    for name, recipe in tried[1:]:
        changed[name] = changed.get(name, set()) | _changed(base, recipe)
    searched = set().union(*changed.values())
    stage = _judged(config, base, searched, source)
    needed = set().union(*(needed_for(recipe, stage) for _, recipe in tried))
    for name, stages in changed.items():
        if not stages & needed:
            raise ConfigError("{where}: the search space {name} changes nothing that {stage} is made from", "every trial would be the same", "write it in {stage} or a stage before it, or name another stage in tune.stage", where=source.at("stages"), name=name, stage=stage)
    every = list(dict.fromkeys(name for _, recipe in tried for name in recipe.stages if name in needed))
    shared = [name for name in every if name not in searched]
    metric, maximize = find_metric(config, base.stages[stage], source)
    if config.sampler == "population":
        _check_population(base.stages[stage], spaces, stage, searched, source)
    mark = fingerprint([_described(space, plain) for space in spaces], _stage_marks(base, [name for name in every if name in base.stages]), stage, metric, config.seeds, config.sampler in ("grid", "population") and config.sampler)
    return Problem(plain, str(folder), source.file, base.name, str(base.out), config.model_dump(mode="json", exclude_unset=True), stage, metric, maximize, shared, [name for name in every if name in searched], mark)


def only(recipe: Recipe, names: list[str], moved: Mapping[str, str], out: Path) -> Recipe:
    """The recipe with only some of its stages; inputs that are stages in ``moved`` become the paths given there."""
    stages = {}
    for name, stage in recipe.stages.items():
        if name in names:
            config = with_inputs(stage, lambda value: moved.get(value, value))
            stages[name] = Stage(name, stage.kind, config, dict(input_values(config)))
    return Recipe(recipe.name, recipe.seed, recipe.folder, out, stages, recipe.plain, recipe.file)


def with_inputs(stage: Stage, change: Any) -> Config:
    """The stage's config with ``change`` applied to every name and path that its input fields hold."""
    plain = stage.config.model_dump(mode="json", exclude_unset=True)
    for dotted, values in stage.inputs.items():
        if values and (now := [change(value) for value in values]) != values:
            written = plain_at(plain, tuple(dotted.split(".")))
            apply_override(plain, dotted.split("."), now if isinstance(written, list) else now[0])
    return build(type(stage.config), plain)


def moved_path(value: str, recipe: Recipe, folder: Path) -> str:
    """A path of the recipe as ``folder`` would write it, relative where it was relative."""
    if value in recipe.stages or value.startswith(PACKAGE) or Path(value).expanduser().is_absolute():
        return value
    return Path(relpath(recipe.folder.resolve() / value, folder.resolve())).as_posix()


def _try(plain: dict, spaces: list[Space], drawn: Drawn, name: str, folder: Path, default_name: str, source: Source, out: Path | None) -> Recipe:
    filled = {key: value for key, value in fill(plain, spaces, drawn).items() if key != "tune"}
    try:
        return make_recipe(filled, folder, default_name, source, out)
    except LubanError as error:
        if not name:
            raise
        raise ConfigError("{error}", "the search space {name} reaches {value}", "narrow it, or leave that option out", error=str(error), name=name, value=drawn[name]) from None


def _changed(base: Recipe, recipe: Recipe) -> set[str]:
    """Stages that differ between two fillings, and those that read one that does."""
    changed: set[str] = set()
    for name in dict.fromkeys([*base.stages, *recipe.stages]):
        first, second = base.stages.get(name), recipe.stages.get(name)
        inputs = {value for stage in (first, second) if stage for values in stage.inputs.values() for value in values}
        if first is None or second is None or (first.kind, first.config) != (second.kind, second.config) or inputs & changed:
            changed.add(name)
    return changed


def needed_for(recipe: Recipe, stage: str) -> set[str]:
    """The stage and all that it is made from."""
    needed: set[str] = set()
    todo = [stage]
    while todo:
        name = todo.pop()
        if name in recipe.stages and name not in needed:
            needed.add(name)
            todo += [value for values in recipe.stages[name].inputs.values() for value in values]
    return needed


def _judged(config: TuneConfig, base: Recipe, searched: set[str], source: Source) -> str:
    if config.stage:
        if config.stage not in base.stages or base.stages[config.stage].kind.terminal:
            guess = nearest(config.stage, base.stages)
            raise ConfigError("{where}: there is no stage called {name!r} to judge", "", "did you mean {guess}?" if guess else "stages: {known}", where=source.at("tune.stage"), name=config.stage, guess=guess, known=", ".join(base.stages))
        return config.stage
    found = [name for name, stage in base.stages.items() if name in searched and stage.kind.name in JUDGED] or [name for name, stage in base.stages.items() if name in searched and not stage.kind.terminal]
    if not found:
        raise ConfigError("{where}: the search spaces change no stage that makes something", "every trial would be the same", "write them in a train or fit stage, or in a stage before it", where=source.at("stages"))
    return found[-1]


# What may change while a training goes on: nothing that its weights, its data or its length depend on.
_MOVABLE = ("optimizer", "schedule", "regularization", "gradient_clip", "objective")


def _check_population(judged: Stage, spaces: list[Space], stage: str, searched: set[str], source: Source) -> None:
    if judged.kind.name != "train":
        raise ConfigError("{where}: a population needs a train stage, and {stage} is of the kind {kind}", "its values change while it trains", "use another sampler", where=source.at("tune.sampler"), stage=stage, kind=judged.kind.name)
    for space in spaces:
        inside = space.path[2] if space.path[:2] == ("stages", stage) and len(space.path) > 2 else ""
        if inside not in _MOVABLE or any(space.inner):
            raise ConfigError(
                "{where}: a population cannot search {name}", "it changes values while a training goes on, from a copied checkpoint",
                "search here: {fields} of {stage}; or use another sampler", where=source.at(".".join(map(str, space.path))), name=space.name, fields=", ".join(_MOVABLE), stage=stage,
            )  # fmt: skip


def _described(space: Space, plain: dict[str, Any]) -> Any:
    return [space.name, plain_at(plain, space.path)]


def _stage_marks(recipe: Recipe, names: list[str]) -> list[Any]:
    """Fingerprints of the stages with their data, and their lengths, which a fingerprint leaves out."""
    marks: dict[str, str] = {}
    found = []
    for name, stage in recipe.stages.items():
        if name in names:
            marks[name] = stage_fingerprint(recipe, stage, marks)
            found.append([marks[name], fields_with_role(stage.config, "length")])
    return found
