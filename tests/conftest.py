"""What every test shares: the language is English, threads are few, and what the system lacks is said in one line."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import settings
from tiny import QUICK

# The same cases every time: a change is judged by what it changes. `--hypothesis-profile=default` looks for new ones.
settings.register_profile("same", derandomize=True)
settings.load_profile("same")


NEEDED = {"browser": ("chromium", "chromedriver"), "compiler": ("g++",), "mpi": ("mpirun",), "namespaces": ("unshare", "ip")}  # programs of a marker's tests
MARKERS = (*NEEDED, "gpu", "deepspeed", "libaio")
ALWAYS = ("browser", "compiler")  # where CI is set these must be there; the others' tests are slow ones


def lacking(marker: str) -> list[str]:
    """What the tests of a marker need and this machine has not."""
    if marker == "gpu":
        import torch

        return [] if torch.cuda.is_available() else ["a GPU"]
    if marker == "deepspeed":
        return [] if importlib.util.find_spec("deepspeed") else ["the extra deepspeed"]
    if marker == "libaio":
        return [] if Path("/usr/include/libaio.h").exists() else ["libaio-dev"]
    return [name for name in NEEDED[marker] if shutil.which(name) is None]


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # started in a shell's background: what tests start would not hear Ctrl-C either
        signal.signal(signal.SIGINT, signal.default_int_handler)
    missing = [name for marker in ALWAYS for name in lacking(marker)]
    if missing and os.environ.get("CI"):
        raise pytest.UsageError(f"{', '.join(missing)} must be installed for the tests that need them")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """What cannot run here is left out, and a person is told so in one line. Files with slow tests go first, so that no process is left alone with them at the end."""
    for marker in MARKERS:
        marked = [item for item in items if item.get_closest_marker(marker)]
        if marked and lacking(marker):
            items[:] = [item for item in items if item not in marked]
            config.hook.pytest_deselected(items=marked)
    slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -slow[item.path])


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for marker in MARKERS:
        if missing := lacking(marker):
            terminalreporter.write_line(f"left out: the tests marked {marker} (not here: {', '.join(missing)})")


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are fastest on one thread, and much slower on two when the machine is busy; its speed is measured with less than a person's run takes for it."""
    import torch

    from luban.training import precision

    torch.set_num_threads(1)
    precision.PROCESSOR_PRODUCT = 128


@pytest.fixture(autouse=True)
def english():
    """Messages in English, whatever the locale; a test that wants Chinese sets it."""
    from luban.foundation.messages import set_language

    set_language("en")
    yield
    set_language("en")


@pytest.fixture(scope="session")
def warm():
    """Runs `luban` commands and Python code in forked processes."""
    from warm import Warm

    made = Warm({**os.environ, "LC_ALL": "C.UTF-8"})
    yield made
    made.stop()


@pytest.fixture(scope="session")
def quickstart(tmp_path_factory: pytest.TempPathFactory):
    """A folder made by `luban new quickstart` in which the recipe was run in a reduced form, all but serving."""
    import subprocess
    import sys

    folder = tmp_path_factory.mktemp("home") / "quickstart"
    luban = [sys.executable, "-m", "luban", "--language", "en"]
    subprocess.run([*luban, "new", "quickstart", str(folder)], check=True, capture_output=True)
    ran = subprocess.run([*luban, "run", str(folder / "recipe.yaml"), "--until", "report", *QUICK], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (folder / "run.log").write_text(ran.stderr, encoding="utf-8")
    return folder
