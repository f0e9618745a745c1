"""The right one of several answers: by a head's score of each, or by how likely a decoder finds it after the prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as functional
from torch import Tensor

from luban.foundation.errors import DataError
from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.inference.vectors import listed_texts
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame, frame_batch
from luban.tokenizer.tokenizer import Tokenizer

WHOLE = 1 << 30  # tokens: nothing is cut
_WIDE = tuple((low, high) for low, high in ((0x2E80, 0x9FFF), (0xF900, 0xFAFF), (0xFE30, 0xFE4F), (0xFF00, 0xFFEF), (0x20000, 0x3FFFF)))


def frame_choices(tokenizer: Tokenizer, prompt: str, choices: Sequence[str], settings: Mapping[str, Any]) -> list[Framed]:
    """The prompt with each answer, as a head reads it. Of what is too long the prompt loses its end, so that the answers stay whole."""
    return frame_batch(tokenizer, [prompt] * len(choices), list(choices), maximum=settings.get("maximum_tokens", 512), truncate="first")


def frame_continuation(tokenizer: Tokenizer, prompt: str, choice: str, settings: Mapping[str, Any]) -> tuple[list[int], int, float]:
    """(ids, first, length): the prompt with the answer as its continuation, where the answer's tokens begin, and what its
    log-likelihood is divided by. Of what is too long the prompt loses its beginning, and an answer longer than all the room its end."""
    text = prompt.rstrip() + joint(prompt, choice) + choice.strip()
    begins = len(prompt.rstrip())
    framed = frame(tokenizer, text, maximum=WHOLE)
    body = [number for number, part in enumerate(framed.parts) if part == 0]
    first = next((place for place, number in enumerate(body) if framed.offsets[number][1] > begins), len(body))
    start = framed.ids[: body[0]] if body and body[0] else [tokenizer.end_of_text_id]
    room = settings.get("maximum_tokens", 512) - len(start)
    drop = min(max(len(body) - room, 0), first)
    ids = [*start, *[framed.ids[number] for number in body[drop:]][:room]]
    first = first - drop + len(start)
    if first >= len(ids):  # an empty answer: how likely the text is to end here
        ids.append(tokenizer.end_of_text_id)
    measure = {"none": 1, "tokens": len(ids) - first, "characters": len(choice.strip())}[settings.get("length", "tokens")]
    return ids, first, float(max(measure, 1))


def joint(prompt: str, choice: str) -> str:
    """What stands between a prompt and its continuation: a space, or nothing next to a script that has none."""
    before, after = prompt.rstrip()[-1:], choice.lstrip()[:1]
    return "" if not before or not after or _is_wide(before) or _is_wide(after) else " "


def _is_wide(letter: str) -> bool:
    return any(low <= ord(letter) <= high for low, high in _WIDE)


def choose(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"choice", "scores"}`` for ``{"prompt", "choices"}``: the number of the best answer from 0, the first of equals, and each one's
    score: the head's, or the log-likelihood divided by what the model was trained to divide it by."""
    asked = [(wanted(item, "prompt", number), listed_texts(item, "choices", number)) for number, item in enumerate(items)]
    for number, (_, choices) in enumerate(asked):
        if not choices:
            raise DataError("item {number}: there is no choice to choose from", "", "give choices as a list of texts", number=number + 1)
    score = _by_head if model.head.structure != "language_model" else _by_likelihood
    scores = score(model, tokenizer, asked, rows)
    found, start = [], 0
    for _, choices in asked:
        own = scores[start : start + len(choices)]
        found.append({"choice": max(range(len(own)), key=lambda place: (own[place], -place)), "scores": own})
        start += len(choices)
    return found


def _by_head(model: Model, tokenizer: Tokenizer, asked: Sequence[tuple[str, list[str]]], rows: int) -> list[float]:
    framed = [one for prompt, choices in asked for one in frame_choices(tokenizer, prompt, choices, model.head.settings)]
    scores = [0.0] * len(framed)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        for number, score in zip(batch.numbers, batch.scores(model).float()[:, 0].tolist(), strict=True):
            scores[number] = score
    return scores


def _by_likelihood(model: Model, tokenizer: Tokenizer, asked: Sequence[tuple[str, list[str]]], rows: int) -> list[float]:
    made = [frame_continuation(tokenizer, prompt, choice, model.head.settings) for prompt, choices in asked for choice in choices]
    framed = [Framed(ids[:-1], [0] * (len(ids) - 1), [], []) for ids, _, _ in made]
    scores = [0.0] * len(framed)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        targets, scored = torch.zeros_like(batch.tokens), torch.zeros_like(batch.tokens, dtype=torch.bool)
        for row, number in enumerate(batch.numbers):
            ids, first, _ = made[number]
            targets[row, : len(ids) - 1] = torch.tensor(ids[1:])
            scored[row, first - 1 : len(ids) - 1] = True
        sums = likelihoods(model, batch.hidden(model), targets, scored).float().tolist()
        for number, total in zip(batch.numbers, sums, strict=True):
            scores[number] = total / made[number][2]
    return scores


def likelihoods(model: Model, hidden: Tensor, targets: Tensor, scored: Tensor) -> Tensor:
    """[rows] the summed log-probabilities of the ``targets`` [rows, seq] that ``scored`` [rows, seq] marks, from hidden states [rows, seq, dim]."""
    logits = model.logits(hidden[scored])  # [scored, vocabulary]
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    nats = functional.cross_entropy(logits, targets[scored], reduction="none")
    rows = scored.nonzero()[:, 0]
    return nats.new_zeros(len(hidden)).index_add(0, rows, -nats)
