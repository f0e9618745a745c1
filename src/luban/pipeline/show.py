"""Cards in the terminal: what a path holds, whatever it is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from luban.foundation.artifacts import Artifact, is_artifact, open_artifact
from luban.foundation.console import bytes_text, count_text, say, seconds_text, table
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.foundation.paths import without_part
from luban.models.presets import PRESETS, describe, preset
from luban.pipeline.inventory import find_runs

if TYPE_CHECKING:
    from luban.examples.conversations import ConversationSet


def show(path: Path) -> None:
    """Print the card of an artifact, a run, a model directory or a data file. Raises DataError for anything else."""
    if not path.exists() and str(path) in PRESETS:
        _show_preset(str(path))
        return
    if not Path(without_part(path)).exists():
        raise DataError("{path}: no such file or folder", "", "luban runs lists what there is; a preset is shown by its name: {presets}", path=path, presets=", ".join(PRESETS))
    if is_artifact(path):
        _show_artifact(open_artifact(path))
    elif path.is_dir() and find_runs(path) == [path]:
        _show_run(path)
    elif (path / "config.json").is_file():
        _show_model(path)
    else:
        _show_data(path)


def show_ledger(path: Path) -> None:
    """Print which data the trainings at a path have learned from. DataError where there is none, or one read a place twice."""
    from luban.pipeline.ledger import ledgers
    from luban.training.consumed import read_ledger

    for folder in ledgers(path):
        lines = read_ledger(folder)
        rows = []
        for line in lines:
            places = ", ".join(f"{first}–{last}" for first, last in line["places"])
            pieces = ", ".join(f"{name}: {count}" for name, count in line["pieces"].items())
            rows.append(("–".join(map(str, line["steps"])), places, pieces, count_text(line["scored"]), line["sha256"][:16]))
        table(t("data read by {path}", path=folder.parent), [t("steps"), t("places in the data"), t("pieces of documents"), t("scored"), "sha256"], rows)
        say("no place was read twice")


def _show_artifact(artifact: Artifact) -> None:
    manifest = artifact.manifest
    rows = [
        (t("kind"), artifact.kind),
        (t("fingerprint"), artifact.fingerprint),
        (t("made"), f"{manifest.get('started', '')}, {seconds_text(manifest.get('seconds', 0))}"),
        (t("size"), bytes_text(sum(manifest.get("files", {}).values()))),
        (t("licences"), ", ".join(artifact.licences) or t("not stated")),
    ]
    rows += [(f"← {name}", ", ".join(item["name"] for item in items)) for name, items in manifest.get("inputs", {}).items() if items]
    rows += [(name, _value(value)) for name, value in artifact.metrics.items() if not isinstance(value, dict | list)]
    table(str(artifact.path), [t("what"), t("value")], rows)
    if artifact.kind == "curate":
        from luban.corpus.card import print_card

        print_card(artifact.path)
    elif artifact.kind == "evaluate":
        from luban.evaluation.report import print_results

        print_results(artifact)
    elif artifact.kind == "train":
        _show_model(artifact.path)


def _show_preset(name: str) -> None:
    """A shape that ships with Luban: its parameters, FLOPs and memory, in closed form."""
    table(t("preset {name}", name=name), [t("what"), t("value")], describe(preset(name)))


def _value(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _show_run(path: Path) -> None:
    from luban.pipeline.card import print_summary

    print_summary(path)


def _show_model(path: Path) -> None:
    from luban.models.config_json import read_shape
    from luban.models.counts import flops_per_token, memory, parameters

    shape = read_shape(path)
    need = memory(shape, rows=1, sequence_length=shape.maximum_positions)
    rows = [
        (t("architecture"), shape.architecture),
        (t("parameters"), count_text(parameters(shape)["total"])),
        (t("layers × width"), f"{shape.layers} × {shape.hidden_size}"),
        (t("heads (key-value)"), f"{shape.heads} ({shape.key_value_heads})"),
        (t("vocabulary"), shape.vocabulary_size),
        (t("longest sequence"), shape.maximum_positions),
        (t("FLOPs a token, training"), count_text(flops_per_token(shape, shape.maximum_positions))),
        (t("memory to train one full-length row (float32, AdamW)"), bytes_text(need["total"])),
    ]
    table(t("model {path}", path=path), [t("what"), t("value")], rows)


def _by_chance(found: ConversationSet) -> bool:
    """Whether the few rows of a text that look like a dialogue are no more than that."""
    return found.format == "dialogue" and 2 * len(found.conversations) < len(found.conversations) + len(found.bad)


def _judged(path: Path) -> bool:
    """Whether the file holds preferences; they are shown."""
    from luban.examples.reading import read_examples, recognise_task

    try:
        found = read_examples([path], "preference") if recognise_task(path)[:1] == ["preference"] else None
    except DataError:
        return False
    if found:
        found.show()
    return bool(found)


def _show_data(path: Path) -> None:
    """Preferences or conversations if they are, else text: the format, the mapping, three examples, the bad lines."""
    from luban.corpus.readers import find_files
    from luban.examples import conversations

    files = find_files([Path(without_part(path))])
    if _judged(path):
        return
    try:
        found = conversations.read_conversations([path])
    except DataError:
        found = None
    if found and not _by_chance(found):
        conversations.show(found)
        for conversation in found.conversations[:3]:
            say("  {where}", where=conversation.source)
            for message in conversation.messages:
                say("    {role}: {text}", role=message["role"], text=str(message.get("content") or message.get("tool_calls"))[:200])
        return
    from luban.corpus.preview import preview

    preview(files)
