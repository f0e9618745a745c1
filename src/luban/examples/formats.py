"""Recognising how a row of labelled data writes a conversation, and turning it into messages.

A mapping says which column holds what: ``{"format": "alpaca", "prompt": "instruction", "input": "input", "answer": "output"}`` or
``{"format": "sharegpt", "messages": "conversations", "role": "from", "content": "value", "system": "system", "tools": "tools"}``.
Every part can be given by the user instead of guessed.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable
from typing import Any

from luban.examples.dialogues import ROLES, is_dialogue_text, keys_of, messages_of, speaker_of, turns_of

Row = dict[str, Any]
Mapping = dict[str, Any]

MESSAGES = ("messages", "conversations", "conversation", "dialogue", "dialog", "chat", "turns", "utterances", "log", "对话", "消息")
QUESTIONS_ONLY = "turns"  # a list of texts of this name may be questions alone (MT-Bench), so that it is read only where a mapping says so
PROMPTS = ("instruction", "prompt", "question", "query", "problem", "user", "human", "指令", "问题", "提问", "问")
ANSWERS = ("output", "completion", "response", "answer", "reply", "assistant", "gpt", "输出", "回答", "答案", "回复", "答")
INPUTS = ("input", "query", "context", "输入")
SYSTEMS = ("system", "system_prompt", "系统")
PARTS = ("messages", "role", "content", "prompt", "input", "answer", "system", "history", "tools", "roles", "format")
FORMATS = ("messages", "sharegpt", "alpaca", "pairs", "turns", "dialogue")  # turns: a list of them; dialogue: lines that begin with a speaker


def recognise(row: Row) -> Mapping | None:
    """The mapping a row suggests by its columns, or None."""
    names = {str(name).strip().lower(): name for name in row}

    def first(choices: Iterable[str], *without: str) -> str | None:
        return next((names[choice] for choice in choices if choice in names and names[choice] not in without), None)

    extra = {"system": first(SYSTEMS), "tools": first(("tools", "functions"))}
    for choice in MESSAGES:
        value = row.get(names.get(choice, ""))
        role, content = keys_of(value)
        if role and role.lower() in ("from", "role"):
            form = "sharegpt" if role.lower() == "from" else "messages"
            return _clean({"format": form, "messages": names[choice], "role": role, "content": content or ("value" if form == "sharegpt" else "content"), **extra})
    answer = first(ANSWERS)
    prompt = first(PROMPTS) or first(("input", "输入"))
    if answer is None or prompt is None or prompt == answer:
        found = _dialogue(row, names)
        return _clean({**found, **extra}) if found else None
    alpaca = str(prompt).strip().lower() in ("instruction", "指令")
    return _clean(
        {
            "format": "alpaca" if alpaca else "pairs",
            "prompt": prompt,
            "input": first(INPUTS, prompt, answer) if alpaca else None,
            "answer": answer,
            "history": first(("history",)),
            **extra,
        }
    )


def _dialogue(row: Row, names: dict[str, str]) -> Mapping | None:
    """A column that holds a dialogue: one that is called so, or whose content can be nothing else."""
    for choice in MESSAGES:
        column = names.get(choice)
        value = row.get(column)
        role, content = keys_of(value)
        if content:
            return {"format": "turns", "messages": column, "role": role, "content": content}
        texts = isinstance(value, list) and bool(value) and isinstance(value[0], str)
        if texts and choice != QUESTIONS_ONLY:
            return {"format": "turns", "messages": column}
        if isinstance(value, str) and (speaker_of(value) or value.lstrip().startswith(('["', "[{"))):
            return _in_text(column, value)
    for column, value in row.items():
        role, content = keys_of(value, certain=True)
        if role and content:
            return {"format": "turns", "messages": column, "role": role, "content": content}
        if is_dialogue_text(value):
            return {"format": "dialogue", "messages": column}
    return None


def _in_text(column: str, value: str) -> Mapping:
    """Of a cell: the lines of a dialogue, or a list written as JSON."""
    if speaker_of(value):
        return {"format": "dialogue", "messages": column}
    try:
        role, content = keys_of(json.loads(value))
    except (ValueError, RecursionError):
        role, content = None, None
    if role and role.lower() in ("from", "role"):
        return {"format": "messages", "messages": column, "role": role, "content": content or "content"}
    return {"format": "turns", "messages": column, "role": role, "content": content}


def complete(mapping: Mapping, row: Row) -> Mapping:
    """A user's mapping with what it leaves open filled in, from the row where that shows it."""
    if "messages" not in mapping:
        return {"format": "alpaca" if "input" in mapping else "pairs", **mapping}
    if mapping.get("format") == "sharegpt":
        return {"role": "from", "content": "value", **mapping}
    value = row.get(mapping["messages"])
    role, content = keys_of(value)
    guessed = {"role": mapping.get("role", role), "content": mapping.get("content", content)}
    if mapping.get("format") in ("turns", "dialogue"):
        return _clean({**guessed, **mapping})
    if isinstance(value, str) and not value.lstrip().startswith("["):
        return {"format": "dialogue", **mapping}
    if isinstance(value, list) and (all(isinstance(item, str) for item in value) or (guessed["content"] and not _says_roles(value, guessed["role"], mapping))):
        return _clean({"format": "turns", **guessed, **mapping})
    return {"format": "messages", "role": guessed["role"] or "role", "content": guessed["content"] or "content", **mapping}


