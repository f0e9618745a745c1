"""Generated programs: what passes, what does not, and what the limits hold back."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field

import pytest

from luban.foundation.errors import DataError
from luban.metrics.programs import assembled, program_scores, run_program

PROMPT = 'from typing import List\n\n\ndef largest(numbers: List[int]) -> int:\n    """The largest number.\n    >>> largest([1, 3, 2])\n    3\n    """'
TESTS = "METADATA = {}\n\n\ndef check(candidate):\n    assert candidate([1, 3, 2]) == 3\n    assert candidate([-1]) == -1\n"


@dataclass
class Problem:
    input: str
    output: str = ""
    controls: dict = field(default_factory=dict)


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("assert 1 + 1 == 2", ""),
        ("print('x' * 100_000)", ""),  # what it prints is thrown away
        ("assert 1 + 1 == 3", "AssertionError"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("import os; os._exit(0)", "before its end"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "before its end"),
        ("x = bytearray(2 * 10 ** 9)", "MemoryError"),
        ("open('big', 'wb').write(b'x' * 10 ** 7)", "before its end|OSError"),
        ("import os; os.write(1, b'none word'); os._exit(0)", "before its end"),
        ("import os; assert not os.environ.get('HOME') and os.listdir('.') == []", ""),
        ("\x00", "SyntaxError|ValueError"),
    ],
)
def test_a_program_passes_when_it_comes_to_its_end(source, reason):
    outcome = run_program(source, seconds=3)
    assert outcome.passed == (not reason)
    if reason:
        assert any(part in outcome.reason for part in reason.split("|")), outcome.reason


def test_time_and_children_end_with_it(tmp_path):
    begun = time.monotonic()
    assert "longer than 1 s" in run_program("import time\ntime.sleep(60)", seconds=1).reason
    marker = tmp_path / "late"
    child = f"import subprocess, sys; subprocess.Popen([{sys.executable!r}, '-c', 'import time; time.sleep(1); open({str(marker)!r}, \"w\")'])"
    run_program(child, seconds=3)
    assert not run_program("while True: pass", seconds=1).passed
    time.sleep(0.6)  # with the loop above longer than the child would have slept
    assert not marker.exists() and time.monotonic() - begun < 15


def test_the_network_is_closed_or_said_to_be_open():
    outcome = run_program("import socket\nserver = socket.socket(); server.bind(('127.0.0.1', 0)); server.listen()\nsocket.create_connection(server.getsockname(), timeout=1)")
    assert outcome.network in ("none", "open") and outcome.passed == (outcome.network == "open")


@pytest.mark.parametrize(
    "text",
    [
        "return max(numbers)",  # a body, its first line stripped as texts are
        "best = numbers[0]\n    for number in numbers:\n        if number > best:\n            best = number\n    return best",
        "def largest(numbers):\n    return sorted(numbers)[-1]",
    ],
)
def test_answers_are_put_together_with_their_question(text):
    assert run_program(assembled(PROMPT, text, TESTS, "largest")).passed
    assert not run_program(assembled(PROMPT, text.replace("max", "min").replace("[-1]", "[0]").replace(">", "<"), TESTS, "largest")).passed


def test_pass_at_one_is_the_share_of_problems_that_pass():
    problems = [Problem(PROMPT, controls={"test": TESTS, "entry_point": "largest"})] * 3 + [Problem("def f():", controls={"tests": "assert f() == 1"}), Problem("untested")]
    answers = [{"text": "return max(numbers)"}, {"text": "return numbers[0]"}, {"text": ""}, {"text": "return 1"}, {"text": "x"}]
    scores = program_scores(answers, problems)
    assert next(iter(scores)) == "pass@1" and scores["pass@1"].value == 0.5
    with pytest.raises(DataError, match="no example has tests"):
        program_scores(answers[:1], problems[-1:])
