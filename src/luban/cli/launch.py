"""`luban launch RECIPE --with slurm`: start a recipe on many processes, by what the cluster has."""

from __future__ import annotations

import importlib
import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import click

from luban.cli.stage_command import make_option, value_of
from luban.foundation.config import Source, build, walk_fields
from luban.foundation.errors import ConfigError, LubanError
from luban.foundation.messages import t
from luban.parallel.launchers.config import LAUNCHERS

HELP = (
    "Start a recipe on many processes. torchrun and mpi run it now and here; slurm, kubernetes, ray and skypilot get what they want to read, and are asked to run it. "
    "Overrides are those of luban run. A rank that dies is started again with all others, and they continue from the last checkpoint."
)


def _fields() -> dict[str, Any]:
    """Every field of every launcher; what several share comes once."""
    found: dict[str, Any] = {}
    for cls in LAUNCHERS.values():
        for name, info in walk_fields(cls):
            found.setdefault(name, info)
    return found


def _owners(name: str) -> list[str]:
    """The launchers that have a field."""
    return [launcher for launcher, cls in LAUNCHERS.items() if name in cls.model_fields]


def _options() -> list[click.Option]:
    made = []
    for name, info in _fields().items():
        option, said = make_option(name, info), {}
        for launcher in _owners(name):
            said.setdefault(make_option(name, LAUNCHERS[launcher].model_fields[name]).help, []).append(launcher)
        option.help = " ".join(text if len(owners) == len(LAUNCHERS) else f"{', '.join(owners)}: {text}" for text, owners in said.items())
        made.append(option)
    return made


def start(recipe: Path, overrides: tuple[str, ...], chosen: str | None, settings: Path | None, out: Path | None, until: str | None, dry_run: bool, **given: tuple[str, ...]) -> None:
    from luban.parallel.launchers.job import make_job
    from luban.pipeline.planner import check_layouts
    from luban.pipeline.recipe import check_until, read_recipe
    from luban.planning.devices import cluster

    name, config = _config(chosen, settings, given)
    made = read_recipe(recipe, list(overrides), out)
    check_until(made, until)
    config = _with_cluster(config, made.cluster, name)
    arguments = (str(recipe), *overrides, *(("--out", str(out)) if out else ()), *(("--until", until) if until else ()))
    here = _devices() if name in ("torchrun", "mpi") else None
    job = make_job(config, made.name, arguments, Path.cwd(), made.out.resolve() / ".launch", here)
    if here and not getattr(config, "hosts", []):
        _refuse_missing(job, here, dry_run)
    check_layouts(made, cluster(f"{job.processes_per_node * job.nodes}xcpu"))
    launching = importlib.import_module(f"luban.parallel.launchers.{name}").launching(job, config)
    if dry_run:
        for file, text in launching.files.items():
            click.echo(f"# {file}\n{text}")
        before = "# " if launching.files else ""
        if former := launching.former:
            click.echo(before + shlex.join(former.ask))
            click.echo(before + t("{command}  (only where that says {states})", command=shlex.join(former.remove), states=" / ".join(former.ended)))
        click.echo(before + shlex.join(launching.command))
        return
    if shutil.which(launching.command[0]) is None:
        raise LubanError("there is no {program} here", "it comes with {package}", "start it where the cluster is reached from, or take what --dry-run prints there", program=launching.command[0], package=launching.package)
    for file, text in launching.files.items():
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    if launching.former:
        _make_room(launching.former)
    sys.stdout.flush()
    os.execvp(launching.command[0], launching.command)  # signals and the exit status are the launcher's own


def _make_room(former: Any) -> None:
    """Remove a job of this name that has ended, as the cluster would start nothing beside it; one that has not is left as it is, and that is said."""
    import subprocess

    from luban.foundation.console import say, warn

    asked = subprocess.run(former.ask, stdout=subprocess.PIPE, text=True)
    if asked.returncode:
        sys.exit(asked.returncode)  # it has said why
    states = asked.stdout.split()
    if ended := next((state for state in states if state in former.ended), None):
        say("the job of this name has ended ({state}): it is removed, and made anew", state=ended)
        if status := subprocess.run(former.remove).returncode:
            sys.exit(status)
    elif states:
        warn("a job of this name is there and has not ended: it goes on as it is; to begin anew, remove it: {command}", command=shlex.join(former.remove))


def _config(chosen: str | None, settings: Path | None, given: dict[str, tuple[str, ...]]) -> tuple[str, Any]:
    """The launcher's name and config, from the settings file and, before it, the options."""
    plain, lines = _read_settings(settings) if settings else ({}, {})
    source = Source(str(settings) if settings else "", lines)
    written = plain.pop("with", chosen or "torchrun")
    if not isinstance(written, str) or written not in LAUNCHERS:
        raise ConfigError("{where}: there is no launcher called {name!r}", "", "one of: {known}", where=source.at("with"), name=written, known=", ".join(LAUNCHERS))
    name = chosen or written
    if written != name:
        raise ConfigError("{file} is for another launcher than --with {name}", "", "leave --with out, or take other settings", file=settings, name=name)
    known = _fields()
    plain |= {field: value_of(field, known[field], texts) for field, texts in given.items() if texts}
    for field in plain:
        owners = _owners(field)
        if owners and name not in owners:
            values = {"where": source.at(field), "name": name, "owners": ", ".join(owners), "owner": owners[0]}
            raise ConfigError("{where}: {name} has no such option", "it is one of {owners}", "leave it out, or choose --with {owner}", **values)
    return name, build(LAUNCHERS[name], plain, source)


