"""What the tests of BERT and GPT-2 share."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch.autograd.graph import saved_tensors_hooks


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    """Random values everywhere, in biases and norms too, so that nothing can be forgotten unseen."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model.eval()


def configure(folder: Path, **changes: object) -> None:
    """Change config.json; ``...`` removes a key."""
    plain = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in plain.items() if value is not ...}))


def rewrite(folder: Path, change) -> None:
    """Change the tensors of a directory: ``change(tensors)`` gives the new ones."""
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})


def packed(lengths: list[int], padding: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Segments and positions, [1, sum of lengths + padding] each, of documents one after another."""
    segments = [index for index, length in enumerate(lengths) for _ in range(length)] + [-1] * padding
    positions = [place for length in lengths for place in range(length)] + [0] * padding
    return torch.tensor([segments], dtype=torch.int32), torch.tensor([positions])


def kept_numbers(model: torch.nn.Module, *arguments: object, **settings: object) -> float:
    """float32 numbers that autograd keeps in a forward pass, weights not counted."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        states = model(*arguments, **settings)
    assert states.requires_grad
    return sum(kept.values()) / 4
