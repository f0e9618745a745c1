"""Searches over recipes, whole: what is tried, what is kept, what is repeated and what is not."""

from __future__ import annotations

import json

import pytest
import yaml
from tuning_lab import heavy, sorter, trainer, trials_of

import luban
from luban.foundation.artifacts import open_artifact
from luban.foundation.errors import ConfigError, Interrupted, LubanError
from luban.pipeline.recipe import read_recipe
from luban.pipeline.runner import plan
from luban.tuning import workers
from luban.tuning.metric import measure
from luban.tuning.problem import read_problem
from luban.tuning.study import open_study
from luban.tuning.trial import Outcome

LINEAR = {"regularisation": {"search": [0.01, 100.0], "scale": "log"}, "model": {"choice": ["logistic", "centroid"]}}


def test_a_grid_finds_what_brute_force_finds_and_leaves_a_run_behind(tmp_path):
    path = sorter(tmp_path, {"words": {"choice": [1, 2]}, "model": {"choice": ["logistic", "centroid"]}}, sampler="grid", metric="log_loss")
    best = luban.tune(path)
    values = {}
    for words in (1, 2):
        for model in ("logistic", "centroid"):
            made = luban.fit(tmp_path / "reviews.jsonl", method="linear", held_out=0.3, linear={"words": words, "model": model}, out=tmp_path / f"{words}{model}")
            values[str(words), model] = made.metrics["log_loss"]
    trials = trials_of(tmp_path / "runs/reviews")
    assert {tuple(trial["values"].values()): trial["value"] for trial in trials} == values
    assert best.value == min(values.values()) and tuple(best.values.values()) == min(values, key=values.__getitem__)

    assert best.model == tmp_path / "runs/reviews/sorter" and open_artifact(best.model).metrics["log_loss"] == best.value
    assert heavy(tmp_path / "runs/reviews/tune") == [f"trials/{best.number:05d}/sorter/model.safetensors"]  # of the others no weights are left
    written = yaml.safe_load(best.recipe.read_text(encoding="utf-8"))
    assert "tune" not in written and written["stages"]["sorter"]["linear"]["words"] == int(best.values["sorter.linear.words"])
    assert [step.status for step in plan(read_recipe(best.recipe))] == ["fresh"]  # a run of best.yaml takes the model as it is


def test_a_stopped_search_goes_on_as_if_it_had_not_been_stopped(tmp_path, monkeypatch):
    tune = {"trials": 4, "metric": "log_loss", "startup": 2}
    path = sorter(tmp_path, LINEAR, **tune)
    luban.tune(path, out=tmp_path / "whole")
    real, ran = workers.run_order, []

    def stopped_at_three(order):
        ran.append(order.number)
        return Outcome(order.number, "interrupted") if len(ran) == 3 else real(order)

    monkeypatch.setattr(workers, "run_order", stopped_at_three)
    with pytest.raises(Interrupted, match="luban tune .* continues"):
        luban.tune(path, out=tmp_path / "parts")
    luban.tune(path, out=tmp_path / "parts")
    assert ran == [0, 1, 2, 2, 3]  # the one that was stopped again, with its number; the finished ones not
    whole, parts = trials_of(tmp_path / "whole"), trials_of(tmp_path / "parts")
    assert [(trial["values"], trial["value"]) for trial in whole] == [(trial["values"], trial["value"]) for trial in parts]
    luban.tune(path, out=tmp_path / "parts")
    assert len(ran) == 5  # nothing is left to do
    luban.tune(path, "tune.trials=5", out=tmp_path / "parts")
    assert ran[5:] == [4]


def test_other_spaces_are_another_search_and_the_first_is_taken_back(tmp_path):
    path, other = sorter(tmp_path, LINEAR, trials=1), ("sorter.linear.regularisation=1",)
    luban.tune(path)
    first = trials_of(tmp_path / "runs/reviews")
    luban.tune(path, *other)
    assert list(trials_of(tmp_path / "runs/reviews")[0]["values"]) == ["sorter.linear.model"]
    luban.tune(path)
    assert trials_of(tmp_path / "runs/reviews") == first


