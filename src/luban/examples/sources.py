"""Which files belong together, what each is, and which reader makes examples of it. `reading` is the door to this."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from luban.corpus.encodings import BINARY
from luban.corpus.readers import find_files
from luban.examples import brat, choice, conll, parallel, preferences, prompts, ranking, relations, spans, squad, tables
from luban.examples.notes import Notes
from luban.examples.records import FORMATS, TABLES, Table, column, kind_of, read_table
from luban.examples.slices import Slice, parse
from luban.foundation.artifacts import is_artifact
from luban.foundation.errors import ConfigError, DataError, nearest
from luban.foundation.paths import together

TASKS = (
    "classification",
    "regression",
    "multi_label",
    "tagging",
    "relation",
    "joint_relation",
    "question_answering",
    "text_pairs",
    "choice",
    "ranking",
    "embedding",
    "preference",
    "prompt",
)
_TEXT_TASKS = ("classification", "regression", "multi_label")
_PARTS = {
    **dict.fromkeys(_TEXT_TASKS, tables.PARTS),
    "tagging": spans.PARTS,
    "joint_relation": spans.PARTS,
    "relation": (*relations.PARTS, "spans", "relations", "end"),
    "question_answering": squad.PARTS,
    "text_pairs": parallel.PARTS,
    "choice": choice.PARTS,
    "ranking": ranking.PARTS,
    "embedding": (*ranking.PARTS, "input", "output"),
    "preference": preferences.PARTS,
    "prompt": prompts.PARTS,
}
_ANYWHERE = ("format", "header")
_ENOUGH = {  # parts that must be known, one set of them at least; the first is named where none is
    **dict.fromkeys(_TEXT_TASKS, ({"text"},)),
    "tagging": ({"text", "spans"}, {"words", "tags"}, {"words", "spans"}),
    "joint_relation": ({"text", "spans"}, {"text", "relations"}, {"words", "spans"}),
    "relation": ({"text", "head", "tail"}, {"words", "head", "tail"}, {"text"}, {"words", "relations"}),
    "question_answering": ({"question", "context", "answers"},),
    "text_pairs": ({"input", "output"},),
    "choice": ({"prompt", "choices"},),
    "ranking": ({"query", "document"}, {"query", "positive"}),
    "embedding": ({"query", "document"}, {"query", "positive"}, {"input", "output"}),
    "preference": ({"chosen", "rejected"}, {"prompt", "answers"}, {"prompt", "answer", "label"}, {"messages", "label"}),
    "prompt": ({"prompt"}, {"messages"}),
}
_EXAMPLE = {
    "classification": ("text", "label"),
    "multi_label": ("text", "label"),
    "regression": ("text", "label"),
    "tagging": ("text", "spans"),
    "joint_relation": ("text", "spans", "relations"),
    "relation": ("text", "head", "tail", "label"),
    "question_answering": ("question", "context", "answers"),
    "text_pairs": ("input", "output"),
    "choice": ("prompt", "choices", "answer"),
    "ranking": ("query", "document", "grade"),
    "embedding": ("query", "positive"),
    "preference": ("prompt", "chosen", "rejected"),
    "prompt": ("prompt",),
}
_NOTICE = re.compile(
    r"^(readme|licen[cs]e|licence|source|changelog|copying|notice|citation|makefile)\b.*|.*\.(md|html?|py|sh|pdf|png|jpe?g|yaml|yml)$",
    re.IGNORECASE,
)


@dataclass
class Part:
    """Files that are read as one: their format, the slice that is taken of them, and the entry of the list they came from."""

    files: list[Path]
    format: str
    slice: Slice | None = None
    entry: int = 0
    label: str | None = None  # of texts whose class is the file they stand in
    rows: list[dict] | None = None

    def names(self) -> list[str]:
        """Names to be shown."""
        return [file.name for file in self.files] or ["list"]


def check_mapping(mapping: dict[str, Any], task: str) -> None:
    """Raise ConfigError for a part that the task does not have, or a format that does not exist."""
    parts = (*_PARTS[task], *_ANYWHERE)
    for part in mapping:
        if part not in parts:
            raise ConfigError(
                "mapping: {part!r} is not a part of the task {task}", "", "did you mean {guess}? The parts are {parts}",
                part=part, task=task, guess=nearest(str(part), parts) or parts[0], parts=", ".join(parts),
            )  # fmt: skip
    if mapping.get("format") not in (None, *FORMATS):
        raise ConfigError(
            "mapping: format: {format!r} is not known", "", "did you mean {guess}? The formats are {formats}",
            format=mapping["format"], guess=nearest(str(mapping["format"]), FORMATS) or "csv", formats=", ".join(FORMATS),
        )  # fmt: skip
    if mapping.get("labels") is not None and not isinstance(mapping["labels"], dict):
        raise ConfigError(
            "mapping: labels: {value!r} is no table of names", "", 'write labels: {{"0": negative, "1": positive}}', value=mapping["labels"]
        )


def mapping_example(task: str, columns: Sequence[str]) -> str:
    """``text: review, label: …``: how a mapping for these columns may look."""
    return ", ".join(f"{part}: {columns[place] if place < len(columns) else '…'}" for place, part in enumerate(_EXAMPLE[task]))


def entries_of(paths: Any) -> list[Any]:
    """What was given as a list: paths as strings, lists of rows."""
    if hasattr(paths, "to_dict") and hasattr(paths, "columns"):
        return [paths.to_dict("records")]
    if isinstance(paths, str | Path):
        return [str(paths)]
    items = list(paths)
    rows = [item for item in items if isinstance(item, dict)]
    others: list[Any] = [item.to_dict("records") if hasattr(item, "to_dict") else str(item) for item in items if not isinstance(item, dict)]
    return ([rows] if rows else []) + others


def plan(entries: list[Any], task: str, mapping: dict[str, Any], notes: Notes) -> list[Part]:
    """The parts to be read, in the order given. Files of plain lines are paired (translation) or become classes, by their names."""
    parts: list[Part] = []
    plain: list[tuple[Path, Slice | None, int]] = []
    for index, entry in enumerate(entries):
        if isinstance(entry, list):
            parts.append(Part([], "list", None, index, rows=entry))
            continue
        text, part = parse(entry)
        if task in ("text_pairs", "embedding") and len(halves := together(text)) == 2:  # said to belong together, whatever their names
            parts.append(Part(halves, "two_files", part, index))
            continue
        for file, form in _files_of(text, task, mapping, notes):
            if form == "lines":
                plain.append((file, part, index))
            elif form == "brat" and any(
                other.format == "brat" and other.files[0].with_suffix("") == file.with_suffix("") for other in parts
            ):
                continue  # its other half was named too
            else:
                parts.append(Part([file], form, part, index))
    return parts + (_grouped(plain, task, mapping, notes) if plain else [])


def _files_of(text: str, task: str, mapping: dict[str, Any], notes: Notes) -> list[tuple[Path, str]]:
    """Files that a path names, each with its format; notices in folders are named in ``notes`` and left out."""
    path = Path(text)
    if is_artifact(path) and (path / "examples.jsonl").is_file():
        path = path / "examples.jsonl"  # an augment stage's rows, without the reports beside them
    if not path.exists():
        if files := together(text):
            return [(file, "lines") for file in files]
        stems = (
            [file for file in sorted(path.parent.glob(f"{path.name}.*")) if file.is_file()]
            if path.parent.is_dir() and not re.search(r"[*?\[]", path.name)
            else []
        )
        if task in ("text_pairs", "embedding") and len(parallel.halves(stems)[0]) == 1:
            return [(file, "lines") for file in stems]
    found = []
    for file in find_files([path]):
        if path.is_dir() and _NOTICE.match(file.name):
            notes.set_aside(file, 0, "not read: by its name it is no data")
            continue
        form = mapping.get("format") or kind_of(file)
        if form == BINARY:
            if not path.is_dir():
                raise DataError(
                    "{path} holds no text",
                    "its bytes are none of UTF-8, UTF-16 and GB18030",
                    "export the data as csv, jsonl or parquet",
                    path=file,
                )
            notes.set_aside(file, 0, "not read: it holds no text")
            continue
        if form == "conll" and task != "tagging":
            form = "tsv"
        if form == "brat" and task not in ("tagging", "relation", "joint_relation"):
            form = "lines" if file.suffix != ".ann" else "brat"
        found.append((file, {"two_files": "lines", "folders": "lines", "html": "lines", "markdown": "lines"}.get(form, form)))
    return found


def _grouped(plain: list[tuple[Path, Slice | None, int]], task: str, mapping: dict[str, Any], notes: Notes) -> list[Part]:
    """Plain files as pairs of a text and its translation, or as one class each."""
    facts = {file: (part, index) for file, part, index in plain}
    files = list(facts)
    if task in ("text_pairs", "embedding"):
        if len(files) == 1 and (other := parallel.partner(files[0])):
            facts[other] = facts[files[0]]
            files.append(other)
        pairs, lonely = parallel.halves(files)
        for file in lonely:
            notes.set_aside(file, 0, "not read: its other half was not found (corpus.en goes with corpus.zh)")
        return [Part([one, two], "two_files", *facts[one]) for one, two in pairs]
    if task in ("classification", "multi_label"):
        labels = tables.class_of_files(files) if len(files) > 1 else {files[0]: None}
        many = mapping.get("format") == "folders" or (
            len({file.parent for file in files}) > 1 and len(files) > len({file.parent for file in files})
        )
        return [Part([file], "folders" if many else "lines", *facts[file], label=labels[file]) for file in files]
    return [Part([file], "lines", *facts[file]) for file in files]


def read(part: Part, task: str, mapping: dict[str, Any], notes: Notes) -> tuple[list, dict[str, Any], list[str]]:
    """(examples, the mapping that was used, columns that were not) of a part."""
    if part.format in TABLES or part.rows is not None:
        table = (
            _rows_table(part.rows, notes) if part.rows is not None else read_table(part.files[0], notes, part.format, mapping.get("header"))
        )
        return _from_table(table, task, mapping, notes)
    file = part.files[0]
    names = mapping.get("labels") or {}
    if task == "tagging" and part.format == "conll":
        return conll.examples(file, mapping, notes), {"words": mapping.get("words", 1), "tags": mapping.get("tags", -1)}, []
    if task in ("tagging", "joint_relation", "relation") and part.format == "brat":
        tagged = brat.example(file, names, notes)
        return (relations.from_tagged(tagged) if task == "relation" else tagged), {}, []
    if task == "relation" and part.format == "semeval":
        return relations.from_semeval(file, names, notes), {}, []
    if task in ("text_pairs", "embedding") and part.format in ("two_files", "tmx"):
        pairs, used = (
            parallel.from_tmx(file, mapping, notes)
            if part.format == "tmx"
            else (parallel.from_two_files(file, part.files[1], mapping, notes), {"input": part.files[0].name, "output": part.files[1].name})
        )
        if part.format == "two_files" and pairs and pairs[0].source.startswith(str(part.files[1])):
            used = {"input": used["output"], "output": used["input"]}
        return (ranking.from_pairs(pairs) if task == "embedding" else pairs), used, []
    if task in ("classification", "multi_label") and part.format in ("lines", "folders", "sentences"):
        if part.format == "sentences":
            return tables.from_sentences(file, task, names, notes), {"label": "__label__"}, []
        label = tables.rename(part.label, names) if part.label else None
        found = tables.from_lines(file, label, notes, part.format == "folders")
        for example in found:
            example.label = [label] if task == "multi_label" and label else label
        return found, {"text": "line" if part.format == "lines" else "file", **({"label": "file name"} if label else {})}, []
    notes.set_aside(file, 0, f"not read: {part.format} holds no examples for the task {task}")
    return [], {}, []


def _rows_table(rows: list[dict], notes: Notes) -> Table:
    columns: dict[str, None] = {}
    for row in rows:
        columns |= dict.fromkeys(str(name) for name in row)
    return Table(
        Path("list"),
        "jsonl",
        [(number, {str(name): value for name, value in row.items()}) for number, row in enumerate(rows, start=1)],
        list(columns),
    )


def recognise(table: Table, task: str) -> dict[str, Any] | None:
    """The mapping that a table's columns suggest for a task."""
    if task in _TEXT_TASKS:
        return tables.recognise(table, task)
    if task == "tagging":
        return spans.recognise(table)
    if task in ("relation", "joint_relation"):
        joint = spans.recognise(table)
        joint = joint if joint and "relations" in joint else None
        return joint if task == "joint_relation" or joint else relations.recognise(table)
    if task == "question_answering":
        return squad.recognise(table)
    if task == "text_pairs":
        return parallel.recognise(table)
    if task == "preference":
        return preferences.recognise(table)
    if task == "prompt":
        return prompts.recognise(table)
    return (
        choice.recognise(table)
        if task == "choice"
        else ranking.recognise(table, task) or (parallel.recognise(table) if task == "embedding" else None)
    )


