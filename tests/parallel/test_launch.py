"""`luban launch`: what it writes for each engine, judged by bash, by the engines' own schemas and by real runs; ranks that are killed, stopped, slow, or cut off from each other."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from jsonschema import Draft202012Validator
from safetensors.torch import load_file
from tiny import tiny_recipe
from torchrun_lab import HERE, differs

import luban
from luban.cli.launch import command
from luban.foundation.environment import Launch, launch
from luban.foundation.errors import ConfigError
from luban.parallel import ray_job
from luban.parallel.launchers.job import Devices, Job
from luban.training.log import deterministic, read_log
from luban.training.stragglers import say_slow, slow_ranks

AGENT = ["-m", "luban.parallel.launchers.agent"]
ODD = "base.samples.prompts=[\"it's $HOME; `x`\"]"  # an override that a shell would like to change


PODS = ["--with", "kubernetes", "--cluster", "8xH100", "--image", "x"]


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a recipe."""
    folder = tmp_path_factory.mktemp("a home")
    recipe = tiny_recipe(folder, batch_tokens=256, micro_batch_rows=1, schedule={"shape": "constant"}, validation={"every": "6 steps"}, checkpoint={"every": "1 steps", "keep": 9})
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    (folder / "own.py").write_text(OWN)
    return folder


@pytest.fixture(scope="module")
def made(home) -> Path:
    """The same folder, with a run in `made` whose tokens are made."""
    luban.run(home / "recipe.yaml", until="tokens", out=home / "made")
    return home


OWN = """
import os, time
from luban.objectives.causal import Causal
class Slow(Causal):
    def terms(self, model, batch):
        if os.environ["LOCAL_RANK"] == "1":
            time.sleep(0.08)
        return super().terms(model, batch)
def waits(run):
    time.sleep(0.2)
"""


def printed(home: Path, *arguments: str, recipe: str = "") -> str:
    """What --dry-run says."""
    found = CliRunner().invoke(command, [recipe or str(home / "recipe.yaml"), *arguments, "--dry-run"])
    assert found.exit_code == 0, found.exception or found.output
    return found.stdout


def said_by(home: Path, *arguments: str, recipe: str = "") -> str:
    """What --dry-run says beside it."""
    return CliRunner().invoke(command, [recipe or str(home / "recipe.yaml"), *arguments, "--dry-run"], catch_exceptions=False).stderr


def written(home: Path, *arguments: str) -> dict:
    return yaml.safe_load(printed(home, *arguments))


# ---- what is written -------------------------------------------------------------------------------------------------


def words_of(script: str, program: str, **variables: str) -> list[str]:
    """The arguments that bash gives to ``program`` when it runs the script."""
    heard = f"{program}() {{ printf '%s\\0' \"$@\" >&3; }}\nscontrol() {{ printf 'again\\0%s\\0' \"$*\" >&3; }}\n"
    ran = subprocess.run(["bash", "-c", f"exec 3>&1 1>&2\n{heard}{script}"], env={"PATH": os.environ["PATH"], **variables}, stdout=subprocess.PIPE, text=True)
    return ran.stdout.split("\0")[:-1]


def test_slurm_script(home):
    options = ["--with", "slurm", "--cluster", "16xA100-80GB", "--nodes", "2", "--time", "90 minutes", "--partition", "a b", "--memory", "200G", "--python", "/my python"]
    script = printed(home, ODD, *options, "--setup", "export READY=yes", "--options=--exclusive")
    assert not subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True).stderr
    given = re.findall(r"^#SBATCH (.*)$", script, re.MULTILINE)
    assert {"--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=8", "--time=0-01:30:00", "--partition='a b'", "--mem=200G", "--requeue", "--signal=USR1@120", "--exclusive"} <= set(given)
    words = words_of(script, "srun", SLURM_JOB_ID="31415", HOME="/elsewhere")
    host = subprocess.run(["hostname"], capture_output=True, text=True).stdout.strip()
    meeting = ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{host}:21415", "--rdzv-id", "31415.0"]
    assert words == ["--kill-on-bad-exit=0", "/my python", *AGENT, "--nnodes", "2", "--nproc-per-node", "8", "--max-restarts", "3", *meeting, "-m", "luban", "run", str(home / "recipe.yaml"), ODD]
    for status, requeued in ((75, True), (1, False), (0, False)):
        body = re.sub(r"^srun .*$", f"(exit {status})", script, flags=re.MULTILINE)
        assert (words_of(body, "srun", SLURM_JOB_ID="31415") == ["again", "requeue 31415"]) is requeued
    assert "--gpus-per-node" not in printed(home, "--with", "slurm", "--cluster", "4xcpu")


