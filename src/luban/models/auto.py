"""Any other architecture of transformers in Luban's loop: loss, heads and adapters; not promised: parallel layouts, fused paths, packed rows.

transformers is an optional extra. No code from a model's directory is ever run, and only safetensors are read.
"""

from __future__ import annotations

import inspect
import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from luban.foundation.artifacts import write_json
from luban.foundation.config import Source, build
from luban.foundation.console import say, warn
from luban.foundation.errors import ConfigError, DataError, missing_extra
from luban.models.auto_shape import AutoShapeConfig, from_json, refuse_code, transformers_classes, written_structure
from luban.models.base import Model, tensors_missing
from luban.models.classic import vector
from luban.models.gpt2 import Conv1D
from luban.models.heads import Head, last_state, read_head
from luban.models.states import TextCache, TextRows

FACTORIES = {
    "decoder": "AutoModelForCausalLM", "encoder": "AutoModelForMaskedLM", "encoder_decoder": "AutoModelForSeq2SeqLM",
    "sequence": "AutoModelForSequenceClassification", "token": "AutoModelForTokenClassification", "span": "AutoModelForQuestionAnswering",
    "choice": "AutoModelForMultipleChoice", "vector": "AutoModel",
}  # fmt: skip


class AutoModelAdapter(Model):
    """A model of transformers with the face of Luban's own; parameters bear transformers' names.

    Rows hold one document each: several in a row would see each other, so they are refused. Generation reads the whole text again for every token.
    """

    shape: AutoShapeConfig
    shards: ClassVar[bool] = False
    shares_memory: ClassVar[bool] = True

    def __init__(self, shape: AutoShapeConfig, inner: nn.Module | None = None):
        object.__setattr__(self, "inner", new_model(configured(shape.settings), shape.reads) if inner is None else inner)
        super().__init__(shape)
        self._wear(self.inner)

    def _wear(self, inner: nn.Module) -> None:
        """Take the modules of transformers' model for this one's own, so that names, devices and replaced modules are always the same."""
        from transformers.pytorch_utils import Conv1D as TheirConv1D

        object.__setattr__(self, "inner", inner)
        for module in inner.modules():
            if type(module) is TheirConv1D:  # the same layer as ours, which says its sizes as every linear layer does
                module.__class__, module.in_features, module.out_features = Conv1D, module.nx, module.nf
        for part in ("_modules", "_parameters", "_buffers"):
            object.__setattr__(self, part, getattr(inner, part))
        self.prefix = "" if inner.base_model is inner else f"{inner.base_model_prefix}."
        self._accepts = set(inspect.signature(inner.base_model.forward).parameters)

    def train(self, mode: bool = True) -> Self:
        self.inner.training = mode
        return super().train(mode)

    @property
    def recompute(self) -> str:
        return self.__dict__.get("_recompute", "none")

    @recompute.setter
    def recompute(self, mode: bool | str) -> None:
        wanted = mode in (True, "full")
        # transformers 5.23 calls activation checkpointing what was gradient checkpointing before.
        name = "activation" if hasattr(self.inner, "activation_checkpointing_enable") else "gradient"
        if wanted:
            getattr(self.inner, f"{name}_checkpointing_enable")({"use_reentrant": False})
        elif self.recompute == "full":
            getattr(self.inner, f"{name}_checkpointing_disable")()
        self.__dict__["_recompute"] = "full" if wanted else "none"

    # ---- hidden states -------------------------------------------------------------------------------------------------

    def forward(
        self, tokens: Tensor, *, positions: Tensor | None = None, segments: Tensor | None = None, types: Tensor | None = None,
        source: Tensor | None = None, source_segments: Tensor | None = None, memory: Tensor | None = None, cache: TextRows | None = None,
    ) -> Tensor:
        """Hidden states [rows, seq, dim] of tokens [rows, seq], as the base model ends with them. ``positions`` follow from the rows, which hold one document.

        ConfigError for ``segments`` [rows, seq] with several documents in a row. With ``cache`` the whole text so far is read again.
        """
        if cache is not None:
            # Not `self(…)`: what an adapter puts before a text stands in the cache already.
            return cache.read(tokens, lambda text, kept: AutoModelAdapter.forward(self, text, segments=kept, source_segments=source_segments, memory=memory))
        mask = self._mask(segments)
        if self.shape.reads == "encoder_decoder":
            if source is None and memory is None:
                raise ConfigError(
                    "{name} reads a source and writes a target; it was given one text",
                    "an encoder–decoder without a task head has nothing to do with a single text",
                    "train it on pairs (translation, summarisation, denoising), or give it a task head",
                    name=self.shape.model_type,
                )
            if memory is None:
                memory = self.encode(source, source_segments)
            crossing = None if source_segments is None else self._mask(source_segments)
            share = len(tokens) // len(memory)
            if share > 1:  # beams of one source
                memory = memory.repeat_interleave(share, 0)
                crossing = None if crossing is None else crossing.repeat_interleave(share, 0)
            decoder = self.inner.get_decoder()
            return decoder(
                input_ids=tokens, attention_mask=mask, encoder_hidden_states=memory, encoder_attention_mask=crossing, use_cache=False
            ).last_hidden_state
        given = {"token_type_ids": types, "use_cache": False}
        given = {name: value for name, value in given.items() if name in self._accepts and value is not None}
        return self.inner.base_model(input_ids=tokens, attention_mask=mask, **given).last_hidden_state

    def encode(self, source: Tensor, source_segments: Tensor | None = None) -> Tensor:
        """Memory [rows, source_seq, dim] of a source [rows, source_seq]."""
        return self.inner.get_encoder()(input_ids=source, attention_mask=self._mask(source_segments)).last_hidden_state

    def _mask(self, segments: Tensor | None) -> Tensor | None:
        """transformers' mask [rows, seq] of what is no padding."""
        if segments is None:
            return None
        kept = segments >= 0
        greatest = segments.amax(1, keepdim=True)
        if bool((kept & (segments != greatest)).any()):
            raise ConfigError(
                "{name} runs through transformers, which reads one document a row; a row holds several",
                "packed documents would see each other",
                "set packing to none, or choose a family of Luban's own",
                name=self.shape.model_type,
            )
        kept[:, 0] |= ~kept.any(1)  # a row of nothing but padding sees something: attention over nothing is no number
        return kept.long()

    def new_cache(self, slots: int, maximum: int) -> TextCache:
        """The texts of ``slots`` requests: caches of keys and values differ between architectures, so each step reads the text anew."""
        return TextCache(slots, maximum, self.device)

    # ---- outputs -------------------------------------------------------------------------------------------------------

    @contextmanager
    def _given(self, hidden: Tensor) -> Iterator[None]:
        """Let the base model answer with hidden states [rows, seq, dim] that are there already, so that transformers' own head reads them.

        Heads differ (a layer before the output, scaled or capped logits, pooled states); only their own code is right for all.
        """
        from transformers.modeling_outputs import BaseModelOutputWithPoolingAndCrossAttentions

        base = self.inner.base_model
        pooler = getattr(base, "pooler", None)
        pooled = None if pooler is None else pooler(hidden[:, 0] if isinstance(pooler, nn.Linear) else hidden)
        if isinstance(pooler, nn.Linear):
            pooled = base.pooler_activation(pooled)
        answer = BaseModelOutputWithPoolingAndCrossAttentions(last_hidden_state=hidden, pooler_output=pooled)
        inner_decoder = getattr(base, "decoder", None) if self.shape.reads != "encoder" else None
        asked = [module for module in (inner_decoder, base if base is not self.inner else None) if isinstance(module, nn.Module)]
        if self.shape.reads == "encoder_decoder":
            asked = [self.inner.get_decoder()]
        for module in asked:
            object.__setattr__(module, "forward", lambda *_, **__: answer)
        try:
            yield
        finally:
            for module in asked:
                del module.__dict__["forward"]

    def output_product(self, hidden: Tensor) -> None:
        return None

    def logits(self, hidden: Tensor) -> Tensor:
        flat = hidden.reshape(1, -1, hidden.shape[-1])  # [1, states, dim]
        places = torch.zeros(flat.shape[:2], dtype=torch.long, device=hidden.device)
        with self._given(flat):
            if self.shape.reads == "encoder_decoder":
                from transformers.modeling_outputs import BaseModelOutput

                found = self.inner(encoder_outputs=BaseModelOutput(last_hidden_state=flat[:, :1]), decoder_input_ids=places, use_cache=False).logits
            else:
                found = self.inner(input_ids=places).logits
        return found.view(*hidden.shape[:-1], -1)

    def attach(self, head: Head) -> None:
        if head.own:
            raise ConfigError(
                "{name} has no head for {task} with marked places or pairs", "it runs through transformers, which has no such heads",
                "set pooling: first (relation), or choose a family of Luban's own", name=self.shape.architecture, task=head.task,
            )  # fmt: skip
        if head.structure == "vector":
            return  # the base model's states; the language model's output stays unused
        table = transformers_classes(head.structure) if head.structure in FACTORIES else {}
        if self.shape.reads == "encoder_decoder" or self.shape.model_type not in table:
            raise ConfigError("{name} has no head for {structure}", "", "choose an encoder, or another family", name=self.shape.model_type, structure=head.structure)
        config = configured(self.shape.settings, head, self.inner.config)
        new = new_model(config, head.structure).to(self.device, self.dtype).train(self.training)
        missing, _ = new.base_model.load_state_dict(self.inner.base_model.state_dict(), strict=False)
        base = {id(parameter) for parameter in new.base_model.parameters()}
        lacked = {f"{new.base_model_prefix}.{name}" for name in missing}
        self.fresh = [name for name, parameter in new.named_parameters() if id(parameter) not in base or name in lacked]
        self._wear(new)

    def with_head(self, head: Head, seed: int = 0) -> Self:
        self.head, self.fresh = head, []
        if head.replaces_output:
            self.attach(head)
        return self.initialize(seed, only=self.fresh)

    def family_scores(self, hidden: Tensor, tokens: Tensor, segments: Tensor | None = None, extra: Mapping[str, Tensor] | None = None) -> Tensor:
        structure = self.head.structure
        if structure == "vector":
            return vector(self.head, hidden, segments, "mean" if self.shape.reads == "encoder" else "last")
        given = tokens
        if structure == "sequence" and self.shape.reads == "decoder":
            # transformers looks for the last token that is no padding by its id: one state stands for the row, so that no id can mislead it.
            hidden = last_state(hidden, segments)[:, None]
            given = torch.full_like(tokens[:, :1], (self.inner.config.pad_token_id or 0) + 1)
            if self.inner.config.pad_token_id is None:
                self.inner.config.pad_token_id = 0
        with self._given(hidden):
            found = self.inner(input_ids=given[:, None] if structure == "choice" else given)
        return torch.stack([found.start_logits, found.end_logits], dim=-1) if structure == "span" else found.logits

    # ---- parts ---------------------------------------------------------------------------------------------------------

    def blocks(self) -> list[nn.Module]:
        """The longest list of modules that is in no other list; an encoder–decoder's encoder, then its decoder."""
        sides = [self.inner.get_encoder(), self.inner.get_decoder()] if self.shape.reads == "encoder_decoder" else [self.inner]
        return [block for side in sides for block in max(_outer_lists(side), key=len, default=[])]

    @property
    def embedding(self) -> nn.Embedding:
        return self.inner.get_input_embeddings()

    def output_layer(self) -> nn.Linear | None:
        layer = self.inner.get_output_embeddings()
        return None if layer is None or layer.weight is self.embedding.weight else layer

    @torch.no_grad()
    def resize_vocabulary(self, size: int, pieces: Mapping[int, Sequence[int]] | None = None) -> Self:
        old, pieces = len(self.embedding.weight), pieces or {}
        self.inner.resize_token_embeddings(size, mean_resizing=False)
        layer = self.output_layer()
        for weight in [self.embedding.weight] + ([] if layer is None else [layer.weight]):
            average = weight[:old].float().mean(dim=0)
            for row in range(old, size):
                own = [piece for piece in pieces.get(row, ()) if piece < old]
                weight[row] = weight[own].float().mean(dim=0) if own else average
        self._wear(self.inner)
        self.shape = self.shape.updated(vocabulary_size=size, settings={**self.shape.settings, "vocab_size": size})
        return self

    # ---- directories -----------------------------------------------------------------------------------------------------

    @classmethod
    def read_directory(
        cls, folder: Path, plain: dict[str, Any], dtype: torch.dtype, device: str | torch.device, check_finite: bool,
        head: Head | None, language_model: bool, seed: int,
    ) -> AutoModelAdapter:
        """As :func:`luban.models.huggingface.load_model`, of a directory whose weights are known to be safetensors."""
        file = str(folder / "config.json")
        shape = build(AutoShapeConfig, from_json(plain, file), Source(file))
        structure = written_structure(plain)
        saved = read_head(plain, structure)
        wanted = None if language_model else head or saved
        as_saved = wanted is not None and wanted == saved and structure not in ("", "vector") and wanted.replaces_output
        config = configured(plain, wanted if as_saved else None)
        inner = _read(folder, config, wanted.structure if as_saved else shape.reads, dtype)
        model = cls(shape, inner.to(device))
        _fill(model, folder, seed, say_missing=wanted is None or as_saved or not wanted.replaces_output)
        if wanted is not None and not as_saved:
            model.with_head(wanted, seed)
            if model.fresh:
                say("new weights, drawn from the seed: {names}", names=", ".join(model.fresh[:4]) + (" …" if len(model.fresh) > 4 else ""))
        model.head = wanted
        if check_finite:
            for name, parameter in model.named_parameters():
                if not bool(parameter.float().isfinite().all()):
                    raise DataError(
                        "{file}: tensor {name} holds NaN or infinity", "the training that wrote it diverged, or the file is damaged", file=folder, name=name
                    )
        return model.eval()

    def write_directory(
        self, folder: Path, dtype: torch.dtype, end_ids: list[int] | None, begin_id: int | None, pad_id: int | None, shard_bytes: int
    ) -> None:
        """config.json and safetensors by transformers' own hand, made beside their place and then moved there file by file."""
        whole = {name: value.to("cpu", dtype).contiguous() if value.is_floating_point() else value.cpu() for name, value in self.inner.state_dict().items()}
        with tempfile.TemporaryDirectory(dir=folder, prefix=".saving-") as made:
            with _quiet():
                self.inner.save_pretrained(made, state_dict=whole, max_shard_size=shard_bytes)
            names = sorted(path.name for path in Path(made).glob("model*"))
            for stale in [*folder.glob("model*.safetensors"), *folder.glob("model*.safetensors.index.json")]:
                if stale.name not in names:
                    stale.unlink()
            for name in names:
                os.replace(Path(made) / name, folder / name)
            plain = json.loads((Path(made) / "config.json").read_text(encoding="utf-8"))
        write_json(folder / "config.json", self.config_json(dtype, end_ids, begin_id, pad_id, plain))

    def config_json(self, dtype: torch.dtype, end_ids: list[int] | None, begin_id: int | None, pad_id: int | None, plain: dict[str, Any] | None = None) -> dict[str, Any]:
        """The content of config.json: transformers' own (``plain``), and what Luban adds to it."""
        plain = dict(json.loads(self.inner.config.to_json_string()) if plain is None else plain)
        named = str(dtype).removeprefix("torch.")
        plain |= {"model_type": self.shape.model_type, "architectures": [type(self.inner).__name__], "dtype": named, "torch_dtype": named}
        plain.pop("luban_head", None)
        if self.head is not None:
            plain |= self.head.to_json()
        for key, value in (("bos_token_id", begin_id), ("eos_token_id", end_ids and (end_ids[0] if len(end_ids) == 1 else end_ids)), ("pad_token_id", pad_id)):
            if value is not None:
                plain[key] = value
        return plain


