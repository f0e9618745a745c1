"""Labels as words in a pattern: encoders fill the gap, decoders go on the text; each label is as likely as its word there.

A word of several tokens gets as many masks, which are filled independently (Schick & Schütze 2021, arXiv:2001.07676), or is written token by token. Its score is
the mean (or the sum) of the tokens' log-probabilities.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from luban.foundation.errors import ConfigError
from luban.inference.generate import prompt_ids
from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame
from luban.tokenizer.tokenizer import Tokenizer

CONTENT_FREE = ("N/A", "[MASK]", "")  # texts that say nothing (Zhao et al. 2021, section 5.1)
TEXT, PAIR, LABEL = "{text}", "{pair}", "{label}"


@dataclass
class Question:
    """One row that a model reads: where it says a label's word, and which tokens that would be.

    ``words`` [labels, most]: ids of each label's word; -1 where the word is shorter, and all of it for labels that another row asks for.
    """

    framed: Framed
    places: list[int]  # [most] whose outputs say the word, as many as the longest word here
    words: list[list[int]]


class Asker:
    """Turns a text into the rows that score all labels: one for each length of a word (encoders), or one for all words of one token and one for each longer word (decoders)."""

    def __init__(self, tokenizer: Tokenizer, labels: Sequence[str], settings: Mapping[str, Any], kind: str):
        self.tokenizer, self.labels, self.decoder = tokenizer, list(labels), kind == "decoder"
        self.pattern, self.maximum = settings["pattern"], settings["maximum_tokens"]
        given = settings.get("words") or {}
        self.spoken = [given.get(label, label) for label in self.labels]
        check_pattern(self.pattern, self.decoder)
        self.before, _, self.after = self.pattern.partition(LABEL)
        self.words = [self._word(word) for word in self.spoken]
        self.most = max(map(len, self.words))
        if self.decoder:
            single = [number for number, word in enumerate(self.words) if len(word) == 1]
            self.groups = ([single] if single else []) + [[number] for number, word in enumerate(self.words) if len(word) > 1]
        else:
            self.groups = [[number for number, word in enumerate(self.words) if len(word) == size] for size in sorted({len(word) for word in self.words})]
        self._check()

    def _word(self, word: str) -> list[int]:
        """The tokens of a word as it stands in the pattern, behind a space if there is one."""
        if self.decoder:
            spaced = self.before.endswith(" ") and not word.startswith(" ")
            return self.tokenizer.encode((" " if spaced else "") + word)
        probe = "a " if self.before.endswith(" ") else ""
        ids, known = self.tokenizer.encode(probe + word), self.tokenizer.encode(probe.strip())
        return ids[len(known) :] if ids[: len(known)] == known else self.tokenizer.encode(word)

    def _check(self) -> None:
        for label, spoken, word in zip(self.labels, self.spoken, self.words, strict=True):
            if not spoken.strip() or not word or self.tokenizer.unk_id in word:
                raise ConfigError(
                    "objective.words: the tokenizer cannot write {word!r}, the word of the label {label!r}", "", "choose another word",
                    word=spoken, label=label,
                )  # fmt: skip
        seen: dict[tuple[int, ...], str] = {}
        for label, word in zip(self.labels, self.words, strict=True):
            if (other := seen.setdefault(tuple(word), label)) != label:
                raise ConfigError(
                    "objective.words: {one!r} and {two!r} have the same word", "the model could not tell them apart",
                    "give each label a word of its own", one=other, two=label,
                )  # fmt: skip
        if not self.decoder and self.tokenizer.mask_id is None:
            raise ConfigError(
                "the tokenizer has no mask token", "an encoder says a label's word where a mask stands",
                "choose a model that was trained to fill masks",
            )  # fmt: skip

    def rows(self, text: str, pair: str) -> list[Question]:
        """The rows of one text."""
        return [self._written(text, pair, group) if self.decoder else self._masked(text, pair, group) for group in self.groups]

    def _masked(self, text: str, pair: str, group: list[int]) -> Question:
        size = len(self.words[group[0]])
        budget = self.maximum
        while True:
            shown, pair_shown = self._cut(text, pair, budget)
            ids, types, place = self._around(shown, pair_shown, size)
            if len(ids) <= self.maximum:
                break
            if not (shown or pair_shown):
                raise ConfigError(
                    "objective.pattern: it takes {count} tokens without any text, the model reads {maximum}", "",
                    "shorten it, or raise sequence_length", count=len(ids), maximum=self.maximum,
                )  # fmt: skip
            budget = max(0, budget - (len(ids) - self.maximum))
        framed = Framed(ids, types, [], [], _left_out(text, shown) + _left_out(pair, pair_shown))
        return Question(framed, list(range(place, place + size)), self._asked(group, size))

    def _around(self, text: str, pair: str, size: int) -> tuple[list[int], list[int], int]:
        """Ids and types of the filled pattern with ``size`` masks for the label's word, and where they begin.

        A text may spell the mask: only the pattern's own is one, so that the pieces are encoded apart.
        """
        before, after = (fill(part, text, pair) for part in (self.before, self.after))
        framed = frame(self.tokenizer, "a", maximum=16)
        first = framed.parts.index(0)
        last = len(framed.parts) - 1 - framed.parts[::-1].index(0)
        head, tail = framed.ids[:first], framed.ids[last + 1 :]
        # Masks of the RoBERTa kind take the space before them.
        left, right = self.tokenizer.encode(before.rstrip(" ")), self.tokenizer.encode(after)
        ids = [*head, *left, *[self.tokenizer.mask_id] * size, *right, *tail]
        return ids, [0] * len(ids), len(head) + len(left)

    def _written(self, text: str, pair: str, group: list[int]) -> Question:
        word = self.words[group[0]]
        budget = self.maximum
        while True:
            shown, pair_shown = self._cut(text, pair, budget)
            ids = prompt_ids(self.tokenizer, fill(self.before, shown, pair_shown).rstrip(" "))
            if len(ids) + self.most - 1 <= self.maximum:
                break
            if not (shown or pair_shown):
                raise ConfigError(
                    "objective.pattern: it takes {count} tokens without any text, the model reads {maximum}", "",
                    "shorten it, or raise sequence_length", count=len(ids), maximum=self.maximum,
                )  # fmt: skip
            budget = max(0, budget - (len(ids) + self.most - 1 - self.maximum))
        whole = ids + word[:-1]
        places = list(range(len(ids) - 1, len(whole)))
        framed = Framed(whole, [0] * len(whole), [], [], _left_out(text, shown) + _left_out(pair, pair_shown))
        return Question(framed, places, self._asked(group, len(word)))

    def _cut(self, text: str, pair: str, budget: int) -> tuple[str, str]:
        """Text and pair, together of at most ``budget`` tokens; what is too long loses its end, the longer one first."""
        if (len(text) + len(pair)) * 4 <= budget:
            return text, pair
        if budget <= (2 if pair else 0):
            return "", ""
        around = sum(slot.part < 0 for slot in (self.tokenizer.layout.pair if pair else self.tokenizer.layout.single))
        framed = frame(self.tokenizer, text, pair or None, maximum=budget + around)
        shown = [*framed.visible, (0, 0)]
        return text[: shown[0][1]], pair[: shown[1][1]] if pair else ""

    def _asked(self, group: list[int], size: int) -> list[list[int]]:
        return [self.words[number] if number in group else [-1] * size for number in range(len(self.labels))]


def _left_out(text: str, shown: str) -> int:
    """Characters of a text that are not shown, spaces at its end apart."""
    return len(text.rstrip()) - len(shown.rstrip())


def check_pattern(pattern: str, decoder: bool) -> None:
    """Raise ConfigError for a pattern without its places, or whose text comes behind the label where a decoder is to say it."""
    if pattern.count(LABEL) != 1 or TEXT not in pattern:
        raise ConfigError(
            "objective.pattern: {pattern!r} needs {text} and one {label}", "", "write for example: {text} It was {label}.",
            pattern=pattern, text=TEXT, label=LABEL,
        )  # fmt: skip
    behind = pattern.partition(LABEL)[2]
    if decoder and (TEXT in behind or PAIR in behind):
        raise ConfigError(
            "objective.pattern: a decoder says the label behind the text", "it has not read yet what comes behind {label}",
            "put {label} behind the text", label=LABEL,
        )  # fmt: skip


def fill(part: str, text: str, pair: str) -> str:
    """A part of the pattern with its texts; braces inside the texts stay as they are."""
    pieces = part.split(TEXT)
    return text.join(piece.replace(PAIR, pair) for piece in pieces)


def label_scores(logits: Tensor, words: Tensor, normalize: str) -> Tensor:
    """[rows, labels] scores of words [rows, labels, most] (-1: no token) from logits [rows, most, vocabulary]; 0 for a label that a row does not ask for."""
    nats = logits.log_softmax(-1)
    given = words >= 0
    chosen = nats[:, None].expand(-1, words.shape[1], -1, -1).gather(3, words.clamp(min=0)[..., None])[..., 0]  # [rows, labels, most]
    total = torch.where(given, chosen, 0.0).sum(-1)
    return total / given.sum(-1).clamp(min=1) if normalize == "tokens" else total


def scores_of(model: Model, tokenizer: Tokenizer, asker: Asker, texts: Sequence[tuple[str, str]], rows: int, normalize: str) -> Tensor:
    """[texts, labels] in float32 on the processor."""
    questions = [question for text, pair in texts for question in asker.rows(text, pair)]
    each = len(asker.groups)
    found = torch.zeros(len(questions), len(asker.labels))
    for batch in padded_batches([question.framed for question in questions], tokenizer.pad_id, rows, model.device):
        hidden = batch.hidden(model)  # [rows, seq, dim]
        places, words = (values.to(model.device) for values in asked([questions[number] for number in batch.numbers], asker.most))
        logits = model.logits(hidden[torch.arange(len(hidden), device=model.device)[:, None], places]).float()
        found[batch.numbers] = label_scores(logits, words, normalize).cpu()
    return found.view(len(texts), each, -1).sum(1)


def asked(questions: Sequence[Question], most: int) -> tuple[Tensor, Tensor]:
    """Places [rows, most] and words [rows, labels, most] as tensors, padded with place 0 and -1."""
    places = torch.tensor([question.places + [0] * (most - len(question.places)) for question in questions])
    words = torch.tensor([[word + [-1] * (most - len(word)) for word in question.words] for question in questions])
    return places, words


def classify(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """``{"label", "probabilities"}`` for ``{"text"}`` or ``{"text", "pair"}``; with calibration each probability is divided by the mean one of texts without content."""
    settings = model.head.settings
    asker = Asker(tokenizer, model.head.labels, settings, model.shape.kind)
    normalize = settings.get("normalize", "tokens")
    texts = [(wanted(item, "text", number), item.get("pair") or "") for number, item in enumerate(items)]
    nats = scores_of(model, tokenizer, asker, texts, rows, normalize).log_softmax(-1)
    if settings.get("calibrate"):
        empty = scores_of(model, tokenizer, asker, [(text, text if PAIR in asker.pattern else "") for text in CONTENT_FREE], rows, normalize)
        nats = nats - empty.softmax(-1).mean(0).log()
    values = nats.softmax(-1)
    return [
        {"label": asker.labels[int(own.argmax())], "probabilities": {label: float(value) for label, value in zip(asker.labels, own, strict=True)}}
        for own in values
    ]