@pytest.mark.parametrize(("operator", "kind"), [("jobset", "JobSet"), ("pytorchjob", "PyTorchJob")])
def test_kubernetes_manifest_fits_the_schema_of_its_resource(home, operator, kind):
    """Against the OpenAPI schemas in the custom resource definitions of JobSet and Kubeflow, with unknown keys refused."""
    schema = json.loads((HERE / "custom_resources.json").read_text())[kind]["schema"]
    options = ["--with", "kubernetes", "--operator", operator, "--cluster", "16xH100", "--nodes", "2", "--image", "registry/luban:1", "--claim", "mine", "--secrets", "tokens", "--cores", "32"]
    manifest = written(home, ODD, *options, "--node-labels", "{zone: a}")
    assert list(Draft202012Validator(schema).iter_errors(manifest)) == []
    broken = json.loads(json.dumps(manifest).replace('"containers"', '"container"'))
    assert list(Draft202012Validator(schema).iter_errors(broken))
    text = json.dumps(manifest)
    assert '"nvidia.com/gpu": "8"' in text and '{"secretRef": {"name": "tokens"}}' in text and ODD in [json.loads(found) for found in re.findall(r'"base\.(?:[^"\\]|\\.)*"', text)]
    if operator == "jobset":
        job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
        assert job["completions"] == job["parallelism"] == 2
        assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [75]
    else:
        assert {name: replica["replicas"] for name, replica in manifest["spec"]["pytorchReplicaSpecs"].items()} == {"Master": 1, "Worker": 1}


def test_skypilot_task(home, monkeypatch):
    monkeypatch.chdir(home)
    options = ["--with", "skypilot", "--cluster", "16xA100-80GB", "--nodes", "2", "--infra", "aws", "--spot", "true", "--python", "luban_python", "--pass-environment", "WANDB_API_KEY", "--setup", "true"]
    text = printed(home, ODD, *options, recipe="recipe.yaml")
    task = yaml.safe_load(text)
    assert task["num_nodes"] == 2 and task["resources"]["accelerators"] == "A100-80GB:8" and task["resources"]["job_recovery"]["recover_on_exit_codes"] == [75]
    words = words_of(task["run"], "luban_python", SKYPILOT_NODE_IPS="10.0.0.1\n10.0.0.2", SKYPILOT_TASK_ID="t-1")
    assert words[words.index("--rdzv-endpoint") + 1] == "10.0.0.1:29500" and words[-4:] == ["luban", "run", "recipe.yaml", ODD]
    assert text.splitlines()[-1].startswith("# sky jobs launch --name tiny --secret WANDB_API_KEY ")


@pytest.mark.parametrize(
    ("ours", "theirs"),  # as `sky show-gpus -a` lists them; of TPUs v4 and v5p have two cores a chip, and are named by cores (https://cloud.google.com/tpu/docs/v5p: 2x2x1, 4 chips, is v5p-8)
    [
        ("8xA100-40GB", "A100:8"), ("8xA100-80GB", "A100-80GB:8"), ("8xA100", "A100-80GB:8"), ("8xV100-16GB", "V100:8"), ("8xV100-32GB", "V100-32GB:8"), ("8xA800-80GB", "A800:8"),
        ("8xH100", "H100:8"), ("8xH100-PCIe", "H100:8"), ("8xH100-NVL", "H100-NVL:8"), ("1x4090", "RTX4090:1"), ("8xMI300X", "MI300X:8"), ("8xgpu-48GB", "48GB:8"), ("4xcpu", None),
        ("8xTPU-v5e", "tpu-v5litepod-8"), ("8xTPU-v6e", "tpu-v6e-8"), ("4xTPU-v4", "tpu-v4-8"), ("4xtpu-v5p", "tpu-v5p-8"),
    ],
)  # fmt: skip
def test_skypilot_gets_its_own_names_of_devices(home, monkeypatch, ours, theirs):
    monkeypatch.chdir(home)
    options = ["--with", "skypilot", "--cluster", ours, "--setup", "true"]
    task = yaml.safe_load(printed(home, *options, recipe="recipe.yaml"))
    assert task["resources"].get("accelerators") == theirs
    assert ("SkyPilot has no H100-PCIe: H100 is asked for" in said_by(home, *options, recipe="recipe.yaml")) is ("PCIe" in ours)


