"""transformers' Trainer: `trainer.py SHAPE [--tuned]`, as it comes or with micro-batches, freed memory kept and its own torch_compile."""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from shapes import SHAPES
from sides.llama import config
from turns import Turns, keep_memory

GPU = torch.cuda.is_available()


class Wait(TrainerCallback):
    """Between two of the Trainer's steps."""

    def __init__(self, turns: Turns):
        self.turns = turns

    def on_train_begin(self, arguments: Any, state: Any, control: Any, **others: Any) -> None:
        self.turns.begin()

    def on_step_end(self, arguments: Any, state: Any, control: Any, **others: Any) -> Any:
        self.turns.end()
        control.should_training_stop = not self.turns.begin()
        return control


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("--tuned", action="store_true")
    asked = parser.parse_args()
    shape = SHAPES[asked.shape]
    rows = shape.micro_rows if asked.tuned else shape.rows
    if asked.tuned:
        keep_memory()
    torch.manual_seed(1)
    turns = Turns({}, wait=torch.cuda.synchronize if GPU else lambda: None)
    model = LlamaForCausalLM(config(shape))
    turns.facts["parameters"] = model.num_parameters()
    data = [{"input_ids": tokens, "labels": tokens} for tokens in torch.randint(shape.vocabulary, (64 * shape.rows, shape.sequence))]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, per_device_train_batch_size=rows, gradient_accumulation_steps=shape.rows // rows, max_steps=1_000_000, learning_rate=1e-3, use_cpu=not GPU, bf16=GPU, save_strategy="no",
            logging_strategy="no", report_to=[], disable_tqdm=True, torch_compile=asked.tuned,
        )  # fmt: skip
        Trainer(model, arguments, train_dataset=data, callbacks=[Wait(turns)]).train()


if __name__ == "__main__":
    main()
