"""`luban check RECIPE --rehearse`: the whole path of each train stage at its real size, on as many ranks as it will have, without allocating it.

What comes before a training is made, where its data is small (the shipped recipes' is); a model that is not here is stood in for by its shape and a small tokenizer. The training itself
runs in a process of its own (training/full_size.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work, is_artifact, open_artifact, write_json
from luban.foundation.config import Source
from luban.foundation.console import bytes_text, count_text, hush, say, seconds_text
from luban.foundation.errors import LubanError
from luban.foundation.messages import t
from luban.foundation.paths import named_files
from luban.models.config_json import config_json
from luban.models.presets import preset
from luban.pipeline.check import Tick
from luban.pipeline.planner import job_of, preset_called
from luban.pipeline.recipe import Recipe, Stage, make_recipe
from luban.pipeline.runner import run_recipe
from luban.planning.devices import Cluster, cluster
from luban.planning.job import Layout
from luban.planning.margins import margin_of
from luban.planning.resolve import resolve_train
from luban.planning.search import memory_of
from luban.tokenizer.tokenizer import Tokenizer
from luban.training.full_size import rehearse

SMALL = 64 * 2**20  # bytes of data up to which what comes before a training is made for a rehearsal
APART = 0.25  # the most that the two figures of memory may differ
LITTLE = 4 * 2**20  # bytes that are no difference: heads weigh something in tiny models
TEXTS = "package:luban/recipes/quickstart/data/shakespeare.txt#200"


def check_rehearsal(recipe: Recipe, devices: str = "", ranks: int = 0) -> Iterator[Tick]:
    """Rehearse each train stage on the recipe's own cluster, or on ``devices``, or on so many ranks of them."""
    there = cluster(devices or recipe.cluster or "this")
    count = ranks or there.count
    with tempfile.TemporaryDirectory(prefix="luban-rehearsed-") as folder:
        stages = _Stages(recipe, Path(folder))
        for stage in recipe.stages.values():
            if stage.kind.name == "train":
                try:
                    yield from _rehearsed(stages, stage, there, count)
                except LubanError as error:
                    yield Tick(False, f"{stage.name}: {error}")


def _rehearsed(stages: _Stages, stage: Stage, there: Cluster, count: int) -> Iterator[Tick]:
    work = stages.work(stage)
    config = resolve_train(stage.config, work)
    stages.shapes[stage.name] = config.shape
    if config.precision == "auto":
        config = config.updated(precision=job_of(config, config.shape, there).precision)
    if config.precision == "float16":  # which fake processors do not know
        config = config.updated(precision="bfloat16")
    for stage_number in sorted({0, config.layout.pipeline - 1}):  # the ends of a pipeline hold the most, and the last of a context group sees the most
        rank = stage_number * count // config.layout.pipeline + (config.layout.context - 1) * config.layout.tensor
        yield from _told(stage.name, config, rehearse(config, work, count, rank), there, count, rank, stage_number)


def _told(name: str, config: Any, found: dict[str, Any], there: Cluster, count: int, rank: int, stage: int) -> Iterator[Tick]:
    yield Tick(True, t(
        "{stage}: rehearsed as rank {rank} of {ranks} ({layout}, layout.shard: {shard}): {parameters} parameters, {passes} micro-batches of {rows} rows a step; two steps in {time}",
        stage=name, rank=rank, ranks=count, layout=found["layout"], shard=found["shard"], parameters=count_text(found["parameters"]), passes=found["passes"], rows=found["rows"], time=seconds_text(sum(found["seconds"].values())),
    ))  # fmt: skip
    kept = found["checkpoint"]
    if config.layout.pipeline > 1:
        yield Tick(True, t("{stage}: of a checkpoint this rank writes {own} in {files} files", stage=name, own=bytes_text(kept["bytes_of_rank"]), files=kept["files"]))
    else:
        yield Tick(True, t("{stage}: a checkpoint is {whole} of tensors; this rank writes {own} of it in {files} files", stage=name, whole=bytes_text(kept["bytes"]), own=bytes_text(kept["bytes_of_rank"]), files=kept["files"]))
    yield from _compared(name, config, found, there, count, stage)


def _compared(name: str, config: Any, found: dict[str, Any], there: Cluster, count: int, stage: int) -> Iterator[Tick]:
    """The peak of the rehearsal beside the arithmetic for the same processors, and the arithmetic for the devices that are meant."""
    job = job_of(config.updated(micro_batch_rows=found["rows"]), config.shape.updated(vocabulary_size=found["vocabulary"]), there)
    layout = layout_of(config.layout, found["shard"], count, found["stages"])
    reckoned = memory_of(replace(job, device="cpu", own_layers=False, sends=False, sequence_length=found["length"], source_length=found["source_length"]), layout, stage).total  # for rows as long as they were
    apart = found["peak_bytes"] / reckoned - 1
    parts = ", ".join(f"{t(part)} {bytes_text(size)}" for part, size in found["parts"].items())
    near = abs(apart) <= APART or abs(found["peak_bytes"] - reckoned) < LITTLE or (apart < 0 and bool(config.regularization.freeze))  # the arithmetic takes all of it to learn
    yield Tick(near, t("{stage}: a rank held {peak} at the most ({parts}), in the {moment}; arithmetic says {reckoned}, {apart:+.1%}", stage=name, peak=bytes_text(found["peak_bytes"]), parts=parts, moment=t(found["at"]), reckoned=bytes_text(reckoned), apart=-apart / (1 + apart)))
    margin = margin_of(there.device.kind, there.device.name)
    need = memory_of(job, layout, stage).total * margin.ratio
    said = "{stage}: on {device} {need} ±{share:.0%} of {room}" if there.device.kind == "cpu" else "{stage}: on {device} {need} ±{share:.0%} of {room}, with its larger parts of logits and its driver"
    yield Tick(margin.upper(need / margin.ratio) <= there.device.memory, t(said, stage=name, device=there.device.name, need=bytes_text(need), share=margin.memory, room=bytes_text(there.device.memory)))