def _says_roles(value: list, role: str | None, mapping: Mapping) -> bool:
    """Whether what names the speakers is a role as chat formats know it."""
    if role is None or (role.lower() in ("role", "from") and mapping.get("format") != "turns"):
        return role is not None
    known = {*ROLES, *(mapping.get("roles") or {})}
    said = [str(item.get(role)).strip() for item in value if isinstance(item, dict)]
    return all(name in known or name.lower() in known for name in said) and "system" not in map(str.lower, said[1:])


def is_preference(row: Row) -> bool:
    """Whether a row holds a better and a worse answer."""
    return {"chosen", "rejected"} <= {str(name).strip().lower() for name in row}


def convert(row: Row, mapping: Mapping, counts: Counter[str] | None = None) -> tuple[list[dict], list[dict] | None]:
    """Messages and tools of a row; ``counts`` takes note of turns that were joined or guessed.

    ValueError gives the reason where the row does not hold them.
    """
    missing = [column for part, column in mapping.items() if part in ("messages", "prompt", "answer") and column not in row]
    if missing:
        raise ValueError(f"no column {', '.join(map(repr, missing))}")
    if mapping["format"] in ("turns", "dialogue"):
        messages = messages_of(turns_of(row[mapping["messages"]], mapping), mapping.get("roles"), counts if counts is not None else Counter())
    else:
        messages = _from_list(row, mapping) if "messages" in mapping else _from_columns(row, mapping)
    system = text_of(row.get(mapping.get("system")))
    if system and (not messages or messages[0]["role"] != "system"):
        messages.insert(0, {"role": "system", "content": system})
    _check(messages)
    return messages, tools_of(row.get(mapping.get("tools")))


def messages_in(value: Any, role: str = "role", content: str = "content") -> list[dict]:
    """A list of messages, or JSON text of one, as OpenAI writes them. ValueError gives the reason where it is none."""
    return _from_list({"messages": value}, {"messages": "messages", "role": role, "content": content})


def _from_list(row: Row, mapping: Mapping) -> list[dict]:
    value = row[mapping["messages"]]
    if isinstance(value, str):  # a table can only hold JSON text
        try:
            value = json.loads(value)
        except ValueError:
            raise ValueError(f"{mapping['messages']!r} is no list of messages") from None
    if not isinstance(value, list) or not value:
        raise ValueError(f"{mapping['messages']!r} is no list of messages, or an empty one")
    return [_message(item, mapping) for item in value]


