"""What the objectives on labelled examples share: reading, splitting, framing, batches, and the task's own metrics."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from luban.corpus.licences import UNKNOWN, beside
from luban.corpus.readers import BadLine
from luban.examples.reading import ExampleSet, read_examples
from luban.examples.splitting import hold_out, k_folds
from luban.foundation.artifacts import Artifact, write_bytes
from luban.foundation.console import say, warn
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.foundation.paths import named_files
from luban.inference.predictor import Predictor
from luban.metrics.score import Score
from luban.metrics.tasks import score_task
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Loaders, Objective
from luban.tokenizer.framing import Framed
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Row
from luban.tokens.units import UnitLoader

VALIDATION_BATCHES = 64  # for the loss; the metrics take `validation.maximum_examples`


class TaskObjective(Objective):
    """Base of the objectives on labelled examples. A subclass says which examples it reads (``reads``), what the model puts out
    (``make_head``), how an example becomes a unit of rows (``unit_of``) and an item to predict (``item_of``), and its loss (``terms``)."""

    unit = "example"
    by_example = True
    group: int = 1  # rows a unit
    reads: str = ""  # the task by which `read_examples` knows it

    @property
    def measured_as(self) -> str:
        """The task by which `metrics.tasks` knows it."""
        return self.reads

    # ---- what a subclass defines -----------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> Any:
        """The head for the labels that the training data has."""
        raise NotImplementedError

    def unit_of(self, example: Any, tokenizer: Tokenizer) -> list[Row] | None:
        """The rows of one example, each with an ``extra`` of the same names and shapes; None if it cannot be learned from
        (``self.refused`` counts the reason)."""
        raise NotImplementedError

    def item_of(self, example: Any) -> dict[str, Any]:
        """The example as `predict` reads it, without its answer."""
        raise NotImplementedError

    def check_examples(self, examples: Sequence[Any]) -> None:
        """Raise DataError for what could be learned from and not be measured, before anything is spent on it."""

    def metric_labels(self, head: Head) -> list[str]:
        """The labels that the metrics tell apart."""
        return list(head.labels)

    # ---- what all have ---------------------------------------------------------------------------------------------

    def loaders(self, data: DataRequest) -> Loaders:
        found, held_out = self.read(data)
        self.refused: dict[str, int] = {}
        self.noticed: dict[str, int] = {}
        self.head = self.make_head(found, data)
        units = self.units(found.examples, data.tokenizer)
        if not units:
            raise DataError("there is no example to train on in {files}", "{bad} rows were set aside", "luban show FILE says how a file is read", files=", ".join(found.files), bad=len(found.bad))
        validation = self.units(held_out, data.tokenizer)
        self._set_aside(found, data)
        loader = self.loader(units, data, data.seed, True)
        batches = list(self.loader(validation, data, 0, False).pass_once())[:VALIDATION_BATCHES] if validation else []
        report = {"examples": len(units), "validation_examples": len(held_out), "bad_rows": len(found.bad), "format": found.format, **({"labels": list(self.head.labels)} if self.head is not None else {}), **({"refused": self.refused} if self.refused else {}), **({"noticed": self.noticed} if self.noticed else {})}
        return Loaders(loader, batches, report, stated_licences(data), held_out)

    def read(self, data: DataRequest) -> tuple[ExampleSet, list[Any]]:
        """The training examples and the held-out ones: of their own files, or a share chosen by content."""
        found = read_examples(_paths(data.data), self.reads, data.mapping or None)
        found.show()
        self.check_examples(found.examples)
        if data.fold is not None:
            number, folds = data.fold
            found.examples, held_out = k_folds(found.examples, folds, stratify=True, seed=data.seed)[number]
            return found, held_out
        if data.validation:
            held_out = read_examples(_paths(data.validation), self.reads, data.mapping or None)
            self.check_examples(held_out.examples)
            found.bad += held_out.bad
            return found, held_out.examples
        if not data.validation_share:
            return found, []
        found.examples, held_out = hold_out(found.examples, data.validation_share, stratify=True, seed=data.seed)
        return found, held_out

    def units(self, examples: Sequence[Any], tokenizer: Tokenizer) -> list[list[Row]]:
        """Every example's rows, those that cannot be learned from left out and counted."""
        made = [self.unit_of(example, tokenizer) for example in examples]
        return [unit for unit in made if unit is not None]

    def loader(self, units: list[list[Row]], data: DataRequest, seed: int, shuffle: bool) -> UnitLoader:
        return UnitLoader(units, units_per_step=data.examples_per_step, seed=seed, pad_id=data.tokenizer.pad_id, group=self.group, shuffle=shuffle)

    def refuse(self, reason: str) -> None:
        """Count an example that cannot be learned from; ``None`` is then its unit."""
        self.refused[reason] = self.refused.get(reason, 0) + 1

    def notice(self, reason: str, count: int = 1) -> None:
        """Count what was learned from in another form than it was given."""
        if count:
            self.noticed[reason] = self.noticed.get(reason, 0) + count

    def notice_cut(self, framed: Iterable[Framed]) -> None:
        """Count the rows in which a text is not whole."""
        self.notice("texts are longer than sequence_length: what does not fit is not read", sum(one.truncated > 0 for one in framed))

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Any]) -> dict[str, Score]:
        """The task's figures, values only: intervals are `evaluate`'s."""
        training = model.training
        predictions = self.predictions(Predictor(model, tokenizer), examples)
        model.train(training)
        return score_task(self.measured_as, predictions, examples, labels=self.metric_labels(model.head), resamples=0)

    def predictions(self, predictor: Predictor, examples: Sequence[Any]) -> list[dict[str, Any]]:
        """What a model says of each example, as the metrics of the task read it."""
        return predictor.predict([self.item_of(example) for example in examples])

    def _set_aside(self, found: ExampleSet, data: DataRequest) -> None:
        """Rows that could not be used, each with its place and the reason, in training/set_aside.jsonl."""
        if found.bad:
            write_rows(data.work / "training" / "set_aside.jsonl", found.bad)
            say("{count} rows were set aside, with their reasons, in training/set_aside.jsonl", count=len(found.bad))
        for reason, count in self.refused.items():
            warn("{count} examples are not learned from: {reason}", count=count, reason=t(reason))
        for reason, count in self.noticed.items():
            warn("{count} {reason}", count=count, reason=t(reason))


def require_labels(found: ExampleSet) -> None:
    """Raise DataError for files in which nothing has a label."""
    if found.examples and all(example.label is None for example in found.examples):
        raise DataError(
            "no example has a label: {files}", "columns that nothing was made of: {columns}", "name the label's column in mapping: {{label: …}}; luban show FILE says how a file is read",
            files=", ".join(found.files), columns=", ".join(found.unused) or "–",
        )  # fmt: skip


def write_rows(file: Path, bad: Sequence[BadLine]) -> None:
    """Bad lines as JSON lines."""
    lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
    write_bytes(file, "".join(lines).encode("utf-8", "surrogatepass"))


def stated_licences(data: DataRequest) -> list[str]:
    """Those of the artifacts, and what a file beside the user's own says; files of which nothing says are passed over."""
    found: dict[str, None] = {}
    for source in (*data.data, *data.validation):
        stated = source.licences if isinstance(source, Artifact) else [name for file in named_files(source) for name in beside(file)]
        found |= dict.fromkeys(name for name in stated if name != UNKNOWN)
    return list(found)


def _paths(sources: Sequence[Any]) -> list[Path]:
    return [Path(str(getattr(source, "path", source))) for source in sources]
