"""Typed configs of the launchers: what `luban launch --with NAME` takes, on the command line or in a settings file."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, ValidationInfo, field_validator

from luban.foundation.config import Auto, Config, field
from luban.foundation.durations import TimeSpan
from luban.foundation.messages import t

LABEL = r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?"  # RFC 1123


def _fits(text: str, pattern: str, form: str) -> str:
    """The text, where it is empty or of the form; ValueError says which form that is."""
    if text and not re.fullmatch(pattern, text):
        raise ValueError(form)
    return text


Image = Annotated[str, AfterValidator(lambda text: _fits(text or " ", r"\S+", t("an image is one word without spaces, such as registry.example/luban:1")))]
Folder = Annotated[str, AfterValidator(lambda text: _fits(text or ".", r"/[^:]*", t("a folder of the pods is an absolute path without colons, such as /work")))]
Namespace = Annotated[str, AfterValidator(lambda text: _fits(text or "-", LABEL, t("Kubernetes takes small letters, digits and hyphens, at most 63, such as my-team")))]
Name = Annotated[str, AfterValidator(lambda text: _fits(text, rf"(?=.{{1,253}}$){LABEL}(\.{LABEL})*", t("Kubernetes takes small letters, digits, hyphens and points, such as my-data")))]
Quantity = Annotated[str, AfterValidator(lambda text: _fits(text, r"\d+(\.\d+)?([KMGTPE]i|[mkMGTPE]|[eE]\d+)?", t("Kubernetes takes a number and a unit, such as 200Gi, 32 or 500m")))]
SlurmMemory = Annotated[str, AfterValidator(lambda text: _fits(text, r"\d+([KMGT]B?)?", t("Slurm takes a whole number and K, M, G or T, such as 200G")))]


class LauncherConfig(Config):
    """What every launcher is told."""

    cluster: str = field("auto", "Devices in all, such as 16xA100-80GB or 4xcpu, and 16xgpu or 16xgpu-48GB for what the table of devices has not; auto, or this, takes those of this machine, where that is what runs. Left out, it is what the recipe is made for.", role="machine")
    nodes: int = field(1, "Machines that the devices are on, each with as many.", role="machine", ge=1)
    processes_per_node: Auto | int = field("auto", "Ranks on each machine; auto starts one a device.", role="machine")
    python: str = field("auto", "The Python that runs Luban there; auto takes this one, and python in containers.", role="machine")


class TorchrunConfig(LauncherConfig):
    """torchrun, on this machine or on each of several."""

    restarts: int = field(3, "How often all ranks are started again when one has died; each time they continue from the last checkpoint.", role="machine", ge=0)
    rendezvous: str = field("", "Where the machines meet, as HOST:PORT: the address of one of them and a free port; one machine alone needs none.", role="machine")


class SlurmConfig(LauncherConfig):
    """An sbatch script, submitted."""

    restarts: int = field(3, "How often all ranks are started again when one has died; each time they continue from the last checkpoint.", role="machine", ge=0)
    time: TimeSpan | None = field(None, "The job's time limit, such as 12h; without one the partition's holds.", role="machine")
    partition: str = field("", "Slurm's partition.", role="machine")
    account: str = field("", "The account that the job is charged to.", role="machine")
    memory: SlurmMemory = field("", "Memory of each machine as Slurm writes it, such as 200G.", role="machine")
    cores_per_process: int = field(0, "Processor cores for each rank; 0 leaves it to Slurm.", role="machine", ge=0)
    warning: TimeSpan = field(TimeSpan.parse("120s"), "How long before the time limit the ranks are asked to save and leave.", role="machine")
    setup: list[str] = field([], "Lines of shell before the start, such as a module load.", role="machine")
    options: list[str] = field([], "More options of sbatch, each as on its command line.", role="machine")

    @field_validator("warning")
    @classmethod
    def _before_the_end(cls, warning: TimeSpan, info: ValidationInfo) -> TimeSpan:
        time = info.data.get("time")
        if time and warning.seconds >= time.seconds:
            raise ValueError(t("{warning} is not less than --time {time}", warning=warning, time=time))
        if warning.seconds > 65535:
            raise ValueError(t("Slurm warns at most 65535 seconds before the end"))
        return warning


class MpiConfig(LauncherConfig):
    """mpirun of Open MPI, or mpiexec of MPICH, Intel MPI and others with Hydra."""

    hosts: list[str] = field([], "The machines' names, rank 0's first; none is this machine.", role="machine")
    port: int = field(0, "The port where the ranks meet; 0 takes a free one, on several machines 29500.", role="machine", ge=0, le=65535)
    mpi: Literal["auto", "openmpi", "hydra"] = field("auto", "Whose command line it is; auto asks mpirun for its version.", role="machine")
    pass_environment: list[str] = field([], "Names of environment variables that the ranks get from here; their values are never printed or written.", role="machine")
    options: list[str] = field([], "More options of mpirun, each as on its command line.", role="machine")


class KubernetesConfig(LauncherConfig):
    """A JobSet or PyTorchJob manifest, applied."""

    restarts: int = field(3, "How often all ranks are started again when one has died; each time they continue from the last checkpoint.", role="machine", ge=0)
    image: Image = field(..., "The container image, with Luban in it.", role="machine")
    operator: Literal["jobset", "pytorchjob"] = field("jobset", "What the cluster has: JobSet, or Kubeflow's training operator (version 1).", role="machine")
    namespace: Namespace = field("default", "Namespace of the job.", role="machine")
    claim: Name = field("", "The PersistentVolumeClaim with the recipe and its data, on which the run is written.", role="machine")
    folder: Folder = field("/work", "Where the claim is mounted; the recipe's folder lies there.", role="machine")
    secrets: list[Name] = field([], "Kubernetes Secrets whose entries the containers get as environment variables.", role="machine")
    resource: str = field("nvidia.com/gpu", "The resource that counts the devices; processors alone need none.", role="machine")
    cores: Quantity = field("", "Processor cores of a pod as Kubernetes writes them, such as 32.", role="machine")
    memory: Quantity = field("", "Memory of a pod as Kubernetes writes it, such as 200Gi.", role="machine")
    node_labels: dict[str, str] = field({}, "Labels that a machine must have.", role="machine")
    grace: TimeSpan = field(TimeSpan.parse("120s"), "How long a pod that is to end has to save and leave.", role="machine")


class RayConfig(LauncherConfig):
    """A job on a Ray cluster, submitted."""

    restarts: int = field(3, "How often all ranks are started again when one has died; each time they continue from the last checkpoint.", role="machine", ge=0)
    address: str = field("http://127.0.0.1:8265", "Where the cluster takes jobs (its dashboard).", role="machine")
    upload: bool = field(False, "Send the recipe's folder to the cluster; else all machines see it under the same name.", role="machine")


class SkypilotConfig(LauncherConfig):
    """A SkyPilot task, launched."""

    restarts: int = field(3, "How often all ranks are started again when one has died; each time they continue from the last checkpoint.", role="machine", ge=0)
    infra: str = field("", "Cloud, and region where it matters, such as aws or gcp/us-central1; none takes the cheapest that SkyPilot knows.", role="machine")
    spot: bool = field(False, "Take machines that the cloud may take back.", role="machine")
    managed: bool = field(True, "Let SkyPilot watch the job and start it again where machines are lost (sky jobs launch); else sky launch.", role="machine")
    storage: dict[str, str] = field({}, "Buckets to mount, folder: address, such as /data: s3://my-bucket; the run's folder must lie in one to outlive its machine.", role="machine")
    pass_environment: list[str] = field([], "Names of environment variables that the ranks get from here; their values are never printed or written.", role="machine")
    setup: list[str] = field(["pip install ."], "Lines of shell that prepare a new machine, in the folder that was sent there; the default installs Luban's code from it.", role="machine")


LAUNCHERS: dict[str, type[LauncherConfig]] = {
    "torchrun": TorchrunConfig,
    "slurm": SlurmConfig,
    "mpi": MpiConfig,
    "kubernetes": KubernetesConfig,
    "ray": RayConfig,
    "skypilot": SkypilotConfig,
}  # each has a file of its name beside this one
