"""What T5 and BART share: who sees whom, heads, and how a single text is read by a model that has two sides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.models.classic import join_heads, segment_mask, split_heads, vector
from luban.models.encoder_decoder_shape import EncoderDecoderShapeConfig
from luban.models.given import GatheredKeys, GivenKeys, OnePass
from luban.models.heads import Head, Projection, last_state
from luban.models.masks import added
from luban.models.source_cache import SourceCache

HEAD_MODULES = ("classification_head", "classifier", "qa_outputs", "luban_pairs")


class EncoderDecoder(Model):
    """A source to the encoder's states ("memory"), and with an eye on it the decoder's tokens to hidden states.

    With ``source`` (or ``memory``), ``tokens`` are the decoder's inputs. Without, they are one text for a task head: "token", "vector" and Luban's own heads take the
    encoder's states of it; "sequence", "choice" and "span" those of the decoder, which reads the same text moved on by one place, as in BART's paper.
    """

    shape: EncoderDecoderShapeConfig
    shares_memory: ClassVar[bool] = True  # several rows of tokens may look at one row of memory

    def forward(
        self,
        tokens: Tensor,
        *,
        source: Tensor | None = None,
        source_segments: Tensor | None = None,
        segments: Tensor | None = None,
        memory: Tensor | None = None,
        cache: SourceCache | None = None,
        positions: Tensor | None = None,
        types: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq], after the last norm.

        With ``segments`` and ``source_segments`` a token sees its own segment, and of the source the segment of the same number; with the latter
        alone, all of the source that is no padding. ``memory`` [sources, source_seq, dim] stands for a source that ``encode`` has read; where there are more
        rows than sources, each source serves as many neighbouring rows (beams). With ``cache`` the tokens continue what it holds.
        ``positions`` and ``types`` are taken for the sake of batches made for other families: positions follow from the segments.
        """
        if source is None and memory is None:
            return self._read(tokens, segments, cache)
        if memory is None:
            memory = self.encode(source, source_segments)
        return self.decode(tokens, memory, source_segments, segments, cache)

    def encode(self, source: Tensor, source_segments: Tensor | None = None, cache: OnePass | None = None) -> Tensor:
        """The encoder's states [rows, source_seq, dim] of source [rows, source_seq]."""
        return self.through_source(None, 0, self.trunk.encoder.count, source, source_segments, cache)

    def decode(self, tokens: Tensor, memory: Tensor, source_segments: Tensor | None, segments: Tensor | None, cache: SourceCache | None) -> Tensor:
        """The decoder's states [rows, seq, dim]."""
        return self.through_target(None, 0, self.trunk.decoder.count, tokens, memory, source_segments, segments, cache)

    def through_source(self, states: Tensor | None, start: int, stop: int, source: Tensor, source_segments: Tensor | None, cache: OnePass | None = None) -> Tensor:
        """The encoder's stream [rows, source_seq, dim] after its blocks from ``start`` to before ``stop``; before the first there is none, after the last it is normalised."""
        stack = self.trunk.encoder
        states = self.enter_stack(stack, source, source_segments, cache) if states is None else states
        mask = segment_mask(source_segments)
        given = stack.beside(states, mask if cache is None else cache.beside(mask), None, None, cache)
        states = self.run_layers(states, stack.blocks(start, stop), given[start:stop])
        return stack.finish(states) if stop == stack.count else states

    def through_target(
        self, states: Tensor | None, start: int, stop: int, tokens: Tensor, memory: Tensor, source_segments: Tensor | None, segments: Tensor | None, cache: SourceCache | OnePass | None = None,
    ) -> Tensor:  # fmt: skip
        """The decoder's stream [rows, seq, dim], as :meth:`through_source` has the encoder's."""
        stack = self.trunk.decoder
        states = self.enter_stack(stack, tokens, segments, cache) if states is None else states
        mask = decoder_mask(tokens.shape[1], segments, cache, tokens.device)
        given = stack.beside(states, mask, memory, cross_mask(segments, source_segments), cache)
        states = self.run_layers(states, stack.blocks(start, stop), given[start:stop])
        return stack.finish(states) if stop == stack.count else states

    def enter_stack(self, stack: Stack, tokens: Tensor, segments: Tensor | None, cache: SourceCache | OnePass | None) -> Tensor:
        """The stream [rows, seq, dim] before the first block of the encoder or the decoder."""
        raise NotImplementedError

    def has_decoder(self) -> bool:
        """Whether the decoder is there; heads over the encoder's states do without."""
        return hasattr(self.trunk, "decoder")

    def new_cache(self, slots: int, maximum: int) -> SourceCache:
        """What ``decode`` keeps of ``slots`` texts of up to ``maximum`` tokens."""
        return SourceCache(slots, maximum)

    def _read(self, tokens: Tensor, segments: Tensor | None, cache: SourceCache | GivenKeys | None) -> Tensor:
        if self.head is None or not self.head.replaces_output:
            raise ConfigError(
                "{name} reads a source and writes a target; it was given one text",
                "an encoder–decoder without a task head has nothing to do with a single text",
                "train it on pairs (translation, summarisation, denoising), or give it a task head",
                name=self.shape.architecture,
            )
        memory = self.encode(tokens, segments)
        if self.head.own or self.head.structure in ("token", "vector"):
            return memory
        return self.forward(moved_on(tokens, segments, self.shape.decoder_start_id), memory=memory, source_segments=segments, segments=segments, cache=cache)

    # ---- heads ---------------------------------------------------------------------------------------------------------

    def attach(self, head: Head) -> None:
        encoder_only = head.structure in ("token", "vector")
        if head.structure == "pairs" or not (encoder_only or self.has_decoder()):
            super().attach(head)
        self.drop_outputs()
        for name in HEAD_MODULES:
            if hasattr(self, name):
                delattr(self, name)
        width = self.shape.hidden_size
        if head.structure in ("sequence", "choice"):
            self.classification_head = Projection(width, head.outputs, self.shape.classifier_dropout)
        elif head.structure == "token":
            self.classifier = nn.Linear(width, head.outputs)
            self.classifier_dropout = nn.Dropout(self.shape.classifier_dropout)
        elif head.structure == "span":
            self.qa_outputs = nn.Linear(width, head.outputs)
        self.arrange(head, decoder=not encoder_only)

    def drop_outputs(self) -> None:
        """Take away the language model's output."""
        raise NotImplementedError

    def arrange(self, head: Head, decoder: bool) -> None:
        """Name the trunk as transformers' class with this head does, and take the decoder away where it is not wanted."""
        raise NotImplementedError

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        structure = self.head.structure
        if structure == "vector":
            return vector(self.head, hidden, segments, "mean")
        if structure == "token":
            return self.classifier(self.classifier_dropout(hidden))
        if structure == "span":
            return self.qa_outputs(hidden)
        return self.classification_head(last_state(hidden, segments))


