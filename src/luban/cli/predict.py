"""`luban predict MODEL FILE`."""

from __future__ import annotations

from pathlib import Path

import click

from luban.foundation.messages import t


@click.command(help=t("Predict with a model: labels, spans, answers, fills, texts or vectors, as JSON lines. SOURCE is a file of any recognised format, - for lines from standard input, or a text with --text."))
@click.argument("model", type=click.Path(path_type=Path))
@click.argument("source", required=False, default="-")
@click.option("--text", multiple=True, help=t("Predict this text instead of a file; may be given several times."))
@click.option("--out", type=click.Path(path_type=Path), help=t("Write the lines to this file. [default: standard output]"))
@click.option("--mapping", default="", help=t("Which column holds what, such as {text: review}. [default: recognised]"))
@click.option("--rows", type=int, default=32, help=t("Rows of one forward pass. [default: 32]"))
def command(model: Path, source: str, text: tuple[str, ...], out: Path | None, mapping: str, rows: int) -> None:
    import yaml

    from luban.foundation.artifacts import write_bytes
    from luban.foundation.console import say
    from luban.foundation.errors import ConfigError
    from luban.inference.predictor import Predictor
    from luban.pipeline.predict import json_line, predict_lines

    named = yaml.safe_load(mapping) if mapping else None
    if named is not None and not isinstance(named, dict):
        raise ConfigError("--mapping: {value!r} is no mapping", "", "write {{text: review}}", value=mapping)
    predictor = Predictor.load(model)
    if text:
        lines = (json_line(f"--text:{number}", said) for number, said in enumerate(predictor.predict(list(text), rows=rows), start=1))
    else:
        lines = predict_lines(predictor, source, named, rows)
    if out is None:
        for line in lines:
            click.echo(line)
        return
    written = [line + "\n" for line in lines]
    write_bytes(out, "".join(written).encode("utf-8", "surrogatepass"))
    say("{count} predictions are in {file}", count=len(written), file=out)
