"""Adafactor: the second moment of a matrix as the product of a column and a row.

Shazeer & Stern 2018, "Adafactor: adaptive learning rates with sublinear memory cost", arXiv:1804.04235, algorithms 4 and 5: decay 1 − t^−0.8, updates whose root
mean square is bounded by 1 (so that no gradient need be clipped), and rates that are a share of each parameter's own root mean square.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from luban.training.blocks import BlockOptimizer, Writer, count_step, no_steps, row_blocks, wide, zeros_beside

SQUARE_FLOOR = 1e-30  # epsilon 1 of the paper: added to squared gradients
SCALE_FLOOR = 1e-3  # epsilon 2: the least root mean square that a relative rate reckons with
LARGEST_UPDATE = 1.0  # d: root mean square of an update before its rate


class Adafactor(BlockOptimizer):
    """State of a matrix [rows, columns]: ``rows`` and ``columns``, 4 (rows + columns) bytes; a stack of matrices has them for each. Of a vector: ``square``,
    4 bytes a number. With momentum also ``momentum``, 4 bytes a parameter.

    With ``relative`` the rate is multiplied by the parameter's root mean square, 0.001 at least: ``lr`` is then what the paper calls ρ, 0.01 at most there.
    """

    def __init__(self, parameters: Iterable[Any], lr: float, momentum: float = 0.0, weight_decay: float = 0.0, relative: bool = True, decay_power: float = -0.8):
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "relative": relative, "decay_power": decay_power})

    def first_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]:
        state = {"step": no_steps()}
        if parameter.ndim < 2:
            state["square"] = zeros_beside(parameter)
        else:
            wider = {"dtype": wide(parameter.dtype), "device": parameter.device}
            state |= {"rows": torch.zeros(parameter.shape[:-1], **wider), "columns": torch.zeros(*parameter.shape[:-2], parameter.shape[-1], **wider)}
        return state | ({"momentum": zeros_beside(parameter)} if group["momentum"] else {})

    def move(self, parameter: nn.Parameter, gradient: Tensor, state: dict[str, Tensor], group: dict[str, Any]) -> None:
        stack = (-1, *parameter.shape[-2:]) if parameter.ndim >= 2 else (1, 1, -1)
        weights, slopes = parameter.detach().view(stack), gradient.contiguous().view(stack)  # [matrices, rows, columns]
        rate = group["lr"] * _root_mean_square(weights).clamp(min=SCALE_FLOOR) if group["relative"] else group["lr"]
        by_row, by_column = self._factors(parameter, slopes, state, 1.0 - count_step(state) ** group["decay_power"])
        size = _update_norm(slopes, by_row, by_column) / weights.numel() ** 0.5
        by_row = by_row * (-rate / (size / LARGEST_UPDATE).clamp(min=1.0))
        averaged = state["momentum"].view(stack) if group["momentum"] else None
        writer = Writer(parameter)
        for index, rows in _places(weights):
            update = (slopes[index, rows] * by_row[index, rows, None]).mul_(by_column[index])
            if averaged is not None:
                update = averaged[index, rows].lerp_(update, 1 - group["momentum"])
            values = writer.values(weights[index, rows])
            if group["weight_decay"]:
                values.mul_(1 - rate * group["weight_decay"])
            writer.write(weights[index, rows], values.add_(update))

    @staticmethod
    def _factors(parameter: Tensor, slopes: Tensor, state: dict[str, Tensor], share: float) -> tuple[Tensor, Tensor]:
        """What each gradient is multiplied with to become an update: of its row [matrices, rows] and of its column [matrices, columns]. ``share`` is β2 of this step."""
        matrices, rows, columns = slopes.shape
        wider = {"dtype": wide(slopes.dtype), "device": slopes.device}
        if parameter.ndim < 2:
            state["square"].lerp_(slopes.view(parameter.shape).square().add_(SQUARE_FLOOR), 1 - share)
            return torch.ones(1, 1, **wider), state["square"].rsqrt().view(1, columns)
        of_rows, of_columns = torch.empty(matrices, rows, **wider), torch.zeros(matrices, columns, **wider)
        for index, part in _places(slopes):
            squares = slopes[index, part].square()
            torch.sum(squares, 1, out=of_rows[index, part])
            of_columns[index] += squares.sum(0)
        by_row = state["rows"].view(matrices, rows).lerp_(of_rows.div_(columns).add_(SQUARE_FLOOR), 1 - share)
        by_column = state["columns"].view(matrices, columns).lerp_(of_columns.div_(rows).add_(SQUARE_FLOOR), 1 - share)
        return (by_row / by_row.mean(1, keepdim=True)).rsqrt_(), by_column.rsqrt()


def _places(stack: Tensor) -> Iterator[tuple[int, slice]]:
    return ((index, rows) for index in range(len(stack)) for rows in row_blocks(stack[index]))


def _root_mean_square(weights: Tensor) -> Tensor:
    total = sum(torch.linalg.vector_norm(weights[index, rows], dtype=wide(weights.dtype)).square() for index, rows in _places(weights))
    return (total / weights.numel()).sqrt()


def _update_norm(slopes: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
    """The norm of the update before its rate, which is never made as a whole."""
    total = torch.zeros((), dtype=by_row.dtype, device=by_row.device)
    for index, rows in _places(slopes):
        total += torch.dot(slopes[index, rows].square() @ by_column[index].square(), by_row[index, rows].square())
    return total.sqrt()