class Stack(nn.Module):
    """The encoder or the decoder. ``count`` blocks there are in all; they stand in the list named ``place``, of which a stage of a pipeline has some."""

    place: ClassVar[str]
    count: int

    def blocks(self, start: int = 0, stop: int | None = None) -> list[nn.Module]:
        """Those from ``start`` to before ``stop``, or all."""
        held = self._modules[self.place]._modules
        return [held[str(number)] for number in range(start, self.count if stop is None else stop)]

    def beside(self, states: Tensor, mask: Tensor | None, memory: Tensor | None, crossing: Crossing | None, cache: SourceCache | OnePass | None) -> list[tuple[Any, ...]]:
        """What each of the ``count`` blocks is called with beside the stream; of ``states`` [rows, seq, dim] length and device are read."""
        mask, crossing = added(mask, states.dtype), crossing and crossing._replace(mask=added(crossing.mask, states.dtype))
        return [(mask, memory, crossing, cache, index) for index in range(self.count)]

    def finish(self, states: Tensor) -> Tensor:
        """The stream after the last block, normalised where the family does."""
        return states


def moved_on(tokens: Tensor, segments: Tensor | None, start: int) -> Tensor:
    """Tokens [rows, seq] one place later, each text of a row beginning with ``start``."""
    moved = tokens.roll(1, dims=1)
    moved[:, 0] = start
    if segments is not None:
        begins = segments[:, 1:] != segments[:, :-1]
        moved[:, 1:] = moved[:, 1:].masked_fill(begins, start)
    return moved


