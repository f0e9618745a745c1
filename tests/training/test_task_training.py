"""Training on labelled examples, whole: it learns, restores its best weights, continues to the same bits, and names what is wrong with the data."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest
from safetensors.torch import load_file
from tiny import write_words

import luban
from luban.foundation.artifacts import open_artifact
from luban.foundation.errors import ConfigError, DataError, Interrupted
from luban.planning import dial

GOOD, BAD = ["good", "fine", "great", "好"], ["bad", "poor", "awful", "差"]
FILL = ["the", "film", "was", "a", "very", "plot", "电", "影", "很", "and"]
SHAPE = {"architecture": "bert", "layers": 2, "hidden_size": 32, "heads": 2, "feed_forward_size": 64, "maximum_positions": 32, "vocabulary_size": 40, "initializer_deviation": 0.2}
QUICK = {"shape": SHAPE, "sequence_length": 16, "batch_examples": 8, "optimizer": {"learning_rate": 5e-3}, "threads": 1, "determinism": "strict", "validation": {"every": "20 steps"}, "track": {"tensorboard": False}}


HALF = {"share": 0.3, "every": "12 steps"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_words(tmp_path / "tokenizer", [*GOOD, *BAD, *FILL])
    write(tmp_path / "train.jsonl", rows(160))
    return tmp_path


def rows(count: int) -> list[dict]:
    """Texts whose one telling word says the label."""
    draw = random.Random(0)
    made = []
    for number in range(count):
        label, words = ("pos", GOOD) if number % 2 else ("neg", BAD)
        said = draw.choices(FILL, k=draw.randint(2, 4))
        said.insert(draw.randint(0, len(said)), words[number // 2 % 4])
        made.append({"text": " ".join(said), "label": label})
    return made


def write(path: Path, made: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made), encoding="utf-8")
    return path


def train(folder: Path, out: str, **fields):
    return luban.train(folder / "train.jsonl", **{"objective": "classification", "tokenizer": folder / "tokenizer", "out": folder / out, "length": "5 epochs", **QUICK, **fields})


def test_a_task_is_learned_and_the_folder_predicts_alone(folder):
    made = train(folder, "model", validation=HALF)
    assert made.metrics["after"]["accuracy"] > 0.9 and made.metrics["before"]["accuracy"] < 0.9
    assert made.metrics["labels"] == ["neg", "pos"]
    said = luban.predict(folder / "model", ["the film was great", "电影很差"])
    assert [item["label"] for item in said] == ["pos", "neg"]
    assert json.loads((folder / "model" / "config.json").read_bytes())["architectures"] == ["BertForSequenceClassification"]


def test_an_encoder_of_transformers_learns_a_task_and_predicts_alone(folder):
    """An architecture that Luban has no modules for."""
    import torch
    import transformers

    torch.manual_seed(1)
    config = transformers.ElectraConfig(vocab_size=40, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, max_position_embeddings=32, hidden_dropout_prob=0.0, initializer_range=0.2)
    transformers.AutoModelForMaskedLM.from_config(config).save_pretrained(folder / "electra")
    (folder / "tokenizer" / "tokenizer.json").rename(folder / "electra" / "tokenizer.json")
    (folder / "tokenizer" / "tokenizer_config.json").rename(folder / "electra" / "tokenizer_config.json")
    fields = {**QUICK, "objective": "classification", "model": folder / "electra", "length": "2 epochs", "validation": {**HALF, "restore_best": False}}
    fields.pop("shape")
    made = luban.train(folder / "train.jsonl", out=folder / "model", **fields)
    again = luban.train(folder / "train.jsonl", out=folder / "again", **{**fields, "model": folder / "model", "length": "2 steps"})
    assert made.metrics["after"]["loss"] < made.metrics["before"]["loss"] and again.metrics["labels"] == ["neg", "pos"]
    assert again.metrics["before"]["loss"] == pytest.approx(made.metrics["after"]["loss"], rel=1e-5)  # with the head it had
    said = luban.predict(folder / "model", ["the film was great"])[0]
    assert set(said["probabilities"]) == {"neg", "pos"}
    assert json.loads((folder / "model" / "config.json").read_bytes())["architectures"] == ["ElectraForSequenceClassification"]


@pytest.mark.parametrize(
    "settings",
    [
        {"r_drop": 1.0, "average": "exponential", "average_decay": 0.9, "dropout": 0.2},
        {"adversarial": {"method": "freelb", "steps": 2}, "neftune": 2.0, "unfreeze_every": "6 steps"},
        {"adversarial": {"method": "smart", "step_size": 1e-3, "epsilon": 1e-3, "proximal": 1.0, "momentum": 0.9}, "dropout": 0.2},
        {"mixup": 0.5, "curriculum": 0.5, "average": "validations", "layer_decay": 0.8, "l1": 1e-5},
    ],
)
def test_a_stopped_training_continues_to_the_same_bits(folder, settings):
    (folder / "stop.py").write_text(
        "from pathlib import Path\n"
        "def at_ten(run):\n"
        "    flag = Path(__file__).with_name('stop-now')\n"
        "    if flag.exists() and run.step == 10:\n"
        "        flag.unlink()\n"
        "        run.stop_reason = 'SIGTERM'\n"
    )
    fields = {"regularization": settings, "callbacks": [str(folder / "stop.py") + ":at_ten"], "length": "16 steps", "checkpoint": {"every": "4 steps"}}
    train(folder, "whole", **fields)
    (folder / "stop-now").touch()
    with pytest.raises(Interrupted):
        train(folder, "parts", **fields)
    train(folder, "parts", **fields)
    whole, parts = (load_file(folder / name / "model.safetensors") for name in ("whole", "parts"))
    assert all((whole[name] == parts[name]).all() for name in whole)
    assert open_artifact(folder / "whole").metrics["after"] == open_artifact(folder / "parts").metrics["after"]


def test_the_best_weights_are_kept_and_early_stopping_goes_by_the_main_metric(folder):
    made = train(folder, "model", length="12 epochs", validation={"every": "4 steps", "patience": 2, "share": 0.2})
    assert made.metrics["best_metric"] == "accuracy" and made.metrics["best_validation"] == made.metrics["after"]["accuracy"]
    assert made.metrics["steps"] < 120
    assert not (folder / "model" / "training" / "best.safetensors").exists()


def test_cross_validation_reports_every_fold_and_saves_a_model_of_all(folder):
    made = train(folder, "model", validation={"folds": 3}, length="1 epochs")
    found = made.metrics["folds"]["accuracy"]
    assert len(found["values"]) == 3 and 0 <= found["deviation"] < 1 and found["mean"] == pytest.approx(sum(found["values"]) / 3)
    assert (folder / "model" / "model.safetensors").exists() and not (folder / "model" / "training" / "folds" / "0").exists()


def test_labels_that_training_does_not_have_are_counted_and_one_label_is_refused(folder):
    write(folder / "test.jsonl", [*rows(8), {"text": "a new kind", "label": "mixed"}])
    made = train(folder, "model", length="2 steps", validation_data=folder / "test.jsonl")
    assert made.metrics["refused"] == {"a label that no training example has": 1}
    write(folder / "train.jsonl", [row for row in rows(40) if row["label"] == "pos"])
    with pytest.raises(DataError, match="only one label"):
        train(folder, "one")


def test_the_wrong_kind_of_model_is_refused_before_anything_is_read(folder):
    with pytest.raises(ConfigError, match="cannot be learned by bert"):
        train(folder, "model", objective="instruction")


def test_regression_predicts_in_the_units_of_the_data(folder):
    write(folder / "train.jsonl", [{"text": row["text"], "score": 100.0 + 50.0 * (row["label"] == "pos")} for row in rows(160)])
    made = train(folder, "model", objective="regression", mapping={"label": "score"}, length="8 epochs", validation=HALF)
    said = [item["value"] for item in luban.predict(folder / "model", ["the film was great", "the film was awful"])]
    assert said[0] == pytest.approx(150, abs=15) and said[1] == pytest.approx(100, abs=15)
    assert made.metrics["after"]["spearman"] > 0.8


def test_several_models_answer_together_and_teach_one(folder):
    for number in (1, 2):
        train(folder, f"model-{number}", seed=number)
    write(folder / "more.jsonl", rows(24))
    made = luban.ensemble([str(folder / "model-1"), str(folder / "model-2")], how="stack", data=folder / "more.jsonl", out=folder / "both")
    assert made.metrics["members"] == 2
    said = luban.predict(folder / "both", ["the film was great"])[0]
    assert said["label"] == "pos" and sum(said["probabilities"].values()) == pytest.approx(1)
    pupil = train(folder, "pupil", objective={"name": "distillation", "teacher": [str(folder / "model-1"), str(folder / "model-2")], "weight": 1.0})
    assert pupil.metrics["after"]["accuracy"] > 0.9


# ---- what is wrong with the data is counted and said


def test_what_cannot_be_read_whole_or_at_all_is_counted(folder, capfd):
    long = [{"text": " ".join(FILL * 5), "label": "pos"}, {"text": " ".join(BAD * 9), "label": "neg"}]
    write(folder / "train.jsonl", [*rows(40), *long])
    write(folder / "held.jsonl", [*rows(8), {"text": "", "label": "pos"}, {"text": "the plot", "label": "unheard"}])
    made = train(folder, "model", length="2 steps", validation_data=folder / "held.jsonl")
    assert made.metrics["noticed"] == {"texts are longer than sequence_length: what does not fit is not read": 2}
    assert made.metrics["bad_rows"] == 1 and made.metrics["refused"] == {"a label that no training example has": 1}
    set_aside = [json.loads(line) for line in (made.path / "training" / "set_aside.jsonl").read_text().splitlines()]
    assert [(Path(row["file"]).name, row["line"], row["reason"]) for row in set_aside] == [("held.jsonl", 9, "the text is empty")]
    assert "2 texts are longer than sequence_length" in capfd.readouterr().err
    luban.evaluate(models=made.path, data=folder / "held.jsonl", out=folder / "report")
    said = json.loads((folder / "report" / "results.json").read_text())["notes"]
    assert len(said) == 1 and said[0].startswith("1 labels of the examples are none of the model's") and "unheard" in said[0]


def test_files_without_labels_are_named(folder):
    (folder / "train.jsonl").write_text("".join(json.dumps({"text": row["text"], "remark": f"words and words {number}"}) + "\n" for number, row in enumerate(rows(30))))
    for objective in ("classification", "regression", "multi_label", "pattern"):
        with pytest.raises(DataError, match="no example has a label: .*train.jsonl(.|\n)*remark"):
            train(folder, "model", objective=objective)


def test_tuning_rates_follow_width_family_and_method():
    def rate(width: int, architecture: str) -> float:
        return dial.learning_rates("adamw", width, "classification", True, architecture)["learning_rate"]

    assert [rate(width, "bert") for width in (768, 1024)] == [2e-5, 1.1e-5] and rate(384, "roberta") == 8e-5
    assert all(1e-4 <= rate(width, "t5") <= 4.5e-4 for width in (512, 768, 1024)) and rate(64, "mt5") == 1e-3
    full = dial.learning_rates("adamw", 768, "classification", True, "bert")
    assert dial.adapter_rates(full, "lora")["learning_rate"] == 5e-4
