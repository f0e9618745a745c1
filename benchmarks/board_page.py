"""How soon the board shows a run's curves, and what it sends for them, beside TensorBoard on the same runs in the same browser.

    python -m benchmarks.board_page runs/ --rounds 5

Needs chromium, chromedriver and tensorboard. In turns: the board until a curve is drawn, TensorBoard until its cards have axes (its curves come later).
"""

from __future__ import annotations

import argparse
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from selenium import webdriver

BOARD = "return document.querySelectorAll('#charts path.smooth').length > 0"
TENSORBOARD = """
function all(root, found = []) { for (const node of root.querySelectorAll('*')) { found.push(node); if (node.shadowRoot) all(node.shadowRoot, found); } return found; }
return document.querySelectorAll('scalar-card').length > 0 && all(document).some(node => node.matches('canvas') || (node.matches('path') && (node.getAttribute('d') || '').length > 200))"""
SENT = "return performance.getEntriesByType('resource').concat(performance.getEntriesByType('navigation')).reduce((sum, entry) => sum + entry.encodedBodySize, 0)"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    board = subprocess.Popen([sys.executable, "-m", "luban", "board", str(arguments.runs), "--port", "0"], stderr=subprocess.PIPE, text=True, encoding="utf-8")
    other = subprocess.Popen([str(Path(sys.executable).parent / "tensorboard"), "--logdir", str(arguments.runs), "--port", str(port), "--load_fast=false"], stderr=subprocess.DEVNULL)
    try:
        urls = {"board": next(found.group() for line in board.stderr if (found := re.search(r"http://[\d.:]+", line))), "tensorboard": f"http://127.0.0.1:{port}/#timeseries"}
        wait_for(f"http://127.0.0.1:{port}/data/runs")
        times: dict[str, list[float]] = {name: [] for name in urls}
        sent = {}
        for _ in range(arguments.rounds):
            for name, ready in (("board", BOARD), ("tensorboard", TENSORBOARD)):
                seconds, sent[name] = load(urls[name], ready)
                times[name].append(seconds)
        for name, found in times.items():
            print(f"{name}: {statistics.median(found):.2f} s (from {min(found):.2f} to {max(found):.2f}), {sent[name] / 1e3:,.0f} kB")
    finally:
        for process in (board, other):
            process.terminate()
            process.wait()


def wait_for(url: str) -> None:
    for _ in range(600):
        try:
            if len(urllib.request.urlopen(url, timeout=5).read()) > 2:  # the runs have been read
                return
        except OSError:
            pass
        time.sleep(0.1)
    raise SystemExit(f"{url} does not answer")


def load(url: str, ready: str) -> tuple[float, int]:
    """Seconds until ``ready``, with an empty cache, and the bytes that were sent."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1280,1180", "--lang=en"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.get("about:blank")
        begun = time.perf_counter()
        browser.get(url)
        while not browser.execute_script(ready) and time.perf_counter() - begun < 60:
            time.sleep(0.01)
        return time.perf_counter() - begun, browser.execute_script(SENT)
    finally:
        browser.quit()


if __name__ == "__main__":
    main()
