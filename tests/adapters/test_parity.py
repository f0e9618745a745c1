"""AdaLoRA, VeRA and (IA)³ against peft: files both ways with equal outputs, the same ranks from the same gradients; files that are wrong."""

from __future__ import annotations

import pytest
import torch
from adapter_tools import CLASSES, adapted, base, said
from peft import AdaLoraConfig as PeftAdaLora
from peft import IA3Config as PeftIA3
from peft import VeraConfig as PeftVera
from peft import get_peft_model
from safetensors.torch import load_file, save_file
from test_lora import Words, check_all_ways, opened, theirs

from luban.adapters.adapted import adapted_layers, set_active
from luban.adapters.attached import attach
from luban.adapters.config import AdaLoraConfig, BitFitConfig, BottleneckConfig, IA3Config, LoraConfig, VeraConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.models.huggingface import load_model, save_model
from luban.models.quantization_config import QuantizationConfig
from luban.models.quantized_model import quantize_model, quantized_layers


def pruned(model) -> None:
    """Ranks that differ, one of them none at all."""
    for index, part in enumerate(model.adapter.products(model).values()):
        part.keep(torch.arange(len(part.kept)) % 3 == index % 4)
        part.keep(part.kept & (index != 2))


@pytest.mark.parametrize("family", ["llama", "gpt2", "bert", "t5"])
def test_a_pruned_adalora_is_the_same_in_peft(family, tmp_path):
    head = CLASSES if family == "bert" else None
    model = adapted(family, tmp_path / "base", {"method": "adalora", "rank": 4, "alpha": 7}, head)
    pruned(model)
    ranks = model.adapter.report(model)["ranks"]
    assert len(set(ranks.values())) > 1 and 0 in ranks.values()
    check_all_ways(model, family, tmp_path, head)
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    assert {name: len(value) for name, value in saved.items() if name.endswith("lora_E")} == {f"base_model.model.{place}.lora_E": rank for place, rank in ranks.items()}
    again = open_model(tmp_path / "adapter")
    assert again.adapter.report(again)["ranks"] == ranks
    save_adapter(again, tmp_path / "second", tmp_path / "base", Words())  # as it was read it is written again
    torch.testing.assert_close(said(open_model(tmp_path / "second")), said(model), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(("family", "settings"), [
    ("llama", {"method": "vera", "rank": 5}), ("gpt2", {"method": "vera", "rank": 3, "targets": ["c_attn", "mlp.c_proj"]}), ("t5", {"method": "vera", "rank": 40}),
    ("llama", "ia3"), ("gpt2", "ia3"), ("bert", "ia3"), ("t5", "ia3"), ("bart", {"method": "ia3", "targets": ["v_proj", "fc1", "0.fc2"], "feed_forward": ["fc1"]}),
], ids=str)  # fmt: skip
def test_it_is_the_same_in_peft(family, settings, tmp_path):
    check_all_ways(adapted(family, tmp_path / "base", settings), family, tmp_path)


@pytest.mark.parametrize(("family", "theirs_is"), [
    ("llama", PeftAdaLora(init_r=5, target_r=2, lora_alpha=9, total_step=10, tfinal=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False)),
    ("llama", PeftVera(r=6, target_modules=["k_proj", "up_proj"], init_weights=False)),
    ("bert", PeftVera(r=6, target_modules=["query"], init_weights=False, save_projection=False, projection_prng_key=3)),
    ("bert", PeftIA3(init_ia3_weights=False)), ("gpt2", PeftIA3(init_ia3_weights=False)), ("llama", PeftIA3(target_modules=["k_proj", "up_proj"], feedforward_modules=[], init_ia3_weights=False)),
], ids=lambda value: value if isinstance(value, str) else value.peft_type.value)  # fmt: skip
def test_what_peft_writes_opens_here(family, theirs_is, tmp_path):
    base(family, tmp_path / "base")
    torch.manual_seed(2)
    model = get_peft_model(opened(tmp_path / "base", family), theirs_is)
    if isinstance(theirs_is, PeftAdaLora):
        model.train()(input_ids=torch.randint(3, 61, (2, 9)), labels=torch.randint(3, 61, (2, 9))).loss.backward()
        model.base_model.update_and_allocate(5)
        model.base_model.update_and_allocate(8)
    expected = theirs(model)
    model.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), expected, atol=1e-5, rtol=1e-5)


