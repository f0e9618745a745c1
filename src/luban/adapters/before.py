"""What prompts and prefixes share: something learned that stands before every text, and no weight of the base."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from luban.adapters.adapted import Wears, adapt, wearing
from luban.adapters.method import Method, moved
from luban.foundation.errors import ConfigError, DataError
from luban.models.base import Model, named_generator

FILED = "prompt_embeddings"  # peft's name of the one tensor of such an adapter


class Learned(nn.Module):
    """What is learned: :meth:`forward` gives it as peft files it, [tokens, width]."""

    tokens: int

    def first_values(self, generator: torch.Generator) -> None:
        """Draw what it begins with."""
        raise NotImplementedError


class Table(Learned):
    """The vectors themselves."""

    def __init__(self, tokens: int, width: int):
        super().__init__()
        self.tokens = tokens
        self.vectors = nn.Parameter(torch.zeros(tokens, width))

    def first_values(self, generator: torch.Generator) -> None:
        """Small random numbers, so that no two vectors learn alike."""
        with torch.no_grad():
            self.vectors.copy_(torch.empty(self.vectors.shape).normal_(0.0, 0.02, generator=generator))

    def forward(self) -> Tensor:
        return self.vectors


class Made(Learned):
    """Vectors that a network makes of others; both learn, and in the end only what comes out is kept."""

    def __init__(self, tokens: int, width: int, network: nn.Module):
        super().__init__()
        self.tokens = tokens
        self.starts = nn.Parameter(torch.zeros(tokens, width))
        self.network = network

    def first_values(self, generator: torch.Generator) -> None:
        """The usual first values of linear and recurrent layers; standard normal starts."""
        with torch.no_grad():
            self.starts.copy_(torch.empty(self.starts.shape).normal_(generator=generator))
            for module in self.network.modules():
                inputs = getattr(module, "hidden_size", None) or getattr(module, "in_features", 1)
                for parameter in module.parameters(recurse=False):
                    parameter.copy_(torch.empty(parameter.shape).uniform_(-(inputs**-0.5), inputs**-0.5, generator=generator))

    def forward(self) -> Tensor:
        return self.network(self.starts)


class Before(nn.Module):
    """How what is learned comes before the texts of a model. Called as every adapter is, with the model's own forward beneath it."""

    def __init__(self, learned: Learned):
        super().__init__()
        self.learned = learned

    @property
    def tokens(self) -> int:
        """Places that it takes."""
        return self.learned.tokens

    def forward(self, beneath: Callable[..., Tensor], model: Model, tokens: Tensor, **context: Any) -> Tensor:
        """The states of ``tokens`` that ``beneath`` gives when this stands before them; a cache holds it already."""
        raise NotImplementedError

    def encode(self, beneath: Callable[..., Tensor], model: Model, source: Tensor, source_segments: Tensor | None) -> Tensor:
        """The states of an encoder–decoder's source."""
        return beneath(source, source_segments)

    def begin(self, beneath: Callable[..., Tensor], model: Model, cache: Any) -> None:
        """Write what the model keeps of it into a new cache of one slot."""
        raise NotImplementedError


class Preceded(Wears):
    """Before a model's own class: something learned stands before its texts. It may have several such by name, of which one is active or none."""

    @property
    def before(self) -> Before | None:
        """The active one."""
        return self.adapters[self.active[0]] if self.active else None

    @property
    def tokens_before(self) -> int:
        """Places before each text that the active one takes."""
        return self.before.tokens if self.active else 0

    def forward(self, tokens: Tensor, **context: Any) -> Tensor:
        """As the model's own, the active one before each document."""
        if (before := self.before) is None:
            return super().forward(tokens, **context)
        return before(super().forward, self, tokens, **context)

    def encode(self, source: Tensor, source_segments: Tensor | None = None) -> Tensor:
        """As the model's own, the active one before each document of the source where it belongs there."""
        if (before := self.before) is None:
            return super().encode(source, source_segments)
        return before.encode(super().encode, self, source, source_segments)

    @torch.no_grad()
    def begin(self, name: str, cache: Any) -> Any:
        """A new cache of one slot, which comes back with what is kept of the one named ``name``: a causal model keeps the same of it whatever the text is."""
        with wearing(self, (name,)):
            self.adapters[name].begin(super().forward, self, cache)
        return cache


def before_of(model: Model, names: tuple[str, ...] | None) -> str:
    """The name of what stands before a text in a row that wears the adapters ``names`` (None: the active ones); empty where nothing does."""
    if not isinstance(model, Preceded):
        return ""
    return next((name for name in (model.active if names is None else names) if name in model.adapters), "")


def befores_of(model: Model) -> dict[str, int]:
    """All that may stand before a model's texts: the places that each takes."""
    return {name: before.tokens for name, before in model.adapters.items()} if isinstance(model, Preceded) else {}


