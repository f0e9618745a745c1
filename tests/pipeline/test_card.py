"""The run card: what it says, that it stands alone, and that nothing a run left behind can break it."""

import html.parser
import json
import math
import re
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from made_run import make_run, results, score, training_log, write, write_stage

from luban.foundation.errors import LubanError
from luban.foundation.messages import set_language, t
from luban.pipeline import card
from luban.pipeline.card import print_summary, write_card
from luban.pipeline.card_charts import Series, line_chart, nice_ticks, number_text, smooth, thin
from luban.pipeline.card_facts import gather

VOID = {"meta", "link", "br", "hr", "img", "input", "line", "path"}


class Page(html.parser.HTMLParser):
    """Tags, attributes and text of a page; it must close what it opens."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_startendtag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        if self._open[-1:] != ["style"]:
            self.text += data


def page_of(run: Path) -> Page:
    return Page(write_card(run).read_text(encoding="utf-8"))


def test_card_tells_the_whole_run(tmp_path):
    page = page_of(make_run(tmp_path))
    for text in (
        "quickstart", "7.34M", "4m50s", "2.320", "3-gram", "5-gram", "untrained", "validation loss", "8.3", "learning rate", "gradient norm", "tokens a second",
        "What light is this that breaks the night?", "床前月色寒", "我是鲁班。<|im_end|>", "1.6 MiB of text in English, Chinese", "2 cores", "torch 2.13.0",
        "MIT, public domain", "kind: curate", "fingerprint", "base00000000"[:8], "chat and base cannot be told apart", "base is better than 5-gram by 0.290 bits/byte",
        "context:256", "step 600", "3,763 documents",
    ):  # fmt: skip
        assert text in page.text or any(text in (value or "") for _, value in page.attributes), text
    assert page.text.index("luban chat") < page.text.index("luban serve") < page.text.index("luban show")
    assert page.tags.count("mark") == 2
    assert page.tags.count("svg") == 8


def test_every_evaluation_is_told_in_its_own_terms(tmp_path, capsys):
    run = make_run(tmp_path)
    task = write_stage(run, "answers", "evaluate", 2.0, {})
    rows = [{"name": name, "role": role, "scores": {"all": {"accuracy": score(value, 0.03, "")}}} for name, role, value in (("majority", "baseline", 0.5), ("labels", "model", 0.875))]
    difference = {"before": "majority", "after": "labels", "metric": "accuracy", "greater_is_better": True, "difference": score(0.375, 0.1, ""), "within_noise": False}
    write(task / "results.json", json.dumps({"format": 1, "task": "classification", "main": "accuracy", "greater_is_better": True, "rows": rows, "comparisons": [difference], "notes": ["3 of 8"]}))
    about = json.loads((run / "run.json").read_bytes())
    write(run / "run.json", json.dumps({**about, "stages": [*about["stages"], "answers"]}))
    page = page_of(run)
    numbers, answers = page.text.index("Before and after: numbers"), page.text.index("Before and after: answers")
    assert numbers < page.text.index("Bits needed to code one byte") < answers < page.text.index("accuracy on the examples of the test; longer is better")
    assert page.text.count("Bits needed to code") == 1 and "labels is better than majority by 0.375 accuracy" in page.text and "3 of 8" in page.text
    print_summary(run)
    said = " ".join(capsys.readouterr().err.split())
    assert "numbers, bits a byte: all held-out text" in said and "answers, accuracy: all examples" in said and "0.875" in said


def test_parity_is_told_of_adapters_that_merge_and_of_those_that_do_not(tmp_path):
    parity = {"bound": 1e-3, "prompts": 4, "largest_difference": {"adapter": 2e-7, "merged": 3e-6}, "same_tokens": {"adapter": True, "merged": True}}
    for found, words in (
        (parity, ["2.0e-07 apart, 1e-03 allowed; the same greedy tokens after 4 prompts", "3.0e-06 apart, 1e-03 allowed"]),
        ({**parity, "prompts": 0, "largest_difference": {"adapter": 0.0}}, ["0.0e+00 apart, 1e-03 allowed", "this method cannot be merged"]),
        ({**parity, "largest_difference": {"adapter": 0.0}, "not_merged": "no bias\nwhy: llama"}, ["no bias"]),
        ({**parity, "largest_difference": {"adapter": 0.0}, "not_merged": "large"}, ["too large to be merged here"]),
    ):
        run = make_run(tmp_path)
        write_stage(run, "chat", "train", 20.0, {"parameters": 10, "steps": 2, "parity": found})
        text = page_of(run).text
        assert all(word in text for word in words) and "why: llama" not in text


def test_card_loads_nothing_from_anywhere(tmp_path):
    """No script, no resource, no link that leaves the run's folder, no font or picture in the style."""
    run = make_run(tmp_path)
    text = write_card(run).read_text(encoding="utf-8")
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "image", "use", "base"} & set(page.tags)
    assert not re.search(r"https?:|//[a-z]|@import|url\(|javascript:", text)
    targets = [value for name, value in page.attributes if name in ("href", "src", "xlink:href", "action")]
    assert targets and all((run / target).exists() for target in targets)


