"""A decoder whose matrices are laid out for a few tokens at a time: texts that are written, one or many at once, and prompts that are read.

On a processor a step of writing takes as long as reading the weights does, if they are read once, in their order, and multiplied as they come. BLAS does so for one text; for two to some dozens it
first rearranges pieces of each matrix, anew in every step, and multiplies then. Here they are rearranged once, into panels, and step.cpp takes tokens through all layers in a single call.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.foundation.compiled import compiled
from luban.foundation.hardware import available_bytes
from luban.inference.cache import CacheRows
from luban.models.decoder import Decoder
from luban.models.layers import Layer

LINE = 16  # numbers in a line of cache: what step.cpp wants heads and states to be whole multiples of
TOKENS = 256  # taken through a layer together, so that what lies between two products stays in cache
LONGEST = 512  # tokens of a prompt: longer ones are read faster by BLAS and torch's attention
SPARE = 2.0  # packed where the free memory is this many times what the matrices take


@functools.cache
def load() -> ctypes.CDLL | None:
    """step.cpp, compiled; None without a compiler."""
    return compiled(Path(__file__).with_name("step.cpp"))


class PackedDecoder:
    """The weights of a decoder as panels: as much memory again as its matrices take. Called as the decoder is, with a cache.

    What a text gets depends on nothing but itself, to the last bit: not on its neighbours, not on the number of threads.
    """

    def __init__(self, model: Decoder):
        self.model, self._seen = model, _state(model)
        with torch.no_grad():
            self._layers = [_PackedLayer(layer, window) for layer, window in zip(model.model.layers, model.shape.windows, strict=True)]
            self._given = (_Layer * len(self._layers))(*(layer.given for layer in self._layers))
            self._head = Panels([[(model.output_weight, None)]])

    @staticmethod
    def suits(model: nn.Module) -> bool:
        """Whether a model can be packed, there is memory for it, and a compiler: a plain decoder in float32 on a processor, without adapters, its layers nn.Linear."""
        if type(model) is not Decoder or model.device.type != "cpu" or model.states_dtype != torch.float32 or model.shape.hidden_size % LINE or model.shape.head_dim % LINE:
            return False
        if any(type(module) is not nn.Linear for layer in model.model.layers for module in (*layer.self_attn.children(), *layer.mlp.children()) if hasattr(module, "in_features")):
            return False
        return available_bytes() > SPARE * sum(weight.nbytes for weight in model.parameters()) and load() is not None

    @property
    def fresh(self) -> bool:
        """Whether the weights are still those that were packed."""
        return self._seen == _state(self.model)

    def __call__(self, tokens: Tensor, *, cache: CacheRows, **context: Any) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq] that continue what the cache holds; zero where a row is filled up."""
        (rows, seq), model, dim = tokens.shape, self.model, self.model.shape.hidden_size
        if seq > LONGEST or context:
            return model(tokens, cache=cache, **context)
        places = cache.columns(seq)  # [rows, seq]
        real = places == cache.positions(seq)
        texts, places = cache.numbers[:, None].expand(rows, seq)[real], places[real]  # [tokens]
        states = F.pad(model.model.embed_tokens(tokens[real]), (0, -dim % self._head.width))  # [tokens, whole panels]
        angles = [table[:, 0, 0] for table in model.rotary(places[:, None], states.dtype)]  # [tokens, head_dim]
        for begin in range(0, len(states), TOKENS):
            self._step(cache, *(each[begin : begin + TOKENS] for each in (states, texts, places, *angles)))
        made = states.new_zeros(rows, seq, dim)
        made[real] = model.model.norm(states[:, :dim])
        return made

    def _step(self, cache: CacheRows, states: Tensor, *places: Tensor) -> None:
        """States [tokens, whole panels] through all layers, in place; ``places`` are text, place in it, cosines and sines of each token."""
        shape, held = self.model.shape, cache.cache
        sizes = len(states), shape.layers, shape.hidden_size, shape.heads, shape.key_value_heads, shape.head_dim, held.maximum, torch.get_num_threads()
        step = _Step(*sizes, *(each.data_ptr() for each in places), shape.norm_epsilon)
        kept = [(ctypes.c_void_p * shape.layers)(*(block[cache.first :].data_ptr() for block in blocks)) for blocks in (held.keys, held.values)]
        load().luban_step(ctypes.byref(step), self._given, *kept, ctypes.c_void_p(states.data_ptr()))

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [rows, vocabulary] of hidden states [rows, dim]."""
        return self._head(hidden)


class _PackedLayer:
    """A layer's matrices as panels: those that read the same states (queries, keys and values; gate and up) as one."""

    def __init__(self, layer: Layer, window: int | None):
        attention, feed_forward = layer.self_attn, layer.mlp
        linears = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, feed_forward.gate_proj, feed_forward.up_proj, feed_forward.down_proj)
        *reads, writes, gate, up, closes = ((linear.weight, linear.bias) for linear in linears)
        self.panels = [Panels(groups) for groups in ([reads], [[writes]], [[gate], [up]], [[closes]])]
        norms = [layer.input_layernorm, layer.post_attention_layernorm, *((attention.q_norm, attention.k_norm) if attention.query_key_norm else ())]
        self.norms = [norm.weight.detach().clone() for norm in norms]
        addresses = [weight.data_ptr() for weight in self.norms] + [None] * (4 - len(norms))
        self.given = _Layer(*(panels.given for panels in self.panels), *addresses, window or 0)


