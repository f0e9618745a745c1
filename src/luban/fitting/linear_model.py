"""TF-IDF with a linear model: predicting and the form on disk. Needs numpy alone; fitting (linear.py) needs scikit-learn.

A folder holds ``config.json`` (model_type luban-linear), ``features.json`` (the n-grams), ``labels.json`` and ``model.safetensors`` with
``idf`` [features], ``coefficients`` [rows, features] and ``intercept`` [rows]. A text is the vector of (1 + ln count) * idf of its
n-grams, at length one.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from luban.examples.segmentation import stop_words, words
from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.models.ngram_tables import FORMAT, read_config

MODEL_TYPE = "luban-linear"
Text = str | tuple[str, str]
_SPACE = re.compile(r"\s+")


@dataclass(frozen=True)
class Features:
    """Which n-grams a text is described by; ``words`` and ``characters`` are the longest, 0 for none."""

    words: int = 2
    characters: int = 0
    lowercase: bool = True
    remove_stop_words: bool = False

    def __call__(self, text: Text) -> list[str]:
        """The n-grams of a text. Those of a pair are marked by side, and those that both sides have stand a third time."""
        if isinstance(text, str):
            return self._of(text)
        first, second = (self._of(part) for part in text)
        common = Counter(first) & Counter(second)
        return [f"1 {name}" for name in first] + [f"2 {name}" for name in second] + [f"= {name}" for name in common.elements()]

    def _of(self, text: str) -> list[str]:
        found: list[str] = []
        if self.words:
            units = words(text, lower=self.lowercase, stop=stop_words() if self.remove_stop_words else ())
            for size in range(1, self.words + 1):
                found += ["w " + " ".join(units[start : start + size]) for start in range(len(units) - size + 1)]
        if self.characters:
            flat = _SPACE.sub(" ", text.lower() if self.lowercase else text).strip()
            for size in range(1, self.characters + 1):
                found += ["c " + flat[start : start + size] for start in range(len(flat) - size + 1)]
        return found


class LinearModel:
    """A fitted baseline. ``task``: classification, multi_label or regression; ``kind``: logistic, centroid, least_squares or majority."""

    def __init__(
        self,
        task: str,
        kind: str,
        labels: Sequence[str],
        features: Features,
        vocabulary: Sequence[str],
        idf: np.ndarray,
        coefficients: np.ndarray,
        intercept: np.ndarray,
    ):
        self.task, self.kind, self.labels, self.features = task, kind, list(labels), features
        self.vocabulary = list(vocabulary)
        self.index = {name: number for number, name in enumerate(self.vocabulary)}
        self.idf, self.coefficients, self.intercept = (np.ascontiguousarray(array, np.float32) for array in (idf, coefficients, intercept))

    def vector(self, text: Text) -> tuple[np.ndarray, np.ndarray]:
        """(feature numbers, weights), both [n-grams of the text that are known]."""
        if not self.vocabulary:
            return np.zeros(0, np.int64), np.zeros(0)
        counts = Counter(self.index[name] for name in self.features(text) if name in self.index)
        numbers = np.array(sorted(counts), np.int64)
        weights = np.array([1.0 + math.log(counts[number]) for number in numbers.tolist()]) * self.idf[numbers]
        length = np.sqrt((weights**2).sum())
        return numbers, weights / length if length else weights

    def scores(self, text: Text) -> np.ndarray:
        """[rows] the linear scores of one text; the intercept alone for one without known n-grams."""
        numbers, weights = self.vector(text)
        return self.coefficients[:, numbers].astype(np.float64) @ weights + self.intercept

    def predict(self, texts: Sequence[Text]) -> list[dict[str, Any]]:
        """``{"label", "probabilities"}`` of each text; ``{"labels", "probabilities"}`` of a multi-label one, ``{"value"}`` of a number.

        Probabilities of a centroid model rank the classes and are not calibrated.
        """
        return [self._answer(self.scores(text)) for text in texts]

    def _answer(self, scores: np.ndarray) -> dict[str, Any]:
        if self.task == "regression":
            return {"value": float(scores[0])}
        if self.task == "multi_label":
            each = 1 / (1 + np.exp(-np.clip(scores, -700, 700)))
            return {
                "labels": [name for name, p in zip(self.labels, each, strict=True) if p > 0.5],
                "probabilities": dict(zip(self.labels, each.tolist(), strict=True)),
            }
        if len(scores) == 1 and len(self.labels) == 2:  # logistic regression of two classes has one row
            second = float(1 / (1 + np.exp(-np.clip(scores[0], -700, 700))))
            shares = np.array([1 - second, second])
        else:
            shares = np.exp(scores - scores.max())
            shares /= shares.sum()
        return {"label": self.labels[int(shares.argmax())], "probabilities": dict(zip(self.labels, shares.tolist(), strict=True))}

    def weightiest(self, count: int = 8) -> dict[str, list[str]]:
        """The n-grams that speak most for each label, for a look at what was learned."""
        if not self.vocabulary or self.task == "regression":
            return {}
        rows = np.concatenate([-self.coefficients, self.coefficients]) if len(self.coefficients) == 1 and len(self.labels) == 2 else self.coefficients
        return {
            label: [self.vocabulary[number] for number in np.argsort(-row, kind="stable")[:count] if row[number] > 0]
            for label, row in zip(self.labels, rows, strict=True)
        }

    # ---- on disk

    def save(self, folder: Path) -> None:
        """Write the folder."""
        from safetensors.numpy import save

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_bytes(folder / "model.safetensors", save({"idf": self.idf, "coefficients": self.coefficients, "intercept": self.intercept}))
        write_bytes(folder / "features.json", json.dumps(self.vocabulary).encode())
        write_bytes(folder / "labels.json", json.dumps(self.labels).encode())
        write_json(
            folder / "config.json", {"model_type": MODEL_TYPE, "format": FORMAT, "task": self.task, "kind": self.kind, "features": asdict(self.features)}
        )

    @classmethod
    def load(cls, folder: Path) -> LinearModel:
        """Open a folder that `save` wrote. Raises DataError for what is missing or damaged."""
        from safetensors import SafetensorError
        from safetensors.numpy import load

        folder = Path(folder)
        config = read_config(folder, MODEL_TYPE)
        try:
            arrays = load((folder / "model.safetensors").read_bytes())
            vocabulary, labels = (json.loads((folder / name).read_bytes()) for name in ("features.json", "labels.json"))
            if not all(isinstance(names, list) and all(isinstance(name, str) for name in names) for names in (vocabulary, labels)):
                raise ValueError(t("its labels and features are not lists of texts"))
            model = cls(
                config["task"], config["kind"], labels, Features(**config["features"]), vocabulary, arrays["idf"], arrays["coefficients"], arrays["intercept"]
            )
            rows = 1 if model.task == "regression" or (model.kind == "logistic" and model.task == "classification" and len(labels) == 2) else len(labels)
            if model.idf.shape != (len(vocabulary),) or model.coefficients.shape != (rows, len(vocabulary)) or model.intercept.shape != (rows,):
                raise ValueError(t("its arrays do not fit its labels and features"))
        except (OSError, KeyError, TypeError, ValueError, SafetensorError) as error:
            raise DataError(
                "{path} is no linear model that can be read: {error}", "", "restore the folder, or fit the model again", path=folder, error=error
            ) from None
        return model
