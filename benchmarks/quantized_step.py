"""Memory and time of a LoRA step on a quantised base with random weights.

    python benchmarks/quantized_step.py                                  # llama-2-7b in nf4: one step of 128 tokens; some minutes, 8 GiB
    python benchmarks/quantized_step.py --shape smollm2-135m --format int8
    python benchmarks/quantized_step.py --pair                           # against peft's float32 LoRA on transformers' model, a small shape

The weights are drawn and quantised tensor by tensor, so that the float model never exists. The adapter is Luban's LoRA, rank 8 on q and v.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.foundation.config import build
from luban.models.families import build_model
from luban.models.presets import preset
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized import QuantizedLinear
from luban.models.quantized_model import quantized_layers, random_quantized
from luban.models.shape import ShapeConfig

SMALL = {"vocabulary_size": 4096, "layers": 8, "hidden_size": 1024, "heads": 16, "feed_forward_size": 2816, "maximum_positions": 512, "tied_embeddings": True}
GIB = 2**30


def add_lora(model: nn.Module) -> list[nn.Parameter]:
    attach(model, LoraConfig(rank=8, targets=["q_proj", "v_proj"]), seed=0)
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def bytes_of(model: nn.Module) -> int:
    return sum(parameter.numel() * parameter.itemsize for parameter in model.parameters())


def peak_bytes() -> int:
    """Most bytes so far of this program: reserved on the GPU where it uses one, else resident; Linux's own count, as ``getrusage`` also holds what stood here before the program was started."""
    if torch.cuda.is_initialized():
        return torch.cuda.max_memory_reserved()
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def step(model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> float:
    logits = model.logits(model(tokens[:, :-1])).float()
    loss = F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    return loss.item()


def one_step(arguments: argparse.Namespace) -> None:
    """One shape by itself: how large, how long, how much memory at the most."""
    config = build(QuantizationConfig, {"format": arguments.format})
    shape = preset(arguments.shape)
    print(f"threads {torch.get_num_threads()}; before: {peak_bytes() / GIB:.2f} GiB", flush=True)
    start = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = random_quantized(shape, config, seed=0, dtype=getattr(torch, arguments.dtype)).to(device)
    drawn = time.perf_counter() - start
    held = sum(bytes_of(layer) for layer in quantized_layers(model).values())
    print(f"drawn and quantised in {drawn:.0f} s: {bytes_of(model) / GIB:.2f} GiB, {held / GIB:.2f} of them quantised; peak {peak_bytes() / GIB:.2f} GiB", flush=True)
    model.recompute = True
    learned = add_lora(model)
    model.train()
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    tokens = torch.randint(0, shape.vocabulary_size, (1, arguments.sequence + 1), generator=torch.Generator().manual_seed(0)).to(device)
    for number in range(arguments.steps):
        start = time.perf_counter()
        with torch.autocast(device, dtype=torch.bfloat16, enabled=device == "cuda"):
            loss = step(model, optimizer, tokens)
        seconds, learning = time.perf_counter() - start, sum(parameter.numel() for parameter in learned) / 1e6
        print(f"step {number}: loss {loss:.4f}, {seconds:.1f} s, {learning:.1f}M parameters learn; peak {peak_bytes() / GIB:.2f} GiB", flush=True)


def make_side(side: str) -> tuple[nn.Module, list[nn.Parameter]]:
    """peft's float32 LoRA on transformers' Llama, or LoRA on Luban's model in float32 or quantised."""
    torch.manual_seed(0)
    shape = build(ShapeConfig, SMALL)
    if side == "peft":
        import peft
        import transformers

        model = transformers.LlamaForCausalLM(
            transformers.LlamaConfig(
                vocab_size=SMALL["vocabulary_size"], num_hidden_layers=SMALL["layers"], hidden_size=SMALL["hidden_size"], num_attention_heads=SMALL["heads"],
                intermediate_size=SMALL["feed_forward_size"], max_position_embeddings=SMALL["maximum_positions"], tie_word_embeddings=True, use_cache=False,
            )
        )  # fmt: skip
        model = peft.get_peft_model(model, peft.LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"]))
        return model, [parameter for parameter in model.parameters() if parameter.requires_grad]
    model = build_model(shape).initialize(0) if side == "float32" else random_quantized(shape, build(QuantizationConfig, {"format": side}), 0)
    return model, add_lora(model)


def run_side(side: str, model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    if side == "peft":
        logits = model(input_ids=tokens[:, :-1]).logits.float()
        F.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        optimizer.step()
        optimizer.zero_grad()
    else:
        step(model, optimizer, tokens)


def pair(rounds: int) -> None:
    """Steps of 2 rows of 128 tokens, the sides by turns in one process, in seconds of processor time; then the peak of each in a process of its own."""
    sides = {side: make_side(side) for side in ("peft", "float32", "nf4", "int4", "int8")}
    tokens = torch.randint(0, SMALL["vocabulary_size"], (2, 129), generator=torch.Generator().manual_seed(0))
    optimizers = {side: torch.optim.AdamW(learned, lr=1e-3) for side, (_, learned) in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 1):
        for side, (model, _) in sides.items():
            start = time.process_time()
            run_side(side, model, optimizers[side], tokens)
            if number:
                seconds[side].append(time.process_time() - start)
    middle = {side: sorted(times)[len(times) // 2] for side, times in seconds.items()}
    for side, (model, _) in sides.items():
        found = json.loads(subprocess.run([sys.executable, __file__, "--side", side], check=True, capture_output=True, text=True).stdout)
        print(
            f"{side:8s} step {middle[side]:.3f} s ({middle[side] / middle['peft']:.2f} of peft's), weights {bytes_of(model) / 2**20:.0f} MiB, "
            f"peak of the step above what the imports take {found['peak'] / 2**20:.0f} MiB"
        )


def peak_of(side: str) -> None:
    if side == "peft":
        import peft  # noqa: F401
        import transformers  # noqa: F401
    before = peak_bytes()
    model, learned = make_side(side)
    optimizer = torch.optim.AdamW(learned, lr=1e-3)
    tokens = torch.randint(0, SMALL["vocabulary_size"], (2, 129), generator=torch.Generator().manual_seed(0))
    for _ in range(2):
        run_side(side, model, optimizer, tokens)
    print(json.dumps({"peak": peak_bytes() - before}))


def products(rounds: int) -> None:
    """One matrix [4096, 4096]: forward and backward of the quantised product against a float one, by the number of tokens, in processor time."""
    linear = nn.Linear(4096, 4096, bias=False).requires_grad_(False)
    holder = {"float32": linear}
    for name in ("nf4", "int4", "int8"):
        holder[name] = QuantizedLinear.from_linear(linear, build(QuantizationConfig, {"format": name}))
    for tokens in (1, 16, 128, 1024):
        best = {}
        for name, layer in holder.items():
            times = []
            for _ in range(rounds):
                states = torch.randn(tokens, 4096, requires_grad=True)
                start = time.process_time()
                made = layer(states)
                between = time.process_time()
                made.backward(made.detach())
                times.append((between - start, time.process_time() - between))
            best[name] = [min(part) for part in zip(*times, strict=True)]
        shown = (f"{name} {1e3 * forward:.1f} + {1e3 * backward:.1f} ms" for name, (forward, backward) in best.items())
        print(f"{tokens:5d} tokens: " + "; ".join(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="llama-2-7b")
    parser.add_argument("--format", default="nf4", choices=("nf4", "int4", "int8"))
    parser.add_argument("--dtype", default="float32", help="type of all that is not quantised; bfloat16 halves embedding and output matrix")
    parser.add_argument("--sequence", type=int, default=128)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--pair", action="store_true", help="against peft at a small shape")
    parser.add_argument("--products", action="store_true", help="one matrix by itself")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--side", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        peak_of(arguments.side)
    elif arguments.pair:
        pair(arguments.rounds)
    elif arguments.products:
        products(arguments.rounds)
    else:
        one_step(arguments)


if __name__ == "__main__":
    main()
