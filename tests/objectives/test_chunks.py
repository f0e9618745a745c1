"""The chunked cross-entropy is torch's, in value and gradients, and holds no tensor of all tokens by the vocabulary."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from luban.models.families import build_model
from luban.models.presets import preset
from luban.objectives import losses
from luban.objectives.chunks import chunked_sum
from luban.tokens.batch import Batch


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("with_bias", [False, True])
def test_values_and_gradients_are_torchs(smoothing, with_bias):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(23, 8).double(), torch.randn(31, 8).double(), torch.randn(31).double() if with_bias else None
    targets, weights = torch.randint(0, 31, (23,)), torch.rand(23).double()
    weights[3] = 0
    given = [value.requires_grad_() for value in (hidden, weight, bias) if value is not None]
    expected = (F.cross_entropy(F.linear(hidden, weight, bias), targets, reduction="none", label_smoothing=smoothing) * weights).sum()
    wanted = torch.autograd.grad(expected * 3, given)
    for rows in (1, 5, 23, 100):
        found = chunked_sum(hidden, weight, bias, targets, weights, smoothing, rows)
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
        for one, other in zip(torch.autograd.grad(found * 3, given), wanted, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    with torch.no_grad():
        torch.testing.assert_close(chunked_sum(hidden, weight, bias, targets, weights, smoothing, 7), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.compiler
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("how", ["compiled", "own"])
def test_compiled_it_is_the_same(smoothing, how):
    torch.manual_seed(0)
    hidden, weight, bias = torch.randn(23, 8, requires_grad=True), torch.randn(31, 8, requires_grad=True), torch.randn(31, requires_grad=True)
    targets, weights = torch.randint(0, 31, (23,)), torch.rand(23)
    plain, fused = (chunked_sum(hidden, weight, bias, targets, weights, smoothing, 10, how) for how in ("torch", how))
    torch.testing.assert_close(fused, plain)
    for one, other in zip(*(torch.autograd.grad(found, (hidden, weight, bias)) for found in (plain, fused)), strict=True):
        torch.testing.assert_close(one, other)


def test_under_autocast_the_loss_keeps_its_digits():
    torch.manual_seed(0)
    hidden, weight = torch.randn(300, 8).bfloat16(), torch.randn(31, 8).bfloat16()
    targets, weights = torch.randint(0, 31, (300,)), torch.ones(300)
    expected = F.cross_entropy((hidden @ weight.t()).float(), targets, reduction="sum")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = chunked_sum(hidden.float(), weight.float(), None, targets, weights, 0.0, 100)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)


class Largest(TorchDispatchMode):
    """Bytes of the tensors alive at the same time, at the most, counted by their storages."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, operation, types, given=(), named=None):
        made = operation(*given, **(named or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.alive[storage._cdata] = (torch.multiprocessing.reductions.StorageWeakRef(storage), storage.nbytes())
        self.alive = {key: held for key, held in self.alive.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.alive.values()))
        return made


def peak(function) -> int:
    with Largest() as largest:
        function().backward()
    return largest.most


def test_the_peak_at_a_large_vocabulary_is_under_a_quarter_of_the_plain_forms():
    tokens, dim, vocabulary = 2048, 4, 16000
    hidden, weight = torch.randn(tokens, dim, requires_grad=True), torch.randn(vocabulary, dim, requires_grad=True)
    targets, weights = torch.randint(0, vocabulary, (tokens,)), torch.ones(tokens)
    plain = peak(lambda: (F.cross_entropy(F.linear(hidden, weight), targets, reduction="none") * weights).sum())
    chunked = peak(lambda: chunked_sum(hidden, weight, None, targets, weights, 0.0, losses.CHUNK_TOKENS))
    assert plain >= 2 * 4 * tokens * vocabulary
    assert chunked < plain / 4


@pytest.mark.parametrize("name", ["tiny", "bert-tiny", "t5-tiny", "bart-tiny"])
def test_each_familys_loss_is_the_same_in_chunks(name, monkeypatch):
    model = build_model(preset(name).updated(vocabulary_size=50, dropout=0.0) if name != "tiny" else preset(name).updated(vocabulary_size=50)).initialize(0).eval()
    tokens = torch.randint(5, 50, (3, 9), generator=torch.Generator().manual_seed(1))
    batch = Batch(tokens, tokens.roll(1, 1), torch.rand(3, 9), torch.arange(9).expand(3, -1), None, [], source=tokens.flip(1) if model.shape.kind == "encoder_decoder" else None)
    found = []
    for size in (1 << 20, 50 * 4):
        monkeypatch.setattr(losses, "CHUNK_LOGITS", size)
        monkeypatch.setattr(losses, "CHUNK_TOKENS", 1)
        model.zero_grad()
        loss = losses.token_sum(model, batch, 0.1)
        loss.backward()
        found.append([loss.detach(), *(parameter.grad for parameter in model.parameters() if parameter.grad is not None)])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
