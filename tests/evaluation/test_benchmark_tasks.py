"""The benchmark of tasks: a tiny row end to end, both sides from one start, and its tables."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer as Core
from tokenizers import models, normalizers, pre_tokenizers, processors

from benchmarks.tasks import ablation, chinese, clock, data
from benchmarks.tasks.duel import Options, duel
from benchmarks.tasks.e5 import BLOCK, Packed
from benchmarks.tasks.luban_side import begin, tuning
from benchmarks.tasks.peer import open_peer
from benchmarks.tasks.rows import BY_NAME, ROWS, TaskRow
from benchmarks.tasks.table import table
from luban.examples.tasks import Choice, LabeledText, Question, Ranking, RelationText, Span, TaggedText, TextPair
from luban.models.families import build_model
from luban.models.huggingface import load_model, save_model
from luban.models.presets import preset
from luban.tokenizer.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parents[2]
GOOD, BAD = ["fine", "bright", "lovely", "warm"], ["dull", "cold", "awful", "grey"]
NOUNS = ["film", "room", "book", "meal", "song", "day", "walk", "house"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Options:
    """Data, and a small BERT with its tokenizer."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "data" / "toy").mkdir(parents=True)
    lines = [f"a {word} {noun} and a {other} {second}\t{label}\n" for label, words in (("good", GOOD), ("bad", BAD)) for word in words for other in words for noun in NOUNS for second in NOUNS[:3]]
    (folder / "data" / "toy" / "set.tsv").write_text("text\tlabel\n" + "".join(lines), encoding="utf-8")
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "and", *GOOD, *BAD, *NOUNS]
    core = Core(models.WordPiece({token: number for number, token in enumerate(tokens)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    core.add_special_tokens(tokens[:5])
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    tokenizer = Tokenizer(core, {"tokenizer_class": "PreTrainedTokenizerFast", **{f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}})
    shape = preset("bert-tiny").updated(vocabulary_size=len(tokens), layers=1, hidden_size=32, heads=2, feed_forward_size=64)
    save_model(build_model(shape).initialize(3), folder / "bert", pad_id=0)
    tokenizer.save(folder / "bert")
    return Options(folder / "data", folder / "work", {"minilm": folder / "bert"}, 1, 60.0, 1)


@pytest.fixture(scope="module")
def row() -> TaskRow:
    return replace(BY_NAME["sentiment-en"], data="toy", train=160, test=60, epochs=4, batch=16, rate=5e-3, length=32)


def test_both_sides_learn_the_task_from_one_start_and_are_scored_alike(bench: Options, row: TaskRow, tmp_path: Path):
    result = duel(row, bench)
    for side in ("luban", "peer"):
        assert result["scores"][side]["value"] > 0.95 > result["scores"]["before"]["value"], side
        assert result["seconds"][side]["wall"] > 0
    assert result["steps"] == 40 and result["examples"] == {"train": 160, "test": 60, "asked": 160} and result["scores"]["majority"]["value"] < 0.7
    low, high = result["differences"]["peer"]["interval"]
    assert low <= result["differences"]["peer"]["value"] <= high
    start, ours, theirs = (load_file(bench.work / row.name / part / "model.safetensors") for part in ("start", "luban/tuned", "peer"))
    assert start.keys() == ours.keys() == theirs.keys()
    assert not torch.equal(start["classifier.weight"], ours["classifier.weight"]) and torch.allclose(ours["classifier.weight"], theirs["classifier.weight"], atol=1e-4)  # the same draws
    (tmp_path / f"{row.name}.json").write_text(json.dumps(result | {"machine": {"processor": "p", "cores": 1, "threads": 1, "python": "3", "versions": {"luban": "1"}}}))
    english, chinese = table(tmp_path, "en"), table(tmp_path, "zh")
    assert f"| {result['scores']['luban']['value']:.3f} ±" in english and "majority" in english and "多数类" in chinese
    assert {line.count("|") for line in english.splitlines() if line.startswith("|")} == {12}


def test_the_first_loss_is_the_same_on_both_sides(bench: Options, row: TaskRow):
    training, test = data.slices(row, bench.data)
    files = [data.write(part, bench.work / "loss" / f"{name}.jsonl", row.task)[0] for name, part in (("train", training), ("test", test))]
    recipe = tuning(row, *files, {"text": "text", "label": "label"}, {"model": str(bench.models["minilm"])}, 1)
    start = begin(recipe, bench.work / "loss" / "start")
    model, features = open_peer(start)
    batch = start.loaders.train.step(0)
    own = load_model(start.folder)
    with torch.inference_mode():
        mine = float(start.objective.terms(own, batch)["loss"].sum) / batch.count
        theirs = float(model.eval()(**features(batch)).loss)
    assert mine == pytest.approx(theirs, rel=1e-5)


def test_slices_are_of_the_content_and_share_no_text(bench: Options, row: TaskRow):
    training, test = data.slices(row, bench.data)
    smaller, again = data.slices(row, bench.data, 40)
    assert smaller == training[:40] and again == test
    assert not {example.text for example in training} & {example.text for example in test}
    assert {example.label for example in smaller} == {"good", "bad"}


def test_the_chinese_base_reads_no_text_that_a_row_is_tested_on(bench: Options, row: TaskRow, monkeypatch: pytest.MonkeyPatch):
    own = [replace(row, name=str(test), model=chinese.NAME, test=test) for test in (20, 90)]  # what trains the first row is tested in the second
    monkeypatch.setattr(chinese, "ROWS", [*own, row])
    found, sides = chinese.texts(bench.data), [data.slices(one, bench.data, chinese.EVERYTHING) for one in own]
    tested = {example.text for _, test in sides for example in test}
    assert tested & {example.text for example in sides[0][0]} and not tested & set(found)
    assert set(found) | tested == {example.text for training, test in sides for example in training + test} and len(set(found)) == len(found)


@pytest.mark.parametrize(
    ("task", "examples"),
    [
        ("classification", [LabeledText("一间房", "", "好"), LabeledText("a b", "", "bad")]),
        ("regression", [LabeledText("one", "two", 1.5), LabeledText("three", "four", 2.0)]),
        ("tagging", [TaggedText("Anna saw Paris", [Span(0, 4, "person"), Span(9, 14, "place")], [], [(0, 4), (5, 8), (9, 14)]), TaggedText("no one", [], [], [(0, 2), (3, 6)])]),
        ("relation", [RelationText("张三在北京", Span(0, 2, ""), Span(3, 5, ""), "住"), RelationText("李四去上海", Span(3, 5, ""), Span(0, 2, ""), "去")]),
        ("question_answering", [Question("Who?", "Anna went.", [("Anna", 0)]), Question("谁？", "张三去了。", [("张三", 0)])]),
        ("choice", [Choice("Sky?", ["red", "blue"], 1), Choice("草？", ["绿", "蓝"], 0)]),
        ("ranking", [Ranking("q", ["a b", "c d"], [1.0, 0.0]), Ranking("问", ["甲乙", "丙丁"], [0.0, 1.0])]),
        ("text_pairs", [TextPair("hello", "你好"), TextPair("good day", "日安")]),
    ],
)
def test_what_is_written_reads_back_as_the_same_examples(task: str, examples: list, tmp_path: Path):
    file, _ = data.write(examples, tmp_path / "set.jsonl", task)  # asserts it
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(examples)


def test_the_clock_leaves_the_first_and_the_last_mark_out():
    assert clock.seconds([(9.0, 1.0), (10.0, 1.5), (11.0, 2.0), (12.0, 2.5), (99.0, 50.0)]) == (5.0, 2.5)


def test_rows_have_their_titles_in_both_languages_and_names_of_their_own():
    assert len(BY_NAME) == len(ROWS) >= 20
    assert all(any("\u4e00" <= letter <= "\u9fff" for letter in row.title[1]) for row in ROWS)


def test_the_ablation_pairs_its_runs_by_seed(tmp_path: Path):
    times = {"step_seconds": [2.0, 1.0]}
    runs = [{"set": "s", "tool": tool, "seed": seed, "value": value, **times} for tool, values in (("plain", (0.5, 0.6, 0.7)), ("mixup", (0.6, 0.71, 0.8))) for seed, value in enumerate(values)]
    file = tmp_path / "runs.jsonl"
    file.write_text("".join(json.dumps(run) + "\n" for run in runs) + '{"set": "s", "to', encoding="utf-8")
    assert ablation.read(file) == runs
    mean, low, high = ablation.interval([0.1, 0.11, 0.1])
    assert mean == pytest.approx(0.31 / 3) and high - mean == pytest.approx(4.3027 * np.std([0.1, 0.11, 0.1], ddof=1) / 3**0.5, rel=1e-4)
    assert f"{mean:+.3f} [{low:+.3f}, {high:+.3f}] (3) helps | ×1.0" in ablation.table(runs)
    assert "有益" in ablation.table(runs, "zh")


def test_the_quick_ablation_runs_and_goes_on_where_it_was(bench: Options, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    monkeypatch.setitem(BY_NAME, "toy", replace(BY_NAME["sentiment-en"], name="toy", data="toy", length=32))
    out = tmp_path / "runs.jsonl"
    given = ["--data", str(bench.data), "--model", f"minilm={bench.models['minilm']}", "--out", str(out), "--work", str(tmp_path / "work"), "--sets", "toy", "--seeds", "1", "--quick"]
    assert ablation.main([*given, "--tools", "mixup"]) == 0
    first = out.read_text(encoding="utf-8")
    assert [(run["tool"], run["test"]) for run in ablation.read(out)] == [("plain", 40), ("mixup", 40)]
    assert ablation.main([*given, "--tools", "mixup"]) == 0 and out.read_text(encoding="utf-8") == first
    assert "| mixup |" in capsys.readouterr().out


def test_blocks_of_four_bits_become_the_weights_they_stand_for():
    levels = np.arange(BLOCK) % 16
    content = np.float16(0.5).tobytes() + (levels[:16] | levels[16:] << 4).astype(np.uint8).tobytes()
    packed = Packed(content, 1, 1, 1, 1, 1, 1, 1, 1.0, [], np.zeros(0), {"w": (1, BLOCK, 0)})
    assert packed.tensor("w", 2, 16).tolist() == ((levels - 8) * 0.5).reshape(2, 16).tolist()


def test_the_tables_in_the_docs_are_made_from_the_results(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "scripts")
    import tables

    found = tables.pages()
    assert {page.name for page in found} >= {"tasks.md", "methods.md", "train.md"} and len(found) % 2 == 0
    for page in found:
        assert tables.filled(page) == page.read_text(encoding="utf-8"), f"{page} is older than the results: run python scripts/tables.py"
