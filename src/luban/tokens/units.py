"""The loader of framed examples: units of rows in a shuffled order, like lengths together, padded to the longest of a step.

As with the other loaders a step is a pure function of seed and index, so that a position is all there is to resume.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from luban.foundation.errors import DataError
from luban.tokens.batch import Batch, Row, batch_of
from luban.tokens.order import FixedRows

Unit = Sequence[Row]
Refresh = Callable[[int, int], Unit]


class UnitLoader:
    """Units of ``group`` rows each, ``units_per_step`` of them in a step.

    ``refresh(unit, epoch)`` makes a unit's rows anew in every epoch (noise, augmentation, other negatives) as a pure function of
    its arguments; without it ``units`` are taken as they are. An empty row (no ids, weight 0) fills a group that is too small.
    """

    def __init__(
        self,
        units: Sequence[Unit],
        *,
        units_per_step: int,
        seed: int,
        pad_id: int,
        group: int = 1,
        shuffle: bool = True,
        refresh: Refresh | None = None,
    ):
        if not units:
            raise DataError("there are no examples to train on", "", "look at what was set aside, and why")
        assert all(len(unit) == group for unit in units)
        self.units, self.units_per_step, self.pad_id, self.group, self.refresh = units, units_per_step, pad_id, group, refresh
        lengths = np.array([max(1, max(len(row.ids) for row in unit)) for unit in units], np.uint32)
        self.epoch_tokens = int(sum(len(row.ids) for unit in units for row in unit))
        self._easy_first = np.argsort(lengths, kind="stable")
        self._seed, self._paced = seed, 0
        self._order = FixedRows(lengths, int(lengths.max()), seed, "none", shuffle)
        if shuffle:
            self._order.bucket(units_per_step)

    @property
    def epoch_steps(self) -> int:
        """Steps until every unit has been read once (the last of them may begin the next epoch)."""
        return -(-len(self.units) // self.units_per_step)

    def step(self, index: int) -> Batch:
        """The batch of optimizer step ``index``; steps go on through as many epochs as asked for."""
        first = index * self.units_per_step
        if index < self._paced:
            share = (index / self._paced * (1 - 0.01) + 0.01) ** 0.5
            known = self._easy_first[: max(self.units_per_step, round(share * len(self.units)))]
            chosen = np.random.default_rng((self._seed, index)).choice(known, self.units_per_step, replace=len(known) < self.units_per_step)
            return self._rows_of((int(unit), first // len(self.units)) for unit in chosen)
        return self._batch(range(first, first + self.units_per_step))

    def pace(self, steps: int) -> None:
        """Draw the examples of the first ``steps`` steps from the short ones, from a tenth of all growing as the square root of time
        to all of them (competence-based curriculum, Platanios et al. 2019, arXiv:1903.09848); after them the order is as it would be."""
        self._paced = steps

    def pass_once(self) -> Iterator[Batch]:
        """Every unit exactly once, for validation; the last batch may be smaller."""
        for first in range(0, len(self.units), self.units_per_step):
            yield self._batch(range(first, min(first + self.units_per_step, len(self.units))))

    def _batch(self, numbers: range) -> Batch:
        places = (divmod(number, len(self.units)) for number in numbers)
        return self._rows_of((self._order.row(epoch, place)[0].item, epoch) for epoch, place in places)

    def _rows_of(self, chosen: Iterable[tuple[int, int]]) -> Batch:
        """The batch of (unit, epoch) pairs."""
        rows: list[Row] = []
        for unit, epoch in chosen:
            rows += self.refresh(unit, epoch) if self.refresh else self.units[unit]
        return batch_of(rows, self.pad_id, group=self.group)
