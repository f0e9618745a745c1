"""The train stage end to end on tiny data: continuing from a model, replay, stopping early, tracking, guards."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_recipe, write_text

import luban
from luban.foundation.errors import ConfigError, LubanError
from luban.models.huggingface import load_model
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.store import TokenStore


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    recipe = tiny_recipe(folder)
    recipe["stages"]["corpus"]["sources"] = str(folder / "text.txt")
    luban.run(recipe, out=folder / "run")
    return folder / "run"


def go_on(made: Path, tmp_path: Path, **train):
    fields = {"data": made / "tokens", "model": made / "base", "sequence_length": 32, "batch_tokens": 64, "length": "3 steps", "threads": 1, **train}
    return luban.train(out=tmp_path / "out", **fields)


def log_of(artifact) -> list[dict]:
    return [json.loads(line) for line in (artifact.path / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def test_going_on_starts_from_the_models_weights(made, tmp_path):
    artifact = go_on(made, tmp_path, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    before, after = load_model(made / "base"), load_model(artifact.path)
    for one, other in zip(before.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=0)


def test_replay_reads_its_share_of_the_old_data(made, tmp_path):
    new = tmp_path / "new"
    new.mkdir()
    corpus = luban.curate(write_text(new, seed=9), out=new / "corpus", workers=1, document_separator="blank_line")
    tokens = luban.encode(corpus=corpus, tokenizer=made / "base", out=new / "tokens")
    artifact = go_on(made, tmp_path, data=tokens, replay={"data": str(made / "tokens"), "share": 0.25}, length="8 steps")
    assert artifact.metrics["steps"] == 8
    from luban.objectives.text import weighted
    from luban.tokens.store import TokenStore

    stores = weighted([TokenStore(tokens.path, "train")], [TokenStore(made / "tokens", "train")], 0.25)
    assert [weight for _, weight in stores] == pytest.approx([0.75, 0.25])


def test_a_mixture_needs_a_share_for_each_source(made, tmp_path):
    with pytest.raises(ConfigError, match="2 shares for 1"):
        go_on(made, tmp_path, mixture=[1, 2])


def test_an_extended_tokenizer_grows_the_embeddings(made, tmp_path):
    extended = luban.train_tokenizer(corpus=made / "corpus", pretrained=made / "base", extend=["kingqueen"], out=tmp_path / "tokenizer")
    tokens = luban.encode(corpus=made / "corpus", tokenizer=extended, out=tmp_path / "tokens")
    artifact = go_on(made, tmp_path, data=tokens, tokenizer=extended, optimizer={"learning_rate": 1e-12, "weight_decay": 0.0})
    old, new = load_model(made / "base"), load_model(artifact.path)
    assert new.shape.vocabulary_size == old.shape.vocabulary_size + 1
    pieces = Tokenizer.load(made / "base").encode("kingqueen")
    mean = old.model.embed_tokens.weight[pieces].mean(0)
    torch.testing.assert_close(new.model.embed_tokens.weight[-1], mean, atol=1e-5, rtol=0)


def test_a_new_models_table_may_have_more_rows_than_the_tokenizer_and_no_fewer(made, tmp_path):
    shape = {"layers": 1, "hidden_size": 16, "heads": 2}
    artifact = go_on(made, tmp_path, model="", shape={**shape, "vocabulary_size": 320}, length="1 steps")
    assert load_model(artifact.path).embedding.weight.shape == (320, 16)
    with pytest.raises(ConfigError, match="200 is less than the 300"):
        go_on(made, tmp_path / "less", model="", shape={**shape, "vocabulary_size": 200}, length="1 steps")


def test_another_tokenizer_is_refused(made, tmp_path):
    other = luban.train_tokenizer(corpus=made / "corpus", vocabulary_size=320, lowercase=True, special_tokens=["<x>"], out=tmp_path / "tokenizer")
    tokens = luban.encode(corpus=made / "corpus", tokenizer=other, out=tmp_path / "tokens")
    with pytest.raises(ConfigError, match="different id"):
        go_on(made, tmp_path, data=tokens)


def test_early_stopping(made, tmp_path):
    artifact = go_on(made, tmp_path, length="50 steps", optimizer={"learning_rate": 1e-12}, validation={"every": "1 steps", "patience": 3, "minimum_gain": 0.1})
    assert artifact.metrics["steps"] == 3


def test_log_and_tensorboard_hold_the_same_losses(made, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    artifact = go_on(made, tmp_path)
    events = EventAccumulator(str(artifact.path / "training" / "events"))
    events.Reload()
    written = [(event.step, event.value) for event in events.Scalars("train/loss")]
    logged = [(entry["step"], entry["loss"]) for entry in log_of(artifact) if "loss" in entry]
    assert [step for step, _ in written] == [step for step, _ in logged] == [1, 2, 3]
    assert [value for _, value in written] == pytest.approx([value for _, value in logged], rel=1e-6)
    for entry in log_of(artifact):
        if "loss" in entry:
            assert {"learning_rate", "gradient_norm", "tokens_per_second", "peak_share", "seconds", "tokens"} <= set(entry)


def test_a_wandb_project_without_wandb_is_one_clear_line(made, tmp_path):
    with pytest.raises(LubanError, match=r"pip install -e .\.\[wandb\]"):
        go_on(made, tmp_path, track={"wandb": "x"})


def test_a_step_that_is_not_finite_is_skipped_and_named(made, tmp_path, monkeypatch):
    from luban.objectives.causal import Causal

    calls = []
    plain = Causal.terms

    def sometimes_nan(self, model, batch):
        terms = plain(self, model, batch)
        if torch.is_grad_enabled():
            calls.append(1)
            if len(calls) == 2:
                terms["loss"].sum = terms["loss"].sum * float("nan")
        return terms

    monkeypatch.setattr(Causal, "terms", sometimes_nan)
    artifact = go_on(made, tmp_path, length="4 steps", micro_batch_rows=8)
    named = json.loads((artifact.path / "training" / "guard.jsonl").read_text(encoding="utf-8"))
    assert named["step"] == 2 and named["sources"]
    assert all(bool(torch.isfinite(parameter).all()) for parameter in load_model(artifact.path).parameters())


def test_too_many_such_steps_stop_the_run(made, tmp_path, monkeypatch):
    from luban.objectives.causal import Causal

    plain = Causal.terms

    def always_nan(self, model, batch):
        terms = plain(self, model, batch)
        terms["loss"].sum = terms["loss"].sum * float("nan")
        return terms

    monkeypatch.setattr(Causal, "terms", always_nan)
    with pytest.raises(LubanError, match="10 steps in a row"):
        go_on(made, tmp_path, length="20 steps")


def test_a_trained_directory_is_whole(made):
    names = {path.name for path in (made / "base").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "README.md", "manifest.json", "training"} <= names
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(made / "base"), AutoTokenizer.from_pretrained(made / "base")
    ours = load_model(made / "base")
    ids = tokenizer("the king 春风", return_tensors="pt").input_ids
    assert ids[0].tolist() == Tokenizer.load(made / "base").encode("the king 春风")
    torch.testing.assert_close(model(ids).logits, ours.logits(ours(ids)), atol=1e-5, rtol=1e-5)
    assert set(model.generation_config.eos_token_id) == set(Tokenizer.load(made / "base").stop_ids)


@pytest.mark.parametrize("name", ["num_train_epochs", "per_device_train_batch_size", "save_steps", "save_total_limit", "gradient_accumulation_steps", "learning_rate", "warmup_ratio", "bf16", "logging_steps"])
def test_names_of_other_trainers_are_answered_with_ours(made, tmp_path, name):
    with pytest.raises(ConfigError, match="is written"):
        go_on(made, tmp_path, **{name: 3})


def test_a_model_of_transformers_learns_text_with_one_document_a_row(made, tmp_path):
    """An architecture that Luban has no modules for: its rows hold one document each; what is said of it is what transformers computes."""
    import transformers

    torch.manual_seed(1)
    config = transformers.GPTNeoXConfig(vocab_size=300, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=128, bos_token_id=0, eos_token_id=0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "theirs")
    fields = {"model": tmp_path / "theirs", "sequence_length": 128, "batch_tokens": 512, "length": "8 steps", "optimizer": {"learning_rate": 1e-2}, "samples": {"prompts": ["the"], "sampling": {"maximum_tokens": 4}}}
    with pytest.raises(ConfigError, match="one document a row(.|\n)*packing to none"):
        go_on(made, tmp_path, **fields)
    artifact = go_on(made, tmp_path / "none", packing="none", **fields)
    assert artifact.metrics["after"]["loss"] < artifact.metrics["before"]["loss"]
    store = TokenStore(made / "tokens", "validation")
    again, end = transformers.AutoModelForCausalLM.from_pretrained(artifact.path).eval(), store.end_of_text_id
    texts = [torch.tensor([[end, *map(int, store.document(number)), end]]) for number in range(store.documents)]
    assert all(text.shape[1] <= 129 for text in texts)
    with torch.no_grad():
        said = [again(text[:, :-1]).logits.log_softmax(-1).gather(2, text[:, 1:, None]) for text in texts]
    assert artifact.metrics["after"]["loss"] == pytest.approx(-float(torch.cat(said, 1).mean()), rel=1e-5)
    assert any("samples" in line for line in log_of(artifact)) and any(luban.load(artifact.path).generate("the king") for _ in range(8))
