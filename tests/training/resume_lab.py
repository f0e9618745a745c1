"""Every objective and optimizer as a training of six steps that can be killed on its way, and what two such trainings are compared by."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from group_lab import THINGS, tiny_model, write_rows
from preference_lab import chat_tokenizer, pairs, singles
from span_lab import planted_text, some_names, wordpiece
from text_lab import shape_of, tokenizer_of_style, write_store

from luban.foundation.artifacts import Artifact
from luban.foundation.kinds import KINDS
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.pipeline.api import one_stage
from luban.pipeline.runner import run_recipe
from luban.tokenizer.tokenizer import Tokenizer
from luban.training.log import deterministic

FIXED = {
    "sequence_length": 48, "batch_tokens": 192, "batch_examples": 4, "length": "6 steps", "optimizer": {"learning_rate": 5e-3}, "schedule": {"shape": "constant", "warmup": "2 steps"},
    "threads": 1, "determinism": "strict", "validation": {"every": "2 steps", "share": 0.2, "maximum_examples": 6}, "checkpoint": {"every": "3 steps"}, "track": {"tensorboard": False},
}  # fmt: skip
ON_TEXT = {"causal": ("plain", "llama"), "masked": ("bert", "bert"), "span_corruption": ("t5", "t5"), "denoising": ("bart", "bart"), "prefix": ("plain", "gpt2"), "fill_in_middle": ("plain", "llama")}
OF_PAIRS = ("translation", "summarization", "generation")
OF_SPANS = ("tagging", "relation", "joint_relation", "question_answering")
OF_BERT = ("classification", "multi_label", "regression", "embedding", "ranking", "multiple_choice", "pattern", "distillation")
OF_CHAT = ("instruction", "reward", "dpo", "kto", "orpo", "simpo", "grpo")
SETTINGS: dict[str, dict[str, Any]] = {
    "pattern": {"pattern": "{text} is {label}.", "words": {"a": "love", "b": "death"}},
}
REWARD = "def score(prompts, completions, columns):\n    return [min(sum(letter == 'e' for letter in text), 8) / 8 for text in completions]\n"
DIES = """from pathlib import Path
def dies(run):
    flag = Path(__file__).with_name('die')
    if flag.exists() and run.step == int(flag.read_text()):
        flag.unlink()
        raise SystemError('killed')