def test_the_same_run_gives_the_same_bytes(tmp_path):
    run = make_run(tmp_path)
    assert write_card(run).read_bytes() == write_card(run).read_bytes()


def test_chinese_page_has_no_english_words_of_ours(tmp_path):
    run = make_run(tmp_path)
    set_language("zh")
    page = page_of(run)
    assert ("lang", "zh-CN") in page.attributes
    for text in ("前后对比", "3 元模型", "未训练", "学习率", "超出偶然波动", "第 600 步"):
        assert text in page.text
    for text in ("Before and after", "untrained", "learning rate", "better than", "Lineage"):
        assert text not in page.text


def test_every_word_of_the_template_has_its_chinese():
    set_language("zh")
    template = (Path(card.__file__).parent / "card.html.j2").read_text(encoding="utf-8")
    words = re.findall(r't\("([^"]+)"', template)
    assert len(words) > 15
    assert not [word for word in words if t(word) == word]


def test_markup_in_samples_prompts_names_and_recipes_is_text(tmp_path):
    run = make_run(tmp_path)
    evil = '<script>alert("x")</script><img src=x onerror=alert(1)>'
    write(run / "chat/training/log.jsonl", training_log(40, prompts={evil: [evil]}))
    write(run / "chat/training/preview.json", json.dumps([[[evil, 1], [evil, 0]]]))
    numbers = results()
    numbers["samples"] = [{"model": evil, "prompt": evil, "text": evil}]
    numbers["rows"][3]["name"] = evil
    numbers["notes"] = [evil]
    write(run / "numbers/results.json", json.dumps(numbers))
    write(run / "recipe.resolved.yaml", evil)
    write(run / "run.json", json.dumps({"name": evil, "stages": ["corpus", "base", "chat", "numbers"]}))
    page = page_of(run)
    assert not {"script", "img"} & set(page.tags)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.text.count(evil) >= 8


def test_losses_that_are_no_numbers_leave_a_gap_and_a_note(tmp_path):
    run = make_run(tmp_path)
    lines = training_log(100).splitlines()
    entries = [json.loads(line) for line in lines]
    broken = [{**entry, "loss": math.nan} if 20 < entry["step"] <= 29 and "loss" in entry else entry for entry in entries]
    text = "".join(json.dumps(line) + "\n" for line in broken)
    write(run / "base/training/log.jsonl", text + '{"step": 101, "loss": Infinity}\n{"step": 102, "validation": {"loss": NaN}}\n[1]\nnot json\n{"step": "x"}\n{"step": 103, "lo')
    page = page_of(run)
    assert "the loss of 10 steps was not a number" in page.text
    paths = [value for name, value in page.attributes if name == "d"]
    assert paths and not [path for path in paths if "nan" in path or "inf" in path]
    assert paths[0].count("M") == 2


def test_a_log_of_nothing_but_nan_still_makes_a_card(tmp_path):
    run = make_run(tmp_path)
    write(run / "base/training/log.jsonl", '{"step": 1, "loss": NaN, "learning_rate": NaN}\n')
    assert "the loss of 1 steps was not a number" in page_of(run).text


