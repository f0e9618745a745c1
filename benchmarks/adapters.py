"""Time and memory of a training step with an adapter, beside peft's on the same weights.

    python benchmarks/adapters.py                       # every method that both have
    python benchmarks/adapters.py --methods lora,dora --rounds 15

Both sides in one process, by turns, in processor time of forward pass, backward pass and AdamW's step; each side's peak of memory is the least of three
processes of its own. Both compute the loss in the same way, from the logits of the whole batch.
"""

from __future__ import annotations

import argparse
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.foundation.config import build
from luban.models.families import build_model
from luban.models.huggingface import load_model, save_model
from luban.models.shape import ShapeConfig

SHAPE = {"vocabulary_size": 4096, "layers": 6, "hidden_size": 512, "heads": 8, "feed_forward_size": 1408, "maximum_positions": 256, "tied_embeddings": True}
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
METHODS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {  # ours, peft's class, its settings
    "lora": ({"rank": 8}, "LoraConfig", {"r": 8, "lora_alpha": 16, "target_modules": TARGETS}),
    "rslora": ({"rank": 8}, "LoraConfig", {"r": 8, "lora_alpha": 16, "use_rslora": True, "target_modules": TARGETS}),
    "dora": ({"rank": 8}, "LoraConfig", {"r": 8, "lora_alpha": 16, "use_dora": True, "target_modules": TARGETS}),
    "vera": ({"rank": 64}, "VeraConfig", {"r": 64, "target_modules": ["q_proj", "v_proj"]}),
    "ia3": ({}, "IA3Config", {"target_modules": ["k_proj", "v_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "adalora": ({"rank": 8, "initial_rank": 12}, "AdaLoraConfig", {"target_r": 8, "init_r": 12, "lora_alpha": 24, "target_modules": TARGETS, "total_step": 1000}),
    "prefix": ({"tokens": 20}, "PrefixTuningConfig", {"num_virtual_tokens": 20, "task_type": "CAUSAL_LM"}),
    "prompt": ({"tokens": 20}, "PromptTuningConfig", {"num_virtual_tokens": 20, "task_type": "CAUSAL_LM"}),
}


def make_side(side: str, method: str, folder: Path) -> nn.Module:
    """Luban's or peft's model with the adapter, from one base on disk."""
    own, name, theirs = METHODS[method]
    if side == "luban":
        model = load_model(folder)
        targets = {"targets": ["q_proj", "v_proj"]} if method == "vera" else {}
        attach(model, build(NAMES[method], {"method": method, **own, **targets}), seed=0)
        return model.train()
    import peft
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False
    return peft.get_peft_model(model, getattr(peft, name)(**theirs)).train()


def step(side: str, model: nn.Module, optimizer: torch.optim.Optimizer, tokens: Tensor) -> None:
    inputs, targets = tokens[:, :-1], tokens[:, 1:]
    logits = model.logits(model(inputs)) if side == "luban" else model(input_ids=inputs).logits[:, -inputs.shape[1] :]
    F.cross_entropy(logits.flatten(0, 1), targets.flatten()).backward()
    optimizer.step()
    optimizer.zero_grad()


def learning(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def pair(method: str, folder: Path, tokens: Tensor, rounds: int) -> None:
    """Print one row: medians by turns, their ratio with its quartiles over the rounds, and both peaks."""
    sides = {side: make_side(side, method, folder) for side in ("luban", "peft")}
    optimizers = {side: torch.optim.AdamW(learning(model), lr=1e-4, fused=True) for side, model in sides.items()}
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(rounds + 2):
        for side in sorted(sides, reverse=bool(number % 2)):
            begun = time.process_time()
            step(side, sides[side], optimizers[side], tokens)
            if number > 1:
                seconds[side].append(time.process_time() - begun)
    ratios = sorted(theirs / own for own, theirs in zip(seconds["luban"], seconds["peft"], strict=True))
    middle = {side: sorted(times)[len(times) // 2] for side, times in seconds.items()}
    peaks = {side: min(one_peak(side, method, folder) for _ in range(3)) for side in sides}
    counts = " / ".join(f"{sum(value.numel() for value in learning(sides[side])):,}" for side in ("luban", "peft"))
    print(
        f"| {method} | {counts} | {1e3 * middle['luban']:.0f} / {1e3 * middle['peft']:.0f} | {ratios[len(ratios) // 2]:.2f} [{ratios[len(ratios) // 4]:.2f}, {ratios[-1 - len(ratios) // 4]:.2f}] "
        f"| {peaks['luban'] / 2**20:.0f} / {peaks['peft'] / 2**20:.0f} |",
        flush=True,
    )


def one_peak(side: str, method: str, folder: Path) -> int:
    """:func:`peak` in a process of its own."""
    told = subprocess.run([sys.executable, __file__, "--side", side, "--methods", method, "--folder", str(folder)], check=True, capture_output=True, text=True)
    return json.loads(told.stdout)["peak"]


def peak(side: str, method: str, folder: Path, tokens: Tensor) -> None:
    """Print the most memory that steps hold, with the model, above what the imports take; what opening the model held for a moment is left out."""
    import peft  # noqa: F401
    import transformers  # noqa: F401

    before = peak_bytes()
    model = make_side(side, method, folder)
    optimizer = torch.optim.AdamW(learning(model), lr=1e-4, fused=True)
    step(side, model, optimizer, tokens)
    Path("/proc/self/clear_refs").write_text("5")  # the mark of the peak begins anew
    for _ in range(3):
        step(side, model, optimizer, tokens)
    print(json.dumps({"peak": peak_bytes() - before}))


def peak_bytes() -> int:
    return next(int(line.split()[1]) * 1024 for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--side", default="")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    tokens = torch.randint(0, SHAPE["vocabulary_size"], (8, 129), generator=torch.Generator().manual_seed(0))
    if asked.side:
        peak(asked.side, asked.methods, asked.folder, tokens)
        return
    from importlib.metadata import version

    print(f"{platform.processor() or platform.machine()}, {asked.threads} thread(s); " + ", ".join(f"{name} {version(name)}" for name in ("torch", "transformers", "peft")))
    print("| method | parameters that learn, Luban / peft | step, ms | peft over Luban [quartiles] | peak, MiB |\n| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as folder:
        save_model(build_model(build(ShapeConfig, {"architecture": "llama", **SHAPE})).initialize(0), Path(folder))
        for method in asked.methods.split(","):
            pair(method, Path(folder), tokens, asked.rounds)


if __name__ == "__main__":
    main()
