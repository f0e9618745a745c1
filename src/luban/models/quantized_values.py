"""Rows of weights as 4- or 8-bit codes with scales, and back.

Every tensor that a matrix becomes has the matrix's output dimension as its first, and no row depends on another: the codes of
some rows are some rows of the codes, so that a matrix can be split over machines along its outputs before or after it is quantised.

``codes``         two codes a byte, the first in the high half (bitsandbytes' order), uint8 [out, width / 2]; of int8: int8 [out, width].
                  ``width`` is the row's length made a multiple of the group: the last group is filled with zeros.
``scales``        float32 [out, groups]; or instead, doubly quantised:
``scale_codes``   int8 [out, groups] and ``scale_ranges`` float32 [out, ceil(groups / 256), 2].
``zeros``         of asymmetric int4: the code that stands for zero, uint8 [out, groups].

Zero is always held exactly. The levels of nf4 are those of QLoRA (Dettmers et al. 2023, arXiv:2305.14314, appendix E). As there, the scales are
quantised a second time in blocks of 256 with their mean removed, but in blocks along a row, so that rows stay independent,
and by their logarithms: one outlier among the weights, a thousand times the others, costs the other scales 1% then instead of everything.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from luban.models.quantization_config import SCALES_A_BLOCK, QuantizationConfig

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
    0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
LEAST_SCALE = math.log(1e-4)  # of the greatest in its block: weights below it are nothing beside their row
WORKING_BYTES = 2 * 2**20  # of float32 weights that are quantised at a time: they stay in the processor's cache
CELLS = 64  # of [-1, 1]: each holds at most one border between two levels of nf4


@dataclass(frozen=True)
class Layout:
    """What rows of ``inputs`` weights become."""

    format: str
    inputs: int
    group: int
    symmetric: bool
    double: bool

    @classmethod
    def of(cls, config: QuantizationConfig, inputs: int) -> Layout:
        group = config.group_of(inputs)
        groups = -(-inputs // group)
        gains = groups + 8 * -(-groups // SCALES_A_BLOCK) < 4 * groups  # bytes a row
        return cls(config.format, inputs, group, config.symmetric or config.format != "int4", config.double_quantization and gains)

    @property
    def groups(self) -> int:
        return -(-self.inputs // self.group)

    @property
    def width(self) -> int:
        return self.groups * self.group


def quantise(weight: Tensor, layout: Layout) -> dict[str, Tensor] | None:
    """The tensors that hold ``weight`` [out, inputs], of any floating type; None where it holds what is no finite number."""
    rows = max(1, WORKING_BYTES // (4 * layout.width))
    parts = [_quantise_rows(weight[start : start + rows], layout) for start in range(0, len(weight), rows)]
    if any(part is None for part in parts):
        return None
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def _quantise_rows(weight: Tensor, layout: Layout) -> dict[str, Tensor] | None:
    values = weight.float()
    if layout.width > layout.inputs:
        values = torch.nn.functional.pad(values, (0, layout.width - layout.inputs))
    values = values.reshape(len(values), layout.groups, layout.group)
    if layout.symmetric:
        scales = values.abs().amax(-1) / {"nf4": 1.0, "int4": 7.5, "int8": 127.0}[layout.format]  # [rows, groups]
    else:
        least, greatest = values.aminmax(dim=-1)
        least, greatest = least.clamp(max=0), greatest.clamp(min=0)
        scales = greatest / 15 - least / 15
    if not bool(scales.isfinite().all()):
        return None
    tensors = {}
    if layout.double:
        tensors["scale_codes"], tensors["scale_ranges"] = _quantise_scales(scales)
        scales = scales_of(tensors, layout)  # the codes answer to the scales that will be there
    else:
        tensors["scales"] = scales
    divisors = torch.where(scales == 0, 1.0, scales)  # of groups of nothing but zeros
    if not layout.symmetric:
        tensors["zeros"] = (-least / divisors).round().clamp(0, 15).to(torch.uint8)
    relative = (values / divisors[..., None]).flatten(1)  # [rows, width]
    if layout.format == "int8":
        return tensors | {"codes": relative.round().clamp(-127, 127).to(torch.int8)}
    if layout.format == "nf4":
        codes = _nearest_nf4(relative)
    else:
        shift = 8.0 if layout.symmetric else tensors["zeros"].float().repeat_interleave(layout.group, dim=1)
        codes = (relative.round() + shift).clamp(0, 15).to(torch.uint8)
    return tensors | {"codes": (codes[:, 0::2] << 4) | codes[:, 1::2]}


def _nearest_nf4(values: Tensor) -> Tensor:
    """The nearest level of each of ``values`` [rows, width]: the level on the left of its cell, and one more if it lies beyond that level's border."""
    first, border = _cells(values.device)
    flat = values.clamp(-1, 1).flatten()
    cell = (flat * (CELLS / 2) + CELLS / 2).int()
    return (first.index_select(0, cell) + (flat > border.index_select(0, cell))).view_as(values)


