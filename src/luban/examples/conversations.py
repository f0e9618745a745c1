"""Reading conversations from whatever a user has: the format is recognised, shown, and can be overridden; bad rows are kept."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import xxhash

from luban.corpus.readers import BadLine, find_files
from luban.examples import formats, slices
from luban.examples.dialogue_files import as_row, conversation_rows
from luban.examples.notes import note_text, show_bad
from luban.foundation.console import say, table, warn
from luban.foundation.errors import ConfigError, DataError, nearest
from luban.foundation.messages import t

_MOST_TEXT = 2000  # characters of a bad row that are kept


@dataclass
class Conversation:
    """Messages as OpenAI writes them: role, content, and perhaps tool_calls, name and weight (0 = not learned)."""

    messages: list[dict]
    tools: list[dict] | None = None
    source: str = ""  # "chat.jsonl:12", "chat.json:1 (its key)"


@dataclass
class ConversationSet:
    """What was read: conversations, how they were written, and every row that was set aside with its reason."""

    conversations: list[Conversation] = field(default_factory=list)
    format: str = ""  # one of formats.FORMATS; several joined by ", "
    mapping: dict[str, Any] = field(default_factory=dict)  # of the first row
    bad: list[BadLine] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # columns that nothing is made of
    counts: dict[str, int] = field(default_factory=dict)  # what was joined, guessed or left out by a slice


def read_conversations(paths: Sequence[Path] | Sequence[dict] | Any, mapping: dict | None = None) -> ConversationSet:
    """Read conversations from files, folders, a list of rows or a table with ``columns`` and ``to_dict`` (a pandas frame).

    Formats: OpenAI messages, ShareGPT (LLaMA-Factory's too), Alpaca, columns such as prompt and completion or question and answer, lists
    of turns, and dialogues whose lines begin with a speaker; in jsonl, json, csv, tsv, parquet, YAML and text, also compressed. A path
    may end in a slice (``chat.jsonl#500``, see slices.py). ``mapping`` overrides what is recognised (see formats.py).
    Raises ConfigError for a mapping with unknown parts or a slice by label, DataError when no row holds a conversation.
    """
    if mapping is not None:
        _check_mapping(mapping)
    found = ConversationSet()
    seen = _Seen()
    for rows, part, name in _sources(paths, found, bool(mapping)):
        taken = [made for row in rows if (made := _conversation(row, mapping, found, seen))]
        kept = taken
        if part is not None and taken:
            facts = {id(item): counts for item, counts in taken}
            kept = [(item, facts[id(item)]) for item in slices.take([item for item, _ in taken], part, name)]
        seen.counts["sliced away"] += len(taken) - len(kept)
        for item, counts in kept:
            found.conversations.append(item)
            seen.counts.update(counts)
    columns = seen.columns
    found.counts = {kind: count for kind, count in seen.counts.items() if count}
    forms, unused = seen.forms, seen.unused
    found.format, found.unused = ", ".join(forms), list(unused)
    if not found.conversations:
        first = next((bad for bad in found.bad if bad.line), found.bad[0] if found.bad else None)  # a record rather than a README beside it
        raise DataError(
            "no conversation was found in {files}", "{place}" if first else "",
            "write one of the known formats (messages, sharegpt, alpaca, prompt and completion), or say which column holds what, such as mapping: {{prompt: {column}, answer: …}}",
            files=", ".join(found.files) or "(nothing)", place=f"{first.file}:{first.line}: {first.reason}" if first else "", column=columns[0] if columns else "…",
        )  # fmt: skip
    return found


@dataclass
class _Seen:
    """What all rows together show."""

    forms: dict[str, None] = field(default_factory=dict)
    unused: dict[str, None] = field(default_factory=dict)
    columns: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)


def _conversation(row: tuple[str, int, str, dict], mapping: dict | None, found: ConversationSet, seen: _Seen) -> tuple[Conversation, Counter[str]] | None:
    """The conversation of a row, and what was joined or guessed in it; None for one that is set aside."""
    source, number, name, content = row
    counts: Counter[str] = Counter()
    seen.columns = seen.columns or [str(column) for column in content]
    try:
        if not mapping and formats.is_preference(content):
            raise ValueError("a preference pair (chosen, rejected), not a conversation to be learned")
        used = formats.complete(mapping, content) if mapping else formats.recognise(content)
        if used is None:
            raise ValueError(f"no conversation is recognised; columns: {', '.join(map(str, content))}"[:300])
        messages, tools = formats.convert(content, used, counts)
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        found.bad.append(BadLine(source, number, f"{name}: {error}" if name else str(error), str(content)[:_MOST_TEXT]))
        return None
    found.mapping = found.mapping or used
    seen.forms[used["format"]] = None
    named = {column for column in used.values() if isinstance(column, str)}
    seen.unused |= dict.fromkeys(str(column) for column in content if column not in named)
    return Conversation(messages, tools, f"{source}:{number}" + (f" ({name})" if name else "")), counts


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
    for kind, count in found.counts.items():
        (warn if kind == "many speakers" else say)("{note}", note=note_text(kind, count))
    show_bad(found.bad)


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


_Rows = Iterator[tuple[str, int, str, dict]]  # (file, line, key in the file or nothing, row)


def _sources(paths: Any, found: ConversationSet, named: bool) -> Iterator[tuple[_Rows, slices.Slice | None, str]]:
    """The rows of everything given, what is to be taken of them, and the path."""
    if hasattr(paths, "to_dict") and hasattr(paths, "columns"):
        found.files.append("table")
        yield (("table", number, "", row) for number, row in enumerate(paths.to_dict("records"), start=1)), None, "table"
        return
    if isinstance(paths, str | Path):
        paths = [Path(paths)]
    rows = [item for item in paths if not isinstance(item, str | Path)]
    if rows:
        found.files.append("list")
        yield _listed_rows(rows, found), None, "list"
    read: set[Path] = set()
    for item in paths:
        if isinstance(item, str | Path):
            path, part = slices.parse(item)
            yield _file_rows(Path(path), found, named, read if part is None else set()), part, path


def _listed_rows(rows: list[Any], found: ConversationSet) -> _Rows:
    for number, item in enumerate(rows, start=1):
        if (row := as_row(item)) is not None:
            yield "list", number, "", row
        elif hasattr(item, "messages"):
            yield "list", number, "", {"messages": item.messages, "tools": getattr(item, "tools", None)}
        else:
            found.bad.append(BadLine("list", number, f"a {type(item).__name__}, not a mapping", str(item)[:_MOST_TEXT]))


def _file_rows(path: Path, found: ConversationSet, named: bool, read: set[Path]) -> _Rows:
    """The rows of a file, or of those files of a folder that hold any; a file is read once, however often it is named."""
    for file in find_files([path]):
        if file in read:
            continue
        read.add(file)
        try:
            for number, name, row in conversation_rows(file, found.bad.append, named):
                yield str(file), number, name, row
        except DataError as error:
            if not path.is_dir():
                raise
            found.bad.append(BadLine(str(file), 0, f"not read: {error.text().splitlines()[0]}", ""))
            continue
        found.files.append(file.name)


def _check_mapping(mapping: dict) -> None:
    for part in mapping:
        if part not in formats.PARTS:
            raise ConfigError(
                "mapping: {part!r} is not a part of a conversation", "", "did you mean {guess}? The parts are {parts}",
                part=part, guess=nearest(str(part), formats.PARTS) or "messages", parts=", ".join(formats.PARTS),
            )  # fmt: skip
    if mapping.get("format") not in (None, *formats.FORMATS):
        raise ConfigError(
            "mapping: format: {format!r} is not known", "", "did you mean {guess}? The formats are {formats}",
            format=mapping["format"], guess=nearest(str(mapping["format"]), formats.FORMATS) or "messages", formats=", ".join(formats.FORMATS),
        )  # fmt: skip
    if "messages" not in mapping and not {"prompt", "answer"} <= set(mapping):
        raise ConfigError(
            "mapping: it names neither messages, nor prompt and answer",
            "",
            "write mapping: {messages: column} or mapping: {prompt: column, answer: column}",
        )
