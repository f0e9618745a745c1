"""The baseline of question answering: the sentence of the context that shares the most with the question."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from luban.examples.tasks import Question

_UNIT = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\uac00-\ud7a3]|[^\W_]+")
_SENTENCE = re.compile(r"[^.!?。！？；\n]*(?:[.!?](?=\s|$)|[。！？；\n]|[.!?]|$)")


class SentenceOverlap:
    """Answers with a whole sentence: the one whose words (characters, in scripts without spaces) that the question has too are worth most,
    a word counting by its rarity among the contexts of the training data (inverse document frequency). The first of equals."""

    def __init__(self, contexts: Sequence[str]):
        different = list(dict.fromkeys(contexts))
        counts = Counter(unit for context in different for unit in dict.fromkeys(_units(context)))
        self._worth = {unit: math.log((len(different) + 1) / (count + 0.5)) for unit, count in counts.items()}
        self._unseen = math.log(2.0 * len(different) + 2)

    def answer(self, question: str, context: str) -> dict[str, Any]:
        """``{"answer", "start", "end"}``; an empty answer where no sentence has a word of the question."""
        asked = dict.fromkeys(_units(question))
        best, place = 0.0, (0, 0)
        for start, end in sentences(context):
            worth = sum(self._worth.get(unit, self._unseen) for unit in dict.fromkeys(_units(context[start:end])) if unit in asked)
            if worth > best:
                best, place = worth, (start, end)
        return {"answer": context[place[0] : place[1]], "start": place[0], "end": place[1]}

    def predict(self, questions: Sequence[Question]) -> list[dict[str, Any]]:
        return [self.answer(one.question, one.context) for one in questions]


def sentences(text: str) -> list[tuple[int, int]]:
    """(first character, end) of the sentences of a text, without white space and final marks around them."""
    found = []
    for match in _SENTENCE.finditer(text):
        start, end = match.span()
        while start < end and text[start].isspace():
            start += 1
        while end > start and (text[end - 1].isspace() or text[end - 1] in ".!?。！？；"):
            end -= 1
        if start < end:
            found.append((start, end))
    # A mark inside a word or number ends no sentence: its pieces are put together again.
    joined: list[tuple[int, int]] = []
    for start, end in found:
        if joined and not any(letter.isspace() or letter in "。！？；" for letter in text[joined[-1][1] : start]):
            joined[-1] = (joined[-1][0], end)
        else:
            joined.append((start, end))
    return joined


def _units(text: str) -> list[str]:
    return _UNIT.findall(text.lower())
