"""How long a step takes, and what bounds it: products, memory or the network; from rates of the devices and what the step moves.

Products take their operations over the share of a device's rate that large products reach; what stands between them (norms, activations, sums, the optimizer) reads and writes memory at
its bandwidth; what ranks send each other hides behind the work where Luban sends it meanwhile (gathered weights and their gradients' sums on GPUs), and adds to it elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from luban.models.counts import flops_per_token, parameters
from luban.planning.devices import Cluster
from luban.planning.job import Habits, Job, Layout, bytes_of_codes
from luban.planning.step import Step, planned
from luban.planning.updates import moved_bytes, orthogonal_operations

# Operations of a step over those of one without recompute: a block's forward pass again (a third more), or its cheap parts alone, whose traffic counts below.
AGAIN = {"none": 1.0, "selective": 1.03, "full": 4.0 / 3.0}
ATTENTION_AGAIN = {"none": 7 / 6, "selective": 7 / 6, "full": 9 / 6}  # a fused kernel's backward pass makes the scores again: five products to the forward's two
PASSES = {"none": 1.0, "selective": 1.25, "full": 4.0 / 3.0}  # how often what stands between the products moves, beside none
EAGER = 0.85  # of the share that products reach, where blocks are not compiled: torchtitan's and torchtune's rows with and without (benchmarks/planner)
HIDDEN = 0.8  # share of the work behind which gathers and sums of shards can hide
SMALL = 512.0  # width at which products reach half of what large ones do, on a device
BUS = 20e9  # bytes a second between a device and its host: what copies reach on 16 lanes of PCIe 4.0
HOST = 25e9  # and of a host's memory, for each of its devices: two sockets of eight channels among eight
LATENCY = 25e-6  # seconds of a collective beside its bytes


@dataclass(frozen=True)
class Speed:
    """Seconds of a step by what takes them, and tokens a second of all devices."""

    products: float
    memory: float
    network: float  # what does not hide
    bubble: float
    step: float
    tokens_per_second: float
    flops: float  # of a device and a step, without what recompute adds

    @property
    def bound(self) -> str:
        """What takes the most."""
        parts = {"compute": self.products, "memory": self.memory, "network": self.network, "pipeline": self.bubble}
        return max(parts, key=parts.__getitem__)

    def utilization(self, rate: float) -> float:
        """Share of a device's rate that the step's own operations make (MFU; PaLM, arXiv:2204.02311)."""
        return self.flops / self.step / rate


def speed(job: Job, layout: Layout, cluster: Cluster, products: float | None = None) -> Speed:
    """A step of ``job``. ``products`` is the share of its rate that large products reach, where it is known better than from the table."""
    device = cluster.device
    shape, tokens = job.shape, float(job.step_rows * job.sequence_length)
    waited = layout.context > 1 and job.habits == Habits()  # the last of a context group sees all of a row, and the others wait for it
    whole = flops_per_token(shape, job.sequence_length, causal=shape.kind == "decoder" and not job.habits.plain_attention and not waited) * tokens
    if job.head_outputs:
        whole -= 6.0 * shape.vocabulary_size * shape.hidden_size * tokens
    if job.adapter is not None:
        whole *= 2.0 / 3.0  # the base's weights get no gradients
    shared = layout.devices
    # What a step's rows do not divide into is waited for.
    rounds = job.micro_batches(layout)
    idle = rounds * job.rows * layout.readers / job.step_rows
    share = products or device.products * (1.0 if job.compile or device.kind == "cpu" else EAGER)
    if device.kind != "cpu":
        width = shape.hidden_size / layout.tensor**0.5
        share *= width / (width + SMALL * 0.35) * 1.09  # 1 at width 4096
    looking = max(0.0, whole - 3.0 * _linear(job) * tokens)
    again, attended_again, passes = (_mean(job, layout, table) for table in (AGAIN, ATTENTION_AGAIN, PASSES))
    multiplied = (whole - looking) * again * idle / shared / (device.rate(job.precision) * share * job.habits.rate)
    multiplied += looking * (again / share if job.habits.plain_attention else attended_again / device.attention) * idle / shared / device.rate(job.precision)
    if job.quantization is not None:
        multiplied *= 1.35  # weights are made again in both passes
    if job.optimizer == "muon" and job.adapter is None:  # on each device that holds a part of a matrix
        multiplied += orthogonal_operations(Step(replace(job, quantization=None), Layout()).parameters) / layout.pipeline / (device.rate("float32" if device.kind == "cpu" else "bfloat16") * share)
    memory = (_traffic(job, layout) * passes * idle + _casts(job, layout)) / (0.8 * device.bandwidth) + _update(job, layout) / (HOST if job.away else 0.8 * device.bandwidth)
    work = multiplied + memory
    network = _network(job, layout, cluster, rounds, work)
    bubble = work * (layout.pipeline - 1) / (rounds * layout.stages_per_rank) if layout.pipeline > 1 and layout.schedule != "zero_bubble" else 0.0
    if layout.schedule == "zero_bubble" and layout.pipeline > 1:
        bubble = 0.25 * work * (layout.pipeline - 1) / rounds
    step = work + network + bubble
    return Speed(multiplied, memory, network, bubble, step, tokens / step, whole / shared)


def _mean(job: Job, layout: Layout, table: dict[str, float]) -> float:
    """What a mode of recompute costs; of a budget in bytes the mean of what its blocks do."""
    if isinstance(job.recompute, str):
        return table[job.recompute]
    modes = planned(job, layout, job.shape.depth)
    return sum(map(table.__getitem__, modes)) / len(modes)


def _linear(job: Job) -> float:
    """Operations a token of a forward pass's products with matrices."""
    vocabulary = job.shape.vocabulary_size * job.shape.hidden_size if job.head_outputs else 0
    return 2.0 * (parameters(job.shape)["matrices"] - vocabulary) * (2 / 3 if job.adapter is not None else 1)


