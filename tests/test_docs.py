"""The documentation is true: its commands run, its recipes are valid, its links and names exist, and both languages say the same.

What a fence means, in every page:

``bash``              run, in a folder where the quickstart has been made (`recipe.yaml`, `data/`, `runs/quickstart/`);
``console``           a session to read: `luban` lines are parsed with all their options, others are covered by `ELSEWHERE`;
``python``            run likewise; ``python NAME.py`` is a file of that name;
``yaml``              a recipe, or stages that fit into the quickstart's; ``yaml NAME.yaml`` is a file of that name too.

Training commands are run in a reduced form, `luban serve` is started, asked for its health and stopped, and
what talks to port 8000 talks to a server that is started for it. A single `luban` command and Python code run in a process forked
from one that has imported Luban (warm.py); what needs a shell, and all in the pages of `COLD`, starts anew.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import textwrap
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest
import yaml
from tiny import QUICK
from warm import Warm

import luban
from luban.cli.main import VERBS, cli
from luban.foundation.config import Source
from luban.foundation.kinds import KINDS
from luban.foundation.yaml_files import parse_yaml
from luban.pipeline.recipe import make_recipe
from luban.pipeline.spaces import ends, fill, find_spaces

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").rglob("*.md"))]
ELSEWHERE = {
    "make quickstart": "tests/test_quickstart.py",
    "make quickstart TORCH=cpu": "tests/test_quickstart.py",
    "make test": "Makefile",
    "make bench": "tests/evaluation/test_benchmark_throughput.py",
    "make chaos": "benchmarks/chaos.py",
    "make recording": "scripts/recording.py",
    "source .venv/bin/activate": "Makefile",
    "cd quickstart": "tests/conftest.py",
    "pip install .": "pyproject.toml",
    "pip install '.[all]'": "pyproject.toml",
    "pip install . --extra-index-url https://download.pytorch.org/whl/cpu": "pyproject.toml",
    "tensorboard --logdir runs/quickstart": "tests/training",
    "pip install '.[deepspeed]'": ".ci/run",
    "torchrun --standalone --nproc-per-node 2 -m luban run recipe.yaml base.engine=deepspeed base.layout.shard=full": "tests/parallel/test_zero.py",
    "mpirun -np 2 luban run recipe.yaml": "tests/parallel/test_launch.py",
}
SHOWN = ("luban plan ",)  # run from a console block, whose lines must be in the output
REDUCED_TRAIN = {"--length": "2 steps", "--sequence-length": "64", "--batch-tokens": "128", "--threads": "1", "--validation.every": "2 steps"}
FEWER = ("base.threads=1", "chat.threads=1", "base.validation.every=12 steps", "chat.validation.every=8 steps")
COLD = ("docs/examples.md", "docs/tokenizer.md")
PORT = re.compile(r"(127\.0\.0\.1|localhost):8000")
SIMPLE = re.compile(r"luban [^|&;<>$`*?~!\n]+")  # no shell is needed for it
REACHED = re.compile(r"http://127\.0\.0\.1:\d+")


@dataclass(frozen=True)
class Block:
    """A fenced block: ``language`` and ``name`` are its info string."""

    page: Path
    line: int
    language: str
    name: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


@cache
def blocks(page: Path) -> list[Block]:
    found, text = [], page.read_text(encoding="utf-8")
    for match in re.finditer(r"^( *)```([\w-]*)(?: ([\w.-]+))?\n(.*?)^\1```$", text, re.MULTILINE | re.DOTALL):
        found.append(Block(page, text[: match.start()].count("\n") + 1, match[2], match[3] or "", textwrap.dedent(match[4])))
    return found


@cache
def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^( *)```.*?^\1```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


def without_comments(text: str) -> str:
    """Code without what is translated in the other language's page, and without empty lines at its ends."""
    return "\n".join(re.sub(r"(^|\s{2,})#\s.*$", "", line) for line in text.splitlines()).strip()


