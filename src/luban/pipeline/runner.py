"""`luban run`: do what is missing or stale, in order, and continue where it was stopped."""

from __future__ import annotations

import datetime
import importlib.metadata
import itertools
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from luban import __version__
from luban.foundation.artifacts import (
    Artifact,
    Work,
    fingerprint,
    fingerprint_path,
    finish,
    from_os_error,
    is_artifact,
    listed,
    locked,
    open_artifact,
    read_json,
    remove_scrap,
    write_bytes,
    write_json,
)
from luban.foundation.compiled import begin
from luban.foundation.config import Config, fields_with_role
from luban.foundation.console import heading, say, seconds_text
from luban.foundation.custom import is_custom
from luban.foundation.durations import Duration
from luban.foundation.environment import launch
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.hardware import machine, peak_bytes
from luban.foundation.messages import t
from luban.foundation.paths import named_files, without_part
from luban.pipeline.card import print_summary, write_card
from luban.pipeline.inventory import ASIDE
from luban.pipeline.recipe import Recipe, Stage, check_until
from luban.planning.resolve import resolve

MARK, MADE_OF = ".stage", ".stage.json"  # in an unfinished stage: its fingerprint, and what that is of


@dataclass
class Step:
    """What is to be done for one stage: "fresh" is nothing."""

    stage: Stage
    fingerprint: str
    status: str  # "fresh", "missing", "stale", "continue", "changed", "grow", "restore", "serve"
    reason: str = ""
    made_of: dict[str, Any] = field(default_factory=dict)  # what the fingerprint is of


Change = Literal["refuse", "restart", "accept"]


def run_recipe(recipe: Recipe, *, wait: bool = False, until: str | None = None, watch: Callable[[Any], None] | None = None, change: Change = "refuse") -> list[Artifact]:
    """Run every stage that is missing or stale. A terminal stage runs last, in the foreground. ``watch`` is called after each step of a training.
    ``change`` says what becomes of a half-done training whose settings or data are not what they were: a ConfigError, a new beginning, or the rest of its steps as the recipe is now.

    Of several processes that torchrun started the first does all this; the others wait, and run the stages that are run together.
    """
    if (ranks := _ranks()) is not None and not ranks.leads:
        return _follow(recipe, ranks)

    check_until(recipe, until)
    begun = time.monotonic()
    artifacts: dict[str, Artifact] = {}
    terminal: Stage | None = None
    with locked(recipe.out, wait, recipe.name if recipe.alone else ""):
        if not recipe.alone:
            _save_recipe(recipe)
        _compile_ahead(recipe, until)
        for step in plan(recipe):
            if step.status == "serve":
                terminal = step.stage
                continue
            artifacts[step.stage.name] = _do(recipe, step, watch, change)
            if step.stage.name == until:
                terminal = None
                break
        if not recipe.alone:
            _save_summary(recipe, artifacts, time.monotonic() - begun)
            write_card(recipe.out)
            print_summary(recipe.out)
    if ranks is not None:
        ranks.call("")
    if terminal is not None and until is None:
        _serve(recipe, terminal)
    return list(artifacts.values())


def _compile_ahead(recipe: Recipe, until: str | None) -> None:
    """Begin to compile what stages that are not made yet may need, while those before them are at work; nothing of theirs is imported for it."""
    for stage in recipe.stages.values():
        if not is_artifact(recipe.out / stage.name):
            begin(*(Path(__file__).parents[1] / source for source in stage.kind.compiles))
        if stage.name == until:
            return


def _ranks() -> Any:
    """The processes that torchrun started with this one; None where it is alone, without loading torch."""
    if launch().world_size == 1:
        return None
    from luban.parallel.ranks import here

    return here()


