"""Which method of adapting learns best, on the data that ships: `python -m benchmarks.methods [--encoder DIR] [--only SET,…] [--seeds 3]`.

Each set is one `luban compare` of a shipped recipe: the same base, examples, steps and order for every method, learning rates left at `auto`,
the last weights scored on the recipe's test file, which nothing was chosen by. `--table` prints what is in the results folder and runs nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RECIPES = ROOT / "src" / "luban" / "recipes"
METHODS = "full,lora,dora,adalora,vera,ia3,houlsby,bitfit,prefix,p_tuning,prompt"
SCORED = "validation={share: 0, every: 100000 steps, restore_best: false, maximum_examples: 2000}"
# set: recipe, stage, what is said of it in both languages, what is changed; {data} is the recipe's data folder, {encoder} the one on the command line
SETS: dict[str, tuple[str, str, tuple[str, str], list[str]]] = {
    "sentiment": (
        "sentiment", "sentiment", ("English: 560 sentences of reviews, MiniLM (22.7M, 6 layers)", "英文：560 句影评，MiniLM（22.7M，6 层）"),
        ["sentiment.validation_data={data}/test.csv.gz", f"sentiment.{SCORED}", "sentiment.optimizer.learning_rate=auto"],
    ),
    "topics-zh": (
        "topics-zh", "topics", ("Chinese: 650 titles of papers, 13 subjects, multilingual-e5-small (12 layers)", "中文：650 个论文标题，13 个学科，multilingual-e5-small（12 层）"),
        [
            "topics.validation_data={data}/test.tsv.gz", f"topics.{SCORED}", "topics.optimizer.learning_rate=auto", "topics.model={encoder}", "topics.shape={}",
            "topics.length=4 epochs", "topics.regularization={}",
        ],
    ),
    "chat": ("quickstart", "chat", ("English and Chinese: 1,771 short conversations, the quickstart's base (4 layers)", "中英文：1771 段短对话，快速上手的基座（4 层）"), ["chat.samples.prompts=[]"]),
}  # fmt: skip
WORDS = {
    "en": ("method", "score", "learns", "peak memory", "seconds", "on disk", "rate", "forgotten (bits a byte)", "before training"),
    "zh": ("方法", "得分", "参与学习", "内存峰值", "秒", "磁盘占用", "学习率", "遗忘（比特每字节）", "训练前"),
}


def run(name: str, asked: argparse.Namespace) -> None:
    """One comparison, its results copied to the results folder."""
    recipe, stage, _, changes = SETS[name]
    values = {"data": RECIPES / recipe / "data", "encoder": asked.encoder}
    folder = asked.work / name
    command = [sys.executable, "-m", "luban.cli.main", "compare", str(RECIPES / recipe / "recipe.yaml"), *(filled(change, values) for change in changes)]
    command += [f"{stage}.threads={asked.threads}", "--methods", asked.methods, "--seeds", str(asked.seeds), "--stage", stage, "--out", str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": str(asked.threads)})
    found = json.loads((folder / "compare" / "results.json").read_bytes())
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / f"{name}.json").write_text(json.dumps({"seeds": asked.seeds, "threads": asked.threads, **found}, indent=1) + "\n", encoding="utf-8")


def filled(change: str, values: dict[str, object]) -> str:
    """An override with its places filled; other braces are YAML's."""
    for name, value in values.items():
        change = change.replace(f"{{{name}}}", str(value))
    return change


def table(out: Path, language: str) -> str:
    """A Markdown table a set, best first."""
    words, parts = WORDS[language], []
    for name, (_, _, said, _) in SETS.items():
        if not (out / f"{name}.json").exists():
            continue
        found = json.loads((out / f"{name}.json").read_bytes())
        good = sorted((one for one in found["candidates"] if not one["error"]), key=lambda one: -one["value"] if found["greater_is_better"] else one["value"])
        forgets = any(one["general"] for one in good)
        before = next((one["before"] for one in good if one["before"] is not None), None)
        head = [words[0], found["metric"], *words[2:7], *([words[7]] if forgets else [])]
        start = f" ({words[8]}: {before:.3f})" if before is not None else ""
        lines = [f"**{said[language == 'zh']}**{start}", "", "| " + " | ".join(head) + " |", "|" + " --- |" * len(head)]
        lines += ["| " + " | ".join(row(one, forgets)) + " |" for one in good]
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def row(one: dict[str, Any], forgets: bool) -> list[str]:
    deviation = f" ± {one['deviation']:.3f}" if one["deviation"] is not None else ""
    learn = f"{one['learning_parameters']:,} ({min(1.0, one['learning_parameters'] / max(1, one['parameters'])):.2%})"
    cells = [one["name"], f"{one['value']:.3f}{deviation}", learn, f"{one['peak_memory_bytes'] / 1e6:.0f} MB", f"{one['training_seconds']:.0f}", f"{one['saved_bytes'] / 1e6:.2f} MB", f"{one['learning_rate']:g}" if one["learning_rate"] else "–"]
    return cells + ([f"{one['general'][1] - one['general'][0]:+.3f}" if one["general"] else "–"] if forgets else [])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.methods", description=__doc__.splitlines()[0])
    parser.add_argument("--encoder", type=Path, help="a multilingual encoder's directory, for topics-zh")
    parser.add_argument("--only", default="", help="sets with commas between; by default all that can run")
    parser.add_argument("--methods", default=METHODS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-methods"))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "methods" / "results")
    parser.add_argument("--table", action="store_true", help="print the tables of what is in --out, and run nothing")
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    asked = parser.parse_args()
    if asked.table:
        print(table(asked.out, asked.language))
        return 0
    for name in [part for part in asked.only.split(",") if part] or [name for name in SETS if name != "topics-zh" or asked.encoder]:
        run(name, asked)
    print(table(asked.out, "en"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
