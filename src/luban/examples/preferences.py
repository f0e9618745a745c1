"""Preferences: a better and a worse answer to one prompt, or one answer and whether it is good. TRL's and LLaMA-Factory's forms,
UltraFeedback's, Anthropic's transcripts, and columns of any name with a mapping."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any

from luban.examples import columns as known
from luban.examples import formats
from luban.examples.notes import Notes
from luban.examples.records import Table, column
from luban.examples.tables import is_filled
from luban.examples.tasks import Preference

PARTS = ("prompt", "messages", "input", "history", "system", "tools", "chosen", "rejected", "answer", "answers", "label", "margin", "role", "content")
CHOSEN = ("chosen", "preferred", "better", "winner", "response_j", "chosen_response", "answer_chosen", "较好", "更好的回答")
REJECTED = ("rejected", "dispreferred", "worse", "loser", "response_k", "rejected_response", "answer_rejected", "较差", "更差的回答")
LABELS = ("kto_tag", "label", "thumbs_up", "feedback", "desirable", "标签", "评价")
SCORES = (("score_chosen", "score_rejected"), ("chosen_score", "rejected_score"))
_GOOD = {"true", "1", "1.0", "good", "yes", "up", "like", "desirable", "chosen", "positive", "好", "是", "赞"}
_BAD = {"false", "0", "0.0", "-1", "-1.0", "bad", "no", "down", "dislike", "undesirable", "rejected", "negative", "差", "否", "踩"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the prompt, the answers and the judgement; None where nothing is judged."""
    columns, rows = table.columns, table.sample(100)
    better, worse = known.by_name(columns, CHOSEN), known.by_name(columns, REJECTED)
    judged: dict[str, Any]
    if better and worse:
        judged = {"chosen": better, "rejected": worse} | _margin(columns)
    elif several := _several(columns, rows):
        judged = {"answers": several}
    else:
        label = known.by_name(columns, LABELS)
        values = [str(row.get(label)).strip().lower() for row in rows] if label else []
        if not values or not all(value in _GOOD | _BAD | {"", "none"} for value in values):
            return None
        judged = {"label": label}
    row = next(iter(rows), {})
    listed = formats.recognise({name: row.get(name) for name in columns if name not in judged.values() and name not in formats.PROMPTS}) or {}
    if "messages" in listed and (better or "label" in judged) and not known.by_name(columns, ("prompt",)):
        return judged | {part: value for part, value in listed.items() if part != "format"}
    prompt = known.by_name(columns, formats.PROMPTS, *judged.values())
    answer = known.by_name(columns, formats.ANSWERS, prompt, *judged.values()) if "label" in judged else None
    if "label" in judged and (not prompt or not answer):
        return None
    found = {"prompt": prompt, "answer": answer, "history": known.by_name(columns, ("history",)), "system": known.by_name(columns, formats.SYSTEMS), "tools": known.by_name(columns, ("tools",))}
    if str(prompt).strip().lower() in ("instruction", "指令"):
        found["input"] = known.by_name(columns, formats.INPUTS, prompt, answer)
    return {part: value for part, value in found.items() if value is not None} | judged


def _margin(columns: Sequence[str]) -> dict[str, Any]:
    if named := known.by_name(columns, ("margin", "分差")):
        return {"margin": named}
    pair = known.pair_by_name(columns, SCORES)
    return {"margin": list(pair)} if pair else {}


