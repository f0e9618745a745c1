"""What the board's tests share: one real board over a folder that the tests fill."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from board_lab import Board


@pytest.fixture(scope="session")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the board; each test has its own folders in it."""
    return tmp_path_factory.mktemp("board") / "shelf"


@pytest.fixture(scope="session")
def board(shelf: Path) -> Iterator[Board]:
    shelf.mkdir()
    running = Board(shelf)
    yield running
    assert running.stop() == 0