def test_what_is_sent_to_the_machines_holds_the_recipe_and_luban(home, monkeypatch):
    monkeypatch.chdir(home)
    sky = ["--with", "skypilot", "--cluster", "8xH100"]
    for options in ([*sky, "--setup", "true"], ["--with", "ray", "--cluster", "8xH100", "--upload", "true"]):
        for recipe in (str(home / "recipe.yaml"), f"../{home.name}/recipe.yaml"):
            with pytest.raises(ConfigError, match="recipe.yaml will not be on the machines"):
                said_by(home, *options, recipe=recipe)
    assert said_by(home, *sky, "--setup", "true", "--storage", f"{{{home}: s3://mine}}") == ""  # the bucket has it
    assert said_by(home, "--with", "ray", "--cluster", "8xH100") == ""  # they see it under the same name
    with pytest.raises(ConfigError, match="nothing installs Luban on the new machines"):
        said_by(home, *sky, recipe="recipe.yaml")
    with pytest.raises(ConfigError, match="SkyPilot must know which GPUs"):
        said_by(home, "--with", "skypilot", "--cluster", "8xgpu", "--setup", "true", recipe="recipe.yaml")
    (home / "sent").mkdir()
    (home / "sent" / "pyproject.toml").touch()
    shutil.copy(home / "recipe.yaml", home / "sent" / "recipe.yaml")
    monkeypatch.chdir(home / "sent")
    assert yaml.safe_load(printed(home, *sky, recipe="recipe.yaml"))["setup"] == "pip install ."


def test_pods_that_may_not_find_the_recipe_are_told_of(home, monkeypatch):
    monkeypatch.chdir(home)
    assert f"{home / 'recipe.yaml'} is not below /work" in said_by(home, *PODS, "--claim", "mine")
    assert said_by(home, *PODS, "--claim", "mine", recipe="recipe.yaml") == said_by(home, *PODS, "--claim", "mine", "--folder", str(home)) == ""
    assert "what the run writes goes with them" in said_by(home, *PODS, recipe="recipe.yaml")


