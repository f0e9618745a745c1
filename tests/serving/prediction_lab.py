"""Tiny encoders with heads of every structure in Hugging Face directories: what they say is random, and the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, processors

from luban.foundation.config import build
from luban.inference.ensemble import Ensemble
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.tokenizer.tokenizer import Tokenizer

HEADS = {
    "classification": Head("sequence", "classification", ("good", "bad", "中"), "single_label", {"maximum_tokens": 64}),
    "multi_label": Head("sequence", "multi_label", ("red", "blue"), "multi_label", {"maximum_tokens": 64}),
    "regression": Head("sequence", "regression", ("value",), "regression", {"maximum_tokens": 64, "center": 3.0, "scale": 2.0}),
    "tagging": Head("token", "tagging", ("O", "B-person", "I-person", "B-place", "I-place"), "", {"maximum_tokens": 64, "scheme": "BIO"}),
    "question_answering": Head("span", "question_answering", (), "", {"maximum_tokens": 64, "stride": 16, "unanswerable": False}),
    "embedding": Head("vector", "embedding", (), "", {"maximum_tokens": 64, "prompts": {"query": "who ", "document": "saw "}}),
    "masked": None,
}


def word_tokenizer() -> Tokenizer:
    """BERT's kind: letters as pieces, some words, Chinese characters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = ["anna", "boris", "paris", "lima", "saw", "went", "to", "in", "who", "film", "great"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, *letters, *(f"##{letter}" for letter in letters), *"张三李四北京去了电影好看的是一", *".,?!，。0123456789"]
    core = Core(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(tokens[:5])
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}})


def make_task_model(folder: Path, task: str, *, architecture: str = "bert", seed: int = 7, **shape: Any) -> Path:
    tokenizer = word_tokenizer()
    fields = {"layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 64, "vocabulary_size": tokenizer.vocabulary_size, "initializer_deviation": 0.6}
    built = build(family_of(architecture).shape, {"architecture": architecture, **fields, **shape}).resolved()
    model = build_model(built).initialize(seed)
    if HEADS.get(task) is not None:
        model = model.with_head(HEADS[task], seed)
    save_model(model, folder)
    tokenizer.save(folder)
    return folder


def make_ensemble(folder: Path) -> Path:
    for number in (1, 2):
        make_task_model(folder / f"member-{number}", "classification", seed=number)
    note = {"model_type": "luban-ensemble", "members": ["member-1", "member-2"], "how": "average"}
    (folder / "config.json").write_text(json.dumps(note), encoding="utf-8")
    assert Ensemble.load(folder).task == "classification"
    return folder


def close(one: object, other: object) -> bool:
    """Equal but for the last digits: batches of other sizes add in another order."""
    if isinstance(one, dict):
        return isinstance(other, dict) and one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list):
        return isinstance(other, list) and len(one) == len(other) and all(map(close, one, other))
    return abs(one - other) < 1e-4 if isinstance(one, float) else one == other