def commands(text: str) -> list[str]:
    """A bash block as single commands; one piece where its lines share a state (cd, variables, background)."""
    text = without_comments(text)
    if re.search(r"^(cd|export|source)\b|^\w+=|&$", text, re.MULTILINE):
        return [text]
    found, piece = [], ""
    for line in text.splitlines():
        piece = f"{piece}\n{line}" if piece else line
        checked = subprocess.run(["bash", "-n", "-c", piece], capture_output=True, text=True)
        if piece.strip() and not piece.endswith("\\") and not checked.returncode and not checked.stderr:
            found.append(piece.strip())
            piece = ""
    assert not piece.strip(), f"not a whole command: {piece}"
    return found


# ------------------------------------------------------------------------------------------------- running


class Home:
    """A copy of the quickstart's folder in which commands are run, each one once."""

    def __init__(self, folder: Path, warm: Warm):
        self.folder, self.warm = folder, warm
        self.done: dict[str, str] = {}
        self.servers: dict[str, tuple[subprocess.Popen, str]] = {}
        self.environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}

    def shell(self, command: str, cold: bool = True) -> str:
        """The failure of a shell command, or ''."""
        if command.startswith("luban serve"):
            return self._serve(command.rstrip("& "))
        command = reduced(self._reachable(command))
        if not cold and SIMPLE.fullmatch(command):
            return self._failure(self.warm.run(shlex.split(command)[1:], self.folder))
        return self._failure(self._start(["bash", "-euo", "pipefail", "-c", command]))

    def python(self, text: str, cold: bool = True) -> str:
        text = self._reachable(text)
        return self._failure(self._start([sys.executable, "-c", text]) if cold else self.warm.run(text, self.folder))

    def session(self, text: str, cold: bool = True) -> str:
        """The failure of a console block whose command is run: each line of it is printed, ticked or not on this machine."""
        command, *lines = text.splitlines()
        language = "zh" if re.search(r"[\u4e00-\u9fff]", text) else "en"
        ran = self._start(["bash", "-c", command.removeprefix("$ ").replace("luban ", f"luban --language {language} ", 1)])
        missing = [line for line in lines if line.lstrip("✓✗ ") not in ran.stdout + ran.stderr]
        return f"not printed: {missing}\n{ran.stderr[-1500:]}" if missing or ran.returncode not in (0, 1) else ""

    def _failure(self, ran: subprocess.CompletedProcess) -> str:
        output = ran.stdout + ran.stderr
        return f"status {ran.returncode}:\n{output[-1500:]}" if ran.returncode or "Traceback" in output else ""

    def _start(self, arguments: list[str]) -> subprocess.CompletedProcess:
        return subprocess.run(arguments, cwd=self.folder, env=self.environment, capture_output=True, text=True, encoding="utf-8", errors="replace", stdin=subprocess.DEVNULL, timeout=300)

    def _reachable(self, text: str) -> str:
        """The text with port 8000 replaced by that of a running server, which is started if need be."""
        if not PORT.search(text):
            return text
        return PORT.sub(self._server("luban serve runs/quickstart/chat").removeprefix("http://"), text)

    def _serve(self, command: str) -> str:
        with urllib.request.urlopen(f"{self._server(command)}/health", timeout=30) as answer:
            return "" if answer.status == 200 else f"/health answers {answer.status}"

    def _server(self, command: str) -> str:
        """The address of a server on a free port; it runs until the tests end."""
        if command not in self.servers:
            process = subprocess.Popen([*shlex.split(command), "--port", "0"], cwd=self.folder, env=self.environment, stderr=subprocess.PIPE, text=True, encoding="utf-8")
            address = next((found.group() for line in process.stderr if (found := REACHED.search(line))), "")
            assert address, f"{command} ended with status {process.wait()}"
            self.servers[command] = (process, address)
        return self.servers[command][1]

    def stop(self) -> None:
        for command, (process, _) in self.servers.items():
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=60)
            assert process.returncode == 0, f"{command}: status {process.returncode} after SIGTERM"


