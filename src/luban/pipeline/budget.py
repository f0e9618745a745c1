"""From a budget and data to a size, a number of tokens, and a whole recipe: the dial's depths, each as fast as the planner says it will be, and the law that says which of them is best."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from luban.foundation.config import Source, build
from luban.foundation.console import count_text, heading, say, seconds_text, table, warn
from luban.foundation.errors import ConfigError
from luban.foundation.messages import t
from luban.models.counts import parameters
from luban.models.shape import ShapeConfig
from luban.pipeline.counting import Counted
from luban.pipeline.planner import job_of
from luban.planning import dial
from luban.planning.devices import Cluster
from luban.planning.job import Job
from luban.planning.law import MANY_EPOCHS, Law
from luban.planning.margins import Margin
from luban.planning.report import Plan, make_plan
from luban.planning.search import Candidate, search
from luban.training.config import TrainConfig

DEPTHS = (*range(1, 13), *range(14, 34, 2), 36, 40, 44, 48, 52, 54, 56, 60, 64)
SPENT = 0.95  # of a budget of time: the rest is for curating, validation and checkpoints
OPTIMIZER = "muon"
FAR = 1.5  # times as many parameters as were asked for, or as few, are worth a word


@dataclass(frozen=True)
class Budget:
    """What was given: exactly one of seconds of the whole cluster, tokens to read, or parameters; ``cost`` where seconds came from money."""

    seconds: float | None = None
    tokens: float | None = None
    parameters: float | None = None
    cost: float | None = None
    price: float = 0.0


def make_budget(hours: float | None, cost: float | None, tokens: str | None, size: str | None, price: float, devices: int) -> Budget:
    """ConfigError unless exactly one is given, and for a cost without a price."""
    given = [value for value in (hours, cost, tokens, size) if value is not None]
    if len(given) != 1:
        raise ConfigError("plan --data: {count} budgets are given", "one of them decides the others", "give one of --hours, --cost, --tokens, --parameters", count=len(given))
    if cost is not None and not price:
        raise ConfigError("plan --cost: what a device costs for an hour is not known", "", "add --price, the price of a device for an hour")
    if cost is not None:
        return Budget(seconds=3600 * cost / price / devices, cost=cost, price=price)
    return Budget(seconds=3600 * hours if hours is not None else None, tokens=_number(tokens, "--tokens"), parameters=_number(size, "--parameters"), price=price)


def _number(text: str | None, option: str) -> float | None:
    """``2.5B``, ``300M`` or ``1e9``. ConfigError for what is no number above zero."""
    if text is None:
        return None
    scale = {"k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}.get(text.strip()[-1:].lower(), 1.0)
    try:
        value = float(text.strip()[:-1] if scale > 1 else text) * scale
    except ValueError:
        value = 0.0
    if not 0 < value < 1e18:
        raise ConfigError("{option}: {text!r} is not a number above zero", "", "write 300M, 2.5B or 1e9", option=option, text=text)
    return value


@dataclass(frozen=True)
class Choice:
    """A depth of the dial with the tokens that the budget gives it, how fast it is, and what the law expects of it."""

    depth: int
    shape: ShapeConfig
    tokens: float
    config: TrainConfig
    candidate: Candidate
    epochs: float
    loss: float

    @property
    def parameters(self) -> int:
        return parameters(self.shape)["total"]

    @property
    def seconds(self) -> float:
        return self.tokens / self.candidate.speed.tokens_per_second


@dataclass(frozen=True)
class Chosen:
    """The best choice, all that were looked at, and what they rest on."""

    best: Choice
    every: list[Choice]
    counted: Counted
    unique: float  # tokens of the train split
    held_out: float  # share of validation, and of test
    cluster: Cluster
    margin: Margin
    budget: Budget
    law: Law
    too_large: list[int]  # depths that fit on no layout
    few_rows: list[int]  # depths whose step has too few rows for so many devices
    enough: int  # devices, for which the first of those has rows

    @property
    def spare(self) -> bool:
        """Whether the data ends before the budget does."""
        return self.best.epochs > 0.99 * self.law.most_epochs

    def plan(self, price: float = 0.0) -> Plan:
        """The planner's whole account of the choice."""
        return make_plan("base", self.best.candidate.job, self.cluster, self.margin, price=price)

    def as_json(self) -> dict[str, Any]:
        def one(choice: Choice) -> dict[str, Any]:
            return {"depth": choice.depth, "parameters": choice.parameters, "tokens": round(choice.tokens), "epochs": choice.epochs, "law_loss": choice.loss, "seconds": choice.seconds, "tokens_per_second": choice.candidate.speed.tokens_per_second}

        return {"best": one(self.best), "every": [one(choice) for choice in self.every], "data": {**asdict(self.counted), "tokens": round(self.counted.tokens), "train_tokens": round(self.unique)}, "cluster": self.cluster.text, "law": asdict(self.law), "too_large": self.too_large, "few_rows": self.few_rows, "time_margin": self.margin.time}


