"""From raw text to a trained model with each objective on running text: implied stages, a falling loss, and a prediction from the directory."""

from __future__ import annotations

import json

import pytest
from tiny import write_text

import luban
from luban.foundation.config import Source
from luban.inference.predictor import Predictor
from luban.pipeline.check import check
from luban.pipeline.implied import with_implied_stages
from luban.pipeline.recipe import make_recipe

SMALL = {"layers": 1, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 64}
CASES = {
    "masked": ("bert", {"text": "the king [MASK] the sword"}, "fills"),
    "span_corruption": ("t5", {"text": "the king <extra_id_0> the sword"}, "fills"),
    "denoising": ("bart", {"text": "the king <mask> the sword"}, "text"),
    "prefix": ("gpt2", {"text": "the king"}, "text"),
    "fill_in_middle": ("llama", {"prefix": "the king", "suffix": "the sword"}, "text"),
}


@pytest.mark.parametrize("objective", CASES)
def test_raw_text_to_a_model_that_predicts(tmp_path, objective):
    architecture, item, said = CASES[objective]
    recipe = {
        "name": "small", "seed": 3,
        "stages": {
            "corpus": {"kind": "curate", "sources": str(write_text(tmp_path)), "document_separator": "blank_line", "workers": 1, "split": {"validation": 0.1, "test": 0.1}},
            "model": {
                "kind": "train", "objective": objective, "data": "corpus", "shape": {"architecture": architecture, **SMALL}, "sequence_length": 48, "batch_tokens": 384,
                "length": "16 steps", "optimizer": {"learning_rate": 1e-2}, "threads": 1, "validation": {"every": "16 steps"}, "samples": {"prompts": [item.get("text", "the king")]}, "track": {"tensorboard": False},
            },
        },
    }  # fmt: skip
    artifact = luban.run(recipe, out=tmp_path / "run")[-1]
    log = [json.loads(line) for line in (artifact.path / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    losses = [entry["validation"]["loss"] for entry in log if "validation" in entry]
    assert losses[-1] < losses[0] - 0.4
    assert isinstance([sample for entry in log for sample in entry.get("samples", [])][-1]["text"], str)
    predictor = Predictor.load(artifact.path)
    assert predictor.task == objective and predictor.head.settings["maximum_tokens"] == 48
    assert said in predictor.predict([item])[0]


@pytest.mark.parametrize(
    "shape, style",
    [({"architecture": "bert"}, "bert"), ({"architecture": "xlm-roberta"}, "roberta"), ({"architecture": "mt5"}, "t5"), ("gpt2", None), (None, None), ("bert-tiny", "bert")],
)
def test_the_implied_tokenizer_fits_the_family(tmp_path, shape, style):
    body = {"kind": "train", "objective": "masked", "data": "text.txt"} | ({} if shape is None else {"shape": shape})
    full = with_implied_stages({"base": body}, tmp_path)
    assert full["base-tokenizer"].get("style") == style


@pytest.mark.parametrize("architecture", ["bert", "t5"])
def test_a_dry_batch_knows_models_that_read_a_source(tmp_path, architecture):
    write_text(tmp_path)
    objective = "masked" if architecture == "bert" else "span_corruption"
    stage = {"kind": "train", "objective": objective, "data": "text.txt", "shape": {"architecture": architecture, **SMALL}, "sequence_length": 32, "batch_tokens": 64, "threads": 1}
    recipe = make_recipe({"stages": {"model": stage}}, tmp_path, "small", Source("recipe.yaml"))
    ticks = list(check(recipe))
    assert all(tick.passed for tick in ticks), [tick.text for tick in ticks]