def reduced(command: str) -> str:
    """A training command with a smaller model and fewer steps; anything else as it is."""
    launcher, module, rest = command.partition(" -m luban ")
    if module and launcher.startswith("torchrun "):
        return launcher + module + reduced(f"luban {rest}").removeprefix("luban ")
    words = command.split()
    if words[:1] != ["luban"] or {"--help", "--dry-run"} & set(words) or "\n" in command:
        return command
    if words[1:3] == ["run", "recipe.yaml"]:
        return f"{command} --until report {shlex.join([*QUICK, *FEWER])}"
    if words[1] == "train":
        for option, value in REDUCED_TRAIN.items():
            command = re.sub(rf"""\s{option}(=|\s+)("[^"]*"|'[^']*'|\S+)""", "", command) + f" {option} {shlex.quote(value)}"
    return command


@pytest.fixture(scope="session")
def home(quickstart, warm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("docs") / "quickstart"
    shutil.copytree(quickstart, folder)
    texts = (folder / "data" / "shakespeare.txt").read_text(encoding="utf-8").split("\n\n")
    (folder / "my_texts").mkdir()
    for number in range(40):
        (folder / "my_texts" / f"{number}.txt").write_text("\n\n".join(texts[10 * number : 10 * number + 10]), encoding="utf-8")
    rows = [{"instruction": f"Say line {number}", "input": "", "output": texts[number]} for number in range(60)]
    (folder / "log.csv").write_text("客户,客服\n" + "".join(f"问题{number},回答{number}\n" for number in range(9)), encoding="utf-8")
    turns = [{"turns": [{"who": "user", "says": f"问题{number}"}, {"who": "坐席", "says": "回答"}]} for number in range(9)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in turns), encoding="utf-8")
    (folder / "my_chats.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for page in PAGES:
        for block in blocks(page):
            if block.name:
                (folder / block.name).write_text(block.text, encoding="utf-8")
    made = Home(folder, warm)
    yield made
    made.stop()


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_and_code_run(page, home):
    failures = []
    for block in blocks(page):
        if block.language == "bash":
            todo, run = commands(block.text), home.shell
        elif block.language == "console" and block.text.removeprefix("$ ").startswith(SHOWN):
            todo, run = [block.text.strip()], home.session
        elif block.language == "console":
            todo, run = re.findall(r"^\$ (luban serve .+)$", block.text, re.MULTILINE), home.shell
        elif block.language == "python" and not block.name:
            todo, run = [without_comments(block.text)], home.python
        else:
            continue
        for text in todo:
            if text not in home.done:
                home.done[text] = run(text, cold=named(page) in COLD)
            if home.done[text]:
                failures.append(f"{block.place}: {text}\n{home.done[text]}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_sessions_are_possible(page, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for block in blocks(page):
        if block.language != "console":
            continue
        for command in re.findall(r"^\$ (.+?)(?:\s{2,}#\s.*)?$", block.text, re.MULTILINE):
            words = shlex.split(command)
            if words[0] != "luban":
                assert command in ELSEWHERE, f"{block.place}: say in ELSEWHERE which test covers {command!r}"
                continue
            verb = cli.get_command(None, words[1])
            assert verb is not None, f"{block.place}: there is no verb {words[1]!r}"
            with contextlib.suppress(SystemExit):
                verb.make_context(words[1], words[2:], resilient_parsing="clean" in words)


def test_what_is_covered_elsewhere_is_there():
    for place in ELSEWHERE.values():
        assert (ROOT / place).exists(), place


# ------------------------------------------------------------------------------------------------ recipes


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_recipes_are_valid(page, tmp_path):
    shipped = yaml.safe_load((ROOT / "src/luban/recipes/quickstart/recipe.yaml").read_text(encoding="utf-8"))
    for block in blocks(page):
        if block.language == "yaml":
            whole = _whole_recipe(parse_yaml(block.text, block.place)[0], shipped, block.place)
            spaces = find_spaces(whole, Source(block.place))
            for _, drawn in ends(spaces):  # one filling where there is no search space
                make_recipe(fill(whole, spaces, drawn), tmp_path, "docs", Source(block.place))


def _whole_recipe(given: dict, shipped: dict, place: str) -> dict:
    """A whole recipe as it is; stages, or fields of stages, put into the shipped recipe before its last stage."""
    if "stages" in given and all(isinstance(body, dict) and ("kind" in body or name in KINDS) for name, body in given["stages"].items()):
        return given
    stages = {name: dict(body) for name, body in shipped["stages"].items()}
    last = stages.pop("serve")
    for name, body in given.get("stages", given).items():
        assert isinstance(body, dict) and ("kind" in body or name in (*stages, "serve")), f"{place}: {name} is neither a stage with a kind nor a stage of the quickstart"
        if name == "serve" or body.get("kind") == "serve":
            last = body if "kind" in body else {**last, **body}
        else:
            stages[name] = body if "kind" in body else {**stages[name], **body}
    return {**shipped, "stages": {**stages, "serve": last}}


# ----------------------------------------------------------------------------------------- links and names


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_links_lead_somewhere(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"""(?:src|href)="([^"]+)\"""", text)
    for target in targets:
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path).resolve() if path else page
        assert file.exists(), f"{named(page)} links to {target}"
        assert not anchor or anchor in anchors(file), f"{named(page)} links to {target}, and there is no such heading"


@cache
def anchors(page: Path) -> set[str]:
    """GitHub's anchors of a page's headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").strip().lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for verb in re.findall(r"(?:`|^\$ |^)luban (?:--language \w+ )?([a-z][\w-]*)", text, re.MULTILINE):
        assert verb in VERBS or verb.replace("-", "_") in KINDS, f"{named(page)}: luban {verb}"
    for name in re.findall(r"\bluban\.([a-z_]+)\(", text):
        assert name in luban.__all__, f"{named(page)}: luban.{name}"
    for path, _, test in re.findall(r"`((?:tests|scripts|benchmarks|docs|src/luban|luban)/[\w./-]+?)(::(\w+))?`", text):
        file = ROOT / ("src/" + path if path.startswith("luban/") else path)
        assert file.exists(), f"{named(page)}: {path}"
        assert not test or f"def {test}(" in file.read_text(encoding="utf-8"), f"{named(page)}: {path}::{test}"


# --------------------------------------------------------------------------------------------- two languages


def code_of(page: Path) -> list[tuple[str, str, str]]:
    """Fenced blocks without their comments."""
    return [(block.language, block.name, without_comments(block.text)) for block in blocks(page)]


def headings(page: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", prose(page), re.MULTILINE)]


def test_the_two_readmes_agree():
    english, chinese = PAGES[:2]
    assert headings(english) == headings(chinese)
    assert code_of(english) == code_of(chinese)
    assert len(re.findall(r"^\|", prose(english), re.MULTILINE)) == len(re.findall(r"^\|", prose(chinese), re.MULTILINE))


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=named)
def test_every_page_has_its_chinese(page):
    chinese = ROOT / "docs" / "zh" / page.name
    assert chinese.exists()
    assert re.search(r"[\u4e00-\u9fff]{4}", prose(chinese))
    if page.name != "notebook.md":  # of which the Chinese page is a summary
        assert [block.language for block in blocks(page)] == [block.language for block in blocks(chinese)]


def test_every_page_is_listed():
    for folder in (ROOT / "docs", ROOT / "docs" / "zh"):
        listed = (folder / "README.md").read_text(encoding="utf-8")
        for page in folder.glob("*.md"):
            assert page.name == "README.md" or f"({page.name})" in listed, f"{page.relative_to(ROOT)} is not listed in {folder.name}/README.md"


def test_the_picture_is_small_and_alone():
    picture = (ROOT / "docs" / "images" / "quickstart.svg").read_text(encoding="utf-8")
    assert len(picture.encode()) < 120_000
    assert not re.search(r"""(?:href|src)=|url\((?!#)|@import""", picture)
    assert "luban" in picture and "quickstart" in picture
