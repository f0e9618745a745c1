"""A decoder of the Llama, Qwen2, Qwen3 and Mistral family; its parameters bear transformers' names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from luban.models.attention import begins_of
from luban.models.base import Model
from luban.models.classic import vector
from luban.models.embedding import Embedding
from luban.models.given import GivenKeys
from luban.models.heads import Head, last_state
from luban.models.layers import Cache, Layer, RMSNorm
from luban.models.masks import added, attention_mask
from luban.models.rotary import Rotary
from luban.models.shape import ShapeConfig


class Decoder(Model):
    """Causal tokens to hidden states; the heads are those of transformers' classes (a label from the last token's state)."""

    output_names: ClassVar[tuple[str, ...]] = ("o_proj.weight", "down_proj.weight")
    takes_prefix: ClassVar[bool] = True
    shape: ShapeConfig

    def __init__(self, shape: ShapeConfig):
        super().__init__(shape)
        self.model = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        self.rotary = Rotary(shape)

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None, prefix: Tensor | None = None,
    ) -> Tensor:
        """Hidden states [batch, seq, dim] of tokens [batch, seq], after the last norm; causal.

        ``positions`` [batch, seq] default to 0, 1, … (after what the cache holds). With ``segments`` [batch, seq] a
        token sees only its own segment. With ``cache`` the tokens continue what it holds, which ``segments`` excludes but for
        :class:`GivenKeys`. Tokens where ``prefix`` [batch, seq] holds are seen by those of them that stand before (prefix language model); the
        cache must not hold text then.
        """
        assert segments is None or cache is None or isinstance(cache, GivenKeys)
        states = self.enter(tokens)
        return self.leave(self.run_layers(states, self.model.layers, self.beside(states, tokens, positions, segments, types, cache, prefix)))

    def enter(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        return self.model.embed_tokens(tokens)  # [batch, seq, dim]

    def beside(
        self, states: Tensor, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None,
        types: Tensor | None = None, cache: Cache | None = None, prefix: Tensor | None = None,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        batch, seq = tokens.shape
        if positions is None:
            positions = cache.positions(seq) if cache is not None else torch.arange(seq, device=tokens.device)[None]
        windows = self.shape.windows
        autocast = torch.is_autocast_enabled(states.device.type)
        if self.own_attention and states.dtype == torch.float32 and states.device.type == "cpu" and cache is None and prefix is None and not autocast and not any(windows):
            masks = {None: begins_of(segments, batch, seq)}
        else:
            masks = {window: added(visible(seq, segments, window, tokens.device, prefix, cache), states.dtype) for window in dict.fromkeys(windows)}
        angles = self.rotary(positions, torch.get_autocast_dtype(states.device.type) if autocast else states.dtype)
        return [(angles, masks[window], cache, index) for index, window in enumerate(windows)]

    def run_layers(self, states: Tensor, layers: Iterable[nn.Module], beside: Iterable[tuple[Any, ...]]) -> Tensor:
        for layer, given in zip(layers, beside, strict=True):
            layer.own = self.own_layers
            states = self.through(layer, states, *given)
        return states

    def leave(self, states: Tensor) -> Tensor:
        return self.model.norm(states)

    def blocks(self) -> list[nn.Module]:
        return list(self.model.layers)

    @property
    def embedding(self) -> nn.Embedding:
        return self.model.embed_tokens

    def output_layer(self) -> nn.Linear | None:
        return getattr(self, "lm_head", None)

    def attach(self, head: Head) -> None:
        if head.structure in ("span", "pairs"):
            super().attach(head)
        if hasattr(self, "lm_head"):
            del self.lm_head
        if head.structure != "vector":
            self.score = nn.Linear(self.shape.hidden_size, head.outputs, bias=head.structure == "token")

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        if self.head.structure == "token":
            return self.score(hidden)
        if self.head.structure == "vector":
            return vector(self.head, hidden, segments, "last")
        return self.score(last_state(hidden, segments))

    @classmethod
    def rename(cls, name: str) -> str | None:
        return None if name.endswith("rotary_emb.inv_freq") else name


class _Trunk(nn.Module):
    """What stands under ``model.`` in transformers' names."""

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.embed_tokens = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)


def visible(seq: int, segments: Tensor | None, window: int | None, device: torch.device, prefix: Tensor | None, cache: Cache | None) -> Tensor | None:
    """:func:`attention_mask`, and beside it the columns of what the cache holds."""
    if cache is None:
        return attention_mask(seq, segments, window, device, prefix)
    mask = cache.mask(seq, window)  # [batch, 1, seq, held + seq]
    if segments is None and prefix is None:
        return mask
    own = attention_mask(seq, segments, window, device, prefix)  # [batch or 1, 1, seq, seq]
    if mask is None or mask.shape[-1] == seq:
        return own
    rows = max(len(mask), len(own))
    columns = cache.columns(seq)[:, None, None]  # [batch or 1, 1, 1, seq]
    return mask.expand(rows, -1, -1, -1).scatter(-1, columns.expand(rows, 1, seq, seq), own.expand(rows, -1, -1, -1))
