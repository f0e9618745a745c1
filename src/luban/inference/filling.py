"""What models of running text say: filled blanks, next words, the spans and the middle that are missing, the clean copy of a noisy text."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from luban.foundation.errors import DataError
from luban.inference.config import GenerationConfig, SamplingConfig
from luban.inference.generate import generate, prompt_ids
from luban.inference.padding import padded_batches
from luban.inference.predictor import wanted
from luban.inference.seq2seq import generate_from
from luban.models.base import Model
from luban.tokenizer.framing import Framed, frame
from luban.tokenizer.tokenizer import Tokenizer

MIDDLE_TOKENS = ("<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>")  # as StarCoder and Qwen write them
TOP = 5  # fills and next words shown, unless an item says ``top``
BLANKS = ("[MASK]", "<mask>")  # a blank may be written either way
_SENTINEL = re.compile(r"<extra_id_(\d+)>")
_GREEDY = SamplingConfig(temperature=0.0, maximum_tokens=256)


# ---- encoders: blanks ----------------------------------------------------------------------------------------------------


def fill(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"text": "… [MASK] …"}``: ``{"fills": [[{"token", "text", "probability"}, …] for each blank], "text"}``, the text
    with every blank filled by its likeliest token, each by itself."""
    framed, texts = [], []
    for number, item in enumerate(items):
        text = _with_mask(tokenizer, wanted(item, "text", number), number)
        found = frame(tokenizer, text, maximum=_longest(model), allow_special=True)
        if found.ids.count(tokenizer.mask_id) < text.count(tokenizer.special_tokens["mask_token"]):
            raise DataError("item {number}: a blank lies beyond the first {count} tokens", "the model reads no more", "cut the text around it", number=number + 1, count=_longest(model))
        framed.append(found)
        texts.append(text)
    results: list[dict[str, Any]] = [{}] * len(items)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        hidden = batch.hidden(model)  # [rows, seq, dim]
        for row, number in enumerate(batch.numbers):
            places = (batch.tokens[row] == tokenizer.mask_id).nonzero().squeeze(1)
            fills = _likeliest(model, tokenizer, hidden[row, places], items[number].get("top", TOP))
            results[number] = {"fills": fills, "text": _filled(tokenizer, texts[number], framed[number], [best[0] for best in fills])}
    return results


def _with_mask(tokenizer: Tokenizer, text: str, number: int) -> str:
    """The text with its blanks written as the tokenizer's mask. DataError where there is none to fill."""
    mask = tokenizer.special_tokens.get("mask_token")
    if mask is None:
        raise DataError("the tokenizer has no mask token", "the model has not learned to fill blanks", "")
    for blank in BLANKS:
        text = text.replace(blank, mask)
    if mask not in text:
        raise DataError("item {number}: there is no blank to fill", "", "write {mask} where a word is missing", number=number + 1, mask=mask)
    return text


def _filled(tokenizer: Tokenizer, text: str, framed: Framed, best: list[dict[str, Any]]) -> str:
    """The text with a token's text in the place of each blank; a token that goes on a word takes the space before it."""
    done, pieces = 0, []
    blanks = [span for index, span in zip(framed.ids, framed.offsets, strict=True) if index == tokenizer.mask_id]
    for (start, end), choice in zip(blanks, best, strict=True):
        before = text[done:start]
        pieces += [before.rstrip(" ") if choice["token"].startswith("##") else before, choice["text"]]
        done = end
    return "".join([*pieces, text[done:]])


def _likeliest(model: Model, tokenizer: Tokenizer, states: Tensor, top: int) -> list[list[dict[str, Any]]]:
    """For each state [places, dim] its likeliest tokens that are no control tokens, with probabilities over the whole vocabulary."""
    probabilities = model.logits(states).float().softmax(-1)
    special = torch.zeros(probabilities.shape[-1], dtype=torch.bool)
    special[: tokenizer.vocabulary_size] = torch.from_numpy(tokenizer.is_special)
    special[tokenizer.vocabulary_size :] = True  # rows of the embedding without a token
    values, ids = probabilities.masked_fill(special.to(probabilities.device), 0).topk(min(top, len(special)), dim=-1)
    return [
        [{"token": tokenizer.core.id_to_token(index), "text": _text(tokenizer, index), "probability": value} for index, value in zip(own, chances, strict=True)]
        for own, chances in zip(ids.tolist(), values.tolist(), strict=True)
    ]


def _text(tokenizer: Tokenizer, index: int) -> str:
    """A token's own text, without the space and the ``##`` that tie it to its neighbours."""
    return tokenizer.decode([index]).removeprefix("##").strip(" ")


# ---- decoders ------------------------------------------------------------------------------------------------------------