def choose(counted: Counted, cluster: Cluster, margin: Margin, budget: Budget, law: Law) -> Chosen:
    """The depth that the law likes best within the budget. ConfigError where none fits on the cluster."""
    held_out = float(f"{min(0.02, max(1e-4, 2e6 / counted.text_bytes)):.1g}")
    unique = counted.tokens * (1 - 2 * held_out)
    every, too_large, few_rows, worse = [], [], [], 0
    for depth in DEPTHS:
        made = _choice(depth, counted, unique, cluster, margin, budget, law)
        if isinstance(made, Job):
            if _lacks_rows(made, cluster, margin):
                few_rows.append(depth)
                continue
            too_large.append(depth)
            if len(too_large) == 2:  # deeper ones do not fit either
                break
            continue
        worse = worse + 1 if every and _rank(made, budget, law, unique) > min(_rank(one, budget, law, unique) for one in every) else 0
        every.append(made)
        if worse == 4:  # past the best: deeper ones read too little
            break
    enough = cluster.count
    while few_rows and enough > 1 and isinstance(_choice(few_rows[0], counted, unique, _fewer(cluster, enough), margin, budget, law), Job):
        enough //= 2
    if not every and few_rows:
        raise ConfigError(
            "no depth of the dial can be shared out over {cluster}", "a step on so little text has fewer rows than there are devices", "name fewer devices, such as --cluster {enough}x{name}, or more text",
            cluster=cluster.text, enough=enough, name=cluster.device.name,
        )  # fmt: skip
    if not every:
        raise ConfigError("no depth of the dial fits on {cluster}", "", "name more devices, or larger ones", cluster=cluster.text)
    best = min(every, key=lambda one: _rank(one, budget, law, unique))
    return Chosen(best, every, counted, unique, held_out, cluster, margin, budget, law, too_large, few_rows, enough)


def _fewer(cluster: Cluster, count: int) -> Cluster:
    return replace(cluster, count=count, node=min(count, cluster.node))


def _lacks_rows(job: Job, cluster: Cluster, margin: Margin) -> bool:
    """Whether a job that fits on no layout would, if its step had a row for each device."""
    if job.step_rows >= cluster.count:
        return False
    found = search(replace(job, step_rows=cluster.count), cluster, margin, wanted=1)
    return bool(found) and found[0].fits


def _rank(choice: Choice, budget: Budget, law: Law, unique: float) -> float:
    """What is to be small: the law's loss where time is given, else how far the size is from the one that was asked for, or that is best for so many tokens."""
    if budget.seconds is not None:
        return choice.loss
    wanted = budget.parameters or law.best_parameters(law.worth(min(budget.tokens, law.most_epochs * unique), unique))
    return max(choice.parameters / wanted, wanted / choice.parameters)


def _choice(depth: int, counted: Counted, unique: float, cluster: Cluster, margin: Margin, budget: Budget, law: Law) -> Choice | Job:
    """What a depth comes to, or the job that fits on no layout. Speed depends on the batch, and that on the tokens, so both are settled in two rounds."""
    shape = dial.shape_of_depth(depth, counted.vocabulary, ShapeConfig())
    size = parameters(shape)["total"]
    tokens = budget.tokens or law.best_tokens(size)
    for _ in range(2):
        tokens = max(min(tokens, law.most_epochs * unique), 4.0 * shape.maximum_positions)
        config = _config(depth, tokens, shape)
        job = job_of(config, shape, cluster, unique)
        found = search(job, cluster, margin, wanted=1)
        if not found or not found[0].fits:
            return job
        if budget.seconds is not None:
            tokens = SPENT * budget.seconds * found[0].speed.tokens_per_second
    tokens = max(min(tokens, law.most_epochs * unique), float(config.batch_tokens))
    candidate = replace(found[0], job=replace(found[0].job, tokens=tokens))
    return Choice(depth, shape, tokens, _config(depth, tokens, shape), candidate, tokens / unique, law.loss(size, tokens, unique))


