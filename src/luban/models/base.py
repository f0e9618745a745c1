"""What every family of models gives: hidden states, logits, heads, first values, room for more tokens.

A family is a subclass of :class:`Model` in a file of its own; its parameters bear transformers' names. ``families.py`` lists them.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from luban.foundation.errors import ConfigError, DataError
from luban.models import recompute
from luban.models.heads import Head
from luban.models.own_heads import attach_own, own_scores
from luban.models.products import product
from luban.models.shape_base import BaseShapeConfig


class Model(nn.Module):
    """Tokens to hidden states; hidden states to logits, or to the scores of a head.

    Decoders and encoders are called as ``model(tokens, positions=…, segments=…, types=…, cache=…)``, encoder–decoders as
    ``model(tokens, source=…, source_segments=…, segments=…, cache=…)`` where ``tokens`` are the decoder's inputs. What comes
    back is [rows, seq, dim] after the last norm. ``segments`` [rows, seq] number the documents of a row, -1 is padding, None a row
    without padding; attention stays inside a segment. Losses are computed elsewhere, from hidden states, so that
    logits need never exist for a whole batch.
    """

    prefix: ClassVar[str] = "model."  # of the trunk in transformers' names; files of a bare trunk lack it
    output_names: ClassVar[tuple[str, ...]] = ()  # ends of names of matrices that write to the residual stream
    optional: ClassVar[tuple[str, ...]] = ()  # beginnings of names that a file may lack: they are drawn anew, and said
    tokens_before: int = 0  # places before each text that a learned prompt or prefix takes (luban.adapters.before)
    recompute_modes: ClassVar[tuple[str, ...]] = recompute.MODES
    shards: ClassVar[bool] = True  # whether every weight is used inside the calls of the modules that hold it, so that it may be gathered for their time
    staged: ClassVar[bool] = False  # whether only some of its blocks are here, as stages of a pipeline
    takes_prefix: ClassVar[bool] = False  # whether ``forward`` knows ``prefix``: tokens of a decoder that are seen from both sides
    shape: Any  # the family's own BaseShapeConfig

    def __init__(self, shape: BaseShapeConfig):
        super().__init__()
        shape.require_resolved()
        self.shape = shape
        self.head: Head | None = None
        self.recompute: bool | str | list[str] = "none"  # what is computed again in the backward pass (recompute.py): a mode, or one for each block
        self.fresh: list[str] = []  # parameters that no file gave: drawn for a new head, or for what the file lacked
        self.own_attention = False  # attention.py does the work of attention where it can
        self.own_layers = False  # own_layers.py does that of whole layers, and of cross-entropy
        self.cross_entropy = "chunked"  # how a loss takes the product with the vocabulary: luban.objectives.losses.CROSS_ENTROPIES
        self.split_backward = False  # gradients of weights are computed apart from those of states, so a backward pass is run twice
        self.runs_on: torch.device | None = None  # where its weights wait elsewhere until they are needed
        self.compiled = False  # its blocks run as the compiler made them, and so may what stands around them
        self.narrow = False  # the matrices are in bfloat16 and learn (narrow.py)
        self.adapter: Any = None  # what `adapter` put on it (luban.adapters)
        self.unchanging: frozenset[str] = frozenset()  # parameters of a base under an adapter: training never changes them

    # ---- what a family defines -------------------------------------------------------------------------------------

    def enter(self, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, cache: Any = None) -> Tensor:
        """The stream [rows, seq, dim] before the first block. This, :meth:`beside`, :meth:`run_layers` and :meth:`leave` are the forward pass of decoders and encoders, in the parts that the
        stages of a pipeline need."""
        raise NotImplementedError

    def beside(
        self, states: Tensor, tokens: Tensor, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None, cache: Any = None, prefix: Tensor | None = None,
    ) -> list[tuple[Any, ...]]:  # fmt: skip
        """What each of the shape's layers is called with beside the stream; of ``states`` [rows, seq, dim] type and device are read."""
        raise NotImplementedError

    def run_layers(self, states: Tensor, layers: Iterable[nn.Module], beside: Iterable[tuple[Any, ...]]) -> Tensor:
        """The stream [rows, seq, dim] through some layers, each with what it is called with."""
        for layer, given in zip(layers, beside, strict=True):
            states = self.through(layer, states, *given)
        return states

    def leave(self, states: Tensor) -> Tensor:
        """Hidden states [rows, seq, dim] of the stream after the last block."""
        return states

    def numbered_blocks(self) -> list[tuple[int, nn.Module]]:
        """:meth:`blocks` that are here, each with its number among all."""
        return list(enumerate(self.blocks()))

    @property
    def depth(self) -> int:
        """How many blocks there are in all."""
        return len(self.blocks())

    @property
    def trunk(self) -> nn.Module:
        """What stands under the prefix: all but the output or the head."""
        return self.get_submodule(self.prefix[:-1])

    def blocks(self) -> list[nn.Module]:
        """The layers from the input upwards: what is compiled, frozen and given a learning rate one by one."""
        raise NotImplementedError

    def beside_blocks(self) -> list[nn.Module]:
        """Modules in the blocks that are called from outside of them."""
        return []

    @property
    def embedding(self) -> nn.Embedding:
        """The token embedding."""
        raise NotImplementedError

    def output_layer(self) -> nn.Linear | None:
        """The untied output matrix, or None where the embedding serves (``shape.tied_embeddings``) or a head stands in its place."""
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary] of hidden states [..., dim]."""
        hidden, weight, bias = self.output_product(hidden)
        if not hasattr(weight, "to_local"):
            return product(hidden, weight, bias)
        from luban.models.parts import shared_product

        return shared_product(hidden, weight, bias)

    def output_product(self, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor | None] | None:
        """The states [..., dim], the matrix [vocabulary, dim] and the bias [vocabulary] whose product the logits are, so that a loss can take it in parts;
        None where they are made otherwise."""
        return hidden, self.output_weight, None

    def attach(self, head: Head) -> None:
        """Put the modules of ``head`` in the place of the language model's output. ConfigError where the family has none such."""
        raise ConfigError("{name} has no head for {structure}", "", "choose an encoder, or another family", name=self.shape.architecture, structure=head.structure)

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        """:meth:`scores` of the heads that the family attached."""
        raise NotImplementedError

    def auxiliary(self) -> dict[str, Tensor]:
        """Losses that the last forward pass made by itself (load balance of experts), as named means over tokens; none as a rule."""
        return {}

    def gather_auxiliary(self, gather: Callable[[Tensor], Tensor], segments: Tensor | None) -> None:
        """Of a forward pass over a part of each row's places, let :meth:`auxiliary` speak of all. ``gather`` makes [rows, seq, …] of this rank's part of it; ``segments`` [rows, seq]."""

    @property
    def notes(self) -> int:
        """How many numbers :meth:`note` gives; 0: none."""
        return 0

    def note(self, before: Tensor | None) -> Tensor:
        """What :meth:`auxiliary` is made of, of the blocks that were passed last and of those that noted ``before``: [notes] of float32 or wider, for those who have the next blocks."""
        raise NotImplementedError

    def is_output(self, name: str) -> bool:
        """Whether a tensor belongs to the output or to a head: a file that has another head may lack it, or have one too many."""
        return not name.startswith(self.prefix)

    @classmethod
    def rename(cls, name: str) -> str | None:
        """A tensor's name on disk to its name here; None leaves the tensor out (buffers of old versions)."""
        return name

    # ---- what all have ---------------------------------------------------------------------------------------------

    def put(self, head: Head) -> None:
        """Give the model a head: the family's modules for it, or those that are Luban's own, on the trunk alone."""
        if head.own:
            self.attach(head.trunk)
            attach_own(self, head)
        else:
            self.attach(head)

    def scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the head makes of hidden states: "sequence" and "choice" [rows, outputs], "token" [rows, seq, outputs], "span" [rows, seq, 2],
        "vector" [rows, dim], "pairs" [rows, seq, tags + seq * relations] (``own_heads.parted``)."""
        if self.head.own:
            return own_scores(self, hidden, extra or {})
        return self.family_scores(hidden, tokens, segments, extra)

    @property
    def output_weight(self) -> nn.Parameter:
        """The matrix [vocabulary, dim] that turns hidden states into logits."""
        layer = self.output_layer()
        return self.embedding.weight if layer is None else layer.weight

    @property
    def longest_text(self) -> int:
        """Tokens of the longest text that the model is made for, an adapter's own places taken off."""
        return self.shape.maximum_positions - self.tokens_before

    @property
    def device(self) -> torch.device:
        """The device that it runs on; where its weights wait elsewhere until they are needed, not theirs."""
        return self.runs_on or self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Type that the matrices are held in."""
        return self.embedding.weight.dtype

    @property
    def states_dtype(self) -> torch.dtype:
        """Type of the hidden states: the matrices' own, but float32 where these are held in fewer bits while they learn (narrow.py)."""
        return torch.float32 if self.narrow else self.dtype

    def changing(self) -> dict[str, Tensor]:
        """The state that training may change: what a checkpoint holds."""
        owners = {name: id(parameter) for name, parameter in self.named_parameters(remove_duplicate=False)}
        fixed = {owners.get(name) for name in self.unchanging} - {None}  # a tied matrix goes by two names
        return {name: value for name, value in self.state_dict().items() if name not in self.unchanging and owners.get(name) not in fixed}

    def load_changing(self, tensors: Mapping[str, Tensor]) -> None:
        """Read :meth:`changing` back. RuntimeError where a tensor is missing or has another shape."""
        known = set(self.changing())
        if known != set(tensors):
            raise RuntimeError(f"the state differs in {sorted(known ^ set(tensors))[:3]}")
        self.load_state_dict(tensors, strict=False)

    def through(self, block: Callable[..., Any], *inputs: Any) -> Any:
        """A block's output, its activations kept or dropped and computed again in the backward pass, as ``recompute`` asks for it."""
        return recompute.run(recompute.mode_of(self.recompute, self.blocks(), (block, *inputs)), block, *inputs)

    def with_head(self, head: Head, seed: int = 0) -> Self:
        """This model with ``head`` attached, its new parameters drawn from ``seed``."""
        self.wear(head)
        return self.initialize(seed, only=self.fresh)

    def wear(self, head: Head) -> None:
        """Attach ``head`` and leave its new parameters, which ``fresh`` names, without first values."""
        known = {id(parameter): parameter for parameter in self.parameters()}  # held, so that no id is used a second time
        self.head = head
        if head.replaces_output:
            self.put(head)
        new = {name: parameter for name, parameter in self.named_parameters() if id(parameter) not in known}
        if any((parameter.device, parameter.dtype) != (self.device, self.dtype) for parameter in new.values()):
            self.to(self.device, self.dtype)
        self.fresh = list(new)

    @torch.no_grad()
    def initialize(self, seed: int, only: Sequence[str] | None = None) -> Self:
        """Draw first values. They depend on the seed and each parameter's name only: not on device, order or type."""
        for name, parameter in self.named_parameters():
            if only is None or name in only:
                self.first_values(name, parameter, named_generator(seed, name))
        return self

    def first_values(self, name: str, parameter: Tensor, generator: torch.Generator) -> None:
        """First values of one parameter; a family overrides it for what its own recipe draws otherwise."""
        leaf = name.rpartition(".")[2]
        if "bias" in leaf and parameter.dim() == 1:
            parameter.zero_()
        elif parameter.dim() == 1:
            parameter.fill_(1.0)  # the weights of norms
        else:
            writes = name.endswith(self.output_names) if self.output_names else False
            parameter.copy_(draw(parameter.shape, self.shape.initializer, self.shape.initializer_deviation, generator, self.shape.layers if writes else 0))

    @torch.no_grad()
    def resize_vocabulary(self, size: int, pieces: Mapping[int, Sequence[int]] | None = None) -> Self:
        """Make room for ``size`` tokens, or cut the vocabulary to its first ``size``.

        A new token starts as the mean of the old tokens that ``pieces`` names for it or else
        of the whole old vocabulary: near what the model knows, and no likelier than the rest.
        """
        pieces = pieces or {}
        layer = self.output_layer()
        self.embedding.weight = resized(self.embedding.weight, size, pieces)
        self.embedding.num_embeddings = size
        if layer is not None and layer.weight is not self.embedding.weight:
            layer.weight = resized(layer.weight, size, pieces)
            layer.out_features = size
        self.shape = self.shape.updated(vocabulary_size=size)
        return self


