"""The five kinds of tokenizer: how each cuts text, how it is learned, and how its text is put together again."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from tokenizers import Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Core

from luban.foundation.errors import ConfigError
from luban.tokenizer.special import STYLES, Style, config_entries, finish

# Qwen2's rules, character for character (transformers models/qwen2; llama.cpp knows them as "qwen2").
QWEN2_PATTERN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
# Words with the space before them; every Han character is a word.
WORD_PATTERN = r"\p{Han}|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}&&[^\p{Han}]]+|\p{N}+| ?[^\s\p{L}\p{N}]+|\s*[\r\n]+|\s+(?!\S)|\s+"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
Texts = Callable[[], Iterator[str]]  # starts reading the training text anew


@dataclass(frozen=True)
class Plan:
    """What to learn. ``size`` counts the special tokens."""

    algorithm: str
    size: int
    minimum_frequency: int = 2
    byte_fallback: bool = True
    lowercase: bool = False
    special: tuple[str, ...] = ()
    style: str = "plain"


def automatic_vocabulary_size(corpus_bytes: int) -> int:
    """A vocabulary for a corpus of so many bytes: 2.9 √bytes, in steps of 128, from 512 to 131,072.

    Types grow about as the square root of a text (Heaps' law); the factor gives the 4,096 that served 2 MB of English
    and Chinese best, and some 92,000 at 1 GB. A larger vocabulary would leave most tokens with too few examples.
    """
    return int(min(131_072, max(512, round(2.9 * corpus_bytes**0.5 / 128) * 128)))


def learn(plan: Plan, texts: Texts) -> tuple[Core, dict[str, str]]:
    """Learn a tokenizer from texts (each call of ``texts`` reads them once); returns it with its named special tokens.

    Raises ConfigError when ``plan.size`` has no room for what every vocabulary of this kind must hold.
    """
    style = _style(plan)
    fallback = plan.algorithm in ("unigram", "character") and plan.byte_fallback
    special, named = [*style.first, *plan.special], dict(style.named)
    if "unk_token" not in named and (plan.algorithm == "word" or (plan.algorithm in ("unigram", "character") and not fallback)):
        special.append("<unk>")
        named["unk_token"] = "<unk>"
    special = list(dict.fromkeys(special))
    needed = len(special) + len(style.last) + (256 if plan.algorithm == "byte_bpe" or fallback else 1)
    if plan.size < needed:
        raise ConfigError(
            "vocabulary_size: {size} is too small for {algorithm}", "{needed} places are taken by special tokens and bytes", "give at least {needed}",
            size=plan.size, algorithm=plan.algorithm, needed=needed,
        )  # fmt: skip
    core = _LEARNERS[plan.algorithm](replace(plan, size=plan.size - len(style.last)), special, texts)
    finish(core, style, special)
    return core, {**config_entries(style), **named}


def _style(plan: Plan) -> Style:
    """The special tokens of a plan. WordPiece of the plain style has BERT's behind the plain ones."""
    style = STYLES[plan.style]
    if plan.style == "plain" and plan.algorithm == "wordpiece":
        bert = STYLES["bert"]
        # A decoder's generate would not take token types.
        return replace(bert, first=(*style.first, *bert.first), named={**style.named, **bert.named}, inputs=())
    return style


def _unknown(special: list[str]) -> str:
    return "[UNK]" if "[UNK]" in special else "<unk>"


def _normalizer(plan: Plan, *more: normalizers.Normalizer) -> normalizers.Normalizer:
    parts = [normalizers.NFC(), *([normalizers.Lowercase()] if plan.lowercase else []), *more]
    return parts[0] if len(parts) == 1 else normalizers.Sequence(parts)


def _byte_bpe(plan: Plan, special: list[str], texts: Texts) -> Core:
    core = Core(models.BPE())
    core.normalizer = _normalizer(plan)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(QWEN2_PATTERN), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=plan.size, min_frequency=plan.minimum_frequency, special_tokens=special,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()), show_progress=False,
    )  # fmt: skip
    core.train_from_iterator(texts(), trainer)
    return core


