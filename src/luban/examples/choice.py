"""Multiple choice: a prompt, its choices and the right one as an index, a letter or its words; exams, ARC, PIQA, COPA, HellaSwag, CMMLU."""

from __future__ import annotations

import re
import string
from typing import Any

from luban.examples import columns as known
from luban.examples.notes import Notes, check_text, is_han
from luban.examples.records import Table, column
from luban.examples.tables import is_filled, listed
from luban.examples.tasks import Choice

PARTS = ("prompt", "choices", "answer", "first")
_LETTERED = re.compile(r"^\s*[(（]?([A-Za-z])[)）.．、:：]\s*(?=\S)")
_CAUSE, _EFFECT = ("cause", "原因"), ("effect", "结果")


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the prompt, the choices (one column, or one a choice) and the answer."""
    rows = table.sample(100)
    names = {known.normalised(name): name for name in table.columns}
    if "question" in names and any(
        isinstance(row.get(names["question"]), dict) and "choices" in row[names["question"]] for row in rows[:5]
    ):
        return {"prompt": names["question"], "choices": "choices"} | (
            {"answer": names["answerkey"]} if "answerkey" in names else {}
        )  # ARC's own files
    lists = [
        name
        for name in table.columns
        if any(isinstance(row.get(name), list | dict) or str(row.get(name)).strip().startswith("[") for row in rows[:20])
    ]
    choices: Any = known.by_name(lists, known.CHOICES)
    if choices is None:
        choices = next(
            (
                found
                for pattern in ("choice{}", "choice_{}", "option{}", "option_{}", "answer{}", "ans{}", "ending{}", "sol{}", "选项{}")
                if len(found := _numbered(names, pattern)) >= 2
            ),
            None,
        )
        choices = choices or (_lettered(names) if len(_lettered(names)) >= 2 else None)
    if not choices:
        return None
    used = choices if isinstance(choices, list) else [choices]
    answer = known.by_name(
        [name for name in table.columns if name not in used and any(is_filled(row.get(name)) for row in rows)], known.ANSWERS
    )
    prompts = [name for name in table.columns if name not in used and name != answer]
    premise = names.get("premise") or names.get("前提")
    asked = next((name for name in prompts if {str(row.get(name)) for row in rows} <= {*_CAUSE, *_EFFECT}), None)
    if premise and asked:
        return {"prompt": [premise, asked], "choices": choices} | ({"answer": answer} if answer else {})  # COPA
    prompt: Any = known.by_name(prompts, known.PROMPTS) or known.longest_text(known.facts_of(rows, prompts))
    passage = known.by_name(prompts, ("passage", "context", "article", "材料", "文章"), prompt)
    if passage and prompt and any(is_filled(row.get(passage)) for row in rows):
        prompt = [passage, prompt]
    return {"prompt": prompt, "choices": choices} | ({"answer": answer} if answer else {}) if prompt else None


def _numbered(names: dict[str, str], pattern: str) -> list[str]:
    start = 0 if pattern.format(0) in names else 1
    found = []
    while pattern.format(start + len(found)) in names:
        found.append(names[pattern.format(start + len(found))])
    return found


def _lettered(names: dict[str, str]) -> list[str]:
    found = []
    for letter in string.ascii_lowercase:
        if letter not in names:
            return found
        found.append(names[letter])
    return found


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[Choice]:
    """Choices of a table. An answer that is no choice sets the row aside."""
    prompts = [
        column(table, name, "prompt") for name in (mapping["prompt"] if isinstance(mapping["prompt"], list) else [mapping["prompt"]])
    ]
    several = isinstance(mapping["choices"], list)
    nested = not several and mapping["choices"] == "choices" and "choices" not in table.columns
    columns = (
        [column(table, name, "choices") for name in mapping["choices"]]
        if several
        else []
        if nested
        else [column(table, mapping["choices"], "choices")]
    )
    answer = column(table, mapping["answer"], "answer") if mapping.get("answer") is not None else None
    first = _first_index(table, answer, mapping) if answer else 0
    found = []
    for line, row in table.rows:
        try:
            if nested:
                inner = row.get(prompts[0])
                if not isinstance(inner, dict):
                    raise ValueError("the question is no object with its choices")
                prompt, (choices, letters) = check_text(inner.get("stem", inner.get("text")), "prompt"), _choices(inner.get("choices"))
            else:
                prompt = _prompt(row, prompts)
                choices, letters = _choices([row.get(name) for name in columns] if several else row.get(columns[0]))
            right = notes.answer(lambda row=row, choices=choices, letters=letters: _answer(row.get(answer), choices, letters, first)) if answer else None
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
            continue
        notes.count("unlabelled", int(right is None))
        found.append(Choice(prompt, choices, right, f"{table.path}:{line}"))
    return found


def _prompt(row: dict, columns: list[str]) -> str:
    parts = [row.get(name) for name in columns]
    if len(parts) == 2 and parts[1] in (*_CAUSE, *_EFFECT):  # COPA: what the choices are to the premise, in words
        text = check_text(parts[0], "premise").strip()
        words = ("因为", "所以") if is_han(text) else (" because", " so")
        return text.rstrip(" .。") + ("，" if is_han(text) else "") + words[parts[1] in _EFFECT]
    return check_text("\n".join(check_text(part, "prompt") for part in parts if is_filled(part)), "prompt")


def _choices(value: Any) -> tuple[list[str], list[str]]:
    """Choices and their letters. Letters written in front of every choice, ``(A) …``, are taken off."""
    letters: list[str] = []
    if isinstance(value, dict):  # Hugging Face's ARC: {"text": […], "label": […]}
        letters = [str(label) for label in value.get("label") or []]
        value = value.get("text", list(value.values()))
    if isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        letters = [str(item.get("label", "")) for item in value]
        value = [item.get("text", item.get("content")) for item in value]
    items = [check_text(item, "choice").strip() for item in listed(value, "|")]
    if len(items) < 2:
        raise ValueError(f"{len(items)} choices, where at least 2 are needed")
    marks = [_LETTERED.match(item) for item in items]
    if all(mark and mark[1].upper() == string.ascii_uppercase[place] for place, mark in enumerate(marks[:26])) and len(items) <= 26:
        items = [item[mark.end() :].strip() for item, mark in zip(items, marks, strict=True) if mark]
    return items, letters if len(letters) == len(items) else []


def _first_index(table: Table, answer: str, mapping: dict[str, Any]) -> int:
    """Whether answers that are numbers count from 0 or 1: 1 if there is no 0 and some row needs it."""
    if mapping.get("first") is not None:
        return int(mapping["first"])
    figures = [figure for _, row in table.rows if (figure := known.number(row.get(answer))) is not None]
    several = isinstance(mapping["choices"], list)
    most = (
        len(mapping["choices"])
        if several
        else max((len(listed(row.get(str(mapping["choices"])), "|")) for _, row in table.rows[:200]), default=0)
    )
    return int(bool(figures) and min(figures) >= 1 and max(figures) >= most)


def _answer(value: Any, choices: list[str], letters: list[str], first: int) -> int | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if not is_filled(value):
        return None
    text = str(value).strip()
    if text in letters:
        return letters.index(text)
    if isinstance(value, bool):
        raise ValueError(f"the answer {value} is no choice")
    figure = known.number(value)
    if figure is not None and figure == int(figure) and 0 <= int(figure) - first < len(choices):
        return int(figure) - first
    if text in choices:
        return choices.index(text)
    letter = re.fullmatch(r"[(（]?([A-Za-z])[)）.．]?", text)
    if letter and (place := string.ascii_uppercase.index(letter[1].upper())) < len(choices):
        return place
    if (mark := _LETTERED.match(text)) and text[mark.end() :].strip() in choices:
        return choices.index(text[mark.end() :].strip())
    raise ValueError(f"the answer {text[:40]!r} is none of the {len(choices)} choices")
