"""Which blocks compute their activations again (recompute.py), of a budget in bytes: arithmetic alone, so that a planner can ask without torch."""

from __future__ import annotations

from collections.abc import Sequence

MODES = ("none", "selective", "full")
Mode = str


def plan(sizes: Sequence[dict[Mode, int]], budget: int) -> list[Mode]:
    """A mode for each block so that all of them keep at most ``budget`` bytes, and as little as can be is computed again.

    Selective costs next to nothing, so first the blocks with the most to gain become selective, from the input upwards where they are alike; if that is not enough,
    as many as needed become full. Where even that is too much, all are full.
    """
    chosen: list[Mode] = ["none"] * len(sizes)

    def held() -> int:
        return sum(size[mode] for size, mode in zip(sizes, chosen, strict=True))

    for before, after in (("none", "selective"), ("selective", "full")):
        order = sorted(range(len(sizes)), key=lambda index: sizes[index][after] - sizes[index][before])
        for index in order:
            if held() <= budget:
                return chosen
            chosen[index] = after
    return chosen