def test_names_of_recipes_stay_apart():
    """As clusters take them (RFC 1035), and no two alike."""
    names = ["tiny", "exp-1", "exp_1", "Exp-1", "exp 1", "计划", "另一个", "7b-chat", "_", "a" * 40, "a" * 41, "a" * 42, "my-计划", "-x"]
    labels = [Job(name, ("recipe.yaml",), Path("/"), Path("/"), Devices(1, "cpu"), 1, 1).label for name in names]
    assert len(set(labels)) == len(names) and all(re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", label) for label in labels)
    assert labels[:2] == names[:2] and labels[2].startswith("exp-1-") and labels[5].startswith("luban-") and labels[7].startswith("luban-7b-chat-")


STAND_IN = """#!/bin/sh
echo "$@" >> "$HOME/asked"
if [ "$1" = get ]; then cat "$HOME/states"; exit $(cat "$HOME/status"); fi
"""


@pytest.mark.parametrize(
    ("states", "status", "asked", "words"),
    [
        ("", 0, ["get", "apply"], ""),
        ("JobSet ", 0, ["get", "apply"], "has not ended"),
        ("JobSet Suspended", 0, ["get", "apply"], "has not ended"),
        ("JobSet StartupPolicyCompleted Completed", 0, ["get", "delete", "apply"], "has ended (Completed)"),
        ("PyTorchJob Created Failed", 0, ["get", "delete", "apply"], "has ended (Failed)"),
        ("", 1, ["get"], ""),
    ],
)
def test_a_job_that_has_ended_is_made_anew_and_one_that_runs_is_left(home, tmp_path, states, status, asked, words):
    """Else kubectl would change nothing, and start nothing. A stand-in says what it is asked."""
    (tmp_path / "kubectl").write_text(STAND_IN)
    (tmp_path / "kubectl").chmod(0o755)
    (tmp_path / "states").write_text(states)
    (tmp_path / "status").write_text(str(status))
    found = environment(HOME=str(tmp_path), PATH=f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    ran = subprocess.run([*LUBAN, "launch", "recipe.yaml", *PODS, "--claim", "mine", "--out", str(tmp_path / "made")], cwd=home, env=found, capture_output=True, text=True)
    lines = (tmp_path / "asked").read_text().splitlines()
    assert ran.returncode == status, ran.stderr
    assert [line.split()[0] for line in lines] == asked and all(str(tmp_path / "made" / ".launch" / "kubernetes.yaml") in line for line in lines)
    assert ("this name" in ran.stderr + ran.stdout) is bool(words) and words in " ".join((ran.stderr + ran.stdout).split())
    shown = printed(home, *PODS, "--claim", "mine", recipe=str(home / "recipe.yaml")).splitlines()[-3:]
    assert [line.split()[:3] for line in shown] == [["#", "kubectl", word] for word in ("get", "delete", "apply")]


def test_slurm_gives_a_task_the_cores_of_its_ranks(home):
    slurm = ["--with", "slurm", "--cluster", "16xH100", "--nodes", "2"]
    assert "the 8 ranks of a machine share as many cores" in said_by(home, *slurm)
    assert said_by(home, *slurm, "--options=--cpus-per-gpu=8") == said_by(home, *slurm, "--cores-per-process", "12") == ""
    script = printed(home, *slurm, "--cores-per-process", "12")
    assert "#SBATCH --cpus-per-task=96\n" in script
    for cores in ("96", ""):
        heard = re.sub(r"^srun .*$", 'srun "${SRUN_CPUS_PER_TASK-none}"', script, flags=re.MULTILINE)
        assert words_of(heard, "srun", SLURM_JOB_ID="31415", SLURM_CPUS_PER_TASK=cores) == [cores or "none"]


def test_settings_come_from_a_file_and_secrets_are_never_printed(home, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t")
    (tmp_path / "cluster.yaml").write_text("with: mpi\nmpi: hydra\nhosts: [a, b]\ncluster: 8xcpu\nnodes: 2\npass_environment: [WANDB_API_KEY]\n")
    said = printed(home, "--settings", str(tmp_path / "cluster.yaml"), "--port", "4000")
    assert said.startswith("mpirun -n 8 -ppn 4 -hosts a,b -genv MASTER_ADDR a -genv MASTER_PORT 4000 -genvlist WANDB_API_KEY ") and "s3cr3t" not in said
    said = printed(home, "--settings", str(tmp_path / "cluster.yaml"), "--mpi", "openmpi")
    assert said.startswith("mpirun -np 8 --host a:4,b:4 --bind-to none -x MASTER_ADDR=a -x MASTER_PORT=29500 -x WANDB_API_KEY ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--with", "slurm"], "cluster: auto means this machine"),
        (["--cluster", "8xH100", "--nodes", "3", "--rendezvous", "a:1"], "8 devices on 3 machines"),
        (["--cluster", "8 H100"], "no number of devices"),
        (["--cluster", "8xH100", "--nodes", "2"], "must know where to meet"),
        (["--cluster", "8xH100", "--image", "x"], "image: torchrun has no such option\nwhy: it is one of kubernetes"),
        (["--with", "kubernetes", "--cluster", "8xH100"], "image: a value is required"),
        (["--with", "mpi", "--cluster", "8xH100", "--nodes", "2"], "2 machines and 0 hosts"),
        (["--cluster", "2xcpu", "base.lenght=3"], "unknown"),
        (["--cluster", "2xcpu", "--rendezvous", "nonsense"], "'nonsense' is no HOST:PORT"),
        (["--cluster", "2xcpu", "--rendezvous", "a:70000"], "is no HOST:PORT"),
        (["--cluster", "16xbanana"], "no device is called 'banana'\ntry: there are: .*\n *GPUs that the table has not: --cluster 16xgpu, or with their memory --cluster 16xgpu-48GB"),
        (["--with", "slurm", "--cluster", "8xA100-81GB"], r"did you mean A100-80GB\?\n *GPUs that .*: --cluster 8xgpu,"),
        (["--cluster", "2xcpu", "--until", "nosuch"], "--until: there is no stage called 'nosuch'"),
        (["--with", "slurm", "--cluster", "this"], "cluster: auto means this machine"),
        ([*PODS, "--folder", "work"], "folder: a folder of the pods is an absolute path"),
        ([*PODS, "--namespace", "My_Team"], "namespace: Kubernetes takes small letters, digits and hyphens"),
        ([*PODS, "--claim", "my data"], "claim: Kubernetes takes small letters"),
        ([*PODS, "--secrets", "Tokens"], r"secrets.0: Kubernetes takes small letters"),
        ([*PODS, "--memory", "200 GB"], "memory: Kubernetes takes a number and a unit, such as 200Gi"),
        ([*PODS, "--cores", "many"], "cores: Kubernetes takes a number"),
        (["--with", "kubernetes", "--cluster", "8xH100", "--image", "a b"], "image: an image is one word without spaces"),
        (["--with", "slurm", "--cluster", "8xH100", "--memory", "64Gi"], "memory: Slurm takes a whole number and K, M, G or T"),
        (["--with", "slurm", "--cluster", "8xH100", "--time", "tomorrow"], "time: 'tomorrow' is not a span of time"),
        (["--with", "slurm", "--cluster", "8xH100", "--time", "1h", "--warning", "90m"], "warning: 90m is not less than --time 1h"),
        (["--with", "slurm", "--cluster", "8xH100", "--time", "1m"], "warning: 120s is not less than --time 1m"),
    ],
)
def test_what_cannot_be_launched_is_refused(home, arguments, said):
    with pytest.raises(ConfigError, match=said):
        CliRunner().invoke(command, [str(home / "recipe.yaml"), *arguments, "--dry-run"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("with: [slurm]\n", r"settings.yaml:1: with: there is no launcher called \['slurm'\]"),
        ("nodes: 2\nwith: slrum\n", "settings.yaml:2: with: there is no launcher called 'slrum'"),
        ("- with\n- slurm\n", "settings.yaml: settings are a mapping of options to values"),
        ("", "settings are a mapping of options to values\nwhy: the file is empty"),
        ("with: slurm\nimage: x\n", "settings.yaml:2: image: slurm has no such option"),
        ("nodes: [\n", "settings.yaml:2: not valid YAML"),
        ("1: 2\n", "settings.yaml:1: 1"),
        (None, "--settings: there is no file"),
    ],
)
def test_settings_that_are_none_are_refused_as_settings(home, tmp_path, text, said):
    if text is not None:
        (tmp_path / "settings.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said) as refused:
        said_by(home, "--settings", str(tmp_path / "settings.yaml"))
    assert "luban new" not in str(refused.value)


def test_help_of_an_option_that_several_launchers_have_tells_each():
    text = " ".join(CliRunner().invoke(command, ["--help"], terminal_width=100000).output.split())
    assert "slurm: Memory of each machine as Slurm writes it, such as 200G. [default: empty] kubernetes: Memory of a pod as Kubernetes writes it, such as 200Gi." in text
    assert "slurm: More options of sbatch, each as on its command line. [default: []] mpi: More options of mpirun" in text


@pytest.mark.parametrize(("text", "count", "kind", "gigabytes"), [("8xA100-80GB", 8, "A100-80GB", 80), ("64xH100", 64, "H100", 0), ("1xRTX4090", 1, "RTX4090", 0), ("2xcpu-24GB", 2, "cpu-24GB", 24)])
def test_devices(text, count, kind, gigabytes):
    found = Devices.parse(text)
    assert (found.count, found.kind, found.gigabytes, found.processors) == (count, kind, gigabytes, kind.startswith("cpu"))


def test_what_the_recipe_is_made_for_is_what_is_launched(home, monkeypatch):
    """Where nothing else is said, as luban plan has it."""
    monkeypatch.setattr("luban.cli.launch._devices", lambda: Devices(1, "cpu"))
    made_for = ["cluster=16xa100-80gb"]
    assert "#SBATCH --gpus-per-node=8\n" in printed(home, *made_for, "--with", "slurm", "--nodes", "2")
    assert "cluster: 16xa100-80gb, which the recipe is made for" in said_by(home, *made_for, "--with", "slurm", "--nodes", "2")
    said = said_by(home, *made_for, "--with", "slurm")
    assert "16xA100-80GB on one machine, where 8 are usual: for several machines say --nodes 2" in said
    assert "--nproc-per-node 3 " in printed(home, *made_for, "--cluster", "3xcpu") and "made for" not in said_by(home, *made_for, "--cluster", "3xcpu")
    assert "--nproc-per-node 1 " in printed(home, "cluster=this") and "--nproc-per-node 1 " in printed(home, *made_for, "--cluster", "this")


def test_the_names_of_devices_are_the_planners(home):
    assert "--accelerators 8 " in printed(home, "--with", "ray", "--cluster", "8xgpu-48GB")  # or none of them
    assert "TPU-v5e: training does not look for such devices" in said_by(home, "--with", "ray", "--cluster", "8xTPU-v5e")


def test_ranks_are_not_started_on_a_machine_without_their_devices(home, monkeypatch):
    """Nothing is: execvp would end this test."""
    monkeypatch.setattr("luban.cli.launch._devices", lambda: Devices(1, "cpu"))
    refused = [([], "8 A100-80GB on each machine, and this one has no GPU"), (["--with", "mpi"], "no GPU"), (["--nodes", "2", "--rendezvous", "a:1"], "4 A100-80GB on each machine")]
    for options, said in refused:
        with pytest.raises(ConfigError, match=said) as error:
            CliRunner().invoke(command, [str(home / "recipe.yaml"), "--cluster", "8xA100-80GB", *options], catch_exceptions=False)
        assert "--cluster 8xcpu" in str(error.value)
        assert said in said_by(home, "--cluster", "8xA100-80GB", *options)
    monkeypatch.setattr("luban.cli.launch._devices", lambda: Devices(2, "NVIDIA-L4"))
    with pytest.raises(ConfigError, match="4 L4 on each machine, and this one has 2"):
        CliRunner().invoke(command, [str(home / "recipe.yaml"), "cluster=4xL4"], catch_exceptions=False)
    assert "each machine" not in said_by(home, "--cluster", "2xL4") + said_by(home, "--cluster", "4xcpu")
    assert "each machine" not in said_by(home, "--with", "mpi", "--cluster", "8xL4", "--hosts", "a")  # they start there


def test_ray_job_is_started_with_what_it_reads(home):
    words = printed(home, "--with", "ray", "--cluster", "4xH100", "--nodes", "2").split()
    assert words[:5] == ["ray", "job", "submit", "--address", "http://127.0.0.1:8265"]
    if shutil.which("ray") is None:
        with pytest.raises(luban.foundation.errors.LubanError, match="the Python package ray is not installed"):
            ray_job.main(words[words.index("luban.parallel.ray_job") + 1 :])


# ---- who was started -------------------------------------------------------------------------------------------------

STARTED = {  # the second of two ranks; variables as each launcher set them when it was run
    "Open MPI": {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_RANK": "1", "OMPI_COMM_WORLD_LOCAL_SIZE": "2", "PMIX_NAMESPACE": "1931411457", "PMIX_RANK": "1"},
    "MPI": {"PMI_RANK": "1", "PMI_SIZE": "2", "MPI_LOCALRANKID": "1", "MPI_LOCALNRANKS": "2", "PMI_FD": "9"},
    "MVAPICH": {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "2", "MV2_COMM_WORLD_LOCAL_RANK": "1", "MV2_COMM_WORLD_LOCAL_SIZE": "2"},
    "Horovod": {"HOROVOD_RANK": "1", "HOROVOD_SIZE": "2", "HOROVOD_LOCAL_RANK": "1", "HOROVOD_LOCAL_SIZE": "2", "HOROVOD_CONTROLLER": "gloo"},
}


@pytest.mark.parametrize("name", STARTED)
def test_a_launchers_environment_is_understood(monkeypatch, name):
    for key, value in STARTED[name].items():
        monkeypatch.setenv(key, value)
    here = launch()
    assert (here.rank, here.world_size, here.local_rank, here.local_world_size, here.by, here.address) == (1, 2, 1, 2, name, "127.0.0.1")
    assert 20000 <= here.port < 30000 and launch().port == here.port
    size = next(key for key in STARTED[name] if key.endswith("SIZE") and "LOCAL" not in key)
    monkeypatch.setenv(size, "4")  # two more on another machine
    assert launch().address == ""
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "4000")
    assert (launch().address, launch().port) == ("10.0.0.1", 4000)
    monkeypatch.setenv(size, "1")
    assert launch() == Launch()


@pytest.mark.parametrize(
    ("seconds", "speeds", "rows", "slow"),
    [
        ([1.0, 1.1, 1.0, 1.0], [9e9, 8e9, 9e9, 7e9], [4] * 4, []),
        ([1.0, 1.0, 1.6, 1.0], [None] * 4, [4] * 4, [2]),
        ([0.001, 0.009], [1e9, 1e9], [4] * 2, []),  # milliseconds are noise
        ([1.0, 1.0, 1.0], [9e9, 4e9, 9e9], [4] * 3, [1]),  # weights are gathered all the time: all need as long
        ([2.0, 1.0, 2.0, 1.0, 1.0], [9e9] * 5, [4] * 5, [0, 2]),
        ([0.009, 0.02], [9e9, 4e9], [4] * 2, []),  # a product that was disturbed costs so short a step nothing
        ([0.2, 0.2], [9e9, 4e9], [4] * 2, [1]),
        ([1.0, 0.1], [None] * 2, [1, 0], []),  # who has no rows has nothing to do
        ([1.0, 0.1, 0.1], [9e9, 9e9, 9e9], [1, 0, 0], []),
        ([0.9, 2.0], [None] * 2, [1, 2], []),  # twice the rows
        ([0.9, 4.0], [None] * 2, [1, 2], [1]),
        ([0.5, 0.5], [9e9, 4e9], [0, 1], [1]),
        ([1.0, 2.0], [None] * 2, [0, 0], [1]),  # an engine that does not say
    ],
)
def test_who_is_slow(seconds, speeds, rows, slow):
    assert [facts["rank"] for facts in slow_ranks(seconds, speeds, rows)] == slow


@pytest.mark.parametrize(
    ("seconds", "speeds", "words"),
    [
        ([0.1, 0.3], [None, None], "rank 1 is slow: 300 ms of its own work a step, where the others need 100 ms and wait for it"),
        ([0.05, 0.09], [9e9, 4e9], "rank 1 is slow: it computes 44% of what the others do in the same time"),  # 1.8 times as long, and yet too little to be named for
        ([1.0, 2.54], [9e9, 9e9], "rank 1 is slow: 2.5s of its own work a step, where the others need 1.0s and wait for it"),
    ],
)
def test_a_slow_rank_is_named_for_what_it_was_found_by(seconds, speeds, words, capsys):
    (facts,) = slow_ranks(seconds, speeds, [1, 1])
    say_slow(f"rank {facts['rank']}", facts)
    assert words in " ".join("".join(capsys.readouterr()).split())


# ---- real runs -------------------------------------------------------------------------------------------------------


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (Path(luban.__file__).parents[1], HERE.parent, HERE))), "OMP_NUM_THREADS": "1", "LC_ALL": "C.UTF-8", "OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1", **more}


