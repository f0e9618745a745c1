"""A model is served in the format it was trained on, or not at all unless that is said by name; and other things asserted at the start."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from serving_lab import make_model

from luban.foundation.artifacts import Work
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.inference.config import SamplingConfig
from luban.serving.config import ServeConfig
from luban.serving.defaults import sampling_of
from luban.serving.stage import open_service, run
from luban.serving.template_check import check_template
from luban.tokenizer.tokenizer import Tokenizer


@pytest.fixture
def trained(model_folder: Path, tmp_path: Path) -> Path:
    """The tiny model with the manifest that training writes."""
    folder = shutil.copytree(model_folder, tmp_path / "trained")
    manifest = {"format": 1, "kind": "train", "fingerprint": "0", "resolved": {"template_fingerprint": Tokenizer.load(folder).fingerprint()}}
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    return folder


def edit(folder: Path, name: str, old: str, new: str) -> None:
    text = (folder / name).read_text(encoding="utf-8")
    assert old in text
    (folder / name).write_text(text.replace(old, new), encoding="utf-8")


def config(folder: Path, **settings: object) -> ServeConfig:
    return build(ServeConfig, {"model": str(folder), "port": 0, **settings})


def test_the_template_it_was_trained_with_passes(trained):
    check_template(trained, Tokenizer.load(trained))
    assert open_service(config(trained), trained).name == "trained"


@pytest.mark.parametrize(("name", "old", "new"), [("tokenizer_config.json", "<|im_start|>", "<|im_end|>"), ("tokenizer.json", '"use_regex": true', '"use_regex": false')])
def test_another_template_or_vocabulary_is_refused_by_both_names(trained, name, old, new):
    before = Tokenizer.load(trained).fingerprint()
    edit(trained, name, old, new)
    after = Tokenizer.load(trained).fingerprint()
    with pytest.raises(DataError) as caught:
        open_service(config(trained), trained)
    assert before in str(caught.value) and after in str(caught.value) and "allow_template_mismatch" in str(caught.value)
    assert open_service(config(trained, allow_template_mismatch=True), trained)


def test_a_directory_without_a_record_passes(model_folder):
    check_template(model_folder, Tokenizer.load(model_folder))


def test_what_is_no_model_is_refused(tmp_path):
    with pytest.raises(DataError, match="config.json"):
        run(config(tmp_path), Work(tmp_path, {"model": tmp_path}))


def test_a_tokenizer_of_another_model_is_refused(model_folder, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "mixed")
    tokenizer = Tokenizer.load(folder)
    tokenizer.core.add_tokens([f"extra{number}" for number in range(50)])
    tokenizer.save(folder)
    with pytest.raises(DataError, match="350 tokens, the model 300"):
        open_service(config(folder), folder)


def test_lengths_beyond_the_model_are_refused(model_folder):
    with pytest.raises(ConfigError, match="4097"):
        open_service(config(model_folder, maximum_length=4097), model_folder)
    assert open_service(config(model_folder, maximum_length=100), model_folder).longest(None) == 100


def test_names_of_vllm_are_answered_with_ours():
    with pytest.raises(LubanError, match="maximum_length"):
        config(Path("m"), max_model_len=5)


def test_the_models_own_sampling_fills_what_is_left_open():
    own = {"temperature": 0.6, "top_p": 0.9, "eos_token_id": 3, "max_length": 20}
    found = sampling_of(own, SamplingConfig(temperature=0.2, maximum_tokens=9))
    assert (found.temperature, found.top_p, found.maximum_tokens) == (0.2, 0.9, 9)
    assert sampling_of({"do_sample": False}, SamplingConfig()).temperature == 0
    assert sampling_of({"top_p": 7}, SamplingConfig(top_k=3)) == SamplingConfig(top_k=3)


def test_a_base_model_continues_and_refuses_to_chat(tmp_path, start):
    import httpx

    server = start(make_model(tmp_path / "base", chat=False), name="base")
    assert httpx.get(server.url + "/v1/models").json()["data"][0]["luban"]["chat"] is False
    refused = httpx.post(server.url + "/v1/chat/completions", json={"messages": [{"role": "user", "content": "Hello"}]})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "no_chat_template" and "/v1/completions" in refused.json()["error"]["message"]
    assert httpx.post(server.url + "/v1/completions", json={"prompt": "Hello", "max_tokens": 3}).status_code == 200
    assert any("/v1/completions" in line for line in server.lines)
