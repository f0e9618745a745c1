"""What a search shows: a page that needs nothing, charts whose geometry is right, and what mattered."""

from __future__ import annotations

import random
import re
from html.parser import HTMLParser
from pathlib import Path

from tuning_lab import sorter

import luban
from luban.foundation.config import Source
from luban.foundation.messages import set_language, t
from luban.pipeline.spaces import find_spaces
from luban.tuning import report
from luban.tuning.charts import best_so_far, parallel
from luban.tuning.problem import read_problem
from luban.tuning.study import optuna


class Page(HTMLParser):
    """Tags, attributes and text of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


def test_the_page_stands_alone_and_shows_every_trial(tmp_path):
    path = sorter(tmp_path, {"words": {"choice": [1, 2]}, "model": {"choice": ["logistic", "centroid"]}}, sampler="grid")
    best = luban.tune(path, "name=<script>alert(1)</script>", out=tmp_path / "out")
    page = Page(best.report.read_text(encoding="utf-8"))
    assert not {"script", "img", "link", "iframe"} & set(page.tags) and "svg" in page.tags
    assert not [value for name, value in page.attributes if name in ("src", "href") or (value or "").startswith("http")]
    assert page.tags.count("tr") == 5 and "<script>alert(1)</script>" in page.text
    for words in ("best accuracy", "How the search went", "All trials at once", "What mattered", "fANOVA", "words", "model"):
        assert words in page.text
    markdown = (tmp_path / "out/tune/report.md").read_text(encoding="utf-8")
    assert markdown.count("| complete |") == 4


def test_every_word_of_the_page_has_its_chinese():
    set_language("zh")
    template = (Path(report.__file__).parent / "tune_report.html.j2").read_text(encoding="utf-8")
    words = re.findall(r't\(["\']([^"\']*(?:\'s[^"]*)?)["\']', template)
    assert len(words) >= 8
    assert not [word for word in words if t(word) == word]


def test_the_best_so_far_is_a_staircase():
    trials = [{"number": number, "value": value, "state": "complete"} for number, value in enumerate([3.0, 5.0, 1.0])]
    chart = best_so_far(trials, False, "loss")
    assert dict(chart.paths)["smooth"].count("L") == 3  # down once, and along
    assert len(chart.dots) == 3
    assert best_so_far([], False, "loss") is None


def test_parallel_coordinates_stand_on_each_spaces_own_scale():
    spaces = find_spaces({"stages": {"a": {"rate": {"search": [1e-4, 1e-2], "scale": "log"}, "kind": {"choice": ["p", "q", "r"]}}}}, Source())
    trials = [{"number": number, "state": "complete", "value": value, "values": values} for number, value, values in (
        (0, 2.0, {"a.rate": 1e-3, "a.kind": "q"}), (1, 1.0, {"a.rate": 1e-4, "a.kind": "r"}), (2, 4.0, {"a.rate": 1e-2}),
    )]  # fmt: skip
    drawn = parallel(trials, spaces, {"a.rate": "rate", "a.kind": "kind"}, False, "loss")
    assert [axis.name for axis in drawn.axes] == ["rate", "kind", "loss"] and [axis.left for axis in drawn.axes] == [0, 50, 100]
    by_text = {line.text: line for line in drawn.lines}
    assert by_text["trial 0: 2"].path == "M0.0 200.0L500.0 200.0L1000.0 266.7"  # the middle of both scales; a third of the way up
    assert by_text["trial 1: 1"].path == "M0.0 400.0L500.0 0.0L1000.0 400.0" and by_text["trial 1: 1"].rank == 0
    assert by_text["trial 2: 4"].path == "M0.0 0.0M1000.0 0.0"  # it has no kind: the pen is lifted
    assert drawn.lines[-1].text == "trial 1: 1"  # the best is on top
    assert parallel(trials[:1], spaces, {"a.rate": "rate", "a.kind": "kind"}, False, "loss") is None


def test_importance_without_scikit_learn_finds_what_was_planted(monkeypatch):
    monkeypatch.setattr(report.importlib.util, "find_spec", lambda name: None)
    study, draw = optuna.create_study(), random.Random(0)
    ranges = {"strong": optuna.distributions.FloatDistribution(0, 1), "weak": optuna.distributions.FloatDistribution(0, 1), "none": optuna.distributions.CategoricalDistribution(["a", "b"])}
    for _ in range(150):
        values = {"strong": draw.random(), "weak": draw.random(), "none": draw.choice("ab")}
        study.add_trial(optuna.trial.create_trial(params=values, distributions=ranges, value=(values["strong"] - 0.3) ** 2 + 0.02 * values["weak"]))
    shares, method = report.importances(study)
    assert method == "PED-ANOVA"
    assert next(iter(shares)) == "strong" and shares["strong"] > 0.6
    assert report.importances(optuna.create_study()) == ({}, "")


def test_names_are_as_short_as_tells_them_apart(tmp_path):
    problem = read_problem(sorter(tmp_path, {"words": {"search": [1, 3]}, "maximum_features": {"search": [10, 90]}}))
    assert report.short_names(problem) == {"sorter.linear.words": "words", "sorter.linear.maximum_features": "maximum_features"}
