"""Which layouts there are for a job on a cluster, what each needs and takes, and which are best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.models.counts import parameters
from luban.models.recompute_plan import MODES
from luban.parallel.legal import Parts, as_tuple, legal_layouts, nearest, refusals
from luban.planning.before import places_before
from luban.planning.devices import Cluster
from luban.planning.job import Job, Layout
from luban.planning.margins import Margin
from luban.planning.shadow import Account
from luban.planning.speed import Speed, head_width, speed
from luban.planning.step import Step
from luban.planning.updates import state_bytes
from luban.training.config import OPTIMIZERS

RESERVED = 0.7 * 2**30  # what a device's driver and libraries hold before a tensor is made
OFFLOADED = "layout: {shard: full, offload: {weights: cpu, optimizer: cpu}}"
SHARDABLE = ("adamw", "lion", "sgd", "muon")  # optimizers whose state can be cut into shards
ASKED = 10  # losers of which it is asked whether they would fit at all
BEYOND = "its weights, gradients and states alone do not fit"
MOST_PIPELINE, LONG = 16, 8192  # more stages are not tried; below so many tokens a sequence is not shared out


@dataclass(frozen=True)
class Memory:
    """Bytes that a device holds at the most, by purpose, the moment of it, and what the driver holds beside."""

    parts: dict[str, int]
    moment: str
    reserved: float

    @property
    def total(self) -> float:
        return sum(self.parts.values()) + self.reserved


@dataclass(frozen=True)
class Candidate:
    """A layout with the recompute and the micro-batch that suit it best; ``why`` it is refused, where it is."""

    layout: Layout
    job: Job
    memory: Memory | None
    speed: Speed | None
    why: str = ""

    @property
    def fits(self) -> bool:
        return self.speed is not None and self.memory is not None


def account_of(job: Job, layout: Layout, stage: int | None = None) -> Account:
    """What the device holds that holds the most in the layout: of a pipeline one of the first or the last stage, or of the one that is asked for."""
    stages = sorted({0, layout.pipeline - 1}) if stage is None else [stage]
    return max((Step(job, layout, number).run() for number in stages), key=lambda account: account.peak)


def memory_of(job: Job, layout: Layout, stage: int | None = None) -> Memory:
    """The most that any device of the layout holds, or one of the stage that is asked for."""
    worst = account_of(job, layout, stage)
    return Memory(worst.at_peak, worst.peak_moment, 0.0 if job.device == "cpu" else RESERVED)


def layouts(job: Job, cluster: Cluster) -> Iterator[Layout]:
    """What the shape and Luban allow on so many devices, and what is worth a look: matrices are shared inside a node, sequences where they are long. What the recipe says of its layout
    stays as it is."""
    written, found = dict(job.written), {}
    sizes = {name: written[name] for name in ("pipeline", "replicas", "context", "tensor", "expert") if name in written}
    each = stages_of(job, written)
    for parts in legal_layouts(job.shape, cluster.count, job.sequence_length, each, **sizes):
        if "tensor" not in written and parts.tensor > cluster.node or parts.pipeline > min(MOST_PIPELINE, job.shape.depth) or ("context" not in written and parts.context > 1 and job.sequence_length < LONG):
            continue
        if parts.data * parts.context > 1 and parts.data > job.step_rows:
            continue
        for layout in _of_parts(cluster, parts):
            if written.get("shard", layout.shard) == layout.shard or layout.held == 1:
                piped = {"schedule": written.get("schedule", "1f1b"), "stages_per_rank": each} if layout.pipeline > 1 else {}
                found[replace(layout, **piped)] = None
    yield from found


def stages_of(job: Job, written: dict[str, Any]) -> int:
    """Stages that each process of a pipeline holds (luban.training.layout.stages_per_rank)."""
    schedule, wanted = written.get("schedule", "1f1b"), written.get("stages_per_rank", "auto")
    if wanted != "auto":
        return wanted
    return 1 if schedule == "1f1b" or written.get("pipeline", 1) == 1 or (schedule == "zero_bubble" and job.shape.depth < 2 * written["pipeline"]) else 2


def check_written(job: Job, cluster: Cluster) -> None:
    """ConfigError where what the recipe says of its layout is none of so many devices, with the nearest that are."""
    written = dict(job.written)
    sizes = {name: written.get(name, 1) for name in ("pipeline", "context", "tensor", "expert")}
    stages, data = stages_of(job, written), max(1, cluster.count // (sizes["pipeline"] * sizes["context"] * sizes["tensor"]))
    replicas = written.get("replicas", 1)
    parts = Parts(**sizes, replicas=replicas, shards=max(1, data // replicas))
    close = nearest(job.shape, parts, cluster.count, job.sequence_length, stages)
    nearby = t("the nearest layouts of {ranks} processes: {layouts}", ranks=cluster.count, layouts="; ".join(one.text for one in close))
    for field, count, why, values in refusals(job.shape, parts, job.sequence_length, stages):
        raise ConfigError("layout.{field}: {count} does not fit the model: {reason}", "", "{nearest}", field=field, count=count, reason=t(why, **values), nearest=nearby)
    if parts.ranks != cluster.count:
        raise ConfigError("layout: {parts} is no layout of {ranks} processes", "their numbers do not multiply up to it", "{nearest}", parts=parts.text, ranks=cluster.count, nearest=nearby)


def _of_parts(cluster: Cluster, parts: Parts) -> Iterator[Layout]:
    """The ways to hold weights in a mesh of these sizes: whole, or in shards over all readers or those of a node."""
    base = Layout(parts.replicas, parts.shards, "none", parts.tensor, parts.context, parts.expert, parts.pipeline)
    if parts.shards == 1:
        yield base
        return
    if parts.replicas > 1 and parts.shards * parts.context * parts.tensor != cluster.node:
        return
    yield replace(base, shard="full")
    if parts.replicas == 1:
        yield replace(base, shard="gradients")
        if parts.pipeline == 1:
            yield replace(base, shard="states")


def _thin(job: Job) -> bool:
    """Whether an adapter is a thin product beside each matrix, and no more."""
    return job.adapter.method in ("lora", "rslora", "lora_plus", "pissa") and not job.adapter.decomposed


def _divides(job: Job, ranks: int) -> bool:
    """Whether so many ranks can share out the inputs of the matrices that take heads and inner widths as inputs."""
    inner, heads = as_tuple(getattr(job.shape, "inner_sizes", job.shape.feed_forward_size)), job.shape.heads * head_width(job.shape)
    return all(job.quantization.divides(inputs, ranks) for inputs in (heads, *inner))


def refused(job: Job, layout: Layout) -> str:
    """Why Luban would not train it (luban.training.layout), as a template; empty where it would."""
    shared = layout.devices > layout.readers or layout.expert > 1  # ranks that do not each read rows of their own with a whole model
    lacking = [
        ("optimizer.state: disk is for training on a processor", job.state == "disk" and job.device != "cpu"),
        ("layout.offload moves shards, and nothing here is cut into any", job.offload and layout.held == 1),
        ("layout.offload moves all or nothing, and what stands beside the shards of stages and experts stays", job.offload and (layout.pipeline > 1 or layout.expert > 1)),
        ("layout.offload with precision: float16: the scale is looked after where the gradients are not", job.offload and job.precision == "float16"),
        ("engine: layerwise is for one process", layout.devices > 1 and job.engine == "layerwise"),
        ("engine: deepspeed cuts over all processes, and knows no other groups", job.engine == "deepspeed" and (shared or layout.pipeline > 1 or (layout.replicas > 1 and layout.held > 1))),
        ("a prompt or prefix takes places of its own, which context and tensor would share out", places_before(job) > 0 and shared),
        ("an adapter whose parts all layers share, or that looks at all of them, is not cut into stages", layout.pipeline > 1 and job.adapter is not None and (places_before(job) > 0 or job.adapter.method in ("vera", "adalora"))),
        ("a pipeline passes the rows of a step once", layout.pipeline > 1 and job.objective in ("kto", "grpo", "distillation")),
        ("a zero-bubble schedule is not for encoder–decoders: a decoder begins with nothing that arrives", layout.pipeline > 1 and layout.schedule == "zero_bubble" and job.shape.kind == "encoder_decoder"),
        ("a zero-bubble schedule computes the gradients of weights past what would sum them into shards", layout.pipeline > 1 and layout.schedule == "zero_bubble" and layout.shard != "none"),
    ]
    if shared or layout.held > 1:
        lacking += [
            ("weights: bfloat16 that learn are not cut into pieces", job.weights == "bfloat16" and job.adapter is None),
            ("the optimizer's state is not cut into pieces", job.optimizer not in SHARDABLE),
            ("precision: float16 is for replicas and shards: its scale is not agreed on between the ranks of a group", job.precision == "float16" and shared),
            ("quantised matrices are not cut inside a group of weights that share a scale", job.quantization is not None and not _divides(job, layout.tensor)),
            ("beside the matrices of a shared expert a tensor group cuts thin products alone", layout.tensor > 1 and job.adapter is not None and getattr(job.shape, "shared_expert_size", 0) and not _thin(job)),
            ("adalora looks at whole matrices", job.adapter is not None and job.adapter.method == "adalora"),
            ("an average of the weights keeps them whole", job.averaged),
            ("a zero-bubble schedule runs the backward pass in two parts, which torch does not compile", job.compile and layout.pipeline > 1 and layout.schedule == "zero_bubble"),
            ("compiled blocks are not gathered from shards beside stages", job.compile and layout.pipeline > 1 and layout.held > 1),
        ]
    return next((why for why, lacks in lacking if lacks), "")


def search(job: Job, cluster: Cluster, margin: Margin, fixed: bool = False, wanted: int = 3) -> list[Candidate]:
    """The fastest layouts that fit, each with what suits it best, then the others, each with why it loses. ``fixed`` keeps the job's recompute and rows.

    Speed is known in microseconds and memory in milliseconds, so memory is asked in the order of speed, until ``wanted`` layouts are found. One alone comes without the others.
    """
    tried = {layout: _Trial(job, layout, cluster, margin, fixed) for layout in layouts(job, cluster)}
    order = sorted((key for trial in tried.values() for key in trial.speeds), key=lambda key: (tried[key[0]].speeds[key].step * (1 + 0.02 * _parts(key[0])), key[1:]))
    found: list[Candidate] = []
    for key in order:
        if any(one.layout == key[0] for one in found):
            continue
        if made := tried[key[0]].check(key):
            found.append(made)
            if len(found) == wanted:
                break
    if wanted == 1:
        return found
    known = {one.layout for one in found}
    best = found[0].speed.step if found else 0.0
    others = sorted((trial.loser(best) for layout, trial in tried.items() if layout not in known), key=lambda one: (one.why not in ("", BEYOND), one.speed.step if one.speed else float("inf")))
    return [*found, *(tried[one.layout].asked(one) if number < ASKED or _parts(one.layout) == 1 else one for number, one in enumerate(others))]


def _parts(layout: Layout) -> int:
    """Dimensions that are shared: of two layouts that are as fast the simpler one is better."""
    return sum(size > 1 for size in (layout.replicas, layout.shards, layout.tensor, layout.context, layout.expert, layout.pipeline))


Key = tuple[Layout, str, int]


class _Trial:
    """One layout: how fast it is with each mode of recompute and each number of rows, and which of them fit, as far as that was asked."""

    def __init__(self, job: Job, layout: Layout, cluster: Cluster, margin: Margin, fixed: bool):
        self.job, self.layout, self.cluster, self.margin = job, layout, cluster, margin
        self.why = refused(job, layout)
        asked = job.recompute if isinstance(job.recompute, str) else "none"
        modes = [job.recompute] if fixed or not isinstance(job.recompute, str) else MODES[MODES.index(asked) :]
        rows = [job.rows] if fixed else _rows(job, layout)
        self.jobs = {} if self.why else {(layout, mode, count): replace(job, recompute=mode, rows=count) for mode in modes for count in rows}
        self.speeds = {key: speed(one, layout, cluster) for key, one in self.jobs.items()}
        self.full: dict[str, int] = {}  # of each mode, rows that are too many
        self.least: Candidate | None = None  # of what did not fit the one that takes the least

    @cached_property
    def beyond(self) -> bool:
        """Whether weights, gradients and states alone are more than a device has, whatever the settings."""
        step = Step(self.job, self.layout)
        gradients = sum(parameter.numbers * parameter.gradient_width for parameter in step.parameters if parameter.learns) / self.layout.held if self.job.engine == "torch" and not self.job.away else 0.0
        return self.margin.upper(step.account.total + gradients) > self.cluster.device.memory

    def check(self, key: Key) -> Candidate | None:
        """The candidate of these settings, if it fits."""
        _, mode, rows = key
        if self.beyond:
            return None
        if any(rows >= most for easier, most in self.full.items() if MODES.index(easier) >= MODES.index(mode)) if mode in MODES else False:
            return None
        memory = memory_of(self.jobs[key], self.layout)
        if self.margin.upper(memory.total) <= self.cluster.device.memory:
            return Candidate(self.layout, self.jobs[key], memory, self.speeds[key])
        self.full[mode] = min(rows, self.full.get(mode, rows))
        if self.least is None or memory.total < self.least.memory.total:
            self.least = Candidate(self.layout, self.jobs[key], memory, None)
        return None

    def loser(self, best: float) -> Candidate:
        """The settings that are fastest here and may fit, or do where a step is shorter than the ``best`` one's seconds; without speed, where none of those that were asked did."""
        if self.why:
            return Candidate(self.layout, self.job, None, None, self.why)
        if self.beyond:
            return Candidate(self.layout, self.job, None, None, BEYOND)
        for key in sorted(self.speeds, key=lambda one: self.speeds[one].step):
            if any(key[2] >= most for mode, most in self.full.items() if mode in MODES and key[1] in MODES and MODES.index(mode) >= MODES.index(key[1])):
                continue
            if self.speeds[key].step >= best or self.check(key):
                return Candidate(self.layout, self.jobs[key], None, self.speeds[key])
        return self.least or Candidate(self.layout, self.job, None, None)

    def asked(self, loser: Candidate) -> Candidate:
        """The loser, once it is known whether its smallest settings fit at all."""
        if loser.why not in ("", BEYOND) or (loser.speed is None and not loser.why):
            return loser
        smallest = min(self.jobs, key=lambda key: (-MODES.index(key[1]) if key[1] in MODES else 0, key[2]))
        if self.beyond:
            return Candidate(self.layout, self.jobs[smallest], memory_of(self.jobs[smallest], self.layout), None)
        return loser if self.check(smallest) else self.least


