"""The verb ensemble: members side by side in one folder, with the note that says how they answer together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from luban.examples.reading import read_examples
from luban.fitting.config import EnsembleConfig
from luban.foundation.artifacts import Work, listed, write_json
from luban.foundation.console import say
from luban.foundation.errors import ConfigError, missing_extra
from luban.inference.ensemble import check_members, features
from luban.inference.predictor import ENSEMBLE, Predictor
from luban.objectives.base import load_objective

VERSION = 1


def run(config: EnsembleConfig, work: Work) -> None:
    """Copy the members (hard links where the disk allows), fit the stacked model if there is one, write config.json."""
    sources = [Path(str(getattr(item, "path", item))) for item in listed(work.inputs["models"])]
    if len(sources) < 2:
        raise ConfigError("models: an ensemble has at least two members", "", "name two models or more")
    if (config.how == "stack") != bool(config.data):
        raise ConfigError("data: labelled examples are needed for how: stack, and for nothing else", "", "give data, or choose average or vote")
    names = [f"member-{number}" for number in range(1, len(sources) + 1)]
    for source, name in zip(sources, names, strict=True):
        shutil.rmtree(work.path / name, ignore_errors=True)
        shutil.copytree(source, work.path / name, copy_function=_link_or_copy, ignore=shutil.ignore_patterns("training"))
    members = [Predictor.load(work.path / name) for name in names]
    check_members([member.head for member in members], config.how)
    note: dict[str, Any] = {"model_type": ENSEMBLE, "how": config.how, "members": names, **members[0].head.to_json()}
    if config.how == "stack":
        note["stack"] = _stack(config, work, members)
    write_json(work.path / "config.json", note)
    work.metrics |= {"members": len(names), "labels": list(members[0].head.labels)}
    say("{count} models answer together: {how}", count=len(names), how=config.how)


def _stack(config: EnsembleConfig, work: Work, members: list[Predictor]) -> dict[str, Any]:
    """Multinomial logistic regression on the members' log-probabilities: weights [labels, members × labels] and bias [labels]."""
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError:
        raise missing_extra("scikit-learn", "tasks") from None
    objective = load_objective(members[0].task)
    found = read_examples([Path(str(getattr(item, "path", item))) for item in listed(work.inputs["data"])], objective.reads, config.mapping or None)
    examples = [example for example in found.examples if example.label is not None]
    items = [objective.item_of(example) for example in examples]
    said = [member.predict(items) for member in members]
    labels = list(members[0].head.labels)
    table = np.stack([features(answers, labels) for answers in zip(*said, strict=True)])
    fitted = LogisticRegression(max_iter=1000).fit(table, [str(example.label) for example in examples])
    weights, bias, known = fitted.coef_, fitted.intercept_, list(fitted.classes_)
    if len(known) == 2:  # one row says both
        weights, bias = np.concatenate([-weights, weights]) / 2, np.concatenate([-bias, bias]) / 2
    work.metrics["stacked_on"] = len(examples)
    return {"labels": known, "weights": weights.tolist(), "bias": bias.tolist()}


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
