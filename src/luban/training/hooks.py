"""What happens between steps: validation with early stopping, samples, the user's callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable

from luban.foundation.console import say
from luban.inference.generate import LoadedModel
from luban.tokens.batch import Batch
from luban.training.config import SamplesConfig, ValidationConfig
from luban.training.run import Run
from luban.training.tracking import Tracker


class Validator:
    """Scores the held-out batches; stops the run early when ``patience`` validations brought no new best."""

    def __init__(self, every: int, config: ValidationConfig, batches: list[Batch], tracker: Tracker):
        self.every, self.config, self.batches, self.tracker = every, config, batches, tracker

    def after_step(self, run: Run) -> None:
        if self.batches and run.every(self.every):
            self.validate(run)
            run.measure_peak()

    def validate(self, run: Run) -> dict[str, float]:
        scores = run.engine.evaluate(self.batches)
        if bytes_scored := self._bytes(run):
            scores["bits_per_byte"] = scores["loss"] * self._units(run) / math.log(2) / bytes_scored
        self.tracker.validation(run, scores)
        best = run.history.get("best_validation", math.inf)
        if scores["loss"] < best - self.config.minimum_gain:
            run.history |= {"best_validation": scores["loss"], "best_step": run.step, "without_gain": 0}
        else:
            run.history["without_gain"] = run.history.get("without_gain", 0) + 1
        if self.config.patience and run.history["without_gain"] >= self.config.patience and not run.finished:
            say("stopping early at step {step}: {count} validations without a new best (the best was {best:.4f} at step {best_step})", step=run.step, count=self.config.patience, best=run.history["best_validation"], best_step=run.history["best_step"])
            run.stop_reason = "early stopping"
        return scores

    def _units(self, run: Run) -> float:
        return sum(batch.count for batch in self.batches)

    def _bytes(self, run: Run) -> int:
        """UTF-8 bytes of the scored tokens; 0 for objectives whose unit is no token."""
        if run.objective.unit != "token":
            return 0
        lengths = run.tokenizer.token_bytes()
        return int(sum(lengths[batch.targets[batch.weights > 0].numpy()].sum() for batch in self.batches))


class Sampler:
    """Lets the model write a little now and then, so that a person sees it learn."""

    def __init__(self, every: int, config: SamplesConfig, chat: bool, tracker: Tracker):
        self.every, self.config, self.chat, self.tracker = every, config, chat, tracker

    def after_step(self, run: Run) -> None:
        if not self.config.prompts or not run.every(self.every):
            return
        run.model.eval()
        model = LoadedModel(run.model, run.tokenizer)
        samples = [{"prompt": prompt, "text": self._write(model, prompt)} for prompt in self.config.prompts]
        run.model.train()
        self.tracker.samples(run, samples)

    def _write(self, model: LoadedModel, prompt: str) -> str:
        if self.chat:
            return model.chat([{"role": "user", "content": prompt}], self.config.sampling)
        return model.generate(prompt, self.config.sampling)


class Callback:
    """One of the user's functions, ``my_callbacks.py:name``; it may read the run and set ``run.stop_reason``."""

    def __init__(self, function: Callable[[Run], None]):
        self.function = function

    def after_step(self, run: Run) -> None:
        self.function(run)
