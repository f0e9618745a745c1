"""The front door to labelled data: files of any known form become examples of a task, and what was understood is shown.

Nothing is registered or converted beforehand. What a file is, and which of its columns hold what, is found out from its content; a
mapping overrides it. Every record becomes an example or stands in ``bad`` with file, line and reason.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from luban.corpus.readers import BadLine
from luban.examples import slices, sources
from luban.examples.notes import Notes, note_text, show_bad
from luban.examples.splitting import duplicates, labels_of
from luban.examples.tasks import Choice, LabeledText, Preference, Prompt, Question, Ranking, RelationText, TaggedText, TextPair
from luban.foundation.console import heading, say, table, warn
from luban.foundation.errors import ConfigError, DataError, nearest
from luban.foundation.messages import t

TASKS = sources.TASKS
_SHOWN = 160  # characters of a text in a rendered example


@dataclass
class ExampleSet:
    """Examples of a task, how they were recognised, and everything that was set aside or noticed.

    ``labels`` are the classes in a fixed order (numbers by size, names by code point, or as the mapping lists them); ``counts`` says
    what was repaired or noticed and how often, ``label_counts`` how many examples show each label.
    """

    examples: list = field(default_factory=list)
    task: str = ""
    format: str = ""  # "csv", "conll", …; several joined by ", "
    mapping: dict[str, Any] = field(default_factory=dict)
    bad: list[BadLine] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)  # columns that nothing is made of
    labels: list[str] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    label_counts: dict[str, int] = field(default_factory=dict)

    def show(self, number: int = 3) -> None:
        """Print the mapping, some rendered examples, the labels and what was set aside."""
        show(self, number)


def read_examples(paths: Any, task: str, mapping: dict | None = None, weights: Sequence[float] | None = None, answers: bool = True) -> ExampleSet:
    """Read the examples of a task from files, folders, a list of rows, or a table with ``columns`` and ``to_dict`` (a pandas frame).

    Each path may end in a slice (``data.csv#500``, see slices.py); two files of a text and its translation may be written as two paths,
    as ``a.en,b.zh`` or as their common stem. ``weights``, one a path, repeat (2) or thin out (0.5) what it holds. ``mapping`` names
    the columns where they are not recognised (docs/data.md lists its keys for every task). Without ``answers`` a missing or damaged label, grade or
    answer is none, and the rest of the record is read: what is to be predicted needs none.
    Raises ConfigError for an unknown task, mapping or slice, DataError where no record makes an example.
    """
    if task not in TASKS:
        raise ConfigError(
            "{task!r} is no task that examples are read for", "", "did you mean {guess}? The tasks are {tasks}",
            task=task, guess=nearest(str(task), TASKS) or "classification", tasks=", ".join(TASKS),
        )  # fmt: skip
    mapping = dict(mapping or {})
    sources.check_mapping(mapping, task)
    found = ExampleSet(task=task)
    notes = Notes(answers)
    forms: dict[str, None] = {}
    unused: dict[str, None] = {}
    entries = sources.entries_of(paths)
    if weights is not None and len(weights) != len(entries):
        raise ConfigError(
            "{weights} weights for {paths} paths", "", "give one weight for each path", weights=len(weights), paths=len(entries)
        )
    for part in sources.plan(entries, task, mapping, notes):
        found.files += [file for file in part.names() if file not in found.files]
        examples, used, left = sources.read(part, task, mapping, notes)
        if not examples:
            continue
        if part.slice is not None:
            kept = slices.take(examples, part.slice, part.names()[0])
            notes.count("sliced away", len(examples) - len(kept))
            examples = kept
        if weights is not None:
            weighed = slices.weigh(examples, weights[part.entry])
            notes.count("upsampled" if len(weighed) > len(examples) else "weighted away", abs(len(weighed) - len(examples)))
            examples = weighed
        found.examples += examples
        found.mapping = found.mapping or used
        forms[part.format] = None
        unused |= dict.fromkeys(left)
    found.format, found.unused, found.bad = ", ".join(forms), list(unused), notes.bad
    if not found.examples:
        _refuse(found, notes)
    _look_over(found, notes, mapping)
    return found


def _refuse(found: ExampleSet, notes: Notes) -> None:
    named = [bad for bad in notes.bad if bad.line or len(notes.bad) == 1] or notes.bad[-1:]  # a record rather than a README beside it
    first = named[0] if named else None
    raise DataError(
        "no example of the task {task} was found in {files}", "{place}" if first else "the columns were not recognised: {columns}",
        "say which column holds what, such as mapping: {{{example}}}, or choose the task that the data is for",
        task=found.task, files=", ".join(found.files[:5]) or "(nothing)", place=f"{first.file}{f':{first.line}' if first.line else ''}: {first.reason}" if first else "",
        columns=", ".join(notes.columns[:20]) or "–", example=sources.mapping_example(found.task, notes.columns),
    )  # fmt: skip


def _look_over(found: ExampleSet, notes: Notes, mapping: dict[str, Any]) -> None:
    """Count what concerns the examples together: labels, repetitions, contradictions."""
    unique = list({id(example): example for example in found.examples}.values())  # an upsampled example is no repetition
    repeated, contradictory = duplicates(unique)
    if found.task not in ("text_pairs", "ranking", "embedding", "preference", "prompt"):
        notes.count("contradictory", contradictory)
    notes.count("repeated", repeated)
    counted: Counter[str] = Counter()
    for example in found.examples:
        if isinstance(example, TaggedText):
            counted.update(span.label for span in example.spans)
        elif isinstance(example, LabeledText | RelationText):
            counted.update(labels_of(example))
    if any(isinstance(example, LabeledText | RelationText) for example in found.examples):
        notes.count("unlabelled", sum(example.label is None for example in found.examples))
    wished = [str(name) for name in (mapping.get("labels") or {}).values()] if found.task not in ("ranking", "embedding") else []
    order = {name: place for place, name in reversed(list(enumerate(wished)))}
    found.labels = sorted(counted, key=lambda name: (order.get(name, len(order)), *_natural(name)))
    found.label_counts = {name: counted[name] for name in found.labels}
    if found.task in ("classification", "relation"):
        notes.count("one class", int(len(counted) == 1))
    found.counts = notes.counts


def _natural(name: str) -> tuple[int, int, str]:
    return (0, int(name), name) if name.lstrip("-").isdecimal() and name.isascii() else (1, 0, name)


def recognise_task(path: Path | str) -> list[str]:
    """The tasks that a file or folder can be read for, most likely first; nothing where none is recognised."""
    return sources.guess_tasks(path)


def show(found: ExampleSet, number: int = 3) -> None:
    """Print what was recognised, ``number`` examples, label counts, and what was set aside with the reasons."""
    files = ", ".join(found.files[:3]) + (" …" if len(found.files) > 3 else "")
    say(
        "{count} examples for the task {task} in {files} (format: {format})",
        count=len(found.examples),
        task=found.task,
        files=files,
        format=found.format,
    )
    if found.mapping:
        table("", [t("part"), t("column")], [(part, value) for part, value in found.mapping.items()])
    step = max(1, len(found.examples) // max(1, number))
    for example in found.examples[::step][:number]:
        say("  {place}: {text}", place=Path(example.source).name or "?", text=render(example))
    if found.label_counts:
        heading("Labels")
        shown = sorted(found.label_counts.items(), key=lambda item: (-item[1], item[0]))
        table("", [t("label"), t("count")], shown[:20])
        if len(shown) > 20:
            say(
                "… and {count} more labels, the rarest {label} with {number}",
                count=len(shown) - 20,
                label=shown[-1][0],
                number=shown[-1][1],
            )
    if found.unused:
        say("columns that are not used: {columns}", columns=", ".join(found.unused[:12]))
    for kind, count in found.counts.items():
        (warn if kind in ("contradictory", "one class", "unlabelled", "relations lost") else say)("{note}", note=note_text(kind, count))
    show_bad(found.bad)


def _short(text: str, length: int = _SHOWN) -> str:
    text = text.replace("\n", "⏎")
    return text if len(text) <= length else text[: length - 1] + "…"


def render(example: Any) -> str:
    """An example on one line: entities as ⟦words|label⟧, answers, choices and grades marked."""
    if isinstance(example, LabeledText):
        label = ", ".join(example.label) if isinstance(example.label, list) else example.label
        return _short(example.text) + (f" ‖ {_short(example.pair)}" if example.pair else "") + f" → {label}"
    if isinstance(example, TaggedText):
        return _short(_bracketed(example.text, [(s.start, s.end, s.label) for s in example.spans]), 2 * _SHOWN) + "".join(
            f" ({example.text[example.spans[h].start : example.spans[h].end]}, {label}, {example.text[example.spans[t_].start : example.spans[t_].end]})"
            for h, t_, label in example.relations[:3]
        )
    if isinstance(example, RelationText):
        return (
            _short(_bracketed(example.text, [(example.head.start, example.head.end, "1"), (example.tail.start, example.tail.end, "2")]))
            + f" → {example.label}"
        )
    if isinstance(example, Question):
        return f"{_short(example.question)} → {' / '.join(dict.fromkeys(_short(words, 40) for words, _ in example.answers)) or '∅'} ({_short(example.context, 80)})"
    if isinstance(example, TextPair):
        controls = "".join(f"[{name}: {_short(value, 40)}] " for name, value in example.controls.items())
        return f"{controls}{_short(example.input)} → {_short(example.output)}"
    if isinstance(example, Choice):
        marks = " ".join(f"{'✓' if place == example.answer else '·'}{_short(choice, 40)}" for place, choice in enumerate(example.choices))
        return f"{_short(example.prompt)} {marks}"
    if isinstance(example, Ranking):
        return f"{_short(example.query)} → " + "; ".join(
            f"{grade:g}: {_short(document, 60)}" for document, grade in list(zip(example.documents, example.grades, strict=True))[:4]
        )
    if isinstance(example, Preference):
        sides = [("✓" if example.label is not False else "✗", example.chosen), ("✗", example.rejected)]
        answers = " ".join(f"{mark}{_short(str(answer[-1]['content']), 60)}" for mark, answer in sides if answer)
        return f"{_short(str(example.messages[-1]['content']), 80)} → {answers}"
    if isinstance(example, Prompt):
        return _short(str(example.messages[-1].get("content", ""))) + "".join(f" [{name}: {_short(str(value), 40)}]" for name, value in list(example.columns.items())[:4])
    return _short(str(example))


def _bracketed(text: str, spans: list[tuple[int, int, str]]) -> str:
    pieces, position = [], 0
    for start, end, label in sorted(spans):
        if start >= position:
            pieces += [text[position:start], f"⟦{text[start:end]}|{label}⟧"]
            position = end
    return "".join([*pieces, text[position:]])
