"""Sums of replicas during the backward pass against sums after it, on two processes of this machine whose network is as slow as said (26 M parameters, 100 MiB of gradients a step).

    unshare -rn bash -c "ip link set lo up; tc qdisc add dev lo root tbf rate 1gbit burst 256kb latency 400ms; \\
        OMP_NUM_THREADS=1 GLOO_SOCKET_IFNAME=lo .venv/bin/torchrun --standalone --nproc-per-node 2 -m benchmarks.overlap"
"""

from __future__ import annotations

import statistics
import time

import torch
import torch.distributed as dist

from benchmarks.planner.grid import Case, batch_of, engine_of, shape
from luban.parallel import sums
from luban.parallel.engine import OnePass
from luban.parallel.layouts import Replicated
from luban.parallel.ranks import here

ROUNDS = 7


class During(OnePass):
    """Told to the layout as one backward pass."""


class After(OnePass):
    """Told as several, so that nothing is summed before the last has ended."""

    once = False


def main() -> None:
    torch.set_num_threads(1)
    ranks = here()
    sums.BUCKET_BYTES = 2 << 20  # 49 of them; at the usual 32 MiB this model has four
    case = Case("", shape("llama", hidden_size=512, heads=8, layers=8), 256, 8, 4, layout={"replicas": 2})
    engine = engine_of(case, "auto", Replicated(ranks))
    batch = batch_of(case, engine.model)
    seconds: dict[type[OnePass], list[float]] = {During: [], After: []}
    for number in range(ROUNDS + 1):
        for how, found in seconds.items():
            engine.passes = how()
            dist.barrier()
            begun = time.perf_counter()
            engine.forward_backward(batch, 1.0)
            dist.barrier()
            if number:  # the first warms up
                found.append(time.perf_counter() - begun)
            engine.optimizer.zero_grad()
    if ranks.leads:
        during, after = (statistics.median(found) for found in seconds.values())
        ratios = sorted(late / early for early, late in zip(*seconds.values(), strict=True))
        print(f"during {during:.2f} s, after {after:.2f} s: {after / during:.2f} times as fast (rounds from {ratios[0]:.2f} to {ratios[-1]:.2f}); torch {torch.__version__}, {ROUNDS} rounds")


if __name__ == "__main__":
    main()
