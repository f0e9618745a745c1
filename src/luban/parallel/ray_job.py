"""What `ray job submit` runs on the cluster: one task a machine, each with torchrun in it, and they meet at the first. Not among the launchers: Ray lets its workers import from the folder of this file, and there is a ray.py.

``python -m luban.parallel.ray_job --nodes 2 --processes-per-node 8 --accelerators 8 --restarts 3 -- recipe.yaml …``
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from luban.foundation.errors import LubanError, missing_extra
from luban.parallel.launchers.job import Devices, Job, agent


def main(words: list[str]) -> int:
    """The exit status: 75 where a machine's ranks ended with it, else the largest."""
    parser = argparse.ArgumentParser()
    for name in ("--nodes", "--processes-per-node", "--accelerators", "--restarts"):
        parser.add_argument(name, type=int, required=True)
    parser.add_argument("--folder", default=".")
    parser.add_argument("arguments", nargs="+")
    given = parser.parse_args(words)
    try:
        import ray
        from ray.util.placement_group import placement_group
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
    except ImportError:
        raise missing_extra("ray", "ray") from None
    ray.init()
    bundle = {"CPU": given.processes_per_node, **({"GPU": given.accelerators} if given.accelerators else {})}
    group = placement_group([bundle] * given.nodes, strategy="STRICT_SPREAD")
    ray.get(group.ready())

    def on_machine(number: int):
        place = PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=number)
        return {"num_cpus": bundle["CPU"], "num_gpus": given.accelerators, "scheduling_strategy": place, "max_retries": 0}

    endpoint = ray.get(ray.remote(meeting_point).options(**on_machine(0)).remote())
    job = Job("ray", tuple(given.arguments), Path(given.folder), Path(), Devices(1, "any"), given.nodes, given.processes_per_node)
    command = agent(job, sys.executable, given.restarts, endpoint, f"ray-{ray.get_runtime_context().get_job_id()}")
    statuses = ray.get([ray.remote(run_here).options(**on_machine(number)).remote(command, given.folder) for number in range(given.nodes)])
    return max(statuses)


def meeting_point() -> str:
    """This machine's address, and a port of it that is free."""
    import socket

    import ray

    with socket.socket() as probe:
        probe.bind(("", 0))
        return f"{ray.util.get_node_ip_address()}:{probe.getsockname()[1]}"


def run_here(command: list[str], folder: str) -> int:
    """Ray's tasks hide all accelerators but their own, which torchrun's ranks inherit."""
    return subprocess.run(command, cwd=folder).returncode


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except LubanError as error:
        sys.exit(error.text())
