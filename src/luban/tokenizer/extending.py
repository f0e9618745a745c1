"""New words in an old vocabulary: old ids stay, and each new token knows the old pieces it stands for."""

from __future__ import annotations

import heapq
import json
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from tokenizers import AddedToken
from tokenizers import Tokenizer as Core

from luban.foundation.errors import ConfigError, DataError
from luban.tokenizer.decoding import byte_of_character
from luban.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True)
class Added:
    """A new token: its id, its text, and the ids it was written with before (its embedding starts as their mean)."""

    id: int
    text: str
    pieces: list[int]


def extend(tokenizer: Tokenizer, words: list[str], learned: int, texts: Iterator[str]) -> tuple[Tokenizer, list[Added]]:
    """The tokenizer with ``learned`` tokens from the texts and with the given words, and what was added.

    Learned tokens go on with BPE's own greedy merges from where the vocabulary ends (as in "Teaching Old Tokenizers New
    Words", arXiv 2512.03989), so they obey the same rules for words and are found by the same search. Given words are
    matched wherever they stand, before anything else. Raises ConfigError or DataError for what cannot be added.
    """
    core = Core.from_str(tokenizer.core.to_str())
    first = tokenizer.vocabulary_size
    if learned:
        core = _with_merges(core, _next_merges(core, texts, learned))
    known = core.get_vocab(with_added_tokens=True)
    for word in words:
        _check(tokenizer, word)
    fresh = [word for word in dict.fromkeys(words) if word not in known]
    core.add_tokens([AddedToken(word, normalized=False, special=False) for word in fresh])
    grown = Tokenizer(core, dict(tokenizer.config), tokenizer.generation, tokenizer.clock)
    return grown, [_describe(tokenizer, grown, index) for index in range(first, grown.vocabulary_size)]


def _describe(old: Tokenizer, new: Tokenizer, index: int) -> Added:
    raw = new._byte_table[index]
    text = raw.decode("utf-8", "replace")
    if old.byte_level and text.encode() != raw:  # a learned token may be a part of a character
        table = {item: place for place, item in enumerate(old._byte_table) if len(item) == 1}
        return Added(index, text, [table[raw[place : place + 1]] for place in range(len(raw))])
    return Added(index, text, old.encode(text))


def _check(tokenizer: Tokenizer, word: str) -> None:
    if not word or word != word.strip():
        raise ConfigError(
            "extend: {word!r} is empty or has white space at an end",
            "such a word would never match as meant",
            "write the word alone",
            word=word,
        )
    mapping = byte_of_character()
    if tokenizer.byte_level and not word.isascii() and all(character in mapping for character in word):
        raise ConfigError(
            "extend: {word!r} cannot be a word of its own in a byte-level tokenizer",
            "its letters are also stand-ins for bytes, and transformers would decode it wrongly",
            "let it be learned (extend_learned)", word=word,
        )  # fmt: skip


def _next_merges(core: Core, texts: Iterator[str], count: int) -> list[tuple[str, str]]:
    """The merges BPE would do next on these texts, by the most frequent pair (ties: the smaller pair of ids).

    Memory holds the different words, bounded by the sample; pair counts are kept up to date word by word
    (Sennrich et al. 2016, with an index from pairs to words).
    """
    if json.loads(core.to_str())["model"]["type"] != "BPE":
        raise ConfigError(
            "extend_learned works with BPE tokenizers", "this one has no merges that could go on", "list the words under extend"
        )
    words = Counter[str]()
    for text in texts:
        normal = core.normalizer.normalize_str(text) if core.normalizer else text
        words.update(piece for piece, _ in (core.pre_tokenizer.pre_tokenize_str(normal) if core.pre_tokenizer else [(normal, (0, 0))]))
    split = [[token.value for token in core.model.tokenize(word)] for word in words]
    weight = list(words.values())

    pairs: Counter[tuple[str, str]] = Counter()
    where: dict[tuple[str, str], set[int]] = defaultdict(set)
    for index, tokens in enumerate(split):
        for pair in zip(tokens, tokens[1:], strict=False):
            pairs[pair] += weight[index]
            where[pair].add(index)
    heap = [(-total, pair) for pair, total in pairs.items()]
    heapq.heapify(heap)

    vocabulary = core.get_vocab(with_added_tokens=True)
    merges: list[tuple[str, str]] = []
    while heap and len(merges) < count:
        total, pair = heapq.heappop(heap)
        if pairs[pair] != -total:  # out of date: its true count is in the heap too, or it is gone
            continue
        if -total < 2:
            break
        changed = _merge(pair, split, weight, pairs, where)
        if pair[0] + pair[1] not in vocabulary:
            merges.append(pair)
        for other in changed:
            if pairs[other] > 0:
                heapq.heappush(heap, (-pairs[other], other))
    return merges


def _merge(pair: tuple[str, str], split: list[list[str]], weight: list[int], pairs: Counter, where: dict) -> set[tuple[str, str]]:
    """Join a pair in every word that has it; returns the pairs whose counts changed."""
    changed: set[tuple[str, str]] = set()
    for index in sorted(where.pop(pair)):
        tokens = split[index]
        before = list(zip(tokens, tokens[1:], strict=False))
        joined: list[str] = []
        for token in tokens:
            if joined and joined[-1] == pair[0] and token == pair[1]:
                joined[-1] = pair[0] + pair[1]
            else:
                joined.append(token)
        split[index] = joined
        after = list(zip(joined, joined[1:], strict=False))
        for item in before:
            pairs[item] -= weight[index]
        for item in after:
            pairs[item] += weight[index]
            where[item].add(index)
        changed.update(before, after)
    pairs.pop(pair, None)
    changed.discard(pair)
    return changed


def _with_merges(core: Core, merges: list[tuple[str, str]]) -> Core:
    """The tokenizer with merges behind its own; new tokens take the ids behind all old ones."""
    data = json.loads(core.to_str())
    for token in data["added_tokens"]:
        # Without a place in the vocabulary itself, control tokens would be numbered anew behind what is added.
        data["model"]["vocab"].setdefault(token["content"], token["id"])
    vocabulary, old = data["model"]["vocab"], data["model"]["merges"]
    following = max(core.get_vocab(with_added_tokens=True).values()) + 1
    for left, right in merges:
        vocabulary[left + right] = following
        following += 1
    data["model"]["merges"] = [
        *old,
        *(
            [[left, right] for left, right in merges]
            if not old or isinstance(old[0], list)
            else [f"{left} {right}" for left, right in merges]
        ),
    ]
    try:
        return Core.from_str(json.dumps(data))
    except Exception as error:  # tokenizers raises the bare class
        raise DataError("the tokenizer cannot be extended: {error}", error=str(error)[:200]) from None
