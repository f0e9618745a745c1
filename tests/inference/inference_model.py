"""A tiny random model and a byte-level tokenizer made here, so that every answer can be checked by brute force."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

from luban.foundation.artifacts import write_bytes, write_json
from luban.models.decoder import Decoder
from luban.models.shape import ShapeConfig

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def write_tokenizer(folder: Path, template: str | None = TEMPLATE) -> None:
    """256 bytes, no merges, and ChatML's control tokens 256, 257, 258."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<|endoftext|>", "<|im_start|>", "<|im_end|>")])
    folder.mkdir(parents=True, exist_ok=True)
    write_bytes(folder / "tokenizer.json", core.to_str().encode())
    config = {"eos_token": "<|endoftext|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))


def make_model(dtype: torch.dtype = torch.float32, **changes: object) -> Decoder:
    """Random weights so large that distributions differ from place to place."""
    plain = {
        "vocabulary_size": 259,
        "layers": 2,
        "hidden_size": 32,
        "heads": 4,
        "key_value_heads": 2,
        "maximum_positions": 96,
        "initializer_deviation": 0.4,
    }
    return Decoder(ShapeConfig(**(plain | changes))).initialize(1).to(dtype).eval()
