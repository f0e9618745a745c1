"""Whether a model's blocks are compiled (torch.compile), weighed before step one: what the run would save against what compiling takes.

What compiling took is kept in the user's cache, by model, machine and shape of a micro-batch, so that the next run knows it, and knows that the compiler's own cache has the code.
"""

from __future__ import annotations

import importlib.util
import shutil
import statistics
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from luban.foundation.artifacts import fingerprint, read_json, write_json
from luban.foundation.console import say, seconds_text
from luban.foundation.environment import cache_folder, cxx
from luban.foundation.errors import ConfigError, LubanError
from luban.foundation.hardware import machine
from luban.foundation.messages import t
from luban.models.layers import Layer
from luban.models.own_layers import fits
from luban.models.quantized_model import quantized_layers
from luban.parallel.layouts import Layout, Replicated
from luban.training.engines import choose_recompute
from luban.training.run import Run

RECORD = "compiling.json"
KEPT = 200  # records
# What a compiled step takes less. Processors: the small reference model, 0.98 s became 0.86 s of processor time. GPUs: half of what torch's makers report of training (43 % faster; release notes of 2.0).
GAINS = {"cpu": 1.14, "cuda": 1.2}
# Seconds of processor time that compiling a block and the loss took, 28 on one kind of block; other kinds take about two thirds of it each.
FIRST_BLOCK_SECONDS, OTHER_BLOCK_SECONDS = 28.0, 18.0
CACHED = 0.3  # share that it takes where the compiler's cache has the code: 0.15 to 0.25 measured
MARGIN = 1.5  # what is saved must be so many times what compiling takes
SLOWEST = 10.0  # times what a step's operations take at the machine's rate: no step takes longer, but for what each block costs whatever its size
BLOCK_SECONDS = 0.005
WATCHED = 4  # steps after which it is known what compiling took


def lacking_compiler(device: torch.device) -> str:
    """What torch.compile needs on this device and is not there; "" where all is."""
    if device.type == "cuda":
        return "" if importlib.util.find_spec("triton") else t("the package triton")
    if shutil.which(cxx()) is None:
        return t("a C++ compiler ({name})", name=cxx())
    return "" if (Path(sysconfig.get_path("include")) / "Python.h").exists() else t("Python's headers (Python.h)")


def require_compiler(wanted: bool | str, device: torch.device) -> None:
    """ConfigError where blocks are to be compiled, by the recipe or by what the run chose when it began, and cannot be."""
    if wanted is True and (lacking := lacking_compiler(device)):
        raise ConfigError(
            "compile: true needs {lacking}, which was not found", "torch.compile turns blocks into code of this machine's",
            "install it (on Debian and Ubuntu: apt install g++ python3-dev; the variable CXX names another compiler), or set compile: false", lacking=lacking,
        )  # fmt: skip


def choose_compile(run: Run, seconds_of_a_step: Callable[[], float]) -> bool:
    """Whether compiling is worth its time; ``seconds_of_a_step`` measures an uncompiled step's passes. The reason is printed."""
    config, device = run.config, run.engine.device
    if config.determinism == "strict":
        return _no("determinism: strict, and what is measured may turn out otherwise the next time")
    if lacking := lacking_compiler(device):
        say("compile: false (torch.compile needs {lacking}, which was not found)", lacking=lacking)
        return False
    if reason := _unfit(run):
        return _no(reason)
    steps = run.schedule.total - (config.from_step or 0)
    cost, gain = expected_seconds(run), GAINS[device.type]
    parts = max(1.0, run.step_tokens / (run.engine.micro_batch_rows * config.sequence_length))
    most = steps * (SLOWEST * run.flops_per_token * run.step_tokens / max(1.0, run.peak_flops) + BLOCK_SECONDS * parts * len(run.model.blocks()))
    work = steps * seconds_of_a_step() if (1 - 1 / gain) * most > MARGIN * cost else most
    saved = (1 - 1 / gain) * work
    chosen = saved > MARGIN * cost
    if chosen:
        say("compile: true (some {saved} of {work} saved, for {cost} of compiling)", saved=seconds_text(saved), work=seconds_text(work), cost=seconds_text(cost))
    else:
        say("compile: false (compiling would take some {cost} and save {saved} at the most)", saved=seconds_text(saved), cost=seconds_text(cost))
    return chosen


