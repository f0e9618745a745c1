"""Write the middle of a text from both of its ends, with a decoder (Bavarian et al. 2022, arXiv:2207.14255)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from luban.inference.filling import MIDDLE_TOKENS, middle_prompt
from luban.objectives.base import DataRequest
from luban.objectives.config import FillInMiddleConfig
from luban.objectives.text import NoisyText, Stores, document_ends
from luban.tokenizer.special import with_entity_markers
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch
from luban.tokens.loader import PieceLoader
from luban.tokens.noising import Noise, next_tokens, packed, pieces_of

GROWTH = 4  # tokens that two cuts inside tokens may add


class FillInMiddle(NoisyText):
    """Pieces of text are cut at two random characters, and their middle is moved to the end, as a task for a decoder that
    learns plain text beside. All tokens are scored, as in the paper.

    The parts are encoded each by itself, as they will be when a middle is asked for. Where the text of a piece does not encode to its
    tokens again (a tokenizer that loses spaces, a piece that begins inside a character), it is cut between tokens.
    """

    name = "fill_in_middle"
    kinds = ("decoder",)
    config: FillInMiddleConfig

    def adapt_tokenizer(self, tokenizer: Tokenizer) -> Tokenizer:
        missing = any(token not in tokenizer.special_ids for token in MIDDLE_TOKENS)
        return with_entity_markers(tokenizer, MIDDLE_TOKENS)[0] if missing else tokenizer

    def prepare_change(self, data: DataRequest) -> None:
        self.tokenizer, self.width = data.tokenizer, data.sequence_length
        self.begin_id, self.end_id = document_ends(data.tokenizer)

    def settings(self) -> dict[str, object]:
        return {"order": "prefix_suffix_middle" if self.config.order == "both" else self.config.order}

    def pieces(self, stores: Stores, data: DataRequest, seed: int) -> PieceLoader:
        extra = 2 + len(MIDDLE_TOKENS) + GROWTH
        return self.cut(stores, data, seed, data.sequence_length - extra, lambda lengths: lengths + extra, [self.begin_id], [self.end_id], every_piece=False)

    def change(self, batch: Batch, noises: Sequence[Noise]) -> Batch:
        rows = [[self.moved(piece, noise) for piece in pieces] for pieces, noise in zip(pieces_of(batch), noises, strict=True)]
        return next_tokens(packed(rows, batch, self.tokenizer.pad_id, self.width))

    def moved(self, piece: np.ndarray, noise: Noise) -> np.ndarray:
        """A piece with its middle at its end, for ``share`` of them; the others as they are."""
        begun = int(len(piece) > 0 and piece[0] == self.begin_id)
        ended = int(len(piece) > begun and piece[-1] == self.end_id)
        body = piece[begun : len(piece) - ended]
        if noise.chance() >= self.config.share or not len(body):
            return piece
        order = self.config.order
        if order == "both":
            order = "prefix_suffix_middle" if noise.chance() < 0.5 else "suffix_prefix_middle"
        prefix, middle, suffix = self.parts(body.tolist(), noise)
        prompt = middle_prompt(self.tokenizer, prefix, suffix, order)
        return np.array([*piece[:begun], *prompt, *middle, self.end_id], np.int64)

    def parts(self, ids: list[int], noise: Noise) -> list[list[int]]:
        """The three parts' tokens, cut at two characters of the text, or between tokens where that cannot be."""
        chances = np.sort(noise.uniform(2))
        text = self.tokenizer.decode(ids)
        if self.tokenizer.encode(text) == ids:
            first, second = (chances * (len(text) + 1)).astype(int)
            found = [self.tokenizer.encode(part) for part in (text[:first], text[first:second], text[second:])]
            if sum(map(len, found)) <= len(ids) + GROWTH:
                return found
        first, second = (chances * (len(ids) + 1)).astype(int)
        return [ids[:first], ids[first:second], ids[second:]]
