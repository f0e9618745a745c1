"""Ways to turn a micro-batch into gradients that take more than one pass: R-Drop, mixup, adversarial training.

Each adds exact gradients of a stated loss, so that accumulation and micro-batches keep their meaning. Embeddings are moved by a hook
on the model's embedding layer, which every family has.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from luban.foundation.errors import ConfigError
from luban.models.base import Model
from luban.objectives.base import Objective, Term
from luban.parallel.engine import OnePass, Passes, TorchEngine
from luban.parallel.layouts import Layout
from luban.tokens.batch import Batch
from luban.training.averaging import MeanTeacher
from luban.training.regularization import AdversarialConfig, RegularizationConfig

SHARE = 0.02  # of the norm of an example's embeddings: how far they are moved where the recipe does not say


def make_teacher(config: AdversarialConfig, model: Model) -> MeanTeacher | None:
    """The slow average of the weights that SMART's proximal point needs."""
    return MeanTeacher(model, config.momentum) if config.method == "smart" and config.proximal else None


def make_passes(config: RegularizationConfig, objective: Objective, model: Model, teacher: MeanTeacher | None = None) -> Passes:
    """The passes that a config asks for. ConfigError where two of them exclude each other or the objective cannot do them."""
    method = config.adversarial.method
    asked = {"r_drop": config.r_drop > 0, "mixup": config.mixup > 0, f"adversarial {method}": method != "none"}
    chosen = [name for name, wanted in asked.items() if wanted]
    if len(chosen) > 1:
        raise ConfigError("regularization: {names} cannot be used together", "each says how a batch is passed through the model", "choose one", names=", ".join(chosen))
    if config.mixup and (objective.unit != "example" or model.shape.kind != "encoder"):
        raise ConfigError("regularization.mixup mixes the examples of classification with an encoder", "this is {objective} with {kind}", "set it to 0", objective=objective.name, kind=model.shape.kind)
    if method != "none" and objective.scope == "batch":
        raise ConfigError("regularization.adversarial moves the embeddings of a whole micro-batch", "{objective} reads its batch in parts and compares them", "leave it out", objective=objective.name)
    if config.adversarial.proximal and method != "smart":
        raise ConfigError("regularization.adversarial.proximal belongs to smart", "the method is {method}", "write method: smart, or leave proximal out", method=method)
    if config.mixup:
        return Mixup(config.mixup)
    if config.r_drop:
        return RDrop(config.r_drop)
    if method == "smart":
        return SMART(config.adversarial, teacher)
    made = {"fgm": FGM, "pgd": PGD, "freelb": FreeLB}.get(method)
    return made(config.adversarial) if made else OnePass()


class RDrop(OnePass):
    """Two passes with different dropout, and a penalty on their divergence (Liang et al. 2021, arXiv:2106.14448): the loss is the mean
    of both passes' plus weight/2 times the mean of the two Kullback–Leibler divergences."""

    def __init__(self, weight: float):
        self.weight = weight

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        objective, model = engine.objective, engine.model
        with engine.autocast():
            first, second = objective.outputs(model, part), objective.outputs(model, part)
            terms = _mean_terms(objective.terms_of(first, model, part), objective.terms_of(second, model, part))
            apart = (objective.divergence(first, second) + objective.divergence(second, first)) / 2  # [units]
            terms["divergence"] = Term((apart * objective.unit_weights(part)).sum(), self.weight / 2)
            terms |= engine.own_terms(part)
        return engine.backward(terms, counts)