def _outer_lists(module: nn.Module) -> list[nn.ModuleList]:
    """The lists of modules in a module that are in no other list."""
    found = []
    for child in module.children():
        found += [child] if isinstance(child, nn.ModuleList) else _outer_lists(child)
    return found


def configured(plain: Mapping[str, Any], head: Head | None = None, base: Any = None) -> Any:
    """transformers' config object of a config.json's content, or of a changed ``base``, with the outputs of a head. Raises DataError for values that it refuses."""
    try:
        from transformers import AutoConfig
    except ImportError:
        raise missing_extra("transformers", "transformers") from None
    refuse_code(dict(plain), "config.json")
    settings = {key: value for key, value in (plain if base is None else base.to_dict()).items() if key not in ("luban_head", "torch_dtype", "transformers_version")}
    if head is not None and head.structure in ("sequence", "token", "span", "choice"):
        for key in ("num_labels", "id2label", "label2id", "problem_type"):
            settings.pop(key, None)
        names = head.labels if head.labels and len(head.labels) == head.outputs else [f"LABEL_{index}" for index in range(head.outputs)]
        settings["id2label"] = dict(enumerate(names))
        settings["label2id"] = {name: index for index, name in enumerate(names)}
    try:
        return AutoConfig.for_model(**settings)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        raise DataError("{file}: transformers refuses it: {error}", "", "restore the file", file="config.json", error=error) from None