def decoder_mask(seq: int, segments: Tensor | None, cache: Any, device: torch.device) -> Tensor | None:
    """What each target token may see, [rows or 1, 1, seq, held + seq] of bool: itself and what stands before it; None for all (one new token).

    With ``segments`` all documents see what is held (:class:`GivenKeys`).
    """
    if isinstance(cache, GatheredKeys):
        return cache.mask(seq, None)
    held = 0 if cache is None else cache.length
    if seq == 1:
        return None
    numbers = torch.arange(held + seq, device=device)
    mask = numbers[None, held:, None] >= numbers  # [1, seq, held + seq]
    if segments is not None:
        mask = mask & F.pad(segments[:, :, None] == segments[:, None, :], (held, 0), value=True)
    return mask[:, None]


class Crossing(NamedTuple):
    """What target tokens see of the source. One that sees nothing (padding, a document with an empty source) is shown all of it and gets zeros for
    what it found: a softmax over nothing is no number in some of the kernels."""

    mask: Tensor  # [rows, 1, seq or 1, source_seq] of bool, or added to the scores
    seen: Tensor  # [rows, 1, seq or 1, 1] of bool: whether there is anything


def cross_mask(segments: Tensor | None, source_segments: Tensor | None) -> Crossing | None:
    """Segments of the same number, or without ``segments`` all of the source that is no padding; None for everything."""
    if source_segments is None:
        return None
    mask = (source_segments >= 0)[:, None]  # [rows, 1, source_seq]
    if segments is not None:
        mask = mask & (segments[:, :, None] == source_segments[:, None, :])
    seen = mask.any(-1, keepdim=True)
    return Crossing((mask | ~seen)[:, None], seen[:, None])


def attend(
    queries: Tensor, keys: Tensor, values: Tensor, mask: Tensor | Crossing | None, dropout: float = 0.0, scale: float | None = None
) -> Tensor:
    """Attention's output [rows, seq, heads * head_dim] of queries [rows, heads, seq, head_dim]; a tensor as mask is of bool, or added to the scores.

    With fewer rows of keys than of queries, neighbouring rows share them: their queries stand side by side in one product, and no key is copied.
    """
    rows, heads, seq, width = queries.shape
    share = rows // keys.shape[0]
    if share > 1:
        queries = queries.view(-1, share, heads, seq, width).transpose(1, 2).reshape(-1, heads, share * seq, width)
    seen = None
    if isinstance(mask, Crossing):
        mask, seen = mask
    elif mask is not None and mask.is_floating_point():
        mask = mask.to(queries.dtype)
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask, dropout_p=dropout, scale=scale)
    if seen is not None:
        attended = attended * seen
    if share > 1:
        attended = attended.view(-1, heads, share, seq, width).transpose(1, 2).reshape(rows, heads, seq, width)
    return join_heads(attended)


def source_keys(memory: Tensor, keys: nn.Linear, values: nn.Linear, heads: int, cache: Any, layer: int) -> tuple[Tensor, Tensor]:
    """Keys and values of the source, made once where there is a cache."""
    if cache is not None and (held := cache.source(layer)) is not None:
        return held
    made = split_heads(keys(memory), heads), split_heads(values(memory), heads)
    if cache is not None:
        cache.keep_source(layer, *made)
    return made