def _no(reason: str) -> bool:
    say("compile: false ({reason})", reason=t(reason))
    return False


def _unfit(run: Run) -> str:
    """Why compiling this run has not been weighed; "" where it has."""
    config, model = run.config, run.model
    if run.engine.device.type not in GAINS:
        return "what it gains on this device is not known"
    if config.engine != "torch" or config.weights != "float32" or config.adapter or model.adapter or quantized_layers(model):
        return "its gain is known for the engine torch, and for weights that learn in float32"
    if model.own_layers and all(isinstance(block, Layer) and fits(block) for block in model.blocks()):
        return "its layers are Luban's own, which leave nothing to compile"
    if model.shape.architecture == "auto":
        return "the model runs through transformers"
    if run.objective.by_example or config.packing == "none":
        return "rows of another width would be compiled again"
    if config.regularization.unfreeze_every:
        return "layers that begin to learn would be compiled again"
    if type(run.engine.layout) not in (Layout, Replicated):
        return "blocks that processes share are not compiled"
    return ""


def compile_blocks(run: Run) -> None:
    """Compile each block of the model, in place: parameters keep their names. What is computed again in the backward pass is then chosen for compiled blocks."""
    model = run.model
    if not model.compiled:  # the recipe did not say it
        model.compiled = True
        model.recompute = choose_recompute(run.config, model, run.engine.micro_batch_rows or 1)
    for layer in quantized_layers(model).values():
        layer.forward = torch.compiler.disable(layer.forward)  # it reads codes in ways that are not traced
    for block in model.blocks():
        block.compile()


# ---- what compiling takes ---------------------------------------------------------------------------------------------


def kinds_of_blocks(run: Run) -> int:
    """Blocks that differ in class or in the shapes of their parameters: each is compiled once, blocks of one kind share the code."""
    return len({(type(block), *((name, parameter.shape, parameter.requires_grad) for name, parameter in block.named_parameters())) for block in run.model.blocks()})


def expected_seconds(run: Run) -> float:
    """What compiling will take: of what it took the last time, or by the number of kinds of blocks."""
    known = read_json(cache_folder() / RECORD).get(_identity(run))
    if isinstance(known, dict) and isinstance(known.get("seconds"), (int, float)) and known["seconds"] >= 0 and Path(str(known.get("code"))).is_dir():
        return float(known["seconds"]) * (CACHED if known.get("first") else 1.0)
    return FIRST_BLOCK_SECONDS + OTHER_BLOCK_SECONDS * (kinds_of_blocks(run) - 1)


def _identity(run: Run) -> str:
    """Of what the compiler makes its code: this machine, this torch, the model's shape, a micro-batch."""
    here, engine = machine(), run.engine
    shape = run.model.shape.model_dump(mode="json", exclude={"layers"})
    return fingerprint(here.cpu, here.accelerator_name, torch.__version__, shape, engine.micro_batch_rows, run.config.sequence_length, str(engine.precision), str(run.config.recompute), run.model.own_attention)


class CompileTimer:
    """A hook that writes down what compiling took: the first step's time beyond that of those after it."""

    section = "other"

    def __init__(self, run: Run):
        self.before, self.steps = run.seconds, []

    def resumed(self, run: Run) -> None:
        self.before = run.seconds

    def after_step(self, run: Run) -> None:
        if len(self.steps) == WATCHED or not run.model.compiled or not run.engine.layout.ranks.leads:
            return
        self.steps.append(run.seconds - self.before)
        self.before = run.seconds
        if len(self.steps) == WATCHED:
            _remember(run, max(0.0, self.steps[0] - statistics.median(self.steps[1:])))


def _remember(run: Run, seconds: float) -> None:
    """Keep it for the next run. A cache that cannot be written is none."""
    from torch._inductor.runtime.cache_dir_utils import cache_dir

    file, identity = cache_folder() / RECORD, _identity(run)
    records: dict[str, Any] = read_json(file)
    known = isinstance(records.pop(identity, None), dict)
    records[identity] = {"seconds": round(seconds, 2), "first": not known, "code": cache_dir()}
    try:
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_json(file, dict(list(records.items())[-KEPT:]))
    except (LubanError, OSError):
        return
