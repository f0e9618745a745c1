"""A finished run as the stages would leave it, small and made of plain files."""

import json
import math
import random
from pathlib import Path


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_stage(run: Path, name: str, kind: str, seconds: float, metrics: dict, **more) -> Path:
    folder = run / name
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "format": 1,
        "kind": kind,
        "name": name,
        "fingerprint": f"{name:0<16}"[:16],
        "seconds": seconds,
        "metrics": metrics,
        "licences": ["public domain", "MIT"],
        "machine": {"cpu": "Some CPU @ 2.0GHz", "cores": 2, "memory_bytes": 8 * 2**30},
        "versions": {"luban": "0.1.0", "torch": "2.13.0", "python": "3.11.9"},
        **more,
    }
    write(folder / "manifest.json", json.dumps(manifest, ensure_ascii=False))
    return folder


def training_log(steps: int = 600, start: float = 8.3, end: float = 3.4, prompts: dict | None = None) -> str:
    chance, lines = random.Random(1), []
    for step in range(1, steps + 1):
        loss = end + (start - end) * math.exp(-step / (steps / 5))
        rate = 3e-3 * min(1, step / 30) * (0.1 + 0.9 * (0.5 + 0.5 * math.cos(math.pi * step / steps)))
        entry = {"step": step, "tokens": 2048 * step, "loss": loss + chance.gauss(0, 0.09), "learning_rate": rate}
        entry |= {"gradient_norm": 1.2 * math.exp(-step / 200) + 0.4 + abs(chance.gauss(0, 0.06)), "tokens_per_second": 9000 + chance.gauss(0, 300), "peak_share": 0.4, "seconds": step * 0.25}
        lines.append(entry)
        if step % (steps // 10) == 0:
            lines.append({"step": step, "validation": {"loss": loss + 0.12, "bits_per_byte": (loss + 0.12) / 2.2}})
        if prompts and step % (steps // 4) == 0:
            lines.append({"step": step, "samples": [{"prompt": prompt, "text": texts[min(len(texts) - 1, 4 * step // steps - 1)]} for prompt, texts in prompts.items()]})
    return "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)


def score(value: float, spread: float = 0.03, unit: str = "bits/byte") -> dict:
    return {"value": value, "unit": unit, "signature": "bytes:utf8|context:256|stride:128|eot:yes|tok:1a2b3c4d|luban:0.1.0", "interval": [value - spread, value + spread]}


def results() -> dict:
    def row(name, role, all_, en, zh, **more):
        return {"name": name, "role": role, **more, "scores": {key: {"bits_per_byte": score(value, 0.03 if role != "untrained" else 0)} for key, value in (("all", all_), ("en", en), ("zh", zh))}}

    return {
        "format": 1,
        "documents": 412,
        "bytes": 104233,
        "languages": {"en": {"documents": 180, "bytes": 55000}, "zh": {"documents": 232, "bytes": 49233}},
        "rows": [
            row("untrained", "untrained", 4.61, 4.7, 4.52),
            row("3-gram", "baseline", 2.99, 2.95, 3.06, order=3),
            row("5-gram", "baseline", 2.61, 2.29, 2.98, order=5),
            row("base", "model", 2.32, 2.18, 2.49),
            row("chat", "model", 2.35, 2.2, 2.51),
        ],
        "comparisons": [
            {"before": "untrained", "after": "base", "language": "all", "difference": score(-2.29, 0.02), "within_noise": False},
            {"before": "5-gram", "after": "base", "language": "all", "difference": score(-0.29, 0.02), "within_noise": False},
            {"before": "base", "after": "chat", "language": "all", "difference": score(0.01, 0.02), "within_noise": True},
        ],
        "conversations": {
            "documents": 40,
            "rows": [{"name": name, "role": "model", "scores": {"all": {"loss": score(value, 0.1, "nats/token")}}} for name, value in (("base", 4.2), ("chat", 1.9))],
            "comparisons": [{"before": "base", "after": "chat", "language": "all", "difference": score(-2.3, 0.1, "nats/token"), "within_noise": False}],
        },
        "samples": [
            {"model": "base", "prompt": "ROMEO:", "text": "\nWhat light is this that through the morning breaks?\nI have not slept, my lord."},
            {"model": "chat", "prompt": "ROMEO:", "text": "\nI will not speak of it."},
            {"model": "base", "prompt": "春江花月夜", "text": "\n张若虚\n\n春江潮水连海平，海上明月共潮生。"},
            {"model": "chat", "prompt": "春江花月夜", "text": "\n\n月落江南客未归，春风又上柳条飞。"},
        ],
        "notes": [],
    }


DATA_CARD = {
    "format": 1,
    "records": 4039,
    "set_aside": 31,
    "splits": {"train": {"documents": 3763, "bytes": 1705519}, "validation": {"documents": 67, "bytes": 28019}, "test": {"documents": 209, "bytes": 103247}},
    "languages": {"en": {"documents": 498, "bytes": 1114379}, "zh": {"documents": 3541, "bytes": 722406}},
    "bad_lines": [],
    "duplicates": {"clusters": 6, "documents": 7, "largest": []},
}


def make_run(folder: Path) -> Path:
    """corpus → tokenizer → tokens → base → chat → numbers."""
    run = folder / "quickstart"
    names = ["corpus", "tokenizer", "tokens", "base", "chat", "numbers"]
    corpus = write_stage(run, "corpus", "curate", 11.2, {"train_documents": 3763, "train_bytes": 1705519, "records": 4039, "set_aside": 31})
    write(corpus / "card.json", json.dumps(DATA_CARD))
    write(corpus / "card.html", "<html>the data card</html>")
    write_stage(run, "tokenizer", "train_tokenizer", 2.8, {"vocabulary_size": 4096}, inputs={"data": [{"name": "corpus", "fingerprint": "corpus0000000000"}]})
    write_stage(run, "tokens", "encode", 1.9, {"tokens": 812000}, inputs={"data": [{"name": "corpus", "fingerprint": "corpus0000000000"}]})
    base = write_stage(run, "base", "train", 221.0, {"parameters": 7340032, "tokens": 1228800, "steps": 600}, inputs={"data": [{"name": "tokens", "fingerprint": "tokens0000000000"}]})
    prompts = {
        "ROMEO:": ["\nthe the of  and, I\nthe", "\nI will the king of me,\nAnd the world and", "\nWhat, my lord, shall I go hence?\n\nJULIET:\nAy, go.", "\nWhat light is this that breaks the night?\nI have not slept, my lord."],
        "静夜思\n李白\n\n": ["，，不人。。", "山人不见，一月春风。", "月落江头夜，风吹客不归。", "床前月色寒，夜半客衣单。\n故里无人问，秋风入梦残。"],
    }
    write(base / "training/log.jsonl", training_log(prompts=prompts))
    chat = write_stage(run, "chat", "train", 44.0, {"parameters": 7340032, "tokens": 190000, "steps": 160}, inputs={"model": [{"name": "base", "fingerprint": "base000000000000"}], "data": [{"name": "data/chat.jsonl"}]})
    write(chat / "training/log.jsonl", training_log(160, 4.4, 1.8, {"你好": ["你的人。", "你好，我是。", "您好，我是鲁班。", "您好，我是鲁班。要我写一首诗吗？"]}))
    preview = [[["<|im_start|>user\n你是谁？<|im_end|>\n<|im_start|>assistant\n", 0], ["我是鲁班。<|im_end|>", 1], ["\n", 0]], [["<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n", 0], ["Hi, I am Luban.<|im_end|>", 1], ["\n", 0]]]
    write(chat / "training/preview.json", json.dumps(preview, ensure_ascii=False))
    numbers = write_stage(run, "numbers", "evaluate", 9.4, {"bits_per_byte": 2.35}, inputs={"models": [{"name": "base", "fingerprint": "base000000000000"}, {"name": "chat", "fingerprint": "chat000000000000"}]})
    write(numbers / "results.json", json.dumps(results(), ensure_ascii=False))
    write(run / "recipe.resolved.yaml", "name: quickstart\nseed: 0\nstages:\n  corpus: {kind: curate, data: data/}\n")
    write(run / "run.json", json.dumps({"name": "quickstart", "stages": names, "started": "2026-01-05T10:00:00", "seconds": 3.1, "work_seconds": 290.3}))
    return run
