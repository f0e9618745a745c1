"""What the tests of tokens share: a small encoded corpus."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tokenizer"))

from tokenizer_samples import chinese, english, tokenizer_of, write_corpus

from luban.foundation.artifacts import Artifact, Work
from luban.foundation.config import build
from luban.tokens import stage
from luban.tokens.config import EncodeConfig

TRAIN = [("en", text[:700]) for text in english(200_000)] + [("zh", text) for text in chinese(150)] + [("en", ""), ("", "x" * 3000)]


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_of("byte_bpe", 1000)


@pytest.fixture(scope="session")
def tokenizer_folder(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(folder)
    return folder


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus", train=TRAIN, validation=TRAIN[:5], test=[])


@pytest.fixture(scope="session")
def encode(corpus, tokenizer_folder):
    """``encode(folder, shard_tokens=…)`` runs the stage."""

    def run(path: Path, source: Path = corpus, **fields: object) -> Work:
        path.mkdir(parents=True, exist_ok=True)
        work = Work(path, {"corpus": Artifact(source, {"kind": "curate", "licences": ["CC0"]}), "tokenizer": tokenizer_folder})
        stage.run(build(EncodeConfig, {"corpus": "c", "tokenizer": "t", "shard_tokens": 5000, **fields}), work)
        return work

    return run


@pytest.fixture(scope="session")
def tokens(encode, tmp_path_factory):
    return encode(tmp_path_factory.mktemp("encoded") / "tokens").path


@pytest.fixture
def texts():
    return [text for _, text in TRAIN]
