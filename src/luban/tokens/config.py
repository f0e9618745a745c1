"""Config of the verb encode."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from luban.foundation.config import Config, field


class EncodeConfig(Config):
    """Turn the documents of a corpus into token shards on disk."""

    corpus: str | list[str] = field(..., "Corpora to encode: names of curate stages, or paths of their artifacts.", input=True)
    tokenizer: str = field(
        ..., "Tokenizer: the name of a train_tokenizer stage, or a folder with tokenizer.json (a model's, say).", input=True
    )
    shard_tokens: Annotated[int, Field(ge=1000)] = field(
        100_000_000, "Size at which a shard is closed; a killed run encodes at most one shard again.", unit="tokens"
    )
    batch_characters: PositiveInt = field(
        2_000_000, "Text encoded at once; bounds memory (about 100 bytes a character).", unit="characters", role="machine"
    )
