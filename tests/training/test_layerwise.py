"""The layer-wise engine is the plain one: gradients, steps, states; it holds no gradients; and it refuses by name what it cannot do."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_recipe

import luban
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, Interrupted
from luban.models.decoder import Decoder
from luban.models.families import build_model
from luban.models.huggingface import load_model
from luban.models.narrow import NarrowLinear, check_narrow, hold_narrow, new_narrow
from luban.models.products import product
from luban.models.shape import ShapeConfig
from luban.objectives.causal import Causal
from luban.parallel.engine import TorchEngine
from luban.parallel.layerwise import LayerwiseEngine
from luban.tokens.batch import Batch
from luban.training.config import OPTIMIZERS, OptimizerConfig, TrainConfig
from luban.training.engines import check_engine
from luban.training.optimizers import Optimizers
from luban.training.regularization import RegularizationConfig

SHAPE = ShapeConfig(architecture="qwen3", vocabulary_size=61, layers=3, hidden_size=32, heads=2, key_value_heads=1, head_dim=16, feed_forward_size=48, maximum_positions=64, query_key_norm=True, tied_embeddings=True)
LLAMA = ShapeConfig(architecture="llama", vocabulary_size=61, layers=3, hidden_size=32, heads=2, feed_forward_size=48, maximum_positions=64, tied_embeddings=False)


def batch_of(rows=4, seq=12, seed=5) -> Batch:
    tokens = torch.randint(0, 61, (rows, seq + 1), generator=torch.Generator().manual_seed(seed))
    weights = torch.ones(rows, seq)
    weights[0, 3:] = 0
    return Batch(tokens[:, :-1], tokens[:, 1:], weights, torch.arange(seq).expand(rows, -1), None, [""] * rows, [1] * rows)


def engine_of(kind, model, name="adafactor", regularization=None, **more):
    config = OptimizerConfig(**{"name": name, "learning_rate": 1e-2, "embedding_learning_rate": 1e-2, "matrix_learning_rate": 2e-2, "weight_decay": 0.01, **more})
    optimizer = Optimizers(model, config, regularization, apart=kind is LayerwiseEngine)
    return kind(model.train(), optimizer, Causal(), 100, torch.float32)


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("mode", ["none", "full"])
def test_steps_are_the_plain_engines(name, mode):
    """Weights after three steps, bit by bit, tied matrices and an L1 penalty included; no gradient is left, and never more than one was there."""
    regularization = RegularizationConfig(l1=1e-4, freeze=["layers.1.mlp"])
    plain, layered = Decoder(SHAPE).initialize(3), Decoder(SHAPE).initialize(3)
    one, other = engine_of(TorchEngine, plain, name, regularization), engine_of(LayerwiseEngine, layered, name, regularization)
    plain.recompute = layered.recompute = mode
    most = []
    for parameter in other.optimizer.names:
        parameter.register_hook(lambda gradient: most.append(sum(p.grad is not None for p in layered.parameters())))
    for step in range(3):
        batch, factor = batch_of(seed=step), 1 / (step + 1)
        expected = one.forward_backward(batch, factor)
        norm = one.clip(0.0)
        one.step(factor, step + 1)
        found = other.forward_backward(batch, factor)
        torch.testing.assert_close(other.clip(0.0), norm, rtol=1e-5, atol=1e-6)
        other.step(factor, step + 1)
        assert torch.equal(found["loss"], expected["loss"])
    assert most and max(most) == 0 and all(parameter.grad is None for parameter in layered.parameters())
    for (label, a), b in zip(plain.named_parameters(), layered.named_parameters(), strict=True):
        assert torch.equal(a, b[1]), label
    states = one.optimizer.state(), other.optimizer.state()
    assert set(states[0]) == set(states[1]) and all(torch.equal(value, states[1][key]) for key, value in states[0].items())


def test_a_checkpoint_goes_from_one_engine_to_the_other():
    plain, layered = Decoder(SHAPE).initialize(3), Decoder(SHAPE).initialize(3)
    one, other = engine_of(TorchEngine, plain, "adamw"), engine_of(LayerwiseEngine, layered, "adamw")
    one.forward_backward(batch_of()), one.step(1.0)
    other.optimizer.load_state({key: value.clone() for key, value in one.optimizer.state().items()})
    layered.load_state_dict(plain.state_dict())
    one.forward_backward(batch_of(seed=1)), one.step(1.0)
    other.forward_backward(batch_of(seed=1))
    assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), layered.parameters(), strict=True))


def test_what_is_not_finite_moves_nothing():
    model = Decoder(SHAPE).initialize(3)
    engine = engine_of(LayerwiseEngine, model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    batch = batch_of()
    batch.weights[1, 2] = torch.nan  # the loss
    assert not torch.isfinite(engine.forward_backward(batch)["loss"])
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    lowest = model.model.layers[0].mlp.down_proj.weight
    lowest.register_hook(lambda gradient: gradient * torch.inf)
    engine.forward_backward(batch_of())
    assert not torch.isfinite(engine.clip(0.0)) and torch.equal(lowest, before["model.layers.0.mlp.down_proj.weight"])
    assert not torch.equal(model.model.norm.weight, before["model.norm.weight"])


@pytest.mark.parametrize("asked, named", [
    ({"gradient_clip": 1.0}, "gradient_clip: 1.0"), ({"micro_batch_rows": 2}, "micro_batch_rows: 2"), ({"precision": "float16"}, "precision: float16"),
    ({"regularization": {"adversarial": {"method": "fgm"}}}, "regularization.adversarial.method: fgm"), ({"adapter": {"method": "adalora"}}, "adapter.method: adalora"),
])  # fmt: skip
def test_what_it_cannot_do_is_refused_by_name(asked, named):
    config = build(TrainConfig, {"data": "x", "engine": "layerwise", "gradient_clip": 0, **asked})
    with pytest.raises(ConfigError, match="engine: layerwise") as refused:
        check_engine(config, 8)
    assert named in str(refused.value)
    check_engine(build(TrainConfig, {"data": "x", "gradient_clip": 0, **asked}), 8)  # the plain engine can
    check_engine(build(TrainConfig, {"data": "x", "engine": "layerwise", "gradient_clip": 0, "micro_batch_rows": 8}), 8)


# ---- weights in bfloat16 -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [SHAPE, LLAMA])
def test_gradients_of_narrow_weights_are_those_of_the_same_numbers_in_float32(shape):
    narrow = hold_narrow(Decoder(shape).initialize(3))
    plain = Decoder(shape).initialize(3)
    plain.load_state_dict({name: value.float() for name, value in narrow.state_dict().items()})
    assert isinstance(narrow.model.layers[0].mlp.up_proj, NarrowLinear) and narrow.dtype == torch.bfloat16 and narrow.states_dtype == torch.float32
    for mode in ("none", "selective", "full"):
        narrow.recompute = mode
        for model in (narrow, plain):
            model.zero_grad()
            engine_of(TorchEngine, model, "adafactor").forward_backward(batch_of())
        for (name, a), b in zip(narrow.named_parameters(), plain.parameters(), strict=True):
            assert a.grad.dtype == torch.float32
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_a_narrow_model_drawn_matrix_by_matrix_is_the_rounded_one():
    for shape in (SHAPE, LLAMA):
        rounded, drawn = hold_narrow(Decoder(shape).initialize(7)), new_narrow(shape, 7)
        assert {name: (value.dtype, value.tolist()) for name, value in rounded.state_dict().items()} == {name: (value.dtype, value.tolist()) for name, value in drawn.state_dict().items()}
        assert (drawn.output_weight is drawn.embedding.weight) == shape.tied_embeddings
        assert hold_narrow(drawn) is drawn and drawn.dtype == torch.bfloat16 and drawn.model.norm.weight.dtype == torch.float32


def test_autocast_multiplies_narrow_weights_as_they_are():
    torch.manual_seed(0)
    states, weight = torch.randn(5, 8), torch.randn(6, 8).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        made = product(states, weight, torch.ones(6))
    assert made.dtype == torch.bfloat16
    torch.testing.assert_close(made, torch.nn.functional.linear(states.bfloat16(), weight) + 1, rtol=1e-2, atol=1e-2)


def test_every_parameter_of_a_narrow_model_learns_and_the_loss_falls():
    model = new_narrow(LLAMA, 1)
    engine = engine_of(LayerwiseEngine, model, learning_rate=3e-2, embedding_learning_rate=3e-2, weight_decay=0.0)
    model.recompute = "full"
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    losses = [float(engine.forward_backward(batch_of())["loss"]) for _ in range(30)]
    assert losses[-1] < 0.7 * losses[0]
    for name, parameter in model.named_parameters():
        changed = (parameter != before[name]).float().mean()
        assert changed > (0.4 if "embed" in name else 0.5), name  # of the embedding, the rows of the batch's tokens


def test_families_with_other_matrices_are_refused():
    from luban.models.presets import preset

    for name in ("gpt2", "lstm-small"):
        with pytest.raises(ConfigError, match="weights: bfloat16"):
            check_narrow(preset(name).updated(vocabulary_size=100))
    check_narrow(preset("llama-2-7b"))
    assert build_model(SHAPE).narrow is False


# ---- through the stage ---------------------------------------------------------------------------------------------

LAYERWISE = {"engine": "layerwise", "weights": "bfloat16", "optimizer": {"name": "adafactor"}, "recompute": "100 KiB", "precision": "float32"}


STOP = """
from pathlib import Path

