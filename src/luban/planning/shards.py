"""What FSDP2 holds while a model's weights or gradients are cut into shards: weights that are gathered before they are used, gradients that are summed and cut after.

The order is that of torch.distributed.fsdp (``_fsdp_param_group.py`` of 2.13): in a forward pass what was sent for a block stays until the next one's has come; in a backward pass
the next block's is sent for before this one runs, and the gradients that were given for summing stay until the next are. gloo makes a copy of its own of what it sends.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from luban.planning.job import Habits, Layout
from luban.planning.shadow import Parameter, Storage, Tape, Value


class Shards:
    """The weights of ``inside`` (a list for each block) and of what stands outside of the blocks, as one process of ``layout`` gathers and cuts them."""

    def __init__(self, tape: Tape, layout: Layout, habits: Habits, inside: Sequence[Sequence[Parameter]], loose: Sequence[Parameter], first: int, away: bool = False):
        alone = layout.cut(True) == 1  # experts that no other process has are neither gathered nor cut
        self.tape, self.layout, self.habits, self.loose, self.first = tape, layout, habits, loose, first
        self.away = away  # between their uses shards and their gradients are in the host's memory
        self.inside = [[parameter for parameter in parameters if not (alone and parameter.of_expert)] for parameters in inside]
        self.sent: Storage | None = None  # the last block's weights as they came
        self.ahead: dict[int, Storage] = {}  # the next block's, in a backward pass
        self.given: Storage | None = None  # the last gradients that were summed
        self.whole: list[Storage] = []  # what stands outside of the blocks, gathered
        self.kept: dict[int, Storage] = {}  # of ZeRO-1: each block's weights, from the first micro-batch to the last
        self.last = True  # whether the micro-batch that is passed is the step's last
        self.own: dict[int, Storage] = {}  # gradients of this process's shards, of each block; -1: outside of them

    def _came(self, size: float) -> Storage:
        """Weights as they come from the others, and from the host's memory."""
        return self.tape.in_transit(size * (1 + self.away / self.layout.held), 1)

    def _held(self, size: float) -> Storage:
        return self.tape.storage(size, 1, "communication")

    def _gathered(self, parameters: Sequence[Parameter]) -> float:
        """Bytes of weights that are gathered; what is held in fewer bits comes as it is."""
        return sum(parameter.numbers * (parameter.width if self.tape.narrow or parameter.width < 2 else self.habits.gathered) for parameter in parameters)

    @property
    def _goes_on(self) -> bool:
        """Whether what is gathered stays and gradients wait, as in ZeRO-1 until the step's last micro-batch."""
        return self.layout.shard == "states" and not self.last

    # ---- outside of the blocks ------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """It is gathered for the whole of a pass, of ZeRO-1 for the whole of a step."""
        if self.whole:
            return
        size = self._gathered(self.loose)
        self.sent = self._came(size)
        self.whole = [self._held(size)]

    def forward_is_done(self) -> None:
        self.sent = None

    def end(self) -> None:
        """After a backward pass: its gradients are summed last."""
        if self._goes_on:
            return
        self.whole = []
        self._sum(-1, self.loose)
        self.given = None

    # ---- blocks ---------------------------------------------------------------------------------------------------------

    def through(self, number: int, run: Callable[[Value], Value], states: Value) -> Value:
        """Block ``number``, which ``run`` runs, with its weights gathered before and, if they are dropped in between, before its backward pass."""
        tape, size, full = self.tape, self._gathered(self.inside[number]), self.layout.shard == "full"
        holder: list[Storage] = []
        end = states.node

        def reduced(gradient: Storage) -> list[Any]:
            holder.clear()
            if not self._goes_on:
                self.kept.pop(number, None)
                self._sum(number, self.inside[number])
            return [(end, gradient)] if end else []

        def again(gradient: Storage) -> list[Any]:
            if full:
                came = self.ahead.pop(number, None) or self._came(size)
                holder.append(self._held(size))
                del came
                if number > self.first:
                    self.ahead[number - 1] = self._came(self._gathered(self.inside[number - 1]))
            return [(after, gradient)]

        entered = Value(states.storage, states.numbers, states.width, tape.node(reduced))
        if number not in self.kept:
            came = self._came(size)
            self.sent = None
            holder.append(self._held(size))
            self.sent = came
            del came
            if self.layout.shard == "states":
                self.kept[number] = holder.pop()
        made = run(entered)
        if full:
            holder.clear()
        after = made.node
        return Value(made.storage, made.numbers, made.width, tape.node(again))

    def _sum(self, number: int, parameters: Sequence[Parameter]) -> None:
        """The gradients of some parameters, laid side by side, summed, and cut into shards."""
        learning = [parameter for parameter in parameters if parameter.learns]
        if not learning:
            return
        self.given = None
        self.given = self.tape.storage(sum(parameter.numbers for parameter in learning) * self.habits.reduced, 1, "communication")
        for parameter in learning:
            parameter.gradient = None
        own = self.tape.storage(sum(parameter.numbers / self.layout.cut(parameter.of_expert) for parameter in learning) * self.habits.gradients, 1, "gradients")
        if self.tape.gloo:
            copy = self.tape.storage(self.given.size, 1, "communication")
            del copy
        if not self.away:
            self.own.setdefault(number, own)