def new_model(config: Any, structure: str) -> nn.Module:
    """transformers' model for a kind of language model or a head structure, with its own random weights. ``trust_remote_code`` is never given."""
    import transformers

    with _quiet():
        return getattr(transformers, FACTORIES[structure]).from_config(config, trust_remote_code=False)


def _read(folder: Path, config: Any, structure: str, dtype: torch.dtype) -> nn.Module:
    """transformers' model with the directory's weights; what it says of missing and left-over tensors is kept as ``reading``."""
    import transformers

    with _quiet():
        try:
            inner, report = getattr(transformers, FACTORIES[structure]).from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True, trust_remote_code=False, local_files_only=True, output_loading_info=True
            )
        except (RuntimeError, ValueError, OSError, SafetensorError) as error:
            raise DataError("{folder}: transformers cannot read it: {error}", "", "check that config.json and the weights belong together", folder=folder, error=error) from None
    object.__setattr__(inner, "reading", report)
    return inner


def _fill(model: AutoModelAdapter, folder: Path, seed: int, say_missing: bool) -> None:
    """See to what the files lacked: an output or a pooler is drawn from the seed and named, anything else is an error; what they held too much is named."""
    report = model.inner.reading
    missing, unused = sorted(report["missing_keys"]), sorted(report["unexpected_keys"])
    lost = [name for name in missing if model.prefix and name.startswith(model.prefix) and ".pooler." not in name]
    if lost:
        raise tensors_missing(folder, lost)
    if missing:
        model.initialize(seed, only=missing)
        if say_missing:
            say("new weights, drawn from the seed: {names}", names=", ".join(missing[:4]) + (" …" if len(missing) > 4 else ""))
    if unused:
        warn("{folder}: {count} tensors have no place in the model and are left out: {names}", folder=folder, count=len(unused), names=", ".join(unused[:4]) + (" …" if len(unused) > 4 else ""))


@contextmanager
def _quiet() -> Iterator[None]:
    """transformers' own reports and bars are silent: what matters of them is said here, in the reader's language."""
    from transformers.utils import logging

    before, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()
