"""What the tests of examples share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "tokenizer"))

from tokenizer_samples import tokenizer_of


@pytest.fixture(scope="session")
def bpe():
    return tokenizer_of("byte_bpe", 1000)
