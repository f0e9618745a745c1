"""`make quickstart` in a reduced form: the same script from an empty folder, with a smaller model and fewer steps."""

from __future__ import annotations

import html.parser
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import QUICK

SCRIPT = Path(__file__).resolve().parent.parent / "scripts" / "quickstart.py"
FEWER = ("base.threads=1", "chat.threads=1", "base.validation.every=12 steps", "chat.validation.every=8 steps")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder, and the script's standard output and error."""
    folder = tmp_path_factory.mktemp("quickstart")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    ran = subprocess.run([sys.executable, str(SCRIPT), *QUICK, *FEWER], cwd=folder, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600)
    assert ran.returncode == 0, ran.stderr
    return folder, ran.stdout, ran.stderr


@pytest.mark.slow
def test_two_questions_are_answered_over_http(made):
    _, printed, _ = made
    answers = re.findall(r"^you   > ([^\n]+)\nmodel > (.*?)\n\n", printed, re.MULTILINE | re.DOTALL)
    assert [question for question, _ in answers] == ["Who are you?", "写一首诗，题为《春夜》"]
    assert all(answer.strip() for _, answer in answers)


@pytest.mark.slow
def test_it_ends_with_the_summary(made):
    _, _, said = made
    summary = said[said.rindex("╭") :]
    for word in ("corpus", "tokenizer", "tokens", "base", "chat", "report", "3-gram", "5-gram", "untrained", "card.html"):
        assert word in summary
    commands = re.findall(r"luban [a-z]+ quickstart/\S+", summary)
    assert len(commands) == 3
    for command in commands:
        assert (made[0] / command.split()[2]).exists()


@pytest.mark.slow
def test_the_run_card_needs_nothing_from_elsewhere(made):
    folder, _, _ = made
    page = (folder / "quickstart" / "runs" / "quickstart" / "card.html").read_text(encoding="utf-8")
    assert "<svg" in page and "ROMEO" in page and "春夜" in page
    loaded: list[str] = []

    class Loads(html.parser.HTMLParser):
        def handle_starttag(self, tag, attributes):
            found = dict(attributes)
            loaded.extend(value for name in ("src", "srcset", "data", "poster") if (value := found.get(name)))
            if tag == "link":
                loaded.append(found.get("href") or "")

    Loads().feed(page)
    assert all(value.startswith("data:") for value in loaded)
    assert not re.search(r"@import|url\((?!['\"]?(data:|#))", page)


@pytest.mark.slow
def test_no_server_is_left_behind(made):
    _, printed, _ = made
    port = int(re.search(r"serving at http://127\.0\.0\.1:(\d+)", printed)[1])
    with socket.socket() as probe:
        probe.settimeout(5)
        assert probe.connect_ex(("127.0.0.1", port)) != 0


@pytest.mark.slow
def test_a_second_time_nothing_is_trained_again(made):
    folder, _, _ = made
    plan = [sys.executable, "-m", "luban", "--language", "en", "run", "quickstart/recipe.yaml", "--dry-run", *QUICK, *FEWER]
    printed = subprocess.run(plan, cwd=folder, capture_output=True, text=True, encoding="utf-8", check=True).stderr
    for stage in ("corpus", "tokenizer", "tokens", "base", "chat", "report"):
        assert re.search(rf"^\s*{stage}\s+\w+\s+fresh", printed, re.MULTILINE), printed
