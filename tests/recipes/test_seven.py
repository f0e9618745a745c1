"""The shipped recipes of 7B models: planned for the devices that they are named after, in each of the three shapes."""

from __future__ import annotations

import os
import re
import subprocess
import sys

import pytest

from luban.cli.new import all_shipped
from luban.pipeline.planner import planned
from luban.planning.devices import cluster
from luban.planning.job import Layout
from luban.planning.margins import Margin
from luban.planning.search import memory_of

MARGIN = Margin(0.15, 0.35)  # of GPUs (docs/planner.md)
SHAPES = {"Llama-2-7b": ("llama-2-7b", 32000), "Llama-3-8B": ("llama-3-8b", 128256), "Qwen2.5-7B": ("qwen2.5-7b", 152064)}
DEVICES = {"7b/lora-4bit": "1xRTX3060", "7b/lora": "1xRTX4090", "7b/tune": "8xA100-80GB", "7b/pretrain": "64xA100-80GB"}


def overrides_of(name: str, model: str) -> list[str]:
    preset, vocabulary = SHAPES[model]
    return [f"shape={preset}", f"vocabulary={vocabulary}"] if name == "7b/pretrain" else [f"model={model}/"]


@pytest.mark.long
@pytest.mark.parametrize("model", SHAPES)
@pytest.mark.parametrize("name", DEVICES)
def test_each_recipe_is_rehearsed_at_full_size(name, model):
    """The real recipe: its data, the model without its numbers, the layout over all of its ranks, two steps, a checkpoint's plan; and the planner's arithmetic beside what was held."""
    done = subprocess.run([sys.executable, "-m", "luban", "check", str(all_shipped()[name]), *overrides_of(name, model), "--rehearse"], capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    said = done.stdout + done.stderr
    assert not done.returncode, said
    print(said)
    assert "a checkpoint is" in said and f"as rank 0 of {cluster(DEVICES[name]).count}" in said
    assert abs(float(re.search(r"arithmetic says .*?, ([+-][\d.]+)%", said)[1])) <= 10, said


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("model", SHAPES)
def test_each_recipe_fits_its_devices_as_it_is_written(name, model):
    _, vocabulary = SHAPES[model]
    devices = cluster(DEVICES[name])
    (one,) = planned(all_shipped()[name], overrides_of(name, model), devices)
    assert one.job.shape.vocabulary_size == vocabulary
    layout = Layout(shards=devices.count, shard="full") if devices.count > 1 else Layout()
    assert one.config.layout.shard == layout.shard or devices.count == 1
    assert MARGIN.upper(memory_of(one.job, layout).total) <= devices.device.memory
