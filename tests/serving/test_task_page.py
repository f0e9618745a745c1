"""The page of task models in a real browser: against real servers, and with predictions put into the page for what no tiny model says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from importlib import resources

import pytest
from browsing import chromium
from prediction_lab import make_task_model
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from serving_lab import RunningServer

from luban.inference.predictor import Predictor


def source() -> str:
    return resources.files("luban.serving").joinpath("task_page.html").read_text(encoding="utf-8")


def test_the_task_page_needs_nothing_from_elsewhere():
    page = source()
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", page)
    assert [link for link in links if not link[0].startswith("data:")] == []
    assert set(re.findall(r"https?://[^\s\"'`]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page


def test_the_task_page_speaks_both_languages_alike():
    english, chinese = (re.search(rf"^  {name}: \{{\n(.*?)^  \}},", source(), re.S | re.M).group(1) for name in ("en", "zh"))
    keys = [re.findall(r"(?:^|[,{])\s*(\w+): [\"\[{]", text, re.M) for text in (english, chinese)]
    assert keys[0] == keys[1] and len(keys[0]) > 60


def test_every_task_has_its_hint():
    from luban.inference.predictor import PREDICTORS

    hints = re.search(r"hints: \{(.*?)\n    \}", source(), re.S).group(1)
    assert set(PREDICTORS) <= set(re.findall(r"(?:^|,)\s*(\w+): \"", hints, re.M))


@pytest.fixture(scope="module")
def task_browser() -> Iterator[webdriver.Chrome]:
    with chromium(1000, 900) as driver:
        yield driver


@pytest.fixture(scope="module")
def task_servers(tmp_path_factory) -> Iterator:
    base, running = tmp_path_factory.mktemp("paged"), {}

    def get(task: str) -> RunningServer:
        if task not in running:
            running[task] = RunningServer(make_task_model(base / task, task), name=task)
        return running[task]

    yield get
    for one in running.values():
        assert one.stop() == 0


class TaskPage:
    def __init__(self, browser: webdriver.Chrome, server: RunningServer, query: str = "?lang=en"):
        self.browser, self.wait = browser, WebDriverWait(browser, 30, poll_frequency=0.05)
        browser.get(f"{server.url}/{query}")
        self.wait.until(lambda _: browser.execute_script("return document.body.dataset.ready"))

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [node.get_property("textContent") for node in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def ask(self, **fields: str) -> None:
        """Fill in the fields and send."""
        for name, text in fields.items():
            script = "const box = document.getElementById('field-' + arguments[0]); box.value = arguments[1]"
            self.browser.execute_script(script, name, text)  # as pasted: keys cannot type what lies outside the basic plane
        self.browser.execute_script("document.getElementById('out').replaceChildren()")
        self.find("#send").click()
        self.wait.until(lambda _: self.browser.execute_script("return document.getElementById('out').childElementCount > 0 && document.getElementById('out').ariaBusy === 'false'"))

    def show(self, item: dict, prediction: dict) -> None:
        """Draw a prediction as if the model had said it."""
        self.browser.execute_script("shown = {items: [arguments[0]], found: [arguments[1]]}; draw()", item, prediction)

    def clean(self) -> None:
        """Nothing went wrong that only the console would tell."""
        assert [entry for entry in self.browser.get_log("browser") if "favicon" not in entry["message"] and "400" not in entry["message"]] == []


@pytest.mark.browser
def test_labels_with_bars(task_browser, task_servers, tmp_path):
    page = TaskPage(task_browser, task_servers("classification"))
    assert page.find("#name").text == "classification" and "3 labels" in page.find("#about").text and "with the probability" in page.find("#hint").text
    page.find("#field-text").send_keys("great film", Keys.CONTROL, Keys.ENTER)
    page.wait.until(lambda _: page.texts(".answer"))
    expected = Predictor.load(make_task_model(tmp_path / "again", "classification"), device="cpu").predict(["great film"])[0]
    ranked = sorted(expected["probabilities"].items(), key=lambda pair: -pair[1])
    assert page.texts(".answer") == [expected["label"]] and page.texts(".bars .name") == [label for label, _ in ranked]
    assert page.texts(".bars .name.best") == [expected["label"]] and page.texts(".bars .number")[0] == f"{100 * ranked[0][1]:.1f}%"
    assert page.find("#status").get_property("textContent") == "The prediction is there."
    assert json.loads(page.texts("details pre")[0])["label"] == expected["label"]
    task_browser.save_screenshot(str(tmp_path / "page.png"))
    page.find("#language").click()  # the result stays, in the other language
    assert page.texts(".answer") == [expected["label"]] and page.find("#hint").text.startswith("给文本一个标签") and page.find("#send").text == "预测"
    assert page.find("#field-text").get_property("value") == "great film"
    page.find("#language").click()
    page.show({"text": "a"}, {"labels": [], "probabilities": {"red": 0.2, "blue": 0.1}})
    assert page.texts(".answer") == ["no label reaches the threshold"]
    page.show({"text": "a"}, {"value": 3.25})
    assert page.texts(".answer") == ["3.25"]
    page.clean()


@pytest.mark.browser
def test_spans_are_coloured_where_they_stand(task_browser, task_servers):
    page = TaskPage(task_browser, task_servers("tagging"))
    text = "🙂 Anna <b>saw</b> 北京"
    page.ask(text=text)
    assert page.texts(".card .words")[0].startswith("🙂")
    page.show({"text": text}, {"spans": [{"start": 2, "end": 6, "label": "person", "score": 0.9}, {"start": 18, "end": 20, "label": "place", "score": 0.8}]})
    assert page.texts("mark") == ["Annaperson", "北京place"] and page.texts(".card .words") == ["🙂 Annaperson <b>saw</b> 北京place"]
    hues = [node.value_of_css_property("background-color") for node in task_browser.find_elements(By.CSS_SELECTOR, "mark")]
    assert len(set(hues)) == 2 and page.find("mark").get_attribute("title") == "person 90.0%"
    inner = [{"start": 2, "end": 20, "label": "a"}, {"start": 2, "end": 6, "label": "b"}, {"start": 4, "end": 9, "label": "c"}]
    page.show({"text": text}, {"spans": inner})  # one inside another, one across its end: cut there
    assert page.texts(".card .words") == ["🙂 Annacb <b>saw</b> 北京a"] and page.texts("mark mark") == ["Annacb", "nac"]
    head, tail = {"text": "Anna"}, {"text": "北京"}
    page.show({"text": text}, {"spans": [], "triples": [{"head": head, "tail": tail, "label": "in", "score": 0.7}]})
    assert page.texts(".triples li") == ["Annain北京"] and "nothing found" in page.texts(".card .soft")
    page.clean()


@pytest.mark.browser
def test_an_answer_is_marked_in_its_context(task_browser, task_servers):
    page = TaskPage(task_browser, task_servers("question_answering"))
    page.ask(question="who saw Paris?", context="🙂 Anna saw Paris. Boris went to Lima.")
    answer = page.texts(".answer")[0]
    assert answer and page.texts("mark") == [answer]
    page.show({"question": "q", "context": "no"}, {"answer": "", "start": None, "end": None, "score": 0.5, "no_answer_score": 2.0})
    assert page.texts(".answer") == ["The context holds no answer."] and page.texts("mark") == []
    page.clean()


@pytest.mark.browser
def test_blanks_and_mistakes(task_browser, task_servers):
    page = TaskPage(task_browser, task_servers("masked"), "?lang=zh")
    page.ask(text="anna [MASK] paris")
    assert page.texts("#out h2")[1] == "第 1 个空" and len(page.texts(".bars .name")) == 5 and "anna" in page.texts(".answer")[0]
    page.ask(text="no gap")
    assert "blank" in page.texts(".alert")[0]  # in the server's language
    page.show({}, {"text": "<script>alert(1)</script>", "cut_tokens": 7})
    assert page.texts(".answer") == ["<script>alert(1)</script>"] and "7" in page.texts(".card .soft")[0]
    page.clean()


@pytest.mark.browser
def test_near_texts_documents_and_choices(task_browser, task_servers):
    page = TaskPage(task_browser, task_servers("embedding"))
    page.ask(texts="Anna saw Paris\n\nAnna saw Paris\n电影好看")
    assert page.texts(".card .words") == ["Anna saw Paris"] and page.texts(".bars .name")[0] == "Anna saw Paris" and page.texts(".bars .number")[0] == "1"
    assert "32 numbers" in page.texts(".card .soft")[-1]
    page.show({"query": "q", "documents": ["a", "b"]}, {"scores": [0.1, 2.5]})
    assert page.texts(".bars .name") == ["b", "a"] and page.texts(".bars .name.best") == ["b"]
    page.show({"prompt": "q", "choices": ["a", "b"]}, {"choice": 1, "scores": [-3.0, 2.0]})
    assert page.texts(".answer") == ["b"]
    page.show({"text": "q"}, {"next": [{"token": "a", "text": "a", "probability": 0.5}]})
    assert page.texts(".bars .number") == ["50.0%"]
    page.show({"text": "q"}, {"unheard": 1})
    assert json.loads(page.texts("details pre")[0]) == {"unheard": 1}
    page.clean()
