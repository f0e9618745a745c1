"""Kubernetes: a JobSet, or a PyTorchJob of Kubeflow's training operator; one pod a machine with torchrun in it.

Field names and rules are those of https://github.com/kubernetes-sigs/jobset (v1alpha2) and https://github.com/kubeflow/training-operator (v1).
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

from luban.foundation.console import warn
from luban.foundation.errors import Interrupted
from luban.parallel.launchers.config import KubernetesConfig
from luban.parallel.launchers.job import Former, Job, Launching, agent, interpreter, yaml_text

PORT = 29500
RANKS = "ranks"  # the group of pods in a JobSet
STATES = 'jsonpath={.kind} {.status.conditions[?(@.status=="True")].type}'
ENDED = ("Completed", "Succeeded", "Failed")  # of a JobSet and of a PyTorchJob


def launching(job: Job, config: KubernetesConfig) -> Launching:
    file = job.written / "kubernetes.yaml"
    if not job.recipe_is_in(config.folder):
        warn("{path} is not below {folder}, where the pods work: they find it only if their image has it", path=job.arguments[0], folder=config.folder)
    if not config.claim:
        warn("without --claim the pods have what their image has, and what the run writes goes with them")
    manifest = {"jobset": jobset, "pytorchjob": pytorchjob}[config.operator](job, config)
    ask = ["kubectl", "get", "-f", str(file), "--ignore-not-found", "-o", STATES]
    remove = ["kubectl", "delete", "-f", str(file), "--ignore-not-found", "--cascade=foreground"]  # waits until its pods are gone too
    return Launching(["kubectl", "apply", "-f", str(file)], "kubectl", {file: yaml_text(manifest)}, Former(ask, ENDED, remove))


def jobset(job: Job, config: KubernetesConfig) -> dict[str, Any]:
    """All pods are made anew when one fails: at most ``restarts`` times, but as often as it takes where they ended with status 75."""
    meeting = f"{job.label}-{RANKS}-0-0.{job.label}:{PORT}"  # the name that JobSet gives the first pod
    pods = {
        "parallelism": job.nodes,
        "completions": job.nodes,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [{"action": "FailJob", "onExitCodes": {"operator": "In", "values": [Interrupted.exit_code]}}]},
        "template": {"spec": {"restartPolicy": "Never", **_pod(job, config, "ranks", meeting)}},
    }
    again = {"name": "continue", "action": "RestartJobSetAndIgnoreMaxRestarts", "onJobFailureReasons": ["PodFailurePolicy"]}
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.label, "namespace": config.namespace},
        "spec": {
            "failurePolicy": {"maxRestarts": config.restarts, "rules": [again]},
            "replicatedJobs": [{"name": RANKS, "replicas": 1, "template": {"spec": pods}}],
        },
    }


def pytorchjob(job: Job, config: KubernetesConfig) -> dict[str, Any]:
    """One master and the other machines as workers. A pod that fails is made anew, and the ranks of the others meet it again."""
    template = {"spec": _pod(job, config, "pytorch", f"{job.label}-master-0:{PORT}")}  # the operator looks for this name of a container
    replicas = {name: {"replicas": count, "restartPolicy": "OnFailure", "template": template} for name, count in (("Master", 1), ("Worker", job.nodes - 1)) if count}
    return {
        "apiVersion": "kubeflow.org/v1",
        "kind": "PyTorchJob",
        "metadata": {"name": job.label, "namespace": config.namespace},
        "spec": {"nprocPerNode": str(job.processes_per_node), "runPolicy": {"backoffLimit": config.restarts, "cleanPodPolicy": "Running"}, "pytorchReplicaSpecs": replicas},
    }


def _pod(job: Job, config: KubernetesConfig, container: str, meeting: str) -> dict[str, Any]:
    limits = {"cpu": config.cores, "memory": config.memory, config.resource: "" if job.devices.processors else str(job.processes_per_node)}
    made: dict[str, Any] = {
        "name": container,
        "image": config.image,
        "command": agent(job, interpreter(config, "python"), config.restarts, meeting, job.label),
        "workingDir": str(PurePosixPath(config.folder)),
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": {name: amount for name, amount in limits.items() if amount}},
        "volumeMounts": [{"name": "shared-memory", "mountPath": "/dev/shm"}],  # where loaders and NCCL pass tensors on; 64 MiB without it
    }
    volumes: list[dict[str, Any]] = [{"name": "shared-memory", "emptyDir": {"medium": "Memory"}}]
    if config.claim:
        volumes.append({"name": "work", "persistentVolumeClaim": {"claimName": config.claim}})
        made["volumeMounts"].append({"name": "work", "mountPath": config.folder})
    if config.secrets:
        made["envFrom"] = [{"secretRef": {"name": name}} for name in config.secrets]
    pod: dict[str, Any] = {"containers": [made], "volumes": volumes, "terminationGracePeriodSeconds": round(config.grace.seconds)}
    return pod | ({"nodeSelector": config.node_labels} if config.node_labels else {})
