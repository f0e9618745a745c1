"""What optimizers hold, what a step of each takes for a moment, and what it moves and multiplies (luban.training.optimizers and the files it names)."""

from __future__ import annotations

from collections.abc import Sequence

from luban.planning.job import Job
from luban.planning.shadow import Parameter
from luban.training.config import OPTIMIZERS

BLOCK, DEVICE_BLOCK = 1 << 18, 1 << 26  # luban.training.blocks
RUN, SMALLEST = 256, 4096  # luban.training.adamw_8bit
# Bytes for each number of a block that are alive together in an update, counted in the code of each.
UPDATE_BYTES = {"adamw_8bit": 29, "adafactor": 8, "lion": 4, "sgd": 4}
ROUNDING_BYTES = 10  # of each number that is rounded stochastically: its float32 copy, random words and bits
# Bytes that a device reads and writes for each number in an update, kernel after kernel; those of the norm and of clipping; and more for what rounds stochastically.
MOVED = {"adamw": 28, "adafactor": 60, "lion": 52, "sgd": 20, "adamw_8bit": 356, "muon": 70}
MOVED_BY_MOMENTUM = {"adafactor": 12, "sgd": 32}
MOVED_BY_NORM, MOVED_BY_CLIPPING, MOVED_BY_ROUNDING = 4, 8, 60
ITERATIONS = 5  # of luban.training.muon


def muon_moves(parameter: Parameter) -> bool:
    """Whether Muon has a parameter: matrices of hidden layers; the others are AdamW's."""
    return bool(parameter.sides) and not parameter.table


def state_bytes(parameter: Parameter, job: Job, embedding: bool = False) -> float:
    """Bytes of state that a parameter that learns has, the counter left out."""
    numbers, name = parameter.numbers, job.optimizer
    if job.habits.states is not None:
        return numbers * job.habits.states
    if name == "adamw" or (name == "muon" and not muon_moves(parameter)):
        return 8.0 * numbers
    if name == "adamw_8bit":
        return 8.0 * numbers if embedding or numbers < SMALLEST else 2.0 * numbers + 8.0 * -(-numbers // RUN)
    if name == "adafactor":
        factored = 4.0 * sum(parameter.sides) if parameter.sides else 4.0 * numbers
        return factored + (4.0 * numbers if job.momentum else 0.0)
    if name == "sgd" and not job.momentum:
        return 0.0
    return 4.0 * numbers


def moved_bytes(job: Job) -> float:
    """Bytes that an update reads and writes for each number that learns. A processor takes a block through all of it within its cache: weights, gradient and state, there and back."""
    if job.device == "cpu" or job.away or job.habits.states is not None:
        return 16.0 + 2.0 * OPTIMIZERS[job.optimizer]["state_bytes"]
    update = MOVED[job.optimizer] + (MOVED_BY_MOMENTUM.get(job.optimizer, 0) if job.momentum else 0)
    return float(update + MOVED_BY_NORM + (MOVED_BY_CLIPPING if job.engine == "torch" else 0) + (MOVED_BY_ROUNDING if job.weights == "bfloat16" else 0))


def orthogonal_operations(parameters: Sequence[Parameter]) -> float:
    """Operations in which Muon makes the singular values of its matrices alike: three products for each of its iterations."""
    return sum(
        parameter.numbers / (parameter.sides[0] * parameter.sides[1]) * ITERATIONS * (4.0 * min(parameter.sides) ** 2 * max(parameter.sides) + 2.0 * min(parameter.sides) ** 3)
        for parameter in parameters
        if parameter.learns and muon_moves(parameter)
    )


def moment_bytes(parameters: Sequence[Parameter], job: Job) -> float:
    """The most that a step of the optimizer takes beside weights, gradients and states."""
    if not parameters or job.optimizer == "adamw":
        return 0.0
    if job.optimizer == "muon":
        return _muon_bytes([parameter for parameter in parameters if muon_moves(parameter)], 4.0 if job.device == "cpu" else 2.0)
    block = BLOCK if job.device == "cpu" else DEVICE_BLOCK
    largest = min(block, max(parameter.numbers for parameter in parameters))
    rounding = ROUNDING_BYTES if job.weights == "bfloat16" else 0
    return largest * (UPDATE_BYTES[job.optimizer] + rounding)


def _muon_bytes(parameters: Sequence[Parameter], width: float) -> float:
    """Every matrix's update, and of the matrices of one shape, which go together, the stack and two iterates with the products of rows."""
    if not parameters:
        return 0.0
    groups: dict[tuple[float, ...], float] = {}
    for parameter in parameters:
        groups[parameter.sides] = groups.get(parameter.sides, 0.0) + parameter.numbers
    most = before = 0.0
    for sides, numbers in groups.items():
        rows, columns = min(sides), max(sides)
        most = max(most, before + 4.0 * numbers + width * numbers * (2.0 + 2.0 * rows / columns))
        before = width * numbers  # the updates of the shape that went before are still there
    return 4.0 * sum(groups.values()) + most