def _message(item: Any, mapping: Mapping) -> dict:
    role_key, content_key = mapping["role"], mapping["content"]
    if not isinstance(item, dict) or role_key not in item:
        raise ValueError(f"a message without {role_key!r}")
    name = str(item[role_key]).strip()
    role = {**ROLES, **(mapping.get("roles") or {})}.get(name) or ROLES.get(name.lower())
    if role is None:
        raise ValueError(f"unknown role {name!r}; mapping can say what it is, such as roles: {{{name}: user}}"[:200])
    content = item.get(content_key)
    if role == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(_json(content, "function_call"))}
    if content is not None and not isinstance(content, str | list):
        content = json.dumps(content, ensure_ascii=False)
    message: dict[str, Any] = {"role": role, "content": content if content is not None else ""}
    if item.get("tool_calls"):
        message["tool_calls"] = _calls(_json(item["tool_calls"], "tool_calls"))
    for key in ("name", "tool_call_id", "reasoning_content", "thinking"):
        if item.get(key) is not None:
            message[key] = item[key]
    weight = item.get("weight")
    if weight is None and item.get("train") is not None:  # axolotl's name
        weight = int(bool(item["train"]))
    if weight is not None:
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"weight {weight!r} is no number of 0 or more")
        message["weight"] = weight
    return message


def _from_columns(row: Row, mapping: Mapping) -> list[dict]:
    prompt, answer = row[mapping["prompt"]], row[mapping["answer"]]
    if isinstance(prompt, list) or isinstance(answer, list):  # conversational prompt and completion: only the completion is learned
        given = {"messages": "m", "role": "role", "content": "content"}
        as_list = [
            value if isinstance(value, list) else [{"role": role, "content": text_of(value)}]
            for value, role in ((prompt, "user"), (answer, "assistant"))
        ]
        before, after = (_from_list({"m": value}, given) for value in as_list)
        return [*({**message, "weight": 0} if message["role"] == "assistant" else message for message in before), *after]
    messages = history_of(row.get(mapping.get("history")))
    parts = [text_of(prompt), text_of(row.get(mapping.get("input")))]
    return [
        *messages,
        {"role": "user", "content": "\n".join(part for part in parts if part)},
        {"role": "assistant", "content": text_of(answer)},
    ]


def history_of(value: Any) -> list[dict]:
    """Earlier turns, written as [question, answer] pairs, as messages."""
    messages = []
    for turn in _json(value or [], "history"):
        if not isinstance(turn, list) or len(turn) != 2:
            raise ValueError("history holds something else than [question, answer] pairs")
        messages += [{"role": "user", "content": text_of(turn[0])}, {"role": "assistant", "content": text_of(turn[1])}]
    return messages


def _check(messages: list[dict]) -> None:
    if not any(message["role"] == "assistant" for message in messages):
        raise ValueError("nobody answers: there is no assistant message")
    for message in messages:
        if message["role"] == "assistant" and not has_words(message) and message.get("weight") != 0:
            raise ValueError("an answer is empty")
    if not any(has_words(message) for message in messages if message["role"] != "assistant"):
        raise ValueError("the question is empty")


def has_words(message: dict) -> bool:
    """Whether a message says, calls or thinks anything."""
    content = message.get("content")
    return bool(message.get("tool_calls") or message.get("reasoning_content") or (content.strip() if isinstance(content, str) else content))


def _calls(value: Any) -> list[dict]:
    calls = []
    for item in value if isinstance(value, list) else [value]:
        function = item.get("function", item) if isinstance(item, dict) else None
        if not isinstance(function, dict) or not isinstance(function.get("name"), str):
            raise ValueError("a tool call without a name")
        arguments = function.get("arguments", function.get("parameters", {}))
        if isinstance(arguments, str):
            try:
                arguments = json.loads(arguments)
            except ValueError:
                raise ValueError("a tool call's arguments are no JSON") from None
        call: dict[str, Any] = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
        if item.get("id"):
            call["id"] = item["id"]
        calls.append(call)
    return calls


def tools_of(value: Any) -> list[dict] | None:
    """Tools, or JSON text of them, as OpenAI writes them; None where there are none."""
    if value is None or value == "" or (isinstance(value, float) and math.isnan(value)):
        return None
    tools = _json(value, "tools")
    tools = tools if isinstance(tools, list) else [tools]
    if not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("tools is no list of objects")
    return [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools] or None


def _json(value: Any, what: str) -> Any:
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError(f"{what} is no JSON") from None


def text_of(value: Any) -> str:
    """A cell as text; None and a table's NaN are nothing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _clean(mapping: Mapping) -> Mapping:
    return {part: column for part, column in mapping.items() if column is not None}
