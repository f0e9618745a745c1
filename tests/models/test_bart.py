"""BART, mBART and Marian (the original Transformer) against transformers, and the paper's sinusoids."""

from __future__ import annotations

import math

import pytest
import torch
from encoder_tools import configure, rewrite, shaken
from seq2seq_tools import (
    SEGMENTS,
    SOURCE,
    TARGET,
    VOCABULARY,
    back_and_there,
    counts_are_those_of_the_model,
    gradients_agree,
    our_logits,
    packed_as_alone,
    same,
    steps_equal_the_whole,
    their_logits,
    there_and_back,
)
from transformers import (
    AutoModelForSeq2SeqLM,
    BartConfig,
    BartForConditionalGeneration,
    BartForQuestionAnswering,
    BartForSequenceClassification,
    BartModel,
    MarianConfig,
    MarianMTModel,
    MBartConfig,
    MBartForConditionalGeneration,
)

from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.models.bart import Bart
from luban.models.bart_shape import BartShapeConfig
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, save_model
from luban.models.presets import preset

SIZES = {
    "vocab_size": VOCABULARY, "d_model": 24, "encoder_layers": 2, "decoder_layers": 1, "encoder_ffn_dim": 40, "decoder_ffn_dim": 56,
    "encoder_attention_heads": 4, "decoder_attention_heads": 2, "max_position_embeddings": 30,
}  # fmt: skip
MARIAN = {"pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "forced_eos_token_id": 1}
THEIRS = {
    "bart": (BartForConditionalGeneration, BartConfig(**SIZES)),
    "bart, scaled, relu": (BartForConditionalGeneration, BartConfig(**SIZES, scale_embedding=True, activation_function="relu", forced_bos_token_id=0)),
    "mbart": (MBartForConditionalGeneration, MBartConfig(**SIZES, scale_embedding=True)),
    "marian": (MarianMTModel, MarianConfig(**SIZES, **MARIAN)),
    "marian, swish, scaled": (MarianMTModel, MarianConfig(**SIZES, **MARIAN, scale_embedding=True, activation_function="swish")),
}
PLAIN = {"vocabulary_size": VOCABULARY, "layers": 2, "hidden_size": 24, "heads": 4, "maximum_positions": 30}
OURS = {
    "bart": {**PLAIN, "decoder_start_id": 2, "end_ids": [2], "forced_end_id": 2},
    "bart, uneven": {**PLAIN, "decoder_layers": 3, "decoder_heads": 2, "decoder_feed_forward_size": 50, "activation": "gelu_new", "scaled_embedding": True},
    "mbart": {**PLAIN, "architecture": "mbart", "forced_begin_id": 4},
    "transformer": {**PLAIN, "architecture": "marian", "activation": "relu", "scaled_embedding": True, "initializer": "xavier_uniform"},
}


def made(name: str) -> torch.nn.Module:
    """Random, with a bias of the logits; sinusoids stay what they are."""
    kind, config = THEIRS[name]
    torch.manual_seed(1)
    theirs = kind(config)
    kept = {key: value.clone() for key, value in theirs.state_dict().items() if "embed_positions" in key}
    shaken(theirs)
    if config.model_type == "marian":
        theirs.load_state_dict(kept, strict=False)
    theirs.final_logits_bias.normal_()
    return theirs


def ours(name: str = "bart", **changes: object) -> Bart:
    return shaken(build_model(BartShapeConfig(**{**OURS[name], **changes})).initialize(0))


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_wrote_opens_here_and_goes_back(name, tmp_path):
    there_and_back(made(name), tmp_path)


@pytest.mark.parametrize("name", OURS)
def test_what_luban_wrote_opens_there_and_comes_back(name, tmp_path):
    back_and_there(ours(name), tmp_path)


@pytest.mark.parametrize("name", ["bart", "marian"])
def test_old_files_with_copies_sinusoids_and_versions(name, tmp_path):
    theirs = made(name)
    theirs.save_pretrained(tmp_path)

    def older(tensors):
        shared = tensors["model.shared.weight"]
        copies = {key: shared.clone() for key in ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")}
        sinusoids = {f"model.{side}.embed_positions.weight": torch.zeros(30, 24) for side in ("encoder", "decoder")} if name == "marian" else {}
        return {**tensors, **copies, **sinusoids, "model.encoder.version": torch.ones(1)}

    rewrite(tmp_path, older)
    same(our_logits(load_model(tmp_path)), their_logits(theirs))


def test_a_bare_trunk_without_bias_opens_as_a_language_model(tmp_path):
    """As facebook/bart-base is published: class BartModel, no prefix, no bias of the logits."""
    theirs = made("bart")
    theirs.final_logits_bias.zero_()
    theirs.model.save_pretrained(tmp_path)
    assert BartModel.from_pretrained(tmp_path).config.architectures == ["BartModel"]
    model = load_model(tmp_path)
    assert model.head is None
    same(our_logits(model), their_logits(theirs))


@pytest.mark.parametrize("name", ["bart, scaled, relu", "mbart", "marian"])
def test_gradients(name, tmp_path):
    """The bias of the logits, a buffer there, is not trained here."""
    theirs = made(name)
    theirs.save_pretrained(tmp_path)
    gradients_agree(theirs, load_model(tmp_path))


@pytest.mark.parametrize("name", OURS)
def test_packed_documents_do_not_see_each_other(name):
    packed_as_alone(ours(name))


@pytest.mark.parametrize("name", OURS)
def test_token_by_token_gives_the_same(name):
    steps_equal_the_whole(ours(name))


def test_sinusoids_are_the_papers():
    """Section 3.5, with the sines in the first half of the vector."""
    table = ours("transformer")._table(50, torch.device("cpu"))
    assert table.shape == (50, 24)
    for position in (0, 1, 7, 49):
        for pair in range(12):
            angle = position / 10000 ** (2 * pair / 24)
            assert math.isclose(table[position, pair], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(table[position, 12 + pair], math.cos(angle), abs_tol=1e-6)


def test_learned_positions_end_somewhere_and_sinusoids_do_not():
    long = torch.full((1, 40), 7)
    with pytest.raises(DataError, match="40 tokens is longer than the 30 positions"):
        ours()(TARGET[:1], source=long)
    with pytest.raises(DataError, match="31 tokens"):
        ours()(TARGET[:1], source=long, source_segments=torch.tensor([[0] * 9 + [1] * 31]), segments=torch.zeros(1, 7))
    two = torch.tensor([[0] * 20 + [1] * 20])
    assert ours().encode(long, two).isfinite().all(), "a row may be longer than each of its documents"
    assert ours("transformer")(TARGET[:1], source=long).isfinite().all()


# ------------------------------------------------------------------------------------------------------------ heads

LABELS = ("bad", "good", "so so")
ENDED = SOURCE.masked_fill(SEGMENTS < 0, 0).scatter(1, (SEGMENTS >= 0).sum(1, keepdim=True) - 1, 2)  # each text ends with </s>
HEADS = {
    "sequence": (Head("sequence", "classification", LABELS, "single_label"), BartForSequenceClassification),
    "span": (Head("span", "question_answering"), BartForQuestionAnswering),
}


@torch.inference_mode()
def their_scores(structure: str, theirs: torch.nn.Module) -> torch.Tensor:
    found = theirs.eval()(input_ids=ENDED, attention_mask=(SEGMENTS >= 0).long())
    return torch.stack([found.start_logits, found.end_logits], dim=-1) if structure == "span" else found.logits


@torch.inference_mode()
def our_scores(model: Bart) -> torch.Tensor:
    return model.scores(model(ENDED, segments=SEGMENTS, positions=torch.zeros(3, 11)), ENDED, SEGMENTS)


@pytest.mark.parametrize("structure", HEADS)
def test_heads_both_ways(structure, tmp_path):
    head, kind = HEADS[structure]
    kept = SEGMENTS >= 0 if structure == "span" else ...
    model = shaken(ours().with_head(head, seed=4))
    save_model(model, tmp_path / "ours", end_ids=[2], pad_id=1)
    theirs, notes = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    same(their_scores(structure, theirs)[kept], our_scores(model)[kept])
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.head.structure == structure
    same(our_scores(again)[kept], our_scores(model)[kept])


@pytest.mark.parametrize("name", ["bart", "transformer"])
@pytest.mark.parametrize("structure", ["sequence", "token", "span", "vector", "choice"])
def test_heads_of_every_kind_are_kept(name, structure, tmp_path):
    """Where transformers has no class of the kind, Luban's own note in config.json tells the head."""
    head = Head(structure, "a task", LABELS if structure in ("sequence", "token") else ())
    model = ours(name).with_head(head, seed=1)
    save_model(model, tmp_path, end_ids=[2], pad_id=1)
    again = load_model(tmp_path)
    assert again.head == head and torch.equal(our_scores(again), our_scores(model.eval()))
    assert len(again.blocks()) == (2 if structure in ("token", "vector") else 4)
    if structure in ("sequence", "span", "choice"):
        same(our_logits(load_model(tmp_path, language_model=True)), our_logits(ours(name)) - ours(name).final_logits_bias)


def test_a_head_of_lubans_own_stands_on_the_encoder(tmp_path):
    head = Head("pairs", "joint", ("works for",), settings={"tags": ["O", "B"]})
    model = ours().with_head(head, seed=1).eval()
    save_model(model, tmp_path, end_ids=[1], pad_id=0)
    assert our_scores(model).shape == (3, 11, 2 + 11) and len(model.blocks()) == 2
    assert torch.equal(our_scores(load_model(tmp_path)), our_scores(model))


# ------------------------------------------------------------------------------------- first values, sizes, vocabulary


def test_first_values():
    shape = BartShapeConfig(**{**OURS["transformer"], "hidden_size": 64, "vocabulary_size": 400})
    model = build_model(shape).initialize(0)
    states = model.model.shared.weight * 8  # embedded tokens, scaled by the root of 64
    assert abs(states.std() - 1) < 0.03
    query = model.model.encoder.layers[0].self_attn.q_proj
    assert abs(query.weight.std() - math.sqrt(2 / 128)) < 0.01 and not query.bias.any()
    assert query.weight.abs().max() <= math.sqrt(6 / 128) and bool((model.model.encoder.layers[0].final_layer_norm.weight == 1).all())
    assert not model.final_logits_bias.any()
    plain = build_model(shape.updated(architecture="bart", initializer="normal")).initialize(0)
    for name, parameter in plain.named_parameters():
        if parameter.dim() == 2 and "final_logits_bias" not in name:
            assert abs(parameter.std() - 0.02) < 0.002, name


@pytest.mark.parametrize("name", ["bart", "transformer"])
def test_the_vocabulary_grows_and_shrinks(name, tmp_path):
    model = ours(name)
    before = our_logits(model)
    model.resize_vocabulary(VOCABULARY + 9)
    after = our_logits(model)
    same(after[..., :VOCABULARY], before)
    save_model(model, tmp_path)
    same(their_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), after)
    model.resize_vocabulary(VOCABULARY)
    assert torch.equal(our_logits(model), before)


@pytest.mark.parametrize("name", OURS)
def test_counts(name):
    counts_are_those_of_the_model(BartShapeConfig(**{**OURS[name], "hidden_size": 96, "heads": 2}))


def test_presets_are_the_published_models():
    """BART's published counts, and one bias for each token; Vaswani et al. 2017, table 3, with a vocabulary of 37,000: 65 and 213 million."""
    for name, total in {"bart-base": 139_420_416, "bart-large": 406_291_456}.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in build_model(preset(name)).parameters()) == total + 50265
    for name, total in {"transformer-base": 65e6, "transformer-big": 213e6}.items():
        with torch.device("meta"):
            found = sum(parameter.numel() for parameter in build_model(preset(name).resolved(vocabulary_size=37000)).parameters())
        assert abs(found / total - 1) < 0.03


def test_half_precision_and_dropout():
    for name in OURS:
        model = ours(name, dropout=0.3, attention_dropout=0.3, activation_dropout=0.3)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = our_logits(model).float()
        assert (half - our_logits(model)).abs().mean() < 0.05 * our_logits(model).abs().mean()
        model.train()
        assert not torch.allclose(our_logits(model), our_logits(model))
        assert our_logits(model.to(torch.bfloat16)).isfinite().all()


# -------------------------------------------------------------------------------------------------- directories that lie


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": ...}, {"d_model": ...}, {"decoder_layers": ...}, {"vocab_size": "many"}, {"encoder_layers": 10**12}, {"decoder_layers": -1},
        {"encoder_attention_heads": 0}, {"decoder_attention_heads": 5}, {"encoder_ffn_dim": None}, {"activation_function": "mish"},
        {"activation_function": ["relu"]}, {"tie_word_embeddings": False}, {"share_encoder_decoder_embeddings": False}, {"decoder_vocab_size": 12},
        {"dropout": -1}, {"eos_token_id": "end"}, {"decoder_start_token_id": -1}, {"max_position_embeddings": 29}, {"max_position_embeddings": 0},
        {"d_model": 25}, {"encoder_layers": 3}, {"encoder_ffn_dim": 41}, {"model_type": "mbart"}, {"scale_embedding": "sometimes"},
    ],
)  # fmt: skip
def test_a_lying_configuration_is_an_error_in_words(changes, tmp_path):
    save_model(ours(), tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(LubanError) as problem:
        load_model(tmp_path)
    assert str(tmp_path) in str(problem.value)


def test_shapes_that_do_not_fit_are_refused():
    for changes in ({"hidden_size": 100, "heads": "auto"}, {"heads": 5}, {"tied_embeddings": False}, {"architecture": "marian", "hidden_size": 15, "heads": 3}):
        with pytest.raises(ConfigError):
            build(BartShapeConfig, {**PLAIN, **changes})
    resolved = preset("transformer-tiny").resolved(vocabulary_size=100)
    assert (resolved.decoder_layers, resolved.decoder_heads, resolved.decoder_feed_forward_size) == (2, 4, 512)