def test_ranks_move_as_in_peft(tmp_path):
    """The same values and gradients at every step: the same triplets stay, the same penalty, the same budget."""
    base("llama", tmp_path / "base")
    total, steps = 20, range(1, 21)
    given = PeftAdaLora(init_r=4, target_r=2, total_step=total, tinit=3, tfinal=5, deltaT=2, target_modules=["q_proj", "v_proj", "up_proj"])
    other = get_peft_model(opened(tmp_path / "base", "llama"), given)
    model = load_model(tmp_path / "base")
    attach(model, AdaLoraConfig(rank=2, initial_rank=4, warmup_share=0.15, final_share=0.25, every=2, targets=["q_proj", "v_proj", "up_proj"]), seed=1)
    method = model.adapter
    method.before_training(model, total)
    products = method.products(model)
    there = dict(other.named_parameters())
    generator = torch.Generator().manual_seed(0)
    for step in steps:
        for place, part in products.items():
            for leaf in ("lora_A", "lora_E", "lora_B"):
                mine, its = getattr(part, leaf), there[f"base_model.model.{place}.{leaf}.default"]
                mine.data.copy_(torch.randn(mine.shape, generator=generator))
                mine.grad = torch.randn(mine.shape, generator=generator)
                its.data.copy_(mine.data)
                its.grad = mine.grad.clone()
        penalty, weight = method.penalties(model)["orthogonality"]
        rules = [torch.norm(vectors @ vectors.T - torch.eye(4)) for part in products.values() for vectors in (part.lora_A, part.lora_B.T)]
        assert weight == 0.5
        torch.testing.assert_close(penalty.detach(), (sum(rules) / len(rules)).detach())
        method.after_gradients(model, step)
        other.base_model.update_and_allocate(step)
        for place, part in products.items():
            torch.testing.assert_close(part.lora_E, there[f"base_model.model.{place}.lora_E.default"], msg=lambda text, step=step: f"step {step}: {text}")
    ranks = method.report(model)["ranks"]
    assert sum(ranks.values()) == 2 * len(ranks) and len(set(ranks.values())) > 1
    method.show(model)


def test_the_last_allocation_comes_even_where_a_step_was_skipped(tmp_path):
    base("llama", tmp_path / "base")
    model = load_model(tmp_path / "base")
    attach(model, AdaLoraConfig(rank=2), seed=1)
    model.adapter.before_training(model, 10)
    for step in (1, 2, 9):  # step 7, where ranks should have settled, was not finite
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        model.adapter.after_gradients(model, step)
    assert model.adapter.report(model)["ranks_in_all"] == 2 * len(model.adapter.products(model))
    state = {name for name in model.changing() if name.endswith("settled")}
    assert state and all(model.changing()[name] for name in state)


def test_vera_shares_one_pair_of_matrices(tmp_path):
    model = adapted("llama", tmp_path / "base", {"method": "vera", "rank": 7})
    assert len({id(module) for module in model.modules() if type(module).__name__ == "Projections"}) == 1
    assert not any("vera_A" in name for name in model.changing())
    learning = sum(value.numel() for value in model.parameters() if value.requires_grad)
    assert learning == sum(7 + layer.out_features for layer in adapted_layers(model, "default").values())


def test_experts_are_adapted_where_they_are_named(tmp_path):
    from adapter_families import made

    save_model(made("mixtral"), tmp_path / "base")
    for config, asked in ((LoraConfig(), False), (LoraConfig(targets=["q_proj", "w2"]), True), (IA3Config(), False), (IA3Config(targets=["k_proj", "w2"]), True)):
        model = load_model(tmp_path / "base")
        attach(model, config, seed=1)
        layers = adapted_layers(model, "default")
        assert any("experts" in place for place in layers) == asked and not any(place.endswith(".gate") for place in layers)
        if asked and config.method == "ia3":
            assert all(layer.adapters["default"].inside == place.endswith(".w2") for place, layer in layers.items())


def test_adapters_take_turns_and_stack(tmp_path):
    base("bert", tmp_path / "base")
    model = load_model(tmp_path / "base")
    plain = said(model)
    for name, config in (("one", BitFitConfig()), ("two", BottleneckConfig(method="houlsby")), ("three", IA3Config())):
        attach(model, config, seed=1, name=name)
        with torch.no_grad():
            for parameter_name, parameter in model.named_parameters():
                if f".adapters.{name}." in parameter_name:
                    parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(3)) * 0.3)
    model.eval()
    found = {}
    for names in ((), ("one",), ("two",), ("three",), ("one", "two", "three")):
        set_active(model, names)
        found[names] = said(model)
    torch.testing.assert_close(found[()], plain)
    values = list(found.values())
    assert all(not torch.allclose(values[i], values[j], atol=1e-3) for i in range(5) for j in range(i))