QUICK = "base.guards.watchdog={step: 4s, checkpoint: 4s, evaluation: 4s}"  # wherever a run stands when it hangs
LUBAN = [sys.executable, "-m", "luban", "--language", "en"]


def started(home: Path, name: str, *words: str, prefix: tuple[str, ...] = (), **more: str) -> subprocess.Popen:
    """A command in a folder of a run whose tokens are made; what it says goes to NAME.log."""
    if not (home / name).exists():
        shutil.copytree(home / "made", home / name)
    with (home / f"{name}.log").open("a") as log:
        return subprocess.Popen([*prefix, *words], cwd=home, env=environment(**more), stdout=log, stderr=log)


def launched(home: Path, name: str, *options: str, **more: str) -> subprocess.Popen:
    return started(home, name, *LUBAN, "launch", "recipe.yaml", *options, "--out", name, **more)


def said(home: Path, name: str) -> str:
    return (home / f"{name}.log").read_text()


def ended(home: Path, name: str, *processes: subprocess.Popen, status: int = 0) -> str:
    for process in processes:
        try:
            assert process.wait(timeout=300) == status, said(home, name)[-4000:]
        finally:
            process.kill()
    return said(home, name)


def until(condition, home: Path, name: str, process: subprocess.Popen, seconds: float = 180) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if process.poll() is not None or time.monotonic() > end:
            process.terminate()
            raise AssertionError(said(home, name)[-4000:])
        time.sleep(0.05)


