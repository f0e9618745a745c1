"""Adapters of every kind side by side in one batch: each row says what its adapter says alone, and what peft's own model says."""

from __future__ import annotations

import pytest
import torch
from adapter_families import OWN, made
from adapter_tools import adapted, shake
from before_tools import Numbers
from peft import PeftModel
from test_lora import Words, opened
from transformers import GPTNeoXConfig

from luban.adapters.adapted import set_active
from luban.adapters.attached import attach
from luban.adapters.config import NAMES, BottleneckConfig, LoraConfig
from luban.adapters.files import open_model, read_settings, read_tensors, save_adapter, wear
from luban.foundation.config import Source, build
from luban.foundation.errors import ConfigError
from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine, Request
from luban.models.auto import AutoModelAdapter
from luban.models.auto_shape import AutoShapeConfig, from_json
from luban.models.base import Model
from luban.models.heads import Head
from luban.models.huggingface import load_model

BEFORE = {
    "prompt": {"method": "prompt", "tokens": 3}, "made": {"method": "p_tuning", "tokens": 5, "width": 8},
    "prefix": {"method": "prefix", "tokens": 2}, "long_prefix": {"method": "prefix", "tokens": 7},
}  # fmt: skip
SHARED = {"lora": {"method": "lora", "rank": 3}, **BEFORE}
LONG = [44 + place % 17 for place in range(62)]
TEXTS = [[5, 9, 11, 30, 8], [17, 4], LONG[:50], LONG]  # the last has room beside no prompt: padded to it, the others would leave the 64 positions
SAMPLING = SamplingConfig(temperature=0, maximum_tokens=8, top_logprobs=61, stop_at_end=False)
Asked = list[tuple[tuple[str, ...], list[int]]]


def written(model: Model, asked: Asked, slots: int) -> list[Request]:
    """All that is asked, by one engine: requests come and go, and slots pass from one adapter to another."""
    engine = Engine(model, Numbers(), slots=slots)
    requests = [engine.submit(text, SAMPLING, adapters=worn) for worn, text in asked]
    engine.run()
    assert engine.prompt_tokens == sum(len(text) for _, text in asked)  # what an adapter puts before a text is no token of it
    return requests


def chances(request: Request) -> torch.Tensor:
    """Log-probabilities [answer, vocabulary] of each place."""
    table = torch.empty(len(request.ids), 61)
    for place, score in enumerate(request.logprobs):
        ids, values = zip(*score.top, strict=True)
        table[place, list(ids)] = torch.tensor(values)
    return table


def fitting(model: Model, names: list[tuple[str, ...]]) -> Asked:
    """Every text under every name that leaves it room."""
    engine = Engine(model, Numbers(), slots=1)
    return [(worn, text) for text in TEXTS for worn in names if len(text) < engine.longest(worn)]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
@torch.no_grad()
def test_a_mixed_batch_says_what_each_says_alone_and_in_peft(family, tmp_path):
    folder = tmp_path / "base"
    for name, settings in SHARED.items():
        save_adapter(adapted(family, folder, settings), tmp_path / name, folder, Words())
    model = load_model(folder)
    for name in SHARED:
        wear(model, *read_settings(tmp_path / name), read_tensors(tmp_path / name), name)
        set_active(model, ())
    names = [(), *((name,) for name in SHARED)]
    asked = fitting(model.eval(), names)
    assert len(asked) == 3 * len(names) + 2 and Engine(model, Numbers(), slots=1).longest(("long_prefix",)) == 57
    mixed = written(model, asked, slots=len(asked))
    assert [request.ids for request in written(model, asked, slots=4)] == [request.ids for request in mixed]
    for name in ("", *SHARED):
        own = [(request, text) for request, (worn, text) in zip(mixed, asked, strict=True) if worn == ((name,) if name else ())]
        alone = open_model(tmp_path / name) if name else load_model(folder)
        theirs = opened(folder, family)
        theirs = PeftModel.from_pretrained(theirs, tmp_path / name).eval() if name else theirs.eval()
        for request, text in own:
            (single,) = written(alone, [(None, text)], slots=1)
            assert request.ids == single.ids
            torch.testing.assert_close(chances(request), chances(single), atol=1e-5, rtol=1e-5)
            ids = torch.tensor([[*text, *request.ids[:-1]]])
            logits = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0, -len(request.ids) :]
            assert logits.argmax(-1).tolist() == request.ids
            torch.testing.assert_close(chances(request), logits.log_softmax(-1), atol=1e-4, rtol=1e-4)
    first = [chances(request)[0] for request, (_, text) in zip(mixed, asked, strict=True) if text is TEXTS[0]]
    assert all((one - other).abs().max() > 1e-2 for place, one in enumerate(first) for other in first[:place])  # no two say the same