def _from_table(table: Table, task: str, mapping: dict[str, Any], notes: Notes) -> tuple[list, dict[str, Any], list[str]]:
    notes.columns = notes.columns or table.columns
    if not table.rows:
        if not any(bad.file == str(table.path) for bad in notes.bad):
            notes.set_aside(table.path, 0, "not read: it holds no records")
        return [], {}, []
    used = _merged(recognise(table, task) or {}, {part: value for part, value in mapping.items() if part not in _ANYWHERE}, task)
    if not any(enough <= used.keys() for enough in _ENOUGH[task]):
        lacking = ", ".join(sorted(_ENOUGH[task][0] - used.keys()))
        notes.set_aside(table.path, 0, f"not read: no column is recognised as {lacking}; columns: {', '.join(table.columns[:12])}")
        return [], {}, []
    return _make(table, task, used, notes), used, [] if task == "prompt" else _unused(table, used)


def _merged(guessed: dict[str, Any], given: dict[str, Any], task: str) -> dict[str, Any]:
    """What the user says, and of what was guessed all that does not contradict it."""
    named = {str(value) for key, value in given.items() if key not in ("labels", "separator", "end") and isinstance(value, str | int)}
    instead = {  # who names the one does not want the other
        "positive": {"document", "grade"},
        "document": {"positive", "negative"},
        "tags": {"spans", "text"},
        "spans": {"tags"},
        "text": {"pair", "words"},
        "words": {"text"},
        "query": {"input", "output"},
        "input": {"query", "document", "positive", "negative", "grade"},
    }
    if task == "preference":
        instead = {"label": {"chosen", "rejected", "margin"}, "chosen": {"label", "answer", "answers"}, "prompt": {"messages", "role", "content"}, "messages": {"prompt", "input"}}
    elif task == "prompt":
        instead = {"prompt": {"messages", "role", "content"}, "messages": {"prompt", "input", "history"}}
    elif task not in (*_TEXT_TASKS, "tagging", "joint_relation", "relation", "ranking", "embedding"):
        instead = {}
    unwanted = set().union(*(instead.get(part, set()) for part in given))

    def taken(value: Any) -> bool:
        return bool(named & {str(item) for item in (value if isinstance(value, list) else [value])})

    return {**{part: value for part, value in guessed.items() if part not in unwanted and not taken(value)}, **given}


