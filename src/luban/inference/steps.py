"""Many texts written in step by one model: what it is fed, what it keeps, and which tokens the settings rule out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from luban.inference.cache import new_cache
from luban.inference.config import GenerationConfig
from luban.inference.sampling import penalised
from luban.models.base import Model


class Steps:
    """``copies`` texts for each source (or, of a decoder, prompt), side by side; a step adds a token to each.

    Rows are numbered source by source. ``histories`` hold what the decoder has read in each row: its start or the prompt, and what was
    chosen since; ``given`` how many of them were there at the start.
    """

    def __init__(self, model: Model, sources: Sequence[Sequence[int]], copies: int, maximum: int):
        self.model, self.copies = model, copies
        self.memory: Tensor | None = None
        self.source_segments: Tensor | None = None
        if model.shape.kind == "encoder_decoder":
            prompts: list[list[int]] = [[model.shape.decoder_start_id] for _ in sources]
            tokens, self.source_segments = _padded(sources, model.device)
            self.memory = model.encode(tokens, self.source_segments)  # [sources, source_seq, dim]
        else:
            prompts = [list(source) for source in sources]
        self.prompts = prompts
        self.histories = [list(prompt) for prompt in prompts for _ in range(copies)]
        self.given = [len(prompt) for prompt in prompts for _ in range(copies)]
        self.cache = new_cache(model, len(self.histories), max(self.given) + maximum)

    def start(self) -> Tensor:
        """Logits [rows, vocabulary] of each row's first token, float32."""
        if self.memory is not None:
            return self._fed([history[-1:] for history in self.histories])
        # A prompt is read once, and what was kept of it copied.
        tokens, _ = _padded(self.prompts, self.model.device)
        lengths = [len(prompt) for prompt in self.prompts]
        hidden = self.model(tokens, cache=self.cache.rows(0, len(lengths), lengths))  # [prompts, seq, dim]
        for slot, length in enumerate(lengths):
            self.cache.advance(slot, length)
        self.cache.select([number for number in range(len(lengths)) for _ in range(self.copies)])
        last = hidden[torch.arange(len(lengths)), torch.tensor(lengths) - 1]  # [prompts, dim]
        return self.model.logits(last).float().repeat_interleave(self.copies, dim=0)

    def step(self, tokens: Sequence[int], parents: Sequence[int]) -> Tensor:
        """Logits [rows, vocabulary] after row i, which continues what ``parents[i]`` was, has got ``tokens[i]``.

        A source may be left out, but with all its rows.
        """
        sources = [parent // self.copies for parent in parents[:: self.copies]]
        if self.memory is not None and sources != list(range(len(self.memory))):
            chosen = torch.tensor(sources, device=self.memory.device)
            self.memory, self.source_segments = self.memory[chosen], self.source_segments[chosen]
        self.cache.select(parents)
        self.histories = [[*self.histories[parent], token] for token, parent in zip(tokens, parents, strict=True)]
        self.given = [self.given[parent] for parent in parents]
        return self._fed([[token] for token in tokens])

    def _fed(self, tokens: list[list[int]]) -> Tensor:
        rows = len(tokens)
        inputs = torch.tensor(tokens, device=self.model.device)  # [rows, 1]
        context = {}
        if self.memory is not None:
            copies = 1 if getattr(self.model, "shares_memory", False) else self.copies
            context = {
                "memory": self.memory.repeat_interleave(copies, dim=0),
                "source_segments": self.source_segments.repeat_interleave(copies, dim=0),
            }
        hidden = self.model(inputs, cache=self.cache.rows(0, rows, [1] * rows), **context)  # [rows, 1, dim]
        for slot in range(rows):
            self.cache.advance(slot, 1)
        return self.model.logits(hidden[:, -1]).float()


@dataclass
class Rules:
    """What the settings and the model rule out. ``limits`` is the greatest number of tokens for each source."""

    settings: GenerationConfig
    ends: frozenset[int]
    forced_begin: int | None
    forced_end: list[int]
    limits: list[int]

    @classmethod
    def of(cls, model: Model, sources: Sequence[Sequence[int]], settings: GenerationConfig, ends: frozenset[int]) -> Rules:
        """Those of a model and its settings; forced tokens and room for positions are the model's."""
        shape = model.shape
        decoder = shape.kind == "decoder"
        room = model.longest_text if decoder or getattr(shape, "learned_positions", False) else sys.maxsize
        limits = [min(settings.maximum_tokens, room - len(source) * decoder) for source in sources]
        forced = getattr(shape, "forced_end_id", None)
        return cls(settings, ends, getattr(shape, "forced_begin_id", None), forced if isinstance(forced, list) else [] if forced is None else [forced], limits)

    def applied(self, scores: Tensor, histories: list[list[int]], written: int, limits: list[int]) -> Tensor:
        """Scores [rows, vocabulary] of the token after ``written`` ones, with -inf where a token must not come; ``limits`` are the rows'."""
        settings = self.settings
        if settings.repetition_penalty != 1:
            scores = penalised(scores, [settings.choice()] * len(scores), seen(histories, scores))
        if settings.no_repeat_ngram:
            scores = scores.clone()
            for row, history in enumerate(histories):
                if banned := completions(history, settings.no_repeat_ngram):
                    scores[row, banned] = -torch.inf
        if written < settings.minimum_tokens and self.ends:
            scores = scores.index_fill(1, torch.tensor(sorted(self.ends), device=scores.device), -torch.inf)
        if written == 0 and self.forced_begin is not None:
            scores = _only(scores, range(len(scores)), [self.forced_begin])
        if self.forced_end:
            scores = _only(scores, [row for row, limit in enumerate(limits) if written == limit - 1], self.forced_end)
        return scores


def seen(histories: list[list[int]], like: Tensor) -> Tensor:
    """Which tokens stand in each history, [rows, vocabulary] of bool."""
    marked = torch.zeros(like.shape, dtype=torch.bool)
    for row, history in enumerate(histories):
        marked[row, torch.tensor(history)] = True
    return marked.to(like.device)


def completions(history: list[int], size: int) -> list[int]:
    """Tokens that would end a run of ``size`` tokens which stands in the history already."""
    if len(history) < size:
        return []
    tail = history[len(history) - size + 1 :]
    starts = range(len(history) - size + 1)
    return sorted({history[start + size - 1] for start in starts if history[start : start + size - 1] == tail})


def _only(scores: Tensor, rows: Sequence[int], tokens: list[int]) -> Tensor:
    """In some rows these tokens alone, at no cost: there is no choice to pay for."""
    if not len(rows):
        return scores
    scores = scores.clone()
    scores[list(rows)] = -torch.inf
    for token in tokens:
        scores[list(rows), token] = 0.0
    return scores


def _padded(texts: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Token ids [rows, seq], padded at the end, and their segments: 0, and -1 for padding."""
    width = max(len(text) for text in texts)
    tokens = torch.tensor([[*text, *[0] * (width - len(text))] for text in texts])
    lengths = torch.tensor([len(text) for text in texts])
    segments = torch.where(torch.arange(width) < lengths[:, None], 0, -1)
    return tokens.to(device), segments.to(device)
