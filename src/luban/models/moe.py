"""Decoders with mixtures of experts: Mixtral (arXiv:2401.04088), Qwen2-MoE (arXiv:2407.10671), Qwen3-MoE (arXiv:2505.09388)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.models.base import Model
from luban.models.decoder import Decoder
from luban.models.embedding import Embedding
from luban.models.layers import Attention, Cache, FeedForward, RMSNorm
from luban.models.moe_shape import MixtureShapeConfig
from luban.models.rotary import Rotary


@dataclass(frozen=True)
class _Size:
    """What ``FeedForward`` reads of a shape."""

    hidden_size: int
    feed_forward_size: int
    feed_forward_bias: bool = False


@dataclass
class Routing:
    """What a layer's router decided: logits [tokens, experts], and the experts chosen for each token [tokens, experts_per_token]."""

    logits: Tensor
    chosen: Tensor


def tally(assigned: Tensor, experts: int) -> Tensor:
    """How many of ``assigned`` [assignments] each expert has [experts]."""
    return torch.bincount(assigned, minlength=experts)


def as_numbers(counts: Tensor, rows: Tensor) -> list[int]:
    """How many of ``rows`` each part has. A rehearsal, whose tensors have no values, says that all parts are alike (luban.parallel.imagined)."""
    return counts.tolist()


def kept_places(segments: Tensor) -> Tensor | None:
    """Which places of ``segments`` [rows, seq] are no padding [rows * seq], or None for all: so it is in a rehearsal."""
    return (segments >= 0).flatten()


class MixtralExpert(nn.Module):
    """SwiGLU under Mixtral's names."""

    def __init__(self, shape: MixtureShapeConfig):
        super().__init__()
        self.w1 = nn.Linear(shape.hidden_size, shape.expert_size, bias=False)
        self.w2 = nn.Linear(shape.expert_size, shape.hidden_size, bias=False)
        self.w3 = nn.Linear(shape.hidden_size, shape.expert_size, bias=False)

    def forward(self, states: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(states)) * self.w3(states))


class Experts(nn.ModuleList):
    """The experts of a layer."""

    def forward(self, states: Tensor, counts: Tensor) -> Tensor:
        """Outputs [assignments, dim] of states [assignments, dim], of which the first ``counts[0]`` are for the first expert, and so on: each computes once."""
        parts = states.split(as_numbers(counts, states))
        # In training an expert without tokens computes too, on nothing: its gradient is zero, not absent, whatever the batch holds.
        made = [expert(part) for expert, part in zip(self, parts, strict=True) if len(part) or torch.is_grad_enabled()]
        return torch.cat(made) if made else states


