"""What the inference tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from inference_model import make_model, write_tokenizer  # noqa: E402

from luban.models.decoder import Decoder  # noqa: E402
from luban.tokenizer.tokenizer import Tokenizer  # noqa: E402


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def model() -> Decoder:
    return make_model()
