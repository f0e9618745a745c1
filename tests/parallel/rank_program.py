"""What each rank runs under torchrun: the trainings of a plan (a JSON file). Rank 0 writes what came of them to the plan's ``found``.

``cases``: ``model:optimizer:layout:rows``, trained by all ranks and by each alone: the largest difference of figures and weights, and of the model that is put together at the end.
``runs``: fields of `luban train`: the message of the error, if one ended it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from rank_lab import apart, train

import luban
from luban.foundation.errors import LubanError
from luban.parallel.layouts import Layout, Replicated
from luban.parallel.ranks import Ranks, here
from luban.parallel.sharded import Sharded


def differences(ranks: Ranks, case: str) -> list[float]:
    name, optimizer, layout, rows = case.split(":")
    made = Replicated(ranks) if layout == "none" else Sharded(ranks, layout != "gradients", 2 if layout == "twice" else 1, torch.device("cpu"))
    alone, together = (train(name, chosen, optimizer, int(rows)) for chosen in (Layout(), made))
    model = made.whole_model(together["engine"].model)
    whole = 0.0 if model is None else max(float((value.detach() - alone["weights"][key]).abs().max()) for key, value in model.named_parameters())
    return [max(ranks.everyone(apart(alone, together))), whole]


def outcome(fields: dict[str, Any]) -> str:
    try:
        luban.train(**fields)
    except LubanError as error:
        return error.text()
    return ""


def main(plan: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    ranks = here()
    found = {"cases": {case: differences(ranks, case) for case in plan["cases"]}, "runs": [outcome(fields) for fields in plan["runs"]]}
    if ranks.leads:
        Path(plan["found"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
