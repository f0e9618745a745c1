"""Several models of one task that answer together: by the average of their probabilities, by vote, or through a model stacked on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.models.config_json import read_config
from luban.models.heads import Head

LABELLED = ("classification", "relation")
TASKS = (*LABELLED, "multi_label", "regression", "tagging", "ranking", "multiple_choice")


class Ensemble(Predictor):
    """Predicts as its members do, from all of their answers."""

    def __init__(self, members: Sequence[Predictor], how: str, stack: dict[str, Any] | None = None):
        self.members, self.how, self.stack = list(members), how, stack
        check_members([member.head for member in members], how)

    @classmethod
    def load(cls, path: Path | str, *, dtype: Any = None, device: str = "auto") -> Ensemble:
        """Open an ensemble's folder, its members beside the note. Raises DataError when one is missing."""
        note = read_config(Path(path))
        members = [Predictor.load(Path(path) / name, dtype=dtype, device=device) for name in note["members"]]
        return cls(members, note["how"], note.get("stack"))

    @property
    def head(self) -> Head | None:
        return self.members[0].head

    @property
    def task(self) -> str:
        return self.members[0].task

    def predict(self, items: Any, *, rows: int = 32) -> list[dict[str, Any]]:
        items = list(items)
        said = [member.predict(items, rows=rows) for member in self.members]
        return [self._together(answers) for answers in zip(*said, strict=True)]

    def _together(self, answers: Sequence[dict[str, Any]]) -> dict[str, Any]:
        if self.task in LABELLED:
            shares = self._shares(answers)
            return {"label": max(shares, key=shares.__getitem__), "probabilities": shares}
        if self.task == "multi_label":
            shares = {label: float(np.mean([answer["probabilities"][label] for answer in answers])) for label in answers[0]["probabilities"]}
            if self.how == "vote":
                shares = {label: float(np.mean([label in answer["labels"] for answer in answers])) for label in shares}
            return {"labels": [label for label, share in shares.items() if share >= self.head.settings.get("threshold", 0.5)], "probabilities": shares}
        if self.task == "regression":
            values = [answer["value"] for answer in answers]
            return {"value": float(np.median(values) if self.how == "vote" else np.mean(values))}
        if self.task == "tagging":
            return {"spans": _voted_spans([answer["spans"] for answer in answers])}
        scores = np.mean([answer["scores"] for answer in answers], axis=0).tolist()
        if "choice" in answers[0]:
            return {"scores": scores, "choice": int(np.argmax(scores))}
        return {"scores": scores, **({"probability": True} if all(answer.get("probability") for answer in answers) else {})}

    def _shares(self, answers: Sequence[dict[str, Any]]) -> dict[str, float]:
        labels = list(answers[0]["probabilities"])
        if self.how == "vote":
            # A tie goes to the label that the members give more probability.
            votes = Counter(answer["label"] for answer in answers)
            mean = {label: np.mean([answer["probabilities"][label] for answer in answers]) for label in labels}
            return {label: float((votes[label] + 1e-3 * mean[label]) / (len(answers) + 1e-3)) for label in labels}
        if self.how == "stack":
            scores = np.array(self.stack["weights"]) @ features(answers, labels) + np.array(self.stack["bias"])
            shares = np.exp(scores - scores.max())
            return {label: float(share) for label, share in zip(self.stack["labels"], shares / shares.sum(), strict=True)}
        return {label: float(np.mean([answer["probabilities"][label] for answer in answers])) for label in labels}


def features(answers: Sequence[dict[str, Any]], labels: Sequence[str]) -> np.ndarray:
    """[members × labels] what a stacked model reads: each member's log-probabilities."""
    return np.log(np.maximum([answer["probabilities"][label] for answer in answers for label in labels], 1e-6))


def check_members(heads: Sequence[Head | None], how: str) -> None:
    """All members have one task and the same labels, and the way they are combined is defined for it."""
    if not heads or heads[0] is None or any(head is None or head.task != heads[0].task for head in heads):
        raise ConfigError("the members of an ensemble do not have one task in common: {tasks}", "their answers cannot be put together", "name models that were trained with the same objective", tasks=", ".join(str(head and head.task) for head in heads))
    task = heads[0].task
    if task not in TASKS:
        raise ConfigError("there is no ensemble for the task {task}", "", "tasks: {known}", task=task, known=", ".join(TASKS))
    if any(set(head.labels) != set(heads[0].labels) for head in heads):
        raise DataError("the members of an ensemble know different labels", "", "train them on the same data")
    if how == "stack" and task not in LABELLED:
        raise ConfigError("how: stack is for tasks with one label an example; this is {task}", "", "choose average or vote", task=task)


def _voted_spans(members: Sequence[list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The spans that more than half of the members give, none overlapping: the ones with more votes first."""
    votes = Counter((span["start"], span["end"], span["label"]) for spans in members for span in spans)
    first = {(span["start"], span["end"], span["label"]): span for spans in reversed(members) for span in spans}
    kept: list[tuple[int, int, str]] = []
    for key, count in sorted(votes.items(), key=lambda item: (-item[1], item[0])):
        if count * 2 > len(members) and all(key[1] <= start or end <= key[0] for start, end, _ in kept):
            kept.append(key)
    return [{**first[key], "score": votes[key] / len(members)} for key in sorted(kept)]

