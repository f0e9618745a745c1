"""Write a text from a noisy copy: BART's text infilling and sentence permutation (Lewis et al. 2020, arXiv:1910.13461, section 2.2)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luban.objectives.base import DataRequest
from luban.objectives.config import DenoisingConfig
from luban.objectives.text import NoisyText, Stores, around
from luban.tokenizer.decoding import decoder_kinds
from luban.tokenizer.special import add_special
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise, Pair, paired, pieces_of

ENDS = tuple(".!?。！？…\n")  # a token that ends with one of these ends a sentence
CLOSING = "\"'”’»)]）」』】 \u2581"  # what may follow it inside the token


class Denoising(NoisyText):
    """Sentences are shuffled, then spans of Poisson length are each replaced by one mask (a span of length 0 puts a mask in); the
    target is the whole text with its special tokens. Several pieces share a row without seeing each other."""

    name = "denoising"
    kinds = ("encoder_decoder",)
    config: DenoisingConfig

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        if tokenizer.mask_id is not None:
            return tokenizer
        return add_special(tokenizer, {"mask": "[MASK]" if "WordPiece" in decoder_kinds(tokenizer.core) else "<mask>"})[0]

    def prepare_change(self, data: DataRequest) -> None:
        self.mask_id = data.tokenizer.mask_id
        self.before, self.after = (np.array(ids, np.int64) for ids in around(data.tokenizer))
        self.pad_id, self.start_id = data.tokenizer.pad_id, data.shape.decoder_start_id
        self.ends_sentence = sentence_ends(data.tokenizer)

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        extra = len(self.before) + len(self.after)
        return self.cut(stores, data, seed, data.sequence_length - extra, lambda lengths: lengths + extra)

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        rows = [[self.pair(piece, noise) for piece in pieces] for pieces, noise in zip(pieces_of(batch), noises, strict=True)]
        return paired(rows, batch, self.pad_id, self.start_id)

    def pair(self, ids: np.ndarray, noise: Noise) -> Pair:
        """Source and target of a piece [n]."""
        noisy = self.permuted(ids, noise) if self.config.permute_sentences else ids
        return np.concatenate([self.before, self.infilled(noisy, noise), self.after]), np.concatenate([self.before, ids, self.after])

    def permuted(self, ids: np.ndarray, noise: Noise) -> np.ndarray:
        """The sentences of a text in a random order."""
        sentences = np.split(ids, np.flatnonzero(self.ends_sentence[ids[:-1]]) + 1)
        return np.concatenate([sentences[number] for number in noise.order(len(sentences))])

    def infilled(self, ids: np.ndarray, noise: Noise) -> np.ndarray:
        """The text with ``share`` of its tokens replaced by masks, one a span.

        Lengths are drawn until they make up the share (the last is cut short); then spans and kept tokens come in a random
        order, the kept ones in their own. Masks put in never make the copy longer than the text.
        """
        wanted = min(noise.rounded(self.config.share * len(ids)), len(ids))
        lengths = self._lengths(wanted, noise)
        slots = len(ids) - wanted + len(lengths)
        spans = np.zeros(slots, bool)
        spans[noise.chosen(slots, len(lengths))] = True
        sizes = np.ones(slots, np.int64)
        sizes[spans] = np.array(lengths, np.int64)[noise.order(len(lengths))]
        starts = np.cumsum(sizes) - sizes
        return np.where(spans, self.mask_id, ids[np.minimum(starts, len(ids) - 1)])

    def _lengths(self, wanted: int, noise: Noise) -> list[int]:
        """Lengths of spans that add up to ``wanted``; zeros among them as long as the other spans make room for their masks."""
        lengths: list[int] = []
        left = wanted
        while left:
            for length in noise.poisson(self.config.mean_span, max(8, left)).tolist():
                lengths.append(min(length, left))
                left -= lengths[-1]
                if not left:
                    break
        room = wanted - sum(length > 0 for length in lengths)
        kept, inserted = [length for length in lengths if length], lengths.count(0)
        return kept + [0] * min(inserted, room)


def sentence_ends(tokenizer: Tokenizer) -> np.ndarray:
    """Whether a token ends a sentence [vocabulary_size] bool."""
    texts = (tokenizer.decode([index]) for index in range(tokenizer.vocabulary_size))
    return np.array([text.rstrip(CLOSING).endswith(ENDS) for text in texts]) & ~tokenizer.is_special