def _follow(recipe: Recipe, ranks: Any) -> list[Artifact]:
    """Take part in what the first process calls for, until it has finished."""
    for stage in recipe.stages.values():
        if stage.kind.together:
            assert stage.kind.stage  # load it now, while there is time
    for name in ranks.calls():
        stage = recipe.stages[name]
        partial = _partial(recipe, stage)
        work = Work(path=partial, inputs=open_inputs(recipe, stage), seed=recipe.seed, name=stage.name, accepted=_known(partial).get("accepted", []))
        stage.kind.stage.run(resolve(stage.kind.name, stage.config, work), work)
    return [open_artifact(recipe.out / name) for name in recipe.stages if is_artifact(recipe.out / name)]


def plan(recipe: Recipe) -> Iterator[Step]:
    """What `run` would do, stage by stage; nothing is changed. Later statuses assume that earlier steps are done."""
    fingerprints: dict[str, str] = {}
    for stage in recipe.stages.values():
        if stage.kind.terminal:
            yield Step(stage, "", "serve")
            continue
        fingerprints[stage.name] = mark = stage_fingerprint(recipe, stage, fingerprints)
        yield Step(stage, mark, *_status(recipe, stage, mark, fingerprints), _made_of(recipe, stage, fingerprints))


def stage_fingerprint(recipe: Recipe, stage: Stage, earlier: dict[str, str]) -> str:
    """Of the result fields, the inputs, the seed and the stage's code version."""
    made = _made_of(recipe, stage, earlier)
    return fingerprint(stage.kind.name, made["version"], made["seed"], made["fields"], made["inputs"])


def _input_fingerprint(recipe: Recipe, value: str, earlier: dict[str, str]) -> str:
    if value in earlier:
        return earlier[value]
    if is_custom(value):  # my_file.py:name
        file, _, name = value.rpartition(":")
        return fingerprint_path(recipe.path_of(file)) + name
    path = recipe.path_of(value)
    plain = without_part(path)  # of data.csv#500
    return ",".join(map(fingerprint_path, _files(recipe, value))) + str(path)[len(plain) + 1 :]


def _files(recipe: Recipe, value: str) -> list[Path]:
    """What an input names; of ``a.en,b.zh`` the missing one where one is there."""
    found = named_files(recipe.path_of(value))
    if len(found) == 1 and "," in value and not found[0].exists():
        pieces = [recipe.path_of(piece.strip()) for piece in without_part(value).split(",") if piece.strip()]
        lacking = [piece for piece in pieces if not piece.exists()]
        return lacking if len(lacking) < len(pieces) else found
    return found


def _without_inputs(values: dict[str, Any], inputs: list[str]) -> dict[str, Any]:
    """Inputs count by what they hold, not by how they are called, so that a moved folder stays fresh."""
    kept = {}
    for name, value in values.items():
        inner = [dotted.removeprefix(name + ".") for dotted in inputs if dotted.startswith(name + ".")]
        if name in inputs:
            continue
        if inner and isinstance(value, list):  # of configs
            kept[name] = list(_without_inputs({str(place): item for place, item in enumerate(value)}, inner).values())
        else:
            kept[name] = _without_inputs(value, inner) if isinstance(value, dict) and inner else value
    return kept


def _status(recipe: Recipe, stage: Stage, mark: str, earlier: dict[str, str]) -> tuple[str, str]:
    final = recipe.out / stage.name
    partial = _partial(recipe, stage)
    if is_artifact(final):
        found = open_artifact(final)
        if found.fingerprint == mark:
            if _grew(stage.config, found):
                return "grow", "its length grew"
            return "fresh", ""
        if is_artifact(recipe.out / ASIDE / f"{stage.name}-{mark}"):
            return "restore", "an earlier run made it"
        return "stale", _why_stale(recipe, stage, found)
    begun = partial.exists() and any((partial / "training" / "checkpoints").glob("step-????????"))
    if begun and (changes := [*_changes(recipe, stage, partial, earlier), *_other_length(stage, partial)]):
        return "changed", t("{names} changed", names=", ".join(changes))
    if partial.exists() and _mark_of(partial) == mark:
        return "continue", "it was stopped before it was whole"
    if is_artifact(recipe.out / ASIDE / f"{stage.name}-{mark}"):
        return "restore", "an earlier run made it"
    return "missing", ""


