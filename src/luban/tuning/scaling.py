"""`luban scaling`: a ladder of small models on the recipe's own data, the law that they follow, and what it says of the recipe's model.

Each rung is trained under several seeds, each training in a process of its own as `luban compare` does it, in `scaling/` of the run's folder. What is there is not trained again.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work
from luban.foundation.config import Source
from luban.foundation.console import count_text, heading, say, seconds_text
from luban.foundation.errors import ConfigError, nearest
from luban.foundation.messages import language
from luban.models.counts import flops_per_token
from luban.models.shape import ShapeConfig
from luban.pipeline.recipe import Recipe, Stage, make_recipe, read_plain
from luban.pipeline.runner import open_inputs, plan, run_recipe
from luban.planning import dial
from luban.planning.ladder import moved_rates, size_of, sizes, smaller
from luban.planning.resolve import resolve, train_facts
from luban.tuning.comparison import Order, run_order
from luban.tuning.power_law import ALPHA, GAMMA, Fitted, Forecast, fit, forecast
from luban.tuning.problem import needed_for, only, refuse_ranks

FOLDER = "scaling"
FAMILIES = ("llama", "qwen2", "qwen3", "mistral")
LEAST = 5_000  # parameters of a rung below which nothing is learned that says something of larger ones


@dataclass
class Rung:
    """One size: its shape, the tokens it reads, and the held-out loss of each seed, in nats a token."""

    name: str
    shape: ShapeConfig
    tokens: int
    flops: float  # of one training
    losses: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def size(self) -> int:
        return size_of(self.shape)

    def plain(self) -> dict[str, Any]:
        shape = {name: getattr(self.shape, name) for name in ("layers", "hidden_size", "heads", "head_dim", "feed_forward_size")}
        return {"name": self.name, "parameters": self.size, "shape": shape, "tokens": self.tokens, "losses": self.losses, "seconds": round(self.seconds, 1)}


@dataclass
class Scaling:
    """What came of it. ``checked`` is the recipe's model where it was trained too."""

    name: str
    stage: str
    tokens: str  # same, or proportional
    rungs: list[Rung]
    target: Rung
    fitted: Fitted
    forecast: Forecast
    checked: bool
    folder: Path

    @property
    def truth(self) -> float | None:
        """The large model's mean loss, where it was trained."""
        return sum(self.target.losses) / len(self.target.losses) if self.checked else None

    @property
    def naive(self) -> float:
        """The forecast that nothing changes: the mean loss of the largest rung."""
        return sum(self.rungs[-1].losses) / len(self.rungs[-1].losses)

    def plain(self) -> dict[str, Any]:
        found = {"name": self.name, "stage": self.stage, "tokens": self.tokens, "rungs": [rung.plain() for rung in self.rungs], "target": self.target.plain(), "fitted": asdict(self.fitted), "forecast": asdict(self.forecast), "naive": self.naive}
        if (truth := self.truth) is not None:
            found["check"] = {"loss": truth, "miss": abs(self.forecast.loss - truth), "naive_miss": abs(self.naive - truth), "inside": self.forecast.low <= truth <= self.forecast.high}
        return found


