"""Several adapters behind one server: a request chooses by name, and what shares a batch does not mix."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import pytest
import torch
from serving_lab import make_model

from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig, PrefixConfig, PromptConfig, PTuningConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError
from luban.inference.generate import LoadedModel
from luban.inference.predictor import Predictor
from luban.models.heads import Head
from luban.models.huggingface import load_model
from luban.serving.config import ServeConfig
from luban.serving.stage import open_service
from luban.tokenizer.tokenizer import Tokenizer

PROMPT = "What is"
ADAPTERS = {
    "small": LoraConfig(rank=2), "large": LoraConfig(method="dora", rank=4), "attention": LoraConfig(targets=["q_proj", "v_proj"]),
    "prompt": PromptConfig(tokens=4), "made": PTuningConfig(tokens=9, width=8), "prefix": PrefixConfig(tokens=6),
}  # fmt: skip
PLACES = {"prompt": 4, "made": 9, "prefix": 6}  # before a text


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and adapters that say different things."""
    root = tmp_path_factory.mktemp("adapters")
    make_model(root / "base", maximum_positions=256)
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        model = load_model(root / "base")
        attach(model, config, seed)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(torch.randn(value.shape, generator=generator) * 0.5)
        save_adapter(model, root / name, root / "base", Tokenizer.load(root / "base"))
        Tokenizer.load(root / "base").save(root / name)
    return root


def test_one_batch_of_many_adapters_is_each_alone(folders, start):
    names = ["base", *ADAPTERS]
    models = {name: LoadedModel(open_model(folders / name), Tokenizer.load(folders / "base")) for name in names}
    truth = {name: model.generate(PROMPT, temperature=0.0, maximum_tokens=24) for name, model in models.items()}
    assert len(set(truth.values())) == len(names)
    running = start(folders / "base", adapters=[str(folders / name) for name in names[1:]], slots=8, name="base")

    async def all_at_once() -> list[tuple[str, httpx.Response]]:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            asked = [name for _ in range(2) for name in names]
            answers = await asyncio.gather(*(client.post("/v1/completions", json={"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 24}) for name in asked))
            return list(zip(asked, answers, strict=True))

    length = len(Tokenizer.load(folders / "base").encode(PROMPT))
    for name, answer in asyncio.run(all_at_once()):
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == truth[name] and answer.json()["model"] == name
        assert answer.json()["usage"].items() >= {"prompt_tokens": length, "completion_tokens": 24, "total_tokens": length + 24}.items()
    assert running.metric("luban_prompt_tokens_total") == 2 * length * len(names)
    listed = httpx.get(f"{running.url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == names and listed[1]["parent"] == "base"
    assert {model["id"]: 256 - model["max_model_len"] for model in listed} == {name: PLACES.get(name, 0) for name in names}
    assert httpx.post(f"{running.url}/v1/completions", json={"model": "nobody", "prompt": "a"}).status_code == 404
    assert httpx.get(f"{running.url}/v1/models/large").json()["id"] == "large"
    check_more(running.url, models, truth)


def check_more(url: str, models: dict[str, LoadedModel], truth: dict[str, str]) -> None:
    """Streams, scores of the prompt itself, lengths, and what adapters do not answer."""
    ask = {"prompt": PROMPT, "temperature": 0, "max_tokens": 24}
    lines = httpx.post(f"{url}/v1/completions", json={"model": "prefix", "stream": True, **ask}).text.split("\n\n")
    assert "".join(json.loads(line[6:])["choices"][0]["text"] for line in lines if line.startswith("data: {")) == truth["prefix"]
    for name in ("base", *PLACES):
        echoed = httpx.post(f"{url}/v1/completions", json={"model": name, **ask, "max_tokens": 0, "echo": True, "logprobs": 0}).json()["choices"][0]
        ids = torch.tensor([models[name].tokenizer.encode(PROMPT)])
        model = models[name].model
        with torch.no_grad():
            wanted = model.logits(model(ids))[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0].tolist()
        assert echoed["text"] == PROMPT and echoed["logprobs"]["token_logprobs"][0] is None
        assert echoed["logprobs"]["token_logprobs"][1:] == pytest.approx(wanted, abs=1e-4)
    long = {"prompt": [5] * 247, "temperature": 0}
    assert [httpx.post(f"{url}/v1/completions", json={"model": name, **long}).status_code for name in ("base", "prefix", "made")] == [200, 200, 400]
    found = httpx.post(f"{url}/v1/completions", json={"model": "made", **long, "max_tokens": 4}).json()["error"]
    assert found["code"] == "context_length_exceeded" and "247" in found["message"]
    refused = httpx.post(f"{url}/v1/predict", json={"model": "prompt", "input": PROMPT})
    assert refused.status_code == 400 and refused.json()["error"]["code"] == "adapter_does_not_predict"
    assert httpx.post(f"{url}/tokenize", json={"model": "prompt", "prompt": "a"}).json()["max_model_len"] == 252
    (wanted,) = Predictor(models["base"].model, models["base"].tokenizer).predict([PROMPT])
    (found,) = httpx.post(f"{url}/v1/predict", json={"model": "base", "input": PROMPT}).json()["data"]
    assert {key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value for key, value in wanted.items()} == {key: found[key] for key in wanted}


def test_what_cannot_be_served_together_is_refused(folders, tmp_path):
    config = ServeConfig(model="base")
    with pytest.raises(DataError, match="not an adapter"):
        open_service(config, folders / "base", [folders / "base"])
    with pytest.raises(ConfigError, match="two adapters are named"):
        open_service(config, folders / "base", [folders / "small", folders / "small"])
    for folder in ("small", "prompt"):
        with pytest.raises(ConfigError, match="itself an adapter"):
            open_service(config, folders / folder, [folders / "large"])
    model = load_model(folders / "base")
    attach(model, LoraConfig(also_train=["norms"]), 0)
    save_adapter(model, tmp_path / "norms", folders / "base", Tokenizer.load(folders / "base"))
    with pytest.raises(ConfigError, match="cannot share a batch"):
        open_service(config, folders / "base", [tmp_path / "norms"])
    shutil.copytree(folders / "small", tmp_path / "seeing")
    plain = json.loads((tmp_path / "seeing" / "config.json").read_bytes()) | Head("language_model", "prefix").to_json()
    (tmp_path / "seeing" / "config.json").write_text(json.dumps(plain))
    note = json.loads((tmp_path / "seeing" / "luban_adapter.json").read_bytes())
    (tmp_path / "seeing" / "luban_adapter.json").write_text(json.dumps(note | {"base": str(folders / "base")}))
    with pytest.raises(ConfigError, match="read in another way"):
        open_service(config, folders / "base", [tmp_path / "seeing"])
    make_model(tmp_path / "other", chat=False)
    with pytest.raises(DataError, match="chat template is not the one"):
        open_service(config, tmp_path / "other", [folders / "small"])
