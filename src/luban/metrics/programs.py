"""Generated programs, run against tests: each in a process of its own with limits on time, memory, files and processes.

**What this is, and is not.** It executes code that a model wrote. The child process gets an empty environment, an empty folder of its own,
limits that it cannot raise (processor time, memory, size of a written file, open files), a wall clock that kills it with all its children, and where the
system allows it to an unprivileged user, no network (Linux: a network namespace without devices). It can still read the files that you can read. Against carelessness that is
enough; against malice it is not: run the whole evaluation in a container or a virtual machine then. Nothing here runs unless the
config says ``run_code: true``.

A program passes when it comes to its end: every assertion held, and nothing exited early. pass@1 is the share of problems whose program passes (Chen et al. 2021, arXiv:2107.03374).
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from luban.foundation.errors import DataError, LubanError
from luban.metrics.counts import check_pairs
from luban.metrics.resampling import means, scores
from luban.metrics.score import Score

# Control columns that hold tests or the name of the function asked for: they are for the one who checks, not for the model.
TESTS = ("test", "tests", "测试")
ENTRY_POINT = "entry_point"
HIDDEN_CONTROLS = (*TESTS, ENTRY_POINT)
SECONDS, MEMORY_BYTES = 5.0, 512 * 2**20
_FILE_BYTES = 2**20

# Runs in the child, before and around the program: the limits are hard ones, so that the program cannot lift them. That the end was
# reached is said by a word that the program was not given, on a descriptor that its prints do not go to.
_RUNNER = """
import os, resource, sys
word, seconds, memory, largest = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
sys.argv[1:] = []
network = "open"
if sys.platform == "linux":
    import ctypes
    CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
    if ctypes.CDLL(None).unshare(CLONE_NEWUSER | CLONE_NEWNET) == 0:
        network = "none"
for name, value in (("CPU", seconds), ("AS", memory), ("FSIZE", largest), ("NOFILE", 64), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
source = sys.stdin.buffer.read().decode("utf-8")
said = os.dup(1)
silent = os.open(os.devnull, os.O_WRONLY)
os.dup2(silent, 1)
os.dup2(silent, 2)
try:
    exec(compile(source, "program", "exec"), {"__name__": "__main__"})
    answer = word
except BaseException as error:
    answer = "error " + type(error).__name__ + ": " + str(error)[:200]
os.write(said, (network + " " + answer).encode("utf-8", "replace"))
os._exit(0)
"""


@dataclass(frozen=True)
class Outcome:
    """Whether a program came to its end, why not ("" if it did), and whether it was kept from the network."""

    passed: bool
    reason: str = ""
    network: str = "open"


def run_program(source: str, seconds: float = SECONDS, memory_bytes: int = MEMORY_BYTES) -> Outcome:
    """Run a Python program and see whether it comes to its end. Raises LubanError on systems without resource limits."""
    if os.name != "posix":
        raise LubanError(
            "run_code: programs are run on Linux and macOS only", "this system has no resource limits for processes",
            "run the evaluation in WSL or a container",
        )  # fmt: skip
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="luban-program-") as folder:
        command = [sys.executable, "-I", "-c", _RUNNER, word, str(max(1, round(seconds))), str(memory_bytes), str(_FILE_BYTES)]
        process = subprocess.Popen(command, cwd=folder, env={}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True)
        try:
            said, _ = process.communicate(source.encode("utf-8", "replace"), timeout=seconds + 1)
        except subprocess.TimeoutExpired:
            return Outcome(False, f"it ran longer than {seconds:g} s")
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it started, too
            process.stdout.close()
            process.wait()
    network, _, answer = said.decode("utf-8", "replace").partition(" ")
    if answer == word:
        return Outcome(True, "", network)
    return Outcome(False, answer.removeprefix("error ") or "it ended before its end", network or "open")


def assembled(prompt: str, text: str, tests: str, entry_point: str = "") -> str:
    """The whole program: what was asked, what was written, and the tests (with HumanEval's ``check(entry_point)`` where they define it).

    An answer that repeats the function stands alone; one that goes on a function's body gets back the indentation that its first line lost.
    """
    last = next((line for line in reversed(prompt.splitlines()) if line.strip()), "")
    indent = last[: len(last) - len(last.lstrip())] or "    "
    whole = [text] if entry_point and f"def {entry_point}" in text else []
    candidates = [*whole, f"{prompt}\n{text}", f"{prompt}\n{indent}{text}"]
    chosen = next((one for one in candidates if _compiles(one)), candidates[-1])
    call = f"\ncheck({entry_point})" if entry_point and "def check(" in tests else ""
    return f"{chosen}\n\n{tests}{call}\n"


def _compiles(source: str) -> bool:
    """Whether it compiles, nothing run; a ``return`` outside a function does not."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(source, "program", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True


def program_scores(predictions: Sequence[Mapping[str, Any]], examples: Sequence[Any], seed: int = 0) -> dict[str, Score]:
    """``pass@1`` over the examples whose controls have tests, and ``network_open``: the share of runs that could reach the network.

    Raises DataError where no example has tests.
    """
    check_pairs(predictions, examples)
    passed, opened = np.full(len(examples), np.nan), np.full(len(examples), np.nan)
    for number, (said, example) in enumerate(zip(predictions, examples, strict=True)):
        tests = next((example.controls[name] for name in TESTS if example.controls.get(name)), "")
        if tests:
            source = assembled(example.input, said.get("text") or "", tests, example.controls.get(ENTRY_POINT, ""))
            outcome = run_program(source)
            passed[number], opened[number] = outcome.passed, outcome.network == "open"
    if np.isnan(passed).all():
        raise DataError(
            "run_code: no example has tests to run", "", "name their column as a control, such as mapping: {{controls: {{test: test}}}}",
        )  # fmt: skip
    facts = {"seconds": SECONDS, "memory": MEMORY_BYTES // 2**20}
    return scores(means({"pass@1": passed, "network_open": opened}, {"pass@1": "", "network_open": ""}, facts), seed)
