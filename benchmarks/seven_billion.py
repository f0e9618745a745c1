"""Full-parameter training steps of a Llama-2-7B shape on a processor or a GPU, and the 4-bit LoRA step of the same shape beside it.

    python benchmarks/seven_billion.py                        # 32 layers, 3 steps of 512 tokens: some ten minutes on two cores, 18 GiB; then LoRA
    python benchmarks/seven_billion.py --layers 2 --no-lora   # the same at another depth: two minutes, 3 GiB

Weights are drawn on the spot, in bfloat16, matrix by matrix. The steps are those of `engine: layerwise`, `weights: bfloat16`, `optimizer: {name: adafactor}`, `recompute: BUDGET`.
The rate that they are held against is that of the products of the model's own shapes (float32, on a GPU bfloat16), measured in the same run before and after the steps.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.foundation.hardware import machine
from luban.foundation.hardware import peak_bytes as resident_peak
from luban.models import recompute
from luban.models.counts import parameters
from luban.models.decoder import Decoder
from luban.models.narrow import new_narrow
from luban.models.presets import preset
from luban.objectives.causal import Causal
from luban.objectives.config import CausalConfig
from luban.parallel.layerwise import LayerwiseEngine
from luban.tokens.batch import Batch
from luban.training.config import OptimizerConfig
from luban.training.optimizers import Optimizers
from luban.training.precision import choose_device, choose_precision, prepare_machine

GIB = 2**30


def peak_bytes() -> int:
    """The most memory so far: what torch reserved on the GPU, else what this process held."""
    return torch.cuda.max_memory_reserved() if torch.cuda.is_available() else resident_peak()


def product_rate(model: Decoder, tokens: int) -> float:
    """Operations a second of a step's three products with each matrix of the model's shapes, each in the faster of two equivalent forms."""
    shapes = Counter(tuple(parameter.shape) for name, parameter in model.named_parameters() if parameter.ndim == 2 and "embed" not in name)
    kind = {"device": model.device, "dtype": torch.float32 if model.device.type == "cpu" else torch.bfloat16}
    seconds = sum(count * _three_products(*shape, tokens, kind) for shape, count in shapes.items())
    return sum(count * 3 * 2.0 * tokens * shape.numel() for shape, count in ((torch.Size(shape), count) for shape, count in shapes.items())) / seconds


def _three_products(outputs: int, inputs: int, tokens: int, kind: dict[str, Any]) -> float:
    """Seconds of forward, gradient by the states and gradient by the weight, the last as it is or transposed."""
    weight, states, gradient = (torch.randn(size, **kind) for size in ((outputs, inputs), (tokens, inputs), (tokens, outputs)))
    made, before, by_weight = (torch.empty(size, **kind) for size in ((tokens, outputs), (tokens, inputs), outputs * inputs))
    forward = _best(lambda: torch.mm(states, weight.t(), out=made))
    back = _best(lambda: torch.mm(gradient, weight, out=before))
    plain = _best(lambda: torch.mm(gradient.t(), states, out=by_weight.view(outputs, inputs)))
    return forward + back + min(plain, _best(lambda: torch.mm(states.t(), gradient, out=by_weight.view(inputs, outputs))))


def _best(form: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        form()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - begun)
    return min(times)


def executed(model: Decoder, tokens: int, modes: list[str]) -> float:
    """Floating-point operations that a step executes: forward, twice that backward, and the forward pass again of each block that is computed again. As is customary attention's whole
    square counts; norms, activation functions and the optimizer do not."""
    shape = model.shape
    counts = parameters(shape)
    block = 2.0 * (counts["matrices"] - shape.vocabulary_size * shape.hidden_size) / shape.layers + 4.0 * shape.heads * shape.head_dim * tokens
    return tokens * (3 * 2.0 * shape.vocabulary_size * shape.hidden_size + sum(block * (4 if mode == "full" else 3) for mode in modes))


def batch_of(tokens: Tensor) -> Batch:
    rows, seq = tokens.shape[0], tokens.shape[1] - 1
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(rows, seq), torch.arange(seq).expand(rows, -1), None, [""] * rows, [1] * rows)


def samples(model: Decoder) -> dict[str, Tensor]:
    """A few numbers of every parameter, to see that all of them learn."""
    return {name: parameter.detach().reshape(-1)[:: max(1, parameter.numel() // 1000)].cpu().clone() for name, parameter in model.named_parameters()}


def train(arguments: argparse.Namespace) -> dict[str, object]:
    threads = prepare_machine(arguments.threads or "auto", False)
    shape = preset("llama-2-7b").updated(layers=arguments.layers)
    device = choose_device()
    print(f"{machine().accelerator_name or machine().cpu}, {machine().cores} cores; Python {platform.python_version()}, torch {torch.__version__}, {threads} threads", flush=True)
    begun = time.perf_counter()
    model = new_narrow(shape, 0).train().to(device)
    total = parameters(shape)["total"]
    print(f"{total / 1e9:.2f} B parameters in bfloat16 drawn in {time.perf_counter() - begun:.0f} s; resident at the most {peak_bytes() / GIB:.2f} GiB", flush=True)
    begun = time.perf_counter()
    blank = torch.zeros(1, arguments.tokens, dtype=torch.long, device=device)
    sizes = recompute.measure(model, lambda: model(blank))
    modes = recompute.plan(sizes, int(arguments.activations * GIB))
    model.recompute = modes
    held = sum(size[mode] for size, mode in zip(sizes, modes, strict=True))
    said = ", ".join(f"{modes.count(mode)} {mode}" for mode in recompute.MODES if mode in modes)
    print(f"recompute: {said}; activations {held / GIB:.2f} GiB of {sum(size['none'] for size in sizes) / GIB:.2f}; measured in {time.perf_counter() - begun:.0f} s", flush=True)
    config = OptimizerConfig(name=arguments.optimizer, learning_rate=arguments.rate, embedding_learning_rate=arguments.rate, weight_decay=0.0, relative_step=True)
    engine = LayerwiseEngine(model, Optimizers(model, config, apart=True), Causal(CausalConfig()), 0, choose_precision("auto", device))
    batch = batch_of(torch.randint(0, shape.vocabulary_size, (1, arguments.tokens + 1), generator=torch.Generator().manual_seed(0)))
    before, rates = samples(model), [product_rate(model, arguments.tokens)]
    losses, seconds = [], []
    for step in range(arguments.steps):
        begun = time.perf_counter()
        loss = float(engine.forward_backward(batch)["loss"])
        seconds.append(time.perf_counter() - begun)
        losses.append(loss)
        print(f"step {step + 1}: loss {loss:.4f}, gradient norm {float(engine.clip(0.0)):.2f}, {seconds[-1]:.1f} s; resident at the most {peak_bytes() / GIB:.2f} GiB", flush=True)
    peak = peak_bytes()
    rates.append(product_rate(model, arguments.tokens))
    still = [name for name, values in samples(model).items() if torch.equal(values, before[name])]
    work = executed(model, arguments.tokens, modes)
    middle = sorted(seconds)[len(seconds) // 2]
    return {
        "layers": shape.layers, "parameters": total, "tokens": arguments.tokens, "optimizer": arguments.optimizer, "threads": threads, "recompute": said,
        "seconds": [round(value, 2) for value in seconds], "median_seconds": round(middle, 2), "losses": [round(value, 4) for value in losses], "peak_gib": round(peak / GIB, 2),
        "operations": work, "product_gflops": [round(rate / 1e9, 1) for rate in rates], "share": round(work / middle / max(rates), 3), "unchanged": still,
        "state_mib": round(sum(value.numel() * value.itemsize for value in engine.optimizer.state().values()) / 2**20, 1), "gpu_gib": round(on_a_gpu(model, held) / GIB, 1),
    }  # fmt: skip


def on_a_gpu(model: Decoder, activations: int) -> int:
    """Bytes that the same recipe needs on a GPU: weights, the blocks' activations, the largest matrix's gradient in float32 and its widened copy, a chunk of logits and its gradient; a
    context and the libraries' workspaces are reckoned at a gibibyte."""
    largest = max(parameter.numel() for parameter in model.parameters())
    weights = sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())
    return weights + activations + 2 * 4 * largest + 2 * 4 * 256 * model.shape.vocabulary_size + GIB