def _made_of(recipe: Recipe, stage: Stage, earlier: dict[str, str]) -> dict[str, Any]:
    """What the fingerprint of a stage is of, field by field."""
    inputs = {name: [_input_fingerprint(recipe, value, earlier) for value in values] for name, values in stage.inputs.items()}
    result = _without_inputs(fields_with_role(stage.config, "result"), list(inputs))
    return {"fields": result, "inputs": inputs, "seed": recipe.seed, "version": stage.kind.stage.VERSION}


def _changes(recipe: Recipe, stage: Stage, partial: Path, earlier: dict[str, str]) -> list[str]:
    """Names of the fields and inputs, dotted, that are not what they were when an unfinished stage began; "code" for its version."""
    if not (was := _known(partial)):
        return []
    now = json.loads(json.dumps(_made_of(recipe, stage, earlier), default=str))
    names = [f"{name} ({_short(_flat(was['fields']).get(name))} → {_short(value)})" for name, value in _flat(now["fields"]).items() if _flat(was["fields"]).get(name) != value]
    names += [name for name, value in now["inputs"].items() if was["inputs"].get(name) != value]
    return names + [name for name in ("seed", "version") if was[name] != now[name]]


def _other_length(stage: Stage, partial: Path) -> list[str]:
    """The lengths that are not what they were when an unfinished stage began, where its steps so far depend on how many follow."""
    if getattr(stage.config, "open_ended", False):
        return []
    was, now = _known(partial).get("length", {}), fields_with_role(stage.config, "length")
    return [f"{name} ({was[name]} → {value})" for name, value in now.items() if name in was and was[name] != value]


def _known(partial: Path) -> dict[str, Any]:
    """What an unfinished stage wrote down of itself when it began; nothing where that is missing."""
    return read_json(partial / MADE_OF)


def _flat(values: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= _flat(value, f"{before}{name}.") if isinstance(value, dict) and value else {before + name: value}
    return found


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:59] + "…"


def _why_stale(recipe: Recipe, stage: Stage, found: Artifact) -> str:
    """The result fields that differ, or that an input or the code did."""
    was = found.manifest.get("config", {})
    now = fields_with_role(stage.config, "result")
    names = [name for name in now if was.get(name) != stage.config.model_dump(mode="json")[name]]
    return t("{names} changed", names=", ".join(names)) if names else "its input, seed or code changed"


def _grew(config: Config, found: Artifact) -> bool:
    """True when a length field asks for more than the artifact has."""
    for name, value in fields_with_role(config, "length").items():
        had = found.manifest.get("config", {}).get(name)
        if had is not None and had != value:
            now, then = Duration.parse(value), Duration.parse(had)
            return now.unit != then.unit or now.value > then.value
    return False


