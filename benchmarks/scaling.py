"""How well `luban scaling` foretells: four small models and one four times larger, one epoch of the data, three seeds; the miss beside that of the forecast that nothing changes.

``python -m benchmarks.scaling --data A.txt B.txt.gz --out DIR`` with 5 to 10 MB of text; what is made there is not made again. It ends with status 1 where the forecast misses by half of that or more.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import yaml

from luban.tuning.scaling import scaling


def recipe(data: list[str], vocabulary: int, layers: int, width: int, step: int) -> dict:
    """A recipe whose model is the large one: heads of 32, rows of 256 tokens, Muon, one epoch."""
    return {
        "name": "scaling", "seed": 1,
        "stages": {
            "corpus": {"kind": "curate", "sources": [str(Path(file).resolve()) for file in data], "workers": 1, "split": {"validation": 0.04}},
            "tokenizer": {"kind": "train_tokenizer", "corpus": "corpus", "vocabulary_size": vocabulary},
            "tokens": {"kind": "encode", "corpus": "corpus", "tokenizer": "tokenizer"},
            "base": {
                "kind": "train", "objective": "causal", "data": "tokens", "depth": layers, "shape": {"hidden_size": width, "head_dim": 32, "heads": width // 32}, "sequence_length": 256, "batch_tokens": step,
                "length": "1 epochs", "optimizer": {"name": "muon"}, "schedule": {"shape": "linear", "final": 0.01}, "threads": 1,
            },
        },
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", nargs="+", required=True, help="files of text, 5 to 10 MB together")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--vocabulary", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--step-tokens", type=int, default=2048)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--ladder", type=int, default=4)
    parser.add_argument("--tokens", choices=["same", "proportional"], default="same")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file = asked.out / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe(asked.data, asked.vocabulary, asked.layers, asked.width, asked.step_tokens), sort_keys=False), encoding="utf-8")
    found = scaling(file, [], ladder=asked.ladder, seeds=asked.seeds, tokens=asked.tokens, check=True, out=asked.out / asked.tokens)
    check = found.plain()["check"]
    print(json.dumps({"sizes": [rung.size for rung in (*found.rungs, found.target)], "naive": found.naive, "forecast": found.forecast.loss, "low": found.forecast.low, "high": found.forecast.high, **check}, indent=1))
    sys.exit(0 if check["miss"] < 0.5 * check["naive_miss"] else 1)


if __name__ == "__main__":
    main()