def report(found: dict[str, object]) -> None:
    falls = all(after < before for before, after in zip(found["losses"], found["losses"][1:], strict=False))
    print(f"""
| | |
| --- | --- |
| parameters, all of them trained | {found["parameters"] / 1e9:.2f} B |
| tokens a step | {found["tokens"]} |
| seconds a step (each; median) | {", ".join(map(str, found["seconds"]))}; {found["median_seconds"]} |
| memory, resident at the most | {found["peak_gib"]} GiB |
| optimizer | {found["optimizer"]}, {found["state_mib"]} MiB of state |
| recompute | {found["recompute"]} |
| operations executed a step | {found["operations"] / 1e12:.1f} T |
| products of these shapes, before and after | {found["product_gflops"][0]}, {found["product_gflops"][1]} GFLOP/s |
| share of the faster of them | {found["share"]} |
| loss on the repeated batch | {" → ".join(map(str, found["losses"]))} ({"falls" if falls else "DOES NOT FALL"}) |
| parameters that did not change | {", ".join(found["unchanged"]) or "none"} |
| the same recipe on a GPU, reckoned | {found["gpu_gib"]} GiB |
""", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=512, help="tokens of a step, in one row")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--activations", type=float, default=1.25, help="GiB that the blocks' activations may take; 0 computes all again")
    parser.add_argument("--optimizer", default="adafactor", choices=("adafactor", "lion", "sgd", "adamw_8bit"))
    parser.add_argument("--rate", type=float, default=1e-2, help="learning rate; adafactor's is a share of each matrix's size")
    parser.add_argument("--threads", type=int, default=0, help="0: one a core")
    parser.add_argument("--no-lora", action="store_true", help="leave the 4-bit LoRA step out")
    parser.add_argument("--json", type=Path, help="where the figures are written as well")
    arguments = parser.parse_args()
    found = train(arguments)
    report(found)
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if not arguments.no_lora:
        print(f"4-bit LoRA of llama-2-7b, {arguments.tokens} tokens:", flush=True)
        other = Path(__file__).with_name("quantized_step.py")
        # In this process's place, so that the model of the first half is gone: both do not fit side by side.
        os.execv(sys.executable, [sys.executable, str(other), "--sequence", str(arguments.tokens), "--steps", str(arguments.steps)])


if __name__ == "__main__":
    main()
