"""Luban's own attention on a processor against torch's with a mask, in float64."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from luban.models import attention, recompute
from luban.models.families import build_model
from luban.models.presets import preset
from luban.objectives import losses
from luban.tokens.batch import Batch

pytestmark = pytest.mark.compiler
SIZES = [(1, 2, 2, 5, 8), (2, 4, 2, 37, 20), (2, 4, 4, 70, 48), (1, 2, 1, 130, 64), (1, 1, 1, 64, 130), (3, 2, 2, 1, 16)]


def documents(rows: int, seq: int, share: float) -> torch.Tensor:
    """Segments [rows, seq] of which a new one begins at every place with this chance; the last is padding."""
    found = (torch.rand(rows, seq) < share).cumsum(1)
    return torch.where(torch.arange(seq) >= seq - 2, -1, found) if share else found


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
@pytest.mark.parametrize(("batch", "heads", "groups", "seq", "size"), SIZES)
def test_values_and_gradients_are_torchs(batch, heads, groups, seq, size, share):
    torch.manual_seed(0)
    queries, keys = (torch.randn(batch, seq, count, size).transpose(1, 2).requires_grad_() for count in (heads, groups))
    values = torch.randn(batch, groups, seq, size).requires_grad_()
    segments = documents(batch, seq, share)
    mask = torch.ones(seq, seq, dtype=torch.bool).tril() & (segments[:, None, :, None] == segments[:, None, None, :])
    expected = F.scaled_dot_product_attention(queries.double(), keys.double(), values.double(), attn_mask=mask, enable_gqa=True)
    found = attention.causal_attention(queries, keys, values, attention.begins_of(segments, batch, seq))
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-6)
    above = torch.randn(expected.shape)
    for one, other in zip(*(torch.autograd.grad(made, (queries, keys, values), slope) for made, slope in ((found, above), (expected, above.double()))), strict=True):
        assert (one - other).norm() <= 2e-6 * other.norm() + 1e-5


def test_scores_far_apart_overflow_nothing():
    queries, keys = torch.full((1, 1, 40, 16), 30.0), torch.linspace(-30, 30, 40)[None, None, :, None].expand(1, 1, 40, 16).contiguous()
    values = torch.randn(1, 1, 40, 16)
    found = attention.causal_attention(queries, keys, values, torch.zeros(1, 40, dtype=torch.int32))
    torch.testing.assert_close(found, values)  # each sees itself alone: the others are e^-180 of it or less


def test_torchs_own_checks_of_an_operation():
    queries, keys, values = (torch.randn(1, 2, 9, 8, requires_grad=True) for _ in range(3))
    torch.library.opcheck(torch.ops.luban.causal_attention.default, (queries, keys, values, torch.zeros(1, 9, dtype=torch.int32), 0.3), test_utils=("test_schema", "test_autograd_registration", "test_faketensor"))


@pytest.mark.parametrize("mode", recompute.MODES)
@pytest.mark.parametrize("name", ["tiny", "moe-tiny"])
def test_a_model_learns_the_same(name, mode):
    model = build_model(preset(name).updated(vocabulary_size=64)).initialize(0)
    model.recompute = mode
    tokens = torch.randint(3, 64, (3, 50), generator=torch.Generator().manual_seed(1))
    segments = (torch.arange(50).expand(3, -1) // torch.tensor([[50], [20], [7]])).int()
    found = []
    for own in (False, True):
        model.own_attention = own
        model.zero_grad()
        for packed in (None, segments):
            losses.token_sum(model, Batch(tokens, tokens.roll(-1, 1), torch.ones(3, 50), torch.arange(50).expand(3, -1), packed, [])).backward()
        found.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None]))
    assert (found[1] - found[0]).norm() < 1e-5 * found[0].norm()


def test_the_same_bits_with_any_number_of_threads():
    torch.manual_seed(0)
    queries, keys, values = (torch.randn(3, 2, 70, 16).requires_grad_() for _ in range(3))
    found, threads = [], torch.get_num_threads()
    for count in (1, 2):
        torch.set_num_threads(count)
        made = attention.causal_attention(queries, keys, values, torch.zeros(3, 70, dtype=torch.int32))
        found.append([made, *torch.autograd.grad(made.square().sum(), (queries, keys, values))])
    torch.set_num_threads(threads)
    assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_without_a_compiler_torch_does_it(monkeypatch, capsys):
    from luban.foundation.errors import ConfigError
    from luban.training.precision import choose_attention

    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(attention, "load", attention.load.__wrapped__)
    assert choose_attention("auto", torch.device("cpu"), torch.float32) == "torch" and "g++" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="needs a compiler"):
        choose_attention("own", torch.device("cpu"), torch.float32)
