"""T5, v1.1, FLAN and mT5 against transformers: logits, gradients, heads, first values, and directories that lie."""

from __future__ import annotations

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
    MT5Config,
    MT5ForConditionalGeneration,
    T5Config,
    T5EncoderModel,
    T5ForConditionalGeneration,
    T5ForQuestionAnswering,
    T5ForSequenceClassification,
    T5ForTokenClassification,
)
from transformers.models.t5.modeling_t5 import T5Attention

from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.models.families import build_model
from luban.models.heads import Head
from luban.models.huggingface import load_model, read_shape, save_model
from luban.models.presets import preset
from luban.models.t5 import T5, bucket
from luban.models.t5_shape import T5ShapeConfig

SIZES = {"vocab_size": VOCABULARY, "d_model": 24, "d_kv": 6, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0}
GATED = {"feed_forward_proj": "gated-gelu"}
THEIRS = {
    "t5": T5Config(**SIZES),
    "t5, few wide buckets, uneven": T5Config(
        **{**SIZES, "d_kv": 5, "num_decoder_layers": 3}, relative_attention_num_buckets=6, relative_attention_max_distance=7, layer_norm_epsilon=1e-3
    ),
    "t5, gelu": T5Config(**SIZES, feed_forward_proj="gelu"),
    "v1.1": T5Config(**SIZES, **GATED, tie_word_embeddings=False),
    "t5, gated silu, one layer": T5Config(**{**SIZES, "num_layers": 1}, feed_forward_proj="gated-silu"),
    "mt5": MT5Config(**SIZES, **GATED),
}
PLAIN = {"vocabulary_size": VOCABULARY, "layers": 2, "hidden_size": 24, "heads": 4, "maximum_positions": 64}
OURS = {
    "t5": PLAIN,
    "uneven": {**PLAIN, "decoder_layers": 1, "head_dim": 10, "relative_buckets": 8, "relative_distance": 12, "decoder_start_id": 3, "end_ids": [1]},
    "v1.1": {**PLAIN, "feed_forward": "gated-gelu", "tied_embeddings": False},
    "t5, tied, output not scaled": {**PLAIN, "scaled_output": False},
    "mt5": {**PLAIN, "architecture": "mt5", "feed_forward": "gated-gelu", "tied_embeddings": False},
    "mt5, tied": {**PLAIN, "architecture": "mt5", "feed_forward": "gated-relu", "end_ids": [1, 2]},
}


def made(config: T5Config) -> torch.nn.Module:
    torch.manual_seed(1)
    kind = MT5ForConditionalGeneration if config.model_type == "mt5" else T5ForConditionalGeneration
    return shaken(kind(config))


def ours(name: str = "t5", **changes: object) -> T5:
    return shaken(build_model(T5ShapeConfig(**{**OURS[name], **changes})).initialize(0))


@pytest.mark.parametrize("name", THEIRS)
def test_what_transformers_wrote_opens_here_and_goes_back(name, tmp_path):
    there_and_back(made(THEIRS[name]), tmp_path)


@pytest.mark.parametrize("name", OURS)
def test_what_luban_wrote_opens_there_and_comes_back(name, tmp_path):
    back_and_there(ours(name), tmp_path)


def test_an_output_matrix_that_the_configuration_denies_is_found(tmp_path):
    """transformers 5 writes tie_word_embeddings for v1.1, FLAN and mT5, whose files hold an output matrix nevertheless."""
    model = ours("v1.1")
    save_model(model, tmp_path / "published")
    AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "published").save_pretrained(tmp_path / "again")
    configure(tmp_path / "again", tie_word_embeddings=True, scale_decoder_outputs=False)
    assert not read_shape(tmp_path / "again").tied_embeddings
    same(our_logits(load_model(tmp_path / "again")), our_logits(model))