def steps(home: Path, name: str) -> int:
    return sum("loss" in entry for entry in read_log(home / name / "base.partial" / "training" / "log.jsonl"))


def rank_of(process: subprocess.Popen, rank: int) -> int:
    """The process of a rank that a launcher started."""
    children = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True).stdout.split()
    return next(int(child) for child in children if f"\0RANK={rank}\0".encode() in b"\0" + Path(f"/proc/{child}/environ").read_bytes())


@pytest.mark.long
def test_a_killed_rank_of_four_is_started_again_and_nothing_shows_of_it(made):
    """Undisturbed by two launchers with two ranks each, as on two machines; and by one with four, of which one is killed: the same bits."""
    port = str(20000 + os.getpid() % 10000)
    machines = [launched(made, "two", "--cluster", "4xcpu", "--nodes", "2", "--rendezvous", f"127.0.0.1:{port}") for _ in range(2)]
    assert "4 processes" in ended(made, "two", *machines)
    process = launched(made, "killed", "base.callbacks=[own.py:waits]", "--cluster", "4xcpu")
    until(lambda: steps(made, "killed") > 3, made, "killed", process)
    os.kill(rank_of(process, 2), signal.SIGKILL)
    text = ended(made, "killed", process)
    assert text.count("continuing at step") == 1 and "✓ base" in text
    entries = [[{key: value for key, value in entry.items()} for entry in deterministic(made / name / "base" / "training" / "log.jsonl")] for name in ("two", "killed")]
    assert entries[0] == entries[1]
    weights = [load_file(made / name / "base" / "model.safetensors") for name in ("two", "killed")]
    assert weights[0].keys() == weights[1].keys() and all(value.equal(weights[1][key]) for key, value in weights[0].items())


