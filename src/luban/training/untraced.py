"""Torch's optimizers without what keeps them from being traced: nothing here traces them, and asking for it loads the compiler, half a second."""

from __future__ import annotations

import inspect

import torch


class Untraced:
    """A base to name before one of torch's optimizers."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)


class AdamW(Untraced, torch.optim.AdamW):
    """Torch's own."""

    step = torch.no_grad()(inspect.unwrap(torch.optim.AdamW.step))
