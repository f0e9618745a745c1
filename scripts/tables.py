"""Put the benchmarks' results into the documentation: `python scripts/tables.py [PAGES]`.

A page says `<!-- table: NAME -->` … `<!-- /table -->`; what stands between is made from the results that are kept beside each benchmark. A test holds that the pages are up to date.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.methods.__main__ import table as methods  # noqa: E402
from benchmarks.tasks import ablation  # noqa: E402
from benchmarks.tasks.table import table as tasks  # noqa: E402
from benchmarks.throughput.__main__ import tables as throughput  # noqa: E402

BENCHMARKS = ROOT / "benchmarks"
TABLES: dict[str, Callable[[str], str]] = {
    "tasks": lambda language: tasks(BENCHMARKS / "tasks" / "results", language),
    "ablation": lambda language: ablation.table(ablation.read(BENCHMARKS / "tasks" / "results" / "ablation.jsonl"), language),
    "throughput": lambda language: throughput(BENCHMARKS / "throughput" / "results", language),
    "methods": lambda language: methods(BENCHMARKS / "methods" / "results", language),
}
PLACE = re.compile(r"(<!-- table: (\w+) -->\n)(?:.*?\n)??(<!-- /table -->)", re.DOTALL)  # with nothing between at first


def pages() -> list[Path]:
    """The pages that show results."""
    return [page for page in sorted((ROOT / "docs").rglob("*.md")) if PLACE.search(page.read_text(encoding="utf-8"))]


def filled(page: Path) -> str:
    """A page's text with its tables made anew."""
    language = "zh" if "zh" in page.parts else "en"
    return PLACE.sub(lambda found: found[1] + TABLES[found[2]](language).strip() + "\n" + found[3], page.read_text(encoding="utf-8"))


if __name__ == "__main__":
    for one in map(Path, sys.argv[1:]) if sys.argv[1:] else pages():
        one.write_text(filled(one), encoding="utf-8")
