"""Instruction tuning: score the assistant's words and the token that ends its turn, nothing else."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from luban.corpus.readers import BadLine
from luban.examples import conversations, preview
from luban.examples.conversations import Conversation, ConversationSet, read_conversations, split_by_content
from luban.examples.guard import check
from luban.examples.supervised import fit_to_length, supervised_examples
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.console import say
from luban.foundation.errors import DataError
from luban.models.base import Model
from luban.objectives.base import DataRequest, Loaders, Objective, Term
from luban.objectives.losses import logits_sum, scored_logits, token_sum
from luban.objectives.tasks import stated_licences
from luban.tokens.batch import Batch, Example
from luban.tokens.loader import ExampleLoader

VALIDATION_BATCHES = 64  # enough for a curve; `evaluate` scores every held-out conversation


class Instruction(Objective):
    """Conversations in any recognised format, rendered with the tokenizer's own chat template."""

    name, unit, scope = "instruction", "token", "example"
    kinds = ("decoder",)
    conversational = True

    def loaders(self, data: DataRequest) -> Loaders:
        train, held_out, found = _conversations(data)
        if not train:
            raise DataError("there is no conversation to train on in {files}", "{bad} rows were set aside", "luban show FILE says how a file is read", files=", ".join(map(_name, data.data)), bad=len(found.bad))
        conversations.show(found)
        examples = supervised_examples(train, data.tokenizer, found.bad)
        guard = check(examples, data.tokenizer, data.sequence_length + 1)
        preview.show(examples, data.tokenizer)
        write_json(data.work / "training" / "preview.json", [preview.stretches(example, data.tokenizer) for example in examples[:: max(1, len(examples) // 3)][:3]])
        say("{count} conversations, {share:.0%} of their tokens are trained on", count=len(train), share=guard.supervised_share)
        fitting, _ = fit_to_length(examples, data.sequence_length + 1)
        _set_aside(found.bad, data.work)
        loader = _loader(fitting, data, data.seed)
        report = {"conversations": len(train), "validation_conversations": len(held_out), "bad_rows": len(found.bad), "format": found.format, "guard": guard.plain()}
        return Loaders(loader, _validation(held_out, data), report, stated_licences(data))

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch))}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        return scored_logits(model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(logits_sum(outputs, batch))}


def _conversations(data: DataRequest) -> tuple[list[Conversation], list[Conversation], ConversationSet]:
    """Training and held-out conversations; without files of their own the latter are chosen by content hash."""
    found = read_conversations([Path(_name(source)) for source in data.data], data.mapping or None)
    if data.validation:
        return found.conversations, read_conversations([Path(_name(source)) for source in data.validation], data.mapping or None).conversations, found
    train, held_out = split_by_content(found.conversations, data.validation_share)
    return train, held_out, found


def _set_aside(bad: list[BadLine], work: Path) -> None:
    """Rows that could not be used, each with its place and the reason, in training/set_aside.jsonl."""
    if bad:
        lines = (json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in bad)
        write_bytes(work / "training" / "set_aside.jsonl", "".join(lines).encode("utf-8", "surrogatepass"))
        say("{count} rows were set aside, with their reasons, in training/set_aside.jsonl", count=len(bad))


def _name(source: Any) -> str:
    return str(getattr(source, "path", source))


def _loader(examples: list[Example], data: DataRequest, seed: int) -> ExampleLoader:
    return ExampleLoader(examples, sequence_length=data.sequence_length, rows_per_step=data.rows_per_step, seed=seed, packing="none" if data.packing == "none" else "best_fit", pad_id=data.tokenizer.end_of_text_id)


def _validation(held_out: list[Conversation], data: DataRequest) -> list[Batch]:
    examples, _ = fit_to_length(supervised_examples(held_out, data.tokenizer, []), data.sequence_length + 1)
    return list(_loader(examples, data, 0).pass_once())[:VALIDATION_BATCHES] if examples else []
