"""SkyPilot: a task for AWS, Google Cloud and the others that it serves; torchrun on each machine.

Field names and the variables of a task are those of https://docs.skypilot.co (YAML spec, distributed jobs).
"""

from __future__ import annotations

from typing import Any

from luban.foundation.errors import Interrupted
from luban.parallel.launchers.config import SkypilotConfig
from luban.parallel.launchers.job import Job, Launching, Shell, agent, interpreter, joined, yaml_text

FIRST = 'first=$(echo "$SKYPILOT_NODE_IPS" | head -n 1)\n'


def launching(job: Job, config: SkypilotConfig) -> Launching:
    file = job.written / "skypilot.yaml"
    command = agent(job, interpreter(config, "python"), config.restarts, Shell('"$first:29500"'), Shell('"$SKYPILOT_TASK_ID"'))
    resources: dict[str, Any] = {"accelerators": None if job.devices.processors else f"{job.devices.kind}:{job.devices.count // job.nodes}", "infra": config.infra, "use_spot": config.spot}
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
