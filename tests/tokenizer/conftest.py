"""What the tokenizer's tests share."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tokenizer_samples import tokenizer_of

from luban.tokenizer.tokenizer import Tokenizer


@pytest.fixture(scope="session")
def bpe() -> Tokenizer:
    """Byte-level BPE, 2,000 tokens, English and Chinese."""
    return tokenizer_of("byte_bpe")


@pytest.fixture(scope="session")
def family(bpe: Tokenizer):
    """``family("llama3")``: the tokenizer with a model family's special tokens and chat template."""
    from chat_templates import SPECIALS
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Core

    def make(name: str) -> Tokenizer:
        template, special, named = SPECIALS[name]
        core = Core.from_str(bpe.core.to_str())
        core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
        return Tokenizer(core, {**bpe.config, **named, "chat_template": template})

    return make
