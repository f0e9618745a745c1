"""Luban (鲁班): from raw text to a served language model, one recipe, one command.

``luban.run(recipe)`` runs a recipe; every kind of stage is a call (``luban.train(data=…, out=…)``); ``luban.load(model)``
opens a model directory, ``luban.predict(model, data)`` says what it makes of data; ``luban.tune(recipe)`` and ``luban.lr_find(recipe)``
search. Nothing heavy is imported before one of them is used.
"""

from __future__ import annotations

from typing import Any

__version__ = "0.1.0"
__all__ = ["augment", "curate", "encode", "ensemble", "evaluate", "fit", "load", "lr_find", "merge", "predict", "run", "serve", "train", "train_tokenizer", "tune"]


def __getattr__(name: str) -> Any:
    if name in ("run", "load", "predict"):
        from luban.pipeline import api

        return getattr(api, name)
    if name in ("tune", "lr_find"):
        from luban.tuning import api as tuning

        return getattr(tuning, name)
    if name in __all__:
        from luban.pipeline.api import VERBS

        return VERBS[name]
    raise AttributeError(f"module 'luban' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
