"""What happens between steps: validation with early stopping, samples, the user's callbacks."""

from __future__ import annotations

import math
from collections.abc import Callable

from luban.foundation.console import say, warn
from luban.inference.config import SamplingConfig
from luban.inference.generate import LoadedModel
from luban.inference.predictor import Predictor
from luban.metrics.tasks import greater_is_better
from luban.objectives.base import Loaders
from luban.objectives.completions import seed_of
from luban.training.best import keep_best, restore_best
from luban.training.config import SamplesConfig, ValidationConfig
from luban.training.run import Run
from luban.training.tracking import Tracker


class Validator:
    """Scores the held-out batches and, where the objective has metrics of its own, the held-out examples; stops the run early when
    ``patience`` validations brought no new best, and keeps the best weights where they are to be restored."""

    section = "evaluation"

    def __init__(self, every: int, config: ValidationConfig, loaders: Loaders, tracker: Tracker):
        self.every, self.config, self.batches, self.tracker = every, config, loaders.validation, tracker
        self.examples = loaders.held_out[: config.maximum_examples]
        self.told = False
        self.restores = bool(self.batches and self.examples) if config.restore_best == "auto" else config.restore_best

    def after_step(self, run: Run) -> None:
        if self.batches and run.every(self.every):
            if run.average:
                run.average.at_validation()
            with run.shown_weights():
                self.validate(run)
            run.measure_peak()

    def validate(self, run: Run) -> dict[str, float]:
        scores = run.engine.evaluate(self.batches)
        if bytes_scored := self._bytes(run):
            scores["bits_per_byte"] = scores["loss"] * self._units(run) / math.log(2) / bytes_scored
        measured = self._measured(run)
        scores |= measured
        run.history.setdefault("before", scores)
        self.tracker.validation(run, scores)
        main = self._main(scores, next(iter(measured), run.objective.judged_by or "loss"))
        value = scores[main] if main == "loss" or not greater_is_better(main) else -scores[main]  # lower is better
        best, best_loss, judged = (run.history.get(name) for name in ("best_value", "best_loss", "best_metric"))
        if judged == main:
            gained = math.isfinite(value) and not value >= best - self.config.minimum_gain
        else:  # the first of all, or the metric where the loss had to do so far; but no loss where the metric was known
            gained = main != "loss" or judged is None
        run.history["without_gain"] = 0 if gained else run.history.get("without_gain", 0) + 1
        # A small held-out set gives the same accuracy again and again: then the lower loss is the better model, though no gain to wait for.
        if gained or (judged == main and value == best and scores["loss"] < best_loss):
            run.history |= {"best_value": value, "best_loss": scores["loss"], "best_validation": scores[main], "best_metric": main, "best_step": run.step}
            if self.restores:
                keep_best(run)
        if self.config.patience and run.history["without_gain"] >= self.config.patience and not run.finished:
            say("stopping early at step {step}: {count} validations without a new best (the best was {best:.4f} at step {best_step})", step=run.step, count=self.config.patience, best=run.history["best_validation"], best_step=run.history["best_step"])
            run.stop_reason = "early stopping"
        run.history["after"] = scores
        return scores

    def finish(self, run: Run) -> None:
        """The weights that are saved: those of the best validation, where they are to be restored, or the averaged ones, or the last."""
        if run.average:
            run.average.apply()
        if self.restores and run.history.get("best_step", run.step) != run.step and restore_best(run):
            say("the weights of step {step} are kept: {metric} {value:.4f} was the best", step=run.history["best_step"], metric=run.history["best_metric"], value=run.history["best_validation"])
            run.history["after"] = self.validate_quietly(run)

    def validate_quietly(self, run: Run) -> dict[str, float]:
        """The figures of the weights as they are now."""
        measured = self._measured(run)
        return run.engine.evaluate(self.batches) | measured

    def _main(self, scores: dict[str, float], main: str) -> str:
        """What the best is judged by: the task's first metric or the objective's own, or the loss where there is none or it is no number."""
        if math.isfinite(scores[main]):
            return main
        if main != "loss" and not self.told:
            self.told = True
            warn("{metric} is {value} on {count} held-out examples: where it is no number, the loss says which weights are the best", metric=main, value=scores[main], count=len(self.examples))
        return "loss"

    def _measured(self, run: Run) -> dict[str, float]:
        """The task's metrics on the held-out examples, taken by the first process."""
        if not self.examples:
            return {}
        return run.engine.layout.on_first(run.model, lambda model: {name: score.value for name, score in run.objective.score(model, run.tokenizer, self.examples).items()})

    def _units(self, run: Run) -> float:
        return sum(batch.count for batch in self.batches)

    def _bytes(self, run: Run) -> int:
        """UTF-8 bytes of the scored tokens; 0 for objectives whose unit is no token."""
        if run.objective.unit != "token":
            return 0
        lengths = run.tokenizer.token_bytes()
        return int(sum(lengths[batch.targets[batch.weights > 0].numpy()].sum() for batch in self.batches))