class SparseFeedForward(nn.Module):
    """A router that sends each token to a few experts, whose outputs are added by its weights; beside them the shared expert, if there is one."""

    def __init__(self, shape: MixtureShapeConfig):
        super().__init__()
        self.experts_per_token, self.normalize_weights, self.jitter = shape.experts_per_token, shape.normalize_weights, shape.router_jitter
        self.gate = nn.Linear(shape.hidden_size, shape.experts, bias=False)
        size = _Size(shape.hidden_size, shape.expert_size)
        self.experts = Experts(MixtralExpert(shape) if shape.architecture == "mixtral" else FeedForward(size) for _ in range(shape.experts))
        self.choices = shape.experts
        if shape.shared_expert_size:
            self.shared_expert = FeedForward(_Size(shape.hidden_size, shape.shared_expert_size))
            self.shared_expert_gate = nn.Linear(shape.hidden_size, 1, bias=False)

    def forward(self, states: Tensor) -> tuple[Tensor, Routing]:
        """States [rows, seq, dim] and how they were routed, of states [rows, seq, dim]."""
        if self.training and self.jitter:
            states = states * torch.empty_like(states).uniform_(1 - self.jitter, 1 + self.jitter)
        flat = states.reshape(-1, states.shape[-1])  # [tokens, dim]
        weights, routing = self.route(flat)
        mixed = self._mix(flat, weights, routing.chosen).view_as(states)
        if hasattr(self, "shared_expert"):
            mixed = mixed + torch.sigmoid(self.shared_expert_gate(states)) * self.shared_expert(states)
        return mixed, routing

    def route(self, flat: Tensor) -> tuple[Tensor, Routing]:
        """Weights [tokens, experts_per_token] of the experts that are chosen for [tokens, dim]. Computed in float32 or wider."""
        wide = flat.dtype if flat.dtype == torch.float64 else torch.float32
        with torch.autocast(flat.device.type, enabled=False):
            logits = F.linear(flat.to(wide), self.gate.weight.to(wide))  # [tokens, experts]
            weights, chosen = logits.softmax(dim=-1).topk(self.experts_per_token, dim=-1)
        if self.normalize_weights:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, Routing(logits, chosen)

    def _mix(self, flat: Tensor, weights: Tensor, chosen: Tensor) -> Tensor:
        """Each token's weighted sum [tokens, dim] of its experts' outputs: tokens are sorted by expert, so that each expert computes once."""
        assigned = chosen.flatten()  # [tokens * experts_per_token]
        order = assigned.argsort(stable=True)
        outputs = self.experts(flat.index_select(0, order // self.experts_per_token), tally(assigned, self.choices))
        back = torch.empty_like(order).scatter_(0, order, torch.arange(len(order), device=order.device))
        outputs = outputs.index_select(0, back).view(*chosen.shape, -1)  # [tokens, experts_per_token, dim]
        return (outputs * weights.to(outputs.dtype)[..., None]).sum(1)


class MixtureLayer(nn.Module):
    """Attention, then a mixture of experts or a dense feed-forward layer, each on the normalised stream and added to it."""

    def __init__(self, shape: MixtureShapeConfig, index: int):
        super().__init__()
        self.self_attn = Attention(shape)
        self.input_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.post_attention_layernorm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
        self.place = "block_sparse_moe" if shape.architecture == "mixtral" else "mlp"
        self.sparse = shape.sparse[index]
        self.add_module(self.place, SparseFeedForward(shape) if self.sparse else FeedForward(shape))

    def forward(
        self, states: Tensor, angles: tuple[Tensor, Tensor], mask: Tensor | None, cache: Cache | None, layer: int
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """States, and of a mixture the router's logits [tokens, experts] and choices [tokens, experts_per_token]."""
        states = states + self.self_attn(self.input_layernorm(states), angles, mask, cache, layer)
        feed_forward = getattr(self, self.place)
        if not self.sparse:
            return states + feed_forward(self.post_attention_layernorm(states)), None, None
        mixed, routing = feed_forward(self.post_attention_layernorm(states))
        return states + mixed, routing.logits, routing.chosen


class Mixture(Decoder):
    """A decoder of the Llama kind with experts; names and heads are those of transformers' classes."""

    output_names: ClassVar[tuple[str, ...]] = ("o_proj.weight", "down_proj.weight", "w2.weight")
    shape: MixtureShapeConfig

    def __init__(self, shape: MixtureShapeConfig):
        Model.__init__(self, shape)
        self.model = _Trunk(shape)
        if not shape.tied_embeddings:
            self.lm_head = nn.Linear(shape.hidden_size, shape.vocabulary_size, bias=False)
        self.rotary = Rotary(shape)
        self.routings: list[Routing] = []  # of the last forward pass, one a mixture
        self.noted: Tensor | None = None  # what all mixtures of a forward pass noted, where some of them are other processes'
        self._kept: Tensor | None = None  # which of its tokens are no padding, [rows * seq] of bool

    def forward(self, tokens: Tensor, *, segments: Tensor | None = None, **context: Any) -> Tensor:
        """As :class:`Decoder`; what the routers decided is kept in ``routings`` for :meth:`auxiliary`."""
        self._kept = None if segments is None else kept_places(segments)
        return super().forward(tokens, segments=segments, **context)

    def run_layers(self, states: Tensor, layers: Iterable[nn.Module], beside: Iterable[tuple[Any, ...]]) -> Tensor:
        self.routings = []
        for layer, given in zip(layers, beside, strict=True):
            states, logits, chosen = self.through(layer, states, *given)
            if logits is not None:
                self.routings.append(Routing(logits, chosen))
        return states

    def gather_auxiliary(self, gather: Callable[[Tensor], Tensor], segments: Tensor | None) -> None:
        rows = len(segments) if segments is not None else 1
        for routing in self.routings:
            routing.logits, routing.chosen = (gather(found.view(rows, -1, found.shape[-1])).flatten(0, 1) for found in (routing.logits, routing.chosen))
        self._kept = None if segments is None else kept_places(segments)

    def auxiliary(self) -> dict[str, Tensor]:
        """Of the last forward pass, padding left out; ``shape.auxiliary_weights`` says what each counts in the loss.

        ``load_balance``: experts * sum_e f_e P_e, where f_e are the choices of expert e and P_e its probability, both as means over
        the tokens of all mixtures (Switch, arXiv:2101.03961, equations 4 to 6, for several experts a token; as transformers'
        ``load_balancing_loss_func``); experts_per_token where all are used alike, more otherwise. ``router_z``: mean of the squared
        log-sum-exp of a router's logits (arXiv:2202.08906), where its weight is not zero. ``expert_share_max``, without gradient, for the log: the
        largest part of a layer's choices that went to one expert; 1 / experts is even.

        Scope: f and P are means over the tokens of this pass, and their product is not additive over passes. The micro-batch is part
        of the definition: a step of several takes the mean of their values, weighted by their tokens; packing changes nothing.
        """
        if not self.routings and self.noted is None:
            return {}
        shape, layers = self.shape, sum(self.shape.sparse)
        probabilities, chosen, rest = (self.note(None) if self.noted is None else self.noted).split([shape.experts, shape.experts, 3])
        squares, tokens, most = rest.unbind()
        tokens = tokens.detach().clamp(min=1)  # each counted in every mixture
        found = {"load_balance": shape.experts * (chosen.detach() / tokens * (probabilities / tokens)).sum()}
        if shape.router_z_weight:
            found["router_z"] = squares / tokens
        return found | {"expert_share_max": most.detach() * layers / tokens / shape.experts_per_token}

    @property
    def notes(self) -> int:
        return 2 * self.shape.experts + 3

    def note(self, before: Tensor | None) -> Tensor:
        """[2 * experts + 3] of the mixtures that were passed last and those that noted ``before``: sums over tokens and mixtures of each expert's probability and of its choices, of a router's squared log-sum-exp, the
        number of tokens, and the most choices that one expert had in a mixture."""
        experts, kept = self.shape.experts, slice(None) if self._kept is None else self._kept
        if not self.routings:
            return torch.zeros(self.notes, dtype=torch.promote_types(self.dtype, torch.float32), device=self.device) if before is None else before * 1.0
        logits = torch.stack([routing.logits[kept] for routing in self.routings])  # [layers, tokens, experts]
        chosen = torch.stack([tally(routing.chosen[kept].flatten(), experts) for routing in self.routings]).to(logits.dtype)  # [layers, experts]
        squares = logits.logsumexp(dim=-1).square().sum() if self.shape.router_z_weight else logits.new_zeros(())
        made = torch.cat([logits.softmax(dim=-1).sum((0, 1)), chosen.sum(0), squares[None], logits.new_tensor([logits.shape[0] * logits.shape[1]]), chosen.amax()[None]])
        return made if before is None else torch.cat([made[:-1] + before[:-1], torch.maximum(made[-1:], before[-1:].detach())])


class _Trunk(nn.Module):
    """What stands under ``model.`` in transformers' names."""

    def __init__(self, shape: MixtureShapeConfig):
        super().__init__()
        self.embed_tokens = Embedding(shape.vocabulary_size, shape.hidden_size)
        self.layers = nn.ModuleList(MixtureLayer(shape, index) for index in range(shape.layers))
        self.norm = RMSNorm(shape.hidden_size, shape.norm_epsilon)
