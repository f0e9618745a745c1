"""The chat page in a real browser, against a real server."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from importlib import resources

import pytest
from browsing import chromium
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait
from serving_lab import RunningServer, make_model


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium(1000, 800) as driver:
        yield driver


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: webdriver.Chrome, server: RunningServer, query: str = "?lang=en"):
        self.browser, self.wait = browser, WebDriverWait(browser, 30, poll_frequency=0.05)
        browser.get(f"{server.url}/{query}")
        self.wait.until(lambda _: browser.execute_script("return document.body.dataset.ready"))

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        return [node.get_property("textContent") for node in self.browser.find_elements(By.CSS_SELECTOR, selector)]

    def run(self, script: str, *values: object):
        return self.browser.execute_script(script, *values)

    def set(self, name: str, value: float) -> None:
        self.run("const box = document.getElementById(arguments[0]); box.value = arguments[1]; box.dispatchEvent(new Event('input'))", name, value)

    def ask(self, text: str) -> None:
        self.find("#text").send_keys(text, Keys.ENTER)

    def answered(self, count: int = 1) -> list[str]:
        """The answers once ``count`` of them are complete."""
        self.wait.until(lambda _: len(self.browser.find_elements(By.CSS_SELECTOR, "article.assistant:not(.writing)")) == count)
        return self.texts("article.assistant .words")

    def until(self, condition: Callable[[], object]) -> None:
        self.wait.until(lambda _: condition())


def test_the_page_needs_nothing_from_elsewhere():
    page = resources.files("luban.serving").joinpath("page.html").read_text(encoding="utf-8")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)|url\(([^)]*)\)|@import""", page)
    assert [link for link in links if not link[0].startswith("data:")] == []
    assert set(re.findall(r"https?://[^\s\"'`]+", page)) <= {"http://www.w3.org/2000/svg"}
    assert "innerHTML" not in page


def test_the_words_of_both_languages_are_the_same_set():
    page = resources.files("luban.serving").joinpath("page.html").read_text(encoding="utf-8")
    english, chinese = (re.search(rf"^  {name}: \{{\n(.*?)^  \}},", page, re.S | re.M).group(1) for name in ("en", "zh"))
    keys = [set(re.findall(r"(?:^|[,{])\s*(\w+): [\"\[]", text, re.M)) for text in (english, chinese)]
    assert keys[0] == keys[1] and len(keys[0]) > 30


@pytest.mark.browser
def test_a_question_is_answered(browser, scribe, loaded, tmp_path):
    page = Page(browser, scribe)
    page.find("#adjust").click()
    page.set("max_tokens", 120)
    page.set("temperature", 0)
    page.ask("写一首诗")
    import httpx

    body = {"messages": [{"role": "user", "content": "写一首诗"}], "temperature": 0, "max_tokens": 120}
    expected = httpx.post(scribe.url + "/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"]
    assert page.answered() == [expected]
    assert page.texts("article.user .words") == ["写一首诗"]
    assert "120 tokens" in page.find(".foot span").text and page.find("#name").text == "scribe"
    assert page.find("#status").get_property("textContent") == "The answer is complete."
    browser.save_screenshot(str(tmp_path / "page.png"))
    assert (tmp_path / "page.png").stat().st_size > 10_000
    page.find(".again").click()
    assert page.answered() == [expected]
    page.ask("再来")
    assert len(page.answered(2)) == 2 and len(browser.find_elements(By.CSS_SELECTOR, ".again")) == 1
    page.find("#fresh").click()
    assert page.texts("article") == [] and page.find("#welcome").is_displayed()
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []


@pytest.mark.browser
def test_an_answer_can_be_stopped(browser, server):
    page = Page(browser, server)
    page.set("max_tokens", 4000)
    page.set("temperature", 0)
    page.ask("Hello")
    page.until(lambda: len(page.texts("article.assistant .words")[0]) > 20)
    page.find("#stop").click()
    words = page.answered()
    assert "stopped" in page.find(".foot span").text and words[0]
    server.wait_for(lambda: server.metric("luban_num_requests_running") == 0)


@pytest.mark.browser
def test_enter_within_a_composition_does_not_send(browser, server):
    page = Page(browser, server)
    box = page.find("#text")
    box.send_keys("ni hao")
    press = "arguments[0].dispatchEvent(new KeyboardEvent('keydown', {key: 'Enter', bubbles: true, cancelable: true, isComposing: arguments[1], keyCode: arguments[2]}))"
    page.run(press, box, True, 13)
    page.run(press, box, False, 229)
    box.send_keys(Keys.SHIFT, Keys.ENTER)
    assert page.texts("article") == [] and box.get_property("value") == "ni hao\n"
    page.set("max_tokens", 3)
    page.run(press, box, False, 13)
    page.answered()


@pytest.mark.browser
def test_markup_in_an_answer_is_text(browser, server):
    page = Page(browser, server)
    hostile = "<img src=x onerror=alert(1)> **bold** `a<b` and\n```html\n<script>alert(2)</script>\n```\nend"
    page.run("const box = document.createElement('div'); box.id = 'probe'; box.append(format(arguments[0])); document.body.append(box)", hostile)
    assert page.texts("#probe strong") == ["bold"] and page.texts("#probe pre") == ["<script>alert(2)</script>"] and page.texts("#probe > code") == ["a<b"]
    assert page.browser.find_elements(By.CSS_SELECTOR, "#probe img, #probe script") == []
    assert page.find("#probe").get_property("textContent") == "<img src=x onerror=alert(1)> bold a<b and\n<script>alert(2)</script>\nend"


@pytest.mark.browser
def test_a_conversation_longer_than_the_memory_goes_on(browser, scribe):
    page = Page(browser, scribe)
    page.set("max_tokens", 200)
    for count in range(1, 5):
        page.ask("写" * 30)
        page.answered(count)
    assert page.texts(".alert:not([hidden])") == [] and any("Earlier turns were left out" in text for text in page.texts(".foot span"))


@pytest.mark.browser
def test_chinese_and_dark(browser, server):
    page = Page(browser, server, "?lang=zh")
    assert page.find("#send").text == "发送" and page.find("html").get_attribute("lang") == "zh-CN"
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.find("#theme").click()
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    page.find("#language").click()
    assert page.find("#send").text == "Send"
    unnamed = page.run(
        "return [...document.querySelectorAll('button, input, textarea')].filter(node => !node.hidden && !(node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.length)).map(node => node.id)"
    )
    assert unnamed == []


@pytest.mark.browser
def test_a_base_model_continues_text(browser, tmp_path, start):
    page = Page(browser, start(make_model(tmp_path / "base", chat=False), name="base"))
    assert page.find("#mode-plain").get_attribute("aria-pressed") == "true" and not page.find("#mode-chat").is_enabled()
    page.set("max_tokens", 12)
    page.ask("春眠")
    first = page.answered()[0]
    assert first.startswith("春眠") and len(first) > 2
    next(button for button in page.browser.find_elements(By.CSS_SELECTOR, ".foot button") if button.text == "Write on").click()
    assert page.answered(2)[1].startswith(first)
