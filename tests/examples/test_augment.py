"""The verb augment from files to artifact: labels, shares, held-out texts, determinism, and that its rows are read and fitted."""

import csv
import json
from collections import Counter
from itertools import pairwise

import pytest

import luban
from luban.examples.augment import copies_of
from luban.examples.augmentation_edits import Draws
from luban.examples.config import AugmentConfig
from luban.examples.reading import read_examples
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.foundation.messages import set_language

GOOD = ["房间很干净服务周到", "早餐丰富味道好极了", "a quiet room with a lovely view", "the staff was friendly and helpful"]
BAD = ["床单脏得让人难受", "前台态度冷淡令人失望", "the bathroom smelled of smoke", "noisy street and a broken heater"]


def write_csv(path, rows, head=("text", "label")):
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([head, *rows])
    return path


@pytest.fixture
def reviews(tmp_path):
    rows = [(f"{text} {number}", label) for number in range(10) for texts, label in ((GOOD, "good"), (BAD, "bad")) for text in texts]
    return write_csv(tmp_path / "train.csv", rows)


def rows_of(artifact):
    return [json.loads(line) for line in (artifact.path / "examples.jsonl").read_text(encoding="utf-8").split("\n")[:-1]]


def report_of(artifact):
    return json.loads((artifact.path / "report.json").read_text(encoding="utf-8"))


def test_rows_are_made_and_read_back(tmp_path, reviews):
    made = luban.augment(reviews, out=tmp_path / "out", eda={"copies": 2, "strength": 0.2}, noise={"copies": 1}, typos={"copies": 1})
    rows, report = rows_of(made), report_of(made)
    originals = [row for row in rows if row["made_by"] == "original"]
    assert len(originals) == 80 and rows[:80] == originals and originals[0]["source"] == "train.csv:2"
    parents = {row["source"]: row for row in originals}
    for row in rows[80:]:
        assert row["label"] == parents[row["source"]]["label"] and row["text"] != parents[row["source"]]["text"]
    counted = Counter(row["made_by"] for row in rows[80:])
    assert set(counted) == {"eda/delete", "eda/swap", "noise", "typos"} and len(rows) - 80 == made.metrics["made"] == report["made"]
    for name, own in report["methods"].items():
        assert own["tried"] == 80 and own["made"] == counted[name], "nothing is dropped silently"
        assert own["tried"] == sum(count for key, count in own.items() if key != "tried")
    assert sum(label["made"] for label in report["labels"].values()) == report["made"]
    found = read_examples([str(made.path)], "classification")
    assert len(found.examples) == len(rows) and found.labels == ["bad", "good"] and not found.bad
    assert "eda/swap" in (made.path / "report.md").read_text(encoding="utf-8") and not (made.path / "pieces").exists()


def test_the_same_rows_come_of_a_text_wherever_it_stands(tmp_path, reviews):
    """Twice the same; and of shuffled data, and of a part of it, the same rows for the same texts."""
    options = {"eda": {"copies": 1.5, "operations": ["swap"]}, "noise": {"copies": 0.5}}
    first = luban.augment(reviews, out=tmp_path / "one", **options)
    again = luban.augment(reviews, out=tmp_path / "two", **options)
    assert (first.path / "examples.jsonl").read_bytes() == (again.path / "examples.jsonl").read_bytes()
    rows = list(csv.reader(reviews.open(encoding="utf-8")))[1:]
    other = luban.augment(write_csv(tmp_path / "part.csv", rows[:60:-1]), out=tmp_path / "three", **options)
    texts = {row["text"] for row in rows_of(other) if row["made_by"] == "original"}
    lines = {f"train.csv:{number}" for number, row in enumerate(rows, start=2) if row[0] in texts}
    wanted = {(row["text"], row["made_by"]) for row in rows_of(first) if row["source"] in lines and row["made_by"] != "original"}
    assert wanted == {(row["text"], row["made_by"]) for row in rows_of(other) if row["made_by"] != "original"} and wanted
    seeded = luban.augment(reviews, out=tmp_path / "four", seed=2, **options)
    assert (first.path / "examples.jsonl").read_bytes() != (seeded.path / "examples.jsonl").read_bytes()


@pytest.mark.parametrize("copies", [0.25, 1, 2.5])
def test_shares_are_kept(copies):
    numbers = [copies_of(copies, 1, "eda", f"text {number}") for number in range(4000)]
    assert set(numbers) <= {int(copies), int(copies) + (copies != int(copies))} and abs(sum(numbers) / 4000 - copies) < 0.03


def test_draws_are_uniform():
    draws = Draws(1)
    pairs = Counter(tuple(draws.sample(range(4), 2)) for _ in range(6000))
    assert len(pairs) == 12 and all(400 < count < 600 for count in pairs.values())
    assert sorted(draws.sample("abc", 9)) == list("abc")


