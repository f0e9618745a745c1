"""Which validation is the best, where a metric is not always a number."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from luban.objectives.base import Loaders
from luban.training import hooks
from luban.training.config import ValidationConfig

NAN = math.nan


@pytest.mark.parametrize(
    ("figures", "kept", "metric", "count"),
    [
        ([(NAN, 3.0), (NAN, 2.0), (NAN, 2.5)], [0, 1], "loss", 1),  # one held-out example: the best is by the loss, and without a gain one validation went by
        ([(NAN, NAN), (NAN, 2.0), (NAN, NAN)], [0, 1], "loss", 1),
        ([(NAN, 3.0), (0.1, 9.0), (NAN, 1.0), (0.05, 0.5), (0.1, 8.0), (NAN, 0.1)], [0, 1, 4], "spearman", 4),  # once it is a number, no loss takes its place
        ([(0.1, 3.0), (0.3, 4.0), (0.2, 1.0)], [0, 1], "spearman", 1),
    ],
    ids=str,
)
def test_a_metric_that_is_no_number_is_no_best(monkeypatch, capsys, figures, kept, metric, count):
    held = []
    monkeypatch.setattr(hooks, "keep_best", lambda run: held.append(run.step))
    monkeypatch.setattr(hooks, "restore_best", lambda run: True)
    validator = hooks.Validator(1, ValidationConfig(restore_best=True), Loaders(None, ["batch"], {}, [], ["example"]), SimpleNamespace(validation=lambda run, scores: None))
    run = SimpleNamespace(history={}, step=0, finished=False, average=None, objective=SimpleNamespace(unit="example", judged_by=""))
    for run.step, (spearman, loss) in enumerate(figures):
        run.engine = SimpleNamespace(evaluate=lambda batches, loss=loss: {"loss": loss})
        monkeypatch.setattr(validator, "_measured", lambda run, value=spearman: {"spearman": value, "mean_absolute_error": 1.0})
        validator.validate(run)
    assert held == kept and run.history["best_step"] == kept[-1] and run.history["best_metric"] == metric and run.history["without_gain"] == count
    column = ("spearman", "loss").index(metric)
    assert run.history["best_validation"] == figures[kept[-1]][column]
    run.step += 1
    validator.finish(run)
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("spearman is nan on 1 held-out examples") == any(math.isnan(figure) for figure, _ in figures)
    assert f"the weights of step {kept[-1]} are kept: {metric} {figures[kept[-1]][column]:.4f} was the best" in said