def test_a_trial_that_fails_is_passed_over_and_a_hopeless_search_ends(tmp_path, monkeypatch):
    path = sorter(tmp_path, LINEAR, trials=4)
    real = workers.run_order

    def some_fail(order):
        return Outcome(order.number, "failed", error="out of memory") if order.number in (0, 2) else real(order)

    monkeypatch.setattr(workers, "run_order", some_fail)
    assert luban.tune(path).number in (1, 3)
    assert [trial["state"] for trial in trials_of(tmp_path / "runs/reviews")] == ["fail", "complete", "fail", "complete"]
    monkeypatch.setattr(workers, "run_order", lambda order: Outcome(order.number, "failed", error="out of memory"))
    with pytest.raises(LubanError, match="the first 3 trials failed: out of memory"):
        luban.tune(path, out=tmp_path / "none")
    assert len(open_study(read_problem(path, out=tmp_path / "none")).trials) == 3


def test_a_metric_that_is_not_there_ends_the_search_at_once(tmp_path):
    path = sorter(tmp_path, LINEAR, metric="blue", direction="maximize")
    with pytest.raises(LubanError, match="reports no blue.*\n.*accuracy"):
        luban.tune(path)
    assert len(trials_of(tmp_path / "runs/reviews")) == 1


def test_the_mean_over_seeds_and_over_folds_is_the_value(tmp_path):
    folds = {"folds": {"accuracy": {"mean": 0.7, "deviation": 0.1, "values": [0.6, 0.8]}}, "after": {"accuracy": 0.9, "loss": 0.3}}
    found = measure(folds, "auto:accuracy", True, "base")
    assert (found.value, found.deviation, found.values) == (0.7, 0.1, (0.6, 0.8))
    assert measure(folds, "loss", False, "base").value == 0.3
    assert measure({"after": {"spearman": 0.5, "loss": 1.0}, "best_metric": "spearman"}, "auto:ndcg@10", True, "base").value == 0.5
    with pytest.raises(ConfigError, match="reports no ndcg@10"):
        measure({"after": {"loss": 1.0}, "best_metric": "loss"}, "auto:ndcg@10", True, "base")

    path = sorter(tmp_path, {"words": {"choice": [1, 2]}}, sampler="grid", metric="log_loss", seeds=2)
    luban.tune(path)
    trial = trials_of(tmp_path / "runs/reviews")[0]
    single = [luban.fit(tmp_path / "reviews.jsonl", method="linear", held_out=0.3, linear={"words": 1}, seed=seed, out=tmp_path / f"seed{seed}").metrics["log_loss"] for seed in (1, 2)]
    assert trial["each"] == single and trial["value"] == pytest.approx(sum(single) / 2) and trial["deviation"] == pytest.approx(abs(single[0] - single[1]) / 2**0.5)


def test_a_half_written_journal_is_mended(tmp_path):
    path = sorter(tmp_path, LINEAR, trials=1)
    luban.tune(path)
    journal = tmp_path / "runs/reviews/tune/study.journal"
    before = journal.read_bytes()
    journal.write_bytes(before + b'{"op_code":4,"worker')
    luban.tune(path, "tune.trials=2")
    assert journal.read_bytes().startswith(before)
    assert [trial["state"] for trial in trials_of(tmp_path / "runs/reviews")] == ["complete"] * 2


def test_no_trial_begins_after_the_time(tmp_path):
    with pytest.raises(LubanError, match="no trial is complete"):
        luban.tune(sorter(tmp_path, LINEAR, trials=3, minutes=1e-9))


# ------------------------------------------------------------------------------------------------------- training


def test_a_pruned_training_stops_at_its_rung_and_leaves_nothing_heavy(tmp_path):
    rates = {"learning_rate": {"choice": [1e-2, 1e-7, 1e-8]}}
    path = trainer(tmp_path, {"sampler": "grid", "pruner": "asha", "reduction": 2, "metric": "loss"}, optimizer=rates)
    best = luban.tune(path)
    trials = trials_of(tmp_path / "runs/small")
    assert [trial["state"] for trial in trials] == ["complete", "pruned", "pruned"] and best.number == 0
    assert [trial["steps"] for trial in trials] == [2 * validations(trials, number) for number in range(3)]
    for trial in trials[1:]:
        folder = tmp_path / f"runs/small/tune/trials/{trial['number']:05d}"
        logged = [entry["step"] for entry in map(json.loads, (folder / "base.log.jsonl").read_text().splitlines()) if "loss" in entry]
        assert logged == list(range(1, trial["steps"] + 1)) and trial["steps"] < 8
        assert not [file for file in folder.rglob("*") if file.is_file() and file.stat().st_size > 50_000] and not heavy(folder)
    # the stage ends with the weights of its best validation, and that model is what is judged
    assert trials[0]["value"] == min(trials[0]["curve"].values()) == open_artifact(best.model).metrics["after"]["loss"]
    assert luban.predict(best.model, ["the film was great"])[0]["label"] in ("pos", "neg")


