"""Lets the tests of this folder use the small models, data and trainings that other rooms are tested with."""

from __future__ import annotations

import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS / "objectives"), str(TESTS / "training")]
