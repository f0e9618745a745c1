"""Parity or no ship: the adapter that was written, the model it was merged into, and the engine that serves must say what the trained model says."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from luban.adapters.files import base_of, open_model, read_settings, read_tensors, wear
from luban.examples.tasks import TextPair
from luban.foundation.console import say
from luban.foundation.errors import ConfigError, LubanError
from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.engine import Engine
from luban.inference.seq2seq import generate_from
from luban.inference.steps import Steps
from luban.inference.texts import end_ids, framed_items
from luban.models.base import Model
from luban.models.counts import parameters
from luban.models.huggingface import load_model, save_model
from luban.models.quantized_model import quantized_layers
from luban.objectives.base import Objective
from luban.objectives.losses import wide
from luban.tokens.batch import Batch
from luban.training.run import Run

BOUND = 1e-3  # largest difference of logits, as a share of the largest logit or of 1: float32 sums in another order stay far below
LARGE = 1_000_000_000  # parameters; from here on there is no room for a second base: the adapter is read back onto the one that was trained on, and not merged
PROMPTS, PROMPT_TOKENS, NEW_TOKENS = 4, 12, 16


def check_parity(training: Run, folder: Path) -> dict[str, Any]:
    """Open what was written and compare it with the model in memory on held-out data. LubanError where they differ.

    For models that write also the greedy tokens: one prompt at a time in the trained model, all at once, by what serves them, in the others. An encoder–decoder
    on texts reads held-out inputs, which each model frames by its own note, as its predictor does.
    """
    model, batch = training.model.eval(), held_out(training)
    expected, asked = _outputs(training, model, batch), prompts(training, model, batch)
    written = _written(model, training, asked, one_by_one=True)
    read = "sources" if model.shape.kind == "encoder_decoder" else "prompts"
    report: dict[str, Any] = {"bound": BOUND, read: len(asked), "largest_difference": {}, "same_tokens": {}}

    def compare(name: str, other: Model) -> None:
        other.eval()
        found = _outputs(training, other, batch)
        scale = max(1.0, float(expected.abs().max()))
        report["largest_difference"][name] = float((found - expected).abs().max()) / scale
        differing = [pair for pair in zip(asked, written, _written(other, training, asked), strict=True) if pair[1] != pair[2]]
        report["same_tokens"][name] = _same_choices(found, expected) and prompts(training, other, batch) == asked and all(_tie(model, *pair) for pair in differing)

    if parameters(model.shape)["total"] > LARGE:
        method, whole = model.adapter, model.saved_whole
        method.detach(model)
        plain, note = read_settings(folder)
        base_of(folder, plain, note)  # the base on disk must be the one that is named
        wear(model, plain, note, read_tensors(folder), method.name)
        compare("adapter", model)
        report["same_tokens"]["adapter"] &= model.saved_whole == whole  # a head that the file lacks would still stand here
        report["not_merged"] = "large"
    else:
        again = open_model(folder)
        compare("adapter", again)
        _compare_merged(again, folder, report, compare)
    _refuse(report, folder)
    say(
        "parity: adapter{and_merged} and engine say the same as the trained model (largest difference {largest:.1e}, bound {bound:.0e}; {count} prompts)",
        and_merged=", merged model" if "merged" in report["largest_difference"] else "", largest=max(report["largest_difference"].values()), bound=BOUND, count=len(asked),
    )  # fmt: skip
    return report


def _compare_merged(again: Model, folder: Path, report: dict[str, Any], compare: Callable[[str, Model], None]) -> None:
    """The same of the merged model, where the method and the shape can be merged; ``again`` is the adapter as it was opened, and is used up."""
    if again.adapter.merges:
        try:
            compare("merged", _merged(again, folder))
        except ConfigError as error:  # the method merges, but not into this shape (biases that it has no place for)
            report["not_merged"] = error.text()


def _refuse(report: dict[str, Any], folder: Path) -> None:
    for name, difference in report["largest_difference"].items():
        if not (difference <= BOUND and report["same_tokens"][name]):
            raise LubanError(
                "{folder}: {name} does not say what the trained model says: its outputs differ by {difference:.1e} of the largest, the bound is {bound:.0e}",
                "something is lost on the way to disk", "keep the folder and report it: the training state is in it", folder=folder, name=name, difference=difference, bound=BOUND,
            )  # fmt: skip


def held_out(training: Run) -> Batch:
    """A few held-out units, or of the training data where nothing is held out."""
    batch = training.loaders.validation[0] if training.loaders.validation else training.loaders.train.step(0)
    return batch.rows(0, max(batch.group, 8 // batch.group * batch.group), trim=True).to(training.model.device)


@torch.inference_mode()
def _outputs(training: Run, model: Model, batch: Batch) -> Tensor:
    model.to(batch.inputs.device)
    if type(training.objective).outputs is Objective.outputs:  # it says its losses only
        return torch.stack([term.sum.float() for term in training.objective.terms(model, batch).values()])[:, None].cpu()
    return wide(training.objective.outputs(model, batch)).cpu()


def _same_choices(first: Tensor, second: Tensor) -> bool:
    """Whether both put the same entry highest, ties within the bound aside."""
    if first.dim() < 2 or first.shape[-1] < 2:
        return True
    top = second.topk(2, dim=-1).values
    clear = (top[..., 0] - top[..., 1]) > 2 * BOUND * max(1.0, float(second.abs().max()))
    return bool((first.argmax(-1) == second.argmax(-1))[clear].all())


@torch.inference_mode()
def _tie(model: Model, prompt: list[int], first: list[int], second: list[int]) -> bool:
    """Whether two answers part where the model finds both tokens equally likely, within the bound."""
    place = next((index for index, (one, other) in enumerate(zip(first, second, strict=False)) if one != other), None)
    if place is None:
        return False
    steps = Steps(model, [prompt], 1, len(first))
    logits = steps.start()[0]
    for token in first[:place]:
        logits = steps.step([token], [0])[0]
    return bool((logits[first[place]] - logits[second[place]]).abs() <= 2 * BOUND * max(1.0, float(logits.abs().max())))


def prompts(training: Run, model: Model, batch: Batch) -> list[list[int]]:
    """What models that write text go on from: a decoder the beginnings of the rows; an encoder–decoder held-out inputs as its predictor frames them, or the rows' sources."""
    if model.shape.kind == "encoder" or (model.head is not None and model.head.replaces_output):
        return []
    if model.shape.kind == "encoder_decoder":
        items = [{"input": example.input, "controls": example.controls} for example in training.loaders.held_out[:PROMPTS] if isinstance(example, TextPair)]
        if items:
            return framed_items(model, training.tokenizer, items)[0]
        return [] if batch.source is None else [row[kept == kept[0]].tolist() for row, kept in zip(batch.source[:PROMPTS], batch.source_segments, strict=False)]
    found = []
    for row in batch.inputs[:PROMPTS].tolist():
        found.append(row[: min(PROMPT_TOKENS, max(1, len(row) // 2))])
    return found


def _written(model: Model, training: Run, asked: list[list[int]], one_by_one: bool = False) -> list[list[int]]:
    """Greedy tokens after each prompt, or for each source."""
    if not asked:
        return []
    groups = [[prompt] for prompt in asked] if one_by_one else [asked]
    if model.shape.kind == "encoder_decoder":
        greedy, ends = GenerationConfig(maximum_tokens=NEW_TOKENS), end_ids(training.tokenizer, model.shape.kind)
        return [ids for group in groups for ids in generate_from(model, group, greedy, end_ids=ends)]
    sampling = SamplingConfig(temperature=0.0, maximum_tokens=NEW_TOKENS)
    found = []
    for group in groups:
        engine = Engine(model, training.tokenizer, slots=len(group))
        requests = [engine.submit(prompt, sampling) for prompt in group]
        engine.run()
        found += [request.ids for request in requests]
    return found


def _merged(model: Model, folder: Path) -> Model:
    """The adapter merged into its base, through a directory on disk; a quantised base is opened once more, as the numbers that it stands for."""
    if quantized_layers(model):
        model = open_model(folder, dequantized=True)
    model.adapter.merge(model)
    aside = folder / "training" / "merged"
    try:
        save_model(model, aside)
        return load_model(aside)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
