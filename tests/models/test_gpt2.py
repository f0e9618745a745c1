"""GPT-2 against transformers in both directions, its cached writing against transformers' generate, and against reading each text alone."""

from __future__ import annotations

import copy
import math
import types

import pytest
import torch
from encoder_tools import configure, kept_numbers, packed, rewrite, shaken
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    GPT2Config,
)

from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.inference.cache import KeyValueCache
from luban.inference.config import SamplingConfig
from luban.inference.engine import Engine
from luban.inference.scoring import score_tokens
from luban.models.counts import activation_elements, flops_per_token, key_value_bytes, parameters
from luban.models.families import build_model
from luban.models.gpt2 import GPT2
from luban.models.gpt2_shape import GPT2ShapeConfig
from luban.models.heads import Head
from luban.models.huggingface import load_model, read_shape, save_model

SIZES = {"vocab_size": 83, "n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 40, "bos_token_id": 1, "eos_token_id": 2}
THEIRS = {
    "gpt2": GPT2Config(**SIZES),
    "relu, narrow, epsilon": GPT2Config(**SIZES, n_inner=48, activation_function="relu", layer_norm_epsilon=1e-3, resid_pdrop=0.2),
    "untied": GPT2Config(**SIZES, tie_word_embeddings=False),
    "scaled by layer": GPT2Config(**SIZES, scale_attn_by_inverse_layer_idx=True, activation_function="gelu", classifier_dropout=0.3),
}
PLAIN = {"vocabulary_size": 83, "layers": 2, "hidden_size": 32, "heads": 4, "maximum_positions": 40}
SHAPES = {
    "gpt2": GPT2ShapeConfig(**PLAIN),
    "untied, narrow": GPT2ShapeConfig(**PLAIN, tied_embeddings=False, feed_forward_size=48, activation="silu"),
    "scaled by layer": GPT2ShapeConfig(**PLAIN, scale_by_layer=True),
}
CLASSES = {
    "": AutoModelForCausalLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "vector": AutoModel,
}
LABELS = ("good", "bad", "neither")
HEADS = {
    "sequence": Head("sequence", "classification", LABELS, "single_label"),
    "token": Head("token", "tagging", LABELS),
    "span": Head("span", "question_answering"),
    "vector": Head("vector", "embedding"),
}
LENGTHS = [17, 9, 1, 30]


def made(shape: GPT2ShapeConfig, dtype: torch.dtype = torch.float64) -> GPT2:
    quiet = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
    return GPT2(shape.updated(initializer_deviation=0.3, **quiet)).initialize(0).to(dtype)


def rows() -> tuple[torch.Tensor, torch.Tensor]:
    """Four texts of different lengths, padded on the right with 0, and what is no padding."""
    kept = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    tokens = torch.randint(4, 83, kept.shape, generator=torch.Generator().manual_seed(1))
    return torch.where(kept, tokens, 0), kept


@torch.inference_mode()
def compare(ours: GPT2, theirs: torch.nn.Module, structure: str) -> None:
    tokens, kept = rows()
    segments = torch.where(kept, 0, -1)
    theirs.config.pad_token_id = 0  # it finds the last token by it
    said = theirs(tokens, attention_mask=kept.long())
    hidden = ours(tokens, segments=segments)
    found = ours.scores(hidden, tokens, segments) if structure else ours.logits(hidden)
    if structure == "vector":
        expected = torch.stack([said.last_hidden_state[row, length - 1] for row, length in enumerate(LENGTHS)])
    else:
        expected = torch.stack([said.start_logits, said.end_logits], -1) if structure == "span" else said.logits
    if structure in ("", "token", "span"):
        found, expected = found[kept], expected[kept]
    assert found.shape == expected.shape and expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_to_luban_to_transformers(name, structure, tmp_path):
    torch.manual_seed(0)
    config = copy.deepcopy(THEIRS[name])
    config.num_labels = 3
    theirs = shaken(CLASSES[structure].from_config(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert (ours.head.structure if ours.head else "") == structure
    compare(ours, theirs, structure)
    save_model(ours, tmp_path / "ours", pad_id=0)
    again, report = CLASSES[structure].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.activation_function == config.activation_function and again.config.resid_pdrop == config.resid_pdrop
    compare(ours, again.eval(), structure)
    save_model(load_model(tmp_path / "ours"), tmp_path / "third", pad_id=0)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "third" / file).read_bytes()


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("name", SHAPES)
def test_luban_to_transformers(name, structure, tmp_path):
    ours = GPT2(SHAPES[name]).initialize(3)
    ours = shaken(ours.with_head(HEADS[structure], seed=1) if structure else ours)
    save_model(ours, tmp_path, end_ids=[2], begin_id=1)
    theirs, report = CLASSES[structure].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.architectures == [type(theirs).__name__]
    if structure in ("sequence", "token"):
        assert theirs.config.id2label == dict(enumerate(LABELS))
    compare(ours, theirs.eval(), structure)
    assert load_model(tmp_path).shape == ours.shape and load_model(tmp_path).head == ours.head


def test_the_mean_or_the_first_state_can_be_the_vector():
    tokens, kept = rows()
    segments = torch.where(kept, 0, -1)
    for pooling, expected in (("mean", lambda states: states.mean(0)), ("first", lambda states: states[0]), ("last", lambda states: states[-1])):
        model = made(SHAPES["gpt2"]).with_head(Head("vector", "embedding", settings={"pooling": pooling})).eval()
        hidden = model(tokens, segments=segments)
        wanted = torch.stack([expected(hidden[row, :length]) for row, length in enumerate(LENGTHS)])
        torch.testing.assert_close(model.scores(hidden, tokens, segments), wanted)


def test_the_files_of_old_days_open(tmp_path):
    """The published GPT-2: a bare trunk with causal masks as buffers, under the name of the language model."""
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS["gpt2"]))
    theirs.save_pretrained(tmp_path)
    mask = torch.ones(40, 40).tril()[None, None]
    rewrite(
        tmp_path,
        lambda tensors: {name.removeprefix("transformer."): value for name, value in tensors.items()}
        | {f"h.{index}.attn.bias": mask.clone() for index in range(3)}
        | {"h.0.attn.masked_bias": torch.tensor(-1e4)},
    )
    configure(tmp_path, n_ctx=40, pad_token_id=...)
    compare(load_model(tmp_path), theirs, "")


