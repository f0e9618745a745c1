"""What the guards do when the data, the gradients or the arithmetic are really bad: the step is refused, named, counted and kept; the run goes on, goes back, or stops with its state saved."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from guard_lab import FIXED, bits, events, lines, losses, train
from torch.utils._python_dispatch import TorchDispatchMode

from luban.foundation.errors import ConfigError, LubanError
from luban.models.huggingface import load_model
from luban.training.config import GuardsConfig
from luban.training.spikes import Window

POISON = """
import torch
from luban.objectives.causal import Causal
from luban.objectives.config import CausalConfig

STEPS = {steps}

class Poisoned(Causal):
    \"\"\"Some steps of the data hold garbage: every target is one that never comes.\"\"\"
    name = "causal"

    def __init__(self):
        super().__init__(CausalConfig())

    def loaders(self, data):
        made = super().loaders(data)
        plain = made.train.step
        def step(index):
            batch = plain(index)
            if index in STEPS:
                batch.targets = torch.full_like(batch.targets, 290)
            return batch
        made.train.step = step
        return made
"""


def poisoned(folder, *steps: int) -> str:
    (folder / "poison.py").write_text(POISON.format(steps=set(steps)))
    return f"{folder / 'poison.py'}:Poisoned"


SPIKES = {"spike_window": 16, "spike_threshold": 6.0}


def test_garbage_in_the_data_is_skipped_and_kept_for_a_look(tmp_path, tokens):
    artifact = train(tmp_path, tokens, objective=poisoned(tmp_path, 13), guards={"spikes": "skip", **SPIKES})
    assert events(artifact.path) == ["spike"]
    told = lines(artifact.path, "guard.jsonl")[0]
    assert told["step"] == 14 and told["sources"] and told["loss"] > 1.5 * losses(artifact.path)[12][1]
    kept = (artifact.path / "training" / told["text"]).read_text(encoding="utf-8")
    assert told["sources"][0] in kept and "king" in kept
    assert artifact.metrics["guard"]["spikes"] == 1 and [step for step, _ in losses(artifact.path)] == list(range(1, 25))
    hurt = train(tmp_path, tokens, "hurt", objective=poisoned(tmp_path, 13))
    assert losses(hurt.path)[14][1] > losses(artifact.path)[14][1], "the step that was applied does harm"


def test_a_skipped_step_leaves_weights_and_optimizer_as_they_were(tmp_path, tokens):
    """The oracle: a run that never saw the step's gradients. Weights, moments and counters of AdamW are the same bits."""
    seen = {}

    def watch(run):
        state = {**run.engine.optimizer.state(), **run.model.state_dict()}
        seen[run.step] = {name: value.clone() for name, value in state.items()}

    from luban.foundation.kinds import KINDS
    from luban.pipeline.api import one_stage
    from luban.pipeline.runner import run_recipe

    fields = {**FIXED, "objective": poisoned(tmp_path, 13), "guards": {"spikes": "skip", **SPIKES}, "length": "15 steps"}
    run_recipe(one_stage(KINDS["train"], (tokens,), out=tmp_path / "out", **fields), watch=watch)
    assert seen[13].keys() == seen[14].keys() and all(torch.equal(value, seen[14][name]) for name, value in seen[13].items())
    assert not all(torch.equal(value, seen[15][name]) for name, value in seen[13].items())

SHIFTED = """
from luban.objectives.causal import Causal
from luban.objectives.config import CausalConfig

class Shifted(Causal):
    name = "causal"

    def __init__(self):
        super().__init__(CausalConfig())

    def loaders(self, data):
        made = super().loaders(data)
        plain = made.train.step
        made.train.step = lambda index: plain(index if index < 12 else index + 2)
        return made
"""