def scaling(
    recipe: Path, overrides: list[str], stage: str | None = None, *, ladder: int = 4, times: float = 4.0, ratio: float = 2.0, seeds: int = 3, tokens: str = "same", check: bool = False, out: Path | None = None,
) -> Scaling:  # fmt: skip
    """Train the ladder, fit, foretell, and write scaling/ (law.svg, report.md, results.json). ConfigError for a stage that is no pretraining of a new decoder."""
    refuse_ranks("scaling")
    plain, folder, default_name, source = read_plain(recipe, overrides)
    made = make_recipe(plain, folder, default_name, source, out)
    chosen = _stage(made, stage)
    if ladder < 3 or times <= 1 or ratio <= 1:
        raise ConfigError("a ladder of {ladder} models, {times:g} times below, each {ratio:g} times the one before, gives no law", "three constants are fitted, from sizes that grow", "write --ladder 4 --times 4 --ratio 2", ladder=ladder, times=times, ratio=ratio)
    if earlier := [name for name in made.stages if name != chosen.name and name in needed_for(made, chosen.name)]:
        run_recipe(only(made, earlier, {}, made.out))
    config, epoch = _resolved(made, chosen)
    target = _rung("large", config.shape, _tokens(config, epoch), config)
    rungs = [_rung(f"size-{number + 1}", smaller(config.shape, size), target.tokens, config) for number, size in enumerate(sizes(target.size, ladder, times, ratio))]
    if tokens == "proportional":
        rungs = [_rung(rung.name, rung.shape, max(config.batch_tokens, round(target.tokens * rung.size / target.size)), config) for rung in rungs]
    _check_rungs(rungs, target)
    _say_plan(made, chosen, rungs, target, tokens, seeds, check)

    def order(rung: Rung, seed: int) -> Order:
        fields = _fields(chosen, config, rung, target)
        moved = {name: str((made.out / name).resolve()) for name in made.stages if name != chosen.name}
        changed = {**plain, "stages": {**plain["stages"], chosen.name: {**{key: value for key, value in plain["stages"][chosen.name].items() if key != "depth"}, **fields}}}
        return Order(changed, str(folder), source.file, default_name, str(made.out / FOLDER / f"{rung.name}-{seed + 1}"), chosen.name, moved, seed, language())

    _train([*rungs, *([target] if check else [])], seeds, order)
    fitted = fit([(rung.size, rung.losses) for rung in rungs], ALPHA if tokens == "same" else GAMMA)
    found = Scaling(made.name, chosen.name, tokens, rungs, target, fitted, forecast([(rung.size, rung.losses) for rung in rungs], fitted, target.size), check, made.out / FOLDER)
    from luban.tuning.scaling_report import write_report

    write_report(found)
    return found


# ---- the rungs --------------------------------------------------------------------------------------------------------


def _stage(recipe: Recipe, name: str | None) -> Stage:
    """The stage whose model is foretold: pretraining of a new decoder of the Llama kind."""
    known = [stage for stage in recipe.stages.values() if stage.kind.name == "train" and stage.config.objective_name == "causal" and not stage.config.model]
    found = next((stage for stage in known if name in (None, stage.name)), None)
    if found is None:
        guess = nearest(name or "", [stage.name for stage in known])
        raise ConfigError(
            "scaling: there is no train stage {name!r} that begins a new model with objective: causal" if name else "scaling: no train stage begins a new model with objective: causal", "the law is that of pretraining",
            "did you mean {guess}?" if guess else "such stages: {known}", name=name, guess=guess, known=", ".join(stage.name for stage in known) or "-",
        )  # fmt: skip
    if found.config.embeddings:
        raise ConfigError("scaling: {stage} begins with word vectors", "they have one width, and the ladder's models have many", "leave out embeddings", stage=found.name)
    return found


def _resolved(recipe: Recipe, stage: Stage) -> tuple[Any, int]:
    """The stage's config in plain numbers, and the tokens of its data."""
    work = Work(path=recipe.out, inputs=open_inputs(recipe, stage), seed=recipe.seed, name=stage.name)
    config = resolve("train", stage.config, work)
    if not isinstance(config.shape, ShapeConfig) or config.shape.architecture not in FAMILIES:
        raise ConfigError("scaling: {stage} is of the family {name}", "ladders are made of dense decoders: llama, qwen2, qwen3, mistral", "set depth, or shape.architecture to one of them", stage=stage.name, name=config.shape.architecture)
    return config, train_facts(stage.config, work).get("train_tokens", 1_000_000)


def _tokens(config: Any, epoch: int) -> int:
    return config.length.steps(config.batch_tokens, epoch) * config.batch_tokens


def _rung(name: str, shape: ShapeConfig, tokens: int, config: Any) -> Rung:
    return Rung(name, shape, tokens, flops_per_token(shape, config.sequence_length, causal=True) * tokens)


def _check_rungs(rungs: list[Rung], target: Rung) -> None:
    found = [rung.size for rung in rungs]
    if any(second < 1.2 * first for first, second in zip(found, [*found[1:], target.size], strict=True)) or found[0] < LEAST:
        raise ConfigError(
            "scaling: a model of {size} parameters without embeddings leaves no room for such a ladder: {found}", "sizes must grow, and the least must learn something", "make the recipe's model larger, or lower --ladder, --times or --ratio",
            size=count_text(target.size), found=", ".join(count_text(size) for size in found),
        )  # fmt: skip


