"""The generators that are drawn from without a seed of their own: torch's, numpy's, Python's; as JSON and back."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def seed_all(seed: int, rank: int = 0) -> None:
    """Begin every generator that has no seed of its own anew, each rank with numbers of its own; user code may draw from any."""
    if rank:  # torch's generator of the processor heeds no more than 32 bits of a seed, so these must differ
        seed = int(np.random.SeedSequence((seed % 2**64, rank)).generate_state(1)[0])
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state() -> dict[str, Any]:
    """Everything that is drawn from without a seed of its own: torch's generators, numpy's, Python's."""
    generator, words, place, has_gauss, gauss = np.random.get_state(legacy=True)
    version, ours, next_gauss = random.getstate()
    found = {
        "torch": _text(torch.get_rng_state()), "numpy": [generator, base64.b64encode(words.tobytes()).decode("ascii"), place, has_gauss, gauss],
        "python": [version, base64.b64encode(np.array(ours[:-1], np.uint32).tobytes()).decode("ascii"), ours[-1], next_gauss],
    }  # fmt: skip
    if torch.cuda.is_available():
        found["cuda"] = _text(torch.cuda.get_rng_state())
    return found


def set_random_state(known: dict[str, Any]) -> None:
    """Put back what :func:`random_state` gave."""
    torch.set_rng_state(_bytes(known["torch"]))
    generator, words, place, has_gauss, gauss = known["numpy"]
    np.random.set_state((generator, np.frombuffer(base64.b64decode(words), np.uint32), place, has_gauss, gauss))
    version, words, place, next_gauss = known["python"]
    random.setstate((version, (*np.frombuffer(base64.b64decode(words), np.uint32).tolist(), place), next_gauss))
    if "cuda" in known and torch.cuda.is_available():
        torch.cuda.set_rng_state(_bytes(known["cuda"]))


def _text(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _bytes(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
