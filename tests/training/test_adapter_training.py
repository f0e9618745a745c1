"""Training an adapter, whole: the base stays, the run continues to the same bits, parity is asserted, forgetting is measured."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from test_task_training import QUICK, folder, train, write  # noqa: F401 (a fixture)
from text_lab import shape_of, tokenizer_of_style
from tiny import tiny_recipe

import luban
from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.adapters.files import open_model
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, Interrupted, LubanError
from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.models.narrow import hold_narrow, round_matrices
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import load_quantized
from luban.models.shape import ShapeConfig

STOP = """from pathlib import Path
def at_ten(run):
    flag = Path(__file__).with_name('stop-now')
    if flag.exists() and run.step == 10:
        flag.unlink()
        run.stop_reason = 'SIGTERM'
"""


@pytest.fixture
def tuned_base(folder):  # noqa: F811
    train(folder, "base", length="2 steps")
    return folder


def tune(folder, out, adapter, **fields):  # noqa: F811
    settings = {name: value for name, value in QUICK.items() if name != "shape"} | {"model": folder / "base", "length": "16 steps", "optimizer": {"learning_rate": 1e-2}} | fields
    return luban.train(folder / "train.jsonl", objective="classification", out=folder / out, **({"adapter": adapter} if adapter else {}), **settings)


@pytest.mark.parametrize(("adapter", "more"), [("lora", {}), ("pissa", {"average": "exponential", "average_decay": 0.9}), ({"method": "dora", "dropout": 0.2}, {"r_drop": 1.0})], ids=str)
def test_a_stopped_training_continues_to_the_same_bits(tuned_base, adapter, more):
    (tuned_base / "stop.py").write_text(STOP)
    fields = {"callbacks": [f"{tuned_base / 'stop.py'}:at_ten"], "checkpoint": {"every": "4 steps"}, "regularization": more, "validation": {"every": "8 steps", "restore_best": False}}
    made = tune(tuned_base, "whole", adapter, **fields)
    (tuned_base / "stop-now").touch()
    with pytest.raises(Interrupted):
        tune(tuned_base, "parts", adapter, **fields)
    checkpoint = sorted((tuned_base / "parts.partial" / "training" / "checkpoints").iterdir())[-1]
    assert all("adapters" in name or "classifier" in name for name in load_file(checkpoint / "model.safetensors"))
    tune(tuned_base, "parts", adapter, **fields)
    whole, parts = (load_file(tuned_base / name / "adapter_model.safetensors") for name in ("whole", "parts"))
    assert whole.keys() == parts.keys() and all(torch.equal(whole[name], parts[name]) for name in whole)
    assert made.metrics["after"]["loss"] != made.metrics["before"]["loss"]
    assert made.metrics["parity"]["largest_difference"]["merged"] < 1e-3


def test_an_adapter_predicts_alone_goes_on_learning_and_merges(tuned_base):
    made = tune(tuned_base, "first", "lora", length="60 steps")
    texts = ["the film was great", "电影很差"]
    said = luban.predict(tuned_base / "first", texts)
    assert [item["label"] for item in said] == ["pos", "neg"]
    merged = luban.merge(tuned_base / "first", out=tuned_base / "merged")
    assert [item["probabilities"] for item in luban.predict(merged.path, texts)] == [pytest.approx(item["probabilities"], abs=1e-5) for item in said]
    again = tune(tuned_base, "second", None, model=tuned_base / "first", length="4 steps")
    assert again.metrics["before"]["loss"] == pytest.approx(made.metrics["after"]["loss"], rel=1e-4)
    assert open_model(tuned_base / "second").adapter.config.method == "lora"
    assert json.loads((tuned_base / "second" / "luban_adapter.json").read_bytes())["base"] == "../base"
    with pytest.raises(ConfigError, match="a new one on top"):
        tune(tuned_base, "third", "lora", model=tuned_base / "first")


@pytest.mark.parametrize("quantization", ["nf4", {"format": "int8"}], ids=str)
def test_a_quantised_base_trains_predicts_and_merges(tuned_base, quantization):
    made = tune(tuned_base, "model", "lora", length="60 steps", quantization=quantization)
    assert made.metrics["parity"]["largest_difference"]["merged"] < 1e-3
    texts = ["the film was great", "电影很差"]
    said = luban.predict(made.path, texts)
    assert [item["label"] for item in said] == ["pos", "neg"]
    merged = luban.merge(made.path, out=tuned_base / "merged")
    assert [item["probabilities"] for item in luban.predict(merged.path, texts)] == [pytest.approx(item["probabilities"], abs=1e-5) for item in said]
    again = tune(tuned_base, "again", None, model=made.path, length="2 steps")
    assert again.metrics["before"]["loss"] == pytest.approx(made.metrics["after"]["loss"], rel=1e-4)
    with pytest.raises(ConfigError, match="a base that stays as it is"):
        tune(tuned_base, "whole", None, quantization=quantization)


def test_a_base_in_bfloat16_trains_as_one_in_float32_does_and_predicts_and_merges(tuned_base):
    whole = tune(tuned_base, "whole", "lora", length="60 steps")
    made = tune(tuned_base, "model", "lora", length="60 steps", weights="bfloat16")
    for when in ("before", "after"):  # the base's matrices are rounded to 8 bits of mantissa, and nothing else is
        assert made.metrics[when]["loss"] == pytest.approx(whole.metrics[when]["loss"], abs=0.02)
    stored = load_file(made.path / "adapter_model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.float32} and stored.keys() == load_file(whole.path / "adapter_model.safetensors").keys()
    assert made.metrics["parity"]["largest_difference"]["merged"] < 1e-3
    texts = ["the film was great", "电影很差"]
    said = luban.predict(made.path, texts)
    assert [item["label"] for item in said] == ["pos", "neg"]
    merged = luban.merge(made.path, out=tuned_base / "merged")
    assert [item["probabilities"] for item in luban.predict(merged.path, texts)] == [pytest.approx(item["probabilities"], abs=1e-5) for item in said]
    held = load_quantized(tuned_base / "base", QuantizationConfig(), head=None)
    codes = {name: value.dtype for name, value in held.named_parameters() if value.dtype == torch.uint8}
    hold_narrow(held)
    assert codes and codes.items() <= {name: value.dtype for name, value in held.named_parameters()}.items() and held.embedding.weight.dtype == torch.bfloat16
    both = tune(tuned_base, "both", "lora", length="4 steps", weights="bfloat16", quantization="nf4")
    assert both.metrics["parity"]["largest_difference"]["merged"] < 1e-3
    with pytest.raises(ConfigError, match="whose rest would be rounded"):
        tune(tuned_base, "taken", "pissa", weights="bfloat16")


def test_adapters_learn_on_a_base_in_bfloat16_what_they_learn_on_the_same_numbers_in_float32():
    shape = build(ShapeConfig, {"vocabulary_size": 50, "layers": 2, "hidden_size": 32, "heads": 4}).resolved(maximum_positions=64)
    narrow, plain = hold_narrow(build_model(shape).initialize(3)), round_matrices(build_model(shape).initialize(3))
    tokens = torch.randint(0, shape.vocabulary_size, (2, 12), generator=torch.Generator().manual_seed(0))
    found = []
    for model in (narrow, plain):
        attach(model, LoraConfig(rank=4), 1)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.02, generator=torch.Generator().manual_seed(len(name)))
        model.logits(model(tokens)).float().square().mean().backward()
        found.append({name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None})
    assert found[0].keys() == found[1].keys() and all("lora" in name for name in found[0])
    assert all(value.dtype == torch.float32 for value in found[0].values()) and not any(value.dtype == torch.bfloat16 for name, value in narrow.named_parameters() if value.requires_grad)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-4, atol=1e-7)


def test_a_new_model_has_nothing_to_stay(folder):  # noqa: F811
    with pytest.raises(ConfigError, match="needs a model to sit on"):
        train(folder, "model", adapter="lora")


def test_what_differs_from_the_trained_model_is_not_shipped(tuned_base, monkeypatch):
    from luban.adapters import lora

    monkeypatch.setattr(lora.Lora, "load", lambda self, model, tensors: {name for name in tensors if "lora" in name})  # reads nothing
    with pytest.raises(LubanError, match="does not say what the trained model says"):
        tune(tuned_base, "model", "lora")


def test_forgetting_is_measured_on_what_the_base_was_trained_on(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path, validation={"every": "12 steps"})
    chats = [{"messages": [{"role": "user", "content": f"say {word}"}, {"role": "assistant", "content": word * 3}]} for word in ("king", "queen", "山", "水") * 5]
    write(tmp_path / "chats.jsonl", chats)
    recipe["stages"]["tuned"] = {
        "kind": "train", "model": "base", "objective": "instruction", "data": "chats.jsonl", "adapter": {"method": "lora", "also_train": ["embeddings"]}, "length": "8 steps",
        "sequence_length": 32, "batch_tokens": 128, "threads": 1, "optimizer": {"learning_rate": 3e-2}, "track": {"tensorboard": False}, "validation": {"every": "8 steps"},
    }  # fmt: skip
    made = luban.run(recipe, out=tmp_path / "runs")[-1]
    general = made.metrics["general"]
    assert general["before"]["bits_per_byte"] < general["after"]["bits_per_byte"]
    assert made.metrics["parity"]["prompts"] == 4 and all(made.metrics["parity"]["same_tokens"].values())
    assert luban.load(made.path).chat("say king", maximum_tokens=4, temperature=0.0) == luban.load(luban.merge(made.path, out=tmp_path / "m").path).chat("say king", maximum_tokens=4, temperature=0.0)


def test_the_card_shows_parity_and_what_was_forgotten(tuned_base):
    from luban.pipeline.card_facts import StageFacts, training_facts

    made = tune(tuned_base, "model", "lora", length="2 steps")
    made.metrics["general"] = {"before": {"bits_per_byte": 2.0}, "after": {"bits_per_byte": 2.5}}
    facts = dict(training_facts(StageFacts("model", artifact=made)).facts)
    assert all(float(facts[name].split()[0]) < 1e-3 and "1e-03 allowed" in facts[name] for name in ("parity: adapter", "parity: merged"))
    assert facts["the base's text, bits a byte"] == "2.000 → 2.500"


@pytest.mark.parametrize("adapter", ["lora", "pissa"])
def test_a_large_model_is_checked_on_its_own_base(tuned_base, monkeypatch, adapter):
    from luban.training import parity

    monkeypatch.setattr(parity, "LARGE", 0)
    opened = []
    monkeypatch.setattr(parity, "open_model", lambda *given, **named: opened.append(given))
    made = tune(tuned_base, "model", adapter, validation={"every": "8 steps", "restore_best": False})
    assert not opened and made.metrics["parity"]["not_merged"] == "large" and made.metrics["parity"]["largest_difference"]["adapter"] < 1e-3
    monkeypatch.undo()
    assert open_model(made.path).adapter


def test_a_large_model_whose_file_says_something_else_is_not_shipped(tuned_base, monkeypatch):
    from luban.adapters import lora
    from luban.training import parity

    monkeypatch.setattr(parity, "LARGE", 0)
    monkeypatch.setattr(lora.Lora, "load", lambda self, model, tensors: {name for name in tensors if "lora" in name})  # reads nothing
    with pytest.raises(LubanError, match="does not say what the trained model says"):
        tune(tuned_base, "model", "lora", validation={"every": "8 steps", "restore_best": False})


def test_an_encoder_decoder_s_greedy_texts_are_those_of_its_adapter_and_of_the_merged_model(tmp_path, monkeypatch):
    from luban.pipeline.card_facts import StageFacts, training_facts
    from luban.training import parity, stage

    tokenizer = tokenizer_of_style("t5")
    tokenizer.save(tmp_path / "base")
    save_model(build_model(shape_of("t5", tokenizer, layers=1)).initialize(1), tmp_path / "base", pad_id=tokenizer.pad_id)
    rows = [{"input": f"the {one} and my {other}", "output": f"{other} {one}"} for one in ("king", "lord", "queen", "man") for other in ("king", "春风", "lord", "queen", "sun")]
    compared = []
    monkeypatch.setattr(stage, "check_parity", lambda training, place: compared.append((training, place)) or parity.check_parity(training, place))
    made = luban.train(
        write(tmp_path / "pairs.jsonl", rows), model=tmp_path / "base", adapter="lora", length="6 steps", out=tmp_path / "model", objective={"name": "translation", "prompt": "reverse: {input}"},
        sequence_length=48, batch_examples=8, threads=1, optimizer={"learning_rate": 3e-2}, track={"tensorboard": False}, validation={"share": 0.2, "every": "6 steps"},
    )  # fmt: skip
    found = made.metrics["parity"]
    assert found["sources"] == 4 and found["same_tokens"] == {"adapter": True, "merged": True}
    facts = dict(training_facts(StageFacts("model", artifact=made)).facts)
    assert all(facts[name].endswith("the same greedy texts for 4 sources") for name in ("parity: adapter", "parity: merged"))
    texts = [row["input"] for row in rows]
    assert luban.predict(made.path, texts) == luban.predict(luban.merge(made.path, out=tmp_path / "merged").path, texts)

    training = compared[0][0]
    whole, generate = parity.open_model, parity.generate_from

    def without_prompt(*given):
        model = whole(*given)
        model.head.settings.pop("prompt")
        return model

    with monkeypatch.context() as changed:  # a note that lost its prompt changes no output on batches that are framed already, only what the predictor reads
        changed.setattr(parity, "open_model", without_prompt)
        with pytest.raises(LubanError, match="does not say what the trained model says"):
            parity.check_parity(training, made.path)
    with monkeypatch.context() as changed:  # outputs alike, and other texts where they are written side by side
        changed.setattr(parity, "generate_from", lambda model, group, *rest, **named: [ids[:-1] if len(group) > 1 else ids for ids in generate(model, group, *rest, **named)])
        with pytest.raises(LubanError, match="does not say what the trained model says"):
            parity.check_parity(training, made.path)
    assert parity.check_parity(training, made.path) == found
