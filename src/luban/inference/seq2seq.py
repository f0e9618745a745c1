"""Texts written to sources: translation, summarisation and the like with encoder–decoders; with decoders, prompts are continued.

Greedy, by chance, or by beam search; many sources at once, each with the result it would have alone.
"""

from __future__ import annotations

import secrets
import zlib
from array import array
from collections.abc import Iterator, Sequence

import torch

from luban.foundation.errors import ConfigError
from luban.inference.beams import Answer, beam_search
from luban.inference.config import GenerationConfig
from luban.inference.sampling import sample, uniform
from luban.inference.steps import Rules, Steps
from luban.models.base import Model

__all__ = ["Answer", "answers_from", "generate_from", "stream_from"]

ROWS = 16  # texts written side by side, beams included, or one source where it has more


def generate_from(
    model: Model, sources: Sequence[Sequence[int]], settings: GenerationConfig | None = None, *, end_ids: Sequence[int] | None = None, rows: int = ROWS
) -> list[list[int]]:
    """The best text for each source, as token ids: without the decoder's start, with the token that ended it.

    ``sources`` are token ids as the model was trained to read them (see luban.tokenizer.framing). ``end_ids`` end a text; None: those of the
    model's shape. Raises ConfigError for an empty source, unknown ids, or a model that does not write.
    """
    return [answers[0].ids for answers in answers_from(model, sources, settings, end_ids=end_ids, rows=rows)]


def answers_from(
    model: Model, sources: Sequence[Sequence[int]], settings: GenerationConfig | None = None, *, end_ids: Sequence[int] | None = None, rows: int = ROWS
) -> list[list[Answer]]:
    """``settings.answers`` texts for each source with their scores: found by beam search, the best first, or drawn one by one."""
    settings = settings or GenerationConfig()
    ends = _checked(model, sources, end_ids)
    seed = _seed(settings)
    copies = settings.beams if settings.beams > 1 else settings.answers
    order = sorted(range(len(sources)), key=lambda number: -len(sources[number]))
    size = max(1, rows // copies)
    found: list[list[Answer]] = [[] for _ in sources]
    for start in range(0, len(order), size):
        numbers = order[start : start + size]
        batch = [sources[number] for number in numbers]
        for number, answers in zip(numbers, _batch(model, batch, settings, ends, seed), strict=True):
            found[number] = answers[: settings.answers]
    return found


@torch.inference_mode()
def _batch(model: Model, sources: list[Sequence[int]], settings: GenerationConfig, ends: frozenset[int], seed: int) -> list[list[Answer]]:
    if settings.beams > 1:
        rules = Rules.of(model, sources, settings, ends)
        return beam_search(Steps(model, sources, settings.beams, max(rules.limits)), rules)
    repeated = [source for source in sources for _ in range(settings.answers)]
    texts: list[list[int]] = [[] for _ in repeated]
    totals = [0.0] * len(repeated)
    for chosen in _written(model, repeated, settings, ends, [_of_source(seed, source) + copy for source in sources for copy in range(settings.answers)]):
        for row, token, nats in chosen:
            texts[row].append(token)
            totals[row] -= nats
    answers = [Answer(text, total / len(text) ** settings.length_penalty, text[-1] in ends) for text, total in zip(texts, totals, strict=True)]
    return [answers[start : start + settings.answers] for start in range(0, len(answers), settings.answers)]


def stream_from(model: Model, source: Sequence[int], settings: GenerationConfig | None = None, *, end_ids: Sequence[int] | None = None) -> Iterator[int]:
    """The ids of one text as they are written; together they are what ``generate_from`` gives.

    Raises ConfigError as ``generate_from`` does, and for a beam search, which has nothing to show before its end.
    """
    settings = settings or GenerationConfig()
    if settings.beams > 1:
        raise ConfigError("a beam search cannot be streamed", "which text is the best is known at its end", "set beams to 1")
    ends = _checked(model, [source], end_ids)
    for chosen in _written(model, [source], settings, ends, [_of_source(_seed(settings), source)]):
        yield chosen[0][1]


def _seed(settings: GenerationConfig) -> int:
    return secrets.randbits(63) if settings.seed is None else settings.seed


def _of_source(seed: int, source: Sequence[int]) -> int:
    """A source's own seed, a function of both: two sources of one call do not share their chances."""
    return seed ^ zlib.crc32(array("q", source).tobytes()) << 16


def _written(
    model: Model, sources: list[Sequence[int]], settings: GenerationConfig, ends: frozenset[int], seeds: list[int]
) -> Iterator[list[tuple[int, int, float]]]:
    """Step by step, for the rows that still run: (row, token, its nats before temperature and filters)."""
    with torch.inference_mode():
        rules = Rules.of(model, sources, settings, ends)
        steps = Steps(model, sources, 1, max(rules.limits))
        logits = steps.start()
    running, written, choice = list(range(len(sources))), 0, settings.choice().updated(repetition_penalty=1.0)
    while running:
        # Not around the yield: what the caller does between steps is not the model's business.
        with torch.inference_mode():
            scores = rules.applied(logits, steps.histories, written, [rules.limits[row] for row in running])
            chances = [uniform(seeds[row], written) for row in running]
            tokens = sample(scores, [choice] * len(running), chances)
            nats = -logits.log_softmax(dim=-1).gather(1, tokens[:, None])[:, 0]
        written += 1
        taken = list(zip(running, tokens.tolist(), nats.tolist(), strict=True))
        yield taken
        going = [place for place, (row, token, _) in enumerate(taken) if token not in ends and written < rules.limits[row]]
        running = [running[place] for place in going]
        if running:
            with torch.inference_mode():
                logits = steps.step([taken[place][1] for place in going], going)


def _checked(model: Model, sources: Sequence[Sequence[int]], end_ids: Sequence[int] | None) -> frozenset[int]:
    """The ids that end a text. Raises ConfigError for what cannot be answered."""
    shape = model.shape
    if shape.kind == "encoder" or (model.head is not None and model.head.replaces_output):
        raise ConfigError(
            "this model does not write texts", "it is an encoder, or a task head stands in the place of its output", "load a decoder or an encoder–decoder"
        )
    room = model.longest_text if shape.kind == "decoder" else None
    for number, source in enumerate(sources, 1):
        if not len(source):
            raise ConfigError("source {number} is empty", "there is nothing to write about", "give at least one token", number=number)
        if wrong := [token for token in source if not 0 <= token < shape.vocabulary_size]:
            raise ConfigError("token id {token} is not in the vocabulary", "it has ids 0 to {last}", "", token=wrong[0], last=shape.vocabulary_size - 1)
        if room is not None and len(source) >= room:
            raise ConfigError(
                "the prompt has {count} tokens, the context {limit}", "prompt and answer share the context", "shorten the prompt to {room} tokens or fewer",
                count=len(source), limit=room, room=room - 1,
            )  # fmt: skip
    ends = getattr(shape, "end_ids", ()) if end_ids is None else end_ids
    return frozenset(ends)
