"""LoRA and its kin: peft opens what Luban writes and Luban what peft writes, with equal outputs; merged is the same again."""

from __future__ import annotations

import pytest
import torch
from adapter_tools import CLASSES, FAMILIES, adapted, base, said
from peft import LoraConfig as PeftLora
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer as Core
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForSequenceClassification

import luban
from luban.adapters.adapted import adapted_layers
from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.adapters.files import open_model, save_adapter
from luban.foundation.errors import ConfigError, DataError
from luban.models.huggingface import load_model, save_model

VARIANTS = [
    "lora", "dora", "pissa", {"method": "rslora", "rank": 5, "alpha": 3.0}, {"method": "lora", "targets": ["q_proj", "k_proj"], "alpha": 7},
    {"method": "lora_plus", "rank": 2, "weight_decomposed": True, "rank_stabilized": True}, {"method": "lora", "also_train": ["norms", "embeddings"]},
]  # fmt: skip


def opened(folder, family, head=None):
    """The base as transformers has it."""
    if head is not None:
        return AutoModelForSequenceClassification.from_pretrained(folder, num_labels=len(head.labels), pad_token_id=0)
    kind = {"t5": AutoModelForSeq2SeqLM, "bart": AutoModelForSeq2SeqLM, "bert": AutoModelForMaskedLM}.get(family, AutoModelForCausalLM)
    return kind.from_pretrained(folder)


@torch.no_grad()
def theirs(model) -> torch.Tensor:
    tokens = torch.randint(3, 61, (2, 9), generator=torch.Generator().manual_seed(1))
    if model.config.is_encoder_decoder:
        source = torch.randint(3, 61, (2, 11), generator=torch.Generator().manual_seed(2))
        return model.eval()(input_ids=source, decoder_input_ids=tokens).logits
    return model.eval()(input_ids=tokens).logits


class Words:
    """What is asked of a tokenizer when an adapter is written."""

    stop_ids, begin_of_text_id, pad_id, chat_template = [2], 1, 0, None

    def fingerprint(self):
        return ""

    def decode(self, ids, skip_special=True):
        return str(ids)


def check_all_ways(model, family, tmp_path, head=None, merges=True, exact=1e-5):
    """``model`` stands on tmp_path/base: written, it opens in Luban and in peft with the same outputs, and merged it is one model that transformers opens."""
    expected = said(model)
    assert not torch.allclose(expected, said(load_model(tmp_path / "base", head=head, language_model=head is None)), atol=1e-3)
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), expected, atol=exact, rtol=exact)
    peft_model = PeftModel.from_pretrained(opened(tmp_path / "base", family, head), tmp_path / "adapter")
    torch.testing.assert_close(theirs(peft_model), expected, atol=exact, rtol=exact)
    if merges:
        again = open_model(tmp_path / "adapter")
        again.adapter.merge(again)
        assert not adapted_layers(again, "default")
        torch.testing.assert_close(said(again), expected, atol=exact, rtol=exact)
        save_model(again, tmp_path / "merged")
        torch.testing.assert_close(theirs(opened(tmp_path / "merged", family, head)), expected, atol=exact, rtol=exact)


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_every_variant_is_the_same_in_peft(settings, tmp_path):
    check_all_ways(adapted("llama", tmp_path / "base", settings), "llama", tmp_path)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_every_family_is_the_same_in_peft(family, tmp_path):
    check_all_ways(adapted(family, tmp_path / "base", "dora" if family == "gpt2" else "lora"), family, tmp_path)


@pytest.mark.parametrize("family", ["bert", "llama", "gpt2"])
def test_a_new_head_is_saved_whole(family, tmp_path):
    check_all_ways(adapted(family, tmp_path / "base", "lora", CLASSES), family, tmp_path, CLASSES)


@pytest.mark.parametrize(("family", "more"), [("llama", {"use_dora": True}), ("llama", {"use_rslora": True}), ("gpt2", {"fan_in_fan_out": True}), ("bert", {})])
def test_what_peft_writes_opens_here(family, more, tmp_path):
    base(family, tmp_path / "base")
    targets = {"llama": ["q_proj", "down_proj"], "gpt2": ["c_attn", "mlp.c_proj"], "bert": "all-linear"}[family]
    made = get_peft_model(opened(tmp_path / "base", family), PeftLora(r=3, lora_alpha=5, target_modules=targets, init_lora_weights=False, **more))
    made.save_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(said(open_model(tmp_path / "adapter")), theirs(made), atol=1e-5, rtol=1e-5)


