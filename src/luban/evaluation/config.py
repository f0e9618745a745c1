"""The typed config of `evaluate`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator

from luban.foundation.config import Auto, Config, field
from luban.inference.config import SamplingConfig

Order = Annotated[int, Field(ge=1, le=10)]


class EvaluateConfig(Config):
    """Measure language models on held-out text, before and after, beside n-gram baselines."""

    models: str | list[str] = field(..., "Train stages or Hugging Face model directories, in the order before → after.", input=True)
    data: str | list[str] = field(..., "Held-out text: a curate stage (its split is used), or files and folders of text; for task models labelled files.", input=True)
    split: Literal["test", "validation"] = field("test", "Which split of a curate stage is scored; an empty test split falls back to validation, and says so.")
    baselines: list[Order] = field([3, 5], "Orders of the character n-gram models (modified Kneser-Ney) fitted to the corpus' train split; empty fits none.", unit="characters")
    baseline_bytes: PositiveInt = field(20_000_000, "The most training text the n-gram models are fitted to (about 1 GB of memory at the default).", unit="bytes")
    maximum_documents: PositiveInt = field(2000, "The most held-out documents scored; which ones depends on their text alone.", unit="documents")
    maximum_bytes: PositiveInt = field(100_000, "The most held-out text scored.", unit="bytes")
    exclude: str | list[str] = field(
        [], "Other data a model learned from (conversations, say): held-out documents that share a passage with it are left out of every figure.", input=True
    )
    sequence_length: PositiveInt | Auto = field("auto", "Longest context in scoring; auto is what the models were trained with, at most 2,048.", unit="tokens")
    prompts: list[str] | Auto = field("auto", "Texts that every model continues; auto takes the first line of a held-out document of each language.")
    questions: list[str] = field([], "Questions put to every model that has a chat template.")
    sampling: SamplingConfig = field(SamplingConfig(temperature=0.8, top_p=0.95, maximum_tokens=64, seed=0), "How the samples are drawn.")
    metrics: list[str] = field([], "Your own metrics, my_file.py:name: a function of the loaded model and the held-out texts that returns a number.", input=True)
    task: Literal["auto", "preference"] = field("auto", "What language models are measured on. auto: held-out text; preference: how often they find the better of two answers likelier a token.")
    mapping: dict[str, Any] = field({}, "Which column of labelled files holds what; empty: recognised, and shown.")
    training_data: str | list[str] = field([], "Labelled files that task models learned from: baselines are fitted to them, and texts that the test shares with them are counted.", input=True)
    run_code: bool = field(False, "generation: run each written Python program against the tests of its control column `test`, in a process with limits, and report pass@1. It executes what the models wrote.")
    conversations: str | list[str] = field([], "Held-out conversations: the loss on the assistant's words is measured too.", input=True)
    maximum_conversations: PositiveInt = field(200, "The most conversations scored.", unit="conversations")

    foreign: ClassVar[dict[str, str]] = {
        "model": "models",
        "model_name_or_path": "models",
        "dataset": "data",
        "eval_dataset": "data",
        "limit": "maximum_documents",
        "max_seq_length": "sequence_length",
        "max_length": "sequence_length",
        "tasks": "data (held-out text), conversations",
    }

    @field_validator("models", "data")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one")
        return value

    @field_validator("baselines")
    @classmethod
    def _ordered(cls, value: list[int]) -> list[int]:
        if value != sorted(set(value)):
            raise ValueError("write each order once, smallest first")
        return value