class Panels:
    """Matrices [out, in] that are multiplied with the same states, as [panels, in, width], filled up with zeros. Of each group of (matrix, bias) one stands after the other; the groups, which
    are of one size, have their panels by turns."""

    def __init__(self, groups: Sequence[Sequence[tuple[Tensor, Tensor | None]]]):
        weights = [torch.cat([weight for weight, _ in group]) for group in groups]
        biases = [torch.cat([weight.new_zeros(len(weight)) if bias is None else bias for weight, bias in group]) for group in groups]
        (self.outputs, inputs), self.width = weights[0].shape, load().luban_width()
        fill = -self.outputs % self.width
        self.panels = torch.stack([F.pad(weight, (0, 0, 0, fill)).view(-1, self.width, inputs).transpose(1, 2) for weight in weights], dim=1).flatten(0, 1)
        self.biases = torch.stack([F.pad(bias, (0, fill)).view(-1, self.width) for bias in biases], dim=1).flatten(0, 1)  # [panels, width]
        self.given = _Matrix(self.panels.data_ptr(), self.biases.data_ptr(), len(self.panels), inputs)

    def __call__(self, states: Tensor) -> Tensor:
        """[rows, out] of states [rows, in], of a single group."""
        states = states.contiguous()
        made = states.new_empty(len(states), self.biases.numel())
        sizes = ctypes.c_int64(len(states)), ctypes.c_int64(torch.get_num_threads())
        load().luban_product(ctypes.byref(self.given), *sizes, ctypes.c_void_p(states.data_ptr()), ctypes.c_void_p(made.data_ptr()))
        return made[:, : self.outputs]


def _state(model: nn.Module) -> list[tuple[int, int]]:
    """Which tensors the weights are, and how often each was changed."""
    return [(id(weight), 0 if weight.is_inference() else weight._version) for weight in model.parameters()]


# ---- what step.cpp is given ---------------------------------------------------------------------------------------------


class _Matrix(ctypes.Structure):
    _fields_ = (("panels", ctypes.c_void_p), ("bias", ctypes.c_void_p), ("count", ctypes.c_int64), ("in", ctypes.c_int64))


class _Layer(ctypes.Structure):
    _fields_ = (
        *((name, _Matrix) for name in ("reads", "writes", "opens", "closes")),
        *((name, ctypes.c_void_p) for name in ("before_attention", "before_feed_forward", "query_norm", "key_norm")),
        ("window", ctypes.c_int64),
    )


class _Step(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("tokens", "layers", "dim", "heads", "groups", "size", "room", "threads")),
        *((name, ctypes.c_void_p) for name in ("texts", "places", "cosines", "sines")),
        ("epsilon", ctypes.c_float),
    )
