"""Tiny models of every kind with an adapter's values shaken, so that nothing can be forgotten unseen."""

from __future__ import annotations

from pathlib import Path

import torch

from luban.adapters.attached import attach
from luban.adapters.config import NAMES
from luban.foundation.config import build
from luban.models.base import Model
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model

DECODER = {"vocabulary_size": 61, "layers": 2, "hidden_size": 24, "heads": 4, "feed_forward_size": 40, "maximum_positions": 64}
FAMILIES = {
    "llama": {"architecture": "llama", **DECODER, "key_value_heads": 2, "attention_bias": True},
    "qwen3": {"architecture": "qwen3", **DECODER, "key_value_heads": 2, "head_dim": 8},
    "gpt2": {"architecture": "gpt2", **DECODER},
    "bert": {"architecture": "bert", **DECODER},
    "t5": {"architecture": "t5", **DECODER},
    "bart": {"architecture": "bart", **DECODER},
}
CLASSES = Head("sequence", "classification", ("no", "yes", "perhaps"), "single_label")


def base(family: str, folder: Path, head: Head | None = None) -> Model:
    """A model of the family with values everywhere, written to ``folder`` and read again."""
    fields = FAMILIES[family]
    model = build_model(build(family_of(fields["architecture"]).shape, fields)).initialize(3)
    shake(model, list(dict(model.named_parameters())), 0.05)
    save_model(model, folder)
    return load_model(folder, head=head, language_model=head is None)


def shake(model: Model, names: list[str], size: float = 0.2) -> None:
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for name in names:
            value = model.get_parameter(name)
            value.add_(torch.randn(value.shape, generator=generator) * size)


def adapted(family: str, folder: Path, settings: dict | str, head: Head | None = None) -> Model:
    """A base with a shaken adapter on it, in evaluation mode."""
    model = base(family, folder, head)
    given = {"method": settings} if isinstance(settings, str) else settings
    attach(model, build(NAMES[given["method"]], given), seed=7)
    shake(model, [name for name, value in model.named_parameters() if value.requires_grad])
    return model.eval()


def said(model: Model, rows: int = 2, seq: int = 9) -> torch.Tensor:
    """Logits or scores of fixed inputs."""
    tokens = torch.randint(3, 61, (rows, seq), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        if model.shape.kind == "encoder_decoder":
            source = torch.randint(3, 61, (rows, seq + 2), generator=torch.Generator().manual_seed(2))
            return model.logits(model(tokens, source=source))
        hidden = model(tokens)
        return model.scores(hidden, tokens) if model.head is not None and model.head.replaces_output else model.logits(hidden)
