"""AdamW whose two moments are held in 8 bits, block by block.

Dettmers et al. 2021, "8-bit optimizers via block-wise quantization", arXiv:2110.02861: each run of 256 numbers is divided by its largest magnitude and rounded to the nearest of 256
values of the dynamic map, in which the first bits say the decade and the others a place in it, so that numbers a millionth of the largest still differ from zero. The
second moment, which is never negative, spends the sign's bit on its places. As there, the token embedding and small parameters keep float32 moments.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.training.blocks import BlockOptimizer, Writer, count_step, flat_blocks, no_steps, zeros_beside

RUN = 256  # numbers that share a scale
SMALLEST = 4096  # parameters with fewer numbers keep float32 moments
DECADES = 7
LOWEST = 22  # values below 2^-22 of a run's largest are nearest to zero: the first border stands at 2.75e-7
PLACES = 8  # bits of the mantissa that tell cells apart


class AdamW8bit(BlockOptimizer):
    """State: ``first`` and ``second`` in bytes, and a float32 scale for each run of 256 of them: 2.03 bytes a parameter. 8 where ``bits`` is 32 or there are fewer than 4,096."""

    def __init__(self, parameters: Iterable[Any], lr: float, betas: tuple[float, float] = (0.9, 0.95), eps: float = 1e-8, weight_decay: float = 0.0, bits: int = 8):
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "bits": bits})

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        if group["bits"] == 32 or parameter.numel() < SMALLEST:
            return {"step": no_steps(), "first": zeros_beside(parameter), "second": zeros_beside(parameter)}
        state = {"step": no_steps()}
        for name, zero in (("first", _zero(True)), ("second", _zero(False))):
            state[name] = torch.full_like(parameter, zero, dtype=torch.uint8, memory_format=torch.contiguous_format)
            state[f"{name}_scale"] = torch.zeros(-(-parameter.numel() // RUN), device=parameter.device)
        return state

    def move(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        steps, writer, gradient = count_step(state), Writer(parameter), gradient.contiguous()
        if state["first"].dtype != torch.uint8:
            for weights, slope, first, second in flat_blocks(parameter, gradient, state["first"], state["second"]):
                self._update(writer, weights, slope, first, second, steps, group)
            return
        runs = zip(*(state[f"{name}_scale"].split(_runs(parameter)) for name in ("first", "second")), strict=True)
        for (weights, slope, *codes), scales in zip(flat_blocks(parameter, gradient, state["first"], state["second"]), runs, strict=True):
            first, second = dequantise(codes[0], scales[0], True), dequantise(codes[1], scales[1], False)
            self._update(writer, weights, slope, first, second, steps, group)
            quantise(first, codes[0], scales[0], True)
            quantise(second, codes[1], scales[1], False)

    @staticmethod
    def _update(writer: Writer, weights: Tensor, slope: Tensor, first: Tensor, second: Tensor, steps: int, group: dict[str, Any]) -> None:
        (one, two), rate = group["betas"], group["lr"]
        slope = slope.to(first.dtype)
        first.lerp_(slope, 1 - one)
        second.mul_(two).addcmul_(slope, slope, value=1 - two)
        spread = second.div(1 - two**steps).sqrt_().add_(group["eps"])
        values = writer.values(weights)
        values.mul_(1 - rate * group["weight_decay"]).addcdiv_(first.to(values.dtype), spread.to(values.dtype), value=-rate / (1 - one**steps))
        writer.write(weights, values)


def _runs(parameter: Tensor) -> int:
    """Scales that belong to one of :func:`flat_blocks`."""
    (block, *_), *_ = flat_blocks(parameter)
    return -(-len(block) // RUN)


@cache
def dynamic_map(signed: bool) -> tuple[float, ...]:
    """The 256 values, ascending. In decade i of 7, from 1e-6 to 1 at its upper end, stand 2^i values of each sign (unsigned: twice as many), at the middles of as many equal
    parts of [0.1, 1]; 0 and 1 complete them."""
    values = [0.0, 1.0]
    for decade in range(DECADES):
        parts = 2 ** (decade + (not signed))
        middles = [10.0 ** (decade - DECADES + 1) * (0.1 + 0.9 * (part + 0.5) / parts) for part in range(parts)]
        values += middles + [-middle for middle in middles if signed]
    return tuple(sorted(values))


def _zero(signed: bool) -> int:
    return dynamic_map(signed).index(0.0)


@cache
def _tables(signed: bool, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The map, and for each cell of numbers (sign, exponent, first bits of the mantissa) the code at its lower end and the border above which the next code is nearer."""
    values = torch.tensor(dynamic_map(signed), dtype=torch.float64)
    borders = ((values[1:] + values[:-1]) / 2).float()  # [255]
    cells = (LOWEST << PLACES) + 1
    ends = ((torch.arange(cells + 1) + ((127 - LOWEST) << PLACES)).to(torch.int32) << (23 - PLACES)).view(torch.float32)  # [cells + 1] lower ends
    ends[0] = 0.0
    codes, limits = [], []
    for sign in (1, -1) if signed else (1,):
        low, high = (ends[:-1], ends[1:]) if sign > 0 else (-ends[1:], -ends[:-1])
        code = torch.searchsorted(borders, low, right=sign < 0)  # borders below the cell's lower end
        codes.append(code.to(torch.int32))
        limits.append(torch.cat([borders, borders.new_tensor([torch.inf])])[code])
        assert bool((torch.searchsorted(borders, high) - code <= 1).all()), "a cell holds more than one border"
    return values.float().to(device), torch.cat(codes).to(device), torch.cat(limits).to(device)


def quantise(values: Tensor, codes: Tensor, scales: Tensor, signed: bool) -> None:
    """Write the codes [n] of float32 values [n], and of each run of 256 the largest magnitude, into ``codes`` (bytes) and ``scales`` [runs]."""
    whole = F.pad(values, (0, -len(values) % RUN)).view(-1, RUN)
    torch.amax(whole.abs(), 1, out=scales)
    shares = whole / scales.clamp(min=torch.finfo(torch.float32).tiny)[:, None]  # [runs, 256] in [-1, 1]
    _, starts, limits = _tables(signed, values.device)
    cells = (shares.abs().view(torch.int32) >> (23 - PLACES)).sub_((127 - LOWEST) << PLACES).clamp_(min=0).view(-1)
    if signed:
        cells.add_((shares < 0).view(-1), alpha=(LOWEST << PLACES) + 1)
    found = starts.index_select(0, cells).add_(shares.view(-1) > limits.index_select(0, cells))
    codes.copy_(found[: len(values)])


def dequantise(codes: Tensor, scales: Tensor, signed: bool) -> Tensor:
    """Float32 values [n] of codes [n] and the scales of their runs."""
    values = _tables(signed, codes.device)[0].index_select(0, codes.to(torch.int32))
    whole = F.pad(values, (0, -len(values) % RUN)).view(-1, RUN).mul_(scales[:, None])
    return whole.view(-1)[: len(codes)]
