"""`luban lr-find`: the learning-rate range test (Smith, arXiv:1506.01186).

The stage begins as it would begin, with its own model, data, optimizer and loop, but the learning rate rises by the same factor at every step. The loss
first stands still, then falls, then explodes. What is written goes to ``lr-find/`` in the run's folder; the stage's own folder is not touched.
"""

from __future__ import annotations

import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from luban.foundation.artifacts import Work, write_bytes, write_json
from luban.foundation.console import say, table
from luban.foundation.durations import Duration
from luban.foundation.errors import ConfigError, LubanError, nearest
from luban.foundation.messages import language, t
from luban.pipeline.card_charts import nice_ticks, number_text, running_average
from luban.pipeline.recipe import Recipe, Stage
from luban.pipeline.runner import open_inputs, plan, run_recipe
from luban.planning.resolve import resolve
from luban.training.run import Run
from luban.training.schedules import Schedule
from luban.training.stage import train_once
from luban.tuning.problem import only, refuse_ranks

FOLDER = "lr-find"
DIVERGED = 4.0  # the loss is beyond hope when it is above its lowest by three times that, or three times the whole fall, whichever is more
_SMOOTHED = 0.05  # share of the steps over which the loss is averaged


@dataclass(frozen=True)
class Suggestion:
    """``steepest``: the rate at which the smoothed loss fell fastest against the rate's logarithm. ``tenth``: a tenth of the rate of the lowest loss. ``rate`` is the lower of both."""

    rate: float
    steepest: float
    tenth: float
    lowest: float


@dataclass(frozen=True)
class Rise(Schedule):
    """From 1 to ``top`` times the first rate, by the same factor at every step."""

    top: float = 1.0

    def factor(self, step: int) -> float:
        return self.top ** (step / max(1, self.total - 1))


class _Enough(Exception):
    """The last step, or a loss beyond hope."""


class Rising:
    """Watches a training: puts the rise in the place of its schedule after the first step, and notes each step's rate and loss."""

    def __init__(self, steps: int, low: float, high: float):
        self.steps, self.low, self.high = steps, low, high
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.stopped = ""

    def __call__(self, run: Run) -> None:
        self.rates.append(self.low * (self.high / self.low) ** ((run.step - 1) / max(1, self.steps - 1)))
        self.losses.append(run.last["loss"])
        run.schedule = Rise("constant", 0, self.steps, top=self.high / self.low)
        if run.stop_reason:
            raise KeyboardInterrupt
        known = smoothed(self.losses, self.steps)
        first, lowest = start_of(self.losses, self.steps), min(known)
        if not math.isfinite(self.losses[-1]) or known[-1] > lowest + (DIVERGED - 1) * max(abs(lowest), abs(first - lowest)):
            self.stopped = "diverged"
            raise _Enough
        if run.step >= self.steps:
            raise _Enough


def lr_find(recipe: Recipe, stage: str | None = None, steps: int = 100, low: float = 1e-7, high: float = 1.0) -> Suggestion:
    """Run the test for a train stage (the last one by default) and write plot.svg and rates.json. Raises ConfigError, and LubanError when no rate taught anything."""
    refuse_ranks("lr-find")
    chosen = _train_stage(recipe, stage)
    if not 0 < low < high:
        raise ConfigError("lr-find: the rates must rise, from {low} to {high}", "", "write --from 1e-7 --to 1", low=low, high=high)
    _make_inputs(recipe, chosen)
    folder = recipe.out / FOLDER / chosen.name
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".work-", dir=folder))
    rising = Rising(steps, low, high)
    try:
        work = Work(path=scratch, inputs=open_inputs(recipe, chosen), seed=recipe.seed, name=chosen.name, watch=rising)
        config = resolve("train", chosen.config, work)
        main = "matrix_learning_rate" if config.optimizer.name == "muon" else "learning_rate"
        ratios = {name: getattr(config.optimizer, name) / getattr(config.optimizer, main) for name in ("learning_rate", "embedding_learning_rate", "matrix_learning_rate")}
        train_once(_rising_config(config, ratios, steps, low), work)
    except _Enough:
        pass
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    found = suggest(rising.rates, rising.losses, steps)
    _write(folder, chosen.name, rising, found)
    _say(chosen, main, ratios, rising, found, folder)
    return found


