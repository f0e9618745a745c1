"""What the inference tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from inference_model import make_model, write_tokenizer

from luban.models.decoder import Decoder
from luban.tokenizer.tokenizer import Tokenizer


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Models this small lose more by waiting for a second thread than they gain."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("tokenizer")
    write_tokenizer(folder)
    return Tokenizer.load(folder)


@pytest.fixture(scope="session")
def model() -> Decoder:
    return make_model()
