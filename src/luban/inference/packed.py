"""A decoder that writes one token for several texts at once, its matrices laid out for that.

On a processor such a step is the time it takes to read the weights, if the product reads them one after the other. BLAS does that for one row; for two
to some dozens of rows it first rearranges pieces of the matrix, which takes as long again. Here they are rearranged once, into panels of some hundred
outputs, [panels, in, width], and a product is one small product a panel. Matrices that read the same states (queries, keys and values; gate and up) are one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.hardware import available_bytes
from luban.inference.cache import CacheRows
from luban.models.decoder import Decoder
from luban.models.layers import Layer, RMSNorm

WIDTHS = range(320, 95, -16)  # outputs of a panel
SPARE = 2.0  # packed where the free memory is this many times what the matrices take


class PackedDecoder:
    """The weights of a decoder as panels: as much memory again as its matrices take. Called as the decoder is, with one token a row."""

    def __init__(self, model: Decoder):
        self.model, self._seen = model, _state(model)
        with torch.no_grad():
            self.layers = [_PackedLayer(layer) for layer in model.model.layers]
            self.head = Panels([(model.output_weight, None)])

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether a model can be packed, and there is memory for it: a plain decoder in float32 on a processor, without adapters, its layers nn.Linear."""
        if type(model) is not Decoder or model.device.type != "cpu" or model.states_dtype != torch.float32:
            return False
        if any(type(module) is not nn.Linear for layer in model.model.layers for module in (*layer.self_attn.children(), *layer.mlp.children()) if hasattr(module, "in_features")):
            return False
        return available_bytes() > SPARE * sum(weight.nbytes for weight in model.parameters())

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those that were packed."""
        return self._seen == _state(self.model)

    def __call__(self, tokens: Tensor, *, cache: CacheRows) -> Tensor:
        """Hidden states [rows, 1, dim] of tokens [rows, 1] that continue what the cache holds."""
        model = self.model
        states = model.model.embed_tokens(tokens[:, 0])  # [rows, dim]
        cosines, sines = (table[:, 0, 0] for table in model.rotary(cache.positions(1), states.dtype))  # [rows, head_dim]
        half = sines.shape[-1] // 2
        angles = cosines, torch.cat((-sines[:, :half], sines[:, half:]), dim=-1)
        masks = {window: _additive(cache.mask(1, window), states.dtype) for window in dict.fromkeys(model.shape.windows)}
        for index, (layer, window) in enumerate(zip(self.layers, model.shape.windows, strict=True)):
            layer(states, angles, masks[window], cache, index)
        return model.model.norm(states)[:, None]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of hidden states [rows, dim]."""
        return self.head.rows(hidden)


class _PackedLayer:
    """A layer's products. Weights of the norms before them are multiplied into them."""

    def __init__(self, layer: Layer):
        attention, feed_forward = layer.self_attn, layer.mlp
        self.attention, self.epsilon = attention, layer.input_layernorm.epsilon
        heads = max(count for count in range(1, attention.key_value_heads + 1) if attention.key_value_heads % count == 0 and (count == 1 or count * attention.head_dim <= WIDTHS[0]))
        self.reads = Panels([_after(layer.input_layernorm, linear) for linear in (attention.q_proj, attention.k_proj, attention.v_proj)], heads * attention.head_dim)
        self.writes = Panels([(attention.o_proj.weight, attention.o_proj.bias)])
        self.opens = Panels([_after(layer.post_attention_layernorm, linear) for linear in (feed_forward.gate_proj, feed_forward.up_proj)])
        self.closes = Panels([(feed_forward.down_proj.weight, feed_forward.down_proj.bias)])

    def __call__(self, states: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: CacheRows, index: int) -> None:
        """Add to ``states`` [rows, dim] what the layer writes."""
        states += self.writes.rows(self._attended(self.reads(self._normalised(states)), angles, mask, cache, index))
        gate, up = self.opens(self._normalised(states)).chunk(2)  # [panels, rows, width]
        states += self.closes.rows(self.opens.joined(F.silu(gate).mul_(up)))

    def _normalised(self, states: Tensor) -> Tensor:
        return states * torch.linalg.vecdot(states, states).div_(states.shape[-1]).add_(self.epsilon).rsqrt_()[:, None]

    def _attended(self, read: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: CacheRows, index: int) -> Tensor:
        """[rows, heads * head_dim] of queries, keys and values in panels."""
        attention, (cosines, sines) = self.attention, angles
        size, key_heads = attention.head_dim, attention.key_value_heads
        rows = read.shape[1]
        heads = read.view(len(read), rows, -1, size).transpose(1, 2).reshape(-1, rows, size)  # [heads + 2 kv_heads, rows, head_dim]
        turning, values = heads[:-key_heads], heads[-key_heads:]
        if attention.query_key_norm:
            turning = torch.cat((attention.q_norm(turning[:-key_heads]), attention.k_norm(turning[-key_heads:])))
        turned = torch.addcmul(turning * cosines, turning.roll(size // 2, -1), sines)
        keys, values = cache.update(index, turned[-key_heads:].transpose(0, 1)[:, :, None], values.transpose(0, 1)[:, :, None])
        queries = turned[:-key_heads].view(key_heads, -1, rows, size).permute(2, 0, 1, 3)  # [rows, kv_heads, group, head_dim]
        return F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask).reshape(rows, -1)


class Panels:
    """Matrices [out, in] that read the same states, as [panels, in, width]; each is filled up with zeros to whole panels."""

    def __init__(self, matrices: Sequence[tuple[Tensor, Tensor | None]], width: int | None = None):
        self.outputs = len(matrices[-1][0])
        width = width or min(WIDTHS, key=lambda width: -self.outputs % width)
        filled = [F.pad(weight, (0, 0, 0, -len(weight) % width)).view(-1, width, weight.shape[1]).transpose(1, 2) for weight, _ in matrices]
        self.panels = torch.cat(filled)  # [panels, in, width]
        self.bias = None
        if any(bias is not None for _, bias in matrices):
            biases = [weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in matrices]
            self.bias = torch.cat([F.pad(bias, (0, -len(bias) % width)).view(-1, 1, width) for bias in biases])

    def __call__(self, states: Tensor) -> Tensor:
        """[panels, rows, width] of states [rows, in]."""
        spread = states.expand(len(self.panels), -1, -1)
        return torch.bmm(spread, self.panels) if self.bias is None else torch.baddbmm(self.bias, spread, self.panels)

    def rows(self, states: Tensor) -> Tensor:
        """[rows, out] of states [rows, in], of a single matrix."""
        return self.joined(self(states))

    def joined(self, made: Tensor) -> Tensor:
        """[rows, out] of one matrix' panels [panels, rows, width]."""
        return made.transpose(0, 1).reshape(made.shape[1], -1)[:, : self.outputs]


def _after(norm: RMSNorm, linear: nn.Linear) -> tuple[Tensor, Tensor | None]:
    """A product's matrix and bias, the weight of the norm before it multiplied in."""
    return linear.weight * norm.weight, linear.bias


def _additive(mask: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    """What is added to scores where ``mask`` says what is seen: attention would make it of the mask anew in each layer."""
    return None if mask is None else torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill_(~mask, -torch.inf)


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensors the weights are, and how often each was changed."""
    return [(id(weight), 0 if weight.is_inference() else weight._version) for weight in model.parameters()]
