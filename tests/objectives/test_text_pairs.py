"""Translation, summaries and controlled generation: the loss of transformers on the same texts, planted tasks that are learned, prompts and their cuts."""

from __future__ import annotations

import json

import pytest
import torch
from pair_lab import open_task, reversed_words, write_pairs
from text_lab import tokenizer_of_style
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

import luban
from luban.evaluation.labelled import _results
from luban.examples.reading import ExampleSet
from luban.examples.tasks import TextPair
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.inference.texts import fill_prompt, output_ids, source_ids, write
from luban.models.families import build_model
from luban.models.huggingface import save_model
from luban.objectives.base import load_objective
from luban.objectives.config import TextPairsConfig

PAIRS = [("the king and the sword", "a sword"), ("春风又绿江南岸", "明月何时照我还"), ("my lord, thou art", "to be, or not to be: that is the question")]
ENCODER_DECODERS = [("t5", "t5"), ("bart", "bart"), ("plain", "marian"), ("plain", "luban-recurrent")]


def opened(tmp_path, style, architecture, pairs=PAIRS, columns="input\toutput", settings=None, name="translation", **request):
    request = {"share": 0.0, **request} if "share" not in request else request
    data = write_pairs(tmp_path, pairs, columns)
    return open_task(tmp_path, data, style, architecture, name=name, settings=settings, **request)