def _several(columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> str | None:
    """A column of scored answers to each prompt (UltraFeedback's completions)."""
    return next((name for name in columns if any(_scored(row.get(name)) for row in rows[:20])), None)


def _scored(value: Any) -> list[tuple[float, str]]:
    """(score, answer) of each answer of a list that has both."""
    found = []
    for item in value if isinstance(value, list) else []:
        if isinstance(item, dict):
            score = next((known.number(item[name]) for name in ("overall_score", "score", "rating", "fine-grained_score") if item.get(name) is not None), None)
            answer = next((item[name] for name in ("response", "answer", "completion", "text") if isinstance(item.get(name), str)), None)
            if score is not None and answer is not None:
                found.append((score, answer))
    return found


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[Preference]:
    """The preferences of a table. A row without a prompt, without answers or with two equal ones is set aside."""
    used = {part: _columns(table, value, part) for part, value in mapping.items() if part not in ("role", "content")} | {part: mapping[part] for part in ("role", "content") if part in mapping}
    found = []
    for line, row in table.rows:
        try:
            found.append(_example(row, used, f"{table.path}:{line}"))
        except (ValueError, TypeError, AttributeError, KeyError) as error:
            notes.set_aside(table.path, line, str(error), row)
    return found


def _columns(table: Table, value: Any, part: str) -> Any:
    return [column(table, one, part) for one in value] if isinstance(value, list) else column(table, value, part)


def _example(row: dict[str, Any], used: dict[str, Any], source: str) -> Preference:
    label = _label(row.get(used["label"])) if "label" in used else None
    margin = _number(row, used.get("margin"))
    prompt = prompt_of_row(row, used)
    tools = formats.tools_of(row.get(used.get("tools")))
    if label is not None:
        given = row.get(used["answer"]) if "answer" in used else None
        messages, answer = (prompt[:-1], prompt[-1:]) if "answer" not in used else (prompt, _answer(given, used))
        if "answer" in used and prompt and answer[: len(prompt)] == prompt:
            answer = answer[len(prompt) :]
        _check(messages, answer)
        return Preference(messages, answer, None, label, margin, tools, source)
    if "answers" in used:
        scored = _scored(row.get(used["answers"]))
        if len(scored) < 2:
            raise ValueError("fewer than two answers with a score")
        (low, worse), (high, better) = min(scored, key=lambda one: one[0]), max(scored, key=lambda one: one[0])
        margin = high - low
    else:
        better, worse = (row.get(used[part]) for part in ("chosen", "rejected"))
    messages, chosen, rejected = _parted(prompt, better, worse, used)
    _check(messages, chosen)
    _check(messages, rejected)
    if chosen == rejected:
        raise ValueError("the better and the worse answer are the same")
    return Preference(messages, chosen, rejected, None, margin, tools, source)


def prompt_of_row(row: dict[str, Any], used: dict[str, Any]) -> list[dict]:
    """The prompt as messages; none where it stands in the answers."""
    role, content = used.get("role", "role"), used.get("content", "content")
    messages: list[dict] = []
    if "messages" in used:
        messages = formats.messages_in(row.get(used["messages"]), role, content)
    elif "prompt" in used:
        asked = row.get(used["prompt"])
        if isinstance(asked, list):
            messages = formats.messages_in(asked, *_keys(asked))
        elif (text := formats.text_of(asked)) and (turns := transcript(text)):
            messages = turns
        elif text:
            parts = [text, formats.text_of(row.get(used.get("input")))]
            messages = [*formats.history_of(row.get(used.get("history"))), {"role": "user", "content": "\n".join(part for part in parts if part)}]
    system = formats.text_of(row.get(used.get("system")))
    return [{"role": "system", "content": system}, *messages] if system and not (messages and messages[0]["role"] == "system") else messages


def _keys(value: list) -> tuple[str, str]:
    return ("from", "value") if value and isinstance(value[0], dict) and "from" in value[0] else ("role", "content")


def _answer(value: Any, used: dict[str, Any]) -> list[dict]:
    """An answer as messages: a text, one message, a list of them, or a transcript."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list):
        return formats.messages_in(value, *_keys(value))
    text = formats.text_of(value)
    return transcript(text) or [{"role": "assistant", "content": text}]


def _parted(prompt: list[dict], better: Any, worse: Any, used: dict[str, Any]) -> tuple[list[dict], list[dict], list[dict]]:
    """(prompt, better, worse): what both answers begin with belongs to the prompt; a prompt that they repeat counts once."""
    if not prompt and isinstance(better, str) and isinstance(worse, str) and not (transcript(better) and transcript(worse)):
        shared = os.path.commonprefix([better, worse])
        shared = shared[: len(shared) - len(re.search(r"\S*$", shared)[0])] if " " in shared else shared  # words stay whole
        return [{"role": "user", "content": shared.strip()}], [{"role": "assistant", "content": better[len(shared) :].strip()}], [{"role": "assistant", "content": worse[len(shared) :].strip()}]
    chosen, rejected = _answer(better, used), _answer(worse, used)
    same = 0
    while same < min(len(chosen), len(rejected)) - 1 and chosen[same] == rejected[same]:
        same += 1
    shared = chosen[:same]
    asked = [message for message in prompt if message["role"] != "system"]
    own = [message for message in shared if message["role"] != "system"]
    repeated = bool(shared) and (not asked or own[: len(asked)] == asked or [item["content"] for item in own if item["role"] == "user"][-1:] == [asked[-1]["content"]])
    if repeated:
        head = prompt[:1] if prompt and prompt[0]["role"] == "system" and shared[0]["role"] != "system" else []
        return [*head, *shared], chosen[same:], rejected[same:]
    return [*prompt, *shared], chosen[same:], rejected[same:]


def transcript(text: str) -> list[dict]:
    """The messages of "\\n\\nHuman: …\\n\\nAssistant: …" (Anthropic's form); none where the text is no such thing. An empty last turn, which
    asks for an answer, is left out."""
    marks = list(_TURN.finditer(text))
    if not marks or text[: marks[0].start()].strip() or marks[0][1] != "Human":
        return []
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    turns = [{"role": "user" if mark[1] == "Human" else "assistant", "content": text[mark.end() : end].strip()} for mark, end in zip(marks, ends, strict=True)]
    return turns[:-1] if turns[-1]["role"] == "assistant" and not turns[-1]["content"] else turns


def _check(messages: list[dict], answer: list[dict]) -> None:
    if not any(formats.has_words(message) for message in messages if message["role"] != "assistant"):
        raise ValueError("the prompt is empty")
    if not answer or answer[-1]["role"] != "assistant" or not formats.has_words(answer[-1]):
        raise ValueError("an answer is empty, or does not end with the assistant's words")


def _label(value: Any) -> bool:
    text = str(value).strip().lower()
    if text not in _GOOD and text not in _BAD:
        raise ValueError(f"the label {text[:40]!r} says neither good nor bad")
    return text in _GOOD


def _number(row: dict[str, Any], named: Any) -> float | None:
    if named is None:
        return None
    given = [row.get(name) for name in (named if isinstance(named, list) else [named])]
    if not all(is_filled(value) for value in given):
        return None
    values = [known.number(value) for value in given]
    if any(value is None for value in values):
        raise ValueError("the margin is no number")
    return values[0] - values[1] if len(values) == 2 else values[0]


# ---- one kind from the other -------------------------------------------------------------------------------------------


def prompt_of(example: Preference) -> str:
    """The prompt as text: what decides the side of a split."""
    return "\x1e".join(str(message.get("content", "")).strip() for message in example.messages if message["role"] != "system")


def paired(examples: Sequence[Preference]) -> tuple[list[Preference], int]:
    """Examples with a better and a worse answer, and how many single answers were left over.

    The first good answer to a prompt goes with its first bad one, and so on.
    """
    found: list[Preference] = []
    good: dict[str, list[Preference]] = {}
    bad: dict[str, list[Preference]] = {}
    for example in examples:
        if example.rejected is not None:
            found.append(example)
        else:
            (good if example.label else bad).setdefault(prompt_of(example), []).append(example)
    left = sum(len(one) for one in [*good.values(), *bad.values()])
    for key, answers in good.items():
        for better, worse in zip(answers, bad.get(key, []), strict=False):
            left -= 2
            if better.chosen != worse.chosen:
                found.append(Preference(better.messages, better.chosen, worse.chosen, None, None, better.tools, better.source))
    return found, left


def unpaired(examples: Sequence[Preference]) -> list[Preference]:
    """Examples of one answer with its label; a pair makes two."""
    found: list[Preference] = []
    for example in examples:
        if example.rejected is None:
            found.append(example)
        else:
            found += [Preference(example.messages, answer, None, label, None, example.tools, example.source) for answer, label in ((example.chosen, True), (example.rejected, False))]
    return found