def test_missing_validation_and_missing_log_are_said(tmp_path):
    run = make_run(tmp_path)
    write(run / "base/training/log.jsonl", "".join(line + "\n" for line in training_log(50).splitlines() if "validation" not in line))
    (run / "chat/training/log.jsonl").unlink()
    text = page_of(run).text
    assert "nothing was held out during training" in text and "no training log was kept" in text


def test_a_run_of_one_stage(tmp_path, capfd):
    run = tmp_path / "one"
    write_stage(run, "corpus", "curate", 3.0, {})
    page = page_of(run)
    assert "Before and after" not in page.text and "luban show" in page.text
    print_summary(run)
    assert "corpus" in capfd.readouterr().err


def test_unfinished_stages_and_damaged_files_do_not_stop_it(tmp_path, capfd):
    run = make_run(tmp_path)
    write(run / "chat/manifest.json", "{ no json")
    write(run / "numbers/results.json", "[]")
    write(run / "corpus/card.json", '{"splits": 3, "languages": null}')
    write(run / "chat/training/preview.json", "[[1]]")
    assert "not finished" in page_of(run).text
    print_summary(run)
    assert "not finished" in capfd.readouterr().err


def test_nothing_finished_is_an_error_that_says_so(tmp_path):
    with pytest.raises(LubanError, match="no finished stage"):
        write_card(tmp_path)


def test_summary_ends_with_three_commands(tmp_path, capfd, monkeypatch):
    run = make_run(tmp_path)
    monkeypatch.chdir(tmp_path)
    write_card(run)
    print_summary(run)
    text = capfd.readouterr().err
    for expected in ("7.34M", "3m41s", "3-gram", "2.610", "cannot be told apart", "card.html"):
        assert expected in text
    commands = re.findall(r"luban \w+ \S+", text[text.index("next") :])
    assert commands == ["luban chat quickstart/chat", "luban serve quickstart/chat", "luban show quickstart"]


def test_time_is_the_work_not_the_last_invocation(tmp_path):
    """A second run in which everything is fresh takes a second; the card still says what the work took."""
    assert gather(make_run(tmp_path)).seconds == 290.3


# ------------------------------------------------------------------------------------------------------- charts


def test_chart_geometry_is_linear():
    chart = line_chart("x", [Series("a", [(0, 0), (5, 50), (10, 100)], "validation")])
    assert [dot[:2] for dot in chart.dots] == [(0, 0), (50, 50), (100, 100)]
    assert chart.paths == [("validation", "M0.0 400.0L500.0 200.0L1000.0 0.0")]
    assert (0.0, "0") in chart.ticks_y and (100.0, "100") in chart.ticks_y


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-3, 7), (1e-9, 3e-9), (2.31, 2.32), (0, 123456), (5, 5), (0, 0)])
def test_ticks_enclose_the_range_in_round_steps(low, high):
    ticks = nice_ticks(low, high)
    assert ticks[0] <= low and ticks[-1] >= high and 2 <= len(ticks) <= 8
    steps = {round((b - a) / (ticks[1] - ticks[0]), 6) for a, b in zip(ticks, ticks[1:], strict=False)}
    assert steps == {1.0}


def test_thinning_keeps_spikes_and_ends():
    points = [(x, 100.0 if x == 7777 else 1.0) for x in range(20000)]
    thinned = thin(points, 500)
    assert len(thinned) <= 502 and (7777, 100.0) in thinned and thinned[-1] == points[-1]


def test_smoothing_keeps_a_constant_and_a_centred_line():
    assert [y for _, y in smooth([(x, 3.0) for x in range(50)])] == pytest.approx([3.0] * 50)
    line = smooth([(x, float(x)) for x in range(200)])
    assert line[100][1] == pytest.approx(100, abs=0.5)  # no lag
    assert smooth([(0, math.nan)]) == []


def test_a_lone_spike_does_not_flatten_the_curve():
    chart = line_chart("x", [Series("a", [(x, 1e6 if x == 50 else 2.0 + x / 100) for x in range(100)])])
    assert chart.ticks_y[-1][1] in ("3.5", "3", "4")


def test_numbers_are_short():
    assert [number_text(value) for value in (0, 0.5, 0.001, 3e-5, 12000, 2.5e6, 2e9)] == ["0", "0.5", "0.001", "3e-05", "12k", "2.5M", "2e+09"]