def _traffic(job: Job, layout: Layout) -> float:
    """Bytes that a device's norms, activations, sums and casts read and write in a step."""
    shape, tokens = job.shape, job.step_rows * job.sequence_length / layout.readers / layout.context / layout.pipeline
    inner = _inner(shape)
    wide, narrow = job.habits.stream, job.compute
    layers = shape.depth
    stream = 16.0 * shape.hidden_size * wide + 6.0 * shape.hidden_size * narrow  # two norms, two sums, in both directions
    inside = (10.0 * shape.heads * head_width(shape) + 12.0 * inner) * narrow / layout.tensor
    logits = 0.0 if job.head_outputs else 5.0 * shape.vocabulary_size * job.scored * (narrow + 4.0) / layout.tensor
    scores = 24.0 * shape.heads * job.sequence_length / layout.tensor if job.habits.plain_attention else 0.0  # made, scaled, normalised, dropped and their gradients
    fused = 0.5 if job.compile or job.own_layers else 1.0
    return tokens * (layers * ((stream + inside) * fused + scores) + logits * layout.pipeline * fused)


def head_width(shape: Any) -> int:
    """Width of a head of attention."""
    return getattr(shape, "head_dim", None) or shape.hidden_size // shape.heads


def _inner(shape: Any) -> float:
    """Numbers a token inside the feed-forward part."""
    if getattr(shape, "experts", 0):
        return shape.experts_per_token * shape.expert_size + (shape.shared_expert_size or 0)
    size = getattr(shape, "feed_forward_size", None)
    return float(size if isinstance(size, int) else 4 * shape.hidden_size)


def _update(job: Job, layout: Layout) -> float:
    """Bytes that the optimizer reads and writes: weights, gradients and states; of an adapter next to nothing."""
    held = parameters(job.shape)["total"] / layout.pipeline / layout.tensor / (layout.shards if layout.shard != "none" else 1)
    return held * moved_bytes(job) if job.adapter is None else 0.0


