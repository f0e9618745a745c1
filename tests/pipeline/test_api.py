"""The same verbs in Python."""

from __future__ import annotations

import pandas
import pytest
from tiny import tiny_recipe, write_text

import luban
from luban.foundation.errors import ConfigError


def test_run_a_dictionary_and_load_the_model(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    artifacts = luban.run(tiny_recipe(tmp_path), out=tmp_path / "made")
    assert [artifact.kind for artifact in artifacts] == ["curate", "train_tokenizer", "encode", "train"]
    model = luban.load(tmp_path / "made" / "base")
    texts = [model.generate("the king") for _ in range(8)]  # drawn anew each time; so small a model may end at once
    assert all(isinstance(text, str) for text in texts) and any(texts)


def test_verbs_take_paths_rows_and_frames(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"text": f"the king and queen number {n} shall love the night"} for n in range(30)]
    from_rows = luban.curate(rows, out="rows", workers=1, deduplicate={"near": "off"})
    from_frame = luban.curate(sources=pandas.DataFrame(rows), out="frame", workers=1, deduplicate={"near": "off"})
    assert from_rows.metrics["train_documents"] == from_frame.metrics["train_documents"] == 30
    corpus = luban.curate(write_text(tmp_path), out="corpus", workers=1)
    tokenizer = luban.train_tokenizer(corpus, out="tokenizer", vocabulary_size=300)
    tokens = luban.encode(corpus=corpus, tokenizer=tokenizer, out="tokens")
    assert tokens.path.name == "tokens"


def test_wrong_fields_are_named():
    with pytest.raises(ConfigError, match="did you mean sources"):
        luban.curate(source="x")
    with pytest.raises(AttributeError, match="trian"):
        getattr(luban, "trian")  # noqa: B009
    assert "train" in dir(luban)


def test_train_on_a_text_file_needs_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    shape = {"layers": 1, "hidden_size": 32, "heads": 2, "head_dim": 16, "feed_forward_size": 64, "maximum_positions": 64}
    made = luban.train("text.txt", out="model", shape=shape, sequence_length=32, batch_tokens=64, length="2 steps")
    assert made.kind == "train" and (tmp_path / "model" / "config.json").exists()
    conversations = [{"messages": [{"role": "user", "content": f"who is {n}"}, {"role": "assistant", "content": f"king {n}"}]} for n in range(20)]
    tuned = luban.train(conversations, model=made, objective="instruction", out="tuned", sequence_length=32, batch_tokens=64, length="2 steps", threads=1)
    assert tuned.metrics["conversations"] > 0
    assert luban.load(tuned.path).chat([{"role": "user", "content": "who is 3"}]) is not None


def test_ones_own_objective_and_callback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "from luban.objectives.base import Term\nfrom luban.objectives.causal import Causal\n"
        "class Twice(Causal):\n    name = 'twice'\n    def terms(self, model, batch):\n        return {'loss': Term(super().terms(model, batch)['loss'].sum, weight=2.0)}\n"
        "seen = []\ndef stop_at_three(run):\n    seen.append(run.step)\n    if run.step == 3:\n        run.stop_reason = 'enough'\n",
        encoding="utf-8",
    )
    recipe = tiny_recipe(tmp_path, objective="mine.py:Twice", callbacks=["mine.py:stop_at_three"])
    made = luban.run(recipe, out="made")[-1]
    assert made.metrics["steps"] == 3


def test_one_verb_leaves_its_artifact_and_nothing_else(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_text(tmp_path)
    luban.curate("text.txt", out="corpus", workers=1)
    luban.curate("text.txt", out="other", workers=1)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(".")) == ["corpus", "other", "text.txt"]


def test_ones_own_metric(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(
        "def vocabulary(model, texts):\n    assert all(isinstance(text, str) for text in texts)\n    return model.tokenizer.vocabulary_size\ndef broken(model, texts):\n    return 1 / 0\n", encoding="utf-8"
    )
    recipe = tiny_recipe(tmp_path, length="2 steps")
    recipe["stages"]["report"] = {"kind": "evaluate", "models": "base", "data": "corpus", "metrics": "mine.py:vocabulary", "baselines": [2]}
    recipe["stages"]["report"]["metrics"] = ["mine.py:vocabulary"]
    report = luban.run(recipe, out="made")[-1]
    assert "| base | 300 |" in (report.path / "report.md").read_text(encoding="utf-8")
    assert "your own metrics" in capsys.readouterr().err
    recipe["stages"]["report"]["metrics"] = ["mine.py:broken"]
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        luban.run(recipe, out="made")


def test_rows_that_cannot_be_used_are_kept_with_their_reasons(tmp_path, monkeypatch):
    import json

    monkeypatch.chdir(tmp_path)
    base = luban.run(tiny_recipe(tmp_path, length="2 steps"), out="made")[-1]
    good = [json.dumps({"messages": [{"role": "user", "content": f"q{n}"}, {"role": "assistant", "content": f"a{n}"}]}) for n in range(12)]
    (tmp_path / "chat.jsonl").write_text("\n".join([*good, "{broken", '{"other": 1}']), encoding="utf-8")
    tuned = luban.train("chat.jsonl", objective="instruction", model=base, out="tuned", sequence_length=32, batch_tokens=64, length="2 steps", threads=1)
    aside = [json.loads(line) for line in (tuned.path / "training" / "set_aside.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["line"] for row in aside] == [13, 14] and all(row["reason"] for row in aside)
    assert tuned.metrics["bad_rows"] == 2
