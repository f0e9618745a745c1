"""Prompt tuning and P-tuning: equal to peft both ways, and to words before the text in every family; packed = alone; cached = read anew."""

from __future__ import annotations

import json

import pytest
import torch
import torch.nn.functional as F
from adapter_families import HEADS, OWN, loss, made
from adapter_tools import CLASSES, adapted, base, said
from before_tools import TEXTS, Numbers, alone, check_writing, packed, peft_says, peft_writes, same, we_write
from peft import PromptEncoderConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from test_lora import Words, opened, theirs
from tiny import tiny_recipe
from transformers import GPTNeoXConfig

import luban
from luban.adapters.attached import attach
from luban.adapters.config import NAMES, LoraConfig, PromptConfig, PTuningConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.config import Source, build
from luban.foundation.errors import ConfigError, DataError
from luban.inference.steps import Steps
from luban.models.auto import AutoModelAdapter
from luban.models.auto_shape import AutoShapeConfig, from_json

FIRST = [7, 19, 23]
KINDS = [{"method": "prompt", "tokens": 3}, {"method": "p_tuning", "tokens": 3, "width": 10}, {"method": "p_tuning", "tokens": 4, "network": "lstm", "width": 6, "layers": 1}]


def with_words(model, count: int = 3):
    """The model with a prompt that begins, and ends, as words."""
    attach(model, PromptConfig(tokens=count, text=" ".join(map(str, FIRST))), seed=1, tokenizer=Numbers())
    return model.eval()


@pytest.mark.parametrize("family", list(OWN))
def test_a_prompt_of_words_is_those_words_before_each_document(family):
    plain, worded = made(family).eval(), with_words(made(family))
    wanted = alone(plain, FIRST)
    same(alone(worded), wanted)
    same(packed(worded), wanted)


def test_words_are_repeated_or_cut():
    assert worded_ids(5) == [7, 19, 23, 7, 19] and worded_ids(2) == [7, 19]


def worded_ids(count: int) -> list[int]:
    model = with_words(made("llama"), count)
    return [int((model.embedding.weight == vector).all(1).nonzero()[0]) for vector in model.adapters["default"].learned.vectors]


@pytest.mark.parametrize(
    ("settings", "family"), [*((kind, "llama") for kind in KINDS), (KINDS[1], "gpt2"), (KINDS[0], "bert"), (KINDS[1], "bert"), (KINDS[0], "t5"), (KINDS[2], "bart")], ids=str
)
def test_what_is_written_is_the_same_in_peft(settings, family, tmp_path):
    head = CLASSES if family in ("bert", "gpt2") and settings["method"] == "p_tuning" else None
    model = adapted(family, tmp_path / "base", settings, head)
    expected = said(model)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert saved["prompt_embeddings"].shape == (settings["tokens"], 24) and not any("network" in name for name in saved)
    again = open_model(tmp_path / "adapter")
    torch.testing.assert_close(said(again), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(peft_says(tmp_path, family, head), expected, atol=1e-5, rtol=1e-5)
    save_adapter(again, tmp_path / "second", tmp_path / "base", Words())
    assert torch.equal(load_file(tmp_path / "second" / "adapter_model.safetensors")["prompt_embeddings"], saved["prompt_embeddings"])


@pytest.mark.parametrize(("family", "kind"), [("llama", "p"), ("gpt2", "prompt"), ("bert", "prompt"), ("t5", "prompt"), ("bart", "p")])
def test_what_peft_writes_opens_here(family, kind, tmp_path):
    head = CLASSES if family == "bert" else None
    base(family, tmp_path / "base", head)
    task = "SEQ_CLS" if head else "SEQ_2_SEQ_LM" if family in ("t5", "bart") else "CAUSAL_LM"
    config = PromptTuningConfig(num_virtual_tokens=3, task_type=task) if kind == "prompt" else PromptEncoderConfig(num_virtual_tokens=3, task_type=task, encoder_hidden_size=8)
    theirs_made = get_peft_model(opened(tmp_path / "base", family, head), config)
    theirs_made.save_pretrained(tmp_path / "adapter")
    if head:  # the pooler, which the base's files lack and peft does not save
        saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
        pooler = {f"base_model.{name}": value for name, value in theirs_made.base_model.state_dict().items() if "pooler" in name}
        save_file(saved | pooler, tmp_path / "adapter" / "adapter_model.safetensors")
    wanted = theirs(theirs_made)
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), wanted[:, -9:] if wanted.dim() == 3 else wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_it_writes_what_peft_writes(family, tmp_path):
    model = adapted(family, tmp_path / "base", KINDS[0])
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    assert check_writing(model) == peft_writes(tmp_path, family)


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_pairs_are_written_as_peft_writes_them(family, tmp_path):
    model = adapted(family, tmp_path / "base", KINDS[0])
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    assert we_write(model) == peft_writes(tmp_path, family)


@pytest.mark.parametrize("family", ["mistral", "mixtral", "lstm"])
def test_other_families_write_the_same_cached(family):
    check_writing(with_words(made(family)))


def test_a_recurrent_pair_model_writes_the_same_in_a_batch():
    we_write(with_words(made("recurrent")))


def test_a_prompt_before_a_given_part_that_is_seen_from_both_sides():
    """A prefix language model: what the cache holds of the prompt is what training computed."""
    model = with_words(made("llama"))
    tokens, given = torch.tensor([TEXTS[2]]), torch.tensor([[True] * 4 + [False] * 3])
    with torch.no_grad():
        whole = model(tokens, prefix=given)
        steps = Steps(model, [TEXTS[2][:4]], 1, 8)
        hidden = model(tokens[:, :4], prefix=given[:, :4], cache=steps.cache.rows(0, 1, [4]))
    torch.testing.assert_close(hidden, whole[:, :4], atol=1e-5, rtol=1e-5)