def _config(depth: int, tokens: float, shape: ShapeConfig) -> TrainConfig:
    sequence = min(shape.maximum_positions, 2048)
    plain = {"data": "tokens", "depth": depth, "length": f"{round(tokens)} tokens", "sequence_length": sequence, "batch_tokens": dial.batch_tokens(int(tokens), sequence, "causal"), "optimizer": {"name": OPTIMIZER}}
    return build(TrainConfig, plain, Source("plan"))


# ---- for people -----------------------------------------------------------------------------------------------------


def show(chosen: Chosen) -> None:
    """Print what was counted, the depths, and which was chosen why."""
    counted, best = chosen.counted, chosen.best
    heading("{tokens} tokens to learn from: {bytes} bytes of text, {each:.2f} bytes a token with a vocabulary of {vocabulary}", tokens=count_text(chosen.unique), bytes=count_text(counted.text_bytes), each=counted.bytes_a_token, vocabulary=counted.vocabulary)
    say("{how}; what curating will remove is not known yet", how=how_counted(counted))
    say("the law ranks sizes and tokens for a budget; its loss is that of its own text and tokenizer, not of yours (luban scaling foretells yours): {law}", law=chosen.law.text())
    near = [one for one in chosen.every if abs(chosen.every.index(one) - chosen.every.index(best)) <= 4]
    rows = [[("→ " if one is best else "") + str(one.depth), count_text(one.parameters), count_text(one.tokens), times_text(one.epochs), f"{one.tokens / one.parameters:.3g}", seconds_text(one.seconds), f"{one.loss:.3f}"] for one in near]
    table(t("depths of the dial on {cluster}", cluster=chosen.cluster.text), [t("depth"), t("parameters"), t("tokens"), t("epochs"), t("tokens a parameter"), t("time"), t("law")], rows)
    if beyond := [depth for depth in chosen.too_large if depth > chosen.every[-1].depth]:
        say("depth {depth} and more do not fit there", depth=beyond[0])
    if chosen.few_rows and (near[0] is chosen.every[0] or chosen.few_rows[-1] > near[0].depth):
        say(
            "depths left out, as their step has fewer rows than there are devices: {depths}; --cluster {enough}x{name} would do for depth {first}",
            depths=", ".join(map(str, chosen.few_rows)), first=chosen.few_rows[0], enough=chosen.enough, name=chosen.cluster.device.name,
        )  # fmt: skip
    for line in warnings(chosen):
        warn("{line}", line=line)


def times_text(times: float) -> str:
    """How often text is read: whole, or right to a digit after the point; of less than once two digits."""
    return f"{times:.1f}".removesuffix(".0") if times >= 1 else f"{times:.2g}"


def how_counted(counted: Counted) -> str:
    if counted.exact:
        return t("every file was read ({files}); the bytes a token are those of a vocabulary learned from a part of the text", files=counted.files)
    return t("estimated: {sampled} bytes of text were read in {looked} of {files} files", sampled=count_text(counted.sampled), looked=counted.looked, files=counted.files)


def warnings(chosen: Chosen) -> Iterator[str]:
    """What to think about before such a run."""
    epochs, asked, size = chosen.best.epochs, chosen.budget.parameters, chosen.best.parameters
    if not chosen.cluster.device.trains:
        yield t("Luban does not train on {device}: this is arithmetic alone, to compare devices by", device=chosen.cluster.device.name)
    if asked and max(asked / size, size / asked) > FAR:
        yield t(
            "{asked} parameters were asked for; of the depths {low} to {high} that can be had there the nearest has {size}. For others give the train stage a shape, such as shape: llama-2-70b, or begin with luban new 7b/pretrain",
            asked=count_text(asked), low=chosen.every[0].depth, high=chosen.every[-1].depth, size=count_text(size),
        )  # fmt: skip
    wanted = chosen.budget.tokens
    if wanted and chosen.best.tokens > 1.001 * wanted:
        yield t("{asked} tokens were asked for; the least that is planned at depth {depth} is {tokens}, a few rows", asked=count_text(wanted), depth=chosen.best.depth, tokens=count_text(chosen.best.tokens))
    if epochs > MANY_EPOCHS:
        yield t("the data is read {epochs:.1f} times: up to {many} times repeated text is worth about as much as new text, from there on less and less (Muennighoff et al. 2023, arXiv:2305.16264); more text would do more than more time", epochs=epochs, many=MANY_EPOCHS)
    if chosen.spare:
        yield t("reading ends after {epochs:.0f} times through the data, from which nothing more would be learned by then, though the budget or the size would allow more", epochs=epochs)
