"""Reading conversations from whatever a user has: the format is recognised, shown, and can be overridden; bad rows are kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from luban.corpus.readers import BadLine, find_files, read_rows
from luban.examples import formats
from luban.foundation.console import say, table, warn
from luban.foundation.errors import ConfigError, DataError, nearest
from luban.foundation.messages import t

_MOST_TEXT = 2000  # characters of a bad row that are kept


@dataclass
class Conversation:
    """Messages as OpenAI writes them: role, content, and perhaps tool_calls, name and weight (0 = not learned)."""

    messages: list[dict]
    tools: list[dict] | None = None
    source: str = ""  # "chat.jsonl:12"


@dataclass
class ConversationSet:
    """What was read: conversations, how they were written, and every row that was set aside with its reason."""

    conversations: list[Conversation] = field(default_factory=list)
    format: str = ""  # "messages", "sharegpt", "alpaca", "pairs"; several joined by ", "
    mapping: dict[str, Any] = field(default_factory=dict)  # of the first row
    bad: list[BadLine] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # columns that nothing is made of


def read_conversations(paths: Sequence[Path] | Sequence[dict] | Any, mapping: dict | None = None) -> ConversationSet:
    """Read conversations from files, folders, a list of rows or a table with ``columns`` and ``to_dict`` (a pandas frame).

    Formats: OpenAI messages, ShareGPT (LLaMA-Factory's too), Alpaca, and columns such as prompt and completion or question and
    answer, in jsonl, json, csv, tsv and parquet, also compressed. ``mapping`` overrides what is recognised (see formats.py).
    Raises ConfigError for a mapping with unknown parts, DataError when no row holds a conversation.
    """
    if mapping is not None:
        _check_mapping(mapping)
    found = ConversationSet()
    forms: dict[str, None] = {}
    unused: dict[str, None] = {}
    columns: list[str] = []
    for source, number, row in _rows(paths, found):
        columns = columns or [str(name) for name in row]
        used = formats.complete(mapping) if mapping else formats.recognise(row)
        try:
            if not mapping and formats.is_preference(row):
                raise ValueError("a preference pair (chosen, rejected), not a conversation to be learned")
            if used is None:
                raise ValueError(f"no conversation is recognised; columns: {', '.join(map(str, row))}"[:300])
            messages, tools = formats.convert(row, used)
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            found.bad.append(BadLine(source, number, str(error), str(row)[:_MOST_TEXT]))
            continue
        found.conversations.append(Conversation(messages, tools, f"{source}:{number}"))
        found.mapping = found.mapping or used
        forms[used["format"]] = None
        named = {column for column in used.values() if isinstance(column, str)}
        unused |= dict.fromkeys(str(name) for name in row if name not in named)
    found.format, found.unused = ", ".join(forms), list(unused)
    if not found.conversations:
        first = found.bad[0] if found.bad else None
        raise DataError(
            "no conversation was found in {files}", "{place}" if first else "",
            "write one of the known formats (messages, sharegpt, alpaca, prompt and completion), or say which column holds what, such as mapping: {{prompt: {column}, answer: …}}",
            files=", ".join(found.files) or "(nothing)", place=f"{first.file}:{first.line}: {first.reason}" if first else "", column=columns[0] if columns else "…",
        )  # fmt: skip
    return found


def show(found: ConversationSet) -> None:
    """Print what was recognised and what was set aside."""
    say(
        "{count} conversations in {files} (format: {format})",
        count=len(found.conversations),
        files=", ".join(found.files[:3]) + (" …" if len(found.files) > 3 else ""),
        format=found.format,
    )
    table("", [t("part"), t("column")], [(part, column) for part, column in found.mapping.items() if part != "format"])
    flags = [name for name in found.unused if name.lower() in ("label", "kto_tag")]
    if flags:
        warn("the column {column} is not used: answers that it marks as bad are learned like the others", column=", ".join(flags))
    elif found.unused:
        say("columns that are not used: {columns}", columns=", ".join(found.unused[:12]))
    if found.bad:
        warn("{count} rows were set aside; the first ones:", count=len(found.bad))
        for bad in found.bad[:5]:
            say("  {place}: {reason}", place=f"{bad.file}:{bad.line}", reason=bad.reason)


def split_by_content(
    conversations: Sequence[Conversation], share: float, key: Callable[[Conversation], Any] | None = None
) -> tuple[list[Conversation], list[Conversation]]:
    """Training and validation conversations. Which side one falls on depends on its questions alone.

    So the same question never stands on both sides, and adding conversations moves no other. ``share`` is the expected part that is
    held out; at least one conversation stays on each side when there are two different ones and ``share`` is above 0.
    """
    place = [(xxhash.xxh3_64_intdigest(_content(item, key)) / 2**64, index) for index, item in enumerate(conversations)]
    held = {index for value, index in place if value < share}
    values = sorted({value for value, _ in place})
    if share > 0 and len(values) > 1:
        if not held:
            held = {index for value, index in place if value == values[0]}
        elif len(held) == len(place):
            held -= {index for value, index in place if value == values[-1]}
    return [item for index, item in enumerate(conversations) if index not in held], [
        item for index, item in enumerate(conversations) if index in held
    ]


def _content(item: Conversation, key: Callable[[Conversation], Any] | None) -> bytes:
    if key is not None:
        return str(key(item)).encode("utf-8", "replace")
    asked = [str(message.get("content", "")).strip() for message in item.messages if message["role"] == "user"]
    return "\x1e".join(asked).encode("utf-8", "replace")


def _rows(paths: Any, found: ConversationSet) -> Iterator[tuple[str, int, dict]]:
    """(file, line, row) of everything given."""
    if hasattr(paths, "to_dict") and hasattr(paths, "columns"):
        found.files.append("table")
        for number, row in enumerate(paths.to_dict("records"), start=1):
            yield "table", number, row
        return
    if isinstance(paths, str | Path):
        paths = [Path(paths)]
    rows = [item for item in paths if not isinstance(item, str | Path)]
    if rows:
        found.files.append("list")
        for number, row in enumerate(rows, start=1):
            if isinstance(row, dict):
                yield "list", number, row
            elif hasattr(row, "messages"):
                yield "list", number, {"messages": row.messages, "tools": getattr(row, "tools", None)}
            else:
                found.bad.append(BadLine("list", number, f"a {type(row).__name__}, not a mapping", str(row)[:_MOST_TEXT]))
    for file in find_files([Path(item) for item in paths if isinstance(item, str | Path)]) if len(rows) < len(paths) else []:
        found.files.append(file.name)
        for number, row in read_rows(file, on_bad=found.bad.append):
            yield str(file), number, row


def _check_mapping(mapping: dict) -> None:
    for part in mapping:
        if part not in formats.PARTS:
            raise ConfigError(
                "mapping: {part!r} is not a part of a conversation", "", "did you mean {guess}? The parts are {parts}",
                part=part, guess=nearest(str(part), formats.PARTS) or "messages", parts=", ".join(formats.PARTS),
            )  # fmt: skip
    if "messages" not in mapping and not {"prompt", "answer"} <= set(mapping):
        raise ConfigError(
            "mapping: it names neither messages, nor prompt and answer",
            "",
            "write mapping: {messages: column} or mapping: {prompt: column, answer: column}",
        )