class BeforeText(Method):
    """A method that puts what is learned before every text; one such is active at a time."""

    merges = False
    whole_prefix = "base_model."  # peft does not wrap the base of such an adapter

    def make(self, model: Model) -> Learned:
        """What is learned, for this model. ConfigError where the model has no place for it."""
        raise NotImplementedError

    def kind(self, model: Model) -> type[Before]:
        """How it comes before the texts of this model."""
        raise NotImplementedError

    def attach(self, model: Model, seed: int) -> None:
        if model.tokens_before:
            raise ConfigError("the model has learned tokens before its text already", "only one prompt or prefix stands there", "take the first off, or train it on")
        made = self.make(model)
        if made.tokens >= model.shape.maximum_positions and model.shape.kind != "encoder_decoder":
            raise ConfigError("adapter.tokens: {tokens} leave no room for text", "the model is made for {limit} positions", "choose fewer", tokens=made.tokens, limit=model.shape.maximum_positions)
        made.first_values(named_generator(seed, f"{self.name}:before"))
        adapt(model, self.name, moved(self.kind(model)(made), model.device, model.states_dtype), Preceded)

    def made(self, model: Model) -> Learned:
        """What is learned, of a model that has it."""
        return model.adapters[self.name].learned

    def own(self, model: Model) -> list[tuple[str, str, Tensor]]:
        return [("", FILED, self.made(model)())]

    def tensors(self, model: Model) -> dict[str, Tensor]:
        return {FILED: self.made(model)()}

    def load(self, model: Model, tensors: Mapping[str, Tensor]) -> set[str]:
        table = self.made(model).vectors
        if FILED in tensors and tensors[FILED].dim() == 2:
            tensors = {**tensors, FILED: tensors[FILED][: len(table)]}  # of an encoder–decoder peft files as many again, which nothing reads
        return {self.read(tensors, FILED, table)}

    def merge(self, model: Model) -> None:
        self.merge_layer("", model, self.made(model))

    def counts(self, model: Model) -> dict[str, Any]:
        """What peft wants to know of the model. Without a task it would leave what stands before the text out: an encoder's own output goes as features."""
        features = model.shape.kind == "encoder" and not (model.head is not None and model.head.replaces_output)
        return {**({"task_type": "FEATURE_EXTRACTION"} if features else {}), "num_virtual_tokens": self.config.tokens, "num_layers": model.shape.layers, "num_attention_heads": getattr(model.shape, "heads", 1), "token_dim": model.shape.hidden_size}


def tokens_of(plain: Mapping[str, Any]) -> int:
    """How many there are, of an adapter_config.json. Raises DataError where it does not say."""
    if not isinstance(count := plain.get("num_virtual_tokens"), int) or count < 1:
        raise DataError("adapter_config.json: {name} is missing", "", "restore the file", name="num_virtual_tokens")
    return count


@dataclass(frozen=True)
class Wide:
    """Rows in which each document has ``count`` more tokens before its own: the ids -1, -2, … .

    ``places`` [rows, seq] say where the old ones stand now; ``rows`` [documents, 1] and ``new`` [documents, count] where the new ones do.
    """

    tokens: Tensor  # [rows, width]
    segments: Tensor | None  # [rows, width]
    places: Tensor
    rows: Tensor
    new: Tensor

    @classmethod
    def of(cls, tokens: Tensor, segments: Tensor | None, count: int) -> Wide:
        """Of tokens [rows, seq] and their segments (None: each row is a document)."""
        (rows, seq), device = tokens.shape, tokens.device
        more, numbers = torch.arange(count, device=device), torch.arange(seq, device=device)
        if segments is None:
            row, width = torch.arange(rows, device=device)[:, None], seq + count
            places, new = (count + numbers).expand(rows, seq), more.expand(rows, count)
        else:
            begins = (segments >= 0) & (segments != F.pad(segments, (1, 0), value=-1)[:, :-1])  # [rows, seq]
            places = numbers + count * begins.cumsum(1)
            width = seq + count * max(1, int(begins.sum(1).max()))
            found, column = begins.nonzero(as_tuple=True)  # each [documents]
            row, new = found[:, None], places[found, column][:, None] - count + more
        made = cls(tokens.new_zeros(rows, width), None, places, row, new)
        wide = made.spread(tokens, -1 - more)
        if segments is None:
            return cls(wide, None, places, row, new)
        own = made.spread(segments + 1, (segments[found, column] + 1)[:, None]) - 1  # what is nobody's place is padding
        return cls(wide, own, places, row, new)

    def spread(self, values: Tensor, new: Tensor | int | bool) -> Tensor:
        """Values [rows, seq] at their new places [rows, width], and ``new`` for the new tokens; zero where there is neither."""
        wide = values.new_zeros(self.tokens.shape).scatter_(1, self.places, values.expand(len(self.tokens), -1))
        wide[self.rows, self.new] = new.to(values.dtype) if isinstance(new, Tensor) else new
        return wide

    def text(self, hidden: Tensor) -> Tensor:
        """The states [rows, seq, dim] of the old tokens among [rows, width, dim]."""
        return hidden.gather(1, self.places[..., None].expand(-1, -1, hidden.shape[-1]))