def draw(shape: Sequence[int], kind: str, deviation: float, generator: torch.Generator, writes: int = 0) -> Tensor:
    """First values of a matrix [out, in], on the processor in float32. ``writes`` is the number of layers where it writes to the residual stream.

    Xavier: Glorot & Bengio 2010; He: He et al. 2015, arXiv:1502.01852 (gain of ReLU, fan in); depth-scaled: Radford et al. 2019 (GPT-2).
    """
    values = torch.empty(tuple(shape), device="cpu", dtype=torch.float32)
    if kind == "zero_output" and writes:
        return values.zero_()
    if kind in ("xavier_uniform", "xavier_normal"):
        return getattr(nn.init, f"{kind}_")(values, generator=generator)
    if kind in ("he_uniform", "he_normal"):
        return getattr(nn.init, f"{kind.replace('he', 'kaiming')}_")(values, nonlinearity="relu", generator=generator)
    if kind == "truncated_normal":
        return nn.init.trunc_normal_(values, std=deviation, a=-2 * deviation, b=2 * deviation, generator=generator)
    scale = deviation / math.sqrt(2 * writes) if writes and kind == "depth_scaled" else deviation
    return values.normal_(0.0, scale, generator=generator)


def resized(weight: nn.Parameter, size: int, pieces: Mapping[int, Sequence[int]]) -> nn.Parameter:
    """The first rows of [vocabulary, …], and new ones as means of old ones."""
    old = len(weight)
    grown = weight.new_empty(size, *weight.shape[1:])
    grown[:old] = weight[:size]
    average = weight.float().mean(dim=0)
    for row in range(old, size):
        own = [piece for piece in pieces.get(row, ()) if piece < old]
        grown[row] = weight[own].float().mean(dim=0) if own else average
    return nn.Parameter(grown, requires_grad=weight.requires_grad)


def named_generator(seed: int, name: str) -> torch.Generator:
    """A generator of its own for each name under one seed."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return torch.Generator("cpu").manual_seed(int.from_bytes(digest[:7], "big"))


def tensors_missing(folder: Path, names: Sequence[str]) -> DataError:
    """The error of a directory that lacks tensors of its model."""
    return DataError(
        "{folder}: {count} tensors are missing: {names}", "config.json describes a model that has them", "restore the weights; was the download whole?",
        folder=folder, count=len(names), names=", ".join(names[:5]) + (" …" if len(names) > 5 else ""),
    )  # fmt: skip
