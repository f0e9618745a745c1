"""Trains, without values, on an accelerator that is not there: its tensors know what device they are on, and an operation on two devices is an error. Prints where what lies, as JSON."""

from __future__ import annotations

import contextlib
import json
import sys
from typing import Any

import torch
from rank_lab import make
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils import backend_registration

from luban.models.families import build_model
from luban.parallel.engine import TorchEngine
from luban.parallel.imagined import imagine
from luban.parallel.layouts import local, placed, take_to, whole
from luban.parallel.legal import Parts
from luban.parallel.meshed import Meshed
from luban.training.checkpoints import _copied
from luban.training.config import OptimizerConfig
from luban.training.full_size import _imagined
from luban.training.optimizers import Optimizers

RATES = {"learning_rate": 1e-3, "embedding_learning_rate": 1e-3, "matrix_learning_rate": 1e-3}


class Nothing:
    """A stream or an event of a device that does nothing."""

    def __init__(self, *given: Any, **named: Any):
        pass

    def __getattr__(self, name: str) -> Any:
        return lambda *given, **named: Nothing()


class Paper(backend_registration._DummyBackendModule):
    """What torch asks of the module of a device."""

    Stream = Event = Nothing

    def current_stream(self, device: Any = None) -> Nothing:
        return Nothing()

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16]

    def stream(self, stream: Any) -> Any:
        return contextlib.nullcontext()


def stand_in() -> torch.device:
    backend_registration._setup_privateuseone_for_python_backend("paper", Paper())
    torch.Event = Nothing
    torch.Tensor.record_stream = lambda *given: None
    torch.Tensor.pin_memory = lambda tensor: tensor  # of a tensor without values there is nothing to pin
    torch.Tensor.is_pinned = lambda tensor: True
    return torch.device("paper", 0)


def devices(tensors: Any) -> list[str]:
    return sorted({str(local(tensor).device) for tensor in tensors})


def main(name: str, optimizer: str, shard: str, more: str) -> dict[str, list[str]]:
    device, parts = stand_in(), Parts(shards=2, **({more: 2} if more else {}))
    layout = Meshed(imagine(parts.ranks), parts, shard, True, device, offload=True)
    plain, objective, batches = make(name)
    mode, found, counts = FakeTensorMode(), {}, {"tokens": 10.0} | objective.counts(batches[0])
    with mode:
        with device:
            model = build_model(plain.shape).train()
        layout.place(model)
        take_to(model, device)
        made = Optimizers(model, OptimizerConfig(name=optimizer, **RATES))
        engine = TorchEngine(model, made, objective, 2, torch.float32, layout=layout)
    found["runs on"] = [str(engine.device)]
    engine.device = torch.device("cpu")
    passes = [_imagined(part, mode) for part in engine.micro_batches(batches[0])]
    engine.device = device
    with mode:
        for _ in range(2):
            for _ in layout.learn(engine, ((part.to(device), True) for part in passes), counts):
                pass
            found["gradients"] = devices(parameter.grad for parameter in model.parameters())
            layout.sum_gradients(model)
            found["norm"] = devices([engine.clip(1.0)])
            made.step(1.0)
            made.zero_grad()
        found |= {"weights": devices(model.parameters()), "states": devices(made.state().values()), "snapshot": devices(map(_copied, made.state().values()))}
        found["put together"] = devices(layout._gathered(model, device).values())
        made.load_state({slot: whole(value) for slot, value in made.state().items()})
        engine.load_weights({key: placed(torch.empty(value.shape), value) for key, value in model.changing().items()})
        found["read again"] = devices([*made.state().values(), *model.parameters()])
    return found


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