def _fields(stage: Stage, config: Any, rung: Rung, large: Rung) -> dict[str, Any]:
    """What a rung's stage says beside what the recipe says. With fewer tokens a step is smaller as auto would have it, also where it was given."""
    same = rung.tokens == large.tokens
    length = stage.config.model_dump(mode="json")["length"] if same else f"{rung.tokens} tokens"
    shrunk = dial.batch_tokens(rung.tokens, config.sequence_length, "causal") / dial.batch_tokens(large.tokens, config.sequence_length, "causal")
    step = config.batch_tokens if same else max(1, round(config.batch_tokens / config.sequence_length * shrunk)) * config.sequence_length
    return {
        "shape": rung.shape.model_dump(mode="json", exclude_none=True), "sequence_length": config.sequence_length, "batch_tokens": step, "length": length, "optimizer": moved_rates(stage.config.optimizer, config.shape, rung.shape),
        "validation": {**stage.config.validation.explicit(), "every": length}, "samples": {"prompts": []}, "track": {"tensorboard": False},
    }  # fmt: skip


# ---- training them ----------------------------------------------------------------------------------------------------


def _train(rungs: list[Rung], seeds: int, order: Callable[[Rung, int], Order]) -> None:
    """Train what is not there, the smallest first, and note each loss; says what is left after each."""
    todo = [(rung, seed) for rung in rungs for seed in range(seeds)]
    ready = {(rung.name, seed): manifest for rung, seed in todo if (manifest := _made(order(rung, seed))) is not None}
    left = sum(rung.flops for rung, seed in todo if (rung.name, seed) not in ready)
    done = spent = 0.0
    for rung, seed in todo:
        manifest = ready.get((rung.name, seed))
        begun = time.monotonic()
        if manifest is None:
            manifest = run_order(order(rung, seed))
            done, left, spent = done + rung.flops, left - rung.flops, spent + time.monotonic() - begun
        loss = (manifest["metrics"].get("after") or {}).get("loss")
        if loss is None or not math.isfinite(loss):
            raise ConfigError("scaling: {rung} has no held-out loss", "the law is fitted to it", "give the stage validation_data, or a corpus with split: {{validation: 0.01}}", rung=rung.name)
        rung.losses.append(float(loss))
        rung.seconds += manifest["metrics"]["training_seconds"]
        rest = seconds_text(left * spent / done) if done and left > 0 else "–"
        say("  {rung}, {parameters} parameters, seed {seed}: loss {loss:.4f} ({time}; left: {left})", rung=rung.name, parameters=count_text(rung.size), seed=seed + 1, loss=loss, time=seconds_text(manifest["metrics"]["training_seconds"]), left=rest)


def _made(order: Order) -> dict[str, Any] | None:
    """The manifest of what an order asks for, where it is there and up to date."""
    from luban.foundation.artifacts import open_artifact

    one = only(make_recipe(order.plain, Path(order.folder), order.name, Source(order.file)), [order.stage], order.moved, Path(order.out))
    one.seed += order.seed_offset
    if any(step.status != "fresh" for step in plan(one)):
        return None
    return open_artifact(Path(order.out) / order.stage).manifest


def _say_plan(recipe: Recipe, stage: Stage, rungs: list[Rung], target: Rung, tokens: str, seeds: int, check: bool) -> None:
    cost = seeds * sum(rung.flops for rung in rungs) / target.flops
    heading("{name}: {count} models below {stage}, {seeds} seeds each", name=recipe.name, count=len(rungs), stage=stage.name, seeds=seeds)
    say("sizes without embeddings: {sizes}; then {size}", sizes=", ".join(count_text(rung.size) for rung in rungs), size=count_text(target.size))
    if tokens == "same":
        say("each reads the {tokens} tokens that the large one will: the law is L = E + A / N^alpha, where E holds what more data would still give", tokens=count_text(target.tokens))
    else:
        say("each reads tokens in proportion to its size, the large one {tokens}: the law is L = E + A / N^alpha, where alpha stands for size and data together", tokens=count_text(target.tokens))
    say("the ladder takes {cost:.2f} times the operations of one training of the large model", cost=cost)
    if check:
        say("which is trained too, {seeds} times", seeds=seeds)


def curve(fitted: Fitted, low: float, high: float, points: int = 60) -> Iterator[tuple[float, float]]:
    """Sizes and losses along the law."""
    for step in range(points + 1):
        size = low * (high / low) ** (step / points)
        yield size, fitted.loss(size)
