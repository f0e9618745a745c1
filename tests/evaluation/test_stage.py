"""The evaluate stage on small models: against transformers, closed forms and planted overlaps."""

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers
from transformers import AutoModelForCausalLM

from luban.corpus.documents import Document, documents_table
from luban.evaluation import heldout, stage
from luban.evaluation.config import EvaluateConfig
from luban.evaluation.report import print_results
from luban.foundation.artifacts import Artifact, Work
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError
from luban.foundation.messages import set_language
from luban.inference.config import SamplingConfig
from luban.models.decoder import Decoder
from luban.models.huggingface import save_model
from luban.models.shape import ShapeConfig
from luban.tokenizer.templates import CHATML
from luban.tokenizer.tokenizer import Tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
ENGLISH = ["The king shall hear of this before the night is over, my good lord.", "What say you to a walk in the garden, gentle cousin?", "I never in my life saw a fairer morning than this in any town."]
CHINESE = ["床前明月光，疑是地上霜。举头望明月，低头思故乡。", "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。", "白日依山尽，黄河入海流。欲穷千里目，更上一层楼。"]


def byte_tokenizer() -> Tokenizer:
    core = Core(models.BPE(vocab={letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    return Tokenizer(core, {"eos_token": "<|endoftext|>", "chat_template": CHATML})


def make_model(folder: Path, seed: int = 0, scale: float = 1.0, **manifest) -> Artifact:
    shape = build(ShapeConfig, {"vocabulary_size": 259, "layers": 1, "hidden_size": 16, "heads": 2, "maximum_positions": 128})
    model = Decoder(shape)
    model.initialize(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(scale)
    save_model(model, folder)
    byte_tokenizer().save(folder)
    return Artifact(folder, {"kind": "train", "name": folder.name, "fingerprint": folder.name, "config": {}, "resolved": {"sequence_length": 16}, **manifest})


def make_corpus(folder: Path, test: int = 6, train: int = 30) -> Artifact:
    texts = [text + f" {number}" for number in range(20) for text in (*ENGLISH, *CHINESE)]
    splits = {"test": texts[:test], "validation": texts[test : test + 6], "train": texts[test + 6 : test + 6 + train]}
    for split, chosen in splits.items():
        documents = [Document(f"{split}{index}", text, "en" if text.isascii() else "zh") for index, text in enumerate(chosen)]
        (folder / "documents" / split).mkdir(parents=True)
        if documents:
            pq.write_table(documents_table(documents), folder / "documents" / split / "00000.parquet")
    return Artifact(folder, {"kind": "curate", "name": "corpus", "fingerprint": "c"})


def evaluate(folder: Path, models_: list, data, **fields) -> dict:
    out = folder / "out"
    out.mkdir(exist_ok=True)
    paths = {name: fields.pop(name) for name in ("exclude", "conversations") if name in fields}
    fields = {"sampling": {"maximum_tokens": 4, "seed": 0}, **fields}
    config = build(EvaluateConfig, {"models": ["m"], "data": "d", **fields})
    work = Work(out, {"models": models_, "data": data, "exclude": None, "conversations": None, **paths})
    stage.run(config, work)
    work_metrics = json.loads((out / "results.json").read_bytes())
    work_metrics["metrics"] = work.metrics
    return work_metrics


def row(results: dict, name: str) -> dict:
    return next(item for item in results["rows"] if item["name"] == name)


@torch.inference_mode()
def transformers_nats(folder: Path, texts: list[str], context: int) -> list[float]:
    """Sliding windows of ``context`` tokens that move on by half, scored by transformers one window at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = byte_tokenizer()
    totals = []
    for text in texts:
        ids = [tokenizer.end_of_text_id, *tokenizer.encode(text), tokenizer.end_of_text_id]
        total, done = 0.0, 1
        while done < len(ids):
            end = min(len(ids), done + (context if done == 1 else context // 2))
            window = torch.tensor([ids[max(0, end - 1 - context) : end]])
            logits = torch.log_softmax(model(window[:, :-1]).logits[0].double(), -1)
            paid = -logits.gather(1, window[0, 1:, None])[:, 0]
            total += float(paid[-(end - done) :].sum())
            done = end
        totals.append(total)
    return totals


def test_figures_equal_transformers(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    model = make_model(tmp_path / "base", scale=3.0)
    results = evaluate(tmp_path, [model], corpus)
    documents = [json.loads(line) for line in (tmp_path / "out/documents.jsonl").read_text(encoding="utf-8").splitlines()]
    texts = {f"test{index}": text + " 0" for index, text in enumerate((*ENGLISH, *CHINESE))}
    expected = transformers_nats(tmp_path / "base", [texts[item["id"]] for item in documents], 16)
    assert [item["nats"]["base"] for item in documents] == pytest.approx(expected, rel=1e-4)
    sizes = sum(len(text.encode()) for text in texts.values())
    scores = row(results, "base")["scores"]["all"]
    assert scores["bits_per_byte"]["value"] == pytest.approx(sum(expected) / math.log(2) / sizes, rel=1e-4)
    assert scores["loss"]["value"] == pytest.approx(sum(expected) / (sizes + len(texts)), rel=1e-4)
    assert "context:16|stride:8" in scores["bits_per_byte"]["signature"] and "eot:yes" in scores["bits_per_byte"]["signature"]


def test_untrained_is_the_uniform_closed_form_and_an_initialised_model_is_near_it(tmp_path):
    results = evaluate(tmp_path, [make_model(tmp_path / "base", scale=0.1)], make_corpus(tmp_path / "corpus"))
    assert row(results, "untrained")["scores"]["all"]["loss"]["value"] == pytest.approx(math.log(259))
    assert row(results, "base")["scores"]["all"]["loss"]["value"] == pytest.approx(math.log(259), rel=1e-2)
    assert [item["name"] for item in results["rows"]] == ["untrained", "3-gram", "5-gram", "base"]


def test_a_model_that_started_from_another_has_no_untrained_row(tmp_path):
    model = make_model(tmp_path / "chat", config={"model": "base"})
    assert [item["role"] for item in evaluate(tmp_path, [model], make_corpus(tmp_path / "corpus"), baselines=[])["rows"]] == ["model"]


def test_languages_baselines_comparisons_samples(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    chain = [make_model(tmp_path / "base"), make_model(tmp_path / "chat", 1, config={"model": "base"})]
    results = evaluate(tmp_path, chain, corpus, questions=["Who are you?"])
    assert results["languages"]["en"]["documents"] == results["languages"]["zh"]["documents"] == 3
    for item in results["rows"]:  # the whole is the parts weighed by bytes
        parts = sum(item["scores"][name]["bits_per_byte"]["value"] * results["languages"][name]["bytes"] for name in ("en", "zh"))
        assert item["scores"]["all"]["bits_per_byte"]["value"] == pytest.approx(parts / results["bytes"])
    assert row(results, "5-gram")["scores"]["all"]["bits_per_byte"]["value"] < row(results, "untrained")["scores"]["all"]["bits_per_byte"]["value"] / 4
    pairs = [(item["before"], item["after"]) for item in results["comparisons"] if item["language"] == "all"]
    assert pairs[:2] == [("untrained", "base"), ("base", "chat")] and {before for before, _ in pairs[2:]} == {"3-gram", "5-gram"}
    assert [(sample["model"], sample["prompt"]) for sample in results["samples"]][2::3] == [("base", "Who are you?"), ("chat", "Who are you?")]
    assert results["first_tokens"]["base"][0] == byte_tokenizer().end_of_text_id
    assert results["first_tokens"]["base"].count(byte_tokenizer().end_of_text_id) == 1
    assert results["metrics"]["base_bits_per_byte"] == pytest.approx(row(results, "base")["scores"]["all"]["bits_per_byte"]["value"], abs=1e-4)


def test_the_same_model_twice_cannot_be_told_apart(tmp_path, capfd):
    corpus = make_corpus(tmp_path / "corpus")
    results = evaluate(tmp_path, [make_model(tmp_path / "base"), make_model(tmp_path / "copy")], corpus)
    same = next(item for item in results["comparisons"] if (item["before"], item["after"]) == ("base", "copy"))
    assert same["difference"]["value"] == 0 and same["within_noise"]
    print_results(Artifact(tmp_path / "out", {"kind": "evaluate"}))
    assert "copy and base cannot be told apart" in capfd.readouterr().err
    assert "cannot be told apart" in (tmp_path / "out/report.md").read_text(encoding="utf-8")


def test_it_is_deterministic(tmp_path):
    corpus, model = make_corpus(tmp_path / "corpus"), make_model(tmp_path / "base")
    assert evaluate(tmp_path, [model], corpus, maximum_documents=4) == evaluate(tmp_path, [model], corpus, maximum_documents=4)


def test_report_speaks_chinese(tmp_path, capfd):
    set_language("zh")
    evaluate(tmp_path, [make_model(tmp_path / "base")], make_corpus(tmp_path / "corpus"))
    text = (tmp_path / "out/report.md").read_text(encoding="utf-8")
    for word in ("3 元模型", "未训练", "困惑度", "不如"):
        assert word in text
    assert "困惑度" in capfd.readouterr().err


# ----------------------------------------------------------------------------------------------- conversations


def test_conversation_loss_counts_the_assistants_words_and_end_of_turn_only(tmp_path):
    file = tmp_path / "chat.jsonl"
    messages = [{"role": "user", "content": "A long question that nobody learns"}, {"role": "assistant", "content": "Yes."}]
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for _ in range(3)), encoding="utf-8")
    results = evaluate(tmp_path, [make_model(tmp_path / "base", scale=0.0), make_model(tmp_path / "chat", 1)], make_corpus(tmp_path / "corpus"), conversations=file)
    talk = results["conversations"]
    assert talk["documents"] == 3
    assert talk["rows"][0]["scores"]["all"]["loss"]["value"] == pytest.approx(math.log(259), rel=1e-5)
    ids, weights = byte_tokenizer().encode_supervised(messages)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "chat", dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = torch.log_softmax(model(torch.tensor([ids[-8:-1]])).logits[0].double(), -1)  # the last window: 5 learned and the line break
    assert sum(weights) == 5 and weights[-1] == 0
    assert len(logits) == 7 and len(talk["comparisons"]) == 1


# ------------------------------------------------------------------------------------------------ held-out text


def test_sample_depends_on_the_texts_alone(tmp_path):
    texts = [f"document number {index} " * 5 for index in range(300)]
    forwards = [Document(str(index), text) for index, text in enumerate(texts)]
    first, second = heldout.HeldOut([], "test"), heldout.HeldOut([], "test")
    chosen = heldout._sample(forwards, first, 20, 10**9)
    assert len(chosen) == 20 and first.available == 300
    assert [document.text for document in heldout._sample(forwards[::-1], second, 20, 10**9)] == [document.text for document in chosen]
    smaller = heldout._sample(forwards, heldout.HeldOut([], "test"), 20, 900)
    assert sum(len(document.text) for document in smaller) <= 900 and {d.text for d in smaller} <= {d.text for d in chosen}


def test_one_long_document_is_cut_at_a_character():
    chosen = heldout._sample([Document("a", "鲁班" * 1000)], heldout.HeldOut([], "test"), 5, 100)
    assert chosen[0].text == ("鲁班" * 1000)[:33]


def test_documents_that_later_training_quotes_are_left_out(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    quoting = tmp_path / "chat.jsonl"
    answer = "It goes: " + CHINESE[0].replace("，", " ").replace("。", "\n") + " — a poem"
    rows = [{"messages": [{"role": "user", "content": "Recite!"}, {"role": "assistant", "content": answer}]}, {"messages": [{"role": "user", "content": "春眠不觉晓"}]}]
    quoting.write_text("".join(json.dumps(item) + "\n" for item in rows), encoding="utf-8")
    chosen = heldout.choose([corpus], "test", 100, 10**6, [quoting])
    assert chosen.excluded == 1 and not [text for text in chosen.texts if CHINESE[0] in text]
    assert len([text for text in chosen.texts if CHINESE[1] in text]) == 1  # a single line is no passage
    results = evaluate(tmp_path, [make_model(tmp_path / "base")], corpus, exclude=quoting)
    assert results["excluded_documents"] == 1 and "share a passage" in results["notes"][0]


def test_everything_excluded_is_refused(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    quoting = tmp_path / "all.txt"
    quoting.write_text("\n".join((*ENGLISH, *CHINESE)), encoding="utf-8")
    with pytest.raises(DataError, match="no held-out document is left"):
        heldout.choose([corpus], "test", 100, 10**6, [quoting])


def test_an_empty_test_split_falls_back_to_validation_and_says_so(tmp_path):
    results = evaluate(tmp_path, [make_model(tmp_path / "base")], make_corpus(tmp_path / "corpus", test=0))
    assert results["split"] == "validation" and "no test split" in results["notes"][0]


def test_plain_files_can_be_scored(tmp_path):
    (tmp_path / "a.txt").write_text(ENGLISH[0], encoding="utf-8")
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": CHINESE[0]}) + "\nnot json\n", encoding="utf-8")
    results = evaluate(tmp_path, [make_model(tmp_path / "base")], [tmp_path / "a.txt", tmp_path / "b.jsonl"])
    assert results["documents"] == 2 and set(results["languages"]) == {"en", "zh"}
    assert "no n-gram baseline" in results["notes"][0]


def test_nothing_to_score_is_refused(tmp_path):
    with pytest.raises(DataError, match="no held-out text"):
        heldout.choose([make_corpus(tmp_path / "empty", test=0, train=0)], "train", 10, 10, [])
    with pytest.raises(DataError, match="holds no text"):
        heldout.choose([Artifact(tmp_path, {"kind": "encode"})], "test", 10, 10, [])


def test_configs_that_make_no_sense_are_refused(tmp_path):
    for wrong in ({"models": []}, {"baselines": [5, 3]}, {"baselines": [0]}, {"split": "train"}, {"maximum_bytes": 0}):
        with pytest.raises(ConfigError):
            build(EvaluateConfig, {"models": "m", "data": "d", **wrong})
    with pytest.raises(ConfigError, match="models"):
        build(EvaluateConfig, {"model": "m", "data": "d"})
    model = make_model(tmp_path / "base")
    with pytest.raises(ConfigError, match="named twice"):
        evaluate(tmp_path, [model, model], make_corpus(tmp_path / "corpus"))


def test_a_training_text_over_the_limit_is_sampled_and_noted(tmp_path):
    corpus = make_corpus(tmp_path / "corpus")
    texts, whole = heldout.training_texts([corpus], 500)
    assert 0 < sum(len(text.encode()) for text in texts) <= 500 and not whole
    assert heldout.training_texts([corpus], 10**6)[1]
    assert np.all([len(text) for text in texts])
    results = evaluate(tmp_path, [make_model(tmp_path / "base")], corpus, baseline_bytes=500, sampling=SamplingConfig(maximum_tokens=2, seed=1).model_dump())
    assert "baseline_bytes" in results["notes"][0]
