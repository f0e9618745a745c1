"""Several adapters behind one server: a request chooses by name, and what shares a batch does not mix."""

from __future__ import annotations

import asyncio
import json
import shutil

import httpx
import pytest
import torch
from prediction_lab import HEADS, close, make_task_model
from serving_lab import make_model, make_tokenizer

from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig, PrefixConfig, PromptConfig, PTuningConfig
from luban.adapters.files import open_beside, open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError
from luban.inference.generate import LoadedModel
from luban.inference.predictor import Predictor
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.serving.config import ServeConfig
from luban.serving.stage import open_service
from luban.tokenizer.tokenizer import Tokenizer

PROMPT = "What is"
ADAPTERS = {
    "small": LoraConfig(rank=2), "large": LoraConfig(method="dora", rank=4), "attention": LoraConfig(targets=["q_proj", "v_proj"]),
    "prompt": PromptConfig(tokens=4), "made": PTuningConfig(tokens=9, width=8), "prefix": PrefixConfig(tokens=6),
}  # fmt: skip
PLACES = {"prompt": 4, "made": 9, "prefix": 6}  # before a text


def save_stirred(model, config, seed, folder, base, size):
    """An adapter that says something, written to ``folder`` with its base's tokenizer."""
    attach(model, config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.parameters():
            if value.requires_grad:
                value.add_(torch.randn(value.shape, generator=generator) * size)
    save_adapter(model, folder, base, Tokenizer.load(base))
    Tokenizer.load(base).save(folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and adapters that say different things."""
    root = tmp_path_factory.mktemp("adapters")
    make_model(root / "base", maximum_positions=256)
    for seed, (name, config) in enumerate(ADAPTERS.items()):
        model = load_model(root / "base")
        save_stirred(model, config, seed, root / name, root / "base", 0.5)
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
    assert httpx.post(f"{url}/tokenize", json={"model": "prompt", "prompt": "a"}).json()["max_model_len"] == 252
    for name in ("base", "large", "prefix"):  # the next words
        said = httpx.post(f"{url}/v1/predict", json={"model": name, "input": [PROMPT, "To be"]}).json()
        assert said["model"] == name and close([*Predictor(models[name].model, models[name].tokenizer).predict([PROMPT, "To be"])], [{key: one[key] for key in one if key != "index"} for one in said["data"]])


# ---- tasks: each adapter has a head of its own


@pytest.fixture(scope="module")
def task_folders(tmp_path_factory):
    """An encoder that fills masks, a decoder that writes, and on each adapters for labels, tags, vectors, masks, with tensors that are saved whole."""
    root = tmp_path_factory.mktemp("task-adapters")
    make_task_model(root / "encoder", "masked")
    make_model(root / "writer", maximum_positions=64)
    made = {
        "labels": ("encoder", "classification", LoraConfig(rank=2, also_train=["norms"])), "tags": ("encoder", "tagging", PromptConfig(tokens=3)),
        "vectors": ("encoder", "embedding", LoraConfig(method="dora", rank=2)), "words": ("encoder", "masked", LoraConfig(rank=2, also_train=["embeddings"])),
        "judge": ("writer", "classification", LoraConfig(rank=2)),
    }  # fmt: skip
    for seed, (name, (base, task, config)) in enumerate(made.items()):
        model = load_model(root / base, head=HEADS[task], seed=seed)
        save_stirred(model, config, seed, root / name, root / base, 0.3)
    return root


TEXTS = ["Anna [MASK] Paris.", "电影[MASK]看", "Boris [MASK] to Lima"]


def test_task_adapters_answer_by_name(task_folders, start):
    names = ["labels", "tags", "vectors", "words"]
    running = start(task_folders / "encoder", adapters=[str(task_folders / name) for name in names], name="base")
    truth = {name: Predictor.load(task_folders / name if name != "base" else task_folders / "encoder", device="cpu").predict(TEXTS) for name in ("base", *names)}

    async def all_at_once() -> list[tuple[str, httpx.Response]]:
        async with httpx.AsyncClient(base_url=running.url, timeout=60) as client:
            asked = [name for _ in range(3) for name in truth]
            return list(zip(asked, await asyncio.gather(*(client.post("/v1/predict", json={"model": name, "input": TEXTS}) for name in asked)), strict=True))

    for name, answer in asyncio.run(all_at_once()):
        said = answer.json()
        assert answer.status_code == 200 and said["model"] == name
        assert close(truth[name], [{key: value for key, value in one.items() if key != "index"} for one in said["data"]])
    assert truth["words"] != truth["base"]
    listed = {model["id"]: model["luban"] for model in httpx.get(f"{running.url}/v1/models").json()["data"]}
    assert {name: about["task"] for name, about in listed.items()} == {"base": "masked", "labels": "classification", "tags": "tagging", "vectors": "embedding", "words": "masked"}
    assert listed["labels"]["labels"] == list(HEADS["classification"].labels) and "/v1/embeddings" in listed["vectors"]["endpoints"]
    found = httpx.post(f"{running.url}/v1/embeddings", json={"model": "vectors", "input": TEXTS[0]}).json()
    assert close(found["data"][0]["embedding"], truth["vectors"][0]["vector"])
    for name, path in (("labels", "/v1/embeddings"), ("base", "/v1/chat/completions")):
        refused = httpx.post(f"{running.url}{path}", json={"model": name, "input": "a"})
        assert refused.status_code == 400 and refused.json()["error"]["code"] == "wrong_endpoint"
    events = [json.loads(line[6:]) for line in httpx.post(f"{running.url}/v1/predict", json={"model": "labels", "input": TEXTS, "stream": True}).text.split("\n\n") if line.startswith("data: {")]
    assert close(truth["labels"], [{key: event[key] for key in event if key != "index"} for event in sorted(events[:3], key=lambda event: event["index"])])
    assert (events[-1]["model"], events[-1]["task"]) == ("labels", "classification")


def test_a_task_adapter_beside_a_model_that_writes(task_folders, start):
    running = start(task_folders / "writer", adapters=[str(task_folders / "judge")], name="base")
    truth = Predictor.load(task_folders / "judge", device="cpu").predict(TEXTS)
    said = httpx.post(f"{running.url}/v1/predict", json={"model": "judge", "input": TEXTS}).json()["data"]
    assert close(truth, [{key: one[key] for key in one if key != "index"} for one in said])
    assert httpx.post(f"{running.url}/v1/completions", json={"model": "base", "prompt": "a", "max_tokens": 2}).status_code == 200
    refused = httpx.post(f"{running.url}/v1/completions", json={"model": "judge", "prompt": "a", "max_tokens": 2}).json()["error"]
    assert refused["code"] == "wrong_endpoint" and "/v1/predict" in refused["message"]


def test_a_base_is_in_memory_once(task_folders):
    base = load_model(task_folders / "encoder")
    own = dict(open_beside(task_folders / "labels", task_folders / "encoder", base).named_parameters())
    before = {name: value.clone() for name, value in base.named_parameters()}
    shared = {name for name, value in base.named_parameters() if name in own and own[name].data_ptr() == value.data_ptr()}
    assert any("query.weight" in name for name in shared) and not any("LayerNorm" in name for name in shared)  # the norms learned
    open_beside(task_folders / "words", task_folders / "encoder", base)
    assert all(torch.equal(before[name], value) for name, value in base.named_parameters())


# ---- what is refused


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
    shutil.copytree(folders / "base", tmp_path / "other")
    other = load_model(folders / "base")
    with torch.no_grad():
        other.embedding.weight[5] += 1
    save_model(other, tmp_path / "other")
    with pytest.raises(DataError, match="not the base that .*small was made for"):
        open_service(config, tmp_path / "other", [folders / "small"])
    shutil.copytree(folders / "base", tmp_path / "otherwise")
    make_tokenizer(tmp_path / "otherwise", chat=False)
    with pytest.raises(DataError, match="chat template is not the one"):
        open_service(config, tmp_path / "otherwise", [folders / "small"])
    assert open_service(config.updated(allow_template_mismatch=True), tmp_path / "otherwise", [folders / "small"]).adapters.keys() == {"small"}
