"""SkyPilot: a task for AWS, Google Cloud and the others that it serves; torchrun on each machine.

Field names, the variables of a task and the names of accelerators are those of https://docs.skypilot.co (YAML spec, distributed jobs, sky show-gpus -a).
"""

from __future__ import annotations

from typing import Any

from luban.foundation.console import warn
from luban.foundation.errors import ConfigError, Interrupted
from luban.parallel.launchers.config import SkypilotConfig
from luban.parallel.launchers.job import Devices, Job, Launching, Shell, agent, interpreter, joined, yaml_text

FIRST = 'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'
NAMES = {"A100-40GB": "A100", "V100-16GB": "V100", "A800-80GB": "A800", "H100-PCIe": "H100"}  # where SkyPilot's are others
SLICES = {"TPU-v4": ("tpu-v4", 2), "TPU-v5p": ("tpu-v5p", 2), "TPU-v5e": ("tpu-v5litepod", 1), "TPU-v6e": ("tpu-v6e", 1)}  # named by their cores: so many a chip


def launching(job: Job, config: SkypilotConfig) -> Launching:
    file = job.written / "skypilot.yaml"
    job.refuse_elsewhere(*config.storage)
    if "setup" not in config.model_fields_set and not (job.folder / "pyproject.toml").exists():
        fix = "start in a folder that has Luban's code, or say how: --setup 'pip install ./luban.whl'"
        raise ConfigError("nothing installs Luban on the new machines", "`pip install .` in {folder} needs a pyproject.toml", fix, folder=job.folder)
    command = agent(job, interpreter(config, "python"), config.restarts, Shell('"$first:29500"'), Shell('"$SKYPILOT_TASK_ID"'))
    resources: dict[str, Any] = {"accelerators": accelerators(job.devices, job.devices.count // job.nodes), "infra": config.infra, "use_spot": config.spot}
    if config.managed:
        resources["job_recovery"] = {"strategy": "FAILOVER", "max_restarts_on_errors": config.restarts, "recover_on_exit_codes": [Interrupted.exit_code]}
    task = {
        "name": job.label,
        "resources": {name: value for name, value in resources.items() if value},
        "num_nodes": job.nodes,
        "workdir": str(job.folder),
        "file_mounts": config.storage,
        "setup": "\n".join(config.setup),
        "run": FIRST + joined(command) + "\n",
    }
    text = yaml_text({name: value for name, value in task.items() if value})
    secrets = [word for name in config.pass_environment for word in ("--secret", name)]
    return Launching(["sky", *(["jobs"] if config.managed else []), "launch", "--name", job.label, *secrets, str(file)], "skypilot", {file: text})


def accelerators(devices: Devices, count: int) -> str | None:
    """So many devices of a machine as SkyPilot calls them: ``A100:8`` for A100-40GB, ``tpu-v4-8`` for the four chips of such a machine, ``48GB:8`` for gpu-48GB; None for processors."""
    kind = devices.kind
    if devices.processors:
        return None
    if kind in SLICES:
        name, cores = SLICES[kind]
        return f"{name}-{count * cores}"
    if devices.name.lower() == "gpu":
        if not devices.gigabytes:
            raise ConfigError("cluster: SkyPilot must know which GPUs", "", "name them, or how much memory each has: {count}xgpu-48GB", count=devices.count)
        return f"{devices.gigabytes}GB:{count}"
    if kind == "H100-PCIe":
        warn("SkyPilot has no {kind}: {name} is asked for, which may be of another form", kind=kind, name=NAMES[kind])
    return f"{NAMES.get(kind, kind)}:{count}"
