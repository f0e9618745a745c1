"""Slurm: an sbatch script with torchrun on each machine. The job is put into the queue again when it ends with status 75: asked to leave, out of time, or hanging."""

from __future__ import annotations

import shlex

from luban.foundation.console import warn
from luban.foundation.errors import ConfigError, Interrupted
from luban.parallel.launchers.config import SlurmConfig
from luban.parallel.launchers.job import Job, Launching, Shell, agent, interpreter, joined

SCRIPT = """\
#!/bin/bash
{options}
cd {folder} || exit 1
{setup}if [ -n "$SLURM_CPUS_PER_TASK" ]; then export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"; fi  # since Slurm 22.05 srun does not take it over itself
port=$((20000 + SLURM_JOB_ID % 10000))  # this script runs on the first machine of the job: there they meet
srun --kill-on-bad-exit=0 {command}
status=$?
if [ "$status" -eq {again} ]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$status"
"""


def launching(job: Job, config: SlurmConfig) -> Launching:
    file = job.written / "slurm.sh"
    if job.processes_per_node > 1 and not config.cores_per_process and not any(option.startswith(("-c", "--cpus-per-", "--exclusive")) for option in config.options):
        warn("the {count} ranks of a machine share as many cores as the partition gives a task, which may be one: --cores-per-process 8 says how many each has", count=job.processes_per_node)
    command = agent(job, interpreter(config), config.restarts, Shell('"$(hostname):$port"'), Shell('"$SLURM_JOB_ID.${SLURM_RESTART_COUNT:-0}"'))
    text = SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in _options(job, config)),
        folder=shlex.quote(str(job.folder)),
        setup="".join(f"{line}\n" for line in config.setup),
        command=joined(command),
        again=Interrupted.exit_code,
    )
    return Launching(["sbatch", str(file)], "Slurm", {file: text})


def _options(job: Job, config: SlurmConfig) -> list[str]:
    """sbatch reads them as a shell would, one a line. All processes of the job are warned by SIGUSR1 before its time is over, and by SIGTERM when it is preempted."""
    given = {
        "--job-name": job.label,
        "--nodes": job.nodes,
        "--ntasks-per-node": 1,
        "--gpus-per-node": 0 if job.devices.processors else job.processes_per_node,
        "--cpus-per-task": config.cores_per_process * job.processes_per_node,
        "--mem": config.memory,
        "--time": config.time and _clock(config.time.seconds),
        "--partition": config.partition,
        "--account": config.account,
        "--signal": f"USR1@{round(config.warning.seconds)}",
        "--output": job.written / "slurm-%j.log",
    }
    options = [f"{name}={shlex.quote(str(value))}" for name, value in given.items() if value] + ["--requeue", "--open-mode=append", *config.options]
    if broken := next((option for option in options if "\n" in option), None):
        raise ConfigError("an option of sbatch has several lines: {option!r}", "", "", option=broken)
    return options


def _clock(seconds: float) -> str:
    """D-HH:MM:SS, a part of a second counted as one."""
    minutes, second = divmod(-int(-seconds // 1), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours // 24}-{hours % 24:02d}:{minute:02d}:{second:02d}"
