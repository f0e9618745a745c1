"""Texts that models write: an OpenAI-compatible server on this machine, model directories, keys that stay secret, runs that were killed."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest
import torch
from completions_server import cut, serving
from tokenizers import AddedToken, decoders, models, pre_tokenizers
from tokenizers import Tokenizer as Core

import luban
from luban.examples.augmentation_endpoint import Endpoint
from luban.examples.augmentation_models import filled, language_of
from luban.examples.augmentation_writer import ModelWriter
from luban.examples.config import AugmentConfig, EndpointConfig
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, LubanError
from luban.models.families import build_model, family_of
from luban.models.heads import Head
from luban.models.huggingface import save_model

ROWS = [(f"hotel number {number} was quiet", "good") for number in range(6)] + [(f"第{number}家酒店很吵", "bad") for number in range(6)]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "train.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in ROWS), encoding="utf-8")
    return path


def made_rows(artifact):
    rows = [json.loads(line) for line in (artifact.path / "examples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]
    return [row for row in rows if row["made_by"] != "original"]


def endpoint(url, **more):
    return {"base_url": url, "model": "writer", **more}


def test_back_translation_asks_twice(tmp_path, data):
    with serving(lambda prompt, number: prompt.rpartition("\n\n")[2] + " indeed") as server:
        made = luban.augment(
            data, out=tmp_path / "out", eda={"copies": 0}, back_translation={"copies": 1, "through": "French"}, endpoint=endpoint(server.url, temperature=0.5)
        )
    rows = made_rows(made)
    assert [(row["text"], row["label"]) for row in rows] == [(f"{text} indeed indeed", label) for text, label in ROWS]
    assert len(server.asked) == 24 and Counter("French" in item["messages"][0]["content"] for item in server.asked) == {True: 12, False: 12}
    back = [item["messages"][0]["content"] for item in server.asked if "French" not in item["messages"][0]["content"]]
    assert Counter(("English" in prompt, "Chinese" in prompt) for prompt in back) == {(True, False): 6, (False, True): 6}
    assert {item["path"] for item in server.asked} == {"/v1/chat/completions"} and {item["temperature"] for item in server.asked} == {0.5}
    assert {item["key"] for item in server.asked} == {None}


def test_paraphrases_and_new_texts(tmp_path, data):
    def reply(prompt, number):
        if "class" in prompt:
            return f"<think>hm</think>“新的文本 {number}”"
        text = prompt.rpartition("\n\n")[2]
        return {"0": "", "1": cut("cut off"), "2": text}.get(text[13:14], f"in other words {text}")

    with serving(reply) as server:
        made = luban.augment(
            data, out=tmp_path / "out", eda={"copies": 0}, paraphrase={"copies": 1}, synthesis={"per_label": 3, "shots": 2}, only=["good"], endpoint=endpoint(server.url)
        )
    report = json.loads((made.path / "report.json").read_text(encoding="utf-8"))
    assert report["methods"] == {"paraphrase": {"tried": 6, "made": 3, "cut": 1, "empty": 1, "unchanged": 1}, "synthesis": {"tried": 3, "made": 3}}
    rows = made_rows(made)
    assert {row["text"] for row in rows if row["made_by"] == "paraphrase"} == {f"in other words hotel number {number} was quiet" for number in (3, 4, 5)}
    assert all(row["text"].startswith("新的文本") and row["label"] == "good" and row["source"] == "label good" for row in rows if row["made_by"] == "synthesis")
    shown = [item["messages"][0]["content"] for item in server.asked if "class" in item["messages"][0]["content"]]
    assert all(prompt.count("- hotel number") == 2 and '"good"' in prompt for prompt in shown)


def test_entities_of_paraphrases_are_found_or_given_up(tmp_path):
    (tmp_path / "ner.jsonl").write_text("".join(json.dumps({"text": f"Ann saw Bob {number}", "label": [[0, 3, "PER"], [8, 11, "PER"]]}) + "\n" for number in range(4)), encoding="utf-8")
    replies = ["Bob was seen by Ann", "somebody saw Bob", "Ann and Ann saw Bob", "Bob and Ann"]
    with serving(lambda prompt, number: replies[int(prompt[-1])]) as server:
        made = luban.augment(tmp_path / "ner.jsonl", out=tmp_path / "out", task="tagging", eda={"copies": 0}, paraphrase={"copies": 1}, endpoint=endpoint(server.url))
    rows = made_rows(made)
    assert [row["text"] for row in rows] == [replies[0], replies[3]] and rows[0]["spans"] == [[16, 19, "PER"], [0, 3, "PER"]]
    assert json.loads((made.path / "report.json").read_text(encoding="utf-8"))["methods"]["paraphrase"]["spans lost"] == 2


# -------------------------------------------------------------------------------------------------- trouble and secrets


def writer(url, **more):
    waits = []
    return Endpoint(build(EndpointConfig, endpoint(url, **more)), waits.append), waits


def test_busy_servers_are_asked_again():
    replies = {1: (503, "busy", {}), 2: (429, "slow down", {"Retry-After": "7"}), 3: (429, "", {"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), 4: "done"}
    with serving(lambda prompt, number: replies[number]) as server:
        client, waits = writer(server.url, concurrency=1)
        assert client.write(["x"], 1) == [("done", "")] and waits == [1.0, 7.0, 4.0]


def test_answers_come_in_order_however_late():
    def reply(prompt, number):
        time.sleep(0.03 * (5 - int(prompt)))
        return f"answer {prompt}"

    with serving(reply) as server:
        assert writer(server.url, concurrency=5)[0].write(list("01234"), 1) == [(f"answer {number}", "") for number in range(5)]


def test_servers_that_do_not_serve(monkeypatch):
    monkeypatch.setenv("WRITER_KEY", "very-secret-key")
    for status, body, headers, said in (
        (401, "wrong key very-secret-key", {}, "refuses the key"),
        (404, '{"error": "no model writer"}', {}, "no model writer"),
        (302, "", {"Location": "http://elsewhere.example/"}, "redirects are not followed"),
        (200, "<html>", {}, "no JSON"),
        (200, '{"choices": []}', {}, "no chat completion"),
        (200, '{"choices": [{"message": {"content": 5}}]}', {}, "no chat completion"),
        (500, "very-secret-key broke", {}, "after 3 tries"),
    ):
        with serving(lambda prompt, number, reply=(status, body, headers): reply) as server:
            client, _ = writer(server.url, key_variable="WRITER_KEY", retries=2)
            with pytest.raises(LubanError, match=said) as error:
                client.write(["x"], 1)
            assert "very-secret-key" not in str(error.value)
            assert {item["key"] for item in server.asked} == {"Bearer very-secret-key"}
    client, waits = writer(server.url, retries=1)
    with pytest.raises(LubanError, match="after 2 tries"):
        client.write(["x"], 1)
    assert waits == [1.0]
    with serving(lambda prompt, number: time.sleep(0.5) or "late") as server, pytest.raises(LubanError, match="timed out"):
        writer(server.url, timeout_seconds=0.1, retries=0)[0].write(["x"], 1)


def test_texts_that_are_too_long_are_not_sent():
    with serving(lambda prompt, number: "short") as server:
        assert writer(server.url, maximum_characters=10)[0].write(["x" * 11, "x"], 1) == [("", "too long"), ("short", "")]
        assert len(server.asked) == 1


def test_a_key_is_never_written_down(tmp_path, data, monkeypatch):
    monkeypatch.setenv("WRITER_KEY", "very-secret-key")
    with serving(lambda prompt, number: f"other words {number}") as server:
        made = luban.augment(data, out=tmp_path / "out", paraphrase={"copies": 1}, endpoint=endpoint(server.url, key_variable="WRITER_KEY"))
        assert made.metrics["made"] > 12 and {item["key"] for item in server.asked} == {"Bearer very-secret-key"}
        for file in tmp_path.rglob("*"):
            assert not file.is_file() or b"very-secret-key" not in file.read_bytes(), file
        monkeypatch.setenv("OTHER_KEY", "another")
        again = luban.augment(data, out=tmp_path / "out", paraphrase={"copies": 1}, endpoint=endpoint(server.url, key_variable="OTHER_KEY"))
        assert again.manifest["started"] == made.manifest["started"], "another key makes nothing stale"
        with pytest.raises(ConfigError, match="NO_SUCH_KEY is not set"):
            luban.augment(data, out=tmp_path / "two", paraphrase={"copies": 1}, endpoint=endpoint(server.url, key_variable="NO_SUCH_KEY"))


@pytest.mark.parametrize(
    "fields", [{"key_variable": "sk-abcdefSECRET"}, {"key_variable": "aB3dE5gH7jK9mN1pQ3sT5vX7zSECRET"}, {"base_url": "https://user:SECRET@host/v1"}, {"base_url": "https://host/v1?key=SECRET"}]
)
def test_a_key_in_the_recipe_is_refused_and_not_repeated(fields):
    with pytest.raises(ConfigError, match="key") as error:
        build(AugmentConfig, {"data": "x", "endpoint": {**endpoint("https://host/v1"), **fields}})
    assert "SECRET" not in str(error.value)
    with pytest.raises(ConfigError, match="key_variable"):
        build(AugmentConfig, {"data": "x", "endpoint": {"api_key": "x"}})


@pytest.mark.slow
def test_a_killed_run_asks_only_for_what_is_missing(tmp_path):
    """SIGKILL in the middle: the second run asks for no piece that the first one finished."""
    data = tmp_path / "train.csv"
    data.write_text("text,label\n" + "".join(f"text number {number},{'ab'[number % 2]}\n" for number in range(200)), encoding="utf-8")

    def reply(prompt, number):
        if number > 108 and not killed:
            time.sleep(1.0)
        return f"other words for {prompt.rpartition(' ')[2]}"

    killed = []
    with serving(reply) as server:
        command = [sys.executable, "-m", "luban", "augment", str(data), "--eda.copies", "0", "--paraphrase.copies", "1", "--out", str(tmp_path / "out")]
        command += ["--endpoint.base_url", server.url, "--endpoint.model", "m", "--endpoint.concurrency", "1"]
        process = subprocess.Popen(command, stderr=subprocess.DEVNULL, env={**os.environ, "OMP_NUM_THREADS": "1"})
        while len(server.asked) < 110 and process.poll() is None:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        killed.append(True)
        assert sorted(path.name for path in (tmp_path / "out.partial" / "pieces").glob("[0-9]*")) == ["000000.jsonl"]
        before = len(server.asked)
        assert subprocess.run(command, stderr=subprocess.DEVNULL).returncode == 0
        assert len(server.asked) - before == 200 - 64
    rows = (tmp_path / "out" / "examples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert len(rows) == 400 and len({json.loads(row)["text"] for row in rows}) == 400


# ------------------------------------------------------------------------------------------------------ model directories


def write_model(folder, architecture, head=None, template=None, **changes):
    """A tiny random model over bytes, of which every text ends soon or is cut."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Core(models.BPE(vocab={letter: index for index, letter in enumerate(letters)}, merges=[]))
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False), decoders.ByteLevel()
    core.add_special_tokens([AddedToken(name, special=True) for name in ("<pad>", "</s>")])
    plain = {"architecture": architecture, "vocabulary_size": 258, "layers": 1, "hidden_size": 32, "heads": 2, "maximum_positions": 400}
    if architecture == "t5":
        plain |= {"decoder_layers": 1, "initializer": "normal", "initializer_deviation": 0.6, "end_ids": [257], "decoder_start_id": 256}
    model = build_model(build(family_of(architecture).shape, {**plain, **changes})).initialize(3).eval()
    if architecture == "t5":
        with torch.no_grad():
            model.embedding.weight[257] *= 5
    if head:
        model.head = head
    save_model(model, folder, end_ids=[257], pad_id=256)
    write_bytes(folder / "tokenizer.json", core.to_str().encode())
    config = {"eos_token": "</s>", "pad_token": "<pad>", "tokenizer_class": "PreTrainedTokenizerFast"}
    write_json(folder / "tokenizer_config.json", config | ({"chat_template": template} if template else {}))
    return folder


