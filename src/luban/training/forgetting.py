"""What a model forgets while it is tuned: the held-out text of its base, scored before the first step and after the last."""

from __future__ import annotations

import math
from typing import Any

from luban.foundation.artifacts import Artifact, Work, is_artifact, listed, open_artifact
from luban.foundation.console import say
from luban.foundation.errors import LubanError
from luban.objectives.base import DataRequest, load_objective
from luban.objectives.config import CausalConfig, MaskedConfig
from luban.tokens.batch import Batch
from luban.training.run import Run


def general_text(work: Work, tuning: bool) -> list[Artifact]:
    """The encode artifacts that are named, or, while ``tuning``, those that the base was trained on, where they still lie beside it."""
    if named := listed(work.inputs.get("validation.general")):
        return named
    return _beside(work.inputs["model"]) if tuning and isinstance(work.inputs["model"], Artifact) else []


def _beside(model: Artifact) -> list[Artifact]:
    """What a model, or what it was tuned from, read: its encode stages in the folder that it lies in."""
    for _ in range(8):  # stages of tuning, at most
        inputs = model.manifest.get("inputs", {})
        found = [_sibling(model, given) for given in inputs.get("data", [])]
        if found and all(item is not None and item.kind == "encode" for item in found):
            return found
        above = [_sibling(model, given) for given in inputs.get("model", [])]
        if not above or above[0] is None or above[0].kind != "train":
            return []
        model = above[0]
    return []


def _sibling(model: Artifact, given: dict[str, Any]) -> Artifact | None:
    folder = model.path.parent / str(given.get("name"))
    if not is_artifact(folder):
        return None
    try:
        return open_artifact(folder)
    except LubanError:
        return None


class Memory:
    """Scores the general text of ``request`` at the beginning and at the end, by the objective that such a model is pretrained with."""

    def __init__(self, run: Run, request: DataRequest, rows: int):
        decoder = run.model.shape.kind == "decoder"
        self.objective = load_objective(CausalConfig() if decoder else MaskedConfig())
        self.engine = run.engine.beside(self.objective, rows)
        self.batches: list[Batch] = self.objective.loaders(request).validation

    def after_step(self, run: Run) -> None:
        """A hook: the loop calls it, and nothing is to be done between the ends."""

    def measure(self, run: Run, when: str) -> None:
        """Score, and keep the figures as ``history["general"][when]``. The first figures stay those of the first step over every restart."""
        known = run.history.setdefault("general", {})
        if not self.batches or (when == "before" and when in known):
            return
        loss = self.engine.evaluate(self.batches)["loss"]
        lengths = run.tokenizer.token_bytes()
        counted = int(sum(lengths[batch.targets[batch.weights > 0].numpy()].sum() for batch in self.batches))
        units = sum(batch.count for batch in self.batches)
        known[when] = {"loss": loss, **({"bits_per_byte": loss * units / math.log(2) / counted} if counted and run.model.shape.kind == "decoder" else {})}
        if when == "after" and "before" in known:
            name = "bits_per_byte" if "bits_per_byte" in known[when] else "loss"
            say("general text of the base: {name} {before:.4f} before, {after:.4f} after", name=name, before=known["before"][name], after=known["after"][name])


def remembers(run: Run) -> bool:
    """Whether the model still has the output that its base was pretrained with."""
    return run.model.shape.kind in ("decoder", "encoder") and (run.model.head is None or not run.model.head.replaces_output)


