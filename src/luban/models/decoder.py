"""A decoder of the Llama, Qwen2, Qwen3 and Mistral family; its parameters bear transformers' names."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from luban.models.layers import Cache, Layer, RMSNorm
from luban.models.rotary import Rotary
from luban.models.shape import ShapeConfig


class Decoder(nn.Module):
    """Tokens to hidden states, and hidden states to logits.

    The loss is computed elsewhere, from hidden states, so that logits need never exist for a whole batch.
    ``recompute`` trades time for memory: layers are computed again in the backward pass.
    """

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        shape.require_resolved()
        self.shape = shape
        self.model = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        self.rotary = Rotary(shape)
        self.recompute = False

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, cache: Cache | None = None
    ) -> Tensor:
        """Hidden states [batch, seq, dim] of tokens [batch, seq], after the last norm; causal.

        ``positions`` [batch, seq] default to 0, 1, … (after what the cache holds). With ``segments`` [batch, seq] a
        token sees only its own segment. With ``cache`` the tokens continue what it holds, which ``segments`` excludes.
        """
        assert segments is None or cache is None
        batch, seq = tokens.shape
        if positions is None:
            positions = cache.positions(seq) if cache is not None else torch.arange(seq, device=tokens.device)[None]
        windows = self.shape.windows
        masks = {
            window: cache.mask(seq, window) if cache is not None else attention_mask(seq, segments, window, tokens.device)
            for window in dict.fromkeys(windows)
        }
        states = self.model.embed_tokens(tokens)  # [batch, seq, dim]
        autocast = torch.is_autocast_enabled(states.device.type)
        angles = self.rotary(positions, torch.get_autocast_dtype(states.device.type) if autocast else states.dtype)
        for index, layer in enumerate(self.model.layers):
            given = (states, angles, masks[windows[index]], cache, index)
            states = checkpoint(layer, *given, use_reentrant=False) if self.recompute and torch.is_grad_enabled() else layer(*given)
        return self.model.norm(states)

    @property
    def output_weight(self) -> nn.Parameter:
        """The matrix [vocabulary, dim] that turns hidden states into logits."""
        return self.model.embed_tokens.weight if self.shape.tied_embeddings else self.lm_head.weight

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of hidden states [..., dim]."""
        return F.linear(hidden, self.output_weight)

    @property
    def device(self) -> torch.device:
        return self.model.embed_tokens.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.embed_tokens.weight.dtype

    @torch.no_grad()
    def initialize(self, seed: int) -> Decoder:
        """Draw first values. They depend on the seed and each parameter's name only: not on device, order or type."""
        deviation, kind = self.shape.initializer_deviation, self.shape.initializer
        for name, parameter in self.named_parameters():
            if name.endswith(".bias"):
                parameter.zero_()
            elif parameter.dim() == 1:
                parameter.fill_(1.0)  # the weights of norms
            else:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                if writes and kind == "zero_output":
                    parameter.zero_()
                    continue
                scale = deviation / math.sqrt(2 * self.shape.layers) if writes and kind == "depth_scaled" else deviation
                parameter.copy_(torch.empty(parameter.shape, device="cpu").normal_(0.0, scale, generator=named_generator(seed, name)))
        return self

    @torch.no_grad()
    def resize_vocabulary(self, size: int, pieces: Mapping[int, Sequence[int]] | None = None) -> Decoder:
        """Make room for ``size`` tokens, or cut the vocabulary to its first ``size``.

        A new token starts as the mean of the old tokens that ``pieces`` names for it or else
        of the whole old vocabulary: near what the model knows, and no likelier than the rest.
        """
        pieces = pieces or {}
        self.model.embed_tokens.weight = _resized(self.model.embed_tokens.weight, size, pieces)
        self.model.embed_tokens.num_embeddings = size
        if not self.shape.tied_embeddings:
            self.lm_head.weight = _resized(self.lm_head.weight, size, pieces)
            self.lm_head.out_features = size
        self.shape = self.shape.updated(vocabulary_size=size)
        return self


def _resized(weight: nn.Parameter, size: int, pieces: Mapping[int, Sequence[int]]) -> nn.Parameter:
    """The first rows of [vocabulary, dim], and new ones as means of old ones."""
    old = len(weight)
    grown = weight.new_empty(size, weight.shape[1])
    grown[:old] = weight[:size]
    average = weight.float().mean(dim=0)
    for row in range(old, size):
        own = [piece for piece in pieces.get(row, ()) if piece < old]
        grown[row] = weight[own].float().mean(dim=0) if own else average
    return nn.Parameter(grown, requires_grad=weight.requires_grad)


class _Trunk(nn.Module):
    """What stands under ``model.`` in transformers' names."""

    def __init__(self, shape: ShapeConfig):
        super().__init__()
        self.embed_tokens = nn.Embedding(shape.vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleList(Layer(shape) for _ in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)


def attention_mask(seq: int, segments: Tensor | None, window: int | None, device: torch.device) -> Tensor | None:
    """What each token may see, [batch or 1, 1, seq, seq] of bool; None where the plain causal rule says it all."""
    if segments is None and (window is None or window >= seq):
        return None
    places = torch.arange(seq, device=device)
    mask = places[:, None] >= places[None, :]
    if window is not None and window < seq:
        mask = mask & (places[:, None] - places[None, :] < window)
    if segments is None:
        return mask[None, None]
    return (mask & (segments[:, :, None] == segments[:, None, :]))[:, None]


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each name under one seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))
