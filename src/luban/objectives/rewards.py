"""What the answers of a model are worth: verifiable rewards, reward models, penalties, and functions of the user."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from luban.corpus.language import script_share
from luban.foundation.config import Config
from luban.foundation.custom import load_custom
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.objectives import config as configs
from luban.objectives.harm import found_in, shipped_patterns
from luban.objectives.verifying import letter_of, letter_said, right_answer

_FENCE = re.compile(r"```(?:json)?\s*\n(.*?)```", re.DOTALL)


@dataclass
class Answer:
    """An answer that a model wrote: the prompt's messages, its text, its tokens, whether it ended by itself, and the other columns of the prompt's row."""

    prompt: list[dict]
    text: str
    tokens: int
    ended: bool
    columns: dict[str, Any] = field(default_factory=dict)


Judge = Callable[[Sequence[Answer]], Sequence[float]]


@dataclass
class Reward:
    """A judge of answers with its name in the log, its weight, and the column that it cannot do without."""

    name: str
    weight: float
    judge: Judge
    column: str | None = None
    models: tuple[Predictor, ...] = ()

    def to(self, device: torch.device) -> None:
        """Move what models it has to a device."""
        for one in self.models:
            one.model.to(device)


def make_rewards(chosen: Sequence[Config], named: Mapping[str, Path]) -> list[Reward]:
    """The rewards of a config; ``named`` has the opened paths of their model directories and functions, as ``rewards.0.model``."""
    made: list[Reward] = []
    for place, config in enumerate(chosen):
        reward = _MAKERS[type(config)](config, {name.removeprefix(f"rewards.{place}."): path for name, path in named.items() if name.startswith(f"rewards.{place}.")})
        names = [other.name for other in made]
        reward.name = next(name for name in (reward.name, *(f"{reward.name}_{number}" for number in range(2, len(made) + 3))) if name not in names)
        made.append(reward)
    return made


def judged(rewards: Sequence[Reward], answers: Sequence[Answer]) -> tuple[torch.Tensor, torch.Tensor]:
    """([answers] the weighted sums, [answers, rewards] what each reward says), in float64."""
    each = torch.tensor([list(reward.judge(answers)) for reward in rewards], dtype=torch.float64).T
    return each @ torch.tensor([reward.weight for reward in rewards], dtype=torch.float64), each


def one_by_one(function: Callable[[Answer], float]) -> Judge:
    """A judge that looks at each answer alone."""
    return lambda answers: [float(function(answer)) for answer in answers]


# ---- verifiable ------------------------------------------------------------------------------------------------------


def _answer(config: configs.AnswerRewardConfig, named: Mapping[str, Path]) -> Reward:
    return Reward("answer", config.weight, one_by_one(lambda answer: right_answer(answer.text, answer.columns.get(config.column), config.place)), config.column)


def _choice(config: configs.ChoiceRewardConfig, named: Mapping[str, Path]) -> Reward:
    def right(answer: Answer) -> float:
        wanted = letter_of(answer.columns.get(config.column), config.letters)
        return wanted is not None and (letter_said(answer.text, config.letters) or "").upper() == wanted

    return Reward("choice", config.weight, one_by_one(right), config.column)


def _format(config: configs.FormatRewardConfig, named: Mapping[str, Path]) -> Reward:
    pattern = re.compile(config.pattern, re.DOTALL)
    return Reward("format", config.weight, one_by_one(lambda answer: bool(pattern.fullmatch(answer.text.strip()) if config.whole else pattern.search(answer.text))))


def _length(config: configs.LengthRewardConfig, named: Mapping[str, Path]) -> Reward:
    def within(answer: Answer) -> float:
        size = answer.tokens if config.unit == "tokens" else len(answer.text)
        outside = max(config.minimum - size, size - (config.maximum if config.maximum is not None else math.inf), 0)
        return max(0.0, 1 - outside / config.slope) if config.slope else float(not outside)

    return Reward("length", config.weight, one_by_one(within))


def _language(config: configs.LanguageRewardConfig, named: Mapping[str, Path]) -> Reward:
    script = {"zh": "han", "en": "latin"}[config.language]

    def share(answer: Answer) -> float:
        return script_share(answer.text, script) or 0.0

    return Reward("language", config.weight, one_by_one(share))


def _json(config: configs.JsonRewardConfig, named: Mapping[str, Path]) -> Reward:
    def valid(answer: Answer) -> float:
        text = answer.text
        if config.fenced and (match := _FENCE.search(text)):
            text = match[1]
        try:
            value = json.loads(text, parse_constant=_refuse)
        except (ValueError, RecursionError):
            return 0.0
        if not config.keys:
            return 1.0
        return sum(key in value for key in config.keys) / len(config.keys) if isinstance(value, dict) else 0.0

    return Reward("json", config.weight, one_by_one(valid))


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


# ---- models and functions ----------------------------------------------------------------------------------------------


def _model(config: configs.ModelRewardConfig, named: Mapping[str, Path]) -> Reward:
    folder = named["model"]
    predictor = Predictor.load(folder, device="cpu")
    if predictor.task != "reward":
        raise ConfigError("objective.rewards: {model} is no reward model", "its task is {task}", "train one with the objective reward", model=folder, task=predictor.task)

    def judge(answers: Sequence[Answer]) -> list[float]:
        found = predictor.predict([{"messages": answer.prompt, "response": answer.text} for answer in answers])
        return [one["score"] for one in found]

    return Reward("model", config.weight, judge, models=(predictor,))


def _harm(config: configs.HarmRewardConfig, named: Mapping[str, Path]) -> Reward:
    patterns = [*(shipped_patterns() if config.patterns else ()), *(re.compile(pattern, re.IGNORECASE | re.DOTALL) for pattern in config.more)]
    classifier = Predictor.load(named["classifier"], device="cpu") if config.classifier else None
    if classifier is not None and (classifier.task not in ("classification", "multi_label") or config.label not in classifier.head.labels):
        raise ConfigError(
            "objective.rewards: {classifier} gives no probability of {label!r}", "it is of the task {task}, with the labels {labels}", "name a text classifier, and as label the one that is to be penalised",
            classifier=named["classifier"], label=config.label, task=classifier.task, labels=", ".join(classifier.head.labels if classifier.head else ()) or "-",
        )  # fmt: skip

    def judge(answers: Sequence[Answer]) -> list[float]:
        found = [float(bool(found_in(answer.text, patterns))) for answer in answers]
        if classifier is not None:
            asked = [number for number, answer in enumerate(answers) if answer.text.strip()]
            said = classifier.predict([{"text": answers[number].text} for number in asked])
            for number, one in zip(asked, said, strict=True):
                found[number] = max(found[number], one["probabilities"][config.label])
        return [-value for value in found]

    return Reward("harm", config.weight, judge, models=() if classifier is None else (classifier,))


def _own(config: configs.OwnRewardConfig, named: Mapping[str, Path]) -> Reward:
    """A function ``score(prompts, completions, columns)``: lists of messages, texts, and {column: values}, one entry an answer each."""
    reference = str(named.get("function", config.function))
    function = load_custom(reference)
    if not callable(function):
        raise ConfigError("{reference} is no function", "it is called with (prompts, completions, columns) and returns a number for each completion", reference=reference)

    def judge(answers: Sequence[Answer]) -> list[float]:
        columns = {name: [answer.columns.get(name) for answer in answers] for name in dict.fromkeys(name for answer in answers for name in answer.columns)}
        try:
            found = function([answer.prompt for answer in answers], [answer.text for answer in answers], columns)
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            where = next((f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames) if Path(frame.filename).name == Path(reference.rpartition(":")[0]).name), reference)
            raise DataError("the reward {reference} failed at {where}: {kind}: {error}", "it is called with (prompts, completions, columns)", reference=reference, where=where, kind=type(error).__name__, error=error) from error
        return _numbers(found, len(answers), reference)

    return Reward(reference.rpartition(":")[2], config.weight, judge)


def _numbers(found: Any, count: int, reference: str) -> list[float]:
    """What a function returned, as a finite number for each answer."""
    try:
        values = [float(value) for value in found]
    except (TypeError, ValueError) as error:
        raise DataError("the reward {reference} did not return numbers: {error}", "it must return a list of one number for each completion", reference=reference, error=error) from None
    if len(values) != count:
        raise DataError("the reward {reference} returned {found} numbers for {count} completions", "it must return a list of one number for each completion", reference=reference, found=len(values), count=count)
    for number, value in enumerate(values, start=1):
        if not math.isfinite(value):
            raise DataError("the reward {reference} returned {value} for completion {number}", "a reward is a finite number", reference=reference, value=value, number=number)
    return values


_MAKERS: dict[type[Config], Callable[[Any, Mapping[str, Path]], Reward]] = {
    configs.AnswerRewardConfig: _answer, configs.ChoiceRewardConfig: _choice, configs.FormatRewardConfig: _format, configs.LengthRewardConfig: _length,
    configs.LanguageRewardConfig: _language, configs.JsonRewardConfig: _json, configs.ModelRewardConfig: _model, configs.HarmRewardConfig: _harm, configs.OwnRewardConfig: _own,
}  # fmt: skip
