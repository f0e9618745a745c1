"""What the tests of encoder–decoders share: a batch with padding, and both sides' answers to it."""

from __future__ import annotations

from pathlib import Path

import torch
from encoder_tools import kept_numbers, shaken
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSeq2SeqLM

from luban.models.base import Model
from luban.models.counts import activation_elements, flops_per_token, key_value_bytes, parameters
from luban.models.families import build_model
from luban.models.huggingface import load_model, save_model

VOCABULARY = 67
GENERATOR = torch.Generator().manual_seed(3)
SOURCE = torch.randint(5, VOCABULARY, (3, 11), generator=GENERATOR)
TARGET = torch.randint(5, VOCABULARY, (3, 7), generator=GENERATOR)
SEGMENTS = torch.where(torch.arange(11) < torch.tensor([[11], [6], [1]]), 0, -1)  # of the source: padded at the end


@torch.inference_mode()
def our_logits(model: Model) -> torch.Tensor:
    return model.logits(model(TARGET, source=SOURCE, source_segments=SEGMENTS))


@torch.inference_mode()
def their_logits(theirs: torch.nn.Module) -> torch.Tensor:
    return theirs.eval()(input_ids=SOURCE, attention_mask=(SEGMENTS >= 0).long(), decoder_input_ids=TARGET).logits


def same(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert theirs.std() > 0.1, "logits that say something"
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def there_and_back(theirs: torch.nn.Module, folder: Path) -> Model:
    """transformers → Luban → transformers: the same logits each time."""
    theirs.save_pretrained(folder / "theirs")
    ours = load_model(folder / "theirs")
    same(our_logits(ours), their_logits(theirs))
    save_model(ours, folder / "ours", end_ids=ours.shape.end_ids, pad_id=0)
    same(their_logits(AutoModelForSeq2SeqLM.from_pretrained(folder / "ours")), their_logits(theirs))
    assert torch.equal(our_logits(load_model(folder / "ours")), our_logits(ours))
    return ours


def back_and_there(model: Model, folder: Path) -> None:
    """Luban → transformers → Luban, and a second saving changes no byte."""
    save_model(model, folder / "first", end_ids=model.shape.end_ids, pad_id=0)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder / "first")
    same(their_logits(theirs), our_logits(model))
    again = load_model(folder / "first")
    assert again.shape == load_model(folder / "first").shape
    save_model(again, folder / "second", end_ids=again.shape.end_ids, pad_id=0)
    for file in ("config.json", "model.safetensors"):
        assert (folder / "first" / file).read_bytes() == (folder / "second" / file).read_bytes()
    theirs.save_pretrained(folder / "third")
    assert torch.equal(our_logits(load_model(folder / "third")), our_logits(model))


