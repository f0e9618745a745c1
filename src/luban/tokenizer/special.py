"""Special tokens: those of each family and where they stand, and more of them for a tokenizer that has others."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import AddedToken, processors
from tokenizers import Tokenizer as Core

from luban.foundation.errors import ConfigError
from luban.tokenizer import framing
from luban.tokenizer.decoding import decoder_kinds
from luban.tokenizer.templates import END_OF_TEXT, TURN_END, TURN_START
from luban.tokenizer.tokenizer import SPECIAL_NAMES, Tokenizer

ENTITY_MARKERS = ("[E1]", "[/E1]", "[E2]", "[/E2]")
T5_SENTINELS = 100


@dataclass(frozen=True)
class Style:
    """A family's special tokens: ``first`` take the ids from 0 on, ``last`` those behind the vocabulary.

    ``named`` goes to tokenizer_config.json; ``single`` and ``pair`` are the templates of one text and two (tokenizers' notation).
    """

    algorithm: str
    first: tuple[str, ...]
    named: dict[str, str]
    last: tuple[str, ...] = ()
    single: str = ""
    pair: str = ""
    inputs: tuple[str, ...] = ()  # what transformers' tokenizer returns; () leaves it to transformers


_ROBERTA = Style(
    "byte_bpe",
    ("<s>", "<pad>", "</s>", "<unk>", "<mask>"),
    {
        "bos_token": "<s>",
        "eos_token": "</s>",
        "unk_token": "<unk>",
        "sep_token": "</s>",
        "pad_token": "<pad>",
        "cls_token": "<s>",
        "mask_token": "<mask>",
    },
    single="<s> $A </s>",
    pair="<s> $A </s> </s> $B </s>",
    inputs=("input_ids", "attention_mask"),
)
STYLES = {
    "plain": Style("byte_bpe", (END_OF_TEXT, TURN_START, TURN_END), {"eos_token": END_OF_TEXT, "pad_token": END_OF_TEXT}),
    "bert": Style(
        "wordpiece",
        ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"),
        {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "mask_token": "[MASK]"},
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        inputs=("input_ids", "token_type_ids", "attention_mask"),
    ),
    "roberta": _ROBERTA,
    "bart": _ROBERTA,
    "t5": Style(
        "unigram",
        ("<pad>", "</s>", "<unk>"),
        {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"},
        # The highest id is <extra_id_0>, as in T5's own vocabulary.
        last=tuple(f"<extra_id_{number}>" for number in reversed(range(T5_SENTINELS))),
        single="$A </s>",
        pair="$A </s> $B </s>",
        inputs=("input_ids", "attention_mask"),
    ),
}


def finish(core: Core, style: Style, first: Sequence[str]) -> None:
    """Make ``first`` and the style's own tokens special, and let the tokenizer put them around texts. In place."""
    _add(core, (*first, *style.last), style.named.get("mask_token"))
    if style.single:
        names = dict.fromkeys(word.partition(":")[0] for word in style.pair.split() if not word.startswith("$"))
        ids = [(name, core.token_to_id(name)) for name in names]
        core.post_processor = processors.TemplateProcessing(single=style.single, pair=style.pair, special_tokens=ids)


def config_entries(style: Style) -> dict[str, object]:
    """What tokenizer_config.json says of a style."""
    inputs = {"model_input_names": list(style.inputs)} if style.inputs else {}
    extra = {"extra_special_tokens": sorted(style.last, key=lambda name: int(name[10:-1]))} if style.last else {}
    return {**style.named, **extra, **inputs}


def _add(core: Core, tokens: Sequence[str], mask: str | None) -> None:
    """Make tokens special, each with its old id or the next. In place."""
    # The mask takes the space before it, as the word that it hides would (RoBERTa's convention); WordPiece's words have none.
    spaced = "WordPiece" not in decoder_kinds(core)
    core.add_special_tokens([AddedToken(token, special=True, normalized=False, lstrip=spaced and token == mask) for token in tokens])


def add_special(tokenizer: Tokenizer, tokens: dict[str, str]) -> tuple[Tokenizer, dict[str, int]]:
    """The tokenizer with named special tokens such as ``{"mask": "[MASK]", "pad": "[PAD]"}``, and their ids.

    Names: bos, eos, unk, sep, pad, cls, mask. Old ids stay; what the vocabulary lacks comes behind it, so that a model's embedding must
    grow to ``vocabulary_size``. With cls and sep a tokenizer that put nothing behind texts frames them as BERT's does. Raises ConfigError
    for another name and for an empty token.
    """
    named: dict[str, str] = {}
    for name, token in tokens.items():
        key = name if name.endswith("_token") else f"{name}_token"
        if key not in SPECIAL_NAMES or not token or token != token.strip():
            raise ConfigError(
                "{name}: {token!r} cannot be a special token of this name", "", "the names are bos, eos, unk, sep, pad, cls, mask",
                name=name, token=token,
            )  # fmt: skip
        named[key] = token
    grown = _grown(tokenizer, list(named.values()), {**tokenizer.config, **named})
    if grown.cls_id is not None and grown.sep_id is not None and ({"cls_token", "sep_token"} & named.keys()):
        grown = _framed_as_classifier(grown)
    return grown, {name: grown.core.token_to_id(token) for name, token in tokens.items()}


def add_sentinels(tokenizer: Tokenizer, count: int = T5_SENTINELS) -> tuple[Tokenizer, list[int]]:
    """The tokenizer with T5's ``<extra_id_0>`` to ``<extra_id_{count - 1}>``, and their ids in this order; those it has stay."""
    names = [f"<extra_id_{number}>" for number in range(count)]
    grown = _grown(tokenizer, names, _with_extra(tokenizer, names))
    return grown, [grown.core.token_to_id(name) for name in names]


def with_entity_markers(tokenizer: Tokenizer, markers: Sequence[str] = ENTITY_MARKERS) -> tuple[Tokenizer, list[int]]:
    """The tokenizer with marker tokens to set around entities ("Matching the Blanks", arXiv 1906.03158), and their ids.

    They are control tokens: a text that spells ``[E1]`` holds no marker unless it is encoded with ``allow_special``.
    """
    for marker in markers:
        if not marker or marker != marker.strip():
            raise ConfigError(
                "{marker!r} cannot be a marker token: it is empty or has white space at an end", "", "write it alone", marker=marker
            )
    grown = _grown(tokenizer, list(markers), _with_extra(tokenizer, markers))
    return grown, [grown.core.token_to_id(marker) for marker in markers]


def _grown(tokenizer: Tokenizer, tokens: Sequence[str], config: dict) -> Tokenizer:
    core = Core.from_str(tokenizer.core.to_str())
    # What is special already keeps its own way of matching.
    fresh = [token for token in dict.fromkeys(tokens) if token not in tokenizer.special_ids]
    _add(core, fresh, mask if isinstance(mask := config.get("mask_token"), str) else None)
    return Tokenizer(core, config, tokenizer.generation, tokenizer.clock)


def _with_extra(tokenizer: Tokenizer, tokens: Sequence[str]) -> dict:
    """The config with more ``extra_special_tokens``; the list's old name, and the mapping that it may be, are kept as they are read."""
    known = tokenizer.config.get("extra_special_tokens")
    if isinstance(known, dict):  # names of one's own: tokens are listed there under themselves
        return {**tokenizer.config, "extra_special_tokens": {**known, **{token: token for token in tokens}}}
    known = [*(known or []), *(tokenizer.config.get("additional_special_tokens") or [])]
    names = [token["content"] if isinstance(token, dict) else token for token in known]
    config = {key: value for key, value in tokenizer.config.items() if key != "additional_special_tokens"}
    return {**config, "extra_special_tokens": list(dict.fromkeys([*names, *tokens]))}


def _framed_as_classifier(tokenizer: Tokenizer) -> Tokenizer:
    """With BERT's post-processor where there was none that ends a text."""
    if framing.probed(tokenizer.core, 1)[-1:] not in ((), (framing.Slot(0, 0),)):
        return tokenizer
    start, end = tokenizer.special_tokens["cls_token"], tokenizer.special_tokens["sep_token"]
    core = Core.from_str(tokenizer.core.to_str())
    core.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        pair=f"{start} $A {end} $B:1 {end}:1",
        special_tokens=[(start, tokenizer.cls_id), (end, tokenizer.sep_id)],
    )
    return Tokenizer(core, tokenizer.config, tokenizer.generation, tokenizer.clock)


def with_frame(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer whose own file says what :func:`framing.frame` puts around a text, so that other programs read texts as Luban does.

    Decoders' tokenizers put nothing behind a text; a vector is read from the end of text. One that says so already stays as it is.
    """
    core = Core.from_str(tokenizer.core.to_str())
    layout = tokenizer.layout
    if framing.probed(core, 1) == layout.single:
        return tokenizer
    ids = {slot.id: core.id_to_token(slot.id) for slot in (*layout.single, *layout.pair) if slot.part < 0}
    written = [[f"{ids[slot.id]}:{slot.type}" if slot.part < 0 else f"${'AB'[slot.part]}:{slot.type}" for slot in slots] for slots in (layout.single, layout.pair)]
    template = processors.TemplateProcessing(single=written[0], pair=written[1], special_tokens=[(token, index) for index, token in ids.items()])
    before = core.post_processor
    core.post_processor = template if before is None or isinstance(before, processors.TemplateProcessing) else processors.Sequence([before, template])
    config = tokenizer.config if "pad_token" in tokenizer.special_tokens else {**tokenizer.config, "pad_token": core.id_to_token(tokenizer.pad_id)}
    return Tokenizer(core, config, tokenizer.generation, tokenizer.clock)