def validations(trials: list[dict], number: int) -> int:
    """How many of its four validations ASHA with rungs at 1, 2 and 4 lets a trial see: it goes on while it is in the better half of those that came as far."""
    for rung in (1, 2, 4):
        seen = sorted(trial["curve"][str(rung)] for trial in trials[: number + 1] if str(rung) in trial["curve"])
        if trials[number]["curve"][str(rung)] > seen[max(1, len(seen) // 2) - 1]:
            return rung
    return 4


def test_folds_are_pruned_between_each_other(tmp_path):
    rates = {"learning_rate": {"choice": [1e-2, 1e-7]}}
    fields = {"optimizer": rates, "length": "4 steps", "validation": {"every": "4 steps", "folds": 2, "share": 0.2}}
    luban.tune(trainer(tmp_path, {"sampler": "grid", "pruner": "asha", "reduction": 2, "metric": "loss"}, **fields))
    first, second = trials_of(tmp_path / "runs/small")
    assert first["state"] == "complete" and len(first["each"]) == 2 and first["value"] == pytest.approx(sum(first["each"]) / 2)
    assert first["steps"] == 12 and second["state"] == "pruned" and second["steps"] == 5  # it is known at the first step after the first fold


def test_a_copy_with_the_same_values_becomes_the_same_model(tmp_path):
    rates = {"learning_rate": {"search": [1e-4, 1e-2], "scale": "log"}}
    population = {"size": 2, "interval": "2 steps", "share": 0.5, "perturbation": 1.0}
    path = trainer(tmp_path, {"sampler": "population", "population": population, "metric": "loss", "keep": 9}, optimizer=rates, schedule={"shape": "constant"})
    best = luban.tune(path)
    trials = trials_of(tmp_path / "runs/small")
    copy = next(trial for trial in trials if trial.get("parent") is not None)
    winner = trials[copy["parent"]]
    assert copy["born"] == 1 and [trial["state"] for trial in trials] == ["complete" if trial in (copy, winner) else "pruned" for trial in trials][:2] + [trial["state"] for trial in trials[2:]]
    assert copy["values"] == winner["values"]
    alone = luban.train(
        tmp_path / "reviews.jsonl", out=tmp_path / "alone", **{key: value for key, value in read_problem(path).recipe(winner["values"]).stages["base"].config.explicit().items() if key not in ("data", "tokenizer")}, tokenizer=tmp_path / "tokenizer",
    )  # fmt: skip
    assert best.value == alone.metrics["after"]["loss"] == min(trial["value"] for trial in trials if trial["value"] is not None and trial["state"] == "complete")
    output = (tmp_path / f"runs/small/tune/trials/{copy['number']:05d}/output.txt").read_text(encoding="utf-8")
    assert "continuing at step 2 of 8" in output


@pytest.mark.slow
def test_the_worst_of_a_population_give_way_and_their_cost_ends(tmp_path):
    rates = {"learning_rate": {"search": [1e-6, 1e-2], "scale": "log"}}
    path = trainer(tmp_path, {"sampler": "population", "population": {"size": 4, "interval": "4 steps"}, "metric": "loss"}, optimizer=rates)
    luban.tune(path)
    trials = trials_of(tmp_path / "runs/small")
    first = {trial["number"]: trial["curve"]["1"] for trial in trials if trial["born"] == 0}
    worst, best = max(first, key=first.get), min(first, key=first.get)
    copy = trials[4]
    assert len(trials) == 5 and (copy["parent"], copy["born"], copy["member"]) == (best, 1, worst)
    ratio = copy["values"]["base.optimizer.learning_rate"] / trials[best]["values"]["base.optimizer.learning_rate"]
    assert min(abs(ratio - 1.25), abs(ratio - 0.8)) < 1e-9 or copy["values"]["base.optimizer.learning_rate"] == 1e-2
    assert trials[worst]["state"] == "pruned" and trials[worst]["steps"] == 4 and not heavy(tmp_path / f"runs/small/tune/trials/{worst:05d}")
    assert sum(trial["state"] == "complete" for trial in trials) == 4
