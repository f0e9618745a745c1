"""How many bytes tensors hold while something runs, and the most of it: of real tensors and of those that have a size and no memory."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)


class Everywhere(TorchDispatchMode):
    """Inside, what depends on the values of tensors that have none is taken to hold at every place: all numbers differ from zero, and a mask picks all that it stands for."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if function is aten.nonzero.default:
            return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
        if function in INDEXED:
            args = (args[0], [one for index in args[1] for one in _places(index)], *args[2:])
        return function(*args, **(kwargs or {}))


def _places(index: Tensor | None) -> list[Tensor | None]:
    """An index, or the numbers of all places that a mask stands for, one tensor for each of its dimensions."""
    return [index.new_empty(index.numel(), dtype=torch.int64) for _ in range(index.dim())] if index is not None and index.dtype == torch.bool else [index]


class Held(TorchDispatchMode):
    """Inside, every storage that an operation touches counts from then on until it is gone, once, however many tensors look at it.

    Shards change the size of storages without an operation (FSDP2 frees what it gathered in this way): what grows is seen when it is next used, and what has shrunk is looked for
    wherever a new peak would be noted, so that ``peak`` is exact and ``total`` an upper bound.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = self.peak = 0
        self.moment = self.at = ""  # what goes on, and what went on at the peak
        self.moments: dict[str, int] = {}  # the most of each moment
        self._sizes: dict[int, int] = {}
        self._storages: dict[int, weakref.ref[Any]] = {}

    def count(self, tensors: Iterable[Tensor]) -> int:
        """Count these too, from now on; what is held together then."""
        for tensor in tensors:
            self._note(tensor)
        self._look()
        return self.total

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        for value in tree_leaves((made, args, kwargs)):
            if isinstance(value, Tensor):
                self._note(value)
        if self.total > self.moments.get(self.moment, 0):
            self._look()
        return made

    def _note(self, tensor: Tensor) -> None:
        tensor = getattr(tensor, "_local_tensor", tensor)  # of a DTensor
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known == size:
            return
        if known is None:
            self._storages[key] = weakref.ref(storage)
            weakref.finalize(storage, self._forget, key)
        self._sizes[key] = size
        self.total += size - (known or 0)

    def _forget(self, key: int) -> None:
        self.total -= self._sizes.pop(key, 0)
        self._storages.pop(key, None)

    def _look(self) -> None:
        for key, known in list(self._storages.items()):
            storage = known()
            if storage is not None and (size := storage.nbytes()) != self._sizes[key]:
                self.total += size - self._sizes[key]
                self._sizes[key] = size
        if self.total > self.moments.get(self.moment, 0):
            self.moments[self.moment] = self.total
        if self.total > self.peak:
            self.peak, self.at = self.total, self.moment