@pytest.mark.parametrize(("style", "architecture"), ENCODER_DECODERS[:3] + [("plain", "gpt2")])
def test_the_loss_is_that_of_transformers_on_the_same_texts(tmp_path, style, architecture):
    objective, loaders, request = opened(tmp_path, style, architecture, dropout=0.0)
    model = build_model(request.shape).initialize(1).eval()
    batch = next(loaders.train.pass_once())
    ours = objective.terms(model, batch)["loss"].sum.item() / objective.counts(batch)["loss"]
    save_model(model, tmp_path / "model", end_ids=request.tokenizer.stop_ids, begin_id=request.tokenizer.begin_of_text_id, pad_id=request.tokenizer.pad_id)
    request.tokenizer.save(tmp_path / "model")
    theirs = (AutoModelForCausalLM if architecture == "gpt2" else AutoModelForSeq2SeqLM).from_pretrained(tmp_path / "model").eval()
    words = AutoTokenizer.from_pretrained(tmp_path / "model")
    nats, count = 0.0, 0
    for given, wanted in PAIRS:
        if architecture == "gpt2":
            prompt = words(given + "\n\nTranslation:\n").input_ids
            target = words(wanted).input_ids + [words.eos_token_id]
            labels = torch.tensor([[-100] * len(prompt) + target])
            loss = theirs(input_ids=torch.tensor([prompt + target]), labels=labels).loss
        else:
            ending = [] if style != "plain" else [words.eos_token_id]  # the styles' own post-processors end a text
            target = words(text_target=wanted).input_ids + ending
            loss = theirs(input_ids=torch.tensor([words(given).input_ids + ending]), labels=torch.tensor([target])).loss
        nats, count = nats + float(loss) * len(target), count + len(target)
    assert count == objective.counts(batch)["loss"]
    assert ours == pytest.approx(nats / count, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_outputs_and_terms_agree_and_held_out_losses_are_not_smoothed(tmp_path, smoothing):
    objective, loaders, request = opened(tmp_path, "t5", "t5", settings={"label_smoothing": smoothing}, dropout=0.0)
    model = build_model(request.shape).initialize(1).train()
    batch = next(loaders.train.pass_once())
    whole = objective.terms(model, batch)["loss"].sum
    logits = objective.outputs(model, batch)
    assert float(whole) == pytest.approx(float(objective.terms_of(logits, model, batch)["loss"].sum), rel=1e-6)
    targets = batch.targets[batch.weights > 0]
    nats = -logits.log_softmax(-1)
    exact = ((1 - smoothing) * nats.gather(1, targets[:, None]).sum() + smoothing * nats.mean(-1).sum()).item()
    assert float(whole) == pytest.approx(exact, rel=1e-5)
    held_out = float(objective.terms(model.eval(), batch)["loss"].sum)
    assert held_out == pytest.approx(float(nats.gather(1, targets[:, None]).sum()), rel=1e-5)


def test_only_the_output_of_a_decoder_is_scored(tmp_path):
    objective, loaders, request = opened(tmp_path, "plain", "llama", pairs=[("red blue", "one two three")])
    batch = next(loaders.train.pass_once())
    scored = batch.targets[0][batch.weights[0] > 0].tolist()
    assert request.tokenizer.decode(scored) == "one two three" and scored[-1] == request.tokenizer.end_of_text_id
    given = batch.inputs[0][batch.segments[0] >= 0].tolist()
    assert request.tokenizer.decode(given) == "red blue\n\nTranslation:\none two three"


def test_a_decoder_of_chinese_outputs_is_asked_in_chinese_and_controls_come_by_name(tmp_path):
    rows = [("春天", "春风又绿江南岸", "江南"), ("秋天", "明月何时照我还", "")]
    _, loaders, _ = opened(tmp_path, "plain", "llama", rows, "input\toutput\t关键词", name="summarization", mapping={"controls": ["关键词"]})
    assert loaders.report["prompt"] == "关键词: {关键词}\n{input}\n\n摘要：\n"
    objective, loaders, request = opened(tmp_path, "t5", "t5", rows, "input\toutput\t关键词", name="generation", mapping={"controls": ["关键词"]})
    batch = next(loaders.train.pass_once())
    texts = {request.tokenizer.decode(row[segments >= 0].tolist()) for row, segments in zip(batch.source, batch.source_segments, strict=True)}
    wanted = {request.tokenizer.decode(request.tokenizer.encode(text)) for text in ("关键词: 江南\n春天", "关键词: \n秋天")}
    assert texts == wanted
    assert objective.item_of(TextPair("春天", "", {"关键词": "江南", "test": "assert f(1)"})) == {"input": "春天", "controls": {"关键词": "江南"}}


def test_braces_in_texts_are_text_and_unknown_places_are_refused(tmp_path):
    assert fill_prompt("<{input}> {tone}", "{tone} {input}", {"tone": "{input}"}) == "<{tone} {input}> {input}"
    assert fill_prompt("{input}|{tone}", "a", {}) == "a|"
    with pytest.raises(ConfigError, match="tone"):
        opened(tmp_path, "t5", "t5", settings={"prompt": "{tone}: {input}"})
    with pytest.raises(ConfigError, match="no place"):
        opened(tmp_path, "t5", "t5", settings={"prompt": "translate"})
    _, loaders, _ = opened(tmp_path, "t5", "t5", settings={"prompt": "translate English to Chinese: {input}"})
    source = next(loaders.train.pass_once()).source[0].tolist()
    assert source[: len(prefix := tokenizer_of_style("t5").encode("translate English to Chinese:"))] == prefix


@pytest.mark.parametrize(("style", "kind"), [("plain", "decoder"), ("t5", "encoder_decoder"), ("bart", "encoder_decoder")])
def test_a_long_input_loses_its_end_and_keeps_its_frame(style, kind):
    tokenizer = tokenizer_of_style(style)
    settings = {"prompt": "Read: {input}\nSay it in one line:\n", "maximum_input": 48}
    ids, cut = source_ids(tokenizer, "the king and my lord 春风 " * 4_000, {}, settings, kind)
    assert 40 <= len(ids) <= 48 and cut > 18_000
    text = tokenizer.decode(ids)
    assert text.startswith("Read: the king and my lord") and text.strip().endswith("Say it in one line:")
    assert source_ids(tokenizer, "the king", {}, settings, kind)[1] == 0
    with pytest.raises(ConfigError, match="without any input"):
        source_ids(tokenizer, "x", {}, {**settings, "maximum_input": 6}, kind)
    assert source_ids(tokenizer, "", {}, {}, kind)[0]  # an empty text is still something to read


def test_long_outputs_are_learned_without_an_end_and_counted(tmp_path):
    pairs = [("a", "the king " * 30), *[("b", "the lord")] * 4]
    objective, loaders, request = opened(tmp_path, "t5", "t5", pairs, settings={"maximum_output": 8})
    assert loaders.report["cut_outputs"] == 1 and objective.head.settings["maximum_output"] == 8
    batch = next(loaders.train.pass_once())
    longest = next(row for row, source in enumerate(batch.source) if request.tokenizer.decode(source.tolist()).strip() == "a")
    scored = batch.targets[longest][batch.weights[longest] > 0]
    assert len(scored) == 8 and request.tokenizer.end_of_text_id not in scored.tolist()
    with pytest.raises(ConfigError, match="maximum_output"):
        opened(tmp_path, "plain", "llama", pairs, settings={"maximum_output": 64})
    _, loaders, _ = opened(tmp_path, "plain", "llama", [("a", "king " * 400), ("b", "lord")], length=64)
    assert load_objective("translation").name == "translation" and loaders.report["cut_outputs"] == 1


@pytest.mark.parametrize(("style", "architecture"), [*ENCODER_DECODERS, ("plain", "llama"), ("plain", "luban-lstm")])
def test_many_texts_are_written_as_each_alone(tmp_path, style, architecture):
    objective, loaders, request = opened(tmp_path, style, architecture, heads=None if "luban" in architecture else 2, feed_forward_size=None if "luban" in architecture else 64)
    model = build_model(request.shape).initialize(1).with_head(objective.head).eval()
    items = [{"input": "the king"}, {"text": "春风又绿江南岸，明月何时照我还"}, {"input": ""}]
    together = write(model, request.tokenizer, items, 8)
    assert together == [write(model, request.tokenizer, [item], 8)[0] for item in items]
    with pytest.raises(DataError, match="item 1"):
        write(model, request.tokenizer, [{"question": "?"}], 8)


@pytest.mark.parametrize(("shape", "rate"), [("transformer-tiny", 2e-3), ({"architecture": "luban-recurrent", "layers": 1, "hidden_size": 64, "maximum_positions": 32}, 1e-2), ({"architecture": "llama", "layers": 2, "hidden_size": 96, "heads": 4, "maximum_positions": 64}, 3e-3)])
@pytest.mark.slow
def test_raw_files_to_a_model_that_reverses_words(tmp_path, shape, rate):
    data, test = write_pairs(tmp_path, reversed_words(600)), write_pairs(tmp_path, reversed_words(40, seed=9), name="test.tsv")
    train = {
        "kind": "train", "objective": {"name": "translation", "target_language": "en"}, "data": str(data), "shape": shape, "sequence_length": 32, "length": "300 steps",
        "optimizer": {"learning_rate": rate}, "threads": 1, "validation": {"every": "150 steps"}, "track": {"tensorboard": False},
    }  # fmt: skip
    recipe = {"name": "reverse", "seed": 1, "stages": {"model": train, "report": {"kind": "evaluate", "models": "model", "data": str(test)}}}
    artifacts = luban.run(recipe, out=tmp_path / "run")
    assert [artifact.kind for artifact in artifacts] == ["gather", "train_tokenizer", "train", "evaluate"]
    said = Predictor.load(artifacts[2].path).predict([given for given, _ in reversed_words(40, seed=9)])
    right = sum(one["text"] == wanted for one, (_, wanted) in zip(said, reversed_words(40, seed=9), strict=True))
    assert right >= 30, said[:5]
    results = json.loads((artifacts[3].path / "results.json").read_text(encoding="utf-8"))
    assert results["task"] == "translation" and results["main"] == "bleu" and artifacts[3].metrics["model_bleu"] > 70


def test_validation_writes_texts_and_measures_them(tmp_path):
    data = write_pairs(tmp_path, [(given, wanted, wanted.split()[0]) for given, wanted in reversed_words(60)], "input\toutput\tkeywords")
    objective, loaders, request = open_task(tmp_path, data, "plain", "marian", name="generation", share=0.3, mapping={"controls": ["keywords"]})
    model = build_model(request.shape).initialize(1).with_head(objective.head)
    scores = objective.score(model.train(), request.tokenizer, loaders.held_out)
    assert next(iter(scores)) == "adherence" and {"rouge_l", "distinct_2", "repetition_4", "length_ratio"} <= scores.keys()
    assert model.training and all("pass@1" not in name for name in scores)


def test_beams_and_the_settings_travel_with_the_directory(tmp_path):
    objective, _, request = opened(tmp_path, "bart", "bart", settings={"beams": 3, "prompt": "x {input}"})
    model = build_model(request.shape).initialize(1).with_head(objective.head)
    save_model(model, tmp_path / "model", end_ids=request.tokenizer.stop_ids)
    request.tokenizer.save(tmp_path / "model")
    predictor = Predictor.load(tmp_path / "model")
    assert predictor.task == "translation" and predictor.head.settings["beams"] == 3
    source = source_ids(request.tokenizer, "the king", {}, predictor.head.settings, "encoder_decoder")[0]
    theirs = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "model").eval()
    longest = objective.head.settings["maximum_output"]
    found = theirs.generate(torch.tensor([source]), num_beams=3, max_new_tokens=longest, do_sample=False)[0].tolist()
    assert predictor.predict(["the king"])[0]["text"] == request.tokenizer.decode(found).strip()
    assert len(output_ids(request.tokenizer, "", "encoder_decoder")) == 2