def _rows(job: Job, layout: Layout) -> list[int]:
    """Rows of a micro-batch to try: powers of two up to what a device reads of a step, and no more than keep it busy."""
    most = max(1, job.step_rows // layout.readers)
    if layout.pipeline > 1:
        most = max(1, most // (2 * layout.pipeline))
    enough = max(1, (2048 if job.device == "cpu" else 32768) // job.sequence_length)
    rows, found = 1, []
    while rows <= min(most, enough):
        found.append(rows)
        rows *= 2
    return found


# ---- when nothing fits ------------------------------------------------------------------------------------------------


def advice(job: Job, cluster: Cluster, margin: Margin) -> list[tuple[str, Candidate]]:
    """What to change so that something fits, the gentlest change first: a recipe's override, and what it leads to."""
    found = []
    for change, changed in _changes(job):
        found += [(change, one) for one in search(replace(changed, rows=1), cluster, margin, wanted=1)]
        if len(found) == 3:
            break
    return found


def _changes(job: Job) -> Iterator[tuple[str, Job]]:
    if not job.offload and job.device != "cpu" and job.engine == "torch" and dict(job.written).get("shard", "full") == "full":
        yield OFFLOADED, replace(job, offload=True, written=(*job.written, ("shard", "full")))
    if job.optimizer == "adamw" and job.adapter is None:
        yield "optimizer: adamw_8bit", replace(job, optimizer="adamw_8bit")
        yield "optimizer: adafactor", replace(job, optimizer="adafactor")
        yield "engine: layerwise, weights: bfloat16, optimizer: adafactor", replace(job, optimizer="adafactor", engine="layerwise", weights="bfloat16", rows=job.step_rows)
    if job.sequence_length >= 2048:
        yield f"sequence_length: {job.sequence_length // 2}", replace(job, sequence_length=job.sequence_length // 2, step_rows=job.step_rows * 2)
    from luban.adapters.config import LoraConfig
    from luban.models.quantization_config import QuantizationConfig

    if job.adapter is None and job.objective != "causal":
        yield "adapter: lora", replace(job, adapter=LoraConfig(), optimizer=job.optimizer)
    if job.quantization is None and job.weights == "float32" and (job.adapter is not None or job.objective != "causal"):
        yield "adapter: lora, weights: bfloat16", replace(job, adapter=job.adapter or LoraConfig(), weights="bfloat16")
    if job.quantization is None and (job.adapter is not None or job.objective != "causal"):
        yield "adapter: lora, quantization: nf4", replace(job, adapter=job.adapter or LoraConfig(), quantization=QuantizationConfig())


def devices_needed(job: Job, cluster: Cluster, margin: Margin, most: int = 4096) -> int | None:
    """The fewest devices of that kind, doubled from one, on which the job fits."""
    count = 1
    while count <= most:
        if search(job, replace(cluster, count=count, node=min(count, cluster.device.node)), margin, wanted=1):
            return count
        count *= 2
    return None


# ---- other than training --------------------------------------------------------------------------------------------


def other_needs(job: Job, layout: Layout) -> dict[str, float]:
    """Bytes that a device needs for evaluation and for going on from a checkpoint, and a host for merging and export, about."""
    step = Step(job, layout)
    held = step.account.total
    step.tape.recording = step.tape.training = False
    step.forward()
    evaluation = step.account.peak
    brought = sum(parameter.numbers for parameter in step.parameters if parameter.learns) * layout.tensor * layout.pipeline if job.adapter is not None else 0.0
    largest = max(parameter.numbers for parameter in step.parameters)
    learning = sum(parameter.numbers for parameter in step.parameters if parameter.learns)
    states = OPTIMIZERS[job.optimizer]["state_bytes"] * learning / layout.held if job.state == "memory" and not job.away else 0.0
    whole = 4.0 * (brought or parameters(job.shape)["total"])  # of an adapter only what it brought is written
    needs = {"evaluation": float(evaluation), "resume": held + states + 4.0 * largest, "export": whole + 8.0 * largest}
    if job.away:
        needs["offloaded"] = sum((parameter.width + (parameter.learns and 4.0)) * parameter.numbers + (parameter.learns and state_bytes(parameter, job)) for parameter in step.parameters) / layout.held
    if job.adapter is not None:
        needs["merge"] = 12.0 * largest  # a matrix at a time: the base's, what the adapter adds, the sum
    return needs


def disk_bytes(job: Job, keep: int = 2) -> dict[str, float]:
    """Bytes on disk: checkpoints, the model, and the tokens to be read."""
    step = Step(job)
    changing = sum(parameter.numbers * (parameter.width + OPTIMIZERS[job.optimizer]["state_bytes"]) for parameter in step.parameters if parameter.learns)
    model = sum(parameter.numbers * parameter.width for parameter in step.parameters if job.adapter is None or parameter.learns)
    each = 2 if job.shape.vocabulary_size <= 65536 else 4
    return {"checkpoints": changing * (keep + 1), "model": model, "tokens": job.tokens * each}
