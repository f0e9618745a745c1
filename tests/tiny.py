"""Small things to run: a recipe that takes seconds, and the overrides that reduce the quickstart to seconds."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

WORDS = ["the", "king", "queen", "sword", "night", "love", "of", "and", "to", "in", "a", "shall", "thou", "art", "my", "lord", "春", "风", "月", "明", "山", "水", "花", "夜"]


def write_text(folder: Path, documents: int = 60, seed: int = 0) -> Path:
    """A text file of blank-line-separated paragraphs; the same for the same seed."""
    rng = random.Random(seed)
    paragraphs = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(20, 60))) + "." for _ in range(documents)]
    path = folder / "text.txt"
    path.write_text("\n\n".join(paragraphs), encoding="utf-8")
    return path


def write_words(folder: Path, words: list[str]) -> None:
    """A BERT-style tokenizer that knows ``words`` and nothing else."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models, normalizers, pre_tokenizers, processors

    from luban.tokenizer.tokenizer import Tokenizer

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words]
    core = Core(models.WordPiece({word: number for number, word in enumerate(known)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(known[:5])
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    Tokenizer(core, {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}).save(folder)


def tiny_recipe(folder: Path, **train: Any) -> dict[str, Any]:
    """Plain data of a recipe up to a trained model; `train` adds to the train stage."""
    write_text(folder)
    shape = {"layers": 1, "hidden_size": 32, "heads": 2, "head_dim": 16, "feed_forward_size": 64, "maximum_positions": 64}
    return {
        "name": "tiny",
        "seed": 3,
        "stages": {
            "corpus": {"kind": "curate", "sources": "text.txt", "document_separator": "blank_line", "workers": 1, "split": {"validation": 0.1, "test": 0.1}},
            "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": 300},
            "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "tokenizer"},
            "base": {
                "kind": "train",
                "data": "tokens",
                "shape": shape,
                "sequence_length": 32,
                "batch_tokens": 128,
                "length": "12 steps",
                "optimizer": {"learning_rate": 1e-2},
                "checkpoint": {"every": "3 steps"},
                "determinism": "strict",
                "threads": 1,
                "track": {"tensorboard": False},
                **train,
            },
        },
    }


QUICK = (
    "corpus.workers=1",
    "tokenizer.vocabulary_size=1024",
    "base.shape={hidden_size: 64, heads: 2, feed_forward_size: 128}",
    "base.depth=2",
    "base.sequence_length=128",
    "base.length=12 steps",
    "base.validation.every=12 steps",
    "chat.validation.every=8 steps",
    "base.samples.sampling={maximum_tokens: 8}",
    "base.threads=1",
    "chat.threads=1",
    "chat.length=8 steps",
    "chat.samples.sampling={maximum_tokens: 8}",
    "report.maximum_documents=40",
)
