"""An optimizer's state on the disk: the bits of one in memory, through kills and full disks."""

from __future__ import annotations

import os
import resource
import signal

import pytest
import torch
from resume_lab import case, remains, train
from safetensors.torch import load_file

from luban.foundation.config import build
from luban.foundation.errors import ConfigError, LubanError
from luban.models.decoder import Decoder
from luban.models.shape import ShapeConfig
from luban.objectives.causal import Causal
from luban.parallel.layerwise import LayerwiseEngine
from luban.tokens.batch import Batch
from luban.training.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from luban.training.engines import check_engine
from luban.training.optimizers import Optimizers

SHAPE = ShapeConfig(architecture="llama", vocabulary_size=300, layers=2, hidden_size=64, heads=2, feed_forward_size=256, maximum_positions=64, tied_embeddings=False)


def batch_of(seed: int) -> Batch:
    tokens = torch.randint(0, 300, (3, 13), generator=torch.Generator().manual_seed(seed))
    return Batch(tokens[:, :-1], tokens[:, 1:], torch.ones(3, 12), torch.arange(12).expand(3, -1), None, [""] * 3, [1] * 3)


def engine_of(name: str, files=None, **more) -> LayerwiseEngine:
    config = OptimizerConfig(name=name, learning_rate=1e-2, embedding_learning_rate=1e-2, matrix_learning_rate=2e-2, weight_decay=0.01, **more)
    model = Decoder(SHAPE).initialize(3).train()
    return LayerwiseEngine(model, Optimizers(model, config, apart=True, files=files), Causal(), 100, torch.float32)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_steps_on_disk_have_the_bits_of_steps_in_memory(name, tmp_path):
    """Weights and state after three steps, of which the third follows a going back; and what a step has written is in the files."""
    more = {"momentum": 0.9} if name == "adafactor" else {}
    memory, disk = engine_of(name, **more), engine_of(name, tmp_path / "optimizer", **more)
    for step in range(3):
        kept = {key: value.clone() for key, value in disk.optimizer.state().items()}
        memory.forward_backward(batch_of(step)), disk.forward_backward(batch_of(step))
        if step == 1:
            weights = {key: value.clone() for key, value in disk.model.state_dict().items()}
            middle = {key: value.clone() for key, value in disk.optimizer.state().items()}
            disk.optimizer.load_state(kept), disk.forward_backward(batch_of(9))  # elsewhere, and back
            disk.optimizer.load_state(middle), disk.model.load_state_dict(weights)
    for (label, a), b in zip(memory.model.named_parameters(), disk.model.parameters(), strict=True):
        assert torch.equal(a, b), label
    expected, found = memory.optimizer.state(), disk.optimizer.state()
    assert expected.keys() == found.keys() and all(torch.equal(value, found[key]) and value.dtype == found[key].dtype for key, value in expected.items())
    label = "model.layers.1.mlp.up_proj.weight"
    written = load_file(tmp_path / "optimizer" / f"{label}.safetensors")
    assert written and all(torch.equal(value, expected[f"{label}::{slot}"]) and bool(value.float().any()) for slot, value in written.items())


def test_the_plain_engine_refuses_it_by_name():
    config = build(TrainConfig, {"data": "x", "gradient_clip": 0, "optimizer": {"state": "disk"}})
    with pytest.raises(ConfigError, match="engine: torch cannot do optimizer.state: disk"):
        check_engine(config, 8)
    check_engine(build(TrainConfig, {"data": "x", "engine": "layerwise", "gradient_clip": 0, "optimizer": {"state": "disk"}}), 8)


# ---- through the stage ---------------------------------------------------------------------------------------------


@pytest.fixture
def fields(tmp_path):
    return {**case(tmp_path, "causal"), "engine": "layerwise", "optimizer": {"name": "adamw", "learning_rate": 5e-3, "state": "disk"}, "shape": SHAPE.updated(layers=1, vocabulary_size="auto").explicit()}


def test_a_killed_run_goes_on_to_the_bits_of_one_in_memory(fields, tmp_path):
    expected = remains(train(tmp_path, "memory", {**fields, "optimizer": {**fields["optimizer"], "state": "memory"}}))
    for last in (1, 4):
        if not (child := os.fork()):
            train(tmp_path, "disk", fields, watch=lambda run, last=last: os.kill(os.getpid(), signal.SIGKILL) if run.step >= last else None)
            os._exit(1)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        assert any((tmp_path / "disk.partial" / "training" / "optimizer").iterdir())  # what the dead process left is of no use to the next
    made = train(tmp_path, "disk", fields)
    assert remains(made) == expected
    assert not (made.path / "training" / "optimizer").exists()


def test_a_disk_without_room_is_said_before_step_one(fields, tmp_path):
    """The system's own limit on the size of a file: as on a full disk, what is written there does not go in."""
    former, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, former[1]))
    try:
        with pytest.raises(LubanError, match="the disk is full: the optimizer's state does not fit into .*"):
            train(tmp_path, "disk", fields)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
        signal.signal(signal.SIGXFSZ, handler)
    assert not (tmp_path / "disk.partial" / "training" / "log.jsonl").exists()
