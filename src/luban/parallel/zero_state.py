"""What a checkpoint holds of a training under DeepSpeed: weights and the optimizer's state as whole tensors by name, as the torch engine has them, out of its flat parts and back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from luban.models.base import Model
from luban.parallel.layouts import Layout


class ZeroState:
    """``zero`` is DeepSpeed's optimizer, ``part`` Luban's inside it, ``optimizer`` what knows parameters' names.

    A tensor that is put together is kept by one rank, the next by the next, so that none holds all of them.
    """

    def __init__(self, zero: Any, part: torch.optim.Optimizer, optimizer: Any, model: Model, layout: Layout):
        self.zero, self.part, self.optimizer, self.model, self.layout = zero, part, optimizer, model, layout
        self.cut = layout.stage == 3
        self.names: dict[nn.Parameter, str] = optimizer.names
        self.aliases = _aliases(model)
        self.fixed = set(model.unchanging)

    # ---- rates and gradients -----------------------------------------------------------------------------------------

    def set_rates(self, factor: float) -> None:
        for group in self.part.param_groups:
            group["lr"] = group["peak"] * factor

    @torch.no_grad()
    def gradient_norms(self) -> Tensor:
        """[parameters] the norm of each one's gradient, before clipping. One reduction over the ranks."""
        squares = torch.zeros(len(self.names), dtype=torch.float64, device=self.model.device)
        for place, parameter in enumerate(self.names):
            if (norm := self._own_norm(parameter)) is not None:
                squares[place] = norm.double().square()
        return self.layout.add(squares).sqrt().float()

    def _own_norm(self, parameter: nn.Parameter) -> Tensor | None:
        """The norm of this rank's part of a gradient; None where it has none."""
        if self.layout.offload.get("optimizer", "none") != "none":  # noted when the gradient was moved there
            found = self.zero.norm_for_param_grads.get(self.zero.get_param_id(parameter))
            return None if found is None else torch.as_tensor(found, device=self.model.device)
        if self.cut:
            from deepspeed.utils import safe_get_local_grad

            return torch.linalg.vector_norm(safe_get_local_grad(parameter))
        held = parameter._hp_mapping
        return None if held is None else torch.linalg.vector_norm(held.get_lp_grad_fragment(parameter._index_in_param_group))

    @torch.no_grad()
    def spoil(self) -> None:
        """Make the gradient not finite, so that DeepSpeed does not apply it."""
        for parameter in self.names:
            if self.layout.offload.get("optimizer", "none") != "none":
                if (known := self.zero.norm_for_param_grads).get(number := self.zero.get_param_id(parameter)) is not None:
                    known[number] = torch.full((), torch.nan)
                    return
            elif self.cut:
                from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

                safe_set_local_grad(parameter, torch.full_like(safe_get_local_grad(parameter), torch.nan))
                return
            elif parameter._hp_mapping is not None:
                parameter._hp_mapping.get_lp_grad_fragment(parameter._index_in_param_group).fill_(torch.nan)
                return

    # ---- weights -----------------------------------------------------------------------------------------------------

    def shapes(self) -> dict[str, list[int]]:
        """Each tensor of :meth:`weights`, on all ranks together, with its shape."""
        parameters = {name: list(getattr(parameter, "ds_shape", parameter.shape)) for name, parameter in self._learned()}
        return {name: list(tensor.shape) for name, tensor in self._buffers().items()} | parameters | {alias: parameters[name] for alias, name in self.aliases.items() if name in parameters}

    def weights(self, spread: bool) -> dict[str, Tensor]:
        """What training may change, by name: of whole tensors those that this rank keeps, or, not ``spread``, all of them on the first."""
        from deepspeed.utils import safe_get_full_fp32_param

        found = self._buffers() if self.layout.ranks.leads else {}
        for number, (name, parameter) in enumerate(self._learned()):
            if parameter.requires_grad:
                value = safe_get_full_fp32_param(parameter)
            else:
                with gathered([parameter]):
                    value = parameter.detach()
                    value = value.clone() if self.cut else value
            if self._keeps(number if spread else 0):
                found[name] = value
        return found | {alias: found[name] for alias, name in self.aliases.items() if name in found}

    @torch.no_grad()
    def load_weights(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`weights` gave, every rank all of it."""
        from deepspeed.utils import safe_set_full_fp32_param

        for name, parameter in self._learned():
            value = tensors[name].to(self.model.device)
            with gathered([parameter], writer=0):
                parameter.data.copy_(value)
            if parameter.requires_grad and self.cut:
                self._set_own_part(parameter, value)
            elif parameter.requires_grad:
                safe_set_full_fp32_param(parameter, value)
        for name, buffer in self._buffers().items():
            buffer.copy_(tensors[name])

    def _learned(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that a checkpoint holds, each once."""
        return ((name, parameter) for name, parameter in self.model.named_parameters() if name not in self.fixed)

    def _buffers(self) -> dict[str, Tensor]:
        parameters = {name for name, _ in self.model.named_parameters(remove_duplicate=False)}
        return {name: value for name, value in self.model.state_dict().items() if name not in parameters and name not in self.fixed}

    def _keeps(self, number: int) -> bool:
        return number % self.layout.ranks.size == self.layout.ranks.rank

    def _set_own_part(self, parameter: nn.Parameter, value: Tensor, slot: str | None = None) -> None:
        """Put this rank's part of a whole tensor where stage 3 keeps it, and zeros behind its end. DeepSpeed's own ``safe_set_local_*`` ask the weights how large the part is, which are not there while they wait on disk."""
        held, number = self.zero._get_fp32_opt_state_partition(parameter, release_swap_buffers=False, optim_state_key=slot)
        part = value.flatten()[len(held) * self.layout.ranks.rank :][: len(held)]
        held.data.copy_(torch.cat([part, part.new_zeros(len(held) - len(part))]))
        if self.zero._swappable_optimizer_subgroup(number):
            self.zero._optimizer_states_and_gradient_swap_out(number)

    # ---- the optimizer's state ---------------------------------------------------------------------------------------

    def optimizer_state(self) -> dict[str, Tensor]:
        """``parameter::slot`` to tensor: of whole tensors those that this rank keeps."""
        from deepspeed.utils import safe_get_full_optimizer_state

        found: dict[str, Tensor] = {}
        self._link()
        slots = self._slots()
        for number, (parameter, name) in enumerate(self.names.items()):
            for slot, value in slots.items():
                whole = value if value is not None else safe_get_full_optimizer_state(parameter, slot)
                if self._keeps(number):
                    found[f"{name}::{slot}"] = whole.clone() if value is not None else whole
        return found

    def _slots(self) -> dict[str, Tensor | None]:
        """What is kept of each parameter: numbers of its shape (None), or a count that all have in common. Nothing before the first step."""
        flat = next((flat for flat, _ in self._flats() if self.part.state.get(flat)), None)
        slots = {} if flat is None else {slot: value if torch.is_tensor(value) and not value.ndim else None for slot, value in self.part.state[flat].items()}
        known = self.layout.ranks.everyone(sorted(slots))
        assert all(other == known[0] for other in known), f"the ranks keep {known} of each parameter"
        return slots

    def _flats(self) -> Iterator[tuple[Tensor, dict[str, Any]]]:
        """DeepSpeed's flat parameters on this rank, each with its group."""
        if self.cut:
            for number, flat in enumerate(self.zero.fp32_partitioned_groups_flat):
                yield flat, self.part.param_groups[self.zero.sub_group_to_group_id[number]]
        else:
            yield from zip(self.zero.single_partition_of_fp32_groups, self.part.param_groups, strict=True)

    @torch.no_grad()
    def load_optimizer_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what :meth:`optimizer_state` gave, every rank all of it; what a parameter has none of begins anew."""
        from deepspeed.utils import safe_set_full_optimizer_state

        if not tensors:
            self.part.state.clear()
            self._link()
            return
        counts = {key.partition("::")[2]: value for key, value in tensors.items() if not value.ndim}
        for number, (flat, group) in enumerate(self._flats()):
            on_disk = self.cut and self.zero._swappable_optimizer_subgroup(number)
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_in(number)
            state = (on_disk and self.part.state.get(flat)) or self.optimizer.first_state(self.part, flat, group)  # files are known by the tensors that they were made of
            for slot, value in state.items():
                if slot in counts:
                    value.copy_(counts[slot])
            self.part.state[flat] = state
            if on_disk:
                self.zero._optimizer_states_and_gradient_swap_out(number)
        self._link()
        parameters = {name: parameter for parameter, name in self.names.items()}
        for key, value in tensors.items():
            name, _, slot = key.partition("::")
            if value.ndim and self.cut:
                self._set_own_part(parameters[name], value.to(self.model.device), slot)
            elif value.ndim:
                safe_set_full_optimizer_state(parameters[name], value.to(self.model.device), slot)

    def _link(self) -> None:
        """Let DeepSpeed find the states that stand there now: by itself it looks once, when the first of several groups has made its first step."""
        if not self.cut:
            self.zero._hp_optimizer_states_linked = False
            if self.part.state:
                self.zero._lazy_init_hp_params_optimizer_state()


def gathered(parameters: list[nn.Parameter], writer: int | None = None) -> Any:
    """A context in which parameters that stage 3 has cut are whole; what rank ``writer`` changes in them then holds on all."""
    import deepspeed

    return deepspeed.zero.GatheredParameters(parameters, modifier_rank=writer)


def _aliases(model: Model) -> dict[str, str]:
    """A tied parameter's other names, each to the one that it goes by."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {name: names[parameter] for name, parameter in model.named_parameters(remove_duplicate=False) if names[parameter] != name and name not in model.unchanging}
