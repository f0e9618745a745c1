"""Commands in processes of their own that are forked from one which has imported everything, so that a command costs what it does and
not also seconds of imports. What must be seen from a cold start (console script, signals, pipes) is started the ordinary way.

Run as a program this is the process that forks: it reads requests as JSON lines and answers each with the exit status.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

IMPORTED = (
    "torch", "rich.console", "luban.cli.stage_command", "luban.pipeline.api", "luban.pipeline.check", "luban.pipeline.card", "luban.pipeline.show",
    "luban.corpus.stage", "luban.tokenizer.stage", "luban.tokens.stage", "luban.training.stage", "luban.training.tracking", "luban.objectives.causal",
    "luban.objectives.instruction", "luban.models.decoder", "luban.evaluation.stage", "luban.inference.predictor", "luban.inference.generate", "luban.examples.reading",
)  # fmt: skip


class Warm:
    """``run`` is subprocess.run for ``luban`` with arguments (a list) or Python code (a string); one command at a time."""

    def __init__(self, environment: dict[str, str] | None = None):
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8")

    def run(self, what: list[str] | str, cwd: Path | str | None = None) -> subprocess.CompletedProcess:
        with tempfile.TemporaryDirectory() as folder:
            self.process.stdin.write(json.dumps({"what": what, "cwd": str(cwd or os.getcwd()), "folder": folder}) + "\n")
            self.process.stdin.flush()
            status = int(self.process.stdout.readline())
            output, errors = ((Path(folder) / name).read_text(encoding="utf-8", errors="replace") for name in ("1", "2"))
        return subprocess.CompletedProcess(what, status, output, errors)

    def stop(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


def serve() -> None:
    """Fork a child for each request until there are no more."""
    import contextlib
    import importlib

    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    gc.freeze()  # so that a child does not copy what was imported only to look it over
    for line in sys.stdin:
        request = json.loads(line)
        child = os.fork()
        if not child:
            os._exit(become(request))  # without taking down, one by one, what was imported and never used
        _, status = os.waitpid(child, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


def become(request: dict) -> int:
    """The child: the request's command with its folder and outputs. Returns the exit status that the interpreter would give."""
    os.chdir(request["cwd"])
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY | os.O_CREAT), (2, os.O_WRONLY | os.O_CREAT)):
        file = os.open(os.devnull if number == 0 else f"{request['folder']}/{number}", mode, 0o600)
        os.dup2(file, number)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115  (what the server has read ahead is not the child's)
    what = request["what"]
    try:
        if isinstance(what, str):
            sys.argv, sys.path[0] = ["-c"], ""
            exec(compile(what, "<string>", "exec"), {"__name__": "__main__"})
        else:
            from luban.cli.main import main

            sys.argv = ["luban", *what]
            main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    serve()
