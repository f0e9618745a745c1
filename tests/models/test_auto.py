"""Architectures that run through transformers: loss, heads and directories are transformers' own."""

from __future__ import annotations

import copy
import json
import sys
from functools import partial

import pytest
import torch
import torch.nn.functional as F
import transformers

from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.models import auto_shape
from luban.models.auto import AutoModelAdapter
from luban.models.counts import flops_per_token, memory, parameters
from luban.models.heads import Head
from luban.models.huggingface import load_model, read_shape, save_model

BERT = {"vocab_size": 67, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 40}
PEGASUS = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 40}
THEIRS = {
    "gpt_neox": partial(transformers.GPTNeoXConfig, **BERT, tie_word_embeddings=False),
    "opt": partial(
        transformers.OPTConfig, vocab_size=67, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, ffn_dim=32, max_position_embeddings=40,
        word_embed_proj_dim=12, dropout=0.0,
    ),
    "bloom": partial(transformers.BloomConfig, vocab_size=67, hidden_size=16, n_layer=2, n_head=2),
    "gemma2": partial(transformers.Gemma2Config, **BERT, num_key_value_heads=1, head_dim=8, final_logit_softcapping=2.0),
    "electra": partial(transformers.ElectraConfig, **BERT, embedding_size=8),
    "distilbert": partial(transformers.DistilBertConfig, vocab_size=67, dim=16, n_layers=2, n_heads=2, hidden_dim=32, max_position_embeddings=40),
    "deberta": partial(transformers.DebertaConfig, **BERT, relative_attention=True, pos_att_type=["c2p", "p2c"]),
    "albert": partial(transformers.AlbertConfig, **BERT, embedding_size=8),
    "pegasus": partial(transformers.PegasusConfig, vocab_size=67, d_model=16, encoder_layers=2, decoder_layers=1, **PEGASUS),
    "umt5": partial(transformers.UMT5Config, vocab_size=67, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0),
}  # fmt: skip
DECODERS, ENCODERS, PAIRS = ["gpt_neox", "opt", "bloom", "gemma2"], ["electra", "distilbert", "deberta", "albert"], ["pegasus", "umt5"]
FACTORIES = {
    **dict.fromkeys(DECODERS, transformers.AutoModelForCausalLM), **dict.fromkeys(ENCODERS, transformers.AutoModelForMaskedLM),
    **dict.fromkeys(PAIRS, transformers.AutoModelForSeq2SeqLM),
}  # fmt: skip


