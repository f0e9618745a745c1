"""A linear layer whose frozen weight is held in 4 or 8 bits.

Nothing of the float weight outlives a call: it is made again, some rows at a time, in the forward and in the backward pass, and autograd keeps
the codes alone. How the formats look is in quantized_values.py.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from typing import Any, Self

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError, DataError
from luban.models.gpt2 import Conv1D
from luban.models.products import here
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_values import Layout, dequantise, quantise, scales_of

__all__ = ["QuantizedLinear", "is_linear"]

# Bytes of float32 weights that exist at a time. On a processor 8 MiB are fastest: beyond it memory is fetched anew from the system each time.
CHUNK_BYTES, DEVICE_CHUNK_BYTES = 8 * 2**20, 64 * 2**20
FEW_TOKENS = 16  # up to here torch's own product for int8 codes and bfloat16 states is several times as fast


class QuantizedLinear(nn.Module):
    """``x @ W.T + b`` with a frozen W [out, in] in codes. A gradient flows to x and to the bias, none to W.

    ``codes``, ``scales`` … are parameters without gradient: they are saved, moved and sharded like others, but ``.to(dtype)``
    leaves the types of all but the bias as they are. The bias is the float layer's own.
    """

    def __init__(
        self, config: QuantizationConfig, in_features: int, tensors: dict[str, Tensor], bias: nn.Parameter | None, made_from: type[nn.Module] = nn.Linear
    ):
        super().__init__()
        self.config, self.layout = config, Layout.of(config, in_features)
        self.in_features, self.out_features = in_features, len(tensors["codes"])
        self.made_from = made_from
        self.held = tuple(tensors)
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))
        self.register_parameter("bias", bias)

    @classmethod
    def from_linear(cls, linear: nn.Module, config: QuantizationConfig, name: str = "weight") -> Self:
        """The layer with the weights of ``linear``: nn.Linear, or GPT-2's Conv1D. DataError, with ``name``, where they hold NaN or infinity."""
        return cls.from_weight(linear.weight, linear.bias, config, name, type(linear))

    @classmethod
    @torch.no_grad()
    def from_weight(
        cls, weight: Tensor, bias: nn.Parameter | None, config: QuantizationConfig, name: str = "weight", made_from: type[nn.Module] = nn.Linear
    ) -> Self:
        """As :meth:`from_linear`, of a weight as a layer of the class ``made_from`` stores it: [out, in], of a Conv1D [in, out]."""
        weight = weight.detach() if made_from is nn.Linear else weight.detach().t()
        tensors = quantise(weight, Layout.of(config, weight.shape[1]))
        if tensors is None:
            raise DataError(
                "tensor {name} holds NaN or infinity", "it cannot be quantised", "the training that wrote it diverged, or the file is damaged", name=name
            )
        return cls(config, weight.shape[1], tensors, bias, made_from)

    # ---- the weight ------------------------------------------------------------------------------------------------

    def dequantized(self) -> Tensor:
        """The weight [out, in] in float32, all of it."""
        whole = torch.empty(self.out_features, self.in_features, device=self.codes.device)
        for rows in self._chunks():
            whole[rows] = self._rows(rows, torch.float32)
        return whole

    def to_linear(self, dtype: torch.dtype = torch.float32) -> nn.Module:
        """A plain layer of the class that this one was made from, with the dequantised weight."""
        inputs, outputs = self.in_features, self.out_features
        with torch.device("meta"):
            plain = nn.Linear(inputs, outputs, bias=self.bias is not None) if self.made_from is nn.Linear else self.made_from(inputs, outputs)
        weight = self.dequantized().to(dtype)
        plain.weight = nn.Parameter(weight if self.made_from is nn.Linear else weight.t().contiguous())
        if self.bias is not None:
            plain.bias = nn.Parameter(self.bias.detach().to(dtype))
        return plain

    def _chunks(self) -> Iterator[slice]:
        most = CHUNK_BYTES if self.codes.device.type == "cpu" else DEVICE_CHUNK_BYTES
        rows = max(1, most // (4 * self.layout.width))
        return (slice(start, min(start + rows, self.out_features)) for start in range(0, self.out_features, rows))

    def _rows(self, rows: slice, dtype: torch.dtype) -> Tensor:
        """Some rows of the weight [rows, in]."""
        tensors = {name: here(getattr(self, name).data)[rows] for name in self.held}
        if self._by_bitsandbytes():
            shape = (len(tensors["codes"]), self.in_features)
            flat = scales_of(tensors, self.layout).flatten()
            return torch.ops.bitsandbytes.dequantize_4bit(tensors["codes"].flatten(), flat, self.layout.group, "nf4", shape, dtype)
        return dequantise(tensors, self.layout).to(dtype)

    def _by_bitsandbytes(self) -> bool:
        """Whether bitsandbytes makes the numbers: its layout of nf4 is ours, where rows are whole groups."""
        if self.config.backend == "own" or self.layout.format != "nf4":
            return False
        fits = self.layout.width == self.in_features and self.layout.group in (64, 128, 256, 512, 1024, 2048, 4096)
        if self.config.backend == "auto":
            return fits and self.codes.is_cuda and _bitsandbytes()
        if not _bitsandbytes():
            raise ConfigError("quantization.backend: the Python package bitsandbytes is not installed", "", "pip install bitsandbytes, or set backend: own")
        return fits

    # ---- the product -----------------------------------------------------------------------------------------------

    def forward(self, states: Tensor) -> Tensor:
        """Outputs [..., out] of states [..., in], of the type of the states (under autocast of autocast's)."""
        if torch.is_autocast_enabled(states.device.type):
            states = states.to(torch.get_autocast_dtype(states.device.type))
        output = self.without_bias(states)
        return output if self.bias is None else output.add_(here(self.bias).to(output.dtype))

    def without_bias(self, states: Tensor) -> Tensor:
        """The product [..., out] alone, in the type of the states [..., in]."""
        return _product(states.reshape(-1, self.in_features), self).view(*states.shape[:-1], self.out_features)

    def multiply(self, states: Tensor, turned: bool) -> Tensor:
        """States [tokens, in] times the weight's transpose; ``turned``: states [tokens, out] times the weight. No gradient."""
        outputs = self.in_features if turned else self.out_features
        compute = states.dtype if self.config.compute_dtype == "auto" else getattr(torch, self.config.compute_dtype)
        flat = states.to(compute)
        with torch.autocast(states.device.type, enabled=False):
            if not len(flat):
                made = flat.new_zeros(0, outputs)
            elif turned:
                made = self._times_weight(flat)
            elif self._suits_int8_product(flat):
                scales = here(self.scales)[:, 0]
                made = torch._weight_int8pack_mm(flat, here(self.codes.data), torch.ones_like(scales, dtype=compute)) * scales
            else:
                made = flat.new_empty(len(flat), outputs)
                for rows in self._chunks():
                    torch.mm(flat, self._rows(rows, compute).t(), out=made[:, rows])
        return made.to(states.dtype)

    def _times_weight(self, flat: Tensor) -> Tensor:
        """[tokens, out] times W, as a sum over chunks of W's rows, in float32 at least."""
        made = flat.new_zeros(len(flat), self.in_features, dtype=torch.promote_types(flat.dtype, torch.float32))
        for rows in self._chunks():
            weight = self._rows(rows, flat.dtype)
            if made.dtype == flat.dtype:
                made.addmm_(flat[:, rows], weight)
            else:
                made += flat[:, rows] @ weight
        return made

    def _suits_int8_product(self, flat: Tensor) -> bool:
        whole_rows = self.layout.format == "int8" and self.layout.groups == 1
        return whole_rows and flat.dtype == torch.bfloat16 and flat.device.type == "cpu" and len(flat) <= FEW_TOKENS

    # ---- torch's own -----------------------------------------------------------------------------------------------

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Move, but never cast, what belongs to the codes: ``fn`` sees float32 as integers of the same size."""
        scales = [getattr(self, name) for name in self.held if getattr(self, name).is_floating_point()]

        def shielded(tensor: Tensor) -> Tensor:
            return fn(tensor.view(torch.int32)).view(torch.float32) if any(tensor is one for one in scales) else fn(tensor)

        return super()._apply(shielded, recurse)

    def extra_repr(self) -> str:
        layout = self.layout
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}, format={layout.format}, group={layout.group}"


class _Product(torch.autograd.Function):
    """The product with a layer's weight or its transpose. Each is the other's gradient, so that this can be derived any number of times;
    nothing is saved but the layer."""

    @staticmethod
    def forward(ctx: Any, states: Tensor, layer: QuantizedLinear, turned: bool) -> Tensor:
        ctx.layer, ctx.turned = layer, turned
        return layer.multiply(states, turned)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _Product.apply(gradient, ctx.layer, not ctx.turned), None, None


def _product(states: Tensor, layer: QuantizedLinear) -> Tensor:
    return _Product.apply(states, layer, False)


@cache
def _bitsandbytes() -> bool:
    if importlib.util.find_spec("bitsandbytes") is None:
        return False
    importlib.import_module("bitsandbytes")  # registers its operators with torch
    return True


def is_linear(module: nn.Module) -> bool:
    """Whether this is a plain linear layer that can be quantised: nn.Linear, or GPT-2's Conv1D; no subclass."""
    return type(module) in (nn.Linear, Conv1D)
