"""Group relative policy optimisation: answers that the model writes itself, weighed by how much better than their group they are rewarded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from luban.examples.reading import ExampleSet
from luban.examples.tables import is_filled
from luban.examples.tasks import Prompt
from luban.foundation.console import say, warn
from luban.foundation.errors import ConfigError, LubanError
from luban.inference.config import SamplingConfig
from luban.metrics.score import Score
from luban.models.base import Model
from luban.objectives.base import DataRequest, Loaders, ShareOut, Term
from luban.objectives.completions import GREEDY, PromptLoader, Start, log_probabilities, rows_of, seed_of, write
from luban.objectives.config import GRPOConfig
from luban.objectives.losses import token_nats_and_entropy
from luban.objectives.rewards import Answer, Reward, judged, make_rewards
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row
from luban.tokens.units import UnitLoader

FLAT = 1e-8  # a group with a smaller deviation has nothing to tell apart
SMALLEST = 1e-4  # added to a deviation before it divides, as TRL does
OF_GROUPS = ("reward_deviation", "flat_groups")  # figures that only groups of answers have: validation has none
_KEPT = ("inputs", "targets", "weights", "positions", "segments")


class GRPO(TaskObjective):
    """GRPO (Shao et al. 2024, arXiv:2402.03300) with the clipping of DAPO (Yu et al. 2025, arXiv:2503.14476) and the sums of Dr. GRPO (Liu et al.
    2025, arXiv:2503.20783).

    A unit of the loader is a prompt. :meth:`prepare_step` lets the model write ``group`` answers to each prompt of the step, rewards them, and makes
    rows of them, so that the loss has rows of answers and all counts are known before the forward pass. Of several ranks each writes and judges the answers to
    its share of prompts, and all get all of them; an answer is drawn by a seed of its own, so that it is the same whoever writes it. Validation batches get the
    one likeliest answer to each prompt; their loss is the negative mean reward.
    """

    name, reads, judged_by = "grpo", "prompt", "reward"
    kinds: ClassVar[tuple[str, ...]] = ("decoder",)
    conversational = True
    config: GRPOConfig

    def __init__(self, config: GRPOConfig):
        super().__init__(config)
        self.prompts: list[tuple[Prompt, list[int]]] = []
        self.rewards: list[Reward] = []
        self.precision = torch.float32
        self.start: Start | None = None  # the reference, where there is a divergence to be paid for
        self.written: Batch | None = None  # the answers that further updates learn from

    @property
    def figures(self) -> list[str]:
        """What is logged of each answer, in the order of ``extra["figures"]``."""
        return ["reward", "completion_length", "ended", *(f"reward/{reward.name}" for reward in self.rewards), *OF_GROUPS]

    # ---- prompts to batches ------------------------------------------------------------------------------------------

    def make_head(self, found: ExampleSet, data: DataRequest) -> None:
        """None: a language model stays one. What the answers are judged by is opened here."""
        self.tokenizer, self.seed, self.prompts = data.tokenizer, data.seed, []
        longest = self.config.sampling.maximum_tokens
        self.room = data.sequence_length - longest  # for a prompt
        if self.room < 1:
            raise ConfigError("sequence_length {length} leaves no room for a prompt", "an answer may have sampling.maximum_tokens {longest} of it", "raise sequence_length, or lower objective.sampling.maximum_tokens", length=data.sequence_length, longest=longest)
        self.rewards = make_rewards(self.config.rewards, data.named)
        known = list(dict.fromkeys(name for example in found.examples for name in example.columns))
        for reward in self.rewards:
            if reward.column is not None and reward.column not in known:
                raise ConfigError("objective.rewards: the reward {reward} reads the column {column!r}, which the data does not have", "the prompts' other columns are: {known}", "set its column", reward=reward.name, column=reward.column, known=", ".join(known) or "-")
        return None

    def unit_of(self, example: Prompt, tokenizer: Tokenizer) -> list[Row] | None:
        for reward in self.rewards:
            if reward.column is not None and not is_filled(example.columns.get(reward.column)):
                self.refuse("a column that a reward reads is empty")
                return None
        try:
            ids = asked(tokenizer, example)
        except LubanError as error:
            reason = error.text().partition("\n")[0]  # translated already
            self.refuse(reason)
            return None
        if len(ids) > self.room:
            self.refuse("the prompt is longer than sequence_length less sampling.maximum_tokens")
            return None
        self.prompts.append((example, ids))
        return [Row(np.array(ids), np.ones(1, np.float32), extra={"prompt": np.int64(len(self.prompts) - 1)}, source=example.source)]

    def loader(self, units: list[list[Row]], data: DataRequest, seed: int, shuffle: bool) -> UnitLoader:
        made = PromptLoader(units, units_per_step=data.examples_per_step, seed=seed, pad_id=data.tokenizer.pad_id, shuffle=shuffle)
        made.updates = self.config.updates
        return made

    def loaders(self, data: DataRequest) -> Loaders:
        made = super().loaders(data)
        say("{prompts} prompts a step, {group} answers each, rewarded by: {rewards}", prompts=data.examples_per_step, group=self.config.group, rewards=", ".join(f"{reward.name} × {reward.weight:g}" for reward in self.rewards))
        if self.config.updates == 1 and {"clip_low", "clip_high"} & set(self.config.explicit()):
            warn("clip_low and clip_high do nothing with updates: 1, since every answer is learned from by the model that wrote it")
        return made

    def before_training(self, model: Model, loaders: Loaders, folder: Path, precision: torch.dtype) -> None:
        """Keep what the divergence is measured from, and bring the judges to the model's device."""
        self.precision = precision
        if self.config.beta:
            self.start = Start(model)
        for reward in self.rewards:
            reward.to(model.device)

    # ---- a step's answers ----------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch, model: Model) -> Batch:
        """The prompts' answers as rows, with their rewards: of a validation the likeliest; of a step as :meth:`prepare_step`, and nothing is kept of them."""
        if "figures" in batch.extra:
            return batch
        if (draw := int(batch.extra["draw"][0])) != GREEDY:
            return self._written(batch, model, draw, lambda units, work: work(0, units))
        numbers = batch.extra["prompt"].tolist()
        found = self._answered(model, numbers, self.config.sampling.model_copy(update={"temperature": 0.0}), [0] * len(numbers))
        return self._rows(numbers, found, batch.sources)

    def prepare_step(self, batch: Batch, model: Model, share_out: ShareOut) -> Batch:
        """The prompts' answers as rows, with their rewards, advantages, and the log-probabilities that the loss compares with. Each rank writes those to its share of prompts."""
        if "figures" in batch.extra:
            return batch
        draw = int(batch.extra["draw"][0])
        if self.written is None or self.config.updates == 1 or int(self.written.extra["draw"][0]) != draw:
            self.written = self._written(batch, model, draw, share_out)
        return self.written

    def _written(self, batch: Batch, model: Model, draw: int, share_out: ShareOut) -> Batch:
        config, group = self.config, self.config.group
        # A prompt that comes twice in a step is written to anew: its place counts.
        asked = [(place, number, copy) for place, number in enumerate(batch.extra["prompt"].tolist()) for copy in range(group)]

        def share(first: int, last: int) -> dict[str, Tensor]:
            own = asked[first * group : last * group]
            numbers = [number for _, number, _ in own]
            found = self._answered(model, numbers, config.sampling, [seed_of(self.seed, draw, *one) for one in own])
            return found | self._compared(self._rows(numbers, found, [""] * len(own)), model)

        found = share_out(len(asked) // group, share)
        made = self._rows([number for _, number, _ in asked], found, [source for source in batch.sources for _ in range(group)])
        advantages, deviations = advantages_of(found["rewards"], group, config.scale_rewards)
        made.extra["figures"] = torch.cat([made.extra["figures"], torch.stack([deviations, (deviations < FLAT).double()], 1).float()], 1)
        made.extra |= {"draw": torch.full((len(asked),), draw), "advantage": advantages.float()}
        return replace(made, extra=made.extra | {name: found[name] for name in ("old", "reference") if name in found})

    def _compared(self, rows: Batch, model: Model) -> dict[str, Tensor]:
        """The log-probabilities [rows, seq] that the loss compares with: of the model that wrote the answers, and of the reference."""
        found = {}
        if self.config.updates > 1:
            found["old"] = log_probabilities(model, rows, self.config.sampling.temperature, self.precision)
        if self.start is not None:
            with self.start.worn(model):
                found["reference"] = log_probabilities(model, rows, self.config.sampling.temperature, self.precision)
        return found

    def _answered(self, model: Model, numbers: Sequence[int], sampling: SamplingConfig, seeds: Sequence[int]) -> dict[str, Tensor]:
        """Answers to the prompts of these numbers: ``ids`` [rows, longest], ``sizes`` [rows], what they are worth (``rewards`` [rows], float64) and their ``figures`` [rows, figures]."""
        requests = write(model, self.tokenizer, [self.prompts[number][1] for number in numbers], sampling, seeds, self.config.slots)
        answers = [
            Answer(self.prompts[number][0].messages, request.text, len(request.ids), request.finish_reason == "stop", self.prompts[number][0].columns)
            for number, request in zip(numbers, requests, strict=True)
        ]
        rewards, each = judged(self.rewards, answers)
        ends = torch.tensor([[answer.tokens, answer.ended] for answer in answers], dtype=torch.float64)
        ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(request.ids, dtype=torch.long) for request in requests], batch_first=True)
        return {"ids": ids, "sizes": torch.tensor([len(request.ids) for request in requests]), "rewards": rewards, "figures": torch.cat([rewards[:, None], ends, each], 1).float()}

    def _rows(self, numbers: Sequence[int], found: dict[str, Tensor], sources: Sequence[str]) -> Batch:
        answers = [ids[:size].tolist() for ids, size in zip(found["ids"], found["sizes"].tolist(), strict=True)]
        made = rows_of([self.prompts[number][1] for number in numbers], answers, self.tokenizer.pad_id, sources)
        return replace(made, extra={"figures": found["figures"]})

    # ---- the loss --------------------------------------------------------------------------------------------------------

    def counts(self, batch: Batch) -> dict[str, float]:
        rows, tokens = float(len(batch.inputs)), float((batch.weights > 0).sum())
        known = dict.fromkeys(self.figures, rows)
        if "advantage" not in batch.extra:
            return {**known, "loss": rows}
        units = {"grpo": rows, "bnpo": tokens, "dr_grpo": rows * self.config.sampling.maximum_tokens}[self.config.loss]
        return {**known, "loss": units, "divergence": tokens, "entropy": tokens, "clipped": tokens}

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        figures = batch.extra["figures"].sum(0)
        logged = {name: Term(value, 0.0) for name, value in zip(self.figures, figures, strict=False)}  # a validation has no figures of groups
        if "advantage" not in batch.extra:
            return {"loss": Term(-figures[0]), **logged}
        config, width = self.config, batch.inputs.shape[1]
        answers = batch.weights > 0  # [rows, seq]
        nats, entropy = token_nats_and_entropy(model, batch, answers, config.sampling.temperature)
        losses, moved, clipped = self.token_losses(-nats, *(None if (known := batch.extra.get(name)) is None else known[:, :width] for name in ("old", "reference")), batch.extra["advantage"])
        losses = losses * answers
        total = (losses.sum(1) / answers.sum(1)).sum() if config.loss == "grpo" else losses.sum()
        logged |= {"entropy": Term((entropy * answers).sum(), 0.0)}
        if moved is not None:
            logged["divergence"] = Term((moved.detach() * answers).sum(), 0.0)
        if config.updates > 1:
            logged["clipped"] = Term((clipped & answers).sum().to(total.dtype), 0.0)
        return {"loss": Term(total), **logged}

    def outputs(self, model: Model, batch: Batch) -> Tensor:
        """[rows, vocabulary] logits after each prompt of a batch without answers: what says whether two models are the same."""
        if "figures" in batch.extra:
            return super().outputs(model, batch)
        hidden = model(batch.inputs, **batch.context())  # [rows, seq, dim]
        last = (batch.segments >= 0).sum(1) - 1
        return model.logits(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def token_losses(self, new: Tensor, old: Tensor | None, reference: Tensor | None, advantages: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """Loss of each token, its divergence from the reference (the estimator k3 of Schulman 2020; None where it costs nothing), and whether the
        clip holds it, from log-probabilities [rows, seq] and advantages [rows]. Without ``old`` the model is the one that wrote the answers."""
        config = self.config
        ratio = torch.exp(new - (new.detach() if old is None else old))
        gain = advantages.to(new.dtype)[:, None]
        losses = -torch.min(ratio * gain, ratio.clamp(1 - config.clip_low, 1 + config.clip_high) * gain)
        moved = None
        if reference is not None:
            apart = reference - new
            moved = torch.exp(apart) - apart - 1
            losses = losses + config.beta * moved
        return losses, moved, ((ratio < 1 - config.clip_low) & (gain < 0)) | ((ratio > 1 + config.clip_high) & (gain > 0))

    # ---- figures and checkpoints -------------------------------------------------------------------------------------------

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Prompt]) -> dict[str, Score]:
        """Nothing: a validation's own terms are the mean rewards of the likeliest answers."""
        return {}

    def state(self) -> dict[str, Tensor]:
        if self.written is None or self.config.updates == 1:
            return {}
        return {name: getattr(self.written, name).contiguous() for name in _KEPT} | {f"extra.{name}": value.contiguous() for name, value in self.written.extra.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        extra = {name.removeprefix("extra."): value for name, value in state.items() if name.startswith("extra.")}
        rows = len(extra["draw"])
        self.written = Batch(**{name: state[name] for name in _KEPT}, sources=[""] * rows, row_sources=[1] * rows, extra=extra)


def asked(tokenizer: Tokenizer, example: Prompt) -> list[int]:
    """Token ids of a prompt as the model is asked it: by the tokenizer's chat template, or as plain text where it has none."""
    if tokenizer.chat_template is not None:
        return tokenizer.encode_chat(example.messages, add_generation_prompt=True, tools=example.tools)
    begin = [] if tokenizer.begin_of_text_id is None else [tokenizer.begin_of_text_id]
    return [*begin, *tokenizer.encode("\n".join(str(message.get("content") or "") for message in example.messages))]


def advantages_of(rewards: Tensor, group: int, scale: str) -> tuple[Tensor, Tensor]:
    """([answers] each reward's difference from its group's mean, scaled; [answers] its group's standard deviation). ``scale`` as of the config."""
    grouped = rewards.view(-1, group)  # [prompts, group]
    apart = (grouped - grouped.mean(1, keepdim=True)).flatten()
    deviations = grouped.std(1).repeat_interleave(group)
    by = {"group": deviations, "batch": rewards.std(), "none": None}[scale]
    return (apart if by is None else apart / (by + SMALLEST)), deviations
