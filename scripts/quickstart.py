"""`make quickstart`: run the shipped recipe to a served model, ask it two questions over HTTP, show the summary."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

QUESTIONS = ("Who are you?", "写一首诗，题为《春夜》")
BIN = Path(sys.executable).parent


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", default="quickstart", help="where the recipe is copied to")
    parser.add_argument("overrides", nargs="*", help="passed to luban run, for example base.length='20 steps'")
    arguments = parser.parse_args()
    folder = Path(arguments.folder)
    if not (folder / "recipe.yaml").exists():
        subprocess.run([BIN / "luban", "new", "quickstart", folder], check=True)
    begun = time.monotonic()
    command = [BIN / "luban", "run", folder / "recipe.yaml", "serve.port=0", *arguments.overrides]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, encoding="utf-8") as server:
        try:
            address = _wait_until_serving(server)
            if address is None:
                return server.wait()
            print(f"\nserving at {address} after {time.monotonic() - begun:.0f} s\n", flush=True)
            for question in QUESTIONS:
                _ask(address, question)
        finally:
            server.send_signal(signal.SIGTERM)  # drains and leaves
            server.communicate()
    subprocess.run([BIN / "luban", "show", folder / "runs" / "quickstart"], check=True)
    return 0


def _wait_until_serving(server: subprocess.Popen) -> str | None:
    """Pass on what the run prints until it names its address; None when it ends before."""
    for line in server.stderr:
        print(line, end="", file=sys.stderr, flush=True)
        if found := re.search(r"http://127\.0\.0\.1:\d+", line):
            return found.group()
    return None


def _ask(address: str, question: str) -> None:
    """Ask over HTTP and print the answer as it streams."""
    body = {"messages": [{"role": "user", "content": question}], "stream": True, "max_tokens": 96, "seed": 1}
    request = urllib.request.Request(f"{address}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    print(f"you   > {question}\nmodel > ", end="", flush=True)
    with urllib.request.urlopen(request) as answer:
        for raw in answer:
            line = raw.decode("utf-8").strip()
            if line.startswith("data: ") and line != "data: [DONE]":
                choices = json.loads(line.removeprefix("data: "))["choices"]
                text = choices[0]["delta"].get("content") or "" if choices else ""
                print("".join(letter for letter in text if letter.isprintable() or letter == "\n"), end="", flush=True)
    print("\n", flush=True)


if __name__ == "__main__":
    if os.name == "posix":
        sys.exit(main())
    sys.exit("quickstart runs on Linux and macOS; on Windows use WSL")
