"""What can be known before a run: inputs, data, templates, memory and time in closed form, one dry batch."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Artifact, Work, is_artifact, open_artifact
from luban.foundation.console import bytes_text, count_text, seconds_text
from luban.foundation.custom import is_custom, load_custom
from luban.foundation.errors import LubanError
from luban.foundation.hardware import machine
from luban.foundation.messages import t
from luban.foundation.paths import named_files
from luban.models.counts import flops_per_token, memory, parameters
from luban.models.shape import ShapeConfig
from luban.pipeline.foresight import devices
from luban.pipeline.implied import READS
from luban.pipeline.planner import job_of, processes_of, written
from luban.pipeline.recipe import Recipe, Stage
from luban.pipeline.remembered import PROCESS
from luban.pipeline.runner import plan
from luban.planning.devices import Cluster, cluster
from luban.planning.job import Layout
from luban.planning.margins import margin_of
from luban.planning.resolve import resolve_train, train_facts
from luban.planning.search import check_written, memory_of, search
from luban.tokenizer.algorithms import automatic_vocabulary_size
from luban.training.config import OPTIMIZERS

UNKNOWN = 0.3  # how far the closed form may be off where the planner does not know a family
BYTES_A_TOKEN = 3.5  # of a byte-level BPE on mixed English and Chinese; only used before the tokenizer exists



@dataclass(frozen=True)
class Tick:
    """One checked thing."""

    passed: bool
    text: str
    heed: bool = False  # it is no failure, but a run as it is would fail


def check(recipe: Recipe, *, dry_batch: bool = True, probe: bool = False) -> Iterator[Tick]:
    """Every check, in the order of the recipe; a failing one does not keep the others from being made. ``probe`` tries which micro-batch fits, in processes of their own."""
    import torch  # noqa: F401  so that the machine's accelerator is seen

    here = machine()
    free = shutil.disk_usage(_existing(recipe.out)).free
    yield Tick(True, t("machine: {cpu}, {cores} cores, {memory}, {accelerator}", cpu=here.cpu, cores=here.cores, memory=bytes_text(here.memory_bytes), accelerator=here.accelerator_name or here.accelerator))
    yield Tick(free > 2**30, t("disk: {free} free in {folder}", free=bytes_text(free), folder=recipe.out))
    count, name, layout = processes_of(recipe)
    if count > 1 and not recipe.cluster:
        yield Tick(True, t("{stage}: layout {layout} needs {count} processes or a multiple of them: start it by luban launch or torchrun, and set cluster: (such as {count}xA100-80GB), so that it is reckoned for them", stage=name, layout=layout, count=count), heed=True)
    known: dict[str, dict[str, Any]] = {}
    fresh = _fresh(recipe)
    for stage in recipe.stages.values():
        try:
            ticks = list(_inputs(recipe, stage))
            yield from ticks
            if not all(tick.passed for tick in ticks):
                continue
            if stage.kind.name == "train":
                yield from _training(recipe, stage, known, fresh, here.accelerator_memory_bytes or here.memory_bytes, dry_batch, probe)
            elif not stage.kind.terminal:
                known[stage.name] = _expected(recipe, stage, known, fresh)
        except LubanError as error:
            yield Tick(False, f"{stage.name}: {error}")


def _fresh(recipe: Recipe) -> set[str]:
    """Stages whose artifact the recipe would use as it is; none where an input is missing, which its own check names."""
    try:
        return {step.stage.name for step in plan(recipe) if step.status == "fresh"}
    except LubanError:
        return set()


def _inputs(recipe: Recipe, stage: Stage) -> Iterator[Tick]:
    """Each named path exists and can be read as what the stage takes it for."""
    for field, values in stage.inputs.items():
        for value in values:
            if value in recipe.stages:
                continue
            if is_custom(value):
                load_custom(value, recipe.folder)
                yield Tick(True, t("{stage}.{field}: {value} can be imported", stage=stage.name, field=field, value=value))
                continue
            path = recipe.path_of(value)
            if lacking := [file for file in named_files(path) if not file.exists()]:
                yield Tick(False, t("{stage}.{field}: {path}: no such file or folder", stage=stage.name, field=field, path=lacking[0]))
            elif is_artifact(path):
                open_artifact(path)
                yield Tick(True, t("{stage}.{field}: {path} is whole", stage=stage.name, field=field, path=path))
            else:
                yield Tick(True, f"{stage.name}.{field}: {_read(stage, field, path)}")


def _read(stage: Stage, field: str, path: Path) -> str:
    """Read enough of a data file to say how it was recognised."""
    if stage.kind.name == "train" and field in ("data", "validation_data") and (task := _task(stage.config)):
        from luban.examples.reading import read_examples

        read = read_examples([path], task, stage.config.mapping or None)
        return t("{path}: {count} examples of the task {task}, format {format}, {bad} bad rows", path=path, count=len(read.examples), task=task, format=read.format, bad=len(read.bad))
    if stage.kind.name == "train" and field in ("data", "validation_data"):
        from luban.examples.conversations import read_conversations

        found = read_conversations([path])
        return t("{path}: {count} conversations, format {format}, {bad} bad rows", path=path, count=len(found.conversations), format=found.format, bad=len(found.bad))
    if stage.kind.name == "curate":
        from luban.corpus.readers import find_files, recognise

        files = find_files(named_files(path))
        kinds = sorted({recognise(file).format for file in files})
        size = sum(file.stat().st_size for file in files)
        return t("{path}: {count} files, {size}, read as {formats}", path=path, count=len(files), size=bytes_text(size), formats=", ".join(kinds))
    return str(path)


def _task(config: Any) -> str:
    """What the labelled files of a train stage are read for; empty for text, conversations, and objectives of the user's own."""
    return READS.get(config.objective.of if config.objective_name == "distillation" else config.objective_name, "")


