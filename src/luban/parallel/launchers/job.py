"""What a launcher is given, and what it makes of it."""

from __future__ import annotations

import hashlib
import posixpath
import re
import shlex
import sys
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from luban.foundation.errors import ConfigError
from luban.parallel.launchers.config import LauncherConfig

DEVICES = re.compile(r"(\d+)\s*x\s*(\w[\w.]*(?:-[\w.]+)*?)(?:-(\d+)\s*GB)?", re.IGNORECASE)


@dataclass(frozen=True)
class Devices:
    """``8xA100-80GB``: how many there are in all, and of what; ``gigabytes`` of each is 0 where it isn't said."""

    count: int
    name: str
    gigabytes: int = 0

    @classmethod
    def parse(cls, text: str) -> Devices:
        """Raises ConfigError."""
        match = DEVICES.fullmatch(text.strip())
        if not match or int(match[1]) < 1:
            raise ConfigError("cluster: {text!r} is no number of devices", "", "write 8xA100-80GB, 64xH100, 1xRTX4090 or 2xcpu-24GB", text=text)
        return cls(int(match[1]), match[2], int(match[3] or 0))

    @property
    def kind(self) -> str:
        """Without the number: ``A100-80GB``."""
        return f"{self.name}-{self.gigabytes}GB" if self.gigabytes else self.name

    @property
    def processors(self) -> bool:
        """Whether these are no accelerators."""
        return self.name.lower() == "cpu"


@dataclass(frozen=True)
class Job:
    """One run of a recipe: ``arguments`` of `luban run` as they were typed, in ``folder``. What is written for the engine goes to ``written``."""

    name: str
    arguments: tuple[str, ...]
    folder: Path
    written: Path
    devices: Devices
    nodes: int
    processes_per_node: int

    def recipe_is_in(self, *folders: str) -> bool:
        """Whether the recipe's path, as it was typed, stays below the working folder or leads into one of ``folders`` of the machines."""
        path = PurePosixPath(posixpath.normpath(self.arguments[0]))
        return any(path.is_relative_to(folder) for folder in folders) if path.is_absolute() else path.parts[:1] != ("..",)

    def refuse_elsewhere(self, *folders: str) -> None:
        """ConfigError where machines that get a copy of the working folder would not find the recipe."""
        if not self.recipe_is_in(*folders):
            fix = "put the recipe into that folder, and give its path from there"
            raise ConfigError("{path} will not be on the machines", "they get {folder}, under a name of their own", fix, path=self.arguments[0], folder=self.folder)

    @property
    def label(self) -> str:
        """The name as clusters take one: small letters, digits and hyphens after a letter (RFC 1035), at most 40 characters. One that had to be changed ends with a hash of
        itself, so that two recipes are not taken for one."""
        plain = re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")
        if plain == self.name and plain[0].isalpha() and len(plain) <= 40:
            return plain
        plain = plain if plain[:1].isalpha() else f"luban-{plain}"
        return f"{plain[:33].strip('-')}-{hashlib.sha256(self.name.encode()).hexdigest()[:6]}"


@dataclass(frozen=True)
class Former:
    """What may still stand under the job's name, where the cluster would take it for the job: ``ask`` prints its kind and states, if it is there. Where one of ``ended`` is among them, ``remove`` makes room."""

    ask: list[str]
    ended: tuple[str, ...]
    remove: list[str]


@dataclass(frozen=True)
class Launching:
    """What is to be done: the ``files`` that are written, a ``former`` job that has ended removed, then the ``command``, whose program comes from ``package``."""

    command: list[str]
    package: str
    files: dict[Path, str] = field(default_factory=dict)
    former: Former | None = None


def make_job(config: LauncherConfig, name: str, arguments: tuple[str, ...], folder: Path, written: Path, here: Devices | None) -> Job:
    """``here``: the devices of this machine, where ``cluster: auto`` means it. Raises ConfigError where the devices cannot be shared out."""
    if config.cluster == "auto" and here is None:
        raise ConfigError("cluster: auto means this machine, and the job runs on others", "", "say what they have together: --cluster 16xA100-80GB --nodes 2")
    devices = Devices.parse(config.cluster) if config.cluster != "auto" else Devices(here.count * config.nodes, here.name, here.gigabytes)
    if devices.count % config.nodes:
        raise ConfigError("cluster: {count} devices on {nodes} machines", "each machine has as many", "change --nodes or --cluster", count=devices.count, nodes=config.nodes)
    processes = devices.count // config.nodes if config.processes_per_node == "auto" else config.processes_per_node
    if processes < 1:
        raise ConfigError("processes_per_node: {count}", "there is at least one", "", count=processes)
    return Job(name, arguments, folder, written, devices, config.nodes, processes)


class Shell(str):
    """A word of a script that the shell fills in; it stands there as it is."""


def joined(words: list[str]) -> str:
    """Words as a line of shell."""
    return " ".join(word if isinstance(word, Shell) else shlex.quote(word) for word in words)


class _Written(yaml.SafeDumper):
    """Texts of several lines as blocks, as a person would write them; nothing as a reference to what stands elsewhere."""

    def ignore_aliases(self, data: object) -> bool:
        return True


_Written.add_representer(str, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None))


def yaml_text(plain: dict[str, Any]) -> str:
    """Plain data as YAML."""
    return yaml.dump(plain, Dumper=_Written, sort_keys=False, allow_unicode=True, width=1000)


def interpreter(config: LauncherConfig, otherwise: str = sys.executable) -> str:
    """The Python of the ranks."""
    return otherwise if config.python == "auto" else config.python


def agent(job: Job, python: str, restarts: int, endpoint: str, identity: str) -> list[str]:
    """The command that starts the ranks of one machine: torchrun with the exit status of the ranks. ``endpoint``: where the machines meet, HOST:PORT; ``identity``: of this try of
    the job, so that who comes late from a former one is not taken for one of them."""
    where = ["--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", identity] if endpoint else ["--standalone"]
    options = ["--nnodes", str(job.nodes), "--nproc-per-node", str(job.processes_per_node), "--max-restarts", str(restarts), *where]
    return [python, "-m", "luban.parallel.launchers.agent", *options, "-m", "luban", "run", *job.arguments]
