"""Continue a text of which a first part is given: the prefix language model (Raffel et al. 2020, arXiv:1910.10683, section 3.2.1; Dong et al. 2019, arXiv:1905.03197)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from luban.foundation.errors import ConfigError
from luban.models.families import family_of
from luban.objectives.base import DataRequest
from luban.objectives.config import PrefixConfig
from luban.objectives.text import NoisyText, Stores, around, document_ends
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise, Pair, next_tokens, paired, pieces_of


class Prefix(NoisyText):
    """A decoder's given part sees itself from both sides and is not scored; an encoder–decoder reads it as the source. The first part
    ends at a random token of each piece, and no piece but a document's last ends with the token that ends texts."""

    name = "prefix"
    kinds = ("decoder", "encoder_decoder")
    config: PrefixConfig

    def prepare_change(self, data: DataRequest) -> None:
        if data.shape.kind == "decoder" and not family_of(data.shape.architecture).model.takes_prefix:
            raise ConfigError(
                "{architecture} cannot see a given part from both sides", "it reads from left to right only",
                "choose another architecture, or the objective causal", architecture=data.shape.architecture,
            )  # fmt: skip
        self.paired = data.shape.kind == "encoder_decoder"
        self.before, self.after = (np.array(ids, np.int64) for ids in around(data.tokenizer))
        self.begin_id, self.end_id = document_ends(data.tokenizer)
        if self.paired:
            self.pad_id, self.start_id = data.tokenizer.pad_id, data.shape.decoder_start_id

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        if self.paired:  # the whole piece must fit where the source or the target takes nearly all of it
            extra = len(self.before) + len(self.after) + 1
            return self.cut(stores, data, seed, data.sequence_length - extra, lambda lengths: lengths + extra, (), [self.end_id], every_piece=False)
        return self.cut(stores, data, seed, data.sequence_length - 2, lambda lengths: lengths + 2, [self.begin_id], [self.end_id], every_piece=False)

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        rows = [[self.given(piece, noise) for piece in pieces] for pieces, noise in zip(pieces_of(batch), noises, strict=True)]
        if self.paired:
            pairs = [
                [self.pair(piece, given) for piece, given in zip(pieces, givens, strict=True) if len(piece) > given]
                for pieces, givens in zip(pieces_of(batch), rows, strict=True)
            ]
            return paired(pairs, batch, self.pad_id, self.start_id)
        prefix = torch.zeros(batch.inputs.shape, dtype=torch.bool)
        for row, givens in enumerate(rows):
            segments = batch.segments[row] if batch.segments is not None else torch.zeros_like(batch.inputs[row])
            for segment, given in zip(segments[segments >= 0].unique().tolist(), givens, strict=True):
                places = (segments == segment).nonzero().squeeze(1)
                prefix[row, places[:given]] = True
        following = next_tokens(batch)
        scored = following.weights.bool()
        scored[:, :-1] &= ~prefix[:, 1:]  # a token that is given is no target
        return replace(following, weights=scored.float(), prefix=prefix)

    def given(self, piece: np.ndarray, noise: Noise) -> int:
        """How many places of a piece are given: its begin, and a random share of its text."""
        begun, ended = (len(piece) > 0 and piece[0] == self.begin_id and not self.paired), len(piece) > 0 and piece[-1] == self.end_id
        text = len(piece) - begun - (ended and len(piece) > begun)
        share = self.config.shortest + (self.config.longest - self.config.shortest) * noise.chance()
        return int(begun) + int(share * text)

    def pair(self, piece: np.ndarray, given: int) -> Pair:
        return np.concatenate([self.before, piece[:given], self.after]), piece[given:]