def _wordpiece(plan: Plan, special: list[str], texts: Texts) -> Core:
    unknown = _unknown(special)
    core = Core(models.WordPiece(unk_token=unknown))
    # BERT strips accents where it lowers the case; the plain style keeps them.
    core.normalizer = normalizers.BertNormalizer(lowercase=plan.lowercase, strip_accents=False if plan.style == "plain" else None)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    core.decoder = decoders.WordPiece()
    # The library's own learner numbers its pieces in the order of a hash table, so that no two runs agree. Here pieces come from
    # plain BPE, which is reproducible, and each is kept as a beginning ("ing") or a continuation ("##ing") by how often it is one.
    words = Counter[str]()
    for text in texts():
        words.update(word for word, _ in core.pre_tokenizer.pre_tokenize_str(core.normalizer.normalize_str(text)))
    characters = Counter[str]()
    for word, count in words.items():
        for place, character in enumerate(word):
            characters[character if place == 0 else "##" + character] += count
    room = plan.size - len(special)
    single = [piece for piece, _ in sorted(characters.items(), key=lambda item: (-item[1], item[0]))[:room]]
    learner = Core(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n"), "removed")
    trainer = trainers.BpeTrainer(vocab_size=plan.size + len(single), min_frequency=plan.minimum_frequency, show_progress=False)
    learner.train_from_iterator((word for word, count in words.items() for _ in range(min(count, 10_000))), trainer)
    longer = Counter[str]()
    for word, count in words.items():
        for place, token in enumerate(learner.model.tokenize(word)):
            if len(token.value) > 1:
                longer[token.value if place == 0 else "##" + token.value] += count
    frequent = sorted((item for item in longer.items() if item[1] >= plan.minimum_frequency), key=lambda item: (-item[1], item[0]))
    vocabulary = [*special, *single, *(piece for piece, _ in frequent[: room - len(single)])]
    core.model = models.WordPiece({token: index for index, token in enumerate(vocabulary)}, unk_token=unknown, max_input_chars_per_word=100)
    return core


def _unigram(plan: Plan, special: list[str], texts: Texts) -> Core:
    """Unigram (Kudo 2018) over Metaspace words; bytes for what it does not know are added after learning."""
    unknown = _unknown(special)
    control = list(dict.fromkeys([*special, unknown]))
    core = Core(models.Unigram())
    core.normalizer = normalizer = _normalizer(plan)
    # The learner must keep every character it sees; the rare ones would leave no room for words.
    kept = _frequent_characters(plan, texts, normalizer, (plan.size - len(special) - 257) // 2)
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s*[\r\n]+"), "isolated"), pre_tokenizers.Metaspace(prepend_scheme="never")]
    )
    trainer = trainers.UnigramTrainer(
        vocab_size=plan.size - (256 if plan.byte_fallback else 0),
        special_tokens=control,
        unk_token=unknown,
        show_progress=False,
    )
    known = set(kept)
    core.train_from_iterator(
        ("".join(c if c in known or c == " " else "\n" for c in normalizer.normalize_str(text)) for text in texts()), trainer
    )
    # Sums in parallel differ in the last digits from run to run: scores are rounded, and equal ones sorted by token.
    learned = [
        (token, round(score, 4))
        for token, score in json.loads(core.to_str())["model"]["vocab"]
        if token not in control
    ]
    learned = sorted(learned, key=lambda item: (-item[1], item[0]))[
        : plan.size - len(control) - (256 if plan.byte_fallback else 0)
    ]
    lowest = min((score for _, score in learned), default=0.0) - 10  # a byte is the last resort
    tail = [(byte, lowest) for byte in BYTES] if plan.byte_fallback else []
    vocabulary = [*((token, 0.0) for token in control), *learned, *tail]
    core.model = models.Unigram(vocabulary, unk_id=control.index(unknown), byte_fallback=plan.byte_fallback)
    core.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    return core


def _word(plan: Plan, special: list[str], texts: Texts) -> Core:
    core = Core(models.WordLevel(unk_token=_unknown(special)))
    core.normalizer = _normalizer(plan)
    core.pre_tokenizer = pre_tokenizers.Split(Regex(WORD_PATTERN), "isolated")
    core.decoder = decoders.Fuse()
    core.train_from_iterator(
        texts(),
        trainers.WordLevelTrainer(vocab_size=plan.size, min_frequency=plan.minimum_frequency, special_tokens=special, show_progress=False),
    )
    return core


def _character(plan: Plan, special: list[str], texts: Texts) -> Core:
    """Every character a token; the rarest are left to bytes (or the unknown token)."""
    normalizer = _normalizer(plan)
    base = [*special, *(BYTES if plan.byte_fallback else [])]
    kept = _frequent_characters(plan, texts, normalizer, plan.size - len(base))
    vocabulary = {token: index for index, token in enumerate([*base, *kept])}
    core = Core(
        models.BPE(vocab=vocabulary, merges=[], byte_fallback=plan.byte_fallback, unk_token=None if plan.byte_fallback else _unknown(special))
    )
    core.normalizer = normalizer
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    core.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return core


def _frequent_characters(plan: Plan, texts: Texts, normalizer: normalizers.Normalizer, most: int) -> list[str]:
    """The characters that occur often enough, most frequent first."""
    counts: Counter[str] = Counter()
    for text in texts():
        counts.update(normalizer.normalize_str(text))
    kept = sorted((-count, character) for character, count in counts.items() if count >= plan.minimum_frequency)
    return [character for _, character in kept[: max(0, most)]]


_LEARNERS = {"byte_bpe": _byte_bpe, "wordpiece": _wordpiece, "unigram": _unigram, "word": _word, "character": _character}
