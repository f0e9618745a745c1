"""Prompts that a model is to answer by itself: messages, or a column of text; every other column stays beside them for what judges the answers."""

from __future__ import annotations

from typing import Any

from luban.examples import columns as known
from luban.examples import formats
from luban.examples.dialogues import keys_of
from luban.examples.notes import Notes
from luban.examples.preferences import prompt_of_row
from luban.examples.records import Table, column
from luban.examples.tables import is_filled
from luban.examples.tasks import Prompt

PARTS = ("prompt", "messages", "input", "history", "system", "tools", "role", "content")
ANSWER = "answer"  # the column in which a conversation's own last answer is kept


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the prompt; None where none is called so and none holds messages."""
    columns, rows = table.columns, table.sample(20)
    found: dict[str, Any] = {}
    for name in columns:
        value = next((row.get(name) for row in rows if is_filled(row.get(name))), None)
        role, content = keys_of(value)
        if role and role.lower() in ("role", "from") and known.normalised(name) in (*formats.MESSAGES, "prompt"):
            found = {"messages": name, "role": role, "content": content or "content"}
            break
    if not found:
        prompt = known.by_name(columns, (*formats.PROMPTS, *known.QUESTIONS, "text", "文本"))
        if prompt is None:
            return None
        found = {"prompt": prompt, "history": known.by_name(columns, ("history",))}
        if str(prompt).strip().lower() in ("instruction", "指令"):
            found["input"] = known.by_name(columns, formats.INPUTS, prompt)
    found |= {"system": known.by_name(columns, formats.SYSTEMS), "tools": known.by_name(columns, ("tools",))}
    return {part: value for part, value in found.items() if value is not None}


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[Prompt]:
    """The prompts of a table. A conversation that ends with an answer is asked again: the answer goes into the column ``answer``."""
    used = {part: value if part in ("role", "content") else column(table, value, part) for part, value in mapping.items()}
    found = []
    for line, row in table.rows:
        try:
            found.append(_example(row, used, f"{table.path}:{line}"))
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            notes.set_aside(table.path, line, str(error), row)
    return found


def _example(row: dict[str, Any], used: dict[str, Any], source: str) -> Prompt:
    messages = prompt_of_row(row, used)
    named = {value for part, value in used.items() if part not in ("role", "content")}
    beside = {str(name): value for name, value in row.items() if name not in named}
    if messages and messages[-1]["role"] == "assistant":
        beside.setdefault(ANSWER, messages[-1].get("content"))
        messages = messages[:-1]
    if not any(formats.has_words(message) for message in messages if message["role"] != "assistant") or messages[-1]["role"] == "assistant":
        raise ValueError("the prompt is empty")
    return Prompt(messages, beside, formats.tools_of(row.get(used.get("tools"))), source)
