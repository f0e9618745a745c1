"""Questions about a context: SQuAD 1.1 and 2.0 JSON (DRCD's and CMRC's too), and rows with question, context and answers.

An answer that does not stand where its position says is moved if its words stand at one place only, and counted; otherwise the
question is set aside. It never becomes a question without an answer. Formats: Rajpurkar et al., 2016 and 2018
(https://rajpurkar.github.io/SQuAD-explorer/).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from luban.examples import columns as known
from luban.examples.notes import Notes, check_text
from luban.examples.records import Table, column
from luban.examples.tables import listed
from luban.examples.tasks import Question

PARTS = ("question", "context", "answers", "start", "id")
_NESTED = ("paragraphs", "qas")


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold the question, the context and the answers; ``{"answers": "paragraphs"}`` for SQuAD's nested form."""
    if "paragraphs" in table.columns:
        return {"context": "paragraphs", "question": "qas", "answers": "answers"}
    if "qas" in table.columns:
        return {"context": known.by_name(table.columns, known.CONTEXTS) or "context", "question": "qas", "answers": "answers"}
    question = known.by_name(table.columns, known.QUESTIONS)
    context = known.by_name(table.columns, known.CONTEXTS, question)
    answers = known.by_name(table.columns, known.QUESTION_ANSWERS, question, context)
    if not (question and context and answers):
        return None
    start = known.by_name(table.columns, known.STARTS)
    identity = known.by_name(table.columns, known.IDENTITIES)
    found = {"question": question, "context": context, "answers": answers}
    return found | ({"start": start} if start else {}) | ({"id": identity} if identity else {})


def fits(table: Table, mapping: dict[str, Any]) -> bool:
    """Whether answers are stretches of their contexts, as opposed to free answers or classes."""
    if mapping["question"] == "qas":
        return True
    inside = seen = 0
    for row in table.sample(50):
        for words, _ in _answers(row.get(mapping["answers"]), row.get(mapping.get("start", ""))):
            seen += 1
            inside += len(words) > 0 and words in str(row.get(mapping["context"]))
    marked = known.by_name(table.columns, ("is_impossible", "impossible")) is not None
    return inside >= 0.8 * seen if seen else marked


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[Question]:
    """The questions of a file, in its order."""
    found = []
    for line, question, context, answers, identity, impossible in _questions(table, mapping, notes):
        try:
            context = check_text(context, "context")
            question = check_text(question, "question").strip()
            places = [] if impossible else [placed(context, words, start, notes) for words, start in answers]
            if notes.answers and any(place is None for place in places):
                lost = next(words for (words, _), place in zip(answers, places, strict=True) if place is None)
                if all(place is None for place in places):
                    raise ValueError(
                        f"the answer {lost[:40]!r} is not in the context, or stands at several places none of which is the one given"
                    )
                notes.set_aside(
                    table.path,
                    line,
                    f"question {identity}: the answer {lost[:40]!r} is not where it is said to be, and was left out; others stay",
                    question,
                )
        except ValueError as error:
            notes.set_aside(table.path, line, f"question {identity}: {error}" if identity else str(error), question)
            continue
        notes.count("unanswerable", int(not places))
        found.append(Question(question, context, [place for place in places if place is not None], identity, f"{table.path}:{line}"))
    return found


def placed(context: str, words: str, start: int | None, notes: Notes) -> tuple[str, int] | None:
    """The answer and its first character: where it was said, else at the one place that holds it; None if there is none or several."""
    if start is not None and start >= 0 and context[start : start + len(words)] == words and words:
        return words, start
    first = context.find(words)
    if not words.strip() or first < 0:
        return None
    if context.find(words, first + 1) < 0:
        notes.count("answers repaired", int(start is not None))
        return words, first
    if start is None:
        notes.count("answers searched")
        return words, first
    return None


def _questions(
    table: Table, mapping: dict[str, Any], notes: Notes
) -> Iterator[tuple[int, Any, Any, list[tuple[str, int | None]], str, bool]]:
    """(line, question, context, answers, identity, whether it is marked as impossible) of every question in any of the forms."""
    if mapping["question"] == "qas":
        for line, row in table.rows:
            paragraphs = row.get("paragraphs", [row])
            if not isinstance(paragraphs, list):
                notes.set_aside(table.path, line, "'paragraphs' is no list", row)
                continue
            for paragraph in paragraphs:
                if not isinstance(paragraph, dict) or not isinstance(paragraph.get("qas"), list):
                    notes.set_aside(table.path, line, "a paragraph without a list 'qas'", paragraph)
                    continue
                context = paragraph.get("context", paragraph.get("context_text", row.get("context")))
                for item in paragraph["qas"]:
                    if not isinstance(item, dict):
                        notes.set_aside(table.path, line, "a question that is no object", item)
                        continue
                    asked = item.get("question", item.get("query_text"))
                    yield (
                        line,
                        asked,
                        context,
                        _answers(item.get("answers"), None),
                        str(item.get("id", item.get("query_id", ""))),
                        item.get("is_impossible") is True,
                    )
        return
    columns = {part: column(table, mapping[part], part) for part in PARTS if mapping.get(part) is not None}
    impossible = known.by_name(table.columns, ("is_impossible", "impossible"))
    for line, row in table.rows:
        flag = str(row.get(impossible, "")).strip().lower() in ("true", "1") if impossible else False
        answers = _answers(row.get(columns["answers"]), row.get(columns.get("start", "")))
        yield line, row.get(columns["question"]), row.get(columns["context"]), answers, str(row.get(columns.get("id", ""), "")), flag


def _answers(value: Any, start: Any) -> list[tuple[str, int | None]]:
    """Answers with their positions (None where none is given) from any of the shapes."""
    if isinstance(value, str) and value.strip()[:1] in "[{" and value.strip():
        value = _parsed(value)
    if isinstance(value, dict):  # Hugging Face: {"text": […], "answer_start": […]}; or one answer
        texts, starts = value.get("text"), value.get("answer_start", value.get("start"))
        if not isinstance(texts, list):
            texts, starts = ([texts] if texts else []), [starts]
        starts = starts if isinstance(starts, list) else [starts]
        return [(str(text), _place(starts[place] if place < len(starts) else None)) for place, text in enumerate(texts)]
    if value is None or (isinstance(value, str) and not value.strip()) or (isinstance(value, float) and value != value):
        return []
    items = value if isinstance(value, list) else [value]
    starts = listed(start, ",") if isinstance(start, list | str) else [start]
    found = []
    for place, item in enumerate(items):
        if isinstance(item, dict):
            found.append((str(item.get("text", item.get("answer", ""))), _place(item.get("answer_start", item.get("start")))))
        elif isinstance(item, list | tuple) and len(item) == 2:
            found.append((str(item[0]), _place(item[1])))
        else:
            found.append((str(item), _place(starts[place] if place < len(starts) else None)))
    return found


def _parsed(text: str) -> Any:
    import json

    if text.strip().startswith("{"):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return listed(text, "")


def _place(value: Any) -> int | None:
    figure = known.number(value)
    return int(figure) if figure is not None and figure == int(figure) else None