def test_synonyms_from_a_file(tmp_path, reviews):
    (tmp_path / "synonyms.txt").write_text("quiet, calm\n早餐 早饭\n", encoding="utf-8")
    made = luban.augment(reviews, out=tmp_path / "out", eda={"copies": 4, "synonyms": str(tmp_path / "synonyms.txt")})
    made_by = Counter(row["made_by"] for row in rows_of(made))
    assert made_by["eda/synonym"] == 20 and {"eda/insert", "eda/delete", "eda/swap"} < set(made_by)
    replaced = [row["text"] for row in rows_of(made) if row["made_by"] == "eda/synonym"]
    assert all("calm" in text or "早饭" in text for text in replaced)
    for other in ("synonym", "insert"):
        with pytest.raises(ConfigError, match="eda.synonyms"):
            build(AugmentConfig, {"data": "x", "eda": {"operations": [other]}})


def test_what_is_held_out_is_neither_kept_nor_made(tmp_path, reviews):
    (tmp_path / "swap.csv").write_text("text,label\n一二,a\n三四,b\n五六,a\n", encoding="utf-8")
    options = {"eda": {"copies": 0}, "noise": {"copies": 2}}
    free = rows_of(luban.augment(tmp_path / "swap.csv", out=tmp_path / "free", **options))
    target = next(row["text"] for row in free if row["made_by"] == "noise")
    held = write_csv(tmp_path / "test.csv", [("三四！", "b"), (f" {target}。", "a"), ("other", "a")])
    made = luban.augment(tmp_path / "swap.csv", out=tmp_path / "out", held_out=str(held), **options)
    texts = [row["text"] for row in rows_of(made)]
    assert "三四" not in texts and target not in texts and not any("swap.csv:3" in row["source"] for row in rows_of(made))
    report = report_of(made)
    assert report["left_out"] == 1 and report["originals"] == 2 and report["methods"]["noise"]["held out"] >= 1
    with pytest.raises(DataError, match="held-out"):
        luban.augment(reviews, out=tmp_path / "all", held_out=str(reviews))


def test_only_some_labels(tmp_path, reviews):
    made = luban.augment(reviews, out=tmp_path / "out", only=["bad"])
    assert {row["label"] for row in rows_of(made) if row["made_by"] != "original"} == {"bad"}
    with pytest.raises(ConfigError, match="only"):
        luban.augment(reviews, out=tmp_path / "none", only=["ugly"])


def test_negations_stay(tmp_path):
    write_csv(tmp_path / "n.csv", [("服务不好而且没有热水", "bad"), ("I do not like it, isn't it never clean?", "bad"), ("nice", "good")])
    made = luban.augment(tmp_path / "n.csv", out=tmp_path / "out", eda={"copies": 8, "strength": 0.9}, noise={"copies": 8, "strength": 0.9}, typos={"copies": 4, "strength": 0.9})
    for row in rows_of(made)[3:]:
        wanted = ["不", "没"] if row["source"] == "n.csv:2" else ["not", "isn't", "never"] if row["source"] == "n.csv:3" else []
        assert all(word in row["text"] for word in wanted)