def test_an_adapter_without_a_tokenizer_reads_by_its_base(tmp_path):
    base("llama", tmp_path / "base")
    words = Core(WordLevel({f"w{number}": number for number in range(61)}, unk_token="w0"))
    words.pre_tokenizer = WhitespaceSplit()
    words.save(str(tmp_path / "base" / "tokenizer.json"))
    (tmp_path / "base" / "tokenizer_config.json").write_text('{"eos_token": "w2"}')
    made = get_peft_model(opened(tmp_path / "base", "llama"), PeftLora(r=3, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
    made.save_pretrained(tmp_path / "adapter")
    asked = {"temperature": 0, "maximum_tokens": 4, "stop_at_end": False}
    expected = made.generate(input_ids=torch.tensor([[5, 9]]), max_new_tokens=4, do_sample=False, eos_token_id=60, pad_token_id=0)[0, 2:].tolist()
    merged = luban.merge(tmp_path / "adapter", out=tmp_path / "merged").path
    for folder in (tmp_path / "adapter", merged):
        assert luban.load(folder).generate("w5 w9", **asked).split() == [f"w{number}" for number in expected]


def test_a_classifier_that_peft_wrote_opens_here(tmp_path):
    save_model(base("bert", tmp_path / "language", CLASSES), tmp_path / "base")  # with a pooler
    model = opened(tmp_path / "base", "bert", CLASSES)
    made = get_peft_model(model, PeftLora(r=2, target_modules=["query"], init_lora_weights=False, task_type="SEQ_CLS"))
    made.save_pretrained(tmp_path / "adapter")
    found = open_model(tmp_path / "adapter")
    assert found.head.labels == ("LABEL_0", "LABEL_1", "LABEL_2")
    torch.testing.assert_close(said(found), theirs(made), atol=1e-5, rtol=1e-5)


def test_only_the_adapter_learns_and_only_that_is_kept(tmp_path):
    model = adapted("llama", tmp_path / "base", "lora")
    learning = [name for name, value in model.named_parameters() if value.requires_grad]
    assert learning and all(".adapters.default.lora_" in name for name in learning)
    assert set(model.changing()) == set(learning)
    said(model)
    tokens = torch.randint(3, 61, (2, 9))
    model(tokens).sum().backward()
    assert all((value.grad is not None) == value.requires_grad for value in model.parameters())


def test_a_new_adapter_changes_nothing_and_a_detached_one_leaves_nothing(tmp_path):
    for method in ("lora", "dora", "pissa"):
        model = base("llama", tmp_path / method)
        before, names = said(model), set(model.state_dict())
        attach(model, LoraConfig(method=method), seed=1)
        torch.testing.assert_close(said(model), before, atol=2e-6, rtol=2e-6)
        model.adapter.detach(model)
        torch.testing.assert_close(said(model), before, atol=2e-6, rtol=2e-6)
        assert set(model.state_dict()) == names and not any("Adapted" in type(module).__name__ for module in model.modules())


def test_pissa_begins_with_the_largest_directions(tmp_path):
    model = base("llama", tmp_path / "base")
    weight = model.model.layers[0].mlp.up_proj.weight.detach().clone()
    attach(model, LoraConfig(method="pissa", rank=4), seed=1)
    layer = model.model.layers[0].mlp.up_proj
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    torch.testing.assert_close(layer.adapters["default"].product(), (left[:, :4] * values[:4]) @ right[:4], atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(layer.weight + layer.adapters["default"].product(), weight, atol=1e-6, rtol=1e-6)


def test_b_learns_faster_where_asked(tmp_path):
    from luban.training.config import OptimizerConfig
    from luban.training.optimizers import Optimizers

    model = base("llama", tmp_path / "base")
    attach(model, LoraConfig(method="lora_plus"), seed=1)
    optimizer = Optimizers(model, OptimizerConfig(learning_rate=1e-3, embedding_learning_rate=1e-3, weight_decay=0.0))
    rates = {optimizer.names[parameter]: group["peak"] for group in optimizer.parts[0].param_groups for parameter in group["params"]}
    assert {round(rate / 1e-3) for name, rate in rates.items() if "lora_B" in name} == {16}
    assert {round(rate / 1e-3) for name, rate in rates.items() if "lora_A" in name} == {1}


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"targets": ["nothing"]}, "names no linear layer"), ({"also_train": ["nothing"]}, "names no parameter"), ({"method": "pissa", "rank": 60}, "has directions")],
)
def test_what_names_nothing_is_refused(settings, words, tmp_path):
    with pytest.raises(ConfigError, match=words):
        attach(base("llama", tmp_path / "base"), LoraConfig(**settings), seed=1)


def test_hostile_adapters(tmp_path):
    model = adapted("llama", tmp_path / "base", "lora")
    save_adapter(model, tmp_path / "adapter", tmp_path / "base", Words())
    good = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    first = next(iter(good))
    for change, words in [
        ({name: value for name, value in good.items() if name != first}, "lacks the tensor"),
        ({**good, first: torch.zeros(3, 3)}, "the model makes it"),
        ({**good, "base_model.model.model.nowhere.weight": torch.zeros(3)}, "has no place"),
    ]:
        save_file(change, tmp_path / "adapter" / "adapter_model.safetensors")
        with pytest.raises(DataError, match=words):
            open_model(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(DataError, match="is damaged"):
        open_model(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    with pytest.raises(DataError, match="is missing"):
        open_model(tmp_path / "adapter")


def test_the_base_must_be_the_one_it_was_made_for(tmp_path):
    save_adapter(adapted("llama", tmp_path / "base", "lora"), tmp_path / "adapter", tmp_path / "base", Words())
    (tmp_path / "moved").mkdir()
    for name in ("base", "adapter"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    open_model(tmp_path / "moved" / "adapter")  # the two moved together
    base("llama", tmp_path / "moved" / "base").embedding.weight.data.zero_()
    other = load_model(tmp_path / "moved" / "base")
    other.embedding.weight.data.add_(1.0)
    save_model(other, tmp_path / "moved" / "base")
    with pytest.raises(DataError, match="is not the base"):
        open_model(tmp_path / "moved" / "adapter")
