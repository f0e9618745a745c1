"""Write the spans that were cut out of a text: T5's objective (Raffel et al. 2020, arXiv:1910.10683, section 3.1.4 and 3.3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luban.foundation.errors import ConfigError
from luban.objectives.base import DataRequest
from luban.objectives.config import SpanCorruptionConfig
from luban.objectives.text import NoisyText, Stores, around
from luban.tokenizer.special import T5_SENTINELS, add_sentinels
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise, Pair, paired, pieces_of


class SpanCorruption(NoisyText):
    """Every span is replaced by one sentinel; the target gives the spans, each behind its sentinel, and one more sentinel at the end.

    A piece of n tokens loses ``round(share n)`` of them in ``round(that / mean_span)`` spans, at least one of each; text comes
    first and a span last, and every way of cutting is equally likely. Several pieces share a row without seeing each other.
    """

    name = "span_corruption"
    kinds = ("encoder_decoder",)
    config: SpanCorruptionConfig

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        return tokenizer if len(tokenizer.sentinel_ids) >= T5_SENTINELS else add_sentinels(tokenizer)[0]

    def prepare_change(self, data: DataRequest) -> None:
        self.sentinels = np.array(data.tokenizer.sentinel_ids)
        self.before, self.after = (np.array(ids, np.int64) for ids in around(data.tokenizer))
        self.pad_id, self.start_id = data.tokenizer.pad_id, data.shape.decoder_start_id

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        lengths = np.arange(data.sequence_length + 1)
        _, spans = self.spans(lengths)
        fits = (self._cost(lengths) <= data.sequence_length) & (spans < len(self.sentinels))
        longest = len(lengths) - 1 if fits.all() else int(np.argmin(fits)) - 1
        if longest < 2:
            raise ConfigError("sequence_length {length} is too short for span corruption", "", "give a longer one", length=data.sequence_length)
        return self.cut(stores, data, seed, longest, self._cost)

    def spans(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many tokens of pieces of given lengths are cut out, and in how many spans; none of a piece of one token."""
        noise = np.clip(np.round(lengths * self.config.share).astype(np.int64), 1, np.maximum(lengths - 1, 0))
        noise = np.where(lengths < 2, 0, noise)
        spans = np.clip(np.round(noise / self.config.mean_span).astype(np.int64), 1, np.maximum(np.minimum(noise, lengths - noise), 1))
        return noise, np.where(noise == 0, 0, spans)

    def _cost(self, lengths: np.ndarray) -> np.ndarray:
        """Places in a row, of the source or the target, whichever takes more."""
        noise, spans = self.spans(lengths)
        around_text = len(self.before) + len(self.after)
        return np.maximum(lengths - noise + spans + around_text, noise + spans + 1 + len(self.after))

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        rows = [[self.corrupted(piece, noise) for piece in pieces] for pieces, noise in zip(pieces_of(batch), noises, strict=True)]
        return paired(rows, batch, self.pad_id, self.start_id)

    def corrupted(self, ids: np.ndarray, noise: Noise) -> Pair:
        """Source and target of a piece [n]."""
        count, spans = (int(number) for number in self.spans(np.array(len(ids))))
        source, target = [self.before], []
        place = 0
        if spans:
            kept, cut = noise.composition(len(ids) - count, spans), noise.composition(count, spans)
            for number in range(spans):
                start, stop = place + kept[number], place + kept[number] + cut[number]
                sentinel = self.sentinels[number : number + 1]
                source += [ids[place:start], sentinel]
                target += [sentinel, ids[start:stop]]
                place = stop
        source += [ids[place:], self.after]
        target += [self.sentinels[spans : spans + 1], self.after]
        return np.concatenate(source), np.concatenate(target)