def test_entities_keep_their_places(tmp_path):
    entities = (("小明", "PER"), ("Ann Lee", "PER"), ("北京大学", "ORG"), ("Paris", "LOC"))
    texts = [f"{number}号 小明和Ann Lee在北京大学学习，not in Paris" for number in range(1, 9)]
    rows = [{"text": text, "label": [[text.index(words), text.index(words) + len(words), kind] for words, kind in entities]} for text in texts]
    (tmp_path / "ner.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    made = luban.augment(tmp_path / "ner.jsonl", out=tmp_path / "out", task="tagging", eda={"copies": 2, "strength": 0.5}, noise={"copies": 2, "strength": 0.5})
    found = read_examples([str(made.path)], "tagging")
    assert len(found.examples) > 20 and not found.bad
    for example in found.examples:
        assert sorted((example.text[span.start : span.end], span.label) for span in example.spans) == sorted(entities)


def test_pairs_and_targets(tmp_path):
    write_csv(tmp_path / "pairs.csv", [(f"is the hotel {number} near the station", f"how far is hotel {number} from here", 1) for number in range(9)], ("sentence1", "sentence2", "label"))
    rows = rows_of(luban.augment(tmp_path / "pairs.csv", out=tmp_path / "pairs"))
    first = {row["source"]: row for row in rows[:9]}
    sides = [[row[side] == first[row["source"]][side] for side in ("text", "text_pair")] for row in rows[9:]]
    assert [True, False] in sides and [False, True] in sides and [False, False] not in sides
    write_csv(tmp_path / "en-zh.csv", [(f"the hotel has {number} large rooms", f"酒店有{number}间大房") for number in range(9)], ("en", "zh"))
    made = luban.augment(tmp_path / "en-zh.csv", out=tmp_path / "texts", task="text_pairs")
    rows = rows_of(made)
    outputs = {row["source"]: row["output"] for row in rows[:9]}
    assert len(rows) > 14 and all(row["output"] == outputs[row["source"]] for row in rows)
    assert read_examples([str(made.path)], "text_pairs").mapping == {"input": "input", "output": "output"} == report_of(made)["mapping"]


def test_controls_stay_beside_their_texts(tmp_path):
    rows = [(f"the hotel has {number} large rooms", f"酒店有{number}间大房", "formal" if number % 2 else "plain") for number in range(9)]
    write_csv(tmp_path / "c.csv", rows, ("en", "zh", "source"))
    options = {"task": "text_pairs", "mapping": {"input": "en", "output": "zh", "controls": {"style": "source"}}}
    made = luban.augment(tmp_path / "c.csv", out=tmp_path / "out", **options)
    found = read_examples([str(made.path)], "text_pairs", report_of(made)["mapping"])
    assert {(example.output, example.controls["style"]) for example in found.examples} == {(zh, style) for _, zh, style in rows} and len(found.examples) > 12
    with pytest.raises(ConfigError, match="'source'"):
        luban.augment(tmp_path / "c.csv", out=tmp_path / "bad", **{**options, "mapping": {"input": "en", "output": "zh", "controls": "source"}})


def test_odd_texts(tmp_path):
    """Empty rows are named, one word stays one word, a hundred thousand characters pass, a duplicate is made once."""
    long = "长夜漫漫路也漫漫，" * 11_200
    write_csv(tmp_path / "odd.csv", [("", "a"), ("word", "a"), ("好", "b"), ("?!", "b"), (long, "a"), ("same text here", "a"), ("same text here", "a")])
    made = luban.augment(tmp_path / "odd.csv", out=tmp_path / "out", eda={"operations": ["delete", "swap"], "segmentation": "characters", "copies": 2})
    report = report_of(made)
    assert report["bad_rows"] == 1 and report["originals"] == 6 and report["bad_lines"][0]["line"] == 2
    assert sum(own.get("unchanged", 0) for own in report["methods"].values()) == 6 and sum(own.get("repeated", 0) for own in report["methods"].values()) >= 2
    assert [len(row["text"]) > 80_000 for row in rows_of(made) if row["source"] == "odd.csv:6"] == [True] * 3


def test_a_killed_run_goes_on(tmp_path, reviews, monkeypatch):
    """What was finished before is not done again, and the result is the same."""
    from luban.examples import augment

    monkeypatch.setattr(augment, "PIECE", 16)
    whole = luban.augment(reviews, out=tmp_path / "whole")
    real, done = augment._made, []

    def dies(method, seed, rows, *rest):
        done.append(rows[0][0])
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(method, seed, rows, *rest)

    monkeypatch.setattr(augment, "_made", dies)
    with pytest.raises(KeyboardInterrupt):
        luban.augment(reviews, out=tmp_path / "out")
    made = luban.augment(reviews, out=tmp_path / "out")
    assert done == [0, 16, 32, 48, 48, 64]
    assert (made.path / "examples.jsonl").read_bytes() == (whole.path / "examples.jsonl").read_bytes()


def test_a_recipe_fits_what_was_made(tmp_path, reviews):
    stages = {"more": {"kind": "augment", "data": "train.csv"}, "linear": {"kind": "fit", "method": "linear", "data": "more", "held_out": 0}}
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    made = luban.run(tmp_path / "recipe.yaml", out=tmp_path / "runs")
    results = json.loads((made[1].path / "results.json").read_text(encoding="utf-8"))
    assert results["examples"] == made[0].metrics["originals"] + made[0].metrics["made"] > 140


def test_chinese_report(tmp_path, reviews):
    set_language("zh")
    made = luban.augment(reviews, out=tmp_path / "out")
    assert "数据增强" in (made.path / "report.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"shapes": {"copies": 1}}, "shapes.file"),
        ({"paraphrase": {"copies": 1}}, "paraphrase needs a writer"),
        ({"back_translation": {"copies": 1, "there": "x"}}, "both directions"),
        ({"task": "tagging", "synthesis": {"per_label": 2, "model": "x"}}, "classification"),
        ({"task": "ranking"}, "task"),
        ({"eda": {"alpha": 0.1}}, "strength"),
        ({"endpoint": {"base_url": "ftp://x", "model": "m"}}, "base_url"),
        ({"endpoint": {"base_url": "https://x/v1"}}, "endpoint.model"),
    ],
)
def test_impossible_configs(fields, said):
    with pytest.raises(ConfigError, match=said):
        build(AugmentConfig, {"data": "x", **fields})


def test_pypinyin_is_asked_for_by_name(tmp_path, reviews, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "pypinyin", None)
    with pytest.raises(LubanError, match=r"pip install -e .\.\[augment\]"):
        luban.augment(reviews, out=tmp_path / "out", homophones={"copies": 1})


def test_originals_come_first_in_their_order(tmp_path, reviews):
    rows = rows_of(luban.augment(reviews, out=tmp_path / "out", eda={"copies": 0}, typos={"copies": 2}))
    places = [int(row["source"].split(":")[1]) for row in rows if row["made_by"] != "original"]
    assert all(one <= two for one, two in pairwise(places))
