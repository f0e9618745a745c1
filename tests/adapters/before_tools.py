"""What the tests of prompts and of prefixes share: packed rows, writing token by token, and peft's own models."""

from __future__ import annotations

import asyncio

import torch
from peft import PeftModel
from test_lora import opened, theirs

from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.engine import Engine
from luban.inference.seq2seq import generate_from
from luban.serving.metrics import Metrics
from luban.serving.worker import ModelThread, Sequence

TEXTS = [[5, 9, 11, 30, 8], [17, 4, 4], [44, 45, 46, 47, 48, 49, 50]]
PACKED = torch.tensor([[*TEXTS[0], *TEXTS[1], 0, 0], [0, *TEXTS[2], 0, 0]])
SEGMENTS = torch.tensor([[0] * 5 + [1] * 3 + [-1] * 2, [-1] + [0] * 7 + [-1] * 2])
PLACES = [(0, slice(0, 5)), (0, slice(5, 8)), (1, slice(1, 8))]  # where the texts stand
TARGETS = [[3, 7, 9], [12, 13, 14, 15], [21]]
PACKED_TARGETS, TARGET_SEGMENTS = torch.tensor([[3, 7, 9, 12, 13, 14, 15, 0], [21, 0, 0, 0, 0, 0, 0, 0]]), torch.tensor([[0] * 3 + [1] * 4 + [-1], [0] + [-1] * 7])
TARGET_PLACES = [(0, slice(0, 3)), (0, slice(3, 7)), (1, slice(0, 1))]


class Numbers:
    """A tokenizer of numbers: what an engine asks of one."""

    stop_ids: tuple = ()
    begin_of_text_id, end_of_text_id = None, 2

    class Stream:
        def push(self, token):
            return f"{token} "

        def flush(self):
            return ""

    def stream(self):
        return self.Stream()

    def encode(self, text):
        return [int(word) for word in text.split()]


@torch.no_grad()
def alone(model, before=()) -> list[torch.Tensor]:
    """The states of each text by itself (of an encoder–decoder: of its target), with ``before`` in front of what the prompt stands in front of."""
    before = list(before)
    if model.shape.kind == "encoder_decoder":
        return [model(torch.tensor([target]), source=torch.tensor([before + text]))[0] for text, target in zip(TEXTS, TARGETS, strict=True)]
    return [model(torch.tensor([before + text]))[0, len(before) :] for text in TEXTS]


def packed(model) -> list[torch.Tensor]:
    """The same of the texts packed into rows."""
    if model.shape.kind == "encoder_decoder":
        hidden = model(PACKED_TARGETS, source=PACKED, source_segments=SEGMENTS, segments=TARGET_SEGMENTS)
        return [hidden[row, columns] for row, columns in TARGET_PLACES]
    hidden = model(PACKED, segments=SEGMENTS)
    return [hidden[row, columns] for row, columns in PLACES]


def same(found, wanted, exact=1e-5) -> None:
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, atol=exact, rtol=exact)


@torch.no_grad()
def greedy(model, text: list[int], count: int) -> list[int]:
    """Written without a cache: the whole text is read for each token."""
    ids = list(text)
    for _ in range(count):
        ids.append(int(model.logits(model(torch.tensor([ids]))[0, -1]).argmax()))
    return ids[len(text) :]


def check_writing(model, count: int = 8) -> list[list[int]]:
    """A decoder writes the same without a cache, alone, in a batch whose requests come and go, and served; those answers."""
    wanted = [greedy(model, text, count) for text in TEXTS]
    sampling = SamplingConfig(temperature=0, maximum_tokens=count)
    engine = Engine(model, Numbers(), slots=1)
    assert [_answer(engine, text, sampling) for text in TEXTS] == wanted  # one after the other in one slot
    engine = Engine(model, Numbers(), slots=2)
    short = SamplingConfig(temperature=0, maximum_tokens=count // 2)
    requests = [engine.submit(text, short if number % 2 else sampling) for number, text in enumerate([*TEXTS, *TEXTS])]
    engine.run()
    assert [request.ids for request in requests] == [answer[: count // 2] if number % 2 else answer for number, answer in enumerate([*wanted, *wanted])]
    assert asyncio.run(_served(model, sampling)) == wanted
    return wanted


def _answer(engine, text, sampling) -> list[int]:
    request = engine.submit(text, sampling)
    engine.run()
    return request.ids


async def _served(model, sampling) -> list[list[int]]:
    thread = ModelThread(lambda: Engine(model, Numbers(), slots=2), 2, Metrics("tiny", 2))
    thread.start()
    channel: asyncio.Queue = asyncio.Queue()
    sequences = [Sequence(number, text, sampling, channel, asyncio.get_running_loop()) for number, text in enumerate(TEXTS)]
    try:
        for sequence in sequences:
            thread.submit(sequence)
        open_ones = len(sequences)
        while open_ones:
            _, piece = await asyncio.wait_for(channel.get(), 20)
            assert piece.error is None
            open_ones -= piece.finish_reason is not None
    finally:
        thread.stop()
    return [sequence.request.ids for sequence in sequences]


def peft_writes(folder, family, count: int = 8) -> list[list[int]]:
    """What peft's model with the adapter in ``folder``/adapter writes greedily to each text."""
    model = PeftModel.from_pretrained(opened(folder / "base", family), folder / "adapter").eval()
    answers = []
    for text in TEXTS:
        ids = torch.tensor([text])
        settings = {"max_new_tokens": count, "do_sample": False, "eos_token_id": None, "forced_eos_token_id": None, "num_beams": 1}
        made = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **settings)[0].tolist()
        answers.append(made[1:] if model.config.is_encoder_decoder else made[len(text) :])
    return answers


def we_write(model, count: int = 8) -> list[list[int]]:
    """An encoder–decoder's greedy texts, all sources side by side; equal to each alone."""
    settings = GenerationConfig(maximum_tokens=count, temperature=0)
    made = generate_from(model, TEXTS, settings, end_ids=[])
    assert made == [generate_from(model, [text], settings, end_ids=[])[0] for text in TEXTS]
    beams = settings.updated(beams=3)
    assert generate_from(model, TEXTS, beams, end_ids=[]) == [generate_from(model, [text], beams, end_ids=[])[0] for text in TEXTS]
    return made


def peft_says(folder, family, head=None) -> torch.Tensor:
    """Logits of peft's model for the fixed inputs, those of the text's places."""
    found = theirs(PeftModel.from_pretrained(opened(folder / "base", family, head), folder / "adapter"))
    return found[:, -9:] if found.dim() == 3 else found
