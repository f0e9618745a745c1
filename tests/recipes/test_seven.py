"""The shipped recipes of 7B models: planned for the devices that they are named after, in each of the three shapes."""

from __future__ import annotations

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


@pytest.mark.parametrize("name", DEVICES)
@pytest.mark.parametrize("model", SHAPES)
def test_each_recipe_fits_its_devices_as_it_is_written(name, model):
    preset, vocabulary = SHAPES[model]
    overrides = [f"shape={preset}", f"vocabulary={vocabulary}"] if name == "7b/pretrain" else [f"model={model}/"]
    devices = cluster(DEVICES[name])
    (one,) = planned(all_shipped()[name], overrides, devices)
    assert one.job.shape.vocabulary_size == vocabulary
    layout = Layout(shards=devices.count, shard="full") if devices.count > 1 else Layout()
    assert one.config.layout.shard == layout.shard or devices.count == 1
    assert MARGIN.upper(memory_of(one.job, layout).total) <= devices.device.memory
