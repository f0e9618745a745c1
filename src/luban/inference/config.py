"""How tokens are chosen and when a text ends."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Config, field


class SamplingConfig(Config):
    """How the next token is chosen, and when generation ends."""

    foreign: ClassVar[dict[str, str]] = {
        "max_tokens": "maximum_tokens",
        "max_new_tokens": "maximum_tokens",
        "do_sample": "temperature (0 chooses the likeliest token)",
        "stop_strings": "stop",
    }

    temperature: NonNegativeFloat = field(1.0, "Divides the logits; 0 always chooses the likeliest token.")
    top_k: NonNegativeInt = field(0, "Only the k likeliest tokens; 0 means all.", unit="tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Only the likeliest tokens that together reach this probability.")
    min_p: Annotated[float, Field(ge=0, le=1)] = field(0.0, "Only tokens at least this likely relative to the likeliest.")
    repetition_penalty: PositiveFloat = field(1.0, "Above 1, tokens already in the prompt or the answer become less likely.")
    maximum_tokens: NonNegativeInt = field(256, "Length at which generation ends; 0 reads the prompt only.", unit="tokens")
    stop: list[Annotated[str, Field(min_length=1)]] = field(
        doc="Texts that end generation; they are not part of the answer.", default_factory=list
    )
    seed: int | None = field(None, "Same seed, same prompt, same answer, whatever else is generated at once; None draws one.")
    stop_at_end: bool = field(True, "End at the tokens that end a text or a turn.")
    top_logprobs: Annotated[int, Field(ge=0, le=100)] | None = field(
        None, "Record each token's log-probability, with those of this many likeliest tokens."
    )
    prompt_logprobs: bool = field(False, "Record the log-probabilities of the prompt's tokens too.")


class GenerationConfig(Config):
    """How whole texts are written to sources (translation, summarisation) or prompts: greedily, by chance, or by beam search."""

    foreign: ClassVar[dict[str, str]] = {
        "num_beams": "beams",
        "beam_size": "beams",
        "num_return_sequences": "answers",
        "max_new_tokens": "maximum_tokens",
        "max_length": "maximum_tokens",
        "min_new_tokens": "minimum_tokens",
        "min_length": "minimum_tokens",
        "no_repeat_ngram_size": "no_repeat_ngram",
        "do_sample": "temperature (0 chooses the likeliest token)",
    }

    beams: PositiveInt = field(1, "Texts that are carried on side by side for each source; 1 is no search.")
    answers: PositiveInt = field(1, "Texts that come back for each source, the best first; with beams at most as many.")
    temperature: NonNegativeFloat = field(0.0, "Divides the logits; 0 always chooses the likeliest token.")
    top_k: NonNegativeInt = field(0, "Only the k likeliest tokens; 0 means all.", unit="tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Only the likeliest tokens that together reach this probability.")
    min_p: Annotated[float, Field(ge=0, le=1)] = field(0.0, "Only tokens at least this likely relative to the likeliest.")
    repetition_penalty: PositiveFloat = field(1.0, "Above 1, tokens already in the prompt or the answer become less likely.")
    no_repeat_ngram: NonNegativeInt = field(0, "No run of this many tokens comes twice in a text; 0: as it comes.", unit="tokens")
    minimum_tokens: NonNegativeInt = field(0, "A text does not end before it has this many tokens.", unit="tokens")
    maximum_tokens: PositiveInt = field(256, "Length at which a text ends.", unit="tokens")
    length_penalty: float = field(
        1.0, "A text's score is its log-probability over its length to this power: above 0 favours long texts, 0 none, below 0 short ones."
    )
    early_stopping: bool | Literal["never"] = field(
        False,
        "true: the search ends with as many finished texts as beams; false: when the best running one at its present length is no better; "
        "never: when it could not become better at any length.",
    )
    seed: int | None = field(None, "Same seed, same source, same answer, whatever else is generated at once; None draws one.")

    @model_validator(mode="after")
    def _fits(self) -> GenerationConfig:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beams above 1 search for the likeliest text; they need temperature 0")
        if self.beams > 1 and self.answers > self.beams:
            raise ValueError(f"answers {self.answers} is more than beams {self.beams}")
        if self.beams == 1 and self.temperature == 0 and self.answers > 1:
            raise ValueError("several answers need beams, or a temperature above 0")
        if self.minimum_tokens > self.maximum_tokens:
            raise ValueError(f"minimum_tokens {self.minimum_tokens} is more than maximum_tokens {self.maximum_tokens}")
        return self

    def choice(self) -> SamplingConfig:
        """How one token is chosen."""
        return SamplingConfig(
            temperature=self.temperature, top_k=self.top_k, top_p=self.top_p, min_p=self.min_p, repetition_penalty=self.repetition_penalty
        )
