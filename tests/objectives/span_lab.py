"""Small BERTs, tokenizers and planted data for the tests of tagging, relations and question answering."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from text_lab import shape_of
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, processors

from luban.foundation.config import build
from luban.models.base import Model
from luban.models.families import build_model
from luban.objectives.base import DataRequest, Loaders, load_objective
from luban.objectives.config import NAMES
from luban.objectives.tasks import TaskObjective
from luban.parallel.engine import TorchEngine
from luban.tokenizer.tokenizer import Tokenizer

NAMES_OF = {"person": ["anna", "boris", "clara", "dmitri"], "place": ["paris", "lima", "oslo"]}
FILLERS = ["the", "saw", "went", "to", "in", "with", "a", "big", "house", "red", "and", "then", "left", "who", "where", "lives", "works", "did", "dr", "new", "person", "place"]


@cache
def wordpiece() -> Tokenizer:
    """BERT's tokenizer over few words, letters as pieces, and Chinese characters."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    chinese = list("张三李四北京上海去了在的是谁哪里人")
    words = [word for group in NAMES_OF.values() for word in group if word != "dmitri"] + FILLERS + ["dmi", "##tri"]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *dict.fromkeys([*words, *letters, *(f"##{letter}" for letter in letters), *chinese, *".,?!'*0123456789[]/"])]
    core = Core(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(lowercase=True), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(tokens[:5])
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **named})


@cache
def byte_tokenizer() -> Tokenizer:
    """Every byte is a token, so that a Chinese character is three; no words, no white space kept apart."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE({token: number for number, token in enumerate([*alphabet, "ab", "bc", "<pad>", "</s>"])}, [("a", "b"), ("b", "c")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.add_special_tokens(["<pad>", "</s>"])
    core.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", len(alphabet) + 3)])
    return Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "eos_token": "</s>"})


def write_lines(file: Path, rows: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def open_task(
    folder: Path, rows: list[dict[str, Any]], *, name: str, validation: list[dict[str, Any]] | None = None, tokenizer: Tokenizer | None = None,
    length: int = 32, examples: int = 16, architecture: str = "bert", mapping: dict[str, Any] | None = None, shape: dict[str, Any] | None = None, **settings: Any,
) -> tuple[TaskObjective, Loaders, DataRequest]:  # fmt: skip
    """An objective with its loaders over JSON lines."""
    objective = load_objective(build(NAMES[name], {"name": name, **settings}))
    adapted = objective.adapt_tokenizer(tokenizer or wordpiece())
    data = [write_lines(folder / "train.jsonl", rows)]
    held = [write_lines(folder / "held.jsonl", validation)] if validation else []
    request = DataRequest(
        data=data, validation=held, replay=[], replay_share=0.0, tokenizer=adapted, shape=shape_of(architecture, adapted, **{"dropout": 0.0, "attention_dropout": 0.0, **(shape or {})}),
        sequence_length=length, rows_per_step=8, examples_per_step=examples, seed=3, packing="auto", validation_share=0.25, mapping=mapping or {},
        mixture=[], work=folder,
    )  # fmt: skip
    return objective, objective.loaders(request), request


def model_for(objective: TaskObjective, request: DataRequest) -> Model:
    return build_model(request.shape).initialize(1).with_head(objective.head, 2)


class _Steps:
    """AdamW as an engine asks for it."""

    def __init__(self, model: Model, rate: float):
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)

    def step(self, factor: float) -> None:
        self.optimizer.step()

    def zero_grad(self) -> None:
        self.optimizer.zero_grad()


def learn(objective: TaskObjective, loaders: Loaders, model: Model, steps: int, rate: float = 3e-3) -> Model:
    """Some steps of training on one thread."""
    engine = TorchEngine(model.train(), _Steps(model, rate), objective, 0, torch.float32)
    for step in range(steps):
        engine.forward_backward(loaders.train.step(step))
        engine.clip(1.0)
        engine.step(1.0)
    return model.eval()


def planted_text(random: np.random.Generator, names: list[tuple[str, str]], length: int = 8) -> tuple[str, list[tuple[int, int, str]]]:
    """Filler words with names among them, and the spans of the names."""
    words = [str(word) for word in random.choice(FILLERS[:13], length)]
    for name, _ in names:
        words.insert(int(random.integers(len(words) + 1)), name)
    spans, place, kinds = [], 0, dict(names)
    for word in words:
        if word in kinds:
            spans.append((place, place + len(word), kinds[word]))
        place += len(word) + 1
    return " ".join(words), spans


def some_names(random: np.random.Generator) -> tuple[str, str]:
    return str(random.choice(NAMES_OF["person"])), str(random.choice(NAMES_OF["place"]))
