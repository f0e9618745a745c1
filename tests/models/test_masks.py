"""Masks against brute force, pair by pair; and that all layers read one."""

from __future__ import annotations

import pytest
import torch

from luban.foundation.config import build
from luban.models.families import build_model, family_of
from luban.models.masks import added, mask_of


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("with_prefix", [False, True])
@pytest.mark.parametrize("causal", [True, False])
def test_masks_are_those_of_brute_force(window, with_prefix, causal):
    torch.manual_seed(0)
    total, own = 12, slice(5, 10)
    segments = torch.tensor([[0] * 4 + [1] * 5 + [-1] * 3, [0] * 12]) if not with_prefix else None
    prefix = torch.rand(2, total) < 0.4 if with_prefix else None
    places = torch.arange(total)
    parts = [(None, None) if whole is None else (whole[:, own], whole) for whole in (segments, prefix)]
    found = mask_of(places[own], places, *parts[0], *parts[1], window, causal)
    for row in range(len(found)):
        for query in range(5, 10):
            for key in range(total):
                sees = (not causal or key <= query) or (with_prefix and bool(prefix[row, query] and prefix[row, key]))
                sees = sees and (window is None or abs(query - key) < window) and (segments is None or segments[row, query] == segments[row, key])
                assert bool(found[row, query - 5, key]) == sees, (row, query, key)


def test_what_is_added_does_what_a_mask_does_and_is_as_wide_as_attention():
    mask = torch.ones(2, 1, 4, 4, dtype=torch.bool).tril()
    assert added(mask, torch.float64).dtype == torch.float64
    with torch.autocast("cpu", torch.bfloat16):
        assert added(mask, torch.float32).dtype == torch.bfloat16 and added(mask, torch.float64).dtype == torch.float64
    with torch.no_grad():
        assert added(mask, torch.float32) is mask
    assert ((added(mask, torch.float32) == 0) == mask).all() and added(None, torch.float32) is None


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "bert"])
def test_layers_keep_one_mask_between_them(architecture):
    fields = {"architecture": architecture, "layers": 3, "hidden_size": 32, "heads": 2, "vocabulary_size": 64, "maximum_positions": 40}
    model = build_model(build(family_of(architecture).shape, fields).resolved())
    model.own_attention = False
    model.eval()
    kept = {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.shape == (2, 1, 40, 40):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    tokens, segments = torch.randint(64, (2, 40)), torch.arange(40).expand(2, -1).div(7, rounding_mode="floor").int()
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(tokens, segments=segments).sum().backward()
    assert len(kept) == 1