def _read_settings(file: Path) -> tuple[dict[str, Any], dict[str, int]]:
    from luban.foundation.yaml_files import read_yaml

    form = "write options of luban launch by name, one a line, such as with: slurm and nodes: 2"
    if not file.is_file():
        raise ConfigError("--settings: there is no file {file}", "", form, file=file)
    try:
        return read_yaml(file)
    except ConfigError as error:
        if not error.fix.startswith("luban new"):
            raise
        raise ConfigError("{file}: settings are a mapping of options to values", error.why, form, file=file) from None  # and no recipe


def _with_cluster(config: Any, made_for: str, name: str) -> Any:
    """The config with its devices called as the planner's table calls them: those that were given, else what the recipe is made for."""
    from luban.foundation.console import say, warn
    from luban.parallel.launchers.job import Devices

    text = config.cluster
    if made_for and "cluster" not in config.model_fields_set:
        text = made_for
        say("cluster: {cluster}, which the recipe is made for; --cluster says otherwise", cluster=text)
    if text in ("auto", "this"):
        return config.updated(cluster="auto")
    asked = Devices.parse(text if text[:1].isdigit() else f"1x{text}")
    if asked.name.lower() == "gpu":
        return config.updated(cluster=f"{asked.count}x{asked.kind}")
    known = _known(asked)
    if not known.device.trains:
        warn("{device}: training does not look for such devices, and its ranks compute on the processors beside them", device=known.device.name)
    usual = max(8, known.device.node)
    if "nodes" not in config.model_fields_set and known.device.kind != "cpu" and known.count > usual and name not in ("torchrun", "mpi"):
        warn("{cluster} on one machine, where {usual} are usual: for several machines say --nodes {nodes}", cluster=known.text, usual=usual, nodes=-(-known.count // usual))
    return config.updated(cluster=known.text)


def _known(asked: Any) -> Any:
    """The cluster of devices of the planner's table. ConfigError for others, with the way to launch on them all the same."""
    from luban.planning.devices import cluster

    try:
        return cluster(f"{asked.count}x{asked.kind}")
    except ConfigError as error:
        if "guess" not in error.values:
            raise  # it is no name that is wrong
        way = {"hint": t(error.fix, **error.values), "gpus": f"{asked.count}xgpu"}
        raise ConfigError(error.what, error.why, "{hint}\n     GPUs that the table has not: --cluster {gpus}, or with their memory --cluster {gpus}-48GB", **error.values, **way) from None


def _refuse_missing(job: Any, here: Any, dry_run: bool) -> None:
    """Of ranks that start here each needs a device here: else they would train on the processor, or share what there is. ConfigError; where nothing is started a line."""
    from luban.foundation.console import warn

    count = 0 if here.processors else here.count
    if job.devices.processors or job.devices.count // job.nodes <= count:
        return
    missing = ConfigError(
        "cluster: {each} {kind} on each machine, and this one has {here}" if count else "cluster: {each} {kind} on each machine, and this one has no GPU",
        "the ranks would start here", "--cluster {ranks}xcpu for as many on the processor, --cluster auto for what is here, or --with what reaches the cluster",
        each=job.devices.count // job.nodes, kind=job.devices.kind, here=here.count, ranks=job.processes_per_node * job.nodes,
    )  # fmt: skip
    if not dry_run:
        raise missing
    warn(missing.what, **missing.values)


def _devices() -> Any:
    """The accelerators of this machine, or one process on its processors."""
    import torch

    from luban.parallel.launchers.job import Devices

    if torch.cuda.is_available():
        return Devices(torch.cuda.device_count(), torch.cuda.get_device_name().replace(" ", "-"))
    return Devices(1, "cpu")


command = click.Command(
    "launch",
    callback=start,
    help=t(HELP),
    params=[
        click.Argument(["recipe"], type=click.Path(path_type=Path)),
        click.Argument(["overrides"], nargs=-1),
        click.Option(["--with", "chosen"], type=click.Choice(list(LAUNCHERS)), help=t("What starts the ranks. [default: torchrun]")),
        click.Option(["--settings"], type=click.Path(path_type=Path), help=t("A YAML file with these options by name, and `with`; an option here counts before it.")),
        click.Option(["--out"], type=click.Path(path_type=Path), help=t("Folder of the run. [default: the recipe's `out`]")),
        click.Option(["--until"], metavar="STAGE", help=t("Stop after this stage. [default: run them all]")),
        click.Option(["--dry-run"], is_flag=True, help=t("Print what would be written and run, and do nothing.")),
        *_options(),
    ],
)
