"""A tiny model of every family of Luban's own, and one of transformers'; what is asked of each in a step of training."""

from __future__ import annotations

import torch
import torch.nn.functional as F

from luban.foundation.config import build
from luban.models.base import Model
from luban.models.families import build_model, family_of
from luban.models.heads import Head

SIZE = {"vocabulary_size": 61, "hidden_size": 16, "layers": 2, "maximum_positions": 32}
DEEP = {**SIZE, "heads": 2, "feed_forward_size": 24}
EXPERTS = {**DEEP, "experts": 3, "experts_per_token": 2}
OWN = {
    "llama": {"architecture": "llama", **DEEP, "key_value_heads": 1},
    "qwen2": {"architecture": "qwen2", **DEEP},
    "qwen3": {"architecture": "qwen3", **DEEP, "head_dim": 8},
    "mistral": {"architecture": "mistral", **DEEP},
    "gpt2": {"architecture": "gpt2", **DEEP},
    "bert": {"architecture": "bert", **DEEP},
    "roberta": {"architecture": "roberta", **DEEP},
    "mixtral": {"architecture": "mixtral", **EXPERTS},
    "qwen2_moe": {"architecture": "qwen2_moe", **EXPERTS, "expert_size": 12, "shared_expert_size": 12},
    "qwen3_moe": {"architecture": "qwen3_moe", **EXPERTS, "expert_size": 12, "dense_layers": [0]},
    "lstm": {"architecture": "luban-lstm", **SIZE, "cell_size": 20},
    "bilstm": {"architecture": "luban-bilstm", **SIZE, "cell": "gru"},
    "t5": {"architecture": "t5", **DEEP},
    "bart": {"architecture": "bart", **DEEP},
    "marian": {"architecture": "marian", **DEEP},
    "recurrent": {"architecture": "luban-recurrent", **SIZE, "layers": 1, "decoder_layers": 2},
    "recurrent_dot": {"architecture": "luban-recurrent", **SIZE, "layers": 1, "attention": "dot"},
}
HEADS = {
    "sequence": Head("sequence", "classification", ("no", "yes", "perhaps"), "single_label"),
    "token": Head("token", "tagging", ("O", "B-X", "I-X")),
    "span": Head("span", "question_answering"),
    "vector": Head("vector", "embedding"),
}


def made(family: str) -> Model:
    """A model with values everywhere, never trained."""
    fields = OWN[family]
    model = build_model(build(family_of(fields["architecture"]).shape, fields)).initialize(3)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return model


def outputs(model: Model) -> torch.Tensor:
    """Logits or scores of fixed inputs, among them padding and two documents in a row where the family knows them."""
    tokens = torch.randint(3, 61, (2, 7), generator=torch.Generator().manual_seed(1)).to(model.device)
    segments = torch.tensor([[0] * 7, [0] * 5 + [-1] * 2], device=model.device)
    if model.head is not None and model.head.replaces_output:
        return model.scores(model(tokens, segments=segments), tokens, segments)
    if model.shape.kind == "encoder_decoder":
        source = torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(2)).to(model.device)
        return model.logits(model(tokens, source=source, segments=segments, source_segments=torch.zeros_like(source)))
    return model.logits(model(tokens, segments=segments))


def loss(model: Model) -> torch.Tensor:
    """Cross-entropy with fixed targets; of vectors their distance from fixed ones."""
    found = outputs(model)
    flat = found.flatten(0, -2) if found.dim() > 2 else found
    generator = torch.Generator().manual_seed(4)
    if model.head is not None and model.head.structure == "vector":
        return (flat - torch.randn(flat.shape, generator=generator).to(flat)).square().mean()
    return F.cross_entropy(flat, torch.randint(0, flat.shape[-1], (len(flat),), generator=generator).to(flat.device))