def stand_in(stop_ids: list[int]) -> types.SimpleNamespace:
    """As much of a tokenizer as the engine asks for."""
    stream = types.SimpleNamespace(push=lambda token: f"{token} ", flush=lambda: "")
    return types.SimpleNamespace(stop_ids=stop_ids, stream=lambda: stream)


@pytest.mark.parametrize("name", THEIRS)
def test_cached_writing_is_that_of_transformers(name, tmp_path):
    """Seven prompts of different lengths in three slots, coming and going."""
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS[name]))
    theirs.save_pretrained(tmp_path)
    engine = Engine(load_model(tmp_path), stand_in([2]), slots=3)
    assert engine.maximum_length == 40
    tokens, _ = rows()
    prompts = [tokens[row, :length].tolist() for row, length in enumerate(LENGTHS)] + [[7, 8, 9], [50] * 12, [11]]
    requests = [engine.submit(prompt, SamplingConfig(temperature=0, maximum_tokens=10)) for prompt in prompts]
    engine.run()
    for prompt, request in zip(prompts, requests, strict=True):
        settings = {"max_new_tokens": 10, "do_sample": False, "eos_token_id": 2, "pad_token_id": 0}
        assert request.ids == theirs.generate(torch.tensor([prompt]), **settings)[0, len(prompt) :].tolist()
    with pytest.raises(ConfigError, match="the prompt has 41 tokens, the context 40"):
        engine.submit([5] * 41, SamplingConfig())


def test_nats_of_a_long_document_are_those_of_transformers(tmp_path):
    theirs = shaken(AutoModelForCausalLM.from_config(THEIRS["gpt2"]))
    theirs.save_pretrained(tmp_path)
    document = torch.randint(4, 83, (100,), generator=torch.Generator().manual_seed(2))
    nats = next(iter(score_tokens(load_model(tmp_path), [document.tolist()], sequence_length=40)))
    with torch.no_grad():
        first = torch.nn.functional.cross_entropy(theirs(document[None, :40]).logits[0], document[1:41], reduction="none")
    torch.testing.assert_close(nats[:40], first, atol=1e-5, rtol=1e-5)
    assert nats.shape == (99,)


