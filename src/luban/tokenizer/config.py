"""Config of the verb train_tokenizer."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from luban.foundation.config import Auto, Config, field

VocabularySize = Annotated[int, Field(ge=8, le=4_000_000)]


class TrainTokenizerConfig(Config):
    """Learn a tokenizer from a corpus, or take a pretrained one and extend it."""

    corpus: str | list[str] | None = field(
        None,
        "Corpus to learn from: the name of a curate stage, or the path of its artifact; may be left out when a pretrained tokenizer is taken as it is.",
        input=True,
    )
    style: Literal["plain", "bert", "roberta", "t5", "bart"] = field(
        "plain",
        "Whose special tokens it has, and how it frames texts and pairs: plain is for decoders and chats, the others are for models of that family.",
    )
    algorithm: Literal["byte_bpe", "wordpiece", "unigram", "word", "character"] | Auto = field(
        "auto",
        "How text is cut: byte-level BPE with Qwen2's rules, WordPiece, Unigram, whole words, or characters; auto follows the style (byte_bpe; bert: wordpiece; t5: unigram).",
    )
    vocabulary_size: VocabularySize | Auto = field(
        "auto", "Size of the vocabulary with its special tokens; auto follows the size of the corpus.", unit="tokens"
    )
    minimum_frequency: PositiveInt = field(2, "How often a token must occur in the training text to be learned.", unit="occurrences")
    byte_fallback: bool = field(
        True, "Unknown characters become bytes instead of an unknown token (unigram and character; byte_bpe always does)."
    )
    lowercase: bool = field(False, "Lower the case of all text first (not undone by decoding).")
    special_tokens: list[str] = field(doc="More control tokens to add.", default_factory=list)
    chat_template: str = field("chatml", "Chat template: chatml, none, or the text of a Jinja template. Styles other than plain have none unless it is given.")
    chat_template_file: str | None = field(None, "File with a Jinja chat template; wins over chat_template.", input=True)
    pretrained: str | None = field(None, "Take this tokenizer.json (or a model's folder) instead of learning one.", input=True)
    extend: list[str] = field(doc="Words to add to the vocabulary as tokens of their own; old ids stay.", default_factory=list)
    extend_learned: Annotated[int, Field(ge=0, le=500_000)] = field(
        0, "How many new tokens to learn from the corpus and add to the pretrained tokenizer (BPE).", unit="tokens"
    )
    language_weights: dict[str, PositiveFloat] = field(
        doc="Share of the training text by language, such as {en: 1, zh: 2}; what is not named is left out. Empty: as the corpus has it.",
        default_factory=dict,
    )
    maximum_characters: PositiveInt = field(
        200_000_000, "Most training text read in all; bounds memory (English costs some 5 bytes a character).", unit="characters"
    )
    maximum_unspaced_characters: PositiveInt = field(
        10_000_000,
        "Most letters of scripts without spaces (Chinese, Japanese, Thai) in it; each costs some 340 bytes of memory.",
        unit="characters",
    )
    maximum_document_characters: PositiveInt = field(10_000, "Most training text read from one document.", unit="characters")
    maximum_run_characters: PositiveInt = field(
        8,
        "Runs of letters without a space (Chinese clauses) longer than this are cut, in the training text only; bounds memory.",
        unit="characters",
    )
    evaluation_documents: PositiveInt = field(200, "Documents per language on which the tokenizer is measured.", unit="documents")