def test_rolling_back_is_a_run_that_never_read_the_range(tmp_path, tokens):
    """The oracle: a loader that leaves the range out. The log is retracted, and a run that is killed before and after goes back to the same bits."""
    guards = {"spikes": "rollback", **SPIKES}
    artifact = train(tmp_path, tokens, objective=poisoned(tmp_path, 13), guards=guards)
    (tmp_path / "shifted.py").write_text(SHIFTED)
    oracle = train(tmp_path, tokens, "oracle", objective=f"{tmp_path / 'shifted.py'}:Shifted")
    assert bits(artifact) == bits(oracle) and losses(artifact.path) == losses(oracle.path)
    told = lines(artifact.path, "guard.jsonl")
    assert [(entry["event"], entry["step"], entry["to"], entry["passed_over"]) for entry in told] == [("rollback", 14, 12, 2)]
    assert artifact.metrics["guard"] == {"not_finite": 0, "spikes": 1, "rollbacks": 1, "passed_over": 2}
    (tmp_path / "dies.py").write_text("from pathlib import Path\ndef dies(run):\n    file = Path(__file__).with_name('at')\n    steps = file.read_text().split()\n    if str(run.step) in steps[:1]:\n        file.write_text(' '.join(steps[1:]))\n        raise SystemError('killed')\n")
    (tmp_path / "at").write_text("13 14 18")
    for _ in range(3):
        with pytest.raises(SystemError):
            train(tmp_path, tokens, "killed", objective=poisoned(tmp_path, 13), guards=guards, callbacks=[f"{tmp_path / 'dies.py'}:dies"])
    killed = train(tmp_path, tokens, "killed", objective=poisoned(tmp_path, 13), guards=guards, callbacks=[f"{tmp_path / 'dies.py'}:dies"])
    assert bits(killed) == bits(oracle) and losses(killed.path) == losses(oracle.path)
    assert [entry["event"] for entry in lines(killed.path, "guard.jsonl")] == ["rollback"] and killed.metrics["guard"] == artifact.metrics["guard"]


def test_a_gradient_that_is_not_finite_names_its_layer(tmp_path, tokens):
    (tmp_path / "hot.py").write_text(
        "import torch\ndef hot(run):\n    if run.step == 1:\n        weight = dict(run.model.named_parameters())['model.layers.1.mlp.down_proj.weight']\n"
        "        weight.register_hook(lambda gradient: gradient * float('inf') if run.step == 4 else gradient)\n"
    )
    artifact = train(tmp_path, tokens, length="8 steps", callbacks=[f"{tmp_path / 'hot.py'}:hot"])
    told = lines(artifact.path, "guard.jsonl")
    assert [(entry["event"], entry["step"]) for entry in told] == [("not_finite", 5)]
    assert next(iter(told[0]["layers"])) == "layer 1" and told[0]["not_finite"] == {"gradient_norm": "nan"} or told[0]["not_finite"] == {"gradient_norm": "inf"}
    assert artifact.metrics["guard"]["not_finite"] == 1
    assert all(bool(torch.isfinite(parameter).all()) for parameter in load_model(artifact.path).parameters())


def test_too_many_in_a_row_stop_with_the_state_saved_and_the_same_command_goes_on_behind_them(tmp_path, tokens):
    fields = {"objective": poisoned(tmp_path, *range(13, 17)), "guards": {"spikes": "skip", "too_many": 3, "keep_batches": 2, **SPIKES}}
    with pytest.raises(LubanError, match="3 steps in a row"):
        train(tmp_path, tokens, **fields)
    partial = tmp_path / "out.partial"
    assert sorted(path.name for path in (partial / "training" / "checkpoints").iterdir())[-1] == "step-00000016"
    assert len(list((partial / "training" / "refused").iterdir())) == 2
    artifact = train(tmp_path, tokens, **fields)
    assert artifact.metrics["steps"] == 24 and events(artifact.path) == ["spike"] * 4


def test_layers_are_named_when_the_norm_leaves_its_band_and_logged_when_asked_for(tmp_path, tokens):
    (tmp_path / "loud.py").write_text(
        "def loud(run):\n    if run.step == 1:\n        for name, weight in run.model.named_parameters():\n            if '.layers.0.' in name:\n"
        "                weight.register_hook(lambda gradient: gradient * {20: 1e3}.get(run.step, 1.0))\n            weight.register_hook(lambda gradient: gradient * {22: 1e-6}.get(run.step, 1.0))\n"
    )
    artifact = train(tmp_path, tokens, callbacks=[f"{tmp_path / 'loud.py'}:loud"], gradient_clip=0.5, guards={"layers_every": 6})
    told = {entry["event"]: entry for entry in lines(artifact.path, "guard.jsonl")}
    assert told["gradient_exploded"]["step"] == 21 and next(iter(told["gradient_exploded"]["layers"])) == "layer 0"
    assert told["gradient_vanished"]["step"] == 23 and told["gradient_vanished"]["gradient_norm"] < 1e-4
    logged = {entry["step"]: entry["layers"] for entry in lines(artifact.path, "log.jsonl") if "layers" in entry}
    norms = {entry["step"]: entry["gradient_norm"] for entry in lines(artifact.path, "log.jsonl") if "gradient_norm" in entry}
    assert sorted(logged) == [6, 12, 18, 24] and set(logged[6]) == {"embeddings", "layer 0", "layer 1", "head"}
    for step, layers in logged.items():  # the whole is the root of the sum of squares of the parts, before clipping
        assert sum(value**2 for value in layers.values()) ** 0.5 == pytest.approx(norms[step], rel=1e-5)


