"""Fill in hidden tokens: the masked language model of BERT (Devlin et al. 2019, arXiv:1810.04805)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from luban.examples.segmentation import word_spans
from luban.objectives.base import DataRequest
from luban.objectives.config import MaskedConfig
from luban.objectives.text import NoisyText, Stores, around
from luban.tokenizer.decoding import decoder_kinds
from luban.tokenizer.special import add_special
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokenizer.words import WordGroups
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise

LONGEST_WORD = 16  # tokens; what is longer is no word, and its tokens are hidden one by one


class Masked(NoisyText):
    """Each piece of text stands in its special tokens ([CLS] … [SEP]), which are never hidden; only hidden tokens get logits."""

    name = "masked"
    kinds = ("encoder",)
    config: MaskedConfig

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        if tokenizer.mask_id is not None:
            return tokenizer
        return add_special(tokenizer, {"mask": "[MASK]" if "WordPiece" in decoder_kinds(tokenizer.core) else "<mask>"})[0]

    def prepare_change(self, data: DataRequest) -> None:
        tokenizer = data.tokenizer
        self.mask_id = tokenizer.mask_id
        self.hidden_never = tokenizer.is_special
        self.ordinary = np.flatnonzero(~tokenizer.is_special)  # what a random token is drawn from
        self.words = WordGroups(tokenizer, _chinese_words) if self.config.whole_words else None

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        before, after = around(data.tokenizer)
        extra = len(before) + len(after)
        return self.cut(stores, data, seed, data.sequence_length - extra, lambda lengths: lengths + extra, before, after)

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        inputs, weights = batch.inputs.numpy().copy(), np.zeros(batch.inputs.shape, np.float32)
        for row, noise in enumerate(noises):
            used = len(inputs[row]) if batch.segments is None else int((batch.segments[row] >= 0).sum())
            places = self.hidden_places(inputs[row, :used], noise)
            weights[row, places] = 1.0
            inputs[row, places] = self.shown_instead(inputs[row, places], noise)
        return replace(batch, inputs=torch.from_numpy(inputs), targets=batch.inputs, weights=torch.from_numpy(weights))

    def hidden_places(self, ids: np.ndarray, noise: Noise) -> np.ndarray:
        """Places of the tokens to be predicted, ``share`` of those that may be: in expectation exactly, and never more than one word off.

        Words are taken in a random order; the one that would go beyond the share is taken with the probability that makes the mean right.
        """
        allowed = np.flatnonzero(~self.hidden_never[ids])
        wanted = self.config.share * len(allowed)
        if self.words is None:
            return allowed[noise.chosen(len(allowed), noise.rounded(wanted))]
        groups: list[list[int]] = []
        for group in self.words.groups(ids.tolist()):
            groups += [group] if len(group) <= LONGEST_WORD else [[place] for place in group]
        taken: list[int] = []
        for number in noise.order(len(groups)):
            group = groups[number]
            if len(taken) + len(group) > wanted:
                if noise.chance() * len(group) < wanted - len(taken):
                    taken += group
                break
            taken += group
        return np.array(sorted(taken), np.int64)

    def shown_instead(self, ids: np.ndarray, noise: Noise) -> np.ndarray:
        """What stands in the place of tokens to be predicted: the mask, a random token, or the token itself."""
        chance = noise.uniform(len(ids))
        strange = self.ordinary[noise.below(len(self.ordinary), len(ids))]
        masked, strangers = self.config.masked, self.config.masked + self.config.random
        return np.where(chance < masked, self.mask_id, np.where(chance < strangers, strange, ids))


def _chinese_words(run: str) -> list[str]:
    return [run[start:end] for start, end in word_spans(run)]
