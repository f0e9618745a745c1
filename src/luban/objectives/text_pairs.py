"""One text from another: translation, summaries and titles, controlled generation; with encoder–decoders, and with decoders that go on a prompt."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from luban.examples.reading import ExampleSet
from luban.examples.tasks import TextPair
from luban.foundation.console import warn
from luban.foundation.errors import ConfigError
from luban.inference.predictor import Predictor
from luban.inference.texts import output_ids, places_of, source_ids
from luban.metrics.generation import check_controls
from luban.metrics.programs import HIDDEN_CONTROLS, program_scores
from luban.metrics.score import Score
from luban.metrics.tasks import score_task
from luban.metrics.words import resolve_language
from luban.models.base import Model
from luban.models.heads import Head
from luban.objectives.base import DataRequest, Loaders, Term
from luban.objectives.config import TextPairsConfig
from luban.objectives.losses import logits_sum, scored_logits, token_sum
from luban.objectives.tasks import TaskObjective
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Batch, Row

WRITTEN = 128  # held-out examples for which texts are written at a validation; the loss is over more, `evaluate` writes them all
LONGEST_SHARE = 0.75  # of a decoder's sequence that outputs may take where their length is auto: the rest is the prompt's
# What stands between input and output for a decoder, in English and for Chinese outputs.
FRAMES = {"translation": ("Translation:", "译文："), "summarization": ("Summary:", "摘要："), "generation": ("", "")}


class TextPairs(TaskObjective):
    """Cross-entropy over the tokens of the output, its end included; what was given is not scored."""

    config: TextPairsConfig
    unit = "token"
    reads = "text_pairs"
    kinds = ("decoder", "encoder_decoder")

    def __init__(self, config: TextPairsConfig):
        super().__init__(config)
        self.name = config.name

    @property
    def measured_as(self) -> str:
        return self.name

    def make_head(self, found: ExampleSet, data: DataRequest) -> Head:
        self.kind = data.shape.kind
        self.start_id = getattr(data.shape, "decoder_start_id", 0)
        self.cut = {"inputs": 0, "outputs": 0}
        controls = list(dict.fromkeys(name for example in found.examples for name in example.controls if name not in HIDDEN_CONTROLS))
        language = self.config.target_language or resolve_language("auto", (example.output for example in found.examples[:1000]))
        longest = self._longest_output(found, data)
        room = data.sequence_length - (0 if self.kind == "encoder_decoder" else longest)
        settings = {
            "prompt": self._prompt(controls, language), "controls": controls, "maximum_input": room, "maximum_output": longest, "beams": self.config.beams,
            "temperature": self.config.temperature, "top_p": self.config.top_p,
            "source_language": self.config.source_language, "target_language": self.config.target_language,
        }  # fmt: skip
        return Head("language_model", self.name, settings=settings)

    def _prompt(self, controls: list[str], language: str) -> str:
        """The prompt as written, its places checked; auto: controls by name on lines of their own, and for a decoder a word before the output."""
        if self.config.prompt != "auto":
            places = places_of(self.config.prompt)
            if unknown := [name for name in places if name != "input" and name not in controls]:
                raise ConfigError(
                    "objective.prompt: {{{name}}} is no part of the data", "it has: {known}",
                    "name control columns in mapping, such as mapping: {{controls: [{name}]}}", name=unknown[0],
                    known=", ".join(["input", *controls]),
                )  # fmt: skip
            if not places:
                raise ConfigError(
                    "objective.prompt: it has no place for the input", "every example would be given the same words",
                    "write {place} where the input comes", place="{input}",
                )  # fmt: skip
            return self.config.prompt
        lines = "".join(f"{name}: {{{name}}}\n" for name in controls)
        if self.kind == "encoder_decoder":
            return lines + "{input}"
        between = FRAMES[self.name][language.startswith("zh")]
        return lines + "{input}\n\n" + (f"{between}\n" if between else "")

    def _longest_output(self, found: ExampleSet, data: DataRequest) -> int:
        decoder = self.kind != "encoder_decoder"
        if self.config.maximum_output != "auto":
            if self.config.maximum_output > data.sequence_length - 2 * decoder:
                raise ConfigError(
                    "objective.maximum_output {wanted} does not fit into sequence_length {length}",
                    "a decoder's prompt and output share it" if decoder else "", "raise sequence_length",
                    wanted=self.config.maximum_output, length=data.sequence_length,
                )  # fmt: skip
            return self.config.maximum_output
        around = len(output_ids(data.tokenizer, "", self.kind))
        lengths = [len(ids) + around for ids in data.tokenizer.encode_batch([example.output for example in found.examples])]
        most = data.sequence_length if not decoder else max(1, int(data.sequence_length * LONGEST_SHARE))
        return min(most, int(np.quantile(lengths, 0.99, method="higher")))

    def loaders(self, data: DataRequest) -> Loaders:
        made = super().loaders(data)
        if self.cut["inputs"]:
            warn("{count} inputs are longer than {limit} tokens; they are cut there", count=self.cut["inputs"], limit=self.head.settings["maximum_input"])
        if self.cut["outputs"]:
            warn("{count} outputs are longer than {limit} tokens; they are learned up to there, without an end", count=self.cut["outputs"], limit=self.head.settings["maximum_output"])
        made.report |= {f"cut_{part}": count for part, count in self.cut.items() if count}
        made.report["prompt"] = self.head.settings["prompt"]
        return made

    def unit_of(self, example: TextPair, tokenizer: Tokenizer) -> list[Row] | None:
        if not example.output:
            self.refuse("it has no output")
            return None
        settings = self.head.settings
        given, cut = source_ids(tokenizer, example.input, example.controls, settings, self.kind)
        wanted = output_ids(tokenizer, example.output, self.kind)
        self.cut["inputs"] += cut > 0
        self.cut["outputs"] += len(wanted) > settings["maximum_output"]
        target = np.array(wanted[: settings["maximum_output"]])
        if self.kind == "encoder_decoder":
            ids = np.concatenate([[self.start_id], target[:-1]])
            return [Row(ids, np.ones(len(target), np.float32), targets=target, source_ids=np.array(given), source=example.source)]
        whole = np.concatenate([given, target]).astype(np.int64)
        weights = np.ones(len(whole) - 1, np.float32)
        weights[: len(given) - 1] = 0
        return [Row(whole[:-1], weights, targets=whole[1:], source=example.source)]

    def check_examples(self, examples: Sequence[TextPair]) -> None:
        if self.measured_as == "generation":
            for example in examples:
                check_controls({name: value for name, value in example.controls.items() if name not in HIDDEN_CONTROLS}, example.source)

    def item_of(self, example: TextPair) -> dict[str, Any]:
        return {"input": example.input, "controls": {name: value for name, value in example.controls.items() if name not in HIDDEN_CONTROLS}}

    def terms(self, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(token_sum(model, batch, self._smoothing(model)))}

    def outputs(self, model: Model, batch: Batch) -> torch.Tensor:
        """[scored, vocabulary]"""
        return scored_logits(model, batch)

    def terms_of(self, outputs: torch.Tensor, model: Model, batch: Batch) -> dict[str, Term]:
        return {"loss": Term(logits_sum(outputs, batch, self._smoothing(model)))}

    def _smoothing(self, model: Model) -> float:
        """Of the training loss alone, so that held-out losses compare whatever was smoothed."""
        return self.config.label_smoothing if model.training else 0.0

    def score(self, model: Model, tokenizer: Tokenizer, examples: list[Any]) -> dict[str, Score]:
        chosen = examples[:: -(-len(examples) // WRITTEN)]
        training = model.training
        predictions = Predictor(model, tokenizer).predict([self.item_of(example) for example in chosen])
        model.train(training)
        return self.figures(predictions, chosen)

    def figures(self, predictions: list[dict[str, Any]], examples: list[Any], seed: int = 0) -> dict[str, Score]:
        """The task's metrics, and pass@1 before them where programs may be run."""
        found = score_task(self.measured_as, predictions, examples, language=self.config.target_language or "auto", seed=seed, resamples=0)
        return (program_scores(predictions, examples, seed) if self.config.run_code else {}) | found
