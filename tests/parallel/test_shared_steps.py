"""What is drawn, written or judged for a whole step is the same on every rank: answers of GRPO, partners of mixup, rounding to bfloat16, folds."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from resume_lab import FIXED, case
from torchrun_lab import differs, follow

import luban
from luban.models.huggingface import load_model
from luban.training.randomness import seed_all
from luban.training.retention import saved

JUDGE = """
import json, os
from pathlib import Path
def score(prompts, completions, columns):
    with (Path(__file__).parent / f"said-{os.environ.get('RANK', 'alone')}.jsonl").open("a") as file:
        for prompt, text in zip(prompts, completions):
            file.write(json.dumps([prompt, text]) + "\\n")
    return [min(sum(letter == "e" for letter in text), 8) / 8 for text in completions]
"""


OWN = """
import hashlib, os
from pathlib import Path
from luban.objectives.causal import Causal
from luban.objectives.config import CausalConfig
class Own(Causal):
    def __init__(self):
        super().__init__(CausalConfig())
    def prepare_step(self, batch, model, share_out):
        digest = hashlib.sha256()
        for value in model.state_dict().values():
            digest.update(value.float().numpy().tobytes())
        with (Path(__file__).parent / f"weights-{os.environ.get('RANK', 'alone')}.txt").open("a") as file:
            print(digest.hexdigest(), file=file)
        return super().prepare_step(batch, model, share_out)
"""


def judged(folder: Path, fields: dict[str, Any], name: str, **more: Any) -> dict[str, Any]:
    """The fields with a reward that writes down every answer it is shown, beside itself."""
    (folder / f"judge-{name}").mkdir()
    (folder / f"judge-{name}" / "own.py").write_text(JUDGE)
    return {**fields, "objective": {**fields["objective"], "rewards": [f"{folder / f'judge-{name}' / 'own.py'}:score"]}, **more, "out": folder / name}


def said(folder: Path, name: str) -> list[list[str]]:
    """The answers that each process was shown."""
    return [file.read_text().splitlines() for file in sorted((folder / f"judge-{name}").glob("said-*"))]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: value.detach() for name, value in load_model(folder).named_parameters()}


@pytest.mark.slow
def test_answers_and_partners_are_the_same_in_two_processes(tmp_path):
    """GRPO with steps of three prompts, and of one, so that a rank has none; stopped by two ranks between two updates on the same answers, and gone on with by one. Mixup of an odd number of rows."""
    for name in ("grpo", "mixup"):
        (tmp_path / name).mkdir()
    grpo = {**FIXED, **case(tmp_path / "grpo", "grpo"), "batch_examples": 3, "length": "4 steps", "checkpoint": {"every": "3 steps", "permanent": "3 steps"}, "regularization": {"dropout": 0.0}}
    few = {"batch_examples": 1, "length": "2 steps"}
    mixup = {**FIXED, **case(tmp_path / "mixup", "classification"), "batch_examples": 5, "length": "4 steps", "regularization": {"dropout": 0.0, "mixup": 0.5}, "micro_batch_rows": 2}
    luban.train(**judged(tmp_path, grpo, "one"))
    luban.train(**judged(tmp_path, grpo, "one-few", **few))
    luban.train(**mixup, out=tmp_path / "one-mixup")
    luban.train(**{**mixup, "micro_batch_rows": 10}, out=tmp_path / "whole-mixup")
    halves = judged(tmp_path, grpo, "two", length="3 steps")
    runs = [halves, judged(tmp_path, grpo, "two-few", **few), {**mixup, "out": tmp_path / "two-mixup"}]
    assert follow(tmp_path, 2, [], runs)["runs"] == ["", "", ""]
    written = [sorted(sum(said(tmp_path, name), [])) for name in ("one-few", "two-few")]
    assert written[0] == written[1] and len(said(tmp_path, "two-few")) == 2
    assert min(map(len, said(tmp_path, "two"))) > 0.3 * sum(map(len, said(tmp_path, "two"))), "both wrote"
    assert [folder.name for folder in saved(tmp_path / "two/training")] == ["step-00000003"]
    luban.train(**{**halves, "length": "4 steps"})
    for one, other in (("one", "two"), ("one-few", "two-few"), ("one-mixup", "two-mixup"), ("one-mixup", "whole-mixup")):
        if one != "one":  # it has one validation more, where it was stopped
            assert differs(tmp_path / one, tmp_path / other) == [], other
        torch.testing.assert_close(weights(tmp_path / other), weights(tmp_path / one), rtol=1e-3, atol=2e-5)


def test_every_rank_draws_numbers_of_its_own_and_the_first_those_of_one_process():
    drawn = []
    for seed in (0, 1, 7):
        for rank in range(4):
            seed_all(seed, rank)
            drawn.append((float(torch.rand(())), float(numpy.random.rand()), random.random()))
        seed_all(seed)
        assert (float(torch.rand(())), float(numpy.random.rand()), random.random()) == drawn[-4]
    assert all(len(set(column)) == len(column) for column in zip(*drawn, strict=True))


@pytest.mark.long
def test_rounding_folds_and_shards_of_mixed_rows_in_two_processes(tmp_path):
    """Weights in bfloat16 have the same bits on both ranks before every step."""
    for name in ("narrow", "folds"):
        (tmp_path / name).mkdir()
    (tmp_path / "own.py").write_text(OWN)
    narrow = {**FIXED, **case(tmp_path / "narrow", "causal"), "objective": f"{tmp_path / 'own.py'}:Own", "weights": "bfloat16", "optimizer": {"name": "lion", "learning_rate": 1e-3}, "micro_batch_rows": 1}
    labelled = {**FIXED, **case(tmp_path / "folds", "classification"), "batch_examples": 5, "length": "4 steps"}
    folds = {**labelled, "validation": {"folds": 3, "every": "2 steps"}, "regularization": {"dropout": 0.0}}
    mixup = {**labelled, "regularization": {"dropout": 0.0, "mixup": 0.5}}
    for name, fields in (("narrow", narrow), ("folds", folds), ("mixup", mixup)):
        luban.train(**fields, out=tmp_path / f"one-{name}")
    runs = [{**narrow, "out": tmp_path / "two-narrow"}, {**folds, "out": tmp_path / "two-folds"}, {**mixup, "layout": {"shard": "full"}, "out": tmp_path / "two-mixup"}]
    assert follow(tmp_path, 2, [], runs)["runs"] == ["", "", ""]
    for name in ("narrow", "folds", "mixup"):
        assert differs(tmp_path / f"one-{name}", tmp_path / f"two-{name}") == []
    held = [(tmp_path / f"weights-{rank}.txt").read_text().splitlines() for rank in (0, 1)]
    assert held[0] == held[1] and len(set(held[0])) == 6
    one, two = weights(tmp_path / "one-narrow"), weights(tmp_path / "two-narrow")
    same = sum(int((one[name] == two[name]).sum()) for name in one) / sum(value.numel() for value in one.values())
    assert same > 0.98, "all but those that the order of sums moved over a rounding's edge"
    found = [json.loads((tmp_path / f"{name}-folds/training/folds.json").read_text()) for name in ("one", "two")]
    assert found[0].keys() == found[1].keys()
    assert all(pytest.approx(value["values"], rel=1e-3, abs=1e-5) == found[1][name]["values"] for name, value in found[0].items())