class Mixup(OnePass):
    """Hidden states of each example mixed with another's, and the losses on both labels mixed alike (Zhang et al. 2018; on text: Guo et al. 2019).

    The examples of a step are paired at random, and a pair is never parted: so who is mixed with whom, and by what share, is the same whatever the micro-batches and the ranks.
    One that is left over is mixed with itself, in two rows of half its weight.
    """

    def __init__(self, alpha: float):
        self.alpha = alpha
        self.share = 1.0  # of an example's own states

    def begin(self, layout: Layout, batch: Batch) -> Batch:
        with layout.alike():
            self.share = float(torch.distributions.Beta(self.alpha, self.alpha).sample())
            order = torch.randperm(len(batch.inputs) // batch.group).tolist()
        left_over = order[-1:] if len(order) % 2 else []
        made = batch.picked([unit * batch.group + row for unit in order + left_over for row in range(batch.group)])
        weights = made.weights.clone()
        if left_over:
            weights[-2 * batch.group :] /= 2
        return replace(made, weights=weights, group=2 * batch.group)

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        objective, model, share = engine.objective, engine.model, self.share
        order = torch.arange(len(part.inputs)).view(-1, 2, part.group // 2).flip(1).flatten().to(part.inputs.device)  # [rows] each one's partner
        other = replace(part, weights=part.weights[order], looked_up=None, extra={name: value[order] for name, value in part.extra.items()})
        handle = model.register_forward_hook(lambda _module, _inputs, hidden: share * hidden + (1 - share) * hidden[order])
        try:
            with engine.autocast():
                outputs = objective.outputs(model, part)
        finally:
            handle.remove()
        own, others = objective.terms_of(outputs, model, part), objective.terms_of(outputs, model, other)
        mixed = {name: Term(share * term.sum + (1 - share) * others[name].sum, term.weight) for name, term in own.items()}
        return engine.backward(mixed, counts)


class _Adversary(OnePass):
    """Base of the methods that move the embeddings."""

    once = False

    def __init__(self, config: AdversarialConfig):
        self.config = config

    def moved(self, engine: TorchEngine, part: Batch, counts: dict[str, float], move: Tensor, share: float) -> tuple[dict[str, Tensor], Tensor]:
        """Add ``share`` of the gradients on embeddings moved by ``move``; returns the sums and the gradient by the move."""
        move = move.detach().requires_grad_()
        with shifted(engine.model, move):
            sums = engine.backward(engine.terms(part), counts, share)
        return sums, move.grad / max(share, 1e-12)


    def reach(self, model: Model, part: Batch) -> tuple[float | Tensor, float | Tensor]:
        """(largest move, size of a step), for all examples or for each [rows, 1, 1]."""
        epsilon, size = self.config.epsilon, self.config.step_size
        if epsilon == "auto":
            epsilon = SHARE * _norms(model, part)
        return epsilon, (1.5 * epsilon / self.config.steps if size == "auto" else size)


class FGM(_Adversary):
    """The plain loss, and the loss one step up its gradient (Miyato et al. 2017, arXiv:1605.07725)."""

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        epsilon, _ = self.reach(engine.model, part)
        sums, gradient = self.moved(engine, part, counts, _still(engine.model, part), 1.0)
        adversarial, _ = self.moved(engine, part, counts, epsilon * _unit(gradient), self.config.weight)
        return sums | {"adversarial": adversarial["loss"]}


class PGD(_Adversary):
    """The plain loss, and the loss at the end of several steps inside a ball (Madry et al. 2018, arXiv:1706.06083)."""

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        (epsilon, size), move = self.reach(engine.model, part), _still(engine.model, part)
        sums, gradient = self.moved(engine, part, counts, move, 1.0)
        kept = {parameter: parameter.grad.clone() for parameter in engine.model.parameters() if parameter.grad is not None}
        for step in range(self.config.steps):
            move = _inside(move + size * _unit(gradient), epsilon)
            last = step == self.config.steps - 1
            adversarial, gradient = self.moved(engine, part, counts, move, self.config.weight if last else 1.0)
            if not last:  # only the last step's gradients are used
                for parameter in engine.model.parameters():
                    parameter.grad = kept[parameter].clone() if parameter in kept else None
        return sums | {"adversarial": adversarial["loss"]}


class FreeLB(_Adversary):
    """The mean of the losses along several steps from a random start, every step's gradient used (Zhu et al. 2020, arXiv:1909.11764)."""

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        (epsilon, size), still = self.reach(engine.model, part), _still(engine.model, part)
        move = _inside((torch.rand_like(still) * 2 - 1) * epsilon / still[0].numel() ** 0.5, epsilon)
        totals: dict[str, Tensor] = {}
        for _ in range(self.config.steps):
            sums, gradient = self.moved(engine, part, counts, move, 1.0 / self.config.steps)
            totals = {name: totals.get(name, 0) + value / self.config.steps for name, value in sums.items()}
            move = _inside(move + size * _unit(gradient), epsilon)
        return totals


class SMART(_Adversary):
    """The plain loss, and the divergence of the outputs under the worst small move; with ``proximal`` also their divergence from the
    outputs of a slow average of the weights, a Bregman proximal point with momentum (Jiang et al. 2020, arXiv:1911.03437, equations 2 to 5)."""

    def __init__(self, config: AdversarialConfig, teacher: MeanTeacher | None = None):
        super().__init__(config)
        self.epsilon = 1e-2 if config.epsilon == "auto" else config.epsilon
        self.size = 1e-3 if config.step_size == "auto" else config.step_size
        self.teacher = teacher

    def backward(self, engine: TorchEngine, part: Batch, counts: dict[str, float]) -> dict[str, Tensor]:
        objective, model = engine.objective, engine.model
        known = self._known(engine, part)
        with engine.autocast():
            outputs = objective.outputs(model, part)
            move = (1e-5 * torch.randn_like(_still(model, part))).requires_grad_()
            with shifted(model, move):
                apart = self._apart(objective, outputs.detach(), objective.outputs(model, part)).sum()
            (gradient,) = torch.autograd.grad(apart, move)
            scale = gradient.abs().amax((1, 2), keepdim=True).clamp(min=1e-12)
            move = (move + self.size * gradient / scale).clamp(-self.epsilon, self.epsilon).detach()
            with shifted(model, move):
                smooth = self._apart(objective, outputs, objective.outputs(model, part))  # [units]
            terms = objective.terms_of(outputs, model, part)
            terms["smoothness"] = Term((smooth * objective.unit_weights(part)).sum(), self.config.weight)
            if known is not None:
                far = self._apart(objective, known, outputs)  # [units]
                terms["proximal"] = Term((far * objective.unit_weights(part)).sum(), self.config.proximal)
            terms |= engine.own_terms(part)
        return engine.backward(terms, counts)

    def _known(self, engine: TorchEngine, part: Batch) -> Tensor | None:
        """What the slow average of the weights says, in an autocast region of its own: a region keeps the weights it has once cast."""
        if self.teacher is None:
            return None
        with self.teacher.applied(), engine.autocast():
            return engine.objective.outputs(engine.model, part)

    @staticmethod
    def _apart(objective: Objective, first: Tensor, second: Tensor) -> Tensor:
        return objective.divergence(first, second) + objective.divergence(second, first)


@contextmanager
def shifted(model: Model, move: Tensor) -> Iterator[None]:
    """The first call of the token embedding gives its vectors plus ``move`` [rows, seq, dim]; for an encoder–decoder that is the source."""
    called = []

    def add(_module: torch.nn.Module, _inputs: tuple, vectors: Tensor) -> Tensor:
        called.append(True)
        if len(called) == 1 and vectors.shape != move.shape:
            raise ConfigError("adversarial training moves the embeddings of the text, and a learned prompt stands before it", "", "choose another adapter, such as lora, or leave regularization.adversarial out")
        return vectors + move.to(vectors.dtype) if len(called) == 1 else vectors

    handle = model.embedding.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def _still(model: Model, part: Batch) -> Tensor:
    """No move: zeros [rows, seq, dim] for the text whose embeddings come first."""
    tokens = part.source if part.source is not None else part.inputs
    return torch.zeros(*tokens.shape, model.embedding.embedding_dim, device=tokens.device, dtype=model.dtype)


def _unit(gradient: Tensor) -> Tensor:
    """[rows, seq, dim] each example's gradient at norm 1."""
    return gradient / gradient.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]


def _norms(model: Model, part: Batch) -> Tensor:
    """[rows, 1, 1] the norm of each example's token embeddings, padding left out."""
    tokens, segments = (part.inputs, part.segments) if part.source is None else (part.source, part.source_segments)
    with torch.no_grad():
        lengths = model.embedding.weight[tokens].float().norm(dim=2)  # [rows, seq]
    if segments is not None:
        lengths = lengths.masked_fill(segments < 0, 0.0)
    return lengths.norm(dim=1)[:, None, None]


def _inside(move: Tensor, epsilon: float | Tensor) -> Tensor:
    """The move cut to the ball of radius ``epsilon`` around each example."""
    norm = move.flatten(1).norm(dim=1).clamp(min=1e-12)[:, None, None]
    return move * (epsilon / norm).clamp(max=1.0)


def _mean_terms(first: dict[str, Term], second: dict[str, Term]) -> dict[str, Term]:
    return {name: Term((term.sum + second[name].sum) / 2, term.weight) for name, term in first.items()}
