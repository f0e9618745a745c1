"""Beam search: for each source the likeliest texts that can be found by carrying on a few at a time.

The scores, and when a search ends, are those of transformers' ``generate``, so that results can be compared: a text counts by its log-probability
over its length (end included) to the power of ``length_penalty`` (Wu et al. 2016, arXiv:1609.08144, in its simplest form).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count

import torch

from luban.inference.config import GenerationConfig
from luban.inference.steps import Rules, Steps

NEVER = -1e9  # of beams that are copies of the first, before they part


@dataclass(frozen=True)
class Answer:
    """A text that was written: its ids (the end among them), its score, and whether it came to an end rather than to the greatest length."""

    ids: list[int]
    score: float
    ended: bool


@dataclass
class _Search:
    """The search for one source."""

    number: int
    limit: int
    settings: GenerationConfig
    ends: frozenset[int]
    found: list[Answer] = field(default_factory=list)
    over: bool = False

    def take(self, candidates: list[tuple[float, int, int]], texts: list[list[int]], written: int) -> list[tuple[float, int, int]]:
        """Sort candidates (log-probability, beam, token), the best first, into finished texts and the beams that go on."""
        beams, penalty = self.settings.beams, self.settings.length_penalty
        last = written == self.limit
        running: list[tuple[float, int, int]] = []
        for rank, (total, beam, token) in enumerate(candidates):
            if token in self.ends or last:
                if rank < beams:  # one that ends counts only where it would have gone on had it not ended
                    self.found.append(Answer([*texts[beam], token], total / written**penalty, token in self.ends))
            elif len(running) < beams:
                running.append((total, beam, token))
        self.found.sort(key=lambda answer: -answer.score)
        del self.found[beams:]
        self.over = last or len(running) < beams or (len(self.found) == beams and self._settled(running[0][0], written))
        return [] if self.over else running

    def _settled(self, best: float, written: int) -> bool:
        """Whether the best running text counts as beaten by all that were found."""
        if self.settings.early_stopping is True:
            return True
        length = self.limit if self.settings.early_stopping == "never" and self.settings.length_penalty > 0 else written
        return best / length**self.settings.length_penalty <= self.found[-1].score


def beam_search(steps: Steps, rules: Rules) -> list[list[Answer]]:
    """For each source up to ``beams`` answers, the best first. ``steps`` has as many copies of each."""
    settings, beams = rules.settings, rules.settings.beams
    searches = [_Search(number, limit, settings, rules.ends) for number, limit in enumerate(rules.limits)]
    live = searches
    logits = steps.start()
    totals = torch.full((len(live), beams), NEVER, device=logits.device)  # [live, beams]
    totals[:, 0] = 0.0
    for written in count():
        limits = [search.limit for search in live for _ in range(beams)]
        scores = rules.applied(logits.log_softmax(dim=-1), steps.histories, written, limits)  # [live * beams, vocabulary]
        vocabulary = scores.shape[1]
        joined = (scores.view(len(live), beams, vocabulary) + totals[:, :, None]).flatten(1)
        best = joined.topk(min(max(2, 1 + len(rules.ends)) * beams, joined.shape[1]), dim=1)
        chosen: list[tuple[float, int, int]] = []
        for place, (search, values, indices) in enumerate(zip(live, best.values.tolist(), best.indices.tolist(), strict=True)):
            first = place * beams
            texts = [steps.histories[first + beam][steps.given[first] :] for beam in range(beams)]
            candidates = [(value, index // vocabulary, index % vocabulary) for value, index in zip(values, indices, strict=True)]
            chosen += [(total, first + beam, token) for total, beam, token in search.take(candidates, texts, written + 1)]
        if not chosen:
            return [search.found for search in searches]
        live = [search for search in live if not search.over]
        totals = torch.tensor([total for total, _, _ in chosen], device=logits.device).view(len(live), beams)
        logits = steps.step([token for _, _, token in chosen], [parent for _, parent, _ in chosen])
    raise AssertionError("a search ends at its limit")