def test_a_seq2seq_model_writes_the_same_alone_and_among_others(tmp_path):
    folder = write_model(tmp_path / "t5", "t5", Head("language_model", "translation", settings={"prompt": "{input}", "maximum_input": 60, "maximum_output": 20}))
    for temperature in (0.0, 1.5):
        model = ModelWriter(folder, temperature)
        assert model.from_text
        texts = ["hello", "你好", "z" * 100, "good night", "a b c", "谢谢你"]
        together = model.write(texts, 5)
        assert together == [model.write([text], 5)[0] for text in texts] and together[2] == ("", "too long")
        assert all((text == "") == bool(problem) for text, problem in together)
    assert model.write(texts, 5) != model.write(texts, 6), "another seed draws other texts"
    assert any(text for seed in range(6) for text, _ in model.write(texts, seed))


def test_back_translation_by_model_directories(tmp_path, data):
    settings = {"prompt": "{input}", "maximum_input": 120, "maximum_output": 40}
    folder = write_model(tmp_path / "t5", "t5", Head("language_model", "translation", settings=settings))
    made = luban.augment(
        data, out=tmp_path / "out", eda={"copies": 0}, back_translation={"copies": 2, "there": str(folder), "back": str(folder), "temperature": 1.5}
    )
    counts = json.loads((made.path / "report.json").read_text(encoding="utf-8"))["methods"]["back_translation"]
    assert counts["tried"] == 24 == sum(count for name, count in counts.items() if name != "tried")
    labels = dict(zip([f"train.csv:{number}" for number in range(2, 14)], [label for _, label in ROWS], strict=True))
    assert counts["made"] > 0 and all(row["label"] == labels[row["source"]] for row in made_rows(made))


def test_a_decoder_is_asked_with_the_prompt(tmp_path):
    template = "{% for message in messages %}{{ message['content'] }}{% endfor %}:"
    folder = write_model(tmp_path / "llama", "llama", template=template)
    model = ModelWriter(folder, 0.0)
    assert not model.from_text
    found = model.write(["Say it again", "x" * 300], 1)
    assert found[1] == ("", "too long") and found[0] in [("", "cut"), ("", "empty")] or found[0][0]
    with pytest.raises(ConfigError, match="writes no texts"):
        ModelWriter(write_model(tmp_path / "bert", "bert"), 0.0)


def test_prompts():
    assert filled("{text} in {language}: {other} {}", text="{language}", language="English") == "{language} in English: {other} {}"
    assert language_of("这家酒店 has 很好的 wifi") == "Chinese" and language_of("the hotel 北京") == "English" == language_of("")