def both(family: str) -> tuple[Model, dict[str, Model]]:
    """A model with all its adapters, and models with one each."""
    settings = {name: kind for name, kind in SHARED.items() if family == "mistral" or name in ("prompt", "made") or (name == "lora" and family != "lstm")}
    if family == "qwen2":
        settings |= {method: {"method": method} for method in ("dora", "adalora", "vera", "ia3", "houlsby", "pfeiffer", "bitfit")}
    together, single = _made(family), {name: _made(family) for name in settings}
    for name, kind in settings.items():
        for model in (together, single[name]):
            before = set(dict(model.named_parameters()))
            attach(model, build(NAMES[kind["method"]], kind), seed=7, name=name)
            shake(model, [own for own, _ in model.named_parameters() if own not in before])
            model.eval()
        set_active(together, ())
    return together, single


def _made(family: str) -> Model:
    if family != "neox":
        return made(family)
    torch.manual_seed(0)
    plain = GPTNeoXConfig(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, max_position_embeddings=64, initializer_range=0.3).to_dict()
    return AutoModelAdapter(build(AutoShapeConfig, from_json(plain, "config.json"), Source("config.json")))


@pytest.mark.parametrize(("family", "both_sides"), [("mistral", False), ("mistral", True), ("qwen2", False), ("lstm", False), ("neox", False)])
def test_other_caches_know_their_rows_apart(family, both_sides, monkeypatch):
    """A window over the prefix; a prompt that is seen from both sides; every method; states; and a model of transformers, which reads whole texts."""
    if family == "mistral":
        monkeypatch.setitem(OWN, "mistral", {**OWN["mistral"], "maximum_positions": 64, **({} if both_sides else {"sliding_window": 4})})
    together, single = both(family)
    for model in (together, *single.values()):
        model.head = Head("language_model", "prefix") if both_sides else None
    asked = [(worn, text) for worn, text in fitting(together, [(), *((name,) for name in single)]) if len(text) < 20]
    plain = _made(family).eval()
    plain.head = together.head
    for request, (worn, text) in zip(written(together, asked, slots=7), asked, strict=True):
        (alone,) = written(single[worn[0]] if worn else plain, [(None, text)], slots=1)
        assert request.ids == alone.ids
        torch.testing.assert_close(chances(request), chances(alone), atol=1e-5, rtol=1e-5)


def test_each_request_has_the_length_that_its_adapter_leaves():
    together, _ = both("mistral")
    engine = Engine(together, Numbers(), slots=2)
    assert [engine.longest(worn) for worn in ((), ("lora",), ("prompt",), ("long_prefix",))] == [32, 32, 29, 25]
    engine.submit([5] * 31, SAMPLING, adapters=())
    with pytest.raises(ConfigError, match="31 tokens, the context 29"):
        engine.submit([5] * 31, SAMPLING, adapters=("prompt",))
    request = engine.submit([5] * 28, SAMPLING, adapters=("prompt",))
    engine.run()
    assert (len(request.ids), request.finish_reason) == (1, "length")


@pytest.mark.parametrize(("family", "config"), [("lstm", LoraConfig()), ("mixtral", LoraConfig(targets=["w2"])), ("qwen2_moe", BottleneckConfig(method="pfeiffer"))])
def test_what_does_not_see_rows_is_refused_and_nothing_stays_routed(family, config):
    """A recurrent layer sees all texts in one, an expert single tokens; around a mixture there is more than states."""
    model = made(family).eval()
    attach(model, config, seed=1, name="one")
    set_active(model, ())
    engine = Engine(model, Numbers(), slots=2)
    requests = [engine.submit([5, 6, 7], SAMPLING, adapters=worn) for worn in (("one",), ())]
    with pytest.raises(ConfigError, match="does not see texts row by row"):
        engine.run()
    assert all(not layer.routes.names for layer in model.modules() if getattr(layer, "routes", None)) and not any(request.finished for request in requests)


def test_a_shared_expert_wears_the_adapter_of_its_row():
    model = made("qwen2_moe").eval()
    attach(model, LoraConfig(targets=["shared_expert.down_proj"]), seed=1, name="one")
    shake(model, [name for name, value in model.named_parameters() if value.requires_grad], 1.0)
    (worn,) = written(model, [(None, TEXTS[0])], 1)
    set_active(model, ())
    (plain,) = written(model, [(None, TEXTS[0])], 1)
    mixed = written(model, [(("one",), TEXTS[0]), ((), TEXTS[0])], 2)
    torch.testing.assert_close(chances(mixed[0]), chances(worn), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(chances(mixed[1]), chances(plain), atol=1e-5, rtol=1e-5)
    assert (chances(worn)[0] - chances(plain)[0]).abs().max() > 1e-3
