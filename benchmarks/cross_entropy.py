"""Cross-entropy at large vocabularies, in chunks beside the plain form: `python benchmarks/cross_entropy.py [--vocabulary 128000] [--width 512] [--tokens 2048] [--rounds 5]`.

Time: both forms by turns in one process, forward and backward. Memory: the most that each held beyond matrix, states and their gradients, which both must have, in a process of its own.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F
from torch import Tensor

from luban.foundation.hardware import keep_freed_memory, machine, peak_bytes, resident_bytes
from luban.objectives.chunks import chunked_sum
from luban.objectives.losses import CHUNK_LOGITS, CHUNK_TOKENS

FORMS = ("plain", "chunked")


def loss_of(form: str, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    if form == "plain":
        return F.cross_entropy(F.linear(hidden, weight), targets, reduction="sum")
    return chunked_sum(hidden, weight, None, targets, torch.ones(len(hidden)), 0.0, max(CHUNK_TOKENS, CHUNK_LOGITS // len(weight)))


def given(asked: argparse.Namespace) -> tuple[Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    hidden = torch.randn(asked.tokens, asked.width, requires_grad=True)
    weight = torch.randn(asked.vocabulary, asked.width).mul_(asked.width**-0.5).requires_grad_()
    return hidden, weight, torch.randint(asked.vocabulary, (asked.tokens,))


def peak(asked: argparse.Namespace) -> int:
    """Bytes beyond matrix, states and their gradients. In a fresh process: nothing else has raised its peak."""
    hidden, weight, targets = given(asked)
    before = resident_bytes()
    loss_of(asked.form, hidden, weight, targets).backward()
    return peak_bytes() - before - hidden.grad.nbytes - weight.grad.nbytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, value in (("vocabulary", 128_000), ("width", 512), ("tokens", 2048), ("rounds", 5), ("threads", torch.get_num_threads())):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--form", choices=FORMS, help="only say the peak of this form, in bytes")
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if asked.form:
        print(peak(asked))
        return
    keep_freed_memory()
    print(f"{machine().cpu}, {machine().cores} cores, {asked.threads} threads, torch {torch.__version__}; vocabulary {asked.vocabulary:,}, width {asked.width}, {asked.tokens:,} tokens, float32\n")
    held = {form: int(subprocess.run([sys.executable, __file__, *sys.argv[1:], "--form", form], check=True, capture_output=True, text=True).stdout) for form in FORMS}
    hidden, weight, targets = given(asked)
    times: dict[str, list[float]] = {form: [] for form in FORMS}
    for number in range(asked.rounds + 1):
        for form in FORMS if number % 2 else reversed(FORMS):
            begun = time.process_time()
            torch.autograd.grad(loss_of(form, hidden, weight, targets), (hidden, weight))
            if number:
                times[form].append(time.process_time() - begun)
    print("| form | processor seconds, median [least, most] | time beside plain | peak, GiB | peak beside plain |\n| --- | --- | --- | --- | --- |")
    for form in FORMS:
        ratio = statistics.median(own / plain for own, plain in zip(times[form], times["plain"], strict=True))
        print(f"| {form} | {statistics.median(times[form]):.2f} [{min(times[form]):.2f}, {max(times[form]):.2f}] | {ratio:.2f} | {held[form] / 2**30:.2f} | {held[form] / held['plain']:.2f} |")


if __name__ == "__main__":
    main()