def _make(table: Table, task: str, used: dict[str, Any], notes: Notes) -> list:
    if task in _TEXT_TASKS:
        return tables.examples(table, used, task, notes)
    if task in ("tagging", "joint_relation"):
        return spans.examples(table, used, notes)
    if task == "relation":
        return relations.from_tagged(spans.examples(table, used, notes)) if "relations" in used else relations.examples(table, used, notes)
    if task == "question_answering":
        return squad.examples(table, used, notes)
    if task == "text_pairs":
        return parallel.examples(table, used, notes)
    if task == "choice":
        return choice.examples(table, used, notes)
    if task == "preference":
        return preferences.examples(table, used, notes)
    if task == "prompt":
        return prompts.examples(table, used, notes)
    return ranking.from_pairs(parallel.examples(table, used, notes)) if "input" in used else ranking.examples(table, used, notes)


def _unused(table: Table, used: dict[str, Any]) -> list[str]:
    named: set[str] = set()
    for part, value in used.items():
        if part in ("labels", "separator", "end", "first") or part in ("role", "content") and "messages" in used:
            continue
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else [value]:
            outer = str(item).partition(".")[0]
            named |= {column(table, item, part) if isinstance(item, int) else str(item), outer}
    return [name for name in table.columns if name not in named and not any(name.startswith(f"{item}_") for item in named)]