def shaken(model: torch.nn.Module) -> torch.nn.Module:
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model.eval()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A directory of each architecture, written by transformers, and the model that wrote it."""
    made = {}
    for name, config in THEIRS.items():
        folder = tmp_path_factory.mktemp(name)
        model = shaken(FACTORIES[name].from_config(config()))
        model.save_pretrained(folder)
        made[name] = (folder, model)
    return made


def tokens(rows: int = 2, seq: int = 9, seed: int = 1) -> torch.Tensor:
    return torch.randint(3, 67, (rows, seq), generator=torch.Generator().manual_seed(seed))


SEGMENTS = torch.tensor([[0] * 9, [0] * 6 + [-1] * 3])
MASK = (SEGMENTS >= 0).long()


@pytest.mark.parametrize("name", THEIRS)
def test_loss_and_gradients_are_those_of_transformers(name, folders):
    folder, model = folders[name]
    theirs = copy.deepcopy(model)
    ours = load_model(folder)
    assert isinstance(ours, AutoModelAdapter) and ours.shape.kind == ("decoder" if name in DECODERS else "encoder" if name in ENCODERS else "encoder_decoder")
    labels = tokens(seed=2).masked_fill(MASK == 0, -100)
    if name in PAIRS:
        source, source_mask = tokens(seq=7, seed=3), torch.tensor([[1] * 7, [1] * 4 + [0] * 3])
        expected = theirs(input_ids=source, attention_mask=source_mask, decoder_input_ids=tokens(), decoder_attention_mask=MASK, labels=labels)
        hidden, targets = ours(tokens(), source=source, source_segments=source_mask - 1, segments=SEGMENTS), labels
        memory = ours.encode(source, source_mask - 1)
        torch.testing.assert_close(ours(tokens(), memory=memory, source_segments=source_mask - 1, segments=SEGMENTS), hidden)
    else:
        expected = theirs(tokens(), attention_mask=MASK, labels=tokens().masked_fill(MASK == 0, -100) if name in DECODERS else labels)
        hidden = ours(tokens(), segments=SEGMENTS)
        targets = F.pad(tokens().masked_fill(MASK == 0, -100)[:, 1:], (0, 1), value=-100) if name in DECODERS else labels
    kept = targets >= 0
    loss = F.cross_entropy(ours.logits(hidden[kept]), targets[kept])
    torch.testing.assert_close(ours.logits(hidden)[MASK > 0], expected.logits[MASK > 0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss, expected.loss, atol=1e-5, rtol=1e-5)
    loss.backward()
    expected.loss.backward()
    mine = {key: value.grad for key, value in ours.named_parameters()}
    for key, value in theirs.named_parameters():
        torch.testing.assert_close(mine[key], value.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", THEIRS)
def test_directories_go_both_ways(name, folders, tmp_path):
    folder, theirs = folders[name]
    ours = load_model(folder)
    save_model(ours, tmp_path, end_ids=[2], begin_id=1, pad_id=0)
    again, report = FACTORIES[name].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    assert again.config.eos_token_id == 2 and again.config.pad_token_id == 0
    for key, value in theirs.state_dict().items():
        torch.testing.assert_close(again.state_dict()[key], value, atol=0, rtol=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
    save_model(load_model(tmp_path), tmp_path / "twice", end_ids=[2], begin_id=1, pad_id=0)
    assert (tmp_path / "twice" / "model.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "twice" / "config.json").read_text()) == json.loads((tmp_path / "config.json").read_text())


HEADS = {
    "sequence": transformers.AutoModelForSequenceClassification,
    "token": transformers.AutoModelForTokenClassification,
    "span": transformers.AutoModelForQuestionAnswering,
    "choice": transformers.AutoModelForMultipleChoice,
}


@pytest.mark.parametrize(("name", "structure"), [(name, s) for name in ("gpt_neox", "bloom", "opt", *ENCODERS) for s in HEADS if s != "choice" or name in ("electra", "albert")])
def test_heads_are_those_of_transformers(name, structure, folders, tmp_path):
    folder, _ = folders[name]
    head = Head(structure, "some", ("a", "b", "c") if structure in ("sequence", "token") else (), "single_label" if structure == "sequence" else "", {"maximum_tokens": 9})
    if (name, structure) == ("opt", "token"):
        with pytest.raises(ConfigError, match="opt has no head for token"):
            load_model(folder, head=head)
        return
    ours = load_model(folder, head=head, seed=1)
    assert torch.equal(ours.embedding.weight, load_model(folder).embedding.weight)
    shaken(ours)
    save_model(ours, tmp_path, pad_id=0)
    theirs, report = HEADS[structure].from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    text = tokens().masked_fill(MASK == 0, 0)
    with torch.no_grad():
        found = ours.scores(ours(text, segments=SEGMENTS), text, SEGMENTS)
        said = theirs.eval()(text[:, None], attention_mask=MASK[:, None]) if structure == "choice" else theirs.eval()(text, attention_mask=MASK)
        expected = torch.stack([said.start_logits, said.end_logits], -1) if structure == "span" else said.logits
        if structure in ("token", "span"):
            found, expected = found[MASK > 0], expected[MASK > 0]
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
        again = load_model(tmp_path)
        assert again.head == head
        torch.testing.assert_close(again(text, segments=SEGMENTS), ours(text, segments=SEGMENTS))
        for key, value in ours.named_parameters():
            assert torch.equal(again.get_parameter(key), value)


def test_new_heads_depend_on_the_seed_alone(folders, capsys):
    head = Head("sequence", "classification", ("a", "b"), "single_label")
    first = load_model(folders["electra"][0], head=head, seed=3)
    assert "classifier.dense.weight" in capsys.readouterr().err
    torch.manual_seed(77)
    again, other = load_model(folders["electra"][0], head=head, seed=3), load_model(folders["electra"][0], head=head, seed=4)
    assert torch.equal(first.get_parameter("classifier.out_proj.weight"), again.get_parameter("classifier.out_proj.weight"))
    assert not torch.equal(first.get_parameter("classifier.out_proj.weight"), other.get_parameter("classifier.out_proj.weight"))
    assert not first.get_parameter("classifier.out_proj.bias").any()


def test_vectors_and_a_head_after_a_head(folders, tmp_path):
    head = Head("vector", "embedding", settings={"pooling": "mean"})
    model = load_model(folders["distilbert"][0], head=head)
    text = tokens()
    hidden = model(text, segments=SEGMENTS)
    torch.testing.assert_close(model.scores(hidden, text, SEGMENTS)[1], hidden[1, :6].mean(0))
    save_model(model, tmp_path)
    assert load_model(tmp_path).head == head
    labels = load_model(tmp_path, head=Head("token", "tagging", ("O", "B")))
    torch.testing.assert_close(labels(text), model(text))
    save_model(labels, tmp_path)
    assert load_model(tmp_path, head=Head("sequence", "classification", ("a", "b", "c"), "single_label")).scores(hidden, text).shape == (2, 3)
    assert load_model(tmp_path, language_model=True).head is None


def test_packed_rows_are_refused(folders):
    model = load_model(folders["opt"][0])
    with pytest.raises(ConfigError, match="one document a row(.|\n)*packing to none"):
        model(tokens(1), segments=torch.tensor([[0] * 4 + [1] * 5]))


@pytest.mark.parametrize("name", ["opt", "electra", "bloom"])
def test_a_row_of_nothing_but_padding_does_no_harm(name, folders):
    model = load_model(folders[name][0])
    segments = torch.cat([torch.zeros(1, 9), torch.full((1, 9), -1.0)])
    hidden = model(tokens(), segments=segments)
    torch.testing.assert_close(hidden[:1], model(tokens()[:1]))
    hidden[0].square().sum().backward()
    assert all(bool(p.grad.isfinite().all()) for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", ["opt", "gpt_neox", "umt5", "electra"])
def test_another_type_on_disk_holds_tied_weights_once(name, folders, tmp_path):
    model = load_model(folders[name][0])
    save_model(model, tmp_path, dtype=torch.bfloat16)
    again = load_model(tmp_path)
    count = sum(parameter.numel() for parameter in model.parameters())
    assert (tmp_path / "model.safetensors").stat().st_size < 2 * count + 12000 and json.loads((tmp_path / "config.json").read_text())["dtype"] == "bfloat16"
    assert again.dtype == torch.float32
    for key, value in model.named_parameters():
        assert torch.equal(again.get_parameter(key), value.bfloat16().float())


def test_parts_are_found(folders):
    for name, (folder, _) in folders.items():
        model = load_model(folder)
        assert len(model.blocks()) == {"albert": 1, "pegasus": 3, "umt5": 3}.get(name, 2), name
        assert len(model.embedding.weight) == 67
        assert (model.output_layer() is None) == (model.inner.get_output_embeddings().weight is model.embedding.weight)
        assert model.output_weight.shape[0] == 67
        assert all(key == theirs for key, theirs in zip(dict(model.named_parameters()), dict(model.inner.named_parameters()), strict=True))
        copied = copy.deepcopy(model)
        assert copied.embedding is copied.inner.get_input_embeddings() and copied.embedding.weight is not model.embedding.weight


def test_recomputing_gives_the_same_gradients(folders):
    model = load_model(folders["gpt_neox"][0]).train()
    found = []
    for again in ("none", "full"):
        model.recompute = again
        assert model.recompute == again and model.inner.training
        model.zero_grad()
        model(tokens()).square().sum().backward()
        found.append(model.get_parameter("gpt_neox.layers.0.mlp.dense_h_to_4h.weight").grad.clone())
    torch.testing.assert_close(found[0], found[1])


@pytest.mark.parametrize("name", ["gpt_neox", "electra"])
def test_a_grown_vocabulary_leaves_old_tokens_as_they_were(name, folders, tmp_path):
    model = load_model(folders[name][0])
    with torch.no_grad():
        before = model.logits(model(tokens()))
        model.resize_vocabulary(70, {67: [3, 5]})
        after = model.logits(model(tokens()))
    assert after.shape[-1] == 70 == model.shape.vocabulary_size
    torch.testing.assert_close(after[..., :67], before)
    torch.testing.assert_close(model.embedding.weight[67:69], torch.stack([model.embedding.weight[[3, 5]].mean(0), model.embedding.weight[:67].mean(0)]))
    save_model(model, tmp_path)
    torch.testing.assert_close(load_model(tmp_path)(tokens()), model(tokens()))


@torch.inference_mode()
def test_continuing_a_text_is_the_full_pass(folders):
    model = load_model(folders["bloom"][0])
    texts = [tokens(1, size, seed=size) for size in (9, 7)]
    full = [model(text)[0] for text in texts]
    cache = model.new_cache(3, 12)
    prompt = torch.cat([texts[0][:, :5], F.pad(texts[1][:, :3], (0, 2))])
    hidden = model(prompt, cache=cache.rows(1, 2, [5, 3]))
    cache.advance(1, 5)
    cache.advance(2, 3)
    torch.testing.assert_close(hidden[0], full[0][:5])
    torch.testing.assert_close(hidden[1, :3], full[1][:3])
    hidden = model(torch.cat([texts[0][:, 5:7], texts[1][:, 3:5]]), cache=cache.rows(1, 2))
    cache.advance(1, 2)
    cache.advance(2, 2)
    torch.testing.assert_close(hidden, torch.stack([full[0][5:7], full[1][3:5]]))
    cache.move(2, 0)
    assert cache.lengths == [5, 7, 0]
    torch.testing.assert_close(model(texts[1][:, 5:6], cache=cache.rows(0, 1))[0, 0], full[1][5])


@pytest.mark.parametrize("name", THEIRS)
def test_costs_are_counted_on_the_modules(name, folders):
    folder, theirs = folders[name]
    shape = read_shape(folder)
    found = parameters(shape)
    assert found["total"] == sum(parameter.numel() for parameter in theirs.parameters())
    assert found["embedding"] == theirs.get_input_embeddings().weight.numel()
    assert flops_per_token(shape, 9) > 6 * found["matrices"] > 0
    assert memory(shape, rows=1, sequence_length=9)["total"] > 16 * found["total"]


# ---- what is refused -------------------------------------------------------------------------------------------------


def changed(folder, tmp_path, **said):
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    plain = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(plain | said))
    return tmp_path


def test_code_from_a_directory_is_never_run(folders, tmp_path):
    folder = changed(folders["opt"][0], tmp_path, auto_map={"AutoModelForCausalLM": "evil.Model"})
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    with pytest.raises(DataError, match="auto_map asks to run Python code"):
        load_model(folder)
    with pytest.raises(DataError, match="auto_map asks to run Python code"):
        load_model(changed(folders["opt"][0], tmp_path, model_type="brand-new", auto_map={"AutoConfig": "evil.Config"}))


def test_unknown_types_and_models_that_write_no_text(folders, tmp_path):
    with pytest.raises(DataError, match=r"model_type 'brand-new' is not known(.|\n)*pip install -e .\.\[transformers\]"):
        load_model(changed(folders["opt"][0], tmp_path, model_type="brand-new"))
    with pytest.raises(DataError, match="no language model"):
        load_model(changed(folders["opt"][0], tmp_path, model_type="vit"))


def test_without_transformers_the_extra_is_named(folders, monkeypatch):
    monkeypatch.setattr(auto_shape.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"model_type 'opt' is not known(.|\n)*pip install -e .\.\[transformers\]"):
        load_model(folders["opt"][0])


def test_without_transformers_later_on_too(folders, monkeypatch):
    shape = read_shape(folders["opt"][0])
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(LubanError, match=r"transformers is not installed(.|\n)*pip install -e .\.\[transformers\]"):
        AutoModelAdapter(shape)


def test_pickles_and_damaged_directories_are_refused(folders, tmp_path):
    folder = changed(folders["electra"][0], tmp_path)
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(DataError, match="only pickled weights"):
        load_model(folder)
    (folder / "pytorch_model.bin").unlink()
    (folder / "model.safetensors").write_bytes(weights[:200])
    with pytest.raises(DataError, match="transformers cannot read it"):
        load_model(folder)
    (folder / "model.safetensors").write_bytes(weights)
    with pytest.raises(DataError, match="transformers cannot read it"):
        load_model(changed(folder, folder, hidden_size=20))
    with pytest.raises(DataError, match="tensors are missing"):
        load_model(changed(folder, folder, hidden_size=16, num_hidden_layers=3))
    with pytest.raises(DataError, match="vocab_size is missing"):
        load_model(changed(folder, folder, vocab_size=None))


def test_numbers_that_are_none_are_found_where_asked(folders, tmp_path):
    model = load_model(folders["distilbert"][0])
    with torch.no_grad():
        model.embedding.weight[3, 3] = float("nan")
    save_model(model, tmp_path)
    load_model(tmp_path)
    with pytest.raises(DataError, match="NaN or infinity"):
        load_model(tmp_path, check_finite=True)


def test_a_shape_survives_as_plain_data(folders):
    """As in a resolved recipe: written out, read again by its architecture, and built."""
    from luban.foundation.config import Config, build, field
    from luban.models.shapes import AnyShape

    class Holder(Config):
        shape: AnyShape = field(..., "A shape.")

    for name in ("opt", "electra", "pegasus"):
        shape = read_shape(folders[name][0])
        assert shape.architecture == "transformers" and shape.model_type == name
        again = build(Holder, {"shape": json.loads(json.dumps(shape.model_dump()))}).shape
        assert again == shape and again.kind == shape.kind
        with torch.device("meta"):
            assert parameters(again)["total"] == sum(parameter.numel() for parameter in AutoModelAdapter(again).parameters())