@pytest.mark.parametrize("name", SHAPES)
def test_packed_is_the_same_as_each_text_alone(name):
    model = made(SHAPES[name])
    generator = torch.Generator().manual_seed(3)
    lengths, padding = [5, 1, 40, 7], 9  # the row is longer than the table of positions, no text is
    texts = [torch.randint(0, 83, (1, length), generator=generator) for length in lengths]
    row = torch.cat([*texts, torch.zeros(1, padding, dtype=torch.long)], dim=1)
    segments, positions = packed(lengths, padding)
    together = model(row, positions=positions, segments=segments)[:, : sum(lengths)]
    together.square().sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}
    model.zero_grad()
    alone = torch.cat([model(text) for text in texts], dim=1)
    alone.square().sum().backward()
    torch.testing.assert_close(together, alone, atol=1e-11, rtol=1e-9)
    torch.testing.assert_close(model(row, segments=segments)[:, : sum(lengths)], alone, atol=1e-11, rtol=1e-9)
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, model.get_parameter(name).grad, atol=1e-9, rtol=1e-7)
    with pytest.raises(DataError, match="a text of 41 tokens is longer than the 40 positions"):
        model(torch.zeros(1, 41, dtype=torch.long))


def test_a_prefix_is_seen_from_both_sides():
    model = made(SHAPES["gpt2"])
    tokens = torch.arange(4, 14)[None]
    prefix = torch.arange(10)[None] < 5
    plain = model(tokens, prefix=prefix)
    for place in range(10):
        changed = tokens.clone()
        changed[0, place] = 60
        moved = (model(changed, prefix=prefix) - plain).abs().amax(-1)[0] > 1e-9
        assert moved.tolist() == [True] * 10 if place < 5 else [False] * place + [True] * (10 - place)


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("recompute", [False, True])
def test_every_parameter_learns(structure, recompute):
    model = made(SHAPES["untied, narrow"])
    model = model.with_head(HEADS[structure]) if structure else model
    model.recompute = recompute
    tokens, kept = rows()
    hidden = model(tokens, segments=torch.where(kept, 0, -1))
    said = model.scores(hidden, tokens, torch.where(kept, 0, -1)) if structure else model.logits(hidden)
    said.sin().sum().backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


@pytest.mark.parametrize("structure", ["choice"])
def test_heads_that_transformers_has_not_are_refused(structure):
    with pytest.raises(ConfigError, match=f"gpt2 has no head for {structure}"):
        made(SHAPES["gpt2"]).with_head(Head(structure, "x"))


@pytest.mark.parametrize("initializer", ["depth_scaled", "normal", "he_normal", "zero_output"])
def test_first_values(initializer):
    """Radford et al.: 0.02, and for what writes to the residual stream 0.02 over the root of twice the layers. He: by the inputs."""
    shape = GPT2ShapeConfig(vocabulary_size=500, layers=3, hidden_size=128, maximum_positions=64, initializer=initializer)
    model = GPT2(shape).initialize(1).requires_grad_(False)
    for name, parameter in model.named_parameters():
        if ".ln_" in name:
            assert bool((parameter == (1 if name.endswith("weight") else 0)).all())
        elif name.endswith("bias"):
            assert not parameter.any()
        elif parameter.numel() > 8_000:
            writes = "c_proj" in name
            inputs = parameter.shape[0] if ".h." in name else parameter.shape[1]
            expected = {
                "depth_scaled": 0.02 / math.sqrt(6) if writes else 0.02, "normal": 0.02, "he_normal": math.sqrt(2 / inputs),
                "zero_output": 0.0 if writes else 0.02,
            }[initializer]  # fmt: skip
            assert float(parameter.std()) == pytest.approx(expected, rel=0.04), name
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), GPT2(shape).initialize(1).parameters(), strict=True))