def _do(recipe: Recipe, step: Step, watch: Callable[[Any], None] | None = None, change: Change = "refuse") -> Artifact:
    """Make one stage's artifact, or take the finished one."""
    stage, final = step.stage, recipe.out / step.stage.name
    if step.status == "changed" and change == "refuse":
        raise ConfigError(
            "{stage} is half trained, and its recipe is not what it was: {changes}", "its steps so far would be mixed with others, or lost",
            "undo the change to continue; --restart begins anew and puts what is there into .previous/; --accept-change does the rest of the steps as the recipe is now",
            stage=stage.name, changes=step.reason,
        )  # fmt: skip
    if step.status == "fresh":
        say("✓ {name}: up to date", name=stage.name)
        artifact = open_artifact(final)
        remove_scrap(artifact)
        return artifact
    if step.status == "restore":
        _set_aside(recipe, final)
        (recipe.out / ASIDE / f"{stage.name}-{step.fingerprint}").rename(final)
        say("✓ {name}: taken back from an earlier run of the same recipe", name=stage.name)
        return open_artifact(final)
    heading("{name} ({kind})", name=stage.name, kind=stage.kind.name)
    if step.reason:
        say("  {status}: {reason}", status=t(step.status), reason=t(step.reason))
    partial = _prepare(recipe, step, final, change)
    work = Work(path=partial, inputs=open_inputs(recipe, stage), seed=recipe.seed, name=stage.name, watch=watch, accepted=_known(partial).get("accepted", []))
    begun, started = time.monotonic(), datetime.datetime.now(datetime.UTC)
    try:
        config = resolve(stage.kind.name, stage.config, work)
        if stage.kind.name == "train":
            from luban.pipeline.foresight import foresee

            work.foresee = lambda: foresee(config)
        if stage.kind.together and (ranks := _ranks()) is not None:
            ranks.call(stage.name)
        stage.kind.stage.run(config, work)
    except OSError as error:
        raise from_os_error(error, Path(error.filename) if isinstance(error.filename, str) else partial) from error
    seconds = time.monotonic() - begun
    if stage.kind.name == "train":
        from luban.pipeline.remembered import remember  # with torch, which the training has loaded

        remember(config, work)
    manifest = _manifest(stage, step, config, work, started, seconds)
    if work.accepted:
        manifest["accepted_changes"] = work.accepted
    _set_aside(recipe, final)
    for name in (MARK, MADE_OF):
        (partial / name).unlink(missing_ok=True)
    artifact = finish(partial, final, manifest, work.scrap)
    say("✓ {name}: done in {time}", name=stage.name, time=seconds_text(seconds))
    return artifact


def _partial(recipe: Recipe, stage: Stage) -> Path:
    return recipe.out / f"{stage.name}.partial"


def _mark_of(partial: Path) -> str:
    file = partial / MARK
    return file.read_text(encoding="ascii", errors="replace") if file.exists() else ""


def _prepare(recipe: Recipe, step: Step, final: Path, change: Change) -> Path:
    """The directory to fill: what a killed run of the same fingerprint left, a grown artifact's state, or nothing."""
    partial = _partial(recipe, step.stage)
    kept = recipe.out / ASIDE / f"{step.stage.name}-{step.fingerprint}.partial"
    if partial.exists() and (step.status == "changed" or _mark_of(partial) != step.fingerprint) and not (step.status == "changed" and change == "accept"):
        aside = recipe.out / ASIDE / f"{step.stage.name}-{_mark_of(partial) or 'unfinished'}.partial"
        if aside == kept:  # of another length
            aside = next(other for number in itertools.count(1) if not (other := kept.with_name(f"{kept.stem}.{number}.partial")).exists())
        shutil.rmtree(aside, ignore_errors=True)
        aside.parent.mkdir(exist_ok=True)
        partial.rename(aside)
    elif kept.exists() and not partial.exists():
        kept.rename(partial)
    if step.status == "grow" and not partial.exists() and (final / "training").exists():
        shutil.copytree(final / "training", partial / "training")
    partial.mkdir(parents=True, exist_ok=True)
    accepted = [*_known(partial).get("accepted", []), *([step.reason] if step.status == "changed" and change == "accept" else [])]
    length = {name: str(value) for name, value in fields_with_role(step.stage.config, "length").items()}
    write_json(partial / MADE_OF, {**step.made_of, "length": length, **({"accepted": accepted} if accepted else {})})
    write_bytes(partial / MARK, step.fingerprint.encode("ascii"))
    return partial


def _set_aside(recipe: Recipe, final: Path) -> None:
    """Move a stale artifact out of the way; nothing that was made is lost before `luban clean`."""
    if not final.exists():
        return
    mark = open_artifact(final).fingerprint if is_artifact(final) else "unknown"
    aside = recipe.out / ASIDE / f"{final.name}-{mark}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.parent.mkdir(exist_ok=True)
    final.rename(aside)


