"""The pictures in docs/board.md: two short trainings of the quickstart, with Muon and with AdamW, on a real board in headless Chromium.

    python scripts/board_picture.py                 # some minutes; needs chromium and chromedriver
    python scripts/board_picture.py --runs FOLDER   # of runs that are there already
"""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.support.ui import WebDriverWait

IMAGES = Path(__file__).resolve().parent.parent / "docs" / "images"
LUBAN = [sys.executable, "-m", "luban", "--language", "en"]
REDUCED = ("base.depth=2", "base.length=500k tokens", "base.track.alerts.throughput=0.9")
WIDTH, HEIGHT = 1280, 1180


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, help="a folder with at least two runs; none: they are made")
    parser.add_argument("--out", type=Path, default=IMAGES, help="where board.png and board-zh.png go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        runs = arguments.runs or make_runs(Path(folder))
        board = subprocess.Popen([*LUBAN, "board", str(runs), "--port", "0"], stderr=subprocess.PIPE, text=True, encoding="utf-8")
        try:
            url = next(found.group() for line in board.stderr if (found := re.search(r"http://[\d.:]+", line)))
            take(url, "en", "light", arguments.out / "board.png")
            take(url, "zh", "dark", arguments.out / "board-zh.png")
        finally:
            board.terminate()
            board.communicate()


def make_runs(folder: Path) -> Path:
    subprocess.run([*LUBAN, "new", "quickstart", str(folder / "quickstart")], check=True)
    for optimizer in ("muon", "adamw"):
        command = [*LUBAN, "run", str(folder / "quickstart" / "recipe.yaml"), "--until", "base", "--out", str(folder / "runs" / optimizer)]
        subprocess.run([*command, *REDUCED, f"base.optimizer.name={optimizer}"], check=True)
    return folder / "runs"


def take(url: str, language: str, theme: str, file: Path) -> None:
    """One picture of the page, as a window of this size shows it, with the first two runs laid over each other."""
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}", f"--lang={language}"):
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    try:
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", {"width": WIDTH, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False})
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": theme}]})
        browser.get(f"{url}/?lang={language}")
        wait = WebDriverWait(browser, 60, poll_frequency=0.1)
        wait.until(lambda _: browser.execute_script("return document.body.dataset.ready"))
        browser.execute_script("[...document.querySelectorAll('#runs input:not(:checked)')].slice(0, 1).forEach(box => box.click())")
        wait.until(lambda _: browser.execute_script("return document.querySelectorAll('#charts figure:first-child path.smooth').length") == 2)
        browser.save_screenshot(str(file))
    finally:
        browser.quit()
    print(f"{file}: {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