@pytest.mark.parametrize("name", ["gpt2", "untied, narrow"])
def test_room_for_more_tokens(name, tmp_path):
    model = made(SHAPES[name], torch.float32).eval()
    tokens = torch.arange(4, 20)[None]
    before = model.logits(model(tokens))
    model.resize_vocabulary(90, pieces={85: [4, 6]})
    after = model.logits(model(tokens))
    torch.testing.assert_close(after[..., :83], before)
    torch.testing.assert_close(after[..., 85], before[..., [4, 6]].mean(-1))
    save_model(model, tmp_path)
    theirs, report = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and theirs.config.vocab_size == 90
    torch.testing.assert_close(theirs.eval()(tokens).logits, after, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structure", CLASSES)
def test_dropout_only_in_training(structure):
    tokens = torch.arange(4, 20)[None]
    quiet = {"dropout": 0.0, "embedding_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}

    def said(train: bool, **rates: float) -> torch.Tensor:
        torch.manual_seed(0)
        model = GPT2(GPT2ShapeConfig(**PLAIN, **quiet | rates)).initialize(0)
        model = (model.with_head(HEADS[structure]) if structure else model).train(train)
        hidden = model(tokens)
        return model.scores(hidden, tokens) if structure else model.logits(hidden)

    expected = said(False)
    torch.testing.assert_close(said(True), expected)
    for name in quiet:
        assert torch.equal(said(False, **{name: 0.5}), expected)
        assert torch.equal(said(True, **{name: 0.5}), expected) == (name == "classifier_dropout" and structure != "token"), name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "laplace"}, "activation_function 'laplace' is not known(.|\n)*gelu_new"),
        ({"scale_attn_weights": False}, "scale_attn_weights false"),
        ({"add_cross_attention": True}, "add_cross_attention true"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"n_embd": None}, "n_embd is missing"),
        ({"n_layer": ...}, "n_layer is missing"),
        ({"n_head": ...}, "n_head is missing"),
        ({"n_positions": ...}, "n_positions is missing"),
        ({"n_head": 5}, "hidden_size 32 is no multiple of heads 5"),
        ({"n_inner": "many"}, "feed_forward_size"),
        ({"n_layer": 10**9}, "layers"),
        ({"attn_pdrop": -0.1}, "attention_dropout"),
        ({"n_positions": 41}, r"wpe\.weight is \[40, 32\], config.json makes it \[41, 32\]"),
    ],
)
def test_a_config_that_lies_is_refused_by_name(changes, message, tmp_path):
    save_model(made(SHAPES["gpt2"], torch.float32), tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(LubanError, match=message):
        load_model(tmp_path)
    if "known" in message or "is missing" in message or "_a" in message:
        with pytest.raises(DataError):
            load_model(tmp_path)


def test_defaults_of_transformers_fill_what_an_old_config_leaves_out(tmp_path):
    save_model(GPT2(SHAPES["gpt2"]), tmp_path)
    keys = ("layer_norm_epsilon", "resid_pdrop", "embd_pdrop", "attn_pdrop", "initializer_range", "activation_function", "n_inner", "tie_word_embeddings", "scale_attn_weights")
    configure(tmp_path, **dict.fromkeys(keys, ...))
    assert read_shape(tmp_path) == SHAPES["gpt2"]


@pytest.mark.parametrize("name", SHAPES)
def test_closed_forms(name, tmp_path):
    shape = SHAPES[name]
    ready = made(shape, torch.float32)
    save_model(ready, tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model, theirs = build_model(shape), AutoModelForCausalLM.from_config(config)
    found = parameters(shape)
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found["total"] == sum(numel.values()) == theirs.num_parameters()
    assert found["norms"] == sum(number for name, number in numel.items() if "ln_" in name)
    assert found["attention"] == sum(number for name, number in numel.items() if "attn" in name)
    assert found["output"] == numel.get("lm_head.weight", 0) and found["positions"] == numel["transformer.wpe.weight"]
    seq, tokens = 24, torch.zeros(2, 24, dtype=torch.long)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ready.logits(ready(tokens)).sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * seq * flops_per_token(shape, seq), rel=1e-9)
    assert kept_numbers(ready, tokens) / (2 * seq) == pytest.approx(activation_elements(shape), rel=0.08)
    cache = KeyValueCache(ready, 3, 40)
    assert key_value_bytes(shape, 3 * 40) == sum(block.nbytes for block in (*cache.keys, *cache.values))
