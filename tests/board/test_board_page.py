"""The board in a real browser, against a real server, over runs that grow meanwhile."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from importlib import resources
from urllib.parse import quote

import pytest
from board_lab import entries, line, make_run, write
from browsing import chromium
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait


def asset(name: str) -> str:
    return resources.files("luban.board").joinpath(name).read_text(encoding="utf-8")


def test_the_page_needs_nothing_from_elsewhere():
    page, script, style = asset("page.html"), asset("board.js"), asset("board.css")
    links = re.findall(r"""(?:src|href)\s*=\s*["']?([^"'\s>]+)""", page)
    assert {link for link in links if not link.startswith(("data:", "#"))} == {"board.css", "board.js"}
    assert not re.search(r"url\(|@import", style) and set(re.findall(r"https?://[^\s\"'`]+", page + script + style)) <= {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|eval\(|new Function|document\.write", script)
    assert max(text.count("\n") for text in (page, script, style)) < 500


def test_every_word_of_the_page_has_its_chinese_and_none_is_left_over():
    words, script = json.loads(asset("zh.json")), asset("board.js")
    used = set(re.findall(r'\bt\("((?:[^"\\]|\\.)+)"', script)) | set(re.findall(r"data-t>([^<]+)<", asset("page.html")))
    for table in ("NAMES", "RULES", "STATES"):
        used |= set(re.findall(r': "([^"]+)"', re.search(rf"const {table} = (?:bare\()?\{{(.*?)\}}\)?;", script, re.S).group(1)))
    spoken = {node.value for node in ast.walk(ast.parse(asset("server.py"))) if isinstance(node, ast.Constant)}
    assert used <= set(words) and set(words) <= used | spoken


@pytest.fixture(scope="module")
def browser() -> Iterator[webdriver.Chrome]:
    with chromium(1200, 1400) as driver:
        yield driver


class Page:
    """The page as a person uses it."""

    def __init__(self, browser: webdriver.Chrome, board, runs: list[str], query: str = "?lang=en"):
        self.browser, self.wait = browser, WebDriverWait(browser, 30, poll_frequency=0.05)
        for run in runs:  # known to the board
            self.until(lambda run=run: board.get("/api/run", run=run).status_code == 200)
        browser.get("about:blank")
        browser.get(f"{board.url}/{query}#" + "&".join(f"run={quote(run)}" for run in runs))
        self.until(lambda: self.run("return document.body.dataset.ready"))

    def run(self, script: str, *values: object):
        return self.browser.execute_script(script, *values)

    def until(self, condition: Callable[[], object]) -> None:
        self.wait.until(lambda _: condition())

    def find(self, selector: str):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def texts(self, selector: str) -> list[str]:
        """Of all nodes at once: a moment later the page may have drawn them anew."""
        return self.run("return [...document.querySelectorAll(arguments[0])].map(node => node.textContent)", selector)

    def count(self, selector: str) -> int:
        return self.run("return document.querySelectorAll(arguments[0]).length", selector)

    def tile(self, label: str) -> str:
        return next((text.removeprefix(label) for text in self.texts(".tile") if text.startswith(label)), "")

    def ends(self) -> list[str]:
        return [texts[0] for texts in (self.texts("#charts figure:first-child .tick.x"),) if texts] + self.texts("#charts figure:first-child .tick.x")[-1:]

    def clean(self) -> bool:
        return [entry for entry in self.browser.get_log("browser") if "favicon" not in entry["message"]] == []


@pytest.mark.browser
def test_a_run_is_seen_as_it_goes(browser, board, shelf, tmp_path):
    scores = line(step=60, validation={"loss": 3.5, "bits_per_byte": 2.1}) + line(step=60, data={"books/train": 30, "web/train": 90})
    folder = make_run(shelf / "seen/base.partial", 80, more=scores + line(step=60, samples=[{"prompt": "ROMEO:\n", "text": "first"}]))
    page = Page(browser, board, ["seen/base"])
    assert page.tile("step") == "80 / 160" and page.tile("validation") == "3.5" and page.find("#name").text == "seen/base"
    assert {"loss", "validation: bits a byte", "learning rate", "gradient norm", "tokens a second", "share of peak", "memory"} == {text for text in page.texts("#charts figcaption b")}
    assert page.texts(".sample p") == ["first"] and page.find("#events").is_displayed() is False
    assert [re.sub(r"\s+", " ", text) for text in page.texts("#data td")] == ["books/train", " 25.0 %", "30", "1920", "0.60", "web/train", " 75.0 %", "90", "5760", "0.23"]
    assert page.run("return getComputedStyle(document.querySelector('#charts path.smooth')).stroke") == "rgb(13, 122, 104)"
    bytes_before = page.run("return performance.getEntriesByType('resource').filter(entry => entry.name.includes('series')).map(entry => entry.encodedBodySize)")
    with (folder / "training" / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(entries(81, 120) + line(step=120, samples=[{"prompt": "ROMEO:\n", "text": "second"}]))
    write(folder / "training" / "guard.jsonl", line(step=101, not_finite={"loss": "nan"}, sources=["books:7"]))
    write(folder / "training" / "alerts.jsonl", line(step=110, rule="throughput", time="2026-01-02T03:04:05+00:00", text="it is slow", value=1, threshold=2))
    page.until(lambda: page.tile("step") == "120 / 160")
    assert page.texts(".sample p") == ["second", "first"] and page.find("#runs .c0 progress").get_property("value") == 120
    assert page.count("#charts figure:first-child .event") == 2
    rows = page.texts("#events td")
    assert rows[0] == "110" and rows[1] == "alert: slow" and rows[3] == "it is slow" and rows[4] == "101" and rows[5] == "loss or gradient not finite" and "books:7" in rows[7]
    bytes_after = page.run("return performance.getEntriesByType('resource').filter(entry => entry.name.includes('series')).map(entry => entry.encodedBodySize)")
    assert len(bytes_after) > len(bytes_before) and bytes_after[-1] < bytes_before[0]  # only what was new
    page.until(lambda: page.run("return document.querySelectorAll('.tile').length") and page.clean())
    browser.save_screenshot(str(tmp_path / "board.png"))
    assert (tmp_path / "board.png").stat().st_size > 20_000


@pytest.mark.browser
def test_two_runs_are_laid_over_each_other(browser, board, shelf):
    for name, rate, level in (("one", 0.1, 3.0), ("other", 0.2, 4.0)):
        make_run(shelf / name / "base", 90, level=level, config={"sequence_length": 64, "optimizer": {"name": "adamw", "learning_rate": rate}})
    page = Page(browser, board, ["one/base"])
    page.find("#runs input[aria-label='compare other/base']").click()
    page.until(lambda: page.texts("#difference td"))
    assert page.texts("#difference td") == ["optimizer.learning_rate", "0.1", "0.2"] and page.texts("#difference th") == ["", "one", "other"]
    strokes = page.run("return [...document.querySelectorAll('#charts figure:first-child .smooth')].filter(node => node.tagName === 'path').map(node => getComputedStyle(node).stroke)")
    assert len(strokes) == 2 and len(set(strokes)) == 2
    keys = page.texts("#charts figure:first-child .key")
    assert [key.split()[0] for key in keys] == ["one", "other"] and float(keys[1].split()[1]) - float(keys[0].split()[1]) == pytest.approx(1.0, abs=0.1)
    assert "run=one%2Fbase&run=other%2Fbase" in browser.current_url  # may be kept as a bookmark
    page.find("#axis").send_keys("time")
    page.until(lambda: page.ends()[-1].endswith("s"))
    page.find("#log").click()
    page.run("const box = document.getElementById('smooth'); box.value = 0; box.dispatchEvent(new Event('input'))")
    assert page.texts("#smoothed") == ["none"] and page.count("#charts .raw") == 0 and page.clean()


@pytest.mark.browser
def test_looking_closer_by_pointer_and_by_keys(browser, board, shelf):
    make_run(shelf / "long/base", 3000)
    page = Page(browser, board, ["long/base"])
    plot = page.find("#charts figure:first-child .plot")
    assert page.count("#charts figure:first-child .band") == 1
    width = plot.size["width"]
    ActionChains(browser).move_to_element_with_offset(plot, -width // 4, 0).click_and_hold().move_by_offset(width // 20, 0).move_by_offset(width // 20, 0).release().perform()
    page.until(lambda: page.find("#whole").is_displayed() and float(page.ends()[0]) > 600)
    first = page.run("return document.querySelector('#charts figure').spec.lines[0].x")
    assert 740 <= first[0] <= 760 and 1040 <= first[-1] <= 1065 and len(first) > 280  # every step of it, though the whole was thinned
    plot.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("#whole").is_displayed() and page.ends()[0] == "0")
    plot.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    spoken = page.find("#status").get_property("textContent")
    assert spoken.startswith("30. loss:")
    steps, losses = page.run("const line = document.querySelector('#charts figure').spec.lines[0]; return [line.x, line.line]")
    at = losses[min(range(len(steps)), key=lambda index: abs(steps[index] - 30))]
    assert float(re.search(r"loss: (\S+)", spoken)[1].rstrip(",")) == pytest.approx(at, rel=1e-3)
    assert len(set(page.run("return [...document.querySelectorAll('.cursor')].map(node => node.getAttribute('x1'))"))) == 1  # in all curves at once
    plot.send_keys("+")
    page.until(lambda: page.find("#whole").is_displayed())
    page.find("#whole").click()
    page.until(lambda: not page.find("#whole").is_displayed())
    assert page.clean()


@pytest.mark.browser
def test_markup_in_files_and_names_is_text(browser, board, shelf):
    evil = "<img src=x onerror=document.title='owned'>"
    more = line(step=20, samples=[{"prompt": evil, "text": evil}]) + line(step=20, **{evil: 1.0, "loss": 2.0})
    for step in (21, 22):
        more += line(step=step, **{"constructor": step, "__proto__": step, "loss": 2.0}) + line(step=step, **{"__proto__": {"constructor": step, "toString": step}})
    folder = make_run(shelf / evil / "base", 20, about={"objective": evil, "host": evil}, config={evil: evil}, more=more)
    write(folder / "training" / "guard.jsonl", line(step=3, event=evil, text=evil) + line(step=4, event="constructor") + line(step=5, event="__proto__"))
    write(folder.parent / "recipe.resolved.yaml", evil)
    page = Page(browser, board, [f"{evil}/base"])
    page.find("#filter").send_keys("<IMG")
    assert any(text == f"{evil}/base" for text in page.texts("#runs button"))
    page.until(lambda: "<img" in page.find("#name").text and page.texts(".sample p") == [evil])
    assert page.count("img, main script, main a") == 0 and "owned" not in browser.title
    page.find("#language").click()  # words are looked up by the file's own names
    assert {"constructor", "  proto  ", "  proto  ：constructor"} <= set(page.texts("#charts figcaption b")) and page.run("return Object.keys(Object.prototype).length + Object.keys({}).length") == 0
    page.find("#language").click()
    assert page.clean()
    assert evil in page.texts("#events td") and evil in page.texts("#recipe td") and page.texts("#recipe pre") == [evil]


@pytest.mark.browser
def test_chinese_dark_and_usable_without_a_mouse(browser, board, shelf):
    make_run(shelf / "named/base", 30)
    page = Page(browser, board, ["named/base"], "?lang=zh")
    assert page.find("html").get_attribute("lang") == "zh-CN" and "学习率" in page.texts("#charts figcaption b") and page.tile("损失")
    left_english = [text for text in page.texts("main h3, main label span, #count, .tile small, #charts figcaption b, main summary, aside .fine") if text and not re.search(r"[\u4e00-\u9fff]", text)]
    assert left_english == []
    before = page.run("return getComputedStyle(document.body).backgroundColor")
    page.find("#theme").click()
    assert page.run("return getComputedStyle(document.body).backgroundColor") != before
    page.find("#theme").click()
    page.find("#language").click()
    assert "learning rate" in page.texts("#charts figcaption b")
    named = "node => node.textContent.trim() || node.getAttribute('aria-label') || node.labels?.length"
    unnamed = page.run(f"const named = {named}; return [...document.querySelectorAll('button, input, select, [tabindex=\"0\"]')].filter(node => !named(node)).map(node => node.outerHTML)")
    assert unnamed == []
    page.run("document.body.focus()")
    reached = set()
    for _ in range(page.count("button, input, select, summary, a[href], [tabindex]") + 5):  # once around, however many runs are listed
        ActionChains(browser).send_keys(Keys.TAB).perform()
        reached.add(page.run("const node = document.activeElement; return node.id || node.className || node.tagName"))
    assert {"filter", "axis", "smooth", "log", "live", "theme", "language", "plot"} <= reached
    contrast = page.run(
        "const part = v => v <= .03928 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;"
        "const light = color => { const [r, g, b] = color.match(/[\\d.]+/g).map(v => part(v / 255)); return .2126 * r + .7152 * g + .0722 * b; };"
        "const pair = (a, b) => { const [x, y] = [light(a), light(b)].sort((p, q) => q - p); return (x + .05) / (y + .05); };"
        "const found = []; for (const theme of ['light', 'dark']) { document.documentElement.dataset.theme = theme; const sheet = getComputedStyle(document.querySelector('.tile')).backgroundColor;"
        "for (const name of ['.tile small', '.tile strong', '.key', '.tick', '#runs small']) found.push(pair(getComputedStyle(document.querySelector(name)).color, sheet)); } return found"
    )
    assert min(contrast) >= 4.5  # WCAG AA