def test_a_bottleneck_on_a_model_of_transformers(tmp_path):
    import transformers

    tiny = {"vocab_size": 61, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 32}
    config = transformers.OPTConfig(**tiny, ffn_dim=24, word_embed_proj_dim=16, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "opt")
    for made, ends in ((BottleneckConfig(method="houlsby"), {"out_proj", "fc2"}), (IA3Config(), {"k_proj", "v_proj", "fc2"}), (BitFitConfig(), {"q_proj", "fc1"})):
        model = load_model(tmp_path / "opt", language_model=True)
        attach(model, made, seed=1)
        assert ends <= {place.rpartition(".")[2] for place in adapted_layers(model, "default")}
        with torch.no_grad():
            for value in model.parameters():
                if value.requires_grad:
                    value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
        save_adapter(model.eval(), tmp_path / made.method, tmp_path / "opt", Words())
        torch.testing.assert_close(said(open_model(tmp_path / made.method)), said(model), atol=1e-6, rtol=1e-6)
    config = transformers.BloomConfig(**{**tiny, "n_layer": 1, "n_head": 2})
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "bloom")
    model = load_model(tmp_path / "bloom", language_model=True)
    for block in model.blocks():
        block.mlp.dense_4h_to_h, block.mlp.secret = None, block.mlp.dense_4h_to_h
    with pytest.raises(ConfigError, match="is not known"):
        attach(model, BottleneckConfig(), seed=1)


def test_biases_where_there_are_none(tmp_path):
    base("llama", tmp_path / "base")
    model = load_model(tmp_path / "base")  # with biases in attention
    attach(model, BitFitConfig(), seed=1)
    assert {place.rpartition(".")[2] for place in adapted_layers(model, "default")} == {"q_proj", "k_proj", "v_proj", "o_proj"}
    model = load_model(tmp_path / "base")
    attach(model, BitFitConfig(add=True), seed=1)
    assert "down_proj" in {place.rpartition(".")[2] for place in adapted_layers(model, "default")}
    model.adapter.merge(model)
    assert model.shape.feed_forward_bias
    save_model(model, tmp_path / "merged")
    torch.testing.assert_close(theirs(opened(tmp_path / "merged", "llama")), said(model), atol=1e-5, rtol=1e-5)
    base("t5", tmp_path / "t5")
    with pytest.raises(ConfigError, match="has no bias"):
        attach(load_model(tmp_path / "t5"), BitFitConfig(add=False), seed=1)


@pytest.mark.parametrize(("make", "words"), [
    (lambda: AdaLoraConfig(rank=8, initial_rank=4), "below rank"), (lambda: AdaLoraConfig(warmup_share=0.6, final_share=0.5), "leave no steps"),
    (lambda: VeraConfig(targets=["nothing"]), "names no linear layer"), (lambda: IA3Config(feed_forward=["q_proj"]), "names none of the targets"), (lambda: IA3Config(targets=["nothing"]), "names no linear layer"),
])  # fmt: skip
def test_what_cannot_be_is_refused(make, words, tmp_path):
    with pytest.raises((LubanError, ValueError), match=words):
        attach(base("llama", tmp_path / "base"), make(), seed=1)


@pytest.mark.parametrize("method", ["adalora", "vera", "ia3", "houlsby", "bitfit"])
def test_hostile_files(method, tmp_path):
    model = adapted("llama", tmp_path / "base", {"method": method, **({"rank": 3} if method == "vera" else {})})
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    good = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for first in {name.rpartition(".")[2]: name for name in good if name.startswith("base_model.model.")}.values():
        for change, words in (({name: value for name, value in good.items() if name != first}, "lacks the tensor"), ({**good, first: torch.zeros(71, 3)}, "the model makes it")):
            save_file(change, tmp_path / "adapter" / "adapter_model.safetensors")
            with pytest.raises(DataError, match=words):
                open_model(tmp_path / "adapter")


@pytest.mark.parametrize("config", [LoraConfig(method="dora"), AdaLoraConfig(rank=2), VeraConfig(rank=9), IA3Config(), BottleneckConfig(method="houlsby", reduction=4), BitFitConfig()], ids=lambda config: config.method)
def test_on_a_quantised_base(config, tmp_path):
    """The adapter learns on it, and on the dequantised model it says the same."""
    base("llama", tmp_path / "base")
    model = quantize_model(load_model(tmp_path / "base"), QuantizationConfig(format="int8"))
    attach(model, config, seed=1)
    said_with_gradient = model.logits(model(torch.randint(3, 61, (2, 9))))
    said_with_gradient.square().mean().backward()
    learning = [value for value in model.parameters() if value.requires_grad]
    assert all(value.grad is not None for value in learning)
    with torch.no_grad():
        for value in learning:
            value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(3)) * 0.1)
    model.eval()
    other = load_model(tmp_path / "base")
    for name, layer in quantized_layers(model).items():
        other.get_submodule(name).weight.data.copy_(layer.dequantized())
    attach(other, config, seed=1)
    other.load_state_dict({name: value for name, value in model.state_dict().items() if ".adapters." in name}, strict=False)
    torch.testing.assert_close(said(other.eval()), said(model), atol=1e-4, rtol=1e-4)
