"""Causal attention on a processor, Luban's own beside torch's, by turns: `python -m benchmarks.attention [--rounds 9] [--threads 2]`.

Forward and backward of one layer, whole rows and rows of packed documents (torch is given their mask). Also the largest difference from torch in float64.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.foundation.hardware import keep_freed_memory, machine
from luban.models.attention import begins_of, causal_attention, load

SIZES = ((8, 6, 256, 48), (4, 12, 512, 64), (2, 12, 1024, 64), (1, 16, 2048, 128))  # rows, heads, tokens, numbers a head
DOCUMENT = 100  # tokens of a document, on average


def both(attend: Callable[[Tensor, Tensor, Tensor], Tensor], given: list[Tensor], slope: Tensor) -> list[float]:
    """Milliseconds of the forward and of the backward pass."""
    first = time.perf_counter()
    made = attend(*given)
    middle = time.perf_counter()
    torch.autograd.grad(made, given, slope)
    return [1e3 * (middle - first), 1e3 * (time.perf_counter() - middle)]


def measure(rows: int, heads: int, seq: int, size: int, packed: bool, rounds: int) -> str:
    torch.manual_seed(0)
    given = [torch.randn(rows, seq, heads, size).transpose(1, 2).requires_grad_() for _ in range(3)]
    slope = torch.randn(rows, seq, heads, size).transpose(1, 2)
    segments = (torch.rand(rows, seq) < 1 / DOCUMENT).cumsum(1) if packed else torch.zeros(rows, seq, dtype=torch.long)
    begins = begins_of(segments, rows, seq)
    mask = torch.ones(seq, seq, dtype=torch.bool).tril() & (segments[:, None, :, None] == segments[:, None, None, :]) if packed else None
    sides: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "torch": lambda *three: F.scaled_dot_product_attention(*three, attn_mask=mask, is_causal=mask is None),
        "own": lambda *three: causal_attention(*three, begins),
    }
    exact = F.scaled_dot_product_attention(*(one.double() for one in given), attn_mask=mask, is_causal=mask is None)
    error = float((causal_attention(*given, begins) - exact).detach().abs().max())
    times: dict[str, list[list[float]]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        for name, attend in sides.items():
            taken = both(attend, given, slope)
            if number:
                times[name].append(taken)
    middle = {name: [statistics.median(part) for part in zip(*each, strict=True)] for name, each in times.items()}
    ratio = statistics.median(sum(theirs) / sum(ours) for theirs, ours in zip(times["torch"], times["own"], strict=True))
    shown = " | ".join(f"{forward:.1f} + {backward:.1f}" for forward, backward in (middle["torch"], middle["own"]))
    return f"| {rows} × {heads} × {seq:,} × {size} | {f'of {DOCUMENT} tokens' if packed else 'one a row'} | {shown} | {ratio:.2f} | {error:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    keep_freed_memory()
    if load() is None:
        raise SystemExit("there is no compiler here that can make it: install g++")
    print(f"{machine().cpu}, {machine().cores} cores, {asked.threads} threads, torch {torch.__version__}\n")
    print("| rows × heads × tokens × head | documents | torch, ms forward + backward | own | torch's time over own | error |\n| --- | --- | --- | --- | --- | --- |")
    for size in SIZES:
        for packed in (False, True):
            print(measure(*size, packed, asked.rounds), flush=True)


if __name__ == "__main__":
    main()
