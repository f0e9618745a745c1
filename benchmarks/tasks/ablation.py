"""What makes small data go further, tool by tool: slices of 500 real examples, five seeds, each tool against plain tuning on the same slice.

    python -m benchmarks.tasks.ablation --data DIR --model minilm=DIR --model e5=DIR [--out FILE.jsonl] [--sets …] [--tools …]
    python -m benchmarks.tasks.ablation --out FILE.jsonl --table [--language zh]

Each line of the output is one run, written when it ends: a stopped table goes on where it was. Every run has the same number of steps; its
slice, its new head and its order are the seed's. The difference of a tool is paired by seed, its interval is Student's t over the seeds.
Tools that choose by validation hold out a fifth of the 500; all others learn from all of them. Test examples are never looked at in training.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

SLICE, TEST, LONGEST_SECONDS = 500, 500, 120.0
EPOCHS, BATCH, MEMBERS = 3, 16, 3
SETS = {"sentiment-en": (64, "minilm", 5e-5), "sentiment-zh": (64, "bert-zh", 1e-3)}  # rows of the table of tasks: how many tokens are read, the model that is tuned, the rate
QUICK = ("plain", "dropout 0.2", "layer_decay 0.8", "restore_best", "mixup", "fgm")


def tools() -> dict[str, dict[str, Any]]:
    """What each tool adds to the train stage; ``augment`` is a stage before it, ``ensemble`` one after three runs of it with other seeds. "{…}" are steps, shares of the run."""
    regularization = {
        "dropout 0": {"dropout": 0.0}, "dropout 0.2": {"dropout": 0.2}, "l1": {"l1": 1e-6}, "layer_decay 0.8": {"layer_decay": 0.8}, "layer_decay 0.9": {"layer_decay": 0.9},
        "head_rate 10": {"head_rate": 10.0}, "freeze embeddings": {"freeze": ["embeddings"]}, "freeze trunk": {"freeze": ["trunk"]}, "freeze layers:2": {"freeze": ["layers:2"]},
        "unfreeze_every": {"unfreeze_every": "10 steps"}, "average exponential": {"average": "exponential", "average_decay": 0.95}, "r_drop": {"r_drop": 1.0}, "mixup": {"mixup": 0.2},
        "neftune": {"neftune": 5.0}, "curriculum": {"curriculum": 0.5},
        "fgm": {"adversarial": {"method": "fgm"}}, "pgd": {"adversarial": {"method": "pgd", "steps": 2}}, "freelb": {"adversarial": {"method": "freelb", "steps": 2}},
        "smart": {"adversarial": {"method": "smart"}},
    }  # fmt: skip
    chosen = {"share": 0.2, "every": "{tenth}"}
    return {
        "plain": {},
        **{name: {"regularization": fields} for name, fields in regularization.items()},
        "weight_decay 0": {"optimizer": {"weight_decay": 0.0}},
        "weight_decay 0.1": {"optimizer": {"weight_decay": 0.1}},
        "label_smoothing": {"objective": {"label_smoothing": 0.1}},
        "restore_best": {"validation": {**chosen, "restore_best": True}},
        "early stopping": {"validation": {**chosen, "restore_best": True, "patience": 4}},
        "average validations": {"validation": {**chosen, "restore_best": False}, "regularization": {"average": "validations", "average_last": 3}},
        "augment eda": {"augment": {"eda": {"copies": 1, "operations": ["delete", "swap"]}}},
        "augment homophones": {"augment": {"eda": {"copies": 0}, "homophones": {"copies": 1}}},
        "ensemble average": {"ensemble": {"how": "average"}},
        "ensemble vote": {"ensemble": {"how": "vote"}},
    }


def recipe(row: Any, fields: dict[str, Any], files: tuple[Path, Path], mapping: dict[str, Any], steps: int, model: Path, seed: int, threads: int) -> dict[str, Any]:
    """The recipe of one run."""
    from benchmarks.tasks.luban_side import tuning

    made = tuning(row, *files, mapping, {"model": str(model)}, threads, seed)
    stage = made["stages"]["tuned"] | {"length": f"{steps} steps"}
    fields = json.loads(json.dumps(fields).replace("{tenth}", f"{max(1, steps // 10)} steps"))
    augment = fields.pop("augment", None)
    if "share" in fields.get("validation", {}):
        stage.pop("validation_data")
        fields["validation"]["maximum_examples"] = 2000
    for name, value in fields.items():
        stage[name] = {**stage.get(name, {}), **value} if isinstance(value, dict) else value
    if augment is None:
        return {**made, "stages": {"tuned": stage}}
    first = {"kind": "augment", "data": str(files[0]), "task": row.task, "mapping": mapping, **augment}
    return {**made, "stages": {"augmented": first, "tuned": {**stage, "data": "augmented"}}}


def one(row: Any, tool: str, seed: int, asked: argparse.Namespace, models: dict[str, Path]) -> dict[str, Any]:
    """Train and score one run."""
    import luban
    from benchmarks.tasks import clock, data
    from benchmarks.tasks.duel import answers
    from luban.metrics.tasks import score_task
    from luban.objectives.base import load_objective
    from luban.objectives.config import NAMES

    size = SLICE if not asked.quick else 40
    pool, test = data.slices(row, asked.data, size * asked.seeds)
    chosen = pool[(seed - 1) * size : seed * size]
    folder = asked.work / f"{row.name} {tool} {seed}".replace(" ", "_").replace(":", "_")
    shutil.rmtree(folder, ignore_errors=True)
    training, mapping = data.write(chosen, folder / "train.jsonl", row.task)
    validation, mapping = data.write(chosen[:8], folder / "validation.jsonl", row.task)
    steps = max(3, math.ceil(row.epochs * size / BATCH))
    begun = time.monotonic(), time.process_time()
    fields = tools()[tool]
    ensemble = fields.pop("ensemble", None)
    seeds = [seed + 100 * number for number in range(MEMBERS if ensemble else 1)]
    made = [luban.run(recipe(row, fields, (training, validation), mapping, steps, models[row.model], each, asked.threads), out=folder / f"run-{each}")[-1] for each in seeds]
    artifact = made[0]
    if ensemble:
        together = {"kind": "ensemble", "models": [str(member.path) for member in made], **ensemble}
        artifact = luban.run({"name": "together", "stages": {"together": together}}, out=folder / "together")[-1]
    wall, processor = (sum(column) for column in zip(*(clock.read(member.path / "training") for member in made), strict=True))
    spent = time.monotonic() - begun[0], time.process_time() - begun[1]
    objective = load_objective(NAMES[row.objective["name"]](**row.objective))
    scores = score_task(row.task, answers(objective, artifact.path, test), test, labels=made[0].metrics["labels"])
    shutil.rmtree(folder)
    metric = next(iter(scores))
    return {
        "set": row.name, "tool": tool, "seed": seed, "metric": metric, "value": scores[metric].value, "examples": len(chosen), "test": len(test), "steps": steps,
        "step_seconds": [round(wall, 1), round(processor, 1)], "run_seconds": [round(value, 1) for value in spent],
    }  # fmt: skip


def interval(differences: Sequence[float]) -> tuple[float, float, float]:
    """(mean, low, high) of paired differences, 95 % by Student's t; no width for fewer than two."""
    from scipy.stats import t

    count = len(differences)
    mean = sum(differences) / count
    if count < 2:
        return mean, math.nan, math.nan
    deviation = math.sqrt(sum((value - mean) ** 2 for value in differences) / (count - 1))
    half = float(t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return mean, mean - half, mean + half


def read(file: Path) -> list[dict[str, Any]]:
    """The runs of a file; a last line that was cut off is left out."""
    lines = file.read_text(encoding="utf-8").split("\n") if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def table(runs: Sequence[dict[str, Any]], language: str = "en") -> str:
    """The Markdown table: a row a tool, for each set the mean difference from plain tuning with its interval and the time."""
    sets = list(dict.fromkeys(run["set"] for run in runs))
    known = {(run["set"], run["tool"], run["seed"]): run for run in runs}
    english, chinese = ("tool", "difference", "processor time", "helps", "hurts", "–", "plain tuning"), ("工具", "差值", "处理器时间", "有益", "有害", "–", "普通微调")
    words = {"en": english, "zh": chinese}[language]
    heads = [words[0], *(f"{name}: {word}" for name in sets for word in (words[1], words[2]))]
    lines = ["| " + " | ".join(heads) + " |", "| " + " | ".join("---" for _ in heads) + " |"]
    for tool in dict.fromkeys(run["tool"] for run in runs):
        cells = [tool if tool != "plain" else words[6]]
        for name in sets:
            seeds = [seed for (of, by, seed) in known if of == name and by == tool and (name, "plain", seed) in known]
            if not seeds:
                cells += ["–", "–"]
                continue
            own, plain = ([known[name, which, seed] for seed in seeds] for which in (tool, "plain"))
            times = sum(run["step_seconds"][1] for run in own) / max(sum(run["step_seconds"][1] for run in plain), 1e-9)
            if tool == "plain":
                mean, low, high = interval([run["value"] for run in own])
                between = "" if math.isnan(low) else f" [{low:.3f}, {high:.3f}]"
                cells += [f"{mean:.3f}{between} ({len(seeds)})", f"{sum(run['step_seconds'][1] for run in own) / len(own):.0f} s"]
                continue
            mean, low, high = interval([first["value"] - second["value"] for first, second in zip(own, plain, strict=True)])
            verdict = words[3] if low > 0 else words[4] if high < 0 else ""
            between = "" if math.isnan(low) else f" [{low:+.3f}, {high:+.3f}]"
            cells += [f"{mean:+.3f}{between} ({len(seeds)}) {verdict}".strip(), f"×{times:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tasks.ablation", description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--model", action="append", default=[], metavar="NAME=DIR")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/ablation.jsonl"))
    parser.add_argument("--work", type=Path, default=Path("runs/benchmark-ablation"))
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--tools", default="", help="names with commas between; all if empty")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="40 examples, one epoch and a few tools, to see that it runs")
    parser.add_argument("--table", action="store_true", help="print the table of what is there, and run nothing")
    parser.add_argument("--language", choices=["en", "zh"], default="en")
    asked = parser.parse_args(given)
    if asked.table:
        print(table(read(asked.out), asked.language))
        return 0
    os.environ.setdefault("OMP_NUM_THREADS", str(asked.threads))
    from benchmarks.tasks import chinese
    from benchmarks.tasks.rows import BY_NAME
    from luban.foundation.errors import LubanError

    models = {name: Path(folder).resolve() for name, _, folder in (text.partition("=") for text in asked.model)}
    asked.data, asked.work = asked.data.resolve(), asked.work.resolve()
    wanted = [name for name in asked.tools.split(",") if name] or (list(QUICK) if asked.quick else list(tools()))
    wanted = ["plain", *(name for name in wanted if name != "plain")]
    failed = 0
    asked.out.parent.mkdir(parents=True, exist_ok=True)
    done = {(run["set"], run["tool"], run["seed"]) for run in read(asked.out)}
    for seed in range(1, asked.seeds + 1):  # seed by seed, so that a stopped table has all tools
        for name in asked.sets.split(","):
            row = BY_NAME[name]
            length, model, rate = SETS.get(name, (row.length, row.model, row.rate))
            row = replace(row, test=TEST if not asked.quick else 40, epochs=1 if asked.quick else EPOCHS, batch=BATCH, length=length, model=model, rate=rate)
            if model == chinese.NAME and model not in models:
                models[model] = chinese.pretrained(asked.data, asked.work, asked.threads, 1)
            for tool in wanted:
                if (name, tool, seed) in done or (tool == "augment homophones" and not name.endswith("-zh")):
                    continue
                try:
                    run = one(row, tool, seed, asked, models)
                except LubanError as error:
                    print(f"{name} {tool} seed {seed}: {error.text()}", file=sys.stderr, flush=True)
                    failed += 1
                    continue
                with asked.out.open("a", encoding="utf-8") as stream:
                    stream.write(json.dumps(run, ensure_ascii=False) + "\n")
                late = " (longer than two minutes)" if run["run_seconds"][1] > LONGEST_SECONDS else ""
                print(f"{name} {tool} seed {seed}: {run['value']:.4f} in {run['run_seconds'][1]:.0f} s of processor time{late}", flush=True)
    print(table(read(asked.out), asked.language))
    return failed


if __name__ == "__main__":
    sys.exit(main())
