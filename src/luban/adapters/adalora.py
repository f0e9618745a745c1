"""AdaLoRA (Zhang et al. 2023, arXiv:2303.10512): singular values and vectors beside each weight, and ranks that move to where they matter.

A weight's change is scale · P · Λ · Q: lora_B [out, rank], lora_E [rank, 1], lora_A [rank, in], as peft names them. Of every entry the mean of |value · gradient|
and the mean of its deviation are kept; a triplet's importance is that product of its λ and the means over its column of P and its row of Q
(equations 8 to 12). The budget falls from ``initial_rank`` to ``rank`` a matrix by a cubic rule (equation 13). The penalty on P and Q is the
norm itself, averaged over all matrices, as in the authors' code, to which the usual weight belongs; the paper writes its square.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.adapted import Layer, adapted_layers
from luban.adapters.cells import on_layer, parts
from luban.adapters.config import AdaLoraConfig, AdapterConfig
from luban.adapters.method import PEFT, Method
from luban.adapters.targets import add_to_weight, find_targets, saved_targets, shortest_ends, stored_transposed
from luban.foundation.console import table
from luban.foundation.messages import t
from luban.models.base import Model

LEAVES = ("lora_A", "lora_E", "lora_B")
DEVIATION = 0.02  # of the vectors' first values


class SingularProduct(nn.Module):
    """``scale · B · E · A`` beside a weight, and while ranks ``move`` what decides on them (all of it state that a checkpoint holds)."""

    def __init__(self, inputs: int, outputs: int, rank: int, scale: float, dropout: float, moves: bool):
        super().__init__()
        self.lora_A, self.lora_E, self.lora_B = (nn.Parameter(torch.zeros(size)) for size in ((rank, inputs), (rank, 1), (outputs, rank)))
        self.dropout, self.scale, self.moves = nn.Dropout(dropout), scale, moves
        if moves:
            for leaf in LEAVES:
                self.register_buffer(f"sensitivity_{leaf}", torch.zeros_like(getattr(self, leaf)))
                self.register_buffer(f"uncertainty_{leaf}", torch.zeros_like(getattr(self, leaf)))
            self.register_buffer("kept", torch.ones(rank, dtype=torch.bool))
            self.register_buffer("settled", torch.zeros((), dtype=torch.bool))

    def first_values(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            for vectors in (self.lora_A, self.lora_B):
                vectors.copy_(torch.empty(vectors.shape).normal_(0.0, DEVIATION, generator=generator))
            self.lora_E.zero_()

    def values(self) -> Tensor:
        """[rank, 1] the singular values. Between two allocations one that was dropped learns on, and may come back; it counts in training alone, so that what is measured is what would be saved."""
        return self.lora_E * self.kept[:, None] if self.moves and not self.training else self.lora_E

    def product(self) -> Tensor:
        """[out, in] what stands beside the weight."""
        return self.scale * (self.lora_B @ (self.lora_A * self.values()))

    def changed(self, weight: Tensor) -> Tensor:
        kept = self.dropout(weight.new_ones(weight.shape[1]))
        return weight + self.product() * kept

    def forward(self, beneath: Layer, layer: nn.Module, states: Tensor) -> Tensor:
        inner = F.linear(self.dropout(states), self.lora_A)  # [..., rank]
        return beneath(states) + F.linear(inner * (self.values()[:, 0] * self.scale), self.lora_B)

    @torch.no_grad()
    def observe(self, first: float, second: float) -> None:
        """Take a step's gradients into the two averages of each entry."""
        for leaf in LEAVES:
            value = getattr(self, leaf)
            if value.grad is None:
                continue
            now = (value * value.grad).abs()
            sensitivity = getattr(self, f"sensitivity_{leaf}").lerp_(now, 1 - first)
            getattr(self, f"uncertainty_{leaf}").lerp_((now - sensitivity).abs(), 1 - second)

    def importance(self) -> Tensor:
        """[rank] of each triplet."""
        rows, values, columns = (getattr(self, f"sensitivity_{leaf}") * getattr(self, f"uncertainty_{leaf}") for leaf in LEAVES)
        return rows.mean(1) + values[:, 0] + columns.mean(0)

    @torch.no_grad()
    def keep(self, which: Tensor) -> None:
        """From here on only the triplets ``which`` [rank] count."""
        self.kept.copy_(which)
        self.lora_E.masked_fill_(~self.kept[:, None], 0.0)

    def resize(self, rank: int) -> None:
        """Make room for another rank; values are not kept."""
        for leaf, size in zip(LEAVES, ((rank, self.lora_A.shape[1]), (rank, 1), (self.lora_B.shape[0], rank)), strict=True):
            setattr(self, leaf, nn.Parameter(getattr(self, leaf).new_zeros(size)))

    def rank(self) -> int:
        return int(self.kept.sum()) if self.moves else len(self.lora_E)