def _examples(recipe: Recipe, stage: Stage, task: str) -> int:
    """How many examples a train stage's files hold; a thousand where a stage will make them."""
    from luban.examples.reading import read_examples

    paths = [recipe.path_of(value) for value in stage.inputs["data"] if value not in recipe.stages]
    return len(read_examples(paths, task, stage.config.mapping or None).examples) if paths else 1000


def _expected(recipe: Recipe, stage: Stage, known: dict[str, dict[str, Any]], fresh: set[str]) -> dict[str, Any]:
    """Bytes, tokens and vocabulary a stage will give: from its artifact if it is there, else estimated."""
    final = recipe.out / stage.name
    if stage.name in fresh:
        return dict(open_artifact(final).metrics)
    facts: dict[str, Any] = {}
    for values in stage.inputs.values():
        for value in values:
            facts |= known.get(value, {})
    if stage.kind.name == "curate":
        from luban.corpus.readers import find_files

        files = find_files([file for value in stage.inputs["sources"] for file in named_files(recipe.path_of(value))])
        facts["train_bytes"] = sum(file.stat().st_size for file in files)
    elif stage.kind.name == "train_tokenizer":
        wanted = stage.config.vocabulary_size
        facts["vocabulary_size"] = automatic_vocabulary_size(facts.get("train_bytes", 2**21)) if wanted == "auto" else wanted
    elif stage.kind.name == "encode":
        facts["train"] = {"tokens": int(facts.get("train_bytes", 2**21) / BYTES_A_TOKEN)}
    return facts


