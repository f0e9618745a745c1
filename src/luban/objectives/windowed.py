"""What the objectives on long texts share: rows are windows of texts, and what does not fit is counted and said."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from luban.examples.reading import ExampleSet
from luban.objectives.base import DataRequest, Loaders
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Row


class WindowedObjective(TaskObjective):
    """Base of tagging, joint relations and question answering: an example makes as many rows as it has windows."""

    unit = "window"

    def rows_of(self, examples: Sequence[Any], tokenizer: Tokenizer) -> list[Row]:
        """The rows of all windows of the examples."""
        raise NotImplementedError

    def loaders(self, data: DataRequest) -> Loaders:
        made = super().loaders(data)
        made.report |= {"examples": self.examples, "windows": made.report["examples"]}
        return made

    def read(self, data: DataRequest) -> tuple[ExampleSet, list[Any]]:
        found, held_out = super().read(data)
        self.examples = len(found.examples)
        return found, held_out

    def units(self, examples: Sequence[Any], tokenizer: Tokenizer) -> list[list[Row]]:
        return [[row] for row in self.rows_of(examples, tokenizer)]


def window_stride(length: int) -> int:
    """Tokens that neighbouring windows of ``length`` share, where nothing else is asked for."""
    return length // 4
