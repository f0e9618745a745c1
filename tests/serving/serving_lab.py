"""Tiny models on disk and a real server process for them."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers

from luban.models.decoder import Decoder
from luban.models.huggingface import save_model
from luban.models.shape import ShapeConfig
from luban.tokenizer.decoding import byte_of_character
from luban.tokenizer.templates import CHATML
from luban.tokenizer.tokenizer import Tokenizer

SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXTS = ["What is this? It is a small model.", "春眠不觉晓，处处闻啼鸟。", "床前明月光，疑是地上霜。", "To be, or not to be, that is the question."]


def make_tokenizer(folder: Path, chat: bool = True) -> Tokenizer:
    core = Core(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    core.train_from_iterator(TEXTS, trainer)
    tokenizer = Tokenizer(core, {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"} | ({"chat_template": CHATML} if chat else {}))
    tokenizer.save(folder)
    return tokenizer


def make_model(folder: Path, *, chat: bool = True, maximum_positions: int = 4096) -> Path:
    """A random decoder of two layers in a Hugging Face directory. Greedily it never ends: control tokens have logit zero."""
    tokenizer = make_tokenizer(folder, chat)
    shape = ShapeConfig(
        vocabulary_size=tokenizer.vocabulary_size, layers=2, hidden_size=32, heads=2, maximum_positions=maximum_positions, tied_embeddings=False, initializer_deviation=0.5
    )
    model = Decoder(shape).initialize(7)
    with torch.no_grad():
        model.lm_head.weight[list(tokenizer.special_ids.values())] = 0
    save_model(model, folder)
    return folder


# What follows each byte: emoji U+1F603 to 1F60F, rare Han characters U+20083 to 2008F and U+4DB5, each a token a byte.
NEXT_BYTES = {0xF0: (0x9F, 0xA0), 0x9F: (0x98,), 0xA0: (0x82,), 0x98: tuple(range(0x83, 0x90)), 0x82: tuple(range(0x83, 0x90)), 0xE4: (0xB6,), 0xB6: (0xB5,)}


def make_scribe(folder: Path) -> Path:
    """A model that writes valid UTF-8 made of emoji and rare characters byte by byte, and ends a turn now and then.

    Its layers add nothing, its embedding is the identity, and its output matrix is the table above: a Markov chain.
    """
    tokenizer = make_tokenizer(folder)
    size = tokenizer.vocabulary_size + tokenizer.vocabulary_size % 2
    shape = ShapeConfig(vocabulary_size=size, layers=1, hidden_size=size, heads=1, maximum_positions=512, tied_embeddings=False)
    model = Decoder(shape).initialize(1)
    id_of = {byte: tokenizer.core.token_to_id(character) for character, byte in byte_of_character().items()}
    table = torch.zeros(size, size)  # [next, current]
    for current in range(size):
        table[[id_of[0xF0], id_of[0xE4]], current] = 3.0
        table[tokenizer.special_ids["<|im_end|>"], current] = 2.85
    for byte, following in NEXT_BYTES.items():
        table[:, id_of[byte]] = 0
        table[[id_of[other] for other in following], id_of[byte]] = 3.0
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        model.model.embed_tokens.weight.copy_(torch.eye(size))
        model.lm_head.weight.copy_(table)
    save_model(model, folder)
    return folder


# Servers are forked from a process that has torch loaded: each is a process of its own, started in milliseconds.
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(["luban.serving.stage", "luban.serving.server", "luban.inference.ensemble", "torch._dynamo"])  # the last: building on the meta device imports it

LOGS = tempfile.TemporaryDirectory(prefix="luban-serving-")
NUMBERS = itertools.count()


def _serve(settings: dict, stderr: str) -> None:
    """The whole life of a server process, its messages in the file ``stderr``."""
    from luban.foundation.messages import set_language

    sys.stderr.flush()
    os.dup2(os.open(stderr, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), 2)
    sys.stderr = os.fdopen(2, "w", buffering=1, encoding="utf-8", closefd=False)
    set_language("en")
    torch.set_num_threads(1)
    from luban.foundation.artifacts import Work
    from luban.foundation.config import build
    from luban.serving.config import ServeConfig
    from luban.serving.stage import run

    config = build(ServeConfig, settings)
    adapters = list(map(Path, config.adapters))
    run(config, Work(Path(), {"model": Path(config.model), "adapters": adapters}))


class RunningServer:
    """The serve stage as a process of its own."""

    def __init__(self, model: Path, **settings: object):
        self.log = Path(LOGS.name) / f"{next(NUMBERS)}.log"
        self.log.touch()
        self.process = FORKS.Process(target=_serve, args=({"model": str(model), "port": 0, "name": "tiny", **settings}, str(self.log)), daemon=True)
        self.process.start()
        self.url = ""
        deadline = time.monotonic() + 90
        while not self.url and self.process.is_alive() and time.monotonic() < deadline:
            time.sleep(0.01)
            if match := re.search(r"page: (http\S+)/", self.log.read_text(encoding="utf-8")):
                self.url = match.group(1)
        assert self.url, "\n".join(self.lines)

    @property
    def lines(self) -> list[str]:
        """What it has printed."""
        return self.log.read_text(encoding="utf-8").splitlines()

    def metric(self, name: str, **labels: str) -> float:
        """The value of one sample of /metrics; 0 if it is not there."""
        for line in httpx.get(self.url + "/metrics").text.splitlines():
            found, _, value = line.rpartition(" ")
            if found.partition("{")[0] == name and all(f'{key}="{text}"' in found for key, text in labels.items()):
                return float(value)
        return 0.0

    def wait_for(self, condition: Callable[[], bool], seconds: float = 10.0) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.01)

    def send_signal(self, sig: int) -> None:
        os.kill(self.process.pid, sig)

    def wait(self, seconds: float = 20) -> int | None:
        """The exit status; None if it still runs."""
        self.process.join(timeout=seconds)
        return self.process.exitcode

    def stop(self, sig: int = signal.SIGTERM) -> int | None:
        if self.process.is_alive():
            self.send_signal(sig)
        return self.wait()