def test_the_threshold_is_that_of_its_formula():
    draw = np.random.default_rng(0)
    for count in range(2, 24):
        values = draw.normal(3, 0.5, count).astype(np.float32).tolist()
        window = Window(20, torch.device("cpu"), values)
        known = values[-20:]
        apart = statistics.median(abs(b - a) for a, b in zip(known, known[1:], strict=False))
        expected = statistics.median(known) + 5 * max(1.4826 / 2**0.5 * apart, 0.01 * abs(statistics.median(known)))
        assert float(window.threshold(5.0)) == (pytest.approx(expected, rel=1e-5) if len(known) >= 5 else float("inf"))


class NoSync(TorchDispatchMode):
    """Fails where a number of a tensor is asked for: what would make the host wait for an accelerator."""

    def __torch_dispatch__(self, operation, types, arguments=(), kwargs=None):
        assert "_local_scalar_dense" not in str(operation) and "nonzero" not in str(operation), f"{operation} waits for the device"
        return operation(*arguments, **(kwargs or {}))


def test_the_hot_path_asks_for_no_number(tmp_path, tokens, monkeypatch):
    """What happens on an accelerator, shown here: the verdict stays where the loss is, a fused AdamW obeys it, and the host looks one step later. The bits are those of a processor's way."""
    from luban.parallel.engine import TorchEngine
    from luban.training.guards import Guard

    fields = {"objective": poisoned(tmp_path, 13), "guards": {"spikes": "skip", **SPIKES}}
    plain = train(tmp_path, tokens, **fields)
    judged, judge = [], Guard.judge

    def watched(self, run, batch, means, norm):
        self.behind = 1
        with NoSync():
            verdict = judge(self, run, batch, means, norm)
        judged.append(verdict)
        return verdict

    def applies(self, keep):
        for part in self.optimizer.parts:
            part.found_inf = (~keep).float()
        return True

    monkeypatch.setattr(Guard, "judge", watched)
    monkeypatch.setattr(TorchEngine, "_applies", applies)
    lagging = train(tmp_path, tokens, "lagging", **fields)
    assert [int(verdict) for verdict in judged] == [2 if step == 13 else 0 for step in range(24)]
    assert bits(lagging) == bits(plain) and losses(lagging.path) == losses(plain.path) and events(lagging.path) == ["spike"]


def test_an_engine_that_has_moved_the_weights_cannot_skip(tmp_path, tokens):
    with pytest.raises(ConfigError, match=r"guards\.spikes"):
        train(tmp_path, tokens, engine="layerwise", optimizer={"name": "sgd", "learning_rate": 0.1}, micro_batch_rows="auto", guards={"spikes": "skip"})


def test_a_loss_scale_that_overflows_comes_down(tokens):
    """float16: a refused step lowers the scale too, or every step would be refused."""
    from luban.parallel.engine import TorchEngine

    model = torch.nn.Linear(4, 1)
    model.adapter, model.device = None, torch.device("cpu")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    class Parts:
        parts, names = [optimizer], {parameter: name for name, parameter in model.named_parameters()}
        zero_grad = staticmethod(optimizer.zero_grad)
        step = staticmethod(lambda factor: optimizer.step())

    engine = TorchEngine(model, Parts(), objective=None, micro_batch_rows=1, precision=torch.float16)
    before = model.weight.clone()
    engine.scaler.scale(model(torch.full((1, 4), 1e36)).sum()).backward()
    norm = engine.clip(1.0)
    engine.step(1.0, 1, torch.isfinite(norm))
    assert not torch.isfinite(norm) and torch.equal(before, model.weight) and engine.scaler.get_scale() == 2.0**15


def test_the_fields_say_what_they_bound():
    with pytest.raises(ValueError):
        GuardsConfig(spike_window=2)
