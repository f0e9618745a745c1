"""A tiny model on disk and a real server process for it."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers

from luban.inference.generate import LoadedModel
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


class RunningServer:
    """`luban serve` as a process of its own."""

    def __init__(self, model: Path, **settings: object):
        code = (
            "import json,sys; from pathlib import Path; import torch; torch.set_num_threads(1)\n"
            "from luban.foundation.artifacts import Work; from luban.foundation.config import build\n"
            "from luban.serving.config import ServeConfig; from luban.serving.stage import run\n"
            "config = build(ServeConfig, json.loads(sys.argv[1]))\n"
            "run(config, Work(Path('.'), {'model': Path(config.model)}))"
        )
        given = json.dumps({"model": str(model), "port": 0, "name": "tiny", **settings})
        environment = {**os.environ, "LC_ALL": "C.UTF-8"}
        self.process = subprocess.Popen([sys.executable, "-c", code, given], stderr=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self.url = ""
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()
        deadline = time.monotonic() + 60
        while not self.url and self.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        assert self.url, "\n".join(self.lines)

    def _read(self) -> None:
        assert self.process.stderr
        for line in self.process.stderr:
            self.lines.append(line.rstrip())
            if match := re.search(r"chat page: (http\S+)/", line):
                self.url = match.group(1)

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

    def stop(self, sig: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(sig)
        code = self.process.wait(timeout=20)
        self.reader.join(timeout=5)
        return code


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The same model in this process: the truth that HTTP answers are compared with."""
    return LoadedModel.load(model_folder)


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(model_folder)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture
def start(model_folder: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start a server with other settings; what a test leaves running is ended."""
    started: list[RunningServer] = []

    def begin(model: Path = model_folder, **settings: object) -> RunningServer:
        started.append(RunningServer(model, **settings))
        return started[-1]

    yield begin
    for running in started:
        if running.process.poll() is None:
            running.process.kill()
            running.process.wait()


@pytest.fixture(scope="session")
def scribe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scribe(tmp_path_factory.mktemp("models") / "scribe")


@pytest.fixture(scope="session")
def scribe(scribe_folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(scribe_folder, name="scribe")
    yield running
    assert running.stop() == 0, "\n".join(running.lines)