def layout_of(asked: Any, shard: str, ranks: int, stages: int = 1) -> Layout:
    """What a recipe's layout comes to on so many ranks, with so many stages of a pipeline on each, as planning writes it."""
    rest = ranks // (asked.context * asked.tensor * asked.pipeline)
    replicas = asked.replicas if asked.replicas != "auto" else rest if shard == "none" else 1
    return Layout(replicas=replicas, shards=max(1, rest // replicas), shard=shard if rest // replicas * asked.context > 1 else "none", tensor=asked.tensor, context=asked.context, expert=asked.expert, pipeline=asked.pipeline, schedule=asked.schedule, stages_per_rank=stages)


class _Stages:
    """What a rehearsal's trainings read: artifacts that are there, those that are made for it, and stand-ins."""

    def __init__(self, recipe: Recipe, folder: Path):
        self.recipe, self.folder = recipe, folder
        self.shapes: dict[str, Any] = {}  # of the models that train stages make

    def work(self, stage: Stage) -> Work:
        """The inputs of a train stage."""
        inputs: dict[str, Any] = {}
        for field, values in stage.inputs.items():
            found = [self._input(field, value) for value in values]
            inputs[field] = found[0] if len(found) == 1 else found or None
        return Work(self.folder, inputs, self.recipe.seed, stage.name)

    def _input(self, field: str, value: str) -> Any:
        recipe = self.recipe
        if value not in recipe.stages:
            path = recipe.path_of(value)
            if field == "model" and not (path / "config.json").exists():
                return self._stand_in(path.name, preset(preset_called(path)))
            return open_artifact(path) if is_artifact(path) else path
        if recipe.stages[value].kind.name == "train":
            return self._trained(value)
        if is_artifact(recipe.out / value):
            return open_artifact(recipe.out / value)
        if not is_artifact(self.folder / "made" / value):
            self._make(value)
        return open_artifact(self.folder / "made" / value)

    def _make(self, wanted: str) -> None:
        """Make a stage and those that it needs, in a folder of the rehearsal's own."""
        needed, found, trained = {wanted}, [], {}
        for stage in reversed(self.recipe.stages.values()):
            if stage.name in needed and stage.kind.name == "train":
                trained[stage.name] = str(self._trained(stage.name))
            elif stage.name in needed:
                needed |= {value for values in stage.inputs.values() for value in values if value in self.recipe.stages}
                found.insert(0, stage)
        stages = {stage.name: _body(stage, trained) for stage in found}
        read = [self.recipe.path_of(value) for stage in found for values in stage.inputs.values() for value in values if value not in self.recipe.stages]
        size = sum(file.stat().st_size for path in read for file in named_files(path) if file.is_file())
        if size > SMALL:
            raise LubanError("what the training reads is not made yet, and its data is large: {size}", "", "make it first: luban run {recipe} --until {stage}", size=bytes_text(size), recipe=self.recipe.file, stage=wanted)
        say("making {stages} for the rehearsal", stages=", ".join(stages))
        plain = {name: value for name, value in self.recipe.plain.items() if name in ("seed", "luban")} | {"stages": stages}
        _quietly(make_recipe(plain, self.recipe.folder, "rehearsal", Source("rehearsal"), self.folder / "made"))

    def _trained(self, name: str) -> Path:
        """What stands in for the model that a train stage would make."""
        if name not in self.shapes:
            raise LubanError("it goes on from {stage}, which could not be rehearsed", "", "see what is said of that", stage=name)
        return self._stand_in(name, self.shapes[name])

    def _stand_in(self, name: str, shape: Any) -> Path:
        """A model directory without weights: a shape, and a small tokenizer with a chat template."""
        folder = self.folder / "stand-ins" / name
        if not folder.exists():
            say("{name} is not here: its shape and a small tokenizer stand in for it", name=name)
            folder.mkdir(parents=True)
            stages = {"corpus": {"kind": "curate", "sources": TEXTS}, "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": 2048}}
            _quietly(make_recipe({"stages": stages}, self.folder, "stand-in", Source("rehearsal"), folder / "made"))
            Tokenizer.load(folder / "made" / "tokenizer").save(folder)
            write_json(folder / "config.json", config_json(shape, "bfloat16"))
        return folder


def _body(stage: Stage, folders: dict[str, str]) -> dict[str, Any]:
    """A stage as it is written in a recipe, with what is implied and with its values put in; where it names one of ``folders``, that."""
    body = {"kind": stage.kind.name, **stage.config.explicit()}
    for dotted in stage.inputs:
        *path, leaf = dotted.split(".")
        owner = body
        for name in path:
            owner = owner.get(name) if isinstance(owner, dict) else None
        if isinstance(owner, dict) and (named := owner.get(leaf)) is not None:
            owner[leaf] = folders.get(named, named) if isinstance(named, str) else [folders.get(value, value) for value in named]
    return body


def _quietly(recipe: Recipe) -> None:
    hush()
    try:
        run_recipe(recipe)
    finally:
        hush(False)
