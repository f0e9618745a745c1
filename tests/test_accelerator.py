"""On a GPU: the same numbers as on the processor. Left out, and said so, where there is none; with one, the whole suite trains on it."""

from __future__ import annotations

import copy
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent / "adapters"))
from adapter_families import HEADS, OWN, loss, made

from luban.models.families import build_model
from luban.models.presets import preset
from luban.objectives import losses
from luban.tokens.batch import Batch

pytestmark = pytest.mark.gpu
LACKING = (("llama", "span"),)
HEADED = [(family, head) for family in OWN for head in (None, *HEADS) if head is None or (family in ("bert", "roberta", "llama", "bart") and (family, head) not in LACKING)]


@pytest.fixture(autouse=True)
def exact_products():
    """Products in float32 proper, not in TF32."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def gradients(model: torch.nn.Module, precision: torch.dtype = torch.float32) -> torch.Tensor:
    """The loss and all gradients, one after the other, on the host."""
    model.zero_grad()
    with torch.autocast(model.device.type, dtype=precision, enabled=precision != torch.float32):
        value = loss(model)
    value.backward()
    return torch.cat([value.detach().reshape(1).float().cpu(), *(parameter.grad.flatten().float().cpu() for parameter in model.parameters() if parameter.grad is not None)])


@pytest.mark.parametrize(("family", "head"), HEADED)
def test_every_family_has_the_same_loss_and_gradients(family, head):
    here = made(family)
    here = here.with_head(HEADS[head], 1) if head else here
    for module in here.modules():
        module.train(isinstance(module, torch.nn.RNNBase))  # cuDNN passes nothing back through one that does not train
    there = copy.deepcopy(here).cuda()
    expected = gradients(here)
    assert (gradients(there) - expected).norm() < 1e-4 * expected.norm()
    assert (gradients(there, torch.bfloat16) - expected).norm() < 5e-2 * expected.norm()


@pytest.mark.parametrize("width", [8, 24, 64, 200])
@pytest.mark.parametrize("name", ["tiny", "bert-tiny", "gpt2-small", "bart-tiny"])
def test_packed_documents_and_padding_at_usual_sizes(name, width):
    """Fused attention is other code at other sizes."""
    shape = preset("gpt2").updated(layers=2, hidden_size=128, heads=4) if name == "gpt2-small" else preset(name)
    model = build_model(shape.updated(vocabulary_size=64)).initialize(0).eval()
    draw = torch.Generator().manual_seed(1)
    tokens = torch.randint(3, 64, (4, width), generator=draw)
    segments = torch.arange(width).expand(4, -1) // torch.tensor([[width], [width // 2], [3], [5]])
    segments = torch.where(torch.arange(width) < torch.tensor([[width], [width - 1], [width], [width - 3]]), segments, -1).int()
    batch = Batch(tokens, tokens.roll(-1, 1), (segments >= 0).float(), torch.zeros_like(tokens), segments, [], source=tokens.flip(1), source_segments=segments.flip(1)) if model.shape.kind == "encoder_decoder" else None
    if batch is None:
        starts = F.pad(segments[:, 1:] != segments[:, :-1], (1, 0), value=True)
        places = torch.arange(width).expand(4, -1)
        positions = places - torch.where(starts, places, 0).cummax(1).values
        batch = Batch(tokens, tokens.roll(-1, 1), (segments >= 0).float(), torch.where(segments >= 0, positions, 0), segments, [])
    found = []
    for device, precision in (("cpu", torch.float32), ("cuda", torch.float32), ("cuda", torch.bfloat16)):
        moved = copy.deepcopy(model).to(device)
        with torch.autocast(device, dtype=precision, enabled=precision != torch.float32):
            total = losses.token_sum(moved, batch.to(device))
        total.backward()
        found.append(torch.cat([total.detach().reshape(1).cpu(), *(parameter.grad.flatten().cpu() for parameter in moved.parameters() if parameter.grad is not None)]))
    assert (found[1] - found[0]).norm() < 1e-4 * found[0].norm()
    assert (found[2] - found[0]).norm() < 5e-2 * found[0].norm()


def test_the_loss_in_one_piece_is_the_plain_one():
    from luban.objectives.chunks import chunked_sum

    draw = torch.Generator().manual_seed(1)
    hidden, weight = (torch.randn(size, generator=draw).cuda().requires_grad_() for size in ((500, 64), (3000, 64)))
    targets, weights = torch.randint(0, 3000, (500,), generator=draw).cuda(), torch.rand(500, generator=draw).cuda()
    expected = (F.cross_entropy(hidden @ weight.t(), targets, reduction="none") * weights).sum()
    wanted = torch.autograd.grad(expected, (hidden, weight))
    for fused in (False, True):
        found = chunked_sum(hidden, weight, None, targets, weights, 0.0, 128, fused=fused)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0.0)
        for one, other in zip(torch.autograd.grad(found, (hidden, weight)), wanted, strict=True):
            assert (one - other).norm() < 1e-4 * other.norm()