def next_words(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"text"}``: ``{"next": [{"token", "text", "probability"}, …]}``, what may come behind it; of a long text the end is read."""
    prompts = [prompt_ids(tokenizer, wanted(item, "text", number))[-model.longest_text :] for number, item in enumerate(items)]
    framed = [Framed(ids, [0] * len(ids), [], []) for ids in prompts]
    results: list[dict[str, Any]] = [{}] * len(items)
    for batch in padded_batches(framed, tokenizer.pad_id, rows, model.device):
        hidden = batch.hidden(model)  # [rows, seq, dim]
        for row, number in enumerate(batch.numbers):
            last = hidden[row, len(prompts[number]) - 1][None]
            results[number] = {"next": _likeliest(model, tokenizer, last, items[number].get("top", TOP))[0]}
    return results


def middle_prompt(tokenizer: Tokenizer, prefix: Sequence[int], suffix: Sequence[int], order: str) -> list[int]:
    """What a model reads before it writes the middle (arXiv:2207.14255; suffix first: the variant of its appendix D that
    shares the end of the sequence with plain text)."""
    before, after, middle = (tokenizer.special_ids[token] for token in MIDDLE_TOKENS)
    if order == "suffix_prefix_middle":
        return [before, after, *suffix, middle, *prefix]
    return [before, *prefix, after, *suffix, middle]


def write_middle(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"prefix", "suffix"}``: ``{"text"}``, what stands between them."""
    missing = [token for token in MIDDLE_TOKENS if token not in tokenizer.special_ids]
    if missing:
        raise DataError("the tokenizer has no token {token}", "the model has not learned to fill in the middle", "", token=missing[0])
    order = str(model.head.settings.get("order", "")) if model.head else ""
    begin = [] if tokenizer.begin_of_text_id is None else [tokenizer.begin_of_text_id]
    prompts = []
    for number, item in enumerate(items):
        prefix, suffix = (tokenizer.encode(wanted(item, side, number)) for side in ("prefix", "suffix"))
        prompts.append((begin or [tokenizer.end_of_text_id]) + middle_prompt(tokenizer, prefix, suffix, order))
    return [{"text": found.text} for found in generate(model, tokenizer, prompts, _GREEDY, slots=rows)]


# ---- encoder–decoders ----------------------------------------------------------------------------------------------------


def continue_text(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"text"}``, the first part of a text: ``{"text"}``, the rest."""
    texts = [wanted(item, "text", number) for number, item in enumerate(items)]
    if model.shape.kind == "encoder_decoder":
        return [{"text": tokenizer.decode(ids)} for ids in _written(model, tokenizer, texts, rows)]
    start = [tokenizer.end_of_text_id if tokenizer.begin_of_text_id is None else tokenizer.begin_of_text_id]
    prompts = [start + tokenizer.encode(text) for text in texts]
    return [{"text": found.text} for found in generate(model, tokenizer, prompts, _GREEDY, slots=rows)]


def clean(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"text"}``, a text with blanks or mixed-up sentences: ``{"text"}``, the whole one."""
    mask = tokenizer.special_tokens.get("mask_token")
    texts = [wanted(item, "text", number) for number, item in enumerate(items)]
    for blank in BLANKS if mask else ():
        texts = [text.replace(blank, mask) for text in texts]
    return [{"text": tokenizer.decode(ids)} for ids in _written(model, tokenizer, texts, rows)]


def fill_spans(model: Model, tokenizer: Tokenizer, items: Sequence[dict[str, Any]], rows: int) -> list[dict[str, Any]]:
    """For ``{"text": "… <extra_id_0> …"}``: ``{"fills": [text of each span], "text"}``, the text with its spans put in."""
    texts = [wanted(item, "text", number) for number, item in enumerate(items)]
    for number, text in enumerate(texts):
        if not _SENTINEL.search(text):
            raise DataError("item {number}: there is no blank to fill", "", "write {mask} where a word is missing", number=number + 1, mask="<extra_id_0>")
    results = []
    for text, ids in zip(texts, _written(model, tokenizer, texts, rows), strict=True):
        spans = _spans(tokenizer, ids)
        numbers = [int(number) for number in _SENTINEL.findall(text)]
        filled = _SENTINEL.sub(lambda match, spans=spans: spans.get(int(match.group(1)), ""), text)
        results.append({"fills": [spans.get(number, "") for number in numbers], "text": filled})
    return results


def _spans(tokenizer: Tokenizer, ids: Sequence[int]) -> dict[int, str]:
    """What was written behind each sentinel."""
    numbers = {index: number for number, index in enumerate(tokenizer.sentinel_ids)}
    found: dict[int, list[int]] = {}
    current: list[int] = []
    for index in ids:
        if index in numbers:
            current = found.setdefault(numbers[index], [])
        else:
            current.append(index)
    return {number: tokenizer.decode(span).strip(" ") for number, span in found.items()}


def _written(model: Model, tokenizer: Tokenizer, texts: Sequence[str], rows: int) -> list[list[int]]:
    """The likeliest token again and again for each text, a quarter longer than the longest of them at most."""
    sources = [frame(tokenizer, text, maximum=_longest(model), allow_special=True).ids for text in texts]
    settings = GenerationConfig(maximum_tokens=min(_longest(model), max(map(len, sources), default=0) * 5 // 4 + 32))
    return generate_from(model, sources, settings, end_ids=[*tokenizer.stop_ids, *_ends(tokenizer)], rows=rows)


def _ends(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that the tokenizer's family sets behind a text."""
    slots = tokenizer.layout.single
    return [slot.id for slot in slots[next(place for place, slot in enumerate(slots) if slot.part >= 0) + 1 :]]


def _longest(model: Model) -> int:
    """Tokens of the longest text that the model was trained on."""
    learned = model.head.settings.get("maximum_tokens") if model.head else None
    return min(int(learned or model.longest_text), model.longest_text)
