"""Labelled examples as plain data, one class for each kind of example.

Readers make these from files (`luban.examples.reading`), objectives turn them into batches and metrics
compare predictions with them. Positions are always characters (code points) of the text, end exclusive.
`source` is where the example came from, `file:line`, so that every message can name it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Span:
    """A labelled stretch of a text: characters `start` to `end`, end exclusive."""

    start: int
    end: int
    label: str


@dataclass
class LabeledText:
    """A text, or a pair of texts, with a class name, a number or a list of class names; None where the label is unknown."""

    text: str
    pair: str = ""
    label: str | float | list[str] | None = None
    source: str = ""


@dataclass
class TaggedText:
    """A text with its entities and the relations between them.

    `relations` holds (index of the head span, index of the tail span, label); `words` are the character ranges
    of the words where the file had words (CoNLL columns), else None.
    """

    text: str
    spans: list[Span]
    relations: list[tuple[int, int, str]] = field(default_factory=list)
    words: list[tuple[int, int]] | None = None
    source: str = ""


@dataclass
class RelationText:
    """A text with two marked entities and the relation between them, None where it is unknown."""

    text: str
    head: Span
    tail: Span
    label: str | None
    source: str = ""


@dataclass
class Question:
    """A question about a context; each answer is its text and its first character; no answers means unanswerable."""

    question: str
    context: str
    answers: list[tuple[str, int]]
    identity: str = ""
    source: str = ""


@dataclass
class TextPair:
    """An input and the output wanted for it: translation, summary, title, data to text; `controls` steer the output."""

    input: str
    output: str
    controls: dict[str, str] = field(default_factory=dict)
    source: str = ""


@dataclass
class Choice:
    """A prompt, its possible continuations or answers, and the index of the right one (None where it is unknown)."""

    prompt: str
    choices: list[str]
    answer: int | None
    source: str = ""


@dataclass
class Ranking:
    """A query with documents and their grades; a grade above 0 is a relevant document."""

    query: str
    documents: list[str]
    grades: list[float]
    source: str = ""


@dataclass
class Prompt:
    """What a model is asked, and the row's other columns: whatever is needed to judge an answer."""

    messages: list[dict]
    columns: dict[str, Any] = field(default_factory=dict)
    tools: list[dict] | None = None
    source: str = ""


@dataclass
class Preference:
    """A prompt's conversation with a better and a worse answer; or, where `rejected` is None, one answer (`chosen`) that `label` calls good or bad.

    Answers are messages, as a rule one of the assistant. `margin` says by how much the better one is better, where that is known.
    """

    messages: list[dict]
    chosen: list[dict]
    rejected: list[dict] | None = None
    label: bool | None = None
    margin: float | None = None
    tools: list[dict] | None = None
    source: str = ""