def at_four(run):
    flag = Path(__file__).with_name("stop-now")
    if run.step == 4 and flag.exists():
        flag.unlink()
        run.stop_reason = 'SIGTERM'
"""


def recipe_of(folder, **train):
    recipe = tiny_recipe(folder, **{**LAYERWISE, "length": "8 steps", "checkpoint": {"every": "4 steps"}, **train})
    recipe["stages"]["corpus"]["sources"] = str(folder / "text.txt")
    return recipe


def test_a_stage_trains_in_bfloat16_and_a_stopped_one_goes_on_bit_by_bit(tmp_path):
    """From random weights, then from the directory; what stopped after four steps ends as what ran through."""
    whole = luban.run(recipe_of(tmp_path), out=tmp_path / "run")[-1]
    stored = load_file(whole.path / "model.safetensors")
    assert {value.dtype for value in stored.values()} == {torch.bfloat16}
    resolved = whole.manifest["resolved"]
    assert resolved["gradient_clip"] == 0
    losses = [json.loads(line)["loss"] for line in (whole.path / "training" / "log.jsonl").read_text(encoding="utf-8").splitlines() if '"learning_rate"' in line]
    assert losses[-1] < losses[0]
    (tmp_path / "stop.py").write_text(STOP, encoding="utf-8")
    more = {"data": tmp_path / "run" / "tokens", "model": whole.path, "sequence_length": 32, "batch_tokens": 128, "threads": 1, "length": "6 steps", "checkpoint": {"every": "3 steps"}}
    more |= {"callbacks": [f"{tmp_path / 'stop.py'}:at_four"], **LAYERWISE}
    straight = luban.train(out=tmp_path / "straight", **more)
    (tmp_path / "stop-now").touch()
    with pytest.raises(Interrupted):
        luban.train(out=tmp_path / "stopped", **more)
    again = luban.train(out=tmp_path / "stopped", **more)
    one, other = load_file(straight.path / "model.safetensors"), load_file(again.path / "model.safetensors")
    assert all(torch.equal(value, other[name]) for name, value in one.items())
    assert load_model(again.path).dtype == torch.float32  # read as any other


@pytest.mark.parametrize("asked, named", [({"gradient_clip": 0.5}, "gradient_clip: 0.5"), ({"micro_batch_rows": 1}, "micro_batch_rows: 1"), ({"optimizer": {"name": "muon"}}, "optimizer.name: muon"), ({"regularization": {"average": "exponential"}}, "average: exponential")])
def test_a_recipe_is_refused_before_anything_is_trained(tmp_path, asked, named):
    with pytest.raises(ConfigError) as refused:
        luban.run(recipe_of(tmp_path, **asked), out=tmp_path / "run")
    assert named in str(refused.value)


def test_former_values_of_recompute_are_read():
    read = [build(TrainConfig, {"data": "x", "recompute": value}).recompute for value in (True, False, "selective", "2 GiB", 1000)]
    assert read == ["full", "none", "selective", 2 * 2**30, 1000]
    with pytest.raises(ConfigError, match="recompute"):
        build(TrainConfig, {"data": "x", "recompute": "some"})
