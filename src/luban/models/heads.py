"""Task heads: what they put out, how they read hidden states, and what config.json says of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

Structure = Literal["language_model", "sequence", "token", "span", "choice", "vector", "pairs"]
Problem = Literal["", "single_label", "multi_label", "regression"]
PROBLEMS = {"single_label": "single_label_classification", "multi_label": "multi_label_classification", "regression": "regression"}


@dataclass(frozen=True)
class Head:
    """``structure`` says which tensor of scores comes out: the logits of the language model (which stays in place), one row of ``labels`` for a sequence, one for each token, start and end
    for each token ("span"), one number for a sequence that is compared with its group ("choice"), a vector, or a
    matrix over pairs of tokens ("pairs").

    ``task`` is the objective that made it and what `predict` does with it; ``settings`` are what prediction needs to frame its
    input as training did (maximum_tokens, marker tokens, prompt…), all plain JSON.
    """

    structure: Structure
    task: str
    labels: tuple[str, ...] = ()
    problem: Problem = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def replaces_output(self) -> bool:
        """Whether modules of its own stand in the place of the language model's output."""
        return self.structure != "language_model"

    @property
    def own(self) -> bool:
        """Whether its modules are Luban's own: transformers has no class for them, and opens the trunk alone."""
        return self.structure == "pairs" or (self.structure == "sequence" and self.settings.get("pooling") == "markers")

    @property
    def trunk(self) -> Head:
        """The head that leaves the trunk alone."""
        return Head("vector", self.task)

    @property
    def outputs(self) -> int:
        return {"span": 2, "choice": 1}.get(self.structure, max(1, len(self.labels)))

    def to_json(self) -> dict[str, Any]:
        """What config.json says: transformers' keys, and Luban's own under ``luban_head``."""
        said: dict[str, Any] = {"luban_head": {**asdict(self), "labels": list(self.labels), "settings": dict(self.settings)}}
        if self.structure in ("sequence", "token") and self.labels:
            said["id2label"] = {str(index): label for index, label in enumerate(self.labels)}
            said["label2id"] = {label: index for index, label in enumerate(self.labels)}
        if self.problem:
            said["problem_type"] = PROBLEMS[self.problem]
        return said


def read_head(plain: Mapping[str, Any], structure: str) -> Head | None:
    """The head that a config.json describes: Luban's own note, or what transformers wrote for a class of ``structure``."""
    own = plain.get("luban_head")
    if isinstance(own, dict):
        return Head(own["structure"], own["task"], tuple(own["labels"]), own["problem"], own["settings"])
    if not structure:
        return None
    names = plain.get("id2label") or {str(index): f"LABEL_{index}" for index in range(plain.get("num_labels") or 2)}
    labels = tuple(str(names[key]) for key in sorted(names, key=int)) if structure in ("sequence", "token") else ()
    problem = {value: key for key, value in PROBLEMS.items()}.get(plain.get("problem_type") or "", "regression" if len(labels) == 1 else "single_label")
    task = {"sequence": "classification", "token": "tagging", "span": "question_answering", "choice": "multiple_choice", "vector": "embedding"}[structure]
    return Head(structure, task, labels, problem if structure == "sequence" else "")


def first_state(hidden: Tensor) -> Tensor:
    """[rows, dim] of [rows, seq, dim]: the state of the first token ([CLS])."""
    return hidden[:, 0]


def last_state(hidden: Tensor, segments: Tensor | None) -> Tensor:
    """[rows, dim]: the state of each row's last token that is no padding."""
    if segments is None:
        return hidden[:, -1]
    places = torch.arange(segments.shape[1], device=hidden.device)
    last = torch.where(segments >= 0, places, 0).amax(1)  # [rows]
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


def mean_state(hidden: Tensor, segments: Tensor | None) -> Tensor:
    """[rows, dim]: the mean over each row's tokens that are no padding."""
    if segments is None:
        return hidden.mean(1)
    kept = (segments >= 0).to(hidden.dtype)[..., None]  # [rows, seq, 1]
    return (hidden * kept).sum(1) / kept.sum(1).clamp(min=1)


class Projection(nn.Module):
    """Dropout, a dense layer with tanh, dropout, and the outputs: the head of RoBERTa, BART and T5."""

    def __init__(self, width: int, outputs: int, dropout: float):
        super().__init__()
        self.dense = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = nn.Linear(width, outputs)

    def forward(self, state: Tensor) -> Tensor:
        return self.out_proj(self.dropout(torch.tanh(self.dense(self.dropout(state)))))