"""


def spans(count: int = 30) -> list[dict[str, Any]]:
    """Rows that tagging, relations (single and joint) and questions are read from, each by its own columns."""
    import numpy as np

    draw = np.random.default_rng(0)
    rows = []
    for number in range(count):
        names = list(zip(some_names(draw), ("person", "place"), strict=True))
        text, found = planted_text(draw, names, int(draw.integers(3, 10)))
        places = [{"start": start, "end": end, "label": kind} for start, end, kind in found]
        ends = [{"pos": list(span[:2]), "type": span[2]} for span in found]
        label = "visits" if found[0][2] == "person" else "hosts"
        rows.append(
            {
                "tagging": {"text": text, "spans": places},
                "relation": {"text": text, "head": ends[0], "tail": ends[1], "label": label},
                "joint_relation": {"text": text, "entities": places, "relations": [{"head": 0, "tail": 1, "label": label}]},
                "question_answering": {"question": "who did", "context": text, "answers": [{"text": text[slice(*found[0][:2])], "answer_start": found[0][0]}], "id": str(number)},
            }
        )
    return rows


def labelled(name: str, count: int = 30) -> list[dict[str, Any]]:
    """Rows of the objectives that encoders learn."""
    draw, words = random.Random(1), ["the", "king", "my", "lord", "sword", "night"]
    texts = [f"{' '.join(draw.choices(words, k=draw.randint(2, 6)))} {number}" for number in range(count)]
    label = {"multi_label": lambda n: [["a"], ["b"], ["a", "b"]][n % 3], "regression": lambda n: n % 7 / 2}.get(name, lambda n: "ab"[n % 2])
    if name == "embedding":
        return [{"query": text, "positive": text[::-1]} for text in texts]
    if name == "ranking":
        return [{"query": text, "document": [f"the {thing} of {text}" for thing in THINGS[:4]], "grade": [float(n % 4 == place) for place in range(4)]} for n, text in enumerate(texts)]
    if name == "multiple_choice":
        return [{"question": text, "choices": THINGS[:3], "answer": n % 3} for n, text in enumerate(texts)]
    return [{"text": text, "label": label(number)} for number, text in enumerate(texts)]


def stored(folder: Path, tokenizer: Tokenizer, model: Any) -> Path:
    save_model(model, folder, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    tokenizer.save(folder)
    return folder


def case(folder: Path, objective: str) -> dict[str, Any]:
    """The fields of a training with an objective, its data and model written under ``folder``."""
    settings: Any = {"name": objective, **SETTINGS.get(objective, {})}
    if objective in ON_TEXT:
        style, architecture = ON_TEXT[objective]
        tokenizer = tokenizer_of_style(style)
        draw = random.Random(0)
        store = write_store(folder, tokenizer, [" ".join(draw.choices(["the king", "my lord", "night", "sword of", "love"], k=draw.randint(3, 40))) for _ in range(40)])
        (store.path / "manifest.json").write_text(json.dumps({"kind": "encode", "fingerprint": "0", "format": 1, "metrics": {"train": {"tokens": 4000, "documents": 40}, "vocabulary_size": tokenizer.vocabulary_size}}))
        tokenizer.save(store.path / "tokenizer")
        return {"objective": settings, "data": store.path, "shape": {"architecture": architecture, "layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 64}}
    if objective in OF_PAIRS:
        tokenizer, rows = tokenizer_of_style("t5"), [{"input": f"the king {n}", "output": f"{n} lord"} for n in range(30)]
        model = tiny_model("t5", None)
    elif objective in OF_SPANS:
        tokenizer, rows = wordpiece(), [row[objective] for row in spans()]
        model = build_model(shape_of("bert", tokenizer)).initialize(1)
    elif objective in OF_BERT:
        tokenizer, rows = tokenizer_of_style("bert"), labelled(objective)
        model = tiny_model("bert", None)
    else:
        tokenizer, model = chat_tokenizer(), tiny_model("qwen3", None)
        rows = pairs(30)
        if objective == "instruction":
            rows = [{"prompt": row["prompt"], "answer": row["chosen"]} for row in rows]
        if objective == "kto":
            rows = singles(30)
        if objective == "grpo":
            (folder / "own_reward.py").write_text(REWARD)
            settings |= {"rewards": [f"{folder / 'own_reward.py'}:score"], "group": 3, "updates": 2, "beta": 0.05, "sampling": {"maximum_tokens": 5}}
    if objective == "distillation":
        teacher = tiny_model("bert", Head("sequence", "classification", ("a", "b"), "single_label"), 7)
        settings |= {"of": "classification", "teacher": [str(stored(folder / "teacher", tokenizer, teacher))]}
    return {"objective": settings, "data": write_rows(folder / "rows.jsonl", rows), "model": stored(folder / "start", tokenizer, model)}


def train(folder: Path, name: str, fields: dict[str, Any], dies_at: int | None = None, watch: Callable[[Any], None] | None = None) -> Artifact:
    """A training in ``folder/name``; it is killed in the midst of what follows step ``dies_at``. ``watch`` is called with the run after each step."""
    (folder / "dies.py").write_text(DIES)
    if dies_at is not None:
        (folder / "die").write_text(str(dies_at))
    fields = {**FIXED, **fields}
    recipe = one_stage(KINDS["train"], out=folder / name, callbacks=[f"{folder / 'dies.py'}:dies"], **fields)
    return run_recipe(recipe, watch=watch)[-1]


def remains(artifact: Artifact) -> dict[str, Any]:
    """What an undisturbed run must leave the same: the model's files, the last checkpoint's tensors and state, the deterministic columns of the log."""
    weights = {file.name: file.read_bytes() for file in artifact.path.glob("*.safetensors")}
    newest = sorted((artifact.path / "training" / "checkpoints").glob("step-????????"))[-1]
    state = json.loads((newest / "state.json").read_bytes())
    kept = {file.name: file.read_bytes() for file in newest.glob("*.safetensors")}
    for measured in ("seconds", "last"):
        state.pop(measured, None)
    state["history"]["consumed"] = state["history"].get("consumed", {}).get("sha256")  # how it is cut into lines depends on where it was saved
    measured = ("training_seconds", "checkpoints")
    return {
        "weights": weights, "tensors": kept, "state": state, "log": list(deterministic(artifact.path / "training" / "log.jsonl")),
        "metrics": {name: value for name, value in artifact.metrics.items() if name not in measured},
    }  # fmt: skip