@torch.inference_mode()
def packed_as_alone(model: Model) -> None:
    """Three documents in one row, one of them without any source tokens, give what each gives alone."""
    sources, targets = [SOURCE[:1, :5], SOURCE[1:2, :0], SOURCE[2:3, :4]], [TARGET[:1, :4], TARGET[1:2, :3], TARGET[2:3, :6]]
    numbers = [torch.full_like(text, index) for index, text in enumerate(sources)]
    target_numbers = [torch.full_like(text, index) for index, text in enumerate(targets)]
    padding = torch.full((1, 3), -1)
    hidden = model(
        torch.cat([*targets, padding.abs()], dim=1),
        source=torch.cat([*sources, padding.abs()], dim=1),
        segments=torch.cat([*target_numbers, padding], dim=1),
        source_segments=torch.cat([*numbers, padding], dim=1),
    )
    assert hidden.isfinite().all()
    start = 0
    for index, (source, target) in enumerate(zip(sources, targets, strict=True)):
        found = hidden[:, start : start + target.shape[1]]
        start += target.shape[1]
        alone = source if source.shape[1] else torch.full((1, 2), 9)  # nothing of it is seen
        expected = model(target, source=alone, source_segments=torch.zeros_like(alone) if source.shape[1] else torch.full_like(alone, -1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5, msg=f"document {index}")


def gradients_agree(theirs: torch.nn.Module, ours: Model) -> None:
    """Every parameter gets the same gradient from the same loss, biases of positions and shared embeddings too; with ``recompute`` as well."""
    weight = torch.randn(3, 7, VOCABULARY, generator=torch.Generator().manual_seed(1))
    theirs.eval().zero_grad()
    (theirs(input_ids=SOURCE, attention_mask=(SEGMENTS >= 0).long(), decoder_input_ids=TARGET).logits * weight).sum().backward()
    expected = {ours.rename(name): parameter.grad for name, parameter in theirs.named_parameters()}
    for recompute in (False, True):
        ours.recompute = recompute
        ours.zero_grad()
        (ours.logits(ours(TARGET, source=SOURCE, source_segments=SEGMENTS)) * weight).sum().backward()
        found = {name: parameter.grad for name, parameter in ours.named_parameters() if parameter.grad is not None}
        assert found.keys() == {name for name, grad in expected.items() if grad is not None and name is not None}
        for name, grad in found.items():
            torch.testing.assert_close(grad, expected[name], atol=2e-4, rtol=1e-4, msg=name)
    ours.recompute = False


def counts_are_those_of_the_model(shape) -> None:
    """Parameters on the meta device, operations by torch's counter, activations by what autograd keeps."""
    with torch.device("meta"):
        total = sum(parameter.numel() for parameter in build_model(shape).parameters())
    assert parameters(shape)["total"] == total
    plain = shape.updated(dropout=0.0)
    model = shaken(build_model(plain).initialize(0))
    source, target = torch.randint(0, VOCABULARY, (2, 12)), torch.randint(0, VOCABULARY, (2, 9))
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.logits(model(target, source=source)).sum().backward()
    assert counter.get_total_flops() == 2 * 9 * flops_per_token(plain, 9, source_length=12)
    assert flops_per_token(plain, 9, causal=True) < flops_per_token(plain, 9) == 3 * flops_per_token(plain, 9, backward=False)
    found = kept_numbers(model, target[:, :4], source=source[:, :4]) / (2 * 4)
    assert abs(found / activation_elements(plain) - 1) < 0.06
    assert activation_elements(plain, recompute=True) < activation_elements(plain)
    cache = model.new_cache(2, 9)
    with torch.inference_mode():
        model(target, memory=model.encode(source), cache=cache.rows(0, 2))
    held = sum(block[:, :, :9].numel() for pair in cache._kept.values() for block in pair)
    assert key_value_bytes(plain, 2 * 9) == 4 * held


@torch.inference_mode()
def steps_equal_the_whole(model: Model) -> None:
    """Token by token with a cache, two rows to a source, and rows that change places: the same states as all at once."""
    memory = model.encode(SOURCE, SEGMENTS)
    whole = model(TARGET.repeat_interleave(2, 0), memory=memory, source_segments=SEGMENTS)  # [6, 7, dim]
    cache, segments = model.new_cache(6, 7), SEGMENTS
    order = list(range(6))
    for place in range(7):
        tokens = TARGET.repeat_interleave(2, 0)[order, place : place + 1]
        hidden = model(tokens, memory=memory, source_segments=segments, cache=cache.rows(0, len(order)))
        torch.testing.assert_close(hidden[:, 0], whole[order, place], atol=1e-5, rtol=1e-5)
        for slot in range(len(order)):
            cache.advance(slot, 1)
        if place == 2:
            cache.select([1, 0, 2, 2, 5, 4])
            order = [1, 0, 2, 2, 5, 4]
        if place == 4:  # the second source is finished
            cache.select([0, 1, 4, 5])
            order = [order[slot] for slot in (0, 1, 4, 5)]
            memory, segments = memory[[0, 2]], segments[[0, 2]]
