"""Several adapters behind one server: a request chooses by name, and what shares a batch does not mix."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import torch
from serving_lab import make_model

from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError
from luban.inference.generate import LoadedModel
from luban.models.huggingface import load_model
from luban.serving.config import ServeConfig
from luban.serving.stage import open_service
from luban.tokenizer.tokenizer import Tokenizer

PROMPT = "What is"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and three adapters that say different things."""
    root = tmp_path_factory.mktemp("adapters")
    make_model(root / "base")
    for seed, (name, config) in enumerate({"small": LoraConfig(rank=2), "large": LoraConfig(method="dora", rank=4), "attention": LoraConfig(targets=["q_proj", "v_proj"])}.items()):
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
    names = ["base", "small", "large", "attention"]
    truth = {name: LoadedModel(open_model(folders / name), Tokenizer.load(folders / "base")).generate(PROMPT, temperature=0.0, maximum_tokens=24) for name in names}
    assert len(set(truth.values())) == 4
    running = start(folders / "base", adapters=[str(folders / name) for name in names[1:]], slots=8, name="base")

    async def all_at_once() -> list[tuple[str, httpx.Response]]:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            asked = [name for _ in range(3) for name in names]
            answers = await asyncio.gather(*(client.post("/v1/completions", json={"model": name, "prompt": PROMPT, "temperature": 0, "max_tokens": 24}) for name in asked))
            return list(zip(asked, answers, strict=True))

    for name, answer in asyncio.run(all_at_once()):
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == truth[name] and answer.json()["model"] == name
    listed = httpx.get(f"{running.url}/v1/models").json()["data"]
    assert [model["id"] for model in listed] == names and listed[1]["parent"] == "base"
    assert httpx.post(f"{running.url}/v1/completions", json={"model": "nobody", "prompt": "a"}).status_code == 404
    assert httpx.get(f"{running.url}/v1/models/large").json()["id"] == "large"


def test_what_cannot_be_served_together_is_refused(folders, tmp_path):
    config = ServeConfig(model="base")
    with pytest.raises(DataError, match="not an adapter"):
        open_service(config, folders / "base", [folders / "base"])
    with pytest.raises(ConfigError, match="two adapters are named"):
        open_service(config, folders / "base", [folders / "small", folders / "small"])
    with pytest.raises(ConfigError, match="itself an adapter"):
        open_service(config, folders / "small", [folders / "large"])
    make_model(tmp_path / "other", chat=False)
    with pytest.raises(DataError, match="chat template is not the one"):
        open_service(config, tmp_path / "other", [folders / "small"])
