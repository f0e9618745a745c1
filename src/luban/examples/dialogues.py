"""Dialogues as people write them down, as messages: a list of texts, of objects with a speaker, or lines that begin with a name and a colon.

Who is the user and who the assistant is seldom said. Names that say it (user, assistant, customer, agent, 客服 …) decide; else the first
speaker is the user and the turns alternate, after those that one speaker takes in a row have been joined.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "usr": "user", "customer": "user", "client": "user", "用户": "user", "客户": "user", "顾客": "user",
    "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bot": "assistant", "model": "assistant", "ai": "assistant", "sys": "assistant",
    "agent": "assistant", "助手": "assistant", "客服": "assistant",
    "system": "system", "developer": "system", "系统": "system",
    "tool": "tool", "observation": "tool", "function": "tool", "function_response": "tool", "ipython": "tool",
    "function_call": "function_call",
}  # fmt: skip
SPEAKERS = ("speaker", "role", "from", "sender", "说话人", "角色", "who", "author", "participant", "name")
TEXTS = ("text", "content", "value", "utterance", "message", "utt", "says", "内容", "文本")
_CERTAIN = SPEAKERS[:6]  # keys that only dialogues have
_TAG = re.compile(r"#\s*([^#\n]{1,30}?)\s*#\s*[:：]\s*")  # DialogSum's #Person1#: cannot be anything else, wherever it stands
_NAME = re.compile(r"\s*[\[<【(*]*([^\W\d_][\w .'’·-]{0,29}?)[\]>】)*]*\s*(?:：[ \t]*|:(?!//|\d)\*{0,2}[ \t]*)")
_MOST_WORDS = 3  # of a name
_SAMPLE = 400  # lines by which a text file is known for dialogues
_ENOUGH = 0.8  # share of these that begin with a name

Turn = tuple[str, str]  # (speaker or nothing, text)


def keys_of(value: Any, certain: bool = False) -> tuple[str | None, str | None]:
    """The keys of speaker and text in a list of objects; ``certain`` wants a speaker's that nothing but dialogues has."""
    if not isinstance(value, list) or not value or not all(isinstance(item, dict) for item in value):
        return None, None
    names = {str(name).strip().lower(): str(name) for name in value[0]}
    speaker = next((names[name] for name in (_CERTAIN if certain else SPEAKERS) if name in names), None)
    preferred = {"from": ("value",), "role": ("content",)}.get((speaker or "").lower(), ())
    return speaker, next((names[name] for name in (*preferred, *TEXTS) if name in names and names[name] != speaker), None)


def is_dialogue_text(value: Any) -> bool:
    """Whether a text can be nothing but turns: two speakers or more who come back, one at the beginning of the first line and of nearly
    every other. ("Question: … Answer: …" is a form of many texts, so names that come once do not suffice.)"""
    if not isinstance(value, str):
        return False
    lines = _lines(value)
    named = Counter(speaker for line in lines if (speaker := speaker_of(line)))
    back = sum(count >= 2 for count in named.values())
    return back >= 2 and 2 * len(named) <= named.total() and bool(speaker_of(lines[0])) and named.total() >= _ENOUGH * len(lines)


def speaker_of(line: str) -> str:
    """The name that a line begins with, or nothing."""
    found = _TAG.match(line) or _NAME.match(line)
    return found[1].strip() if found and len(found[1].split()) <= _MOST_WORDS else ""


