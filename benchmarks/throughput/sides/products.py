"""The machine's own rate: `products.py SHAPE` multiplies the model's matrices, each of the three products of a step in the fastest of its equivalent forms."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shapes import SHAPES, Shape
from turns import Turns, keep_memory


def seconds(form: Callable[[], object]) -> float:
    begun = time.perf_counter()
    form()
    return time.perf_counter() - begun


def forms(outputs: int, inputs: int, tokens: int) -> list[list[Callable[[], object]]]:
    """The forms of: states · weightᵀ, gradient · weight, gradientᵀ · states. A result may lie transposed, a weight may be kept transposed, oneDNN may be called by name."""
    states, gradient = torch.randn(tokens, inputs), torch.randn(tokens, outputs)
    weight = torch.randn(outputs, inputs)
    turned = weight.t().contiguous()
    made, back, by_weight = torch.empty(tokens, outputs), torch.empty(tokens, inputs), torch.empty(outputs, inputs)
    other = [torch.empty(outputs, tokens), torch.empty(inputs, tokens), torch.empty(inputs, outputs)]
    found: list[list[Callable[[], object]]] = [
        [lambda: torch.mm(states, weight.t(), out=made), lambda: torch.mm(states, turned, out=made), lambda: torch.mm(weight, states.t(), out=other[0])],
        [lambda: torch.mm(gradient, weight, out=back), lambda: torch.mm(gradient, turned.t(), out=back), lambda: torch.mm(turned, gradient.t(), out=other[1])],
        [lambda: torch.mm(gradient.t(), states, out=by_weight), lambda: torch.mm(states.t(), gradient, out=other[2])],
    ]
    if torch.backends.mkldnn.is_available():
        found[0].append(lambda: torch.ops.mkldnn._linear_pointwise(states, weight, None, "none", [], ""))
        found[1].append(lambda: torch.ops.mkldnn._linear_pointwise(gradient, turned, None, "none", [], ""))
    return found


def seconds_on_gpu(outputs: int, inputs: int, tokens: int) -> list[float]:
    """Seconds of each of the three products in bfloat16, on random numbers."""
    with torch.device("cuda"):
        states, gradient, weight = (torch.randn(size, dtype=torch.bfloat16) for size in ((tokens, inputs), (tokens, outputs), (outputs, inputs)))
    found = []
    for form in (lambda: states @ weight.t(), lambda: gradient @ weight, lambda: gradient.t() @ states):
        form()
        first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        first.record()
        for _ in range(5):
            form()
        last.record()
        torch.cuda.synchronize()
        found.append(first.elapsed_time(last) / 5000)
    return found


def measure(shape: Shape, sizes: list[int]) -> float:
    """Seconds that a step's products take, all in their fastest forms and numbers of tokens."""
    total = 0.0
    for (outputs, inputs), count in shape.products.items():
        best = [float("inf")] * 3
        for tokens in sizes:
            if torch.cuda.is_available():
                best = [min(one, taken * shape.tokens / tokens) for one, taken in zip(best, seconds_on_gpu(outputs, inputs, tokens), strict=True)]
                continue
            for number, kinds in enumerate(forms(outputs, inputs, tokens)):
                for form in kinds:
                    form()
                    best[number] = min(best[number], min(seconds(form) for _ in range(3)) * shape.tokens / tokens)
        total += count * sum(best)
    return total


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    shape = SHAPES[parser.parse_args().shape]
    keep_memory()
    turns = Turns({"parameters": 0}, warm=0)
    sizes = sorted({shape.tokens, shape.micro_rows * shape.sequence})
    flops = 6.0 * shape.tokens * sum(outputs * inputs * count for (outputs, inputs), count in shape.products.items())
    while turns.begin():
        taken = measure(shape, sizes)
        turns.line.send((flops / taken, taken))
        turns.left = 0


if __name__ == "__main__":
    main()