@cache
def _cells(device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell the level at its left end, and the border that comes next; several times as fast as torch.bucketize."""
    levels = torch.tensor(NF4, dtype=torch.float64, device="cpu")
    borders = (levels[1:] + levels[:-1]) / 2
    left = torch.arange(CELLS + 1, dtype=torch.float64, device="cpu") / (CELLS / 2) - 1
    assert float((left[:, None] - borders).abs().min()) > 1e-5, "rounding could put a border into a neighbouring cell"
    first = torch.bucketize(left, borders)
    beyond = torch.cat([borders, torch.full((1,), math.inf, dtype=torch.float64, device="cpu")])
    return first.to(device, torch.uint8), beyond[first].to(device, torch.float32)


def _quantise_scales(scales: Tensor) -> tuple[Tensor, Tensor]:
    """Scales [rows, groups] as int8 codes [rows, groups] and, for each block of 256, the mean of their logarithms and the step [rows, blocks, 2]."""
    codes, ranges = [], []
    for block in scales.clamp(min=torch.finfo(torch.float32).tiny).log().split(SCALES_A_BLOCK, dim=1):
        block = torch.maximum(block, block.amax(1, keepdim=True) + LEAST_SCALE)
        mean = block.mean(1, keepdim=True)
        step = (block - mean).abs().amax(1, keepdim=True) / 127
        codes.append(((block - mean) / torch.where(step == 0, 1.0, step)).round().clamp(-127, 127).to(torch.int8))
        ranges.append(torch.cat([mean, step], dim=1))
    return torch.cat(codes, dim=1), torch.stack(ranges, dim=1)


def scales_of(tensors: dict[str, Tensor], layout: Layout) -> Tensor:
    """Scales [rows, groups] in float32."""
    if not layout.double:
        return tensors["scales"]
    mean, step = tensors["scale_ranges"].unbind(-1)  # [rows, blocks]
    if mean.shape[1] > 1:
        mean, step = (part.repeat_interleave(SCALES_A_BLOCK, dim=1)[:, : layout.groups] for part in (mean, step))
    return torch.addcmul(mean, tensors["scale_codes"].float(), step).exp_()


def dequantise(tensors: dict[str, Tensor], layout: Layout) -> Tensor:
    """The weights [rows, inputs] in float32 of the tensors of some rows.

    Each byte picks the two numbers that it stands for from a table of 256, fetched as one integer of 64 bits: on a processor more than twice as fast
    as taking the halves apart and looking each up.
    """
    codes = tensors["codes"]
    if layout.format == "int8":
        values = codes.float()
    else:
        values = _pairs(layout.format, layout.symmetric, codes.device).index_select(0, codes.reshape(-1).int()).view(torch.float32)
    values = values.view(len(codes), layout.groups, layout.group)
    if not layout.symmetric:
        values.sub_(tensors["zeros"][..., None])
    values.mul_(scales_of(tensors, layout)[..., None])
    return values.view(len(codes), layout.width)[:, : layout.inputs]


@cache
def _pairs(format: str, symmetric: bool, device: torch.device) -> Tensor:
    """What each byte stands for, before scale and zero: [256], the bits of two float32 as one int64."""
    levels = torch.tensor(NF4 if format == "nf4" else [code - 8 * symmetric for code in range(16)], dtype=torch.float32, device="cpu")
    byte = torch.arange(256, device="cpu")
    return torch.stack([levels[byte >> 4], levels[byte & 15]], dim=1).view(torch.int64).flatten().to(device)
