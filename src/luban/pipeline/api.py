"""The same verbs in Python: ``luban.run(recipe)``, ``luban.train(data=…, out=…)``, ``luban.load(model)``."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Artifact, write_bytes
from luban.foundation.config import Config, Source, is_input
from luban.foundation.environment import let_waiting_threads_sleep
from luban.foundation.errors import ConfigError
from luban.foundation.kinds import KINDS, Kind
from luban.pipeline.recipe import Recipe, make_recipe, read_recipe
from luban.pipeline.runner import Change, run_recipe

let_waiting_threads_sleep()


def run(recipe: str | Path | dict[str, Any], *overrides: str, out: str | Path | None = None, until: str | None = None, wait: bool = False, change: Change = "refuse") -> list[Artifact]:
    """Run a recipe (a file, or its content as a dictionary); ``overrides`` are ``"base.depth=6"`` texts.

    Returns the artifacts of its stages, in order, up to the stage ``until`` if it is named. A serve stage runs last and blocks. ``change``: "restart" or "accept"
    a half-done training whose settings changed, which is refused otherwise.
    """
    out = Path(out) if out is not None else None
    made = make_recipe(recipe, Path("."), "recipe", Source(), out) if isinstance(recipe, dict) else read_recipe(Path(recipe), list(overrides), out)
    return run_recipe(made, wait=wait, until=until, change=change)


def load(model: str | Path) -> Any:
    """A model directory, ready to use: ``.generate(text)``, ``.chat(messages)``, ``.stream(text)``."""
    from luban.inference.generate import LoadedModel

    return LoadedModel.load(Path(model))


def predict(model: str | Path, data: Any, *, mapping: dict[str, Any] | None = None, rows: int = 32) -> list[dict[str, Any]]:
    """What a model makes of data: a mapping an item, such as ``{"label": …, "probabilities": {…}}``.

    ``data`` is a file, one text, a list of texts or mappings, or a data frame; ``mapping`` says which column of a file holds what.
    """
    from luban.pipeline import predict as prediction

    return prediction.predict(model, data, mapping=mapping, rows=rows)


def verb(kind: Kind) -> Callable[..., Artifact | None]:
    """The Python call of a kind of stage."""

    def call(*primary: Any, out: str | Path | None = None, seed: int = 1, wait: bool = False, **fields: Any) -> Artifact | None:
        return run_kind(kind, primary, out=out, seed=seed, wait=wait, **fields)

    call.__name__ = call.__qualname__ = kind.name
    call.__doc__ = f"{kind.summary}\n\nFields of {kind.config_name}: see `luban {kind.name.replace('_', '-')} --help`. ``out`` is the artifact's folder; returns the artifact."
    return call


def run_kind(kind: Kind, primary: tuple[Any, ...] = (), *, out: str | Path | None = None, seed: int = 1, wait: bool = False, **fields: Any) -> Artifact | None:
    """Run one stage on its own: a recipe of one. Inputs may be paths, artifacts, lists of rows, or data frames."""
    recipe = one_stage(kind, primary, out=out, seed=seed, **fields)
    made = run_recipe(recipe, wait=wait)
    return made[-1] if made else None


def one_stage(kind: Kind, primary: tuple[Any, ...] = (), *, out: str | Path | None = None, seed: int = 1, **fields: Any) -> Recipe:
    """The recipe of one stage whose artifact is the folder ``out`` (``runs/<kind>`` if not given)."""
    final = Path(out) if out is not None else Path("runs") / kind.name
    if primary:
        fields[primary_field(kind.config)] = list(primary) if len(primary) > 1 else primary[0]
    plain = {name: _plain(value, final, name) for name, value in fields.items()}
    recipe = {"seed": seed, "name": final.name, "stages": {final.name: {"kind": kind.name, **plain}}}
    made = make_recipe(recipe, Path("."), final.name, Source(), final.parent)
    made.alone = True
    return made


def primary_field(config: type[Config]) -> str:
    """The field a bare argument fills: the first input."""
    for name, info in config.model_fields.items():
        if is_input(info):
            return name
    raise ConfigError("{config} takes no bare argument", config=config.__name__)


def _plain(value: Any, final: Path, name: str) -> Any:
    """A Python value as a recipe would write it; rows and frames are first written to a file beside the artifact."""
    if isinstance(value, Artifact):
        return str(value.path)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Config):
        return value.explicit()
    if hasattr(value, "to_dict") and hasattr(value, "columns"):
        value = value.to_dict(orient="records")
    if isinstance(value, list) and value and isinstance(value[0], dict):
        folder = final.parent / f"{final.name}.inputs"
        folder.mkdir(parents=True, exist_ok=True)
        rows = "".join(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in value)
        write_bytes(folder / f"{name}.jsonl", rows.encode("utf-8", "surrogatepass"))
        return str(folder / f"{name}.jsonl")
    if isinstance(value, list):
        return [_plain(item, final, name) for item in value]
    return value


VERBS = {name: verb(kind) for name, kind in KINDS.items()}