@pytest.mark.long
def test_a_run_that_is_asked_to_leave_ends_with_the_status_to_requeue_on(made):
    """SIGUSR1 to torchrun and to a rank at once, as Slurm gives it; and to a rank alone, which torchrun starts again: it leaves at once."""
    process = launched(made, "left", "base.callbacks=[own.py:waits]", "--cluster", "2xcpu", "--restarts", "1")
    until(lambda: steps(made, "left") > 2, made, "left", process)
    for one in (rank_of(process, 0), process.pid):
        os.kill(one, signal.SIGUSR1)
    assert "everything is saved" in ended(made, "left", process, status=75)
    process = launched(made, "left", "base.callbacks=[own.py:waits]", "--cluster", "2xcpu", "--restarts", "1")
    until(lambda: "continuing at step" in said(made, "left"), made, "left", process)
    os.kill(rank_of(process, 1), signal.SIGUSR1)
    assert "the ranks were asked to leave, and do not begin again" in ended(made, "left", process, status=75)


@pytest.mark.long
def test_a_rank_that_stands_still_is_named(made):
    process = launched(made, "still", "base.callbacks=[own.py:waits]", QUICK, "--cluster", "2xcpu", "--restarts", "0")
    until(lambda: steps(made, "still") > 2, made, "still", process)
    stopped = rank_of(process, 1)
    os.kill(stopped, signal.SIGSTOP)
    try:
        until(lambda: f"process {stopped}): stopped, or its machine or the network to it is lost" in said(made, "still"), made, "still", process)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert "no sign of life of rank 1 (" in ended(made, "still", process, status=75)
    events = [entry for entry in read_log(made / "still" / "base.partial" / "training" / "guard.jsonl") if entry["event"] == "hang"]
    assert [event["ranks"] for event in events] == [[1]]


