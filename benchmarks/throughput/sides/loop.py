"""A peer's model in a bare training loop: `loop.py SHAPE FAMILY [--compile] [--tuned] [--nanogpt DIR]`, with FAMILY one of transformers, litgpt, nanogpt.

As it comes: the whole step in one pass, the optimizer that the family's own script makes. Tuned by hand: micro-batches that stay in cache, freed memory kept, fused AdamW. On a GPU: bfloat16.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as functional

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shapes import SHAPES, Shape
from turns import Turns, keep_memory

GPU = torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def transformers_model(shape: Shape, asked: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    from sides.llama import config
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(config(shape))
    run = torch.compile(model) if asked.compile else model
    return model, lambda inputs, targets: functional.cross_entropy(run(inputs, use_cache=False).logits.flatten(0, 1), targets.flatten())


def litgpt_model(shape: Shape, asked: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    from litgpt import GPT, Config

    model = GPT(
        Config(
            block_size=shape.sequence, vocab_size=shape.vocabulary, padded_vocab_size=shape.vocabulary, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width,
            rotary_percentage=1.0, parallel_residual=False, bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=shape.feed_forward,
        )
    )  # fmt: skip
    model.apply(model._init_weights)  # as its own pretraining does: with torch's first values numbers too small to be normal slow it down fourfold
    model.lm_head.weight = model.transformer.wte.weight
    run = torch.compile(model) if asked.compile else model
    return model, lambda inputs, targets: functional.cross_entropy(run(inputs).flatten(0, 1), targets.flatten())


def nanogpt_model(shape: Shape, asked: argparse.Namespace) -> tuple[torch.nn.Module, Loss]:
    sys.path.insert(0, str(asked.nanogpt))
    from model import GPT, GPTConfig

    # Its feed-forward of 4 widths without a gate has as many elements as a gated one of 8/3 widths.
    model = GPT(GPTConfig(block_size=shape.sequence, vocab_size=shape.vocabulary, n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, dropout=0.0, bias=False))
    run = torch.compile(model) if asked.compile else model
    return model, lambda inputs, targets: run(inputs, targets)[1]


FAMILIES = {"transformers": transformers_model, "litgpt": litgpt_model, "nanogpt": nanogpt_model}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("family", choices=FAMILIES)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--tuned", action="store_true")
    parser.add_argument("--nanogpt", type=Path)
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    if asked.tuned:
        keep_memory()
    torch.manual_seed(1)
    turns = Turns({"parameters": 0}, wait=torch.cuda.synchronize if GPU else lambda: None)
    with torch.device(DEVICE):
        model, loss_of = FAMILIES[asked.family](shape, asked)
    turns.facts["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    if asked.family == "nanogpt" and not asked.tuned:
        optimizer = model.configure_optimizers(0.1, 1e-3, (0.9, 0.95), DEVICE)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    data = torch.randint(shape.vocabulary, (64, shape.rows, shape.sequence + 1))
    rows = shape.micro_rows if asked.tuned else shape.rows
    number = 0
    while turns.begin():
        for part in data[number % len(data)].split(rows):
            part = part.to(DEVICE, non_blocking=True)
            with torch.autocast("cuda", dtype=torch.bfloat16, enabled=GPU):
                loss = loss_of(part[:, :-1].contiguous(), part[:, 1:].contiguous())
            (loss * (len(part) / shape.rows)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        number += 1
        turns.end()


if __name__ == "__main__":
    main()