class AdaLora(Method):
    """Products of singular values and vectors on linear layers. One that was read from its files keeps its ranks."""

    peft_type = "ADALORA"
    config: AdaLoraConfig

    def __init__(self, config: AdaLoraConfig, name: str = "default", moves: bool = True):
        super().__init__(config, name)
        self.moves, self.total = moves, 0

    def attach(self, model: Model, seed: int) -> None:
        config = self.config
        for place in find_targets(model, config.targets):
            made = on_layer(model.get_submodule(place), lambda layer: SingularProduct(layer.in_features, layer.out_features, config.start_rank, config.scale, config.dropout, self.moves))
            self.put(model, place, made, seed)

    def as_saved(self) -> AdaLora:
        return AdaLora(self.config, self.name, moves=False)

    def products(self, model: Model) -> dict[str, SingularProduct]:
        """All products by their places; of a recurrent layer one for each matrix."""
        return {f"{place}.{begin}".rstrip("."): part for place, layer in adapted_layers(model, self.name).items() for begin, _, part in parts(layer, layer.adapters[self.name])}

    # ---- training ------------------------------------------------------------------------------------------------------

    def before_training(self, model: Model, total_steps: int) -> None:
        self.total = total_steps

    @property
    def borders(self) -> tuple[int, int, int]:
        """The last step before ranks move, the step of the last allocation, and the steps between two."""
        config = self.config
        every = max(1, self.total // 100) if config.every == "auto" else config.every
        return int(config.warmup_share * self.total), self.total - int(config.final_share * self.total), every

    def budget(self, step: int, matrices: int) -> int:
        """Triplets that all matrices may have together at a step."""
        begin, end, _ = self.borders
        first, last = self.config.start_rank * matrices, self.config.rank * matrices
        if step <= begin:
            return first
        return last if step >= end else int(last + (first - last) * (1 - (step - begin) / (end - begin)) ** 3)

    def penalties(self, model: Model) -> dict[str, tuple[Tensor, float]]:
        config, distances = self.config, []
        for part in self.products(model).values() if config.orthogonality else ():
            for vectors in (part.lora_A, part.lora_B.t()):
                if len(vectors):
                    distances.append(torch.linalg.vector_norm(vectors @ vectors.t() - torch.eye(len(vectors), device=vectors.device, dtype=vectors.dtype)))
        return {"orthogonality": (torch.stack(distances).mean(), config.orthogonality)} if distances else {}

    def after_gradients(self, model: Model, step: int) -> None:
        found = list(self.products(model).values())
        if not self.moves or not found:
            return
        if bool(found[0].settled):
            for part in found:
                part.keep(part.kept)  # the optimizer has moved the others
            return
        begin, end, every = self.borders
        for part in found if step < end else ():
            part.observe(self.config.sensitivity_decay, self.config.uncertainty_decay)
        if step >= end or (step > begin and step % every == 0):
            allocate(found, self.budget(step, len(found)))
        if step >= end:
            for part in found:
                part.settled.fill_(True)

    def report(self, model: Model) -> dict[str, Any]:
        """The rank of each matrix, and their sum."""
        ranks = {place: part.rank() for place, part in self.products(model).items()}
        return {"ranks": ranks, "ranks_in_all": sum(ranks.values())}

    def show(self, model: Model) -> None:
        """The ranks as a table for each stack of blocks: a column a block, a line a matrix."""
        found: dict[str, dict[str, dict[str, int]]] = {}
        for place, rank in self.report(model)["ranks"].items():
            inside = re.fullmatch(r"(.*?)\.(\d+)\.(.+)", place)
            stack, number, name = inside.groups() if inside else ("", "", place)
            found.setdefault(stack, {}).setdefault(name, {})[number] = rank
        for stack, rows in found.items():
            numbers = list(dict.fromkeys(number for row in rows.values() for number in row))
            table(t("ranks that AdaLoRA gave in {stack}", stack=stack), [t("layer"), *numbers], [[name, *(row.get(number, "") for number in numbers)] for name, row in rows.items()])

    # ---- files ---------------------------------------------------------------------------------------------------------

    def settings(self, model: Model) -> dict[str, Any]:
        config, products, places = self.config, self.products(model), list(adapted_layers(model, self.name))
        begin, end, every = self.borders
        total = max(1, self.total)
        patterns = {f"{place}.lora_E": part.kept.tolist() if part.moves else [index < part.rank() for index in range(config.start_rank)] for place, part in products.items()}
        return {
            "r": 8, "init_r": config.start_rank, "target_r": config.rank, "tinit": begin, "tfinal": min(self.total - end, total - begin - 1), "total_step": total, "deltaT": every,
            "beta1": config.sensitivity_decay, "beta2": config.uncertainty_decay, "orth_reg_weight": config.orthogonality, "lora_alpha": config.scale * config.start_rank, "lora_dropout": config.dropout,
            "rank_pattern": patterns, "target_modules": shortest_ends(places, model), "fan_in_fan_out": any(stored_transposed(model.get_submodule(place)) for place in places), "bias": "none",
        }  # fmt: skip

    @classmethod
    def from_settings(cls, plain: Mapping[str, Any]) -> AdapterConfig:
        first = int(plain.get("init_r") or 12)
        return AdaLoraConfig(
            rank=min(int(plain.get("target_r") or 8), first), initial_rank=first, alpha=plain.get("lora_alpha") or float(first), dropout=plain.get("lora_dropout") or 0.0,
            orthogonality=plain.get("orth_reg_weight", 0.5), targets=saved_targets(plain),
        )  # fmt: skip

    def own(self, model: Model) -> list[tuple[str, str, Tensor]]:
        return [(place, leaf, getattr(part, leaf)) for place, part in self.products(model).items() for leaf in LEAVES]

    def tensors(self, model: Model) -> dict[str, Tensor]:
        """peft's names; of each product only what was kept."""
        found = {}
        for place, part in self.products(model).items():
            which = part.kept if part.moves else slice(None)
            found |= {f"{PEFT}{place}.lora_A": part.lora_A[which], f"{PEFT}{place}.lora_E": part.lora_E[which], f"{PEFT}{place}.lora_B": part.lora_B[:, which]}
        return found

    def load(self, model: Model, tensors: Mapping[str, Tensor]) -> set[str]:
        for place, part in self.products(model).items():
            if (values := tensors.get(f"{PEFT}{place}.lora_E")) is not None and len(values) <= self.config.start_rank:
                part.resize(len(values))
        return super().load(model, tensors)

    def merge_layer(self, place: str, layer: nn.Module, adapter: nn.Module) -> None:
        for _, matrix, part in parts(layer, adapter):
            with torch.no_grad():
                add_to_weight(matrix, part.product())


def allocate(found: list[SingularProduct], budget: int) -> None:
    """Keep the ``budget`` most important triplets of all matrices together; of equal ones the first."""
    scores = torch.cat([part.importance().float().cpu() for part in found])
    kept = torch.zeros(len(scores), dtype=torch.bool)
    kept[scores.argsort(descending=True, stable=True)[:budget]] = True
    for part, which in zip(found, kept.split([len(part.lora_E) for part in found]), strict=True):
        part.keep(which.to(part.kept.device))
