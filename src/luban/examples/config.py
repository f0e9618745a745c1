"""Config of the verb gather."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from luban.foundation.config import Config, field


class GatherConfig(Config):
    """Gather the texts of labelled files into a corpus: to learn a tokenizer from, or to go on pretraining on the task's own words."""

    data: str | list[str] = field(..., "Labelled files, read as training reads them.", input=True)
    task: Literal["classification", "regression", "multi_label", "tagging", "relation", "joint_relation", "question_answering", "text_pairs", "choice", "ranking", "embedding"] = field(
        "classification", "What the files are read for; inputs and outputs of text_pairs, contexts and questions, choices and documents are all texts."
    )
    mapping: dict[str, Any] = field({}, "Which column of the files holds what; empty: recognised, and shown.")
    validation_share: Annotated[float, Field(ge=0, lt=1)] = field(0.05, "Share of the texts that is put into the validation split, by their content.")
