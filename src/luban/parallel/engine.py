"""The torch engine: forward and backward passes of this rank's share of a step, clipping, stepping. What the ranks hold and how they add up is their layout's."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import nn

from luban.objectives.base import Objective, Term
from luban.parallel.layouts import Layout
from luban.tokens.batch import Batch


class Stepper(Protocol):
    """What an engine asks of the optimizer."""

    def step(self, factor: float) -> None: ...
    def zero_grad(self) -> None: ...


class Passes(Protocol):
    """How one micro-batch is turned into gradients: one forward and backward pass, or several (adversarial training, R-Drop)."""

    once: bool  # whether there is one backward pass

    def begin(self, layout: Layout, batch: Batch) -> Batch:
        """The rows of a step as they are to be cut into shares and micro-batches, the same on all ranks."""
        ...

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, torch.Tensor]:
        """Add the gradients of a micro-batch; returns each term's part of the step's mean. ``engine.backward(terms, counts)`` scales and runs one backward pass."""
        ...


class OnePass:
    """One forward pass, one backward pass, of the rows as they are."""

    once = True

    def begin(self, layout: Layout, batch: Batch) -> Batch:
        return batch

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, torch.Tensor]:
        return engine.backward(engine.terms(part), counts)


class TorchEngine:
    """Accumulates over micro-batches of rows; each backward is scaled once, by weight over the step's count."""

    name = "torch"
    lacks: ClassVar[dict[str, str]] = {"apart": "it moves all parameters at once, and would have all of their states in memory"}  # what a config may ask for that this engine cannot do, and why: clip, accumulate, scale, repeat, look
    micro_batch_tokens = 4096  # where ``micro_batch_rows`` is 0: rows are as many as this holds of the step's width

    def __init__(self, model: nn.Module, optimizer: Stepper, objective: Objective, micro_batch_rows: int, precision: torch.dtype, passes: Passes | None = None, layout: Layout | None = None):
        self.passes, self.layout = passes or OnePass(), layout or Layout()
        self.model, self.optimizer, self.objective = model, optimizer, objective
        self.micro_batch_rows, self.precision = micro_batch_rows, precision
        self.device = model.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == torch.float16)
        self.norms: tuple[list[nn.Parameter | str], torch.Tensor] = ([], torch.zeros(0))  # [parameters] of the last step's gradients, before clipping; names of those that other ranks hold
        self.step_batch: Batch | None = None  # the rows of all ranks
        self.own_rows = True  # False while a rank passes rows through the model for the company alone

    @property
    def by_place(self) -> bool:
        """Whether the objective adds up what it finds at each place of a row."""
        return self.objective.unit == "token"

    def autocast(self) -> Any:
        if self.precision == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, dtype=self.precision, cache_enabled=not self.layout.drops)

    def prepare(self, batch: Batch) -> Batch:
        """What the objective makes of a step's rows before the first pass; what takes long is shared out among the ranks."""
        return self.objective.prepare_step(batch, self.model, self.layout.share_out)

    def forward_backward(self, batch: Batch, factor: float = 1.0) -> dict[str, torch.Tensor]:
        """Gradients of the whole step's loss; returns each term's mean over the step, not yet synchronised. ``batch`` has the rows of all ranks. ``factor`` of the peak
        learning rate is for engines that use gradients as they appear."""
        counts = {"tokens": tokens_of(batch)} | self.objective.counts(batch)
        means: dict[str, torch.Tensor] = {}
        batch = self.passes.begin(self.layout, batch)
        self.step_batch = batch
        for found in self.layout.learn(self, self._parts(batch), counts):
            for name, mean in found.items():
                means[name] = means.get(name, 0) + mean
        with self.layout.ranks.waiting():
            self.layout.sum_gradients(self.model)
        return self.layout.sum_means(means)

    def terms(self, part: Batch) -> dict[str, Term]:
        """The objective's terms of a micro-batch in the engine's precision, and the losses that the model itself made (balance of experts)."""
        with self.autocast():
            return self._objective_terms(part) | self.own_terms(part)

    def plain_terms(self, part: Batch) -> dict[str, Term]:
        """The objective's terms of rows that nobody learns from."""
        with self.autocast():
            return self.objective.terms(self.model, part)

    def _objective_terms(self, part: Batch) -> dict[str, Term]:
        if self.objective.scope != "batch" or self.layout.ranks.alone:
            return self.objective.terms(self.model, part)
        # The rows of all ranks are compared on each of them; each learns from its own, and of the loss itself each has an equal part.
        own = self.objective.outputs(self.model, part)
        nothing = 0.0 * own.sum()  # so that there is something to pass back where none of the rows are this rank's
        outputs = self.layout.gather_rows(own if self.own_rows else own[:0], self.step_batch)
        terms = self.objective.terms_of(outputs, self.model, self.step_batch.to(self.device))
        return {name: replace(term, sum=term.sum - term.sum.detach() * (1 - 1 / self.layout.data_size) + nothing) for name, term in terms.items()}

    def own_terms(self, part: Batch) -> dict[str, Term]:
        """What the model's last forward pass says of itself: means over the micro-batch, weighted by its tokens in the step."""
        weights = getattr(self.model.shape, "auxiliary_weights", {})
        penalties = {name: (value, weights.get(name, 0.0)) for name, value in self.model.auxiliary().items()}
        if self.model.adapter:
            penalties |= self.model.adapter.penalties(self.model)
        if not penalties:  # counting asks the device
            return {}
        tokens = tokens_of(part) * self.layout.own_share(self.by_place)
        return {name: Term(value * tokens, weight, "tokens") for name, (value, weight) in penalties.items()}

    def backward(self, terms: dict[str, Term], counts: dict[str, float], share: float = 1.0) -> dict[str, torch.Tensor]:
        """One backward pass of ``share`` times the terms' loss; returns each term's part of the step's mean."""
        loss, means = self.loss(terms, counts, share)
        self.scaler.scale(loss).backward()
        return means

    def loss(self, terms: dict[str, Term], counts: dict[str, float], share: float = 1.0) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """``share`` times the terms' loss, for one backward pass, and each term's part of the step's mean, detached."""
        means = self.means(terms, counts)
        counted = self.own_rows or self.objective.scope == "batch"
        loss = sum(terms[name].weight * mean for name, mean in means.items() if terms[name].weight)
        return loss * (share * counted), {name: mean.detach() * counted for name, mean in means.items()}

    @staticmethod
    def means(terms: dict[str, Term], counts: dict[str, float]) -> dict[str, torch.Tensor]:
        """Each term's part of the step's mean."""
        return {name: term.sum / max(counts.get(name, counts[term.counted_by]), 1.0) for name, term in terms.items()}

    @torch.no_grad()
    def evaluate(self, batches: list[Batch]) -> dict[str, float]:
        """Each term's mean over all units of the batches, without gradients; the ranks share the work."""
        sums: dict[str, float] = {}
        counts: dict[str, float] = {}
        self.model.eval()
        together = self.layout.together
        for batch in self.layout.own_batches(batches):
            batch = self.objective.prepare(batch, self.model)
            if self.layout.ranks.leads if together else self.layout.says:
                _add(counts, self.objective.counts(batch))
            for terms, scored in self.layout.score(self, self._parts(batch, shared=together)):
                if scored and self.layout.adds:
                    _add(sums, {name: float(term.sum) for name, term in terms.items()})
        self.model.train()
        self.layout.settle(self.model)
        found = self.layout.ranks.everyone([sums, counts])
        sums, counts = _added(each[0] for each in found), _added(each[1] for each in found)
        return {name: sums[name] / max(counts.get(name, counts["loss"]), 1.0) for name in sums}

    def micro_batches(self, batch: Batch) -> list[Batch]:
        """What of a step's batch passes through the model of this rank, one after the other."""
        with torch.random.fork_rng([]):
            batch = self.passes.begin(Layout(), batch)
        return [part for part, _ in self._parts(batch)]

    def _parts(self, batch: Batch, shared: bool = True) -> Iterator[tuple[Batch, bool]]:
        """This rank's share of the batch (or, not ``shared``, all of it) in micro-batches of whole units on the device, padding trimmed from each, and whether they count;
        a batch whose rows are compared stays whole."""
        layout = self.layout if shared else Layout()
        wanted = self._rows(batch)
        whole = self.objective.scope == "batch"
        for first, last, scored in layout.spans(batch, len(batch.inputs) if whole else max(1, wanted // batch.group) * batch.group):
            part, counts = self.layout.cut(batch.rows(first, last, trim=True), self.by_place)
            part = part.to(self.device)
            yield (replace(part, micro_rows=max(1, wanted)) if whole else part), scored and counts

    def _rows(self, batch: Batch) -> int:
        """Rows that pass through the model at once."""
        return self.micro_batch_rows or self.micro_batch_tokens // (batch.inputs.shape[1] + (0 if batch.source is None else batch.source.shape[1]))

    def clip(self, largest: float) -> torch.Tensor:
        """The gradient's norm; gradients above ``largest`` (if not 0) are scaled down to it."""
        for optimizer in self.optimizer.parts if self.scaler.is_enabled() else ():
            self.scaler.unscale_(optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        norm, norms = self.layout.clip(parameters, largest)
        self.norms = (parameters + self.layout.learning_elsewhere, norms)
        return norm

    def step(self, factor: float, number: int = 1, keep: torch.Tensor | None = None) -> None:
        """Apply the gradients at ``factor`` of the peak learning rate, unless ``keep`` [] is false, and drop them; an adapter looks at them before. ``number`` counts steps from 1."""
        if keep is None or self._applies(keep):
            with self.layout.alike() if self.model.narrow else contextlib.nullcontext():  # bfloat16 is rounded at random, everywhere alike
                self.optimizer.step(factor)
            if self.model.adapter:
                self.model.adapter.after_gradients(self.model, number)
        self.optimizer.zero_grad()
        if self.scaler.is_enabled():
            self.scaler.update()

    def _applies(self, keep: torch.Tensor) -> bool:
        """Whether to call the optimizer. A fused one on an accelerator reads ``keep`` itself, and the host does not wait for it; the others are left out by the host."""
        parts = self.optimizer.parts
        if keep.device.type == "cpu" or self.model.runs_on or self.model.adapter or not all(part.defaults.get("fused") for part in parts):
            return bool(keep)
        for part in parts:
            part.found_inf = (~keep).float()
        return True

    def beside(self, objective: Objective, rows: int) -> TorchEngine:
        """An engine that evaluates another objective with the same model, ``rows`` at once."""
        return TorchEngine(self.model, self.optimizer, objective, rows, self.precision, layout=self.layout)

    # ---- what a checkpoint holds -------------------------------------------------------------------------------------

    def weights(self, spread: bool = True) -> dict[str, torch.Tensor]:
        """What training may change, by name: all of it; of what is put together for the purpose, that which this rank keeps, or, not ``spread``, all of it on the first."""
        return self.model.changing()

    def shapes(self) -> dict[str, list[int]]:
        """Each tensor of :meth:`weights`, whoever keeps it, with its whole shape."""
        return {name: list(tensor.shape) for name, tensor in self.model.changing().items()}

    def load_weights(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`weights` gave; of what was put together, all of it on every rank."""
        self.model.load_changing(tensors)

    def optimizer_state(self) -> dict[str, torch.Tensor]:
        """``parameter::slot`` to tensor, as :meth:`weights` gives them."""
        return self.optimizer.state()

    def load_optimizer_state(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Put back what :meth:`optimizer_state` gave."""
        self.optimizer.load_state(tensors)


def tokens_of(batch: Batch) -> float:
    """Tokens that are no padding."""
    return float(batch.inputs.numel() if batch.segments is None else (batch.segments >= 0).sum())


def _add(totals: dict[str, float], parts: dict[str, float]) -> None:
    for name, value in parts.items():
        totals[name] = totals.get(name, 0) + value


def _added(parts: Iterable[dict[str, float]]) -> dict[str, float]:
    totals: dict[str, float] = {}
    for part in parts:
        _add(totals, part)
    return totals