def open_inputs(recipe: Recipe, stage: Stage) -> dict[str, Any]:
    """The artifacts and paths a stage reads, opened, under the dotted names of their fields."""
    opened: dict[str, Any] = {}
    for name, values in stage.inputs.items():
        items = [_open_input(recipe, stage, name, value) for value in values]
        opened[name] = items[0] if len(items) == 1 else items or None
    return opened


def _open_input(recipe: Recipe, stage: Stage, field_name: str, value: str) -> Artifact | Path:
    path = recipe.out / value if value in recipe.stages else recipe.path_of(value)
    if is_artifact(path) and not stage.kind.terminal:  # serving checks a model by what matters to it, not by the size of each file
        return open_artifact(path)
    files = [path] if value in recipe.stages else _files(recipe, value) if not is_custom(value) else [Path(str(path).rpartition(":")[0])]
    if plain := next((file for file in files if not file.exists()), None):
        raise DataError("{stage}.{field}: {path}: no such file or folder", "", "check the path; a relative one starts at the recipe's folder", stage=stage.name, field=field_name, path=plain)
    return path


def _manifest(stage: Stage, step: Step, config: Config, work: Work, started: datetime.datetime, seconds: float) -> dict[str, Any]:
    here = machine()
    for value in work.inputs.values():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Artifact):
                work.licence(*item.licences)
    return {
        "kind": stage.kind.name,
        "name": stage.name,
        "fingerprint": step.fingerprint,
        "code_version": stage.kind.stage.VERSION,
        "config": stage.config.model_dump(mode="json"),
        "resolved": {**config.model_dump(mode="json"), **work.resolved},
        "inputs": {name: [_lineage(value, item) for value, item in zip(stage.inputs[name], listed(work.inputs[name]), strict=True)] for name in stage.inputs},
        "seed": work.seed,
        "metrics": work.metrics,
        "licences": work.licences,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 2),
        "cost": {"core_seconds": round(seconds * here.cores, 1), "peak_memory_bytes": peak_bytes(), **work.cost},
        "machine": {"cpu": here.cpu, "cores": here.cores, "memory_bytes": here.memory_bytes, "accelerator": here.accelerator_name or here.accelerator},
        "versions": _versions(),
    }


def _lineage(written: str, item: Artifact | Path) -> dict[str, Any]:
    if isinstance(item, Artifact):
        return {"name": written, "kind": item.kind, "fingerprint": item.fingerprint, "licences": item.licences}
    return {"name": written}


def _versions() -> dict[str, str]:
    found = {"luban": __version__, "python": platform.python_version()}
    for package in ("torch", "numpy", "tokenizers", "safetensors", "pyarrow"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _save_recipe(recipe: Recipe) -> None:
    """The recipe as it was run, with every default written out."""
    stages = {stage.name: {"kind": stage.kind.name, **stage.config.model_dump(mode="json")} for stage in recipe.stages.values()}
    resolved = {**{key: value for key, value in recipe.plain.items() if key != "stages"}, "name": recipe.name, "seed": recipe.seed, "stages": stages}
    write_bytes(recipe.out / "recipe.resolved.yaml", yaml.safe_dump(resolved, sort_keys=False, allow_unicode=True).encode("utf-8", "replace"))


def _save_summary(recipe: Recipe, artifacts: dict[str, Artifact], seconds: float) -> None:
    started = min((item.manifest["started"] for item in artifacts.values()), default="")
    summary = {"name": recipe.name, "started": started, "recipe": Path(recipe.file).name if recipe.file else "", "stages": list(artifacts), "seconds": round(seconds, 1), "work_seconds": round(sum(item.manifest["seconds"] for item in artifacts.values()), 1)}
    write_json(recipe.out / "run.json", summary)


def _serve(recipe: Recipe, stage: Stage) -> None:
    work = Work(path=recipe.out, inputs=open_inputs(recipe, stage), seed=recipe.seed, name=stage.name)
    stage.kind.stage.run(stage.config, work)