def _casts(job: Job, layout: Layout) -> float:
    """Bytes of the casts of the weights in every forward pass."""
    numbers = parameters(job.shape)["total"] / layout.pipeline / layout.tensor
    return numbers * 6.0 * job.micro_batches(layout) * (job.compute < 4) if job.adapter is None else numbers * 2.0


def _network(job: Job, layout: Layout, cluster: Cluster, rounds: int, work: float) -> float:
    """Seconds of a step in which a device waits for others."""
    shape, device, habits = job.shape, cluster.device, job.habits
    if layout.devices == 1:
        return 0.0
    total = parameters(shape)["total"] / layout.pipeline / layout.tensor
    learning = total if job.adapter is None else 0.01 * total
    tokens = job.rows * job.sequence_length / layout.context
    link = min(device.link, device.network) if layout.tensor > cluster.node else device.link
    inside = layout.tensor * layout.context
    waits = hidden = last = 0.0  # what hides behind the step's work, and behind its last backward pass
    if layout.replicas > 1 and layout.shard == "none":
        moved = _ring(learning * habits.reduced * 2, layout.replicas, _between(cluster, inside, layout.replicas))
        if inside * layout.pipeline * layout.expert == 1:
            last += moved
        else:
            waits += moved
    if layout.shards > 1 and layout.shard != "none":
        held = layout.shards * layout.context
        band = _between(cluster, layout.tensor, held)
        gathers, times = 2 if layout.shard == "full" else 1, 1 if layout.shard == "states" else rounds
        width = habits.gathered if job.quantization is None else bytes_of_codes(job.quantization)
        hidden += times * (_ring(total * width * gathers, held, band) + _ring(learning * habits.reduced, held, band))
        if job.away:
            hidden += times * (total * width * gathers + learning * habits.reduced) / held / BUS
        if layout.replicas > 1:
            hidden += times * _ring(learning * habits.reduced * 2 / layout.shards, layout.replicas, device.network)
    if layout.tensor > 1:
        layers = shape.depth / layout.pipeline
        waits += rounds * layers * (8 * _ring(tokens * shape.hidden_size * job.compute, layout.tensor, link) + 8 * LATENCY)
    if layout.context > 1:
        keys = 2 * getattr(shape, "key_value_heads", shape.heads) * head_width(shape) * job.rows * job.sequence_length * job.compute
        waits += rounds * shape.depth / layout.pipeline * 3 * _ring(keys, layout.context, _between(cluster, layout.tensor, layout.context))
    if layout.expert > 1:
        sent = tokens * shape.experts_per_token * shape.hidden_size * job.compute
        waits += rounds * shape.layers / layout.pipeline * 4 * _ring(sent, layout.expert, _between(cluster, layout.tensor, layout.expert))
    if layout.pipeline > 1:
        streams = 2 if shape.kind == "encoder_decoder" else 1
        waits += 2 * rounds * streams * tokens * shape.hidden_size * job.compute / device.network
    if device.kind == "cpu":
        return waits + hidden + last
    return waits + max(0.0, hidden - HIDDEN * work) + max(0.0, last - HIDDEN * work * 2 / 3 / rounds)


def _ring(size: float, ranks: int, bandwidth: float) -> float:
    """Seconds in which each of ``ranks`` sends what it must for ``size`` bytes to be gathered or summed."""
    return size * (ranks - 1) / ranks / bandwidth


def _between(cluster: Cluster, apart: int, ranks: int) -> float:
    """Bytes a second between ranks that stand ``apart`` in the mesh: the link's inside a node; of a group that spans nodes the network's, which the devices of a node share out among them."""
    if apart * ranks <= cluster.node:
        return cluster.device.link
    return min(cluster.device.link, cluster.device.network * max(1, cluster.node // apart))
