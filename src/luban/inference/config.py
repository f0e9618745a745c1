"""How tokens are chosen and when a text ends."""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat

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