def test_an_architecture_of_transformers_takes_a_prompt_too():
    torch.manual_seed(0)
    plain = GPTNeoXConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=40).to_dict()
    model = AutoModelAdapter(build(AutoShapeConfig, from_json(plain, "config.json"), Source("config.json"))).eval()
    wanted = alone(model, FIRST)
    with_words(model)
    same(alone(model), wanted)
    check_writing(model, 4)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5", "bilstm"])
@pytest.mark.parametrize("head", ["sequence", "token", "vector"])
def test_only_the_prompt_and_the_head_learn(family, head):
    model = made(family).with_head(HEADS[head])
    attach(model, PTuningConfig(tokens=2, width=5), seed=1)
    loss(model.train()).backward()
    learning = {name for name, value in model.named_parameters() if value.requires_grad}
    assert {name for name in learning if not model.is_output(name)} <= set(model.fresh) and any(name.startswith("adapters.default.learned.network") for name in learning)
    assert all((value.grad is not None) == value.requires_grad for value in model.parameters()) and model.adapters["default"].learned.starts.grad.abs().sum() > 0
    assert set(model.changing()) == learning


def test_it_comes_off_and_leaves_nothing():
    model = made("llama").eval()
    before, names, cls = alone(model), set(model.state_dict()), type(model)
    with_words(model)
    assert not torch.allclose(alone(model)[0], before[0], atol=1e-3)
    with pytest.raises(ConfigError, match="cannot be merged"):
        model.adapter.merge(model)
    model.adapter.detach(model)
    same(alone(model), before)
    assert set(model.state_dict()) == names and type(model) is cls and type(model.embedding).__name__ == "Embedding" and model.longest_text == 32


def test_what_cannot_be_is_refused():
    model = made("gpt2")
    with pytest.raises(ConfigError, match="leave no room"):
        attach(model, PromptConfig(tokens=32), seed=1)
    with pytest.raises(ConfigError, match="needs the tokenizer"):
        attach(model, PromptConfig(text="7"), seed=1)
    model = with_words(made("gpt2"))
    with pytest.raises(ConfigError, match="already"):
        attach(model, PromptConfig(), seed=1)
    assert model.longest_text == 29
    long = torch.full((1, 30), 5)
    for segments in (None, torch.zeros_like(long)):
        with pytest.raises(DataError, match="longer than"):
            model(long, segments=segments)
    model(torch.full((1, 58), 5), segments=torch.arange(2).repeat_interleave(29)[None])  # two documents that fit, each by itself


def test_hostile_files(tmp_path):
    model = adapted("llama", tmp_path / "base", KINDS[0])
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    for change, words in [({}, "lacks the tensor"), ({"prompt_embeddings": torch.zeros(2, 24)}, "the model makes it"), ({"prompt_embeddings": torch.zeros(3, 24), "other": torch.zeros(2)}, "has no place")]:
        save_file(change, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(DataError, match=words):
            open_model(tmp_path / "adapter")
    (tmp_path / "adapter" / "luban_adapter.json").unlink()
    settings = json.loads((tmp_path / "adapter" / "adapter_config.json").read_bytes())
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps({**settings, "num_virtual_tokens": None}))
    with pytest.raises(DataError, match="num_virtual_tokens"):
        open_model(tmp_path / "adapter")


def test_a_prompt_goes_beside_other_adapters_on_another_name():
    model = with_words(made("llama"))
    before = alone(model)
    attach(model, LoraConfig(), seed=1, name="other")
    same(alone(model), before)


@pytest.mark.parametrize("settings", [{"method": "prompt", "tokens": 6}, {"method": "p_tuning", "tokens": 6}, {"method": "prefix", "tokens": 6}, {"method": "prefix", "tokens": 6, "projection": True}], ids=str)
def test_it_learns(settings):
    """What comes next in one text is learned without a change of the model."""
    model = made("llama")
    attach(model, build(NAMES[settings["method"]], settings), seed=1)
    optimizer = torch.optim.Adam(model.adapters["default"].learned.parameters(), lr=0.05)
    tokens, losses = torch.tensor([TEXTS[2]]), []
    for _ in range(40):
        losses.append(F.cross_entropy(model.logits(model(tokens[:, :-1]))[0], tokens[0, 1:]))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.5


def test_a_prompt_and_a_prefix_are_trained_whole(tmp_path, monkeypatch):
    """What lies on disk writes by itself and in company."""
    monkeypatch.chdir(tmp_path)
    recipe = tiny_recipe(tmp_path, length="2 steps", validation={"every": "2 steps"})
    common = {
        "kind": "train", "data": "tokens", "model": "base", "sequence_length": 32, "batch_tokens": 128, "length": "6 steps", "threads": 1, "track": {"tensorboard": False},
        "validation": {"every": "6 steps"}, "samples": {"every": "6 steps"},
    }  # fmt: skip
    recipe["stages"]["prompt"] = {**common, "adapter": {"method": "prompt", "tokens": 4, "text": "the king"}}
    recipe["stages"]["prefix"] = {**common, "adapter": {"method": "prefix", "tokens": 4, "projection": True}, "packing": "best_fit"}
    for artifact, shape in zip(luban.run(recipe, out=tmp_path / "runs")[-2:], ([4, 32], [4, 64]), strict=True):
        loaded = luban.load(artifact.path)
        assert list(loaded.model.adapters["default"].learned().shape) == shape and artifact.metrics["after"]["loss"] != artifact.metrics["before"]["loss"]
        texts = ["the king", "my lord and"]
        together = loaded.generate(texts, temperature=0, maximum_tokens=6)
        assert together == [loaded.generate(text, temperature=0, maximum_tokens=6) for text in texts]