def guess_tasks(path: Path | str) -> list[str]:
    """Tasks that the files of a path can be read for, most specific first."""
    text, _ = parse(path)
    notes = Notes()
    files = _files_of(text, "tagging", {}, notes)
    forms = {form for _, form in files}
    if forms & {"brat"}:
        return ["tagging", "joint_relation", "relation"]
    if "conll" in forms:
        return ["tagging"]
    if "semeval" in forms:
        return ["relation"]
    if "tmx" in forms:
        return ["text_pairs", "embedding"]
    if "sentences" in forms:
        return ["classification", "multi_label"]
    tabular = [found for file, form in files if form in TABLES and (found := read_table(file, notes, form)).rows]
    if not tabular:
        paired = [file for file, _ in files]
        if (
            paired
            and (parallel.halves(paired)[0] and len(paired) > 1 or parallel.partner(paired[0]))
            and all(parallel.known.normalised(parallel.plain_name(file)[1]) in parallel.known.LANGUAGES for file in paired)
        ):
            return ["text_pairs", "embedding"]
        return ["classification"] if len(paired) > 1 else []
    return _table_tasks(max(tabular, key=lambda found: len(found.rows)))


def _table_tasks(table: Table) -> list[str]:
    """Most specific first: a form that only one task has outweighs columns that many have."""
    judged = preferences.recognise(table) if table.named else None
    found: list[str] = ["preference"] if judged and ("chosen" in judged or "answers" in judged or "messages" in judged or judged.get("label") == "kto_tag" or judged["answer"] == "completion") else []
    answers = squad.recognise(table)
    if answers and squad.fits(table, answers):
        found.append("question_answering")
    if choice.recognise(table):
        found.append("choice")
    if marked := spans.recognise(table):
        found += ["joint_relation", "relation", "tagging"] if "relations" in marked else ["tagging"]
    elif (related := relations.recognise(table)) and "label" in related:
        found.append("relation")
    if (ranked := ranking.recognise(table, "ranking")) and table.named and ("positive" in ranked or "choice" not in found):
        found += ["ranking", "embedding"] if "positive" in ranked else ["ranking"]
    pairs = parallel.recognise(table)
    named = pairs and {parallel.known.normalised(pairs["input"]), parallel.known.normalised(pairs["output"])} <= parallel.known.LANGUAGES
    known_pair = pairs and (parallel.known.pair_by_name(table.columns, parallel.known.OUTPUT_PAIRS) or "." in str(pairs["input"]) or named)
    labelled = tables.recognise(table, "classification")
    if labelled and "label" in labelled and not isinstance(next((row.get(labelled["label"]) for _, row in table.rows), None), dict):
        facts = tables.known.facts_of(table.sample(), [labelled["label"]])[labelled["label"]]
        rows = table.sample(50)
        names = [str(item) for row in rows if isinstance(row.get(labelled["label"]), list) for item in row[labelled["label"]]]
        if names:
            found += (
                ["multi_label"]
                if "tagging" not in found
                and tables.known.normalised(labelled["label"]) in tables.known.LABELS
                and len(set(names)) * 2 <= max(4, len(names))
                else []
            )
        elif facts.numbers == facts.filled and not facts.whole:
            found += ["regression"]
        elif facts.distinct <= max(20, facts.filled // 3):
            found += ["classification"]
            target = tables.recognise(table, "regression") or {}
            found += ["regression"] if table.named and tables.known.normalised(target.get("label")) in tables.known.SCORES[:8] else []
    if pairs and (known_pair or not found):
        found += ["text_pairs", "embedding"]
    if labelled and "pair" in labelled and "embedding" not in found:
        found.append("embedding")
    return list(dict.fromkeys(found))
