"""Luban's side: a callback of `luban train`, called between its steps."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from turns import Turns

_turns: list[Turns] = []


def pause(run: Any) -> None:
    """A step has ended, with its batch, its guard and its line in the log; the next begins when it is wanted."""
    if not _turns:
        parameters = sum(parameter.numel() for parameter in run.model.parameters())
        facts = {"parameters": parameters, "micro_batch_rows": run.engine.micro_batch_rows, "compile": run.model.compiled, "cross_entropy": run.model.cross_entropy}
        wait = torch.cuda.synchronize if run.model.device.type == "cuda" else lambda: None
        _turns.append(Turns(facts, warm=int(os.environ.get("WARM", "3")), wait=wait))
    else:
        _turns[0].end()
    if not _turns[0].begin():
        run.stop_reason = "measured"