def test_copies_and_leftovers_of_old_files_are_left_out(tmp_path):
    theirs = made(THEIRS["t5"])
    theirs.save_pretrained(tmp_path)

    def older(tensors):
        shared = tensors["shared.weight"]
        copies = {name: shared.clone() for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight")}
        return {**tensors, **copies, "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight": torch.zeros(32, 4)}

    rewrite(tmp_path, older)
    configure(tmp_path, scale_decoder_outputs=..., is_gated_act=..., dense_act_fn=..., tie_word_embeddings=...)
    same(our_logits(load_model(tmp_path)), their_logits(theirs))


def test_distances_fall_into_the_same_buckets():
    ahead = torch.arange(-700, 700)
    for buckets, distance in ((32, 128), (4, 3), (6, 20), (64, 100), (32, 1000)):
        for both in (False, True):
            expected = T5Attention._relative_position_bucket(ahead, both, buckets, distance)
            assert torch.equal(bucket(ahead, both, buckets, distance), expected)


@pytest.mark.parametrize("name", ["t5", "v1.1"])
def test_gradients(name, tmp_path):
    theirs = made(THEIRS[name])
    theirs.save_pretrained(tmp_path)
    gradients_agree(theirs, load_model(tmp_path))


def test_packed_documents_do_not_see_each_other():
    packed_as_alone(ours())


def test_token_by_token_gives_the_same():
    steps_equal_the_whole(ours("uneven"))


# ------------------------------------------------------------------------------------------------------------ heads

LABELS = ("bad", "good", "so so")
ENDED = SOURCE.masked_fill(SEGMENTS < 0, 0).scatter(1, (SEGMENTS >= 0).sum(1, keepdim=True) - 1, 1)  # each text ends with </s>
HEADS = {
    "sequence": (Head("sequence", "classification", LABELS, "single_label"), T5ForSequenceClassification),
    "token": (Head("token", "tagging", LABELS), T5ForTokenClassification),
    "span": (Head("span", "question_answering"), T5ForQuestionAnswering),
    "vector": (Head("vector", "embedding"), T5EncoderModel),
}


def their_scores(structure: str, theirs: torch.nn.Module) -> torch.Tensor:
    with torch.inference_mode():
        found = theirs.eval()(input_ids=ENDED, attention_mask=(SEGMENTS >= 0).long())
    if structure == "vector":
        kept = (SEGMENTS >= 0)[..., None]
        return (found.last_hidden_state * kept).sum(1) / kept.sum(1)
    return torch.stack([found.start_logits, found.end_logits], dim=-1) if structure == "span" else found.logits


@torch.inference_mode()
def our_scores(model: T5) -> torch.Tensor:
    return model.scores(model(ENDED, segments=SEGMENTS), ENDED, SEGMENTS)


def agree(structure: str, one: torch.Tensor, other: torch.Tensor) -> None:
    """Scores of places that are padding may be anything."""
    kept = SEGMENTS >= 0 if structure in ("token", "span") else ...
    same(one[kept], other[kept])


@pytest.mark.parametrize("structure", HEADS)
def test_heads_both_ways(structure, tmp_path):
    head, kind = HEADS[structure]
    model = shaken(ours().with_head(head, seed=4))
    save_model(model, tmp_path / "ours", end_ids=[1], pad_id=0)
    theirs, notes = kind.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not notes["missing_keys"] and not notes["unexpected_keys"]
    agree(structure, their_scores(structure, theirs), our_scores(model))
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_model(tmp_path / "theirs")
    assert again.head.structure == structure
    agree(structure, our_scores(again), our_scores(model))
    assert torch.equal(our_scores(load_model(tmp_path / "ours")), our_scores(model))


def test_a_head_on_a_language_model_keeps_the_trunk(tmp_path):
    model = ours("v1.1")
    save_model(model, tmp_path)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for structure, (head, _) in HEADS.items():
        loaded = load_model(tmp_path, head=head, seed=7)
        for name, value in loaded.state_dict().items():
            if not loaded.is_output(name):
                assert torch.equal(value, before[name.removeprefix("transformer.")]), name
        attached = ours("v1.1").with_head(head, seed=7).eval()
        agree(structure, our_scores(loaded), our_scores(attached))
        assert len(loaded.blocks()) == (2 if structure in ("token", "vector") else 4)
        loaded.resize_vocabulary(VOCABULARY + 3)
        assert loaded.embedding.weight.shape[0] == VOCABULARY + 3


def test_the_language_model_comes_back_from_a_directory_with_a_head(tmp_path):
    model = ours()
    expected = our_logits(model)
    save_model(model.with_head(HEADS["sequence"][0]), tmp_path)
    assert torch.equal(our_logits(load_model(tmp_path, language_model=True)), expected)


def test_a_choice_is_scored_with_one_number():
    model = ours().with_head(Head("choice", "multiple_choice"))
    assert our_scores(model).shape == (3, 1)


def test_a_head_of_lubans_own_stands_on_the_encoder(tmp_path):
    head = Head("pairs", "joint", ("works for",), settings={"tags": ["O", "B"]})
    model = ours().with_head(head, seed=1).eval()
    save_model(model, tmp_path, end_ids=[1], pad_id=0)
    assert our_scores(model).shape == (3, 11, 2 + 11) and len(model.blocks()) == 2
    assert torch.equal(our_scores(load_model(tmp_path)), our_scores(model))


def test_heads_that_there_are_not():
    with pytest.raises(ConfigError, match="no head for sequence"):
        ours().with_head(HEADS["token"][0]).with_head(HEADS["sequence"][0])


def test_a_single_text_without_a_head_is_refused():
    with pytest.raises(ConfigError, match="reads a source and writes a target"):
        ours()(TARGET)


def test_texts_packed_under_a_head_are_read_as_if_alone():
    model = ours().with_head(HEADS["span"][0])
    segments = torch.tensor([[0, 0, 0, 1, 1, 1, 1, -1]])
    tokens = SOURCE[:1, :8]
    with torch.inference_mode():
        found = model(tokens, segments=segments)
        for first, last in ((0, 3), (3, 7)):
            torch.testing.assert_close(found[:, first:last], model(tokens[:, first:last]), atol=1e-5, rtol=1e-5)


# ------------------------------------------------------------------------------------- first values, sizes, vocabulary


def test_first_values_are_those_of_the_paper():
    """Deviations against transformers' initialisation of the same shape, tensor by tensor."""
    shape = T5ShapeConfig(vocabulary_size=500, layers=2, hidden_size=128, heads=4, head_dim=16, feed_forward_size=300, maximum_positions=64)
    model = T5(shape).initialize(0)
    torch.manual_seed(0)
    theirs = dict(T5ForConditionalGeneration(T5Config(vocab_size=500, num_layers=2, d_model=128, num_heads=4, d_kv=16, d_ff=300)).named_parameters())
    for name, parameter in model.named_parameters():
        ours, expected = parameter.std(), theirs[name].std()
        assert abs(ours - expected) < 5 * expected / parameter.numel() ** 0.5 + 1e-9, name
        assert parameter.dim() == 1 or abs(parameter.mean()) < 5 * ours / parameter.numel() ** 0.5
    again, other = T5(shape).initialize(0), T5(shape).initialize(1)
    assert torch.equal(again.shared.weight, model.shared.weight) and not torch.equal(other.shared.weight, model.shared.weight)
    plain = T5(shape.updated(initializer="normal", initializer_deviation=0.05)).initialize(0)
    assert abs(plain.shared.weight.std() - 0.05) < 0.002
    scaled = T5(shape.updated(initializer="depth_scaled")).initialize(0)
    assert abs(scaled.decoder.block[1].layer[1].EncDecAttention.o.weight.std() - 0.01) < 0.001


@pytest.mark.parametrize("name", ["t5", "v1.1"])
def test_the_vocabulary_grows_and_shrinks(name, tmp_path):
    model = ours(name)
    before = our_logits(model)
    model.resize_vocabulary(VOCABULARY + 9, {VOCABULARY: [5, 6]})
    after = our_logits(model)
    same(after[..., :VOCABULARY], before)
    mean = model.output_weight[[5, 6]].mean(0)
    torch.testing.assert_close(model.output_weight[VOCABULARY], mean)
    save_model(model, tmp_path)
    same(their_logits(AutoModelForSeq2SeqLM.from_pretrained(tmp_path)), after)
    model.resize_vocabulary(VOCABULARY)
    assert torch.equal(our_logits(model), before)


@pytest.mark.parametrize("name", OURS)
def test_counts(name):
    shape = {**OURS[name], "hidden_size": 96, "heads": 2}
    counts_are_those_of_the_model(T5ShapeConfig(**shape))


def test_presets_are_the_published_models():
    published = {
        "t5-small": 60_506_624, "t5-base": 222_903_552, "t5-large": 737_668_096, "t5-v1_1-small": 76_961_152, "t5-v1_1-base": 247_577_856,
    }  # fmt: skip
    for name, total in published.items():
        with torch.device("meta"):
            assert sum(parameter.numel() for parameter in build_model(preset(name)).parameters()) == total


def test_half_precision_and_dropout():
    model = ours(dropout=0.5)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        half = model.logits(model(TARGET, source=SOURCE, source_segments=SEGMENTS)).float()
    assert (half - our_logits(model)).abs().mean() < 0.05 * our_logits(model).abs().mean()
    assert all(module.p == 0.5 for module in model.modules() if isinstance(module, torch.nn.Dropout))
    model.train()
    assert not torch.allclose(our_logits(model), our_logits(model))
    assert our_logits(model.to(torch.bfloat16)).isfinite().all()


# -------------------------------------------------------------------------------------------------- directories that lie


@pytest.mark.parametrize(
    "changes",
    [
        {"vocab_size": ...}, {"d_model": ...}, {"num_layers": ...}, {"vocab_size": "many"}, {"vocab_size": -3}, {"num_layers": 10**12},
        {"num_decoder_layers": -1}, {"num_heads": 0}, {"d_kv": "wide"}, {"d_ff": None}, {"feed_forward_proj": "gated-swish-glu"},
        {"feed_forward_proj": 3}, {"relative_attention_num_buckets": 5}, {"relative_attention_num_buckets": 0}, {"relative_attention_max_distance": 2},
        {"dropout_rate": 1.5}, {"eos_token_id": "end"}, {"eos_token_id": [1, -2]}, {"decoder_start_token_id": -1}, {"layer_norm_epsilon": 0},
        {"d_model": 25}, {"num_layers": 3}, {"d_ff": 41}, {"num_layers": 1}, {"forced_eos_token_id": {"a": 1}},
    ],
)  # fmt: skip
def test_a_lying_configuration_is_an_error_in_words(changes, tmp_path):
    save_model(ours(), tmp_path)
    configure(tmp_path, **changes)
    with pytest.raises(LubanError) as problem:
        load_model(tmp_path)
    assert "config.json" in str(problem.value) or "safetensors" in str(problem.value) or str(tmp_path) in str(problem.value)


def test_a_missing_trunk_tensor_is_not_drawn_for_a_head(tmp_path):
    save_model(ours(), tmp_path)
    rewrite(tmp_path, lambda tensors: {name: value for name, value in tensors.items() if name != "encoder.block.1.layer.0.SelfAttention.q.weight"})
    with pytest.raises(DataError, match=r"encoder\.block\.1\.layer\.0\.SelfAttention\.q\.weight"):
        load_model(tmp_path, head=HEADS["sequence"][0])


def test_shapes_that_do_not_fit_are_refused():
    for changes in (
        {"hidden_size": 100, "heads": "auto"},
        {"heads": 5},
        {"relative_buckets": 7},
        {"architecture": "mt5", "scaled_output": True},
        {"tied_embeddings": False, "scaled_output": True},
    ):
        with pytest.raises(ConfigError):
            build(T5ShapeConfig, {**PLAIN, **changes})
    assert T5ShapeConfig(**{**PLAIN, "hidden_size": 128, "heads": "auto"}).heads == 2
    resolved = preset("t5-tiny").resolved(vocabulary_size=100)
    assert (resolved.decoder_layers, resolved.head_dim, resolved.feed_forward_size) == (2, 32, 512)
