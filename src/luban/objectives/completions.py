"""Answers that a model writes to prompts for its own training: drawn by seed, step, prompt and number, so that a resumed run draws the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import torch
import xxhash
from torch import Tensor

from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine, Request
from luban.models.base import Model
from luban.objectives.losses import token_nats_and_entropy
from luban.objectives.reference import ROW_TOKENS, autocast, undisturbed
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row, batch_of
from luban.tokens.units import UnitLoader

GREEDY = -1  # as the number of a draw: the likeliest answer, for validation


class PromptLoader(UnitLoader):
    """Prompts, each a row; ``updates`` steps that follow each other get the same ones. ``extra["draw"]`` numbers what is to be written to them."""

    updates = 1

    @property
    def epoch_steps(self) -> int:
        return super().epoch_steps * self.updates

    def step(self, index: int) -> Batch:
        return _numbered(super().step(index // self.updates), index // self.updates)

    def pace(self, steps: int) -> None:
        super().pace(-(-steps // self.updates))

    def pass_once(self) -> Iterator[Batch]:
        return (_numbered(batch, GREEDY) for batch in super().pass_once())


def _numbered(batch: Batch, draw: int) -> Batch:
    batch.extra["draw"] = torch.full((len(batch.inputs),), draw)
    return batch


def write(model: Model, tokenizer: Tokenizer, prompts: Sequence[list[int]], sampling: SamplingConfig, seeds: Sequence[int], slots: int) -> list[Request]:
    """Answers to prompts (token ids), each drawn by its own seed, all in one continuous batch."""
    with undisturbed(model):
        engine = Engine(model, tokenizer, slots=min(slots, len(prompts)), maximum_length=max(map(len, prompts)) + sampling.maximum_tokens)
        requests = [engine.submit(prompt, sampling.model_copy(update={"seed": seed})) for prompt, seed in zip(prompts, seeds, strict=True)]
        engine.run()
    return requests


def seed_of(*numbers: int) -> int:
    """A seed from the run's, the step, the prompt and the answer's number."""
    return xxhash.xxh3_64_intdigest(",".join(map(str, numbers)).encode("ascii")) >> 1


def rows_of(prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], pad_id: int, sources: Sequence[str]) -> Batch:
    """Prompts with their answers, a row each; the answers' tokens, the one that ended them included, are scored."""
    made = []
    for prompt, answer, source in zip(prompts, answers, sources, strict=True):
        ids = np.array([*prompt, *answer])
        weights = np.zeros(len(ids) - 1, np.float32)
        weights[len(prompt) - 1 :] = 1.0
        made.append(Row(ids[:-1], weights, targets=ids[1:], source=source))
    return batch_of(made, pad_id)


@torch.no_grad()
def log_probabilities(model: Model, batch: Batch, temperature: float, precision: torch.dtype) -> Tensor:
    """[rows, seq] of the answers' tokens (0 elsewhere), without dropout and gradients, in parts that fit."""
    rows, width = batch.inputs.shape
    size = max(1, ROW_TOKENS // width)
    found = []
    with undisturbed(model), autocast(model, precision):
        for start in range(0, rows, size):
            part = replace(batch, extra={}).rows(start, start + size).to(model.device)
            found.append(-token_nats_and_entropy(model, part, part.weights > 0, temperature)[0].cpu())
    return torch.cat(found)


class Start:
    """What training changes, as it was before the first step: for an adapter its own few tensors, else a second copy of the weights."""

    def __init__(self, model: Model):
        self.kept: dict[str, Tensor] = {}
        held: set[int] = set()
        known = tensors_of(model)
        for name in model.changing():
            if id(known[name]) not in held:  # a tied matrix goes by two names
                held.add(id(known[name]))
                self.kept[name] = known[name].detach().clone()

    @contextmanager
    def worn(self, model: Model) -> Iterator[None]:
        """While it lasts, the model is the one that training started from."""
        self._swap(model)
        try:
            yield
        finally:
            self._swap(model)

    def _swap(self, model: Model) -> None:
        known = tensors_of(model)
        for name in self.kept:
            known[name].data, self.kept[name] = self.kept[name], known[name].data


def tensors_of(model: Model) -> Mapping[str, Tensor]:
    """Parameters and buffers by all their names."""
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}
