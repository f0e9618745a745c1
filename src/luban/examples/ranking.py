"""Queries with documents and how good each is: positives and negatives, graded pairs, lists of candidates; and pairs for embeddings."""

from __future__ import annotations

from typing import Any

from luban.examples import columns as known
from luban.examples.notes import Notes, check_text
from luban.examples.records import Table, column
from luban.examples.tables import is_filled, listed
from luban.examples.tasks import Ranking, TextPair

PARTS = ("query", "positive", "negative", "document", "grade", "labels")
_WORDS = {
    "entailment": 1.0,
    "neutral": 0.0,
    "contradiction": 0.0,
    "true": 1.0,
    "false": 0.0,
    "yes": 1.0,
    "no": 0.0,
    "蕴含": 1.0,
    "中立": 0.0,
    "矛盾": 0.0,
    "相关": 1.0,
    "不相关": 0.0,
}


def recognise(table: Table, task: str) -> dict[str, Any] | None:
    """Which columns hold the query, its documents and their grades."""
    rows = table.sample(100)
    query = known.by_name(table.columns, known.QUERIES)
    positive = known.by_name(table.columns, known.POSITIVES, query)
    if query and positive:
        negative = known.by_name(table.columns, known.NEGATIVES, query, positive)
        return {"query": query, "positive": positive} | ({"negative": negative} if negative else {})
    if query:
        document = known.by_name(table.columns, known.DOCUMENTS, query)
        grade = known.by_name(table.columns, known.GRADES, query, document)
        if document and (grade or any(isinstance(row.get(document), dict) for row in rows[:5]) or task == "embedding"):
            return {"query": query, "document": document} | ({"grade": grade} if grade else {})
    if task == "embedding" and (pair := known.pair_by_name(table.columns, known.PAIRS)):
        free = [name for name in table.columns if name not in pair]
        grade = known.by_name(free, ("relatedness_score", *known.SCORES, *known.GRADES)) or known.by_name(free, known.LABELS)
        return {"query": pair[0], "document": pair[1]} | ({"grade": grade} if grade else {})
    facts = known.facts_of(rows, table.columns)
    texts = known.text_columns(facts, len(rows))
    if table.named or len(texts) < 2:
        return None
    graded = [name for name, fact in facts.items() if fact.numbers == fact.filled and not fact.running]
    if graded:
        return {"query": texts[0], "document": texts[1], "grade": graded[-1]}
    if len(texts) >= 3:
        return {"query": texts[0], "positive": texts[1], "negative": texts[2]}
    return {"query": texts[0], "document": texts[1]} if task == "embedding" else None


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[Ranking]:
    """Queries in the order they first appear. Rows with the same query and one graded document each become one example."""
    columns = {part: column(table, mapping[part], part) for part in PARTS[:-1] if mapping.get(part) is not None}
    words = {**_WORDS, **{str(key): float(value) for key, value in (mapping.get("labels") or {}).items()}}
    found: dict[str, Ranking] = {}
    rows: list[Ranking] = []
    for line, row in table.rows:
        try:
            query = check_text(row.get(columns["query"]), "query").strip()
            documents, grades = _documents(row, columns, words, notes)
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
            continue
        source = f"{table.path}:{line}"
        if "positive" in columns or "grade" not in columns or len(documents) > 1:
            rows.append(Ranking(query, documents, grades, source))
            continue
        if query not in found:
            found[query] = Ranking(query, [], [], source)
            rows.append(found[query])
        group = found[query]
        if documents[0] in group.documents:
            same = group.grades[group.documents.index(documents[0])] == grades[0]
            notes.count("repeated" if same else "contradictory")
            if same:
                continue
        group.documents += documents
        group.grades += grades
    return rows


def _documents(row: dict, columns: dict[str, str], words: dict[str, float], notes: Notes) -> tuple[list[str], list[float]]:
    if "positive" in columns:
        good = [_text(item) for item in _texts(row.get(columns["positive"]))]
        poor = [_text(item) for item in _texts(row.get(columns["negative"]))] if "negative" in columns else []
        if not good:
            raise ValueError("no positive document")
        return good + poor, [1.0] * len(good) + [0.0] * len(poor)
    value = row.get(columns["document"])
    if isinstance(value, dict) and "passage_text" in value:  # MS MARCO
        return [_text(item) for item in value["passage_text"]], [
            float(flag) for flag in value.get("is_selected", [1] * len(value["passage_text"]))
        ]
    items = value if isinstance(value, list) else [value]
    documents = [_text(item) for item in items]
    if "grade" not in columns:
        return documents, [1.0] * len(documents)
    if not documents:
        raise ValueError("no document")
    grades = notes.answer(lambda: _grades(row.get(columns["grade"]), isinstance(value, list), len(documents), words))
    return documents, [0.0] * len(documents) if grades is None else grades


def _grades(value: Any, several: bool, documents: int, words: dict[str, float]) -> list[float]:
    grades = [grade_of(item, words) for item in (listed(value, ",") if several else [value])]
    if len(grades) != documents:
        raise ValueError(f"{documents} documents and {len(grades)} grades")
    return grades


def _texts(value: Any) -> list[Any]:
    return (
        value
        if isinstance(value, list)
        else listed(value, "")
        if isinstance(value, str) and value.strip().startswith("[")
        else [value]
        if is_filled(value)
        else []
    )


def _text(item: Any) -> str:
    if isinstance(item, dict):
        item = item.get("text", item.get("passage", item.get("content")))
    return check_text(item, "document").strip()


def grade_of(value: Any, words: dict[str, float]) -> float:
    """A grade as a number; words such as entailment, yes and 相关 have one."""
    for key, figure in words.items():
        if str(value).strip().lower() == key.lower():
            return figure
    if isinstance(value, bool):
        return float(value)
    figure = known.number(value)
    if figure is None:
        raise ValueError(f"the grade {str(value)[:40]!r} is no number" if is_filled(value) else "the grade is missing")
    return figure


def from_pairs(pairs: list[TextPair]) -> list[Ranking]:
    """Parallel texts as queries with one positive document."""
    return [Ranking(pair.input, [pair.output], [1.0], pair.source) for pair in pairs]
