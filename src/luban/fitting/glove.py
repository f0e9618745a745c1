"""Word vectors by GloVe (Pennington, Socher and Manning 2014): weighted least squares on the logarithms of co-occurrences.

    J = sum_ij min(1, (x_ij / x_max)^0.75) (w_i · v_j + b_i + c_j - log x_ij)^2,   vectors w + v

Co-occurrences are weighted by one over the distance, symmetric, and counted in sorted runs on disk (spill.py), so memory does not grow with the
text. AdaGrad's steps are taken on batches of entries whose gradients are added up, each entry once an epoch rather than in both directions; so the rate is
greater than the paper's 0.05, and x_max (100 for its billions of words) is made for some millions.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from luban.fitting.spill import Spill
from luban.foundation.console import progress, say

_BLOCK = 200_000  # words counted at once; no window reaches over a block's end
_BATCH = 4096  # entries of one step
_STRETCH = 1_000_000  # entries read at once


@dataclass(frozen=True)
class GloVeSettings:
    """``maximum_count``: x_max, from which on an entry has full weight."""

    dimension: int = 100
    window: int = 10
    epochs: int = 15
    learning_rate: float = 0.15
    maximum_count: float = 20.0


def count_cooccurrences(ids: np.ndarray, words: int, window: int, folder: Path, memory: int) -> int:
    """Write the entries of the upper triangle (first <= second) to ``folder``; how many there are.

    ``ids`` [text] int32 with -1 between documents. Files: keys.i64 (first * words + second) and values.f64, the entries in a random order
    that is the same each time.
    """
    spill = Spill(folder / "runs", memory // 2, np.float64)
    with progress("counting co-occurrences (words)", total=len(ids)) as advance:
        for start in range(0, len(ids), _BLOCK):
            block = np.asarray(ids[start : start + _BLOCK]).astype(np.int64)
            documents, inside = np.cumsum(block < 0), block >= 0
            for distance in range(1, min(window, len(block) - 1) + 1):
                together = (documents[:-distance] == documents[distance:]) & inside[:-distance] & inside[distance:]
                one, two = block[:-distance][together], block[distance:][together]
                # A word beside itself counts from both sides.
                spill.add(np.minimum(one, two) * words + np.maximum(one, two), np.where(one == two, 2.0, 1.0) / distance)
            advance(len(block))
    entries = 0
    with (folder / "keys.i64").open("wb") as keys_out, (folder / "values.f64").open("wb") as values_out:
        for keys, values, _ in spill.merged():
            keys.tofile(keys_out)
            values.tofile(values_out)
            entries += len(keys)
    (folder / "runs").rmdir()
    return entries


def train_glove(folder: Path, entries: int, words: int, settings: GloVeSettings, seed: int) -> tuple[np.ndarray, list[float]]:
    """Vectors [words, dimension] float32 and the mean weighted squared error of each epoch.

    Each epoch reads stretches of the entries in a random order, and the entries of a stretch in a random order.
    """
    random = np.random.default_rng(seed)
    size = settings.dimension
    parameters = torch.from_numpy(((random.random((2 * words, size + 1)) - 0.5) / size).astype(np.float32))  # vectors and, last, biases
    squares = torch.ones_like(parameters)
    losses = []
    stretches = np.arange(0, entries, _STRETCH)
    with progress("training word vectors (co-occurrences)", total=entries * settings.epochs) as advance, torch.no_grad():
        for epoch in range(settings.epochs):
            total = 0.0
            for start in random.permutation(stretches):
                count = min(_STRETCH, entries - int(start))
                keys = np.fromfile(folder / "keys.i64", np.int64, count=count, offset=int(start) * 8)
                values = np.fromfile(folder / "values.f64", np.float64, count=count, offset=int(start) * 8).astype(np.float32)
                order = random.permutation(count)
                flip = random.random(count) < 0.5  # an entry stands for both (i, j) and (j, i): one of them each epoch
                one, two = keys // words, keys % words
                first, second = np.where(flip, two, one), np.where(flip, one, two)
                for begin in range(0, count, _BATCH):
                    batch = order[begin : begin + _BATCH]
                    rows = torch.from_numpy(np.concatenate([first[batch], second[batch] + words]))
                    total += _step(parameters, squares, rows, torch.from_numpy(values[batch]), settings)
                advance(count)
            losses.append(total / max(entries, 1))
            say("  epoch {epoch} of {epochs}: loss {loss}", epoch=epoch + 1, epochs=settings.epochs, loss=f"{losses[-1]:.4f}")
    return (parameters[:words, :size] + parameters[words:, :size]).numpy(), losses


def _step(parameters: torch.Tensor, squares: torch.Tensor, rows: torch.Tensor, values: torch.Tensor, settings: GloVeSettings) -> float:
    """One AdaGrad step on a batch of entries; ``rows`` [2 * entries] are the words' rows, then the contexts'."""
    entries = len(values)
    both = parameters[rows]  # [2 * entries, dimension + 1]
    words, contexts = both[:entries], both[entries:]
    error = (words[:, :-1] * contexts[:, :-1]).sum(1) + words[:, -1] + contexts[:, -1] - values.log()  # [entries]
    weighted = error * (values / settings.maximum_count).pow(0.75).clamp(max=1.0)
    slope = weighted.unsqueeze(1).repeat(2, both.shape[1])
    slope[:entries, :-1] *= contexts[:, :-1]
    slope[entries:, :-1] *= words[:, :-1]
    # The entries of one row are added up before the step, and so are their squares.
    found, place = torch.unique(rows, return_inverse=True)
    gathered = torch.zeros(len(found), both.shape[1]).index_add_(0, place, slope)
    power = torch.zeros(len(found), both.shape[1]).index_add_(0, place, slope.square())
    power += squares[found]
    squares[found] = power
    parameters[found] -= settings.learning_rate * gathered / power.sqrt()
    return float((weighted * error).sum())
