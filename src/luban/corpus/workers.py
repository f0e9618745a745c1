"""Doing the units of a phase, here or in several processes; the result does not depend on how many.

A worker is started as a program of its own rather than forked or spawned: forking a process with threads is not
safe, and spawning would run the user's script again. It takes the numbers of units on its standard input and ends with it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import luban
from luban.foundation.errors import ConfigError, DataError, Interrupted, LubanError

_ERRORS = {cls.__name__: cls for cls in (LubanError, ConfigError, DataError, Interrupted)}
_BOOT = "import sys; sys.path.insert(0, sys.argv[1]); from luban.corpus.workers import serve; serve(sys.argv[2], sys.argv[3])"


def handler(phase: str, working: Path) -> Callable[[int], None]:
    """The function that does one unit of a phase: ``clean`` or ``write``."""
    if phase == "clean":
        from luban.corpus.clean import Cleaner

        return Cleaner.load(working).clean
    from luban.corpus.write import Writer

    return Writer.load(working).write


def do_units(phase: str, working: Path, units: Sequence[int], processes: int) -> Iterator[int]:
    """Do the units, giving the number of each when it is done. Raises the error that a unit ended with."""
    if processes <= 1 or len(units) <= 1:
        if units:
            do = handler(phase, working)
            for unit in units:
                do(unit)
                yield unit
        return
    yield from _in_processes(phase, working, units, min(processes, len(units)))


def _in_processes(phase: str, working: Path, units: Sequence[int], processes: int) -> Iterator[int]:
    package = str(Path(luban.__file__).parent.parent)
    command = [sys.executable, "-P", "-c", _BOOT, package, phase, str(working)]
    workers = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) for _ in range(processes)]
    waiting = list(reversed(units))
    answers: list[tuple[int, dict[str, Any] | None]] = []
    answered = threading.Condition()

    def listen(index: int) -> None:
        stream = workers[index].stdout
        assert stream is not None
        for line in iter(stream.readline, b""):
            with answered:
                answers.append((index, json.loads(line)))
                answered.notify()
        with answered:
            answers.append((index, None))
            answered.notify()

    threads = [threading.Thread(target=listen, args=(index,), daemon=True) for index in range(processes)]
    try:
        for index, thread in enumerate(threads):
            thread.start()
            _hand_out(workers[index], waiting)
        done = 0
        while done < len(units):
            with answered:
                while not answers:
                    answered.wait()
                index, answer = answers.pop(0)
            if answer is None:
                raise LubanError(
                    "a worker process ended (exit code {code})", "it may have run out of memory", "run the same command again: it continues; fewer workers need less memory", code=workers[index].wait()
                )
            if "error" in answer:
                raise _ERRORS.get(answer["error"], LubanError)(*answer["parts"], **answer["values"])
            done += 1
            yield answer["unit"]
            _hand_out(workers[index], waiting)
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
            assert worker.stdin is not None and worker.stdout is not None
            worker.stdin.close()
        for thread, worker in zip(threads, workers, strict=True):
            if thread.ident:
                thread.join()
            worker.stdout.close()  # type: ignore[union-attr]


def _hand_out(worker: subprocess.Popen, waiting: list[int]) -> None:
    if waiting and worker.stdin is not None:
        worker.stdin.write(f"{waiting.pop()}\n".encode())


def serve(phase: str, working: str) -> None:
    """The worker's side: do the units named on standard input, one a line, until it ends."""
    answers = sys.stdout.buffer
    sys.stdout = sys.stderr  # what a user's filter prints must not mix with the answers

    def answer(value: dict[str, Any]) -> None:
        answers.write(json.dumps(value, default=str).encode() + b"\n")
        answers.flush()

    try:
        do = handler(phase, Path(working))
        for line in sys.stdin.buffer:
            do(int(line))
            answer({"unit": int(line)})
    except LubanError as error:
        answer({"error": type(error).__name__, "parts": [error.what, error.why, error.fix], "values": error.values})