def test_programs_run_only_where_the_config_says_so(tmp_path):
    examples = [TextPair("def one():", "return 1", {"test": "assert one() == 1"}), TextPair("def two():", "return 2", {"test": "assert two() == 2"})]
    predictions = [{"text": "return 1"}, {"text": f"open({str(tmp_path / 'ran')!r}, 'w')"}]
    quiet = load_objective(TextPairsConfig(name="generation")).figures(predictions, examples)
    assert "pass@1" not in quiet and not (tmp_path / "ran").exists()
    figures = load_objective(TextPairsConfig(name="generation", run_code=True)).figures(predictions, examples)
    assert next(iter(figures)) == "pass@1" and figures["pass@1"].value == 0.5
    for run_code in (False, True):
        results = _results("generation", ExampleSet(examples), [("model", "model", predictions)], [], [], 0, run_code)
        assert (results["main"] == "pass@1") == run_code


@pytest.mark.parametrize(("control", "value", "said"), [("form", "sonnet", "the form 'sonnet' is not known"), ("体裁", "五言", "known: 五言绝句"), ("lines", "several", "it asks for a number")])
def test_a_control_that_cannot_be_measured_is_refused_when_the_data_is_read(tmp_path, control, value, said):
    pairs = [(f"write {number}", "春眠不觉晓", {"form": "4x5", "体裁": "七言绝句", "lines": "4-8"}[control] if number != 5 else value) for number in range(8)]
    mapping = {"controls": [control]}
    with pytest.raises(DataError, match=said) as error:
        opened(tmp_path, "plain", "gpt2", pairs, f"input\toutput\t{control}", name="generation", mapping=mapping)
    assert "pairs.tsv:7: " in str(error.value)
    opened(tmp_path, "plain", "gpt2", pairs, f"input\toutput\t{control}", name="translation", mapping=mapping)  # which does not measure them


def test_a_control_of_the_held_out_file_is_refused_as_early(tmp_path):
    good, bad = ([("write", "春眠不觉晓", form)] for form in ("4x5", "sonnet"))
    (tmp_path / "held").mkdir()
    held = write_pairs(tmp_path / "held", bad, "input\toutput\tform")
    objective, _, request = opened(tmp_path, "plain", "gpt2", good, "input\toutput\tform", name="generation", mapping={"controls": ["form"]})
    request.validation = [held]
    with pytest.raises(DataError, match="held.*:2: the form 'sonnet'"):
        objective.read(request)