class TimeKeeper:
    """Writes now and then into the log where the time went."""

    section = "other"

    def __init__(self, every: int, tracker: Tracker):
        self.every, self.tracker = every, tracker

    def after_step(self, run: Run) -> None:
        if run.every(self.every):
            self.tracker.figures(run.step, "time", run.clock.report())


class Follower:
    """Lets the averages follow the weights at every step."""

    section = "steps"

    def after_step(self, run: Run) -> None:
        for average in (run.average, run.teacher):
            if average:
                average.after_step()


class Sampler:
    """Lets the model write a little now and then, so that a person sees it learn."""

    section = "evaluation"

    def __init__(self, every: int, config: SamplesConfig, chat: bool, tracker: Tracker):
        self.every, self.config, self.chat, self.tracker = every, config, chat, tracker

    def after_step(self, run: Run) -> None:
        if not self.config.prompts or not run.every(self.every):
            return
        run.model.eval()
        with run.shown_weights():
            samples = run.engine.layout.on_first(run.model, lambda model: self._all(LoadedModel(model, run.tokenizer), run.step))
        run.model.train()
        self.tracker.samples(run, samples)

    def _all(self, model: LoadedModel, step: int) -> list[dict[str, str]]:
        return [{"prompt": prompt, "text": self._write(model, prompt, self._sampling(step, number))} for number, prompt in enumerate(self.config.prompts)]

    def _sampling(self, step: int, number: int) -> SamplingConfig:
        """How a sample is drawn: by a seed of the step, so that a resumed run writes what an undisturbed one would."""
        sampling = self.config.sampling
        return sampling if sampling.seed is not None else sampling.model_copy(update={"seed": seed_of(step, number)})

    def _write(self, model: LoadedModel, prompt: str, sampling: SamplingConfig) -> str:
        if self.chat:
            return model.chat([{"role": "user", "content": prompt}], sampling)
        head = model.model.head
        if model.model.shape.kind != "decoder" or (head is not None and head.replaces_output):  # fills, labels, answers
            said = Predictor(model.model, model.tokenizer).predict([prompt])[0]
            return str(said.get("text", said))
        return model.generate(prompt, sampling)


class Agreement:
    """Lets all ranks stop after the same step, whichever of them has a reason."""

    section = "steps"

    def after_step(self, run: Run) -> None:
        run.stop_reason = run.engine.layout.ranks.agree(run.stop_reason or run.stop_wish)


class Callback:
    """One of the user's functions, ``my_callbacks.py:name``; it may read the run and set ``run.stop_reason``. The first process calls it."""

    section = "other"

    def __init__(self, function: Callable[[Run], None]):
        self.function = function

    def after_step(self, run: Run) -> None:
        if run.engine.layout.ranks.leads:
            self.function(run)
