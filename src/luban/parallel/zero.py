"""DeepSpeed as an engine of the same loop: its ZeRO cuts optimizer state, gradients and weights over the ranks, and offloads them.

DeepSpeed (Rajbhandari et al. 2020, arXiv:1910.02054) holds the optimizer's numbers, sums gradients and moves weights; the rows of a step, its schedule, guards, logs and checkpoints
are the loop's own. So a step is the torch engine's up to the order of sums: each backward is scaled once, by the number of ranks too, since DeepSpeed divides sums of gradients by it.

What a checkpoint holds leaves and enters through DeepSpeed's ``safe_get_*`` and ``safe_set_*``, under the names that the torch engine gives it (:class:`ZeroState`); its own checkpoints,
which are pickles, are neither written nor read.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.distributed as dist
from torch import Tensor, nn

from luban.foundation.environment import name_local_rank
from luban.foundation.errors import ConfigError, missing_extra
from luban.models.base import Model
from luban.objectives.base import Objective, Term
from luban.parallel.engine import Passes, Stepper, TorchEngine
from luban.parallel.layouts import Layout, empty_copy, places_of
from luban.parallel.ranks import Ranks, meet_alone
from luban.parallel.zero_state import ZeroState, gathered
from luban.tokens.batch import Batch

WEIGHTS = 3  # the stage of ZeRO that cuts weights too


class WholeStepper(Stepper, Protocol):
    """An optimizer of one part, whose parameters DeepSpeed puts its own flat ones in the place of."""

    names: dict[nn.Parameter, str]
    parts: list[torch.optim.Optimizer]

    def first_state(self, part: torch.optim.Optimizer, parameter: Tensor, group: dict[str, Any]) -> dict[str, Tensor]: ...


class Zero(Layout):
    """What DeepSpeed's ZeRO leaves on each rank: stage 1 a part of the optimizer's state, 2 of the gradients too, 3 of the weights too. Every rank passes its share of a step's rows
    through the model, all of them equally often."""

    name = "zero"
    in_step = True

    def __init__(self, ranks: Ranks, stage: int, offload: Mapping[str, str] | None = None):
        super().__init__(ranks)
        self.stage, self.offload = stage, dict(offload or {})
        self.together = stage == WEIGHTS
        self.skeleton: Model | None = None

    def place(self, model: Model) -> None:
        """DeepSpeed cuts it when the engine begins; until then only the structure is noted."""
        self.skeleton = empty_copy(model) if self.stage == WEIGHTS else None

    def whole_model(self, model: Model) -> Model | None:
        if self.stage != WEIGHTS:
            return super().whole_model(model)
        once: dict[str, nn.Parameter] = {}
        own = dict(model.named_parameters())
        for name, like in self.skeleton.named_parameters():
            with gathered([own[name]]):
                if self.ranks.leads:
                    values = own[name].detach()
                    once[name] = nn.Parameter(values.clone() if self.offload.get("weights", "none") == "none" else values.cpu().clone(), requires_grad=like.requires_grad)
        if not self.ranks.leads:
            return None
        known = {id(like): once[name] for name, like in self.skeleton.named_parameters()}
        for module, leaf, _ in places_of(self.skeleton):
            setattr(module, leaf, known[id(getattr(module, leaf))])
        return self.skeleton.train(model.training)

    def on_first(self, model: Model, work: Callable[[Model], Any]) -> Any:
        made = super().on_first(model, work)
        if self.skeleton is not None and self.ranks.leads:
            self.skeleton = empty_copy(self.skeleton)  # the memory is needed
        return made


class DeepSpeedEngine(TorchEngine):
    """As :class:`TorchEngine`, with DeepSpeed's around model and optimizer. ``settings`` are DeepSpeed's own (training/deepspeed_json.py).

    A parameter that a step does not use has a gradient of zeros here, and its state moves on; in the torch engine it stays as it is.
    """

    name = "deepspeed"
    lacks: ClassVar[dict[str, str]] = {
        "apart": "DeepSpeed moves all parameters of a rank at once",
        "repeat": "a gradient is summed over the ranks in the backward pass that makes it",
        "passes": "DeepSpeed sees one forward pass and one backward pass of each micro-batch",
        "scale": "the scale of float16's losses is not kept in a checkpoint of Luban's",
        "look": "it looks at the gradients after the step, when they are gone",
        "penalise": "the penalty is added to whole gradients, and DeepSpeed's are flat parts",
        "groups": "DeepSpeed shares out whole rows here",
        "matrices": "DeepSpeed makes one flat row of numbers of all matrices, and this optimizer needs them as they are",
        "narrow": "DeepSpeed keeps weights in float32 beside those",
        "compile": "DeepSpeed hooks into the blocks' calls",
        "probe": "one process alone holds more than its part",
        "unfreeze": "what learns is flat from the beginning",
    }  # fmt: skip

    def __init__(
        self, model: Model, optimizer: WholeStepper, objective: Objective, micro_batch_rows: int, precision: torch.dtype, passes: Passes | None = None, layout: Layout | None = None,
        settings: dict[str, Any] | None = None,
    ):  # fmt: skip
        super().__init__(model, optimizer, objective, micro_batch_rows, precision, passes, layout)
        assert isinstance(self.layout, Zero) and settings, "a layout of DeepSpeed's, and its settings"
        deepspeed = load_deepspeed()
        if "nvme" in self.layout.offload.values():
            compile_async_io()
        meet_alone()
        name_local_rank(self.layout.ranks.local_rank)
        deepspeed.init_distributed(dist_backend=dist.get_backend(), auto_mpi_discovery=False, verbose=False)
        self.through = Through(model)
        (part,) = optimizer.parts
        self.groups = [{key: value for key, value in group.items() if key != "params"} for group in part.param_groups]
        if self.layout.stage == WEIGHTS:
            for block in model.blocks():
                deepspeed.utils.set_z3_leaf_module(block, True)  # its weights are gathered at once: a block's own code may use them as it likes
            deepspeed.zero.Init(module=self.through, config_dict_or_path=settings)  # cut here: left to DeepSpeed 0.19, files hold bfloat16 where a processor has no float16 (its pull request 8428)
        self.deep, *_ = deepspeed.initialize(model=self.through, optimizer=part, config=settings, dist_init_required=False)
        self.clips = settings["gradient_clipping"]
        if self.layout.stage == WEIGHTS:
            for parameter in outside_of_blocks(model):
                deepspeed.zero.register_external_parameter(self.through, parameter)  # used again in the loss
        self.state = ZeroState(self.deep.optimizer, part, optimizer, model, self.layout)
        self.kinds: dict[str, Term] = {}
        self.passed = False  # whether a step's gradients are there

    # ---- a step ------------------------------------------------------------------------------------------------------

    def prepare(self, batch: Batch) -> Batch:
        with torch.no_grad():
            return self.through(lambda: super(DeepSpeedEngine, self).prepare(batch))

    def forward_backward(self, batch: Batch, factor: float = 1.0) -> dict[str, Tensor]:
        self.passed = False
        return super().forward_backward(batch, factor)

    def _parts(self, batch: Batch, shared: bool = True) -> Iterator[tuple[Batch, bool]]:
        """As the torch engine's; in training DeepSpeed is told which is the step's last, after which gradients are summed."""
        parts = list(super()._parts(batch, shared))
        for number, part in enumerate(parts, 1):
            if self.model.training:
                self.deep.set_gradient_accumulation_boundary(number == len(parts))
            yield part

    def terms(self, part: Batch) -> dict[str, Term]:
        def work() -> tuple[Tensor, ...]:
            self.kinds = super(DeepSpeedEngine, self).terms(part)
            return tuple(term.sum for term in self.kinds.values())  # tensors by themselves: what DeepSpeed hooks its backward pass to

        sums = self.deep(work)
        return {name: Term(made, term.weight, term.counted_by) for (name, term), made in zip(self.kinds.items(), sums, strict=True)}

    def backward(self, terms: dict[str, Term], counts: dict[str, float], share: float = 1.0) -> dict[str, Tensor]:
        means = self.means(terms, counts)
        counted = self.own_rows or self.objective.scope == "batch"
        loss = sum(terms[name].weight * mean for name, mean in means.items() if terms[name].weight)
        self.deep.backward(loss * (share * counted * self.layout.ranks.size), scale_wrt_gas=False)  # DeepSpeed divides by the ranks
        self.passed = True
        return {name: mean.detach() * counted for name, mean in means.items()}

    def plain_terms(self, part: Batch) -> dict[str, Term]:
        return self.through(lambda: super(DeepSpeedEngine, self).plain_terms(part))

    def clip(self, largest: float) -> Tensor:
        """The norm of all gradients; DeepSpeed scales them in :meth:`step`, by its settings."""
        assert largest == self.clips, f"clipping at {largest}, and DeepSpeed was set to {self.clips}"
        if not self.passed:
            self.norms = ([], torch.zeros(0))
            return torch.zeros(())
        norms = self.state.gradient_norms()
        self.norms = (list(self.optimizer.names), norms)
        return norms.square().sum().sqrt()

    def step(self, factor: float, number: int = 1, keep: Tensor | None = None) -> None:
        if not self.passed:
            return
        self.passed = False
        if keep is not None and not bool(keep):
            self.state.spoil()  # DeepSpeed drops the gradients of a step that are not finite
        self.state.set_rates(factor)
        self.deep.step()

    def _applies(self, keep: Tensor) -> bool:
        raise AssertionError("DeepSpeed applies the step")

    def beside(self, objective: Objective, rows: int) -> TorchEngine:
        made = object.__new__(type(self))
        made.__dict__ |= {**vars(self), "objective": objective, "micro_batch_rows": rows}
        return made

    # ---- what a checkpoint holds -------------------------------------------------------------------------------------

    def weights(self, spread: bool = True) -> dict[str, Tensor]:
        return self.state.weights(spread)

    def shapes(self) -> dict[str, list[int]]:
        return self.state.shapes()

    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        self.state.load_weights(tensors)

    def optimizer_state(self) -> dict[str, Tensor]:
        return self.state.optimizer_state()

    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        self.state.load_optimizer_state(tensors)


class Through(nn.Module):
    """What DeepSpeed takes for the model: any work with it is a forward pass, for which weights outside the blocks are gathered."""

    def __init__(self, model: Model):
        super().__init__()
        self.model = model

    def forward(self, work: Callable[[], Any]) -> Any:
        return work()


def outside_of_blocks(model: Model) -> list[nn.Parameter]:
    """Parameters that are used outside of the blocks' calls."""
    inside = {id(parameter) for block in model.blocks() for parameter in block.parameters()} - {id(parameter) for module in model.beside_blocks() for parameter in module.parameters()}
    return [parameter for parameter in model.parameters() if id(parameter) not in inside]


def load_deepspeed() -> Any:
    """The package, quiet. LubanError where it is not installed."""
    logging.getLogger("DeepSpeed").addFilter(_quiet)
    warnings.filterwarnings("ignore", message=r".*torch.distributed.*is deprecated", category=FutureWarning)
    try:
        import deepspeed
    except ImportError:
        raise missing_extra("deepspeed", "deepspeed") from None
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # gloo does it; this operation would be compiled for a minute at the first start
    return deepspeed


def compile_async_io() -> None:
    """Compile DeepSpeed's reading and writing behind the steps, for minutes at the first use on a machine. ConfigError where that cannot be."""
    from deepspeed.accelerator import get_accelerator

    builder = get_accelerator().create_op_builder("AsyncIOBuilder")
    if builder is None or not builder.is_compatible():
        raise ConfigError(
            "layout.offload: nvme needs DeepSpeed's asynchronous I/O, which cannot be compiled here", "libaio and its header were not found, or a C++ compiler",
            "install them (on Debian and Ubuntu: apt install libaio-dev g++), or offload to cpu",
        )  # fmt: skip
    builder.load(verbose=False)


def _quiet(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR
