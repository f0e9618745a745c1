"""The figures of a step, fetched from the device when one is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch


class Figures(Mapping[str, float]):
    """Numbers by name. Those still on a device are fetched together, once, when any is read: who does not look does not make the host wait."""

    def __init__(self, waiting: Mapping[str, torch.Tensor], known: Mapping[str, float]):
        self._waiting, self._known = dict(waiting), dict(known)
        self._names = (*waiting, *known)

    def _all(self) -> dict[str, float]:
        if self._waiting:
            tensors = list(self._waiting.values())
            if all(tensor.device.type == "cpu" for tensor in tensors):
                values = [float(tensor) for tensor in tensors]
            else:
                values = torch.stack([tensor.detach().float() for tensor in tensors]).tolist()
            self._known |= dict(zip(self._waiting, values, strict=True))
            self._waiting = {}
        return self._known

    def __getitem__(self, name: str) -> float:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