def smoothed(losses: Sequence[float], steps: int) -> list[float]:
    """Exponential moving average over about a twentieth of the steps, corrected for its beginning."""
    return running_average(losses, 1 - 1 / max(2.0, _SMOOTHED * steps))


def start_of(losses: Sequence[float], steps: int) -> float:
    """The loss before anything was learned: the mean over the first tenth of the steps."""
    first = list(losses[: max(1, steps // 10)])
    return sum(first) / len(first)


def suggest(rates: Sequence[float], losses: Sequence[float], steps: int) -> Suggestion:
    """The rates that the curve speaks for. LubanError when the loss never fell."""
    begin = max(1, steps // 10)  # steps whose rate is too low to teach anything: what they show is noise
    pairs = [(rate, loss) for rate, loss in zip(rates, smoothed(losses, steps), strict=True) if math.isfinite(loss)]
    lowest = min(range(begin, len(pairs)), key=lambda index: pairs[index][1], default=0)
    if lowest < begin + 2 or pairs[lowest][1] >= start_of(losses, steps):
        raise LubanError("the loss did not fall at any learning rate", "it was tried from {low:.2g} to {high:.2g}", "begin lower with --from, take more --steps, or look at the data and the model", low=rates[0], high=rates[-1])
    slopes = [(pairs[index + 1][1] - pairs[index - 1][1]) / math.log(pairs[index + 1][0] / pairs[index - 1][0]) for index in range(begin, lowest)]
    steepest = pairs[begin + min(range(len(slopes)), key=slopes.__getitem__)][0]
    tenth = pairs[lowest][0] / 10
    return Suggestion(float(f"{min(steepest, tenth):.2g}"), steepest, tenth, pairs[lowest][0])


def _train_stage(recipe: Recipe, name: str | None) -> Stage:
    trains = [stage for stage in recipe.stages.values() if stage.kind.name == "train"]
    if name is None and trains:
        return trains[-1]
    found = next((stage for stage in trains if stage.name == name), None)
    if found is None:
        guess = nearest(name or "", [stage.name for stage in trains])
        raise ConfigError("lr-find: there is no train stage called {name!r}", "", "did you mean {guess}?" if guess else "train stages: {known}", name=name, guess=guess, known=", ".join(stage.name for stage in trains) or "-")
    return found


def _make_inputs(recipe: Recipe, chosen: Stage) -> None:
    """The stages that the chosen one is made from, as `luban run` would make them."""
    names = list(recipe.stages)[: list(recipe.stages).index(chosen.name)]
    needed = {chosen.name}
    for name in reversed(list(recipe.stages)):
        if name in needed:
            needed |= {value for values in recipe.stages[name].inputs.values() for value in values if value in recipe.stages}
    before = only(recipe, [name for name in names if name in needed], {}, recipe.out)
    if before.stages and any(step.status != "fresh" for step in plan(before)):
        run_recipe(before)


def _rising_config(config: Any, ratios: dict[str, float], steps: int, low: float) -> Any:
    """The stage's own config with the first rate in the place of the peak, and nothing beside the steps: no validations, checkpoints or samples on the way."""
    length = Duration(steps, "steps")
    return config.updated(
        length=length,
        optimizer={**config.optimizer.explicit(), **{name: low * ratio for name, ratio in ratios.items()}},
        schedule={"shape": "constant", "warmup": 1},
        validation={**config.validation.explicit(), "every": length, "folds": 0, "patience": 0, "maximum_examples": 1},
        checkpoint={"every": length},
        samples={"prompts": []},
        track={"tensorboard": False, "every": max(1, steps // 10)},
    )


def _write(folder: Path, name: str, rising: Rising, found: Suggestion) -> None:
    losses = [loss if math.isfinite(loss) else None for loss in rising.losses]
    known = [loss if math.isfinite(loss) else None for loss in smoothed(rising.losses, rising.steps)]
    write_json(folder / "rates.json", {"stage": name, **asdict(found), "stopped": rising.stopped, "rates": rising.rates, "losses": losses, "smoothed": known})
    write_bytes(folder / "plot.svg", draw(rising.rates, losses, known, found).encode("utf-8"))


def _say(stage: Stage, main: str, ratios: dict[str, float], rising: Rising, found: Suggestion, folder: Path) -> None:
    every = max(1, len(rising.rates) // 12)
    known = smoothed(rising.losses, rising.steps)
    table(t("loss by learning rate"), [t("learning rate"), t("loss (smoothed)")], [(f"{rate:.1e}", f"{loss:.4f}") for rate, loss in list(zip(rising.rates, known, strict=True))[::every]])
    if rising.stopped:
        say("the loss exploded at {rate:.2g}: stopped there", rate=rising.rates[-1])
    say("steepest descent at {steepest:.2g}; a tenth of the lowest point's {lowest:.2g} is {tenth:.2g}; the lower of both is suggested", steepest=found.steepest, lowest=found.lowest, tenth=found.tenth)
    given = [name for name in ("matrix_learning_rate", "learning_rate") if name == main or main != "learning_rate"]
    rates = ", ".join(f"{name}: {found.rate * ratios[name]:.2g}" for name in given)
    say("✓ {stage}: optimizer: {{{rates}}}", stage=stage.name, rates=rates)
    say("  the plot: {plot}", plot=folder / "plot.svg")


# ---------------------------------------------------------------------------------------------------------- plot

_WIDE, _HIGH, _LEFT, _TOP = 760, 420, 64, 48
_STYLE = (
    "<style>:root{color-scheme:light dark}svg{background:#fffefc;font:13px system-ui,'Noto Sans CJK SC',sans-serif}text{fill:#1d1f21}.quiet{fill:#6d7076}.grid{stroke:#e7e4dd}"
    ".raw{stroke:#0d7a68;opacity:.3}.smooth{stroke:#0d7a68;stroke-width:2}.mark{stroke:#b23a2e;stroke-dasharray:4 3}path{fill:none}"
    "@media(prefers-color-scheme:dark){svg{background:#1a1d20}text{fill:#e9e7e2}.quiet{fill:#9a9da2}.grid{stroke:#2b2f33}.raw,.smooth{stroke:#4fc0a8}.mark{stroke:#e0695c}}</style>"
)


def draw(rates: Sequence[float], losses: Sequence[float | None], known: Sequence[float | None], found: Suggestion) -> str:
    """A picture that stands alone: the loss over the rate's logarithm, with the suggested rate."""
    seen = [loss for loss in known if loss is not None]
    low, high = min(seen), min(max(seen), max(seen[0], min(seen) + 2 * (seen[0] - min(seen))))
    ticks = nice_ticks(low, high)
    first, last = math.log10(rates[0]), math.log10(max(rates[-1], rates[0] * 10))

    def place(rate: float, loss: float) -> tuple[float, float]:
        across = (math.log10(rate) - first) / (last - first)
        up = min(1.05, max(-0.05, (loss - ticks[0]) / (ticks[-1] - ticks[0])))
        return _LEFT + across * (_WIDE - _LEFT - 24), _HIGH - 48 - up * (_HIGH - 48 - _TOP)

    def line(values: Sequence[float | None]) -> str:
        points = [place(rate, loss) for rate, loss in zip(rates, values, strict=True) if loss is not None]
        return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)

    pieces = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDE} {_HIGH}" role="img" lang="{language()}">', _STYLE]
    for tick in ticks:
        _, y = place(rates[0], tick)
        pieces.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDE - 24}" y1="{y:.1f}" y2="{y:.1f}"/><text class="quiet" text-anchor="end" x="{_LEFT - 8}" y="{y + 4:.1f}">{number_text(tick)}</text>')
    for power in range(math.ceil(first - 1e-9), math.floor(last + 1e-9) + 1):
        x, _ = place(10.0**power, ticks[0])
        pieces.append(f'<text class="quiet" text-anchor="middle" x="{x:.1f}" y="{_HIGH - 26}">1e{power}</text>')
    x, _ = place(found.rate, ticks[0])
    pieces += [f'<path class="raw" d="{line(losses)}"/>', f'<path class="smooth" d="{line(known)}"/>']
    pieces.append(f'<line class="mark" x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{_HIGH - 48}"/><text x="{x + 6:.1f}" y="{_TOP + 12}">{found.rate:.2g}</text>')
    pieces.append(f'<text x="{_LEFT}" y="26">{t("loss by learning rate")}</text><text class="quiet" text-anchor="end" x="{_WIDE - 24}" y="{_HIGH - 8}">{t("learning rate")}</text></svg>')
    return "\n".join(pieces) + "\n"