@pytest.mark.long
def test_a_slow_rank_is_named(made):
    text = ended(made, "slow", launched(made, "slow", "base.objective=own.py:Slow", "--cluster", "2xcpu"))
    assert re.search(r"rank 1 \(.*\) is slow: .*s of its own work a step, where the others need .*s and wait for it", text), text
    slow = [entry["rank"] for entry in read_log(made / "slow" / "base" / "training" / "guard.jsonl") if entry["event"] == "straggler"]
    assert slow and set(slow) == {1}


@pytest.mark.long
def test_a_rank_without_rows_is_said_to_have_none(made):
    """And the other, which has all the work, is not called slow."""
    text = " ".join(ended(made, "idle", launched(made, "idle", "base.objective=own.py:Slow", "base.batch_tokens=32", "--cluster", "2xcpu")).split())
    assert re.search(r"rank \d \([^)]*\): no rows, as a step has fewer than", text) and "is slow" not in text, text


@pytest.mark.mpi
@pytest.mark.long
def test_mpirun_starts_ranks(made):
    """By `luban launch`, and bare; the figures of one process."""
    luban.run(made / "recipe.yaml", out=made / "made_one", until="base")
    ended(made, "mpi", launched(made, "mpi", "--with", "mpi", "--cluster", "2xcpu"))
    assert differs(made / "made_one" / "base", made / "mpi" / "base") == []
    text = ended(made, "bare", started(made, "bare", "mpirun", "--oversubscribe", "-np", "2", *LUBAN, "run", "recipe.yaml", "--out", "bare"))
    assert "2 processes" in text and differs(made / "mpi" / "base", made / "bare" / "base") == []


@pytest.mark.long
def test_what_horovodrun_starts_runs_and_is_told_the_same_without_it(made):
    both = [started(made, "horovod", *LUBAN, "run", "recipe.yaml", "--out", "horovod", **{**STARTED["Horovod"], "HOROVOD_RANK": rank, "HOROVOD_LOCAL_RANK": rank}) for rank in "01"]
    text = ended(made, "horovod", *both)
    assert text.count("started by horovodrun: 2 ranks") == 1 and "luban launch RECIPE --processes-per-node 2" in text and "2 processes" in text


# ---- machines of their own -------------------------------------------------------------------------------------------

MACHINES = """
set -eu
mount -t tmpfs none /run
for name in a b; do ip netns add $name; ip -n $name link set lo up; done
ip link add end-a netns a type veth peer name end-b netns b
ip -n a address add 10.77.0.1/24 dev end-a; ip -n b address add 10.77.0.2/24 dev end-b
ip -n a link set end-a up; ip -n b link set end-b up
for name in a b; do GLOO_SOCKET_IFNAME=end-$name ip netns exec $name "$@" & done
while [ ! -e cut ]; do sleep 0.1; if [ -z "$(jobs -r)" ]; then wait; exit 0; fi; done
ip -n b link set end-b down
for job in $(jobs -p); do wait $job || true; done
"""


@pytest.mark.namespaces
@pytest.mark.long
def test_two_machines_with_addresses_of_their_own_and_a_network_that_breaks(made):
    """Network namespaces, each with a launcher and one rank; then the cable between them is cut."""
    (made / "cut").unlink(missing_ok=True)
    apart = ("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "bash", "-c", MACHINES, "machines")
    options = ["base.callbacks=[own.py:waits]", QUICK, "--cluster", "2xcpu", "--nodes", "2", "--rendezvous", "10.77.0.1:29500", "--restarts", "0", "--out", "apart"]
    process = started(made, "apart", *LUBAN, "launch", "recipe.yaml", *options, prefix=apart)
    until(lambda: steps(made, "apart") > 2, made, "apart", process)
    (made / "cut").touch()
    lost = re.compile(r"no sign of life of rank 1 \(|the store over which the ranks talk does not answer|did not answer in time")
    try:
        until(lambda: lost.search(said(made, "apart")), made, "apart", process)
    finally:
        process.kill()
    assert "hangs since" in said(made, "apart")
