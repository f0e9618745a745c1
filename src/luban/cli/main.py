"""The `luban` command. Verbs are loaded when they are used, so that `luban --help` answers at once."""

from __future__ import annotations

import atexit
import gc
import importlib
import sys

import click

from luban.foundation.environment import launch, let_waiting_threads_sleep
from luban.foundation.errors import LubanError
from luban.foundation.kinds import KINDS
from luban.foundation.messages import set_language, t

VERBS = {
    "new": "Copy a shipped recipe and its data into a folder: it is yours.",
    "run": "Run a recipe: what is missing or stale, in order.",
    "launch": "Start a recipe on many processes: torchrun, Slurm, MPI, Kubernetes, Ray, SkyPilot.",
    "tune": "Search for the values that a recipe leaves open.",
    "compare": "Train by several methods, or from several bases, and see what each costs.",
    "lr-find": "Find a learning rate for a train stage, with its plot.",
    "scaling": "Train a ladder of small models, and foretell the loss of the large one.",
    "check": "Walk through a recipe and the machine, and tick each step.",
    "plan": "Reckon what fits on a cluster, how fast, how long and at what cost.",
    "board": "Watch training runs in a browser, live, and compare them.",
    "chat": "Talk to a model in the terminal.",
    "predict": "Predict with a model: labels, spans, answers, texts, vectors, as JSON lines.",
    "show": "Show an artifact, a run, a model or a data file.",
    "runs": "List runs: what there is, what it weighs, what is stale.",
    "clean": "Remove what earlier recipes left behind.",
    "schema": "Print the JSON schema of recipes, for editors.",
}


class Verbs(click.Group):
    """Finds `cli/<verb>.py` for a verb of its own, and makes the command of a stage kind from its config."""

    def list_commands(self, context: click.Context) -> list[str]:
        return [*VERBS, *(name.replace("_", "-") for name in KINDS)]

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name in VERBS:
            return importlib.import_module(f"luban.cli.{name.replace('-', '_')}").command
        if name.replace("-", "_") in KINDS:
            from luban.cli.stage_command import make_command

            return make_command(KINDS[name.replace("-", "_")])
        return None

    def resolve_command(self, context: click.Context, arguments: list[str]):
        name = arguments[0]
        if self.get_command(context, name) is None:
            from luban.foundation.errors import nearest

            guess = nearest(name, self.list_commands(context))
            raise click.UsageError(t("there is no verb {name!r}", name=name) + (" — " + t("did you mean {guess}?", guess=guess) if guess else ""), context)
        return super().resolve_command(context, arguments)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section(t("Work with recipes and runs")):
            formatter.write_dl([(name, t(summary)) for name, summary in VERBS.items()])
        with formatter.section(t("Stages, each also a kind in a recipe and a call in Python")):
            formatter.write_dl([(name.replace("_", "-"), t(kind.summary)) for name, kind in KINDS.items()])


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120}, help="Luban (鲁班): from raw text to a served language model. Start with: luban new quickstart")
@click.option(
    "--language",
    type=click.Choice(["en", "zh"]),
    is_eager=True,  # before a verb is loaded: its help is in this language
    expose_value=False,
    callback=lambda context, option, value: set_language(value),
    help="Language of messages. [default: the locale's]",
)
@click.version_option(package_name="luban")
def cli() -> None:
    """The group's own work is done by its options."""


def main() -> None:
    """Run a verb; a LubanError is printed without a traceback, with its exit status."""
    let_waiting_threads_sleep()
    atexit.register(gc.freeze)  # else the interpreter looks through all of torch for what is no longer used, a second long, before it ends
    if launch().rank:  # of several processes the first one speaks
        from luban.foundation.console import hush

        hush()
    try:
        status = cli(prog_name="luban", standalone_mode=False)
        sys.exit(status if isinstance(status, int) else 0)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except LubanError as error:
        _say_error(error.text())
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, click.Abort):
        from luban.foundation.console import say

        say("stopped; what was finished is kept, and a run continues with the same command")
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(141)
    except Exception as error:
        if launch().world_size == 1:
            raise
        _end_among_ranks(error)


def _say_error(text: str) -> None:
    """Print why the command ends. Of several processes the first that fails does, with its rank: what the others meet then follows from it."""
    from luban.foundation.console import console, hush

    place, where = launch(), ""
    if place.world_size > 1:
        from luban.parallel.ranks import first_to_fail

        if not first_to_fail():
            return
        hush(False)
        where = t("rank {rank} of {ranks}", rank=place.rank, ranks=place.world_size) + ": "
    console().print(where + t("error") + ": " + text, style="red", markup=False)


def _end_among_ranks(error: Exception) -> None:
    """End a process of several on an error that nobody foresaw, with its traceback; where another process has gone, with a line that says so."""
    import traceback

    from luban.parallel.ranks import first_to_fail, lost_a_peer

    if lost_a_peer(error):
        late, first = "imed out" in str(error), str(error).splitlines()[0].partition(". ")[0]
        what = t("the other processes of this run did not answer in time: {error}" if late else "another process of this run ended without a word (killed, or out of memory): {error}", error=first)
        fix = t("look at their machines and the network between them; the same command continues from the last checkpoint" if late else "run the same command again: it continues from its last checkpoint; torchrun --max-restarts does so by itself")
        _say_error(f"{what}\n{t('try')}: {fix}")
    elif first_to_fail():
        print(f"rank {launch().rank} of {launch().world_size}", file=sys.stderr)
        traceback.print_exception(error)
    sys.exit(1)


if __name__ == "__main__":
    main()
