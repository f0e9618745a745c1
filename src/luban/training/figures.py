"""The figures of a step, fetched from the device when one is looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch


class Fetched:
    """Scalars on their way to the host: the copy begins now, and who reads them waits for what was begun before it, not for the work that came after."""

    def __init__(self, tensors: Sequence[torch.Tensor]):
        self._tensors, self._ready = list(tensors), None
        if any(tensor.device.type == "cuda" for tensor in tensors):
            together = torch.stack([tensor.detach().float().reshape(()) for tensor in tensors])
            self._tensors = [torch.empty(together.shape, pin_memory=True).copy_(together, non_blocking=True)]
            self._ready = torch.cuda.Event()
            self._ready.record()

    def read(self) -> list[float]:
        if self._ready is not None:
            self._ready.synchronize()
            return self._tensors[0].tolist()
        return [float(tensor) for tensor in self._tensors]


class Figures(Mapping[str, float]):
    """Numbers by name. Who does not look at those that are made on a device does not make the host wait."""

    def __init__(self, waiting: Mapping[str, torch.Tensor], known: Mapping[str, float]):
        self._waiting, self._fetched, self._known = list(waiting), Fetched(list(waiting.values())), dict(known)
        self._names = (*waiting, *known)

    def _all(self) -> dict[str, float]:
        if self._waiting:
            self._known |= dict(zip(self._waiting, self._fetched.read(), strict=True))
            self._waiting = []
        return self._known

    def __getitem__(self, name: str) -> float:
        return self._all()[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names