def _training(recipe: Recipe, stage: Stage, known: dict[str, dict[str, Any]], fresh: set[str], memory_bytes: int, dry_batch: bool, probe: bool) -> Iterator[Tick]:
    """Shape, length, memory and time of a training stage, then one dry batch, and the micro-batch that fits; then its template."""
    config, work = _resolved(recipe, stage, known, fresh)
    shape: ShapeConfig = config.shape
    if task := _task(stage.config):
        unit, in_step, epoch = "examples", config.batch_examples, _examples(recipe, stage, task) * (1 - config.validation.share)
        steps = config.length.steps(in_step * config.sequence_length, round(epoch * config.sequence_length))
    else:
        unit, in_step = "tokens", config.batch_tokens
        steps = config.length.steps(in_step, train_facts(stage.config, work).get("train_tokens", 1_000_000))
    rows = max(1, 2048 // config.sequence_length) if isinstance(config.micro_batch_rows, str) else config.micro_batch_rows
    need, share = _memory(shape, rows, config)
    elsewhere = recipe.cluster not in ("", "this", "auto")
    if elsewhere:
        yield _on_cluster(stage.name, config, cluster(recipe.cluster))
    yield Tick(
        need * (1 + share) < memory_bytes or elsewhere,
        t("{stage}: {parameters} parameters, {steps} steps of {count} {unit}, {memory} ±{share:.0%} of memory in one process here, which has {room}", room=bytes_text(memory_bytes), stage=stage.name, parameters=count_text(parameters(shape)["total"]), steps=steps, count=in_step, unit=t(unit), memory=bytes_text(need), share=share),
    )
    tokens = steps * in_step * (config.sequence_length if task else 1)
    yield _closed_form(stage.name, shape, config, tokens)
    if dry_batch and need * (1 + share) < memory_bytes:
        seconds = _dry_batch(shape, rows, config)
        yield Tick(True, t("{stage}: a dry batch took {batch}; the stage will take about {time} here", stage=stage.name, batch=seconds_text(seconds), time=seconds_text(seconds * tokens / (rows * config.sequence_length))))
    if probe:
        unmade = [value for values in stage.inputs.values() for value in values if value in recipe.stages and value not in fresh]
        yield Tick(True, t("{stage}: not probed, for {inputs} is not made yet", stage=stage.name, inputs=", ".join(unmade))) if unmade else _probed(stage.name, config, work)
    if config.objective_name == "instruction":
        yield from _template(recipe, stage)


def _on_cluster(name: str, config: Any, there: Cluster) -> Tick:
    """What a stage takes on the devices that the recipe is made for, with its micro-batch and its layout as far as it says them."""
    job = replace(job_of(config, config.shape, there), written=written(config.layout))
    check_written(job, there)
    margin = margin_of(there.device.kind, there.device.name)
    try:
        best = search(job, there, margin, fixed=isinstance(config.micro_batch_rows, int), wanted=1)
    except LubanError as error:
        return Tick(True, t("{stage}: not planned for {cluster}: {why}", stage=name, cluster=there.text, why=error.text()))
    if not best or not best[0].fits:
        return Tick(False, t("{stage}: nothing that is tried fits on {cluster}; luban plan says what to change", stage=name, cluster=there.text))
    one = best[0]
    return Tick(True, t("{stage}: on {cluster} {layout} takes {need} ±{share:.0%} of {room} a device", stage=name, cluster=there.text, layout=one.layout.text(), need=bytes_text(one.memory.total * margin.ratio), share=margin.memory, room=bytes_text(there.device.memory)))


def _resolved(recipe: Recipe, stage: Stage, known: dict[str, dict[str, Any]], fresh: set[str]) -> tuple[Any, Work]:
    """A train stage's config in plain numbers, as its inputs are or are expected to be; its shape is known from then on."""
    work = Work(path=recipe.out, inputs={field: _stand_in(recipe, values, known, fresh) for field, values in stage.inputs.items()}, seed=recipe.seed)
    before = known.get(stage.inputs["model"][0], {}) if stage.inputs.get("model") else {}
    config = resolve_train(stage.config, work, before.get("shape"))  # a model that is not made yet has the shape its stage will give it
    known[stage.name] = {"shape": config.shape, "vocabulary_size": config.shape.vocabulary_size}
    return config, work


def train_configs(recipe: Recipe) -> Iterator[tuple[str, Any]]:
    """Each train stage's name, and its config in plain numbers."""
    known: dict[str, dict[str, Any]] = {}
    fresh = _fresh(recipe)
    for stage in recipe.stages.values():
        if stage.kind.name == "train":
            yield stage.name, _resolved(recipe, stage, known, fresh)[0]
        elif not stage.kind.terminal:
            known[stage.name] = _expected(recipe, stage, known, fresh)


def _probed(name: str, config: Any, work: Work) -> Tick:
    """The largest micro-batch that fits, and what takes its memory. A step keeps its rows, and so does what is learned."""
    from luban.objectives.base import load_objective
    from luban.training.engines import ENGINES
    from luban.training.probe import find_fit

    if "accumulate" in ENGINES[config.engine].lacks:
        return Tick(True, t("{stage}: not probed: engine {engine} takes each step whole", stage=name, engine=config.engine))
    objective = load_objective(str(work.inputs["objective"]) if isinstance(config.objective, str) else config.objective)
    whole = config.batch_examples if objective.by_example else max(1, config.batch_tokens // config.sequence_length)
    found = find_fit(config, work, whole)
    return Tick(
        True,
        t(
            "{stage}: micro_batch_rows {rows} fits, tried in a process of its own: {peak} of {limit}; a step keeps its {whole} rows, in {parts_of_step} micro-batches. What takes it: {parts} (activations and logits estimated)",
            stage=name, rows=found.rows, peak=bytes_text(found.peak_bytes), limit=bytes_text(found.limit_bytes), whole=whole, parts_of_step=-(-whole // found.rows),
            parts=", ".join(f"{t(part)} {bytes_text(size)}" for part, size in sorted(found.parts.items(), key=lambda pair: -pair[1])),
        ),
    )  # fmt: skip


def _memory(shape: ShapeConfig, rows: int, config: Any) -> tuple[float, float]:
    """Bytes that a training stage in one process here takes at the most, by the planner's arithmetic, and how far it may be off as a share; of what the planner does not know by a closed form."""
    there = devices(1, 1)
    margin = margin_of(there.device.kind, there.device.name)
    job = job_of(config, shape, there)
    try:
        reckoned = memory_of(replace(job, rows=job.rows if config.engine == "layerwise" else min(rows, job.step_rows)), Layout())
    except LubanError:
        return _closed_bytes(shape, rows, config), UNKNOWN
    return margin.ratio * reckoned.total + (PROCESS if there.device.kind == "cpu" else 0.0), margin.memory


def _closed_bytes(shape: ShapeConfig, rows: int, config: Any) -> int:
    """What is held of weights, gradients, states, activations and logits, for models that have no shadow in planning."""
    parts = memory(shape, rows=rows, sequence_length=config.sequence_length, recompute=config.recompute == "full")
    parts["optimizer"] = int(parameters(shape)["total"] * OPTIMIZERS[config.optimizer.name]["state_bytes"])
    return sum(value for name, value in parts.items() if name != "total") + rows * config.sequence_length * shape.vocabulary_size * 8


SHARE_OF_PEAK = 0.4  # of a processor's large matrix product that training small models reaches (docs/notebook.md)


def _closed_form(name: str, shape: ShapeConfig, config: Any, tokens: int) -> Tick:
    """Time from floating-point operations: those of the whole stage over a share of this machine's measured rate."""
    from luban.training.precision import DTYPES, choose_device, measured_peak_flops, prepare_machine

    prepare_machine(config.threads, False)
    peak = measured_peak_flops(choose_device(), DTYPES["float32" if config.precision == "auto" else config.precision])
    total = flops_per_token(shape, config.sequence_length) * tokens
    return Tick(True, t("{stage}: {flops} floating-point operations, {time} at {share:.0%} of the {peak:.0f} GFLOP/s measured", stage=name, flops=count_text(total), time=seconds_text(total / peak / SHARE_OF_PEAK), share=SHARE_OF_PEAK, peak=peak / 1e9))


def _stand_in(recipe: Recipe, values: list[str], known: dict[str, dict[str, Any]], fresh: set[str]) -> Any:
    """An input as `resolve` needs it: the artifact, or for one that is not made yet its expected figures."""
    items = []
    for value in values:
        path = recipe.out / value if value in recipe.stages else recipe.path_of(value)
        if value in fresh or (value not in recipe.stages and is_artifact(path)):
            items.append(open_artifact(path))
        elif value in recipe.stages:
            kind = recipe.stages[value].kind.name
            items.append(Artifact(path, {"kind": kind, "fingerprint": "", "metrics": {"vocabulary_size": 4096, "train": {"tokens": 10**6}, **known.get(value, {})}}))
        else:
            items.append(path)
    return items[0] if len(items) == 1 else items or None


def _dry_batch(shape: ShapeConfig, rows: int, config: Any) -> float:
    """Seconds of one forward and backward pass over random tokens: a wrong shape or too little memory shows here."""
    import torch

    from luban.models.families import build_model
    from luban.objectives.losses import token_sum
    from luban.tokens.batch import Batch
    from luban.training.precision import prepare_machine

    prepare_machine(config.threads, False)
    model = build_model(shape).initialize(0)
    tokens = torch.randint(0, shape.vocabulary_size, (rows, config.sequence_length + 1))
    positions = torch.arange(config.sequence_length).expand(rows, -1)
    batch = Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(rows, config.sequence_length), positions, None, [])
    if shape.kind == "encoder_decoder":
        batch.source = batch.inputs
    best = float("inf")
    for _ in range(2):
        begun = time.monotonic()
        token_sum(model, batch).backward()
        best = min(best, time.monotonic() - begun)
    return best


def _template(recipe: Recipe, stage: Stage) -> Iterator[Tick]:
    """The chat template renders, and its control strings are single tokens of the tokenizer."""
    from luban.examples.guard import check_template
    from luban.tokenizer.tokenizer import Tokenizer

    for field in ("tokenizer", "model"):
        for value in stage.inputs.get(field, []):
            path = recipe.out / value if value in recipe.stages else recipe.path_of(value)
            if (path / "tokenizer.json").exists():
                check_template(Tokenizer.load(path))
                yield Tick(True, t("{stage}: the chat template's control tokens are in the tokenizer", stage=stage.name))
                return
    yield Tick(True, t("{stage}: the chat template will come from the tokenizer stage", stage=stage.name))


def _existing(folder: Path) -> Path:
    while not folder.exists():
        folder = folder.absolute().parent
    return folder