def is_dialogue_file(lines: list[str]) -> bool:
    """Whether the first lines of a text file are dialogues: nearly all begin with a name, and between empty lines two names meet, or more
    that come back (a card of ``Name: …``, ``Age: …``, ``City: …`` has none that do)."""
    lines = lines[:_SAMPLE]
    blocks = [block.split("\n") for block in re.split(r"\n\s*\n", "\n".join(lines).strip("\n"))]
    named = [[speaker for line in block if (speaker := speaker_of(line))] for block in blocks]
    meeting = sum(2 <= len(set(block)) <= max(2, len(block) // 2) for block in named)
    return sum(map(len, named)) >= _ENOUGH * max(1, sum(bool(line.strip()) for line in lines)) and 2 * meeting >= len(blocks)


def turns_of(value: Any, mapping: dict[str, Any]) -> list[Turn]:
    """The turns as they were written. ValueError gives the reason where there are none."""
    if isinstance(value, str):
        if value.lstrip()[:1] == "[" and not speaker_of(value):  # a table can only hold JSON text
            try:
                return turns_of(json.loads(value), mapping)
            except json.JSONDecodeError:
                raise ValueError(f"{mapping['messages']!r} is no list of turns, and its first line names no speaker") from None
        return [("", line.strip()) for line in _lines(value)] if mapping.get("format") == "turns" else _split(value)
    if not isinstance(value, list) or not value:
        raise ValueError(f"{mapping['messages']!r} is no list of turns, or an empty one")
    if all(isinstance(item, str) for item in value):
        named = [speaker_of(item) for item in value]
        if all(named) and 2 <= len(set(named)) <= max(2, len(value) // 2):
            return [(speaker, _TAG.sub("", item, 1) if _TAG.match(item) else item[_NAME.match(item).end() :]) for speaker, item in zip(named, value, strict=True)]
        return [("", item) for item in value]
    return [_turn(item, number, mapping) for number, item in enumerate(value, start=1)]


def _turn(item: Any, number: int, mapping: dict[str, Any]) -> Turn:
    if isinstance(item, str):
        raise ValueError(f"turn {number} is a text among objects")
    if not isinstance(item, dict):
        raise ValueError(f"turn {number} is a {type(item).__name__}, no text")
    speaker_key, text_key = mapping.get("role"), mapping.get("content")
    if text_key not in item:
        raise ValueError(f"turn {number} has no {text_key!r}" if text_key else f"turn {number} holds no text that is known by its name")
    if speaker_key is not None and item.get(speaker_key) in (None, ""):
        raise ValueError(f"turn {number} has no {speaker_key!r}")
    text = item[text_key]
    if not isinstance(text, str):
        raise ValueError(f"turn {number}: {text_key!r} is a {type(text).__name__}, no text")
    return str(item[speaker_key]).strip() if speaker_key is not None else "", text


def _lines(text: str) -> list[str]:
    """Lines that hold something; ``\\n`` written out, as tables have it, ends one where nothing else does."""
    if "\n" not in text and "\\n" in text:
        text = text.replace("\\r", "").replace("\\n", "\n")
    return [line for line in text.replace("\r", "\n").split("\n") if line.strip()]


def _split(text: str) -> list[Turn]:
    """Turns of a text in which a name and a colon begin each; lines without one go on with the turn."""
    lines = _lines(text)
    if not lines or not speaker_of(lines[0]):
        raise ValueError("its first line names no speaker: a turn begins with a name and a colon")
    whole = "\n".join(lines)
    if _TAG.match(whole.lstrip()):
        pieces = _TAG.split(whole.lstrip())[1:]
        return [(speaker.strip(), said.strip()) for speaker, said in zip(pieces[::2], pieces[1::2], strict=True)]
    turns: list[tuple[str, list[str]]] = []
    for line in lines:
        if speaker := speaker_of(line):
            turns.append((speaker, [line[_NAME.match(line).end() :]]))
        else:
            turns[-1][1].append(line)
    return [(speaker, "\n".join(said).strip()) for speaker, said in turns]


def messages_of(turns: list[Turn], roles: dict[str, str] | None, counts: Counter[str]) -> list[dict]:
    """Turns as messages; what one speaker says in a row is one message. ``counts`` takes note of what was joined or guessed.

    Raises ValueError for an empty turn, a single speaker, and a speaker that a given table of ``roles`` does not know.
    """
    for number, (_, text) in enumerate(turns, start=1):
        if not text.strip():
            raise ValueError(f"turn {number} is empty")
    joined: list[Turn] = []
    for speaker, text in turns:
        if speaker and joined and joined[-1][0] == speaker:
            joined[-1] = (speaker, f"{joined[-1][1]}\n{text.strip()}")
        else:
            joined.append((speaker, text.strip()))
    if len(joined) < 2:
        raise ValueError("there is only one turn: nobody answers" if len(turns) < 2 else "there is only one speaker: nobody answers")
    speakers = list(dict.fromkeys(speaker for speaker, _ in joined))
    by_name = _named_roles(speakers, roles)
    messages: list[dict] = []
    for place, (speaker, text) in enumerate(joined):
        role = by_name[speaker] if by_name else ("user", "assistant")[place % 2]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] += f"\n{text}"
        else:
            messages.append({"role": role, "content": text})
    counts["turns joined"] += len(turns) - len(messages)
    counts["many speakers"] += len(speakers) > 2 and not by_name
    counts["unanswered"] += messages[-1]["role"] == "user"
    return messages


def _named_roles(speakers: list[str], roles: dict[str, str] | None) -> dict[str, str]:
    """The role of each speaker where names say it: all of them, a user and an assistant, the system at most at the beginning."""
    if roles:
        known = {speaker: {**ROLES, **roles}.get(speaker) or ROLES.get(speaker.lower()) for speaker in speakers}
        if unknown := [speaker for speaker, role in known.items() if role not in ("user", "assistant", "system")]:
            raise ValueError(f"unknown speaker {unknown[0]!r}: mapping names the roles of {', '.join(map(str, roles))}")
        return {speaker: str(role) for speaker, role in known.items()}
    known = {speaker: ROLES.get(speaker.lower()) for speaker in speakers}
    said = list(known.values())
    certain = {"user", "assistant"} <= set(said) <= {"user", "assistant", "system"} and "system" not in said[1:]
    return {speaker: str(role) for speaker, role in known.items()} if certain else {}
