"""What the serving tests share: two tiny models, a server for each, and the truth to compare with."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parent))

from serving_lab import RunningServer, make_model, make_scribe

from luban.inference.generate import LoadedModel


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def loaded(model_folder: Path) -> LoadedModel:
    """The same model in this process: the truth that HTTP answers are compared with."""
    torch.set_num_threads(1)  # for so small a model threads only wait for each other
    return LoadedModel.load(model_folder)


@pytest.fixture(scope="session")
def server(model_folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(model_folder)
    yield running
    assert running.stop() == 0, "\n".join(running.lines)


@pytest.fixture
def start(model_folder: Path) -> Iterator[Callable[..., RunningServer]]:
    """Start a server with other settings; what a test leaves running is ended."""
    started: list[RunningServer] = []

    def begin(model: Path = model_folder, **settings: object) -> RunningServer:
        started.append(RunningServer(model, **settings))
        return started[-1]

    yield begin
    for running in started:
        running.process.kill()
        running.process.join()


@pytest.fixture(scope="session")
def scribe_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_scribe(tmp_path_factory.mktemp("models") / "scribe")


@pytest.fixture(scope="session")
def scribe(scribe_folder: Path) -> Iterator[RunningServer]:
    running = RunningServer(scribe_folder, name="scribe")
    yield running
    assert running.stop() == 0, "\n".join(running.lines)
