"""`luban chat MODEL`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Talk to a model in the terminal. MODEL is a model directory or a train artifact."))
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--prompt", "-p", help=t("Ask this, print the answer, and leave. [default: talk]"))
@click.option("--temperature", type=float, help=t("Randomness; 0 always takes the likeliest token. [default: the model's own]"))
@click.option("--top-p", type=float, help=t("Sample from the likeliest tokens that together have this probability. [default: the model's own]"))
@click.option("--top-k", type=int, help=t("Sample from this many likeliest tokens. [default: the model's own]"))
@click.option("--maximum-tokens", type=int, help=t("Longest answer in tokens. [default: 256]"))
@click.option("--seed", type=int, help=t("Seed of the sampling. [default: a new one each time]"))
@click.option("--system", help=t("System message. [default: none]"))
def command(model: Path, prompt: str | None, system: str | None, **sampling: object) -> None:
    from luban.cli.chat_terminal import chat

    given = {name: value for name, value in sampling.items() if value is not None}
    chat(model, prompt=prompt, system=system, **given)
