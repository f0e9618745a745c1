"""Configs of the verbs augment and gather."""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field

Task = Literal["classification", "multi_label", "regression", "tagging", "relation", "joint_relation", "text_pairs"]
Operation = Literal["synonym", "insert", "delete", "swap"]
Copies = Annotated[float, Field(ge=0, le=100)]
Share = Annotated[float, Field(gt=0, le=1)]


class EdaConfig(Config):
    """Easy data augmentation (arXiv:1901.11196): synonyms, random insertion, deletion and swap of words."""

    foreign: ClassVar[dict[str, str]] = {"alpha": "strength", "num_aug": "copies"}

    copies: Copies = field(1.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    strength: Share = field(0.1, "Share of the words that are changed, one at least.")
    operations: list[Operation] | Auto = field(
        "auto", "Each made row is changed by one of these; auto: all four where synonyms or vectors are given, else delete and swap."
    )
    synonyms: str | list[str] = field(
        [], "Files of synonyms: a line of words each, Cilin's coded lines, or a MyThes thesaurus (th_en_US_v2.dat).", input=True
    )
    vectors: str | None = field(
        None, "Word vectors whose nearest words stand in for synonyms: a fit stage (word2vec, glove), or a file of vectors.", input=True
    )
    neighbours: PositiveInt = field(5, "The most synonyms taken from the vectors for a word.", unit="words")
    minimum_similarity: Annotated[float, Field(ge=-1, le=1)] = field(0.6, "Smallest cosine of a neighbour.")
    segmentation: Literal["jieba", "characters"] = field("jieba", "How Chinese is cut into words.")


class NoiseConfig(Config):
    """Letters and characters left out, or changed with the next one."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    strength: Share = field(0.05, "Share of the characters that are changed, one at least.")


class TyposConfig(Config):
    """Letters replaced by neighbours on a QWERTY keyboard."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    strength: Share = field(0.05, "Share of the characters that are changed, one at least.")


class HomophonesConfig(Config):
    """Chinese characters replaced by common ones of the same sound, as an input method would."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    strength: Share = field(0.05, "Share of the characters that are changed, one at least.")
    tones: bool = field(True, "The tone has to be the same as well.")
    file: str | None = field(None, "A file of characters that sound alike, a group a line, in place of pypinyin's readings.", input=True)


class ShapesConfig(Config):
    """Chinese characters replaced by ones that look alike."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    strength: Share = field(0.05, "Share of the characters that are changed, one at least.")
    file: str | None = field(
        None, "Characters that look alike, a group a line (or `字:similar`), or a table of their parts (ideographic description sequences).", input=True
    )

    @model_validator(mode="after")
    def _has_file(self) -> ShapesConfig:
        if self.copies and not self.file:
            raise ValueError("shapes.file is needed: Luban ships no table of characters that look alike")
        return self


class EndpointConfig(Config):
    """An OpenAI-compatible server that writes texts. Nothing is sent anywhere unless `base_url` names it."""

    foreign: ClassVar[dict[str, str]] = {"api_key": "key_variable (the name of an environment variable, never the key itself)", "api_base": "base_url"}

    base_url: str = field("", "Address up to /v1, such as http://127.0.0.1:8000/v1; empty: no endpoint. The texts are sent there.")
    model: str = field("", "Name of the model there.")
    key_variable: str = field("", "Name of the environment variable that holds the key; the key itself is never written anywhere.", role="machine")
    temperature: NonNegativeFloat = field(0.8, "Divides the logits; 0 always chooses the likeliest token.")
    maximum_tokens: PositiveInt = field(1024, "Length at which an answer ends; an answer that was cut is left out.", unit="tokens")
    maximum_characters: PositiveInt = field(8000, "Longer texts are not sent, and counted.", unit="characters")
    timeout_seconds: PositiveFloat = field(120.0, "Time in which an answer must come.", unit="seconds", role="machine")
    retries: NonNegativeInt = field(5, "How often a request is sent again when the server is busy, out of reach or in trouble.", role="machine")
    concurrency: Annotated[int, Field(ge=1, le=64)] = field(4, "Requests under way at once.", role="machine")

    @model_validator(mode="after")
    def _plain(self) -> EndpointConfig:
        # Said of the whole config, so that the message does not repeat what may be a secret.
        if self.key_variable and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,63}", self.key_variable):
            raise ValueError("endpoint.key_variable is the name of an environment variable, such as OPENAI_API_KEY, not the key")
        if self.key_variable.startswith("sk_") or (len(self.key_variable) > 24 and not self.key_variable.isupper()):
            raise ValueError("endpoint.key_variable looks like a key; write the name of the environment variable that holds it")
        if self.base_url:
            address = urlsplit(self.base_url)
            if address.scheme not in ("http", "https") or not address.hostname:
                raise ValueError("endpoint.base_url is no address: it starts with http:// or https://")
            if address.username or address.password or address.query or address.fragment:
                raise ValueError("endpoint.base_url holds more than an address; a key belongs into key_variable")
            if not self.model:
                raise ValueError("endpoint.model: name the model to ask for")
        return self


class BackTranslationConfig(Config):
    """Texts translated and back again (arXiv:1511.06709)."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    there: str | None = field(None, "Model directory that translates into another language; without it the endpoint does.", input=True)
    back: str | None = field(None, "Model directory that translates back.", input=True)
    through: str = field("German", "With the endpoint: the language in between, as the prompt names it.")
    temperature: NonNegativeFloat = field(0.0, "With model directories: 0 takes the likeliest translation; above, one is drawn.")
    there_prompt: str = field(
        "Translate the following text into {through}. Answer with the translation only.\n\n{text}", "With the endpoint: what is asked first."
    )
    back_prompt: str = field(
        "Translate the following text into {language}. Answer with the translation only.\n\n{text}", "With the endpoint: what is asked of the answer."
    )

    @model_validator(mode="after")
    def _both(self) -> BackTranslationConfig:
        if bool(self.there) != bool(self.back):
            raise ValueError("back_translation needs both directions: there and back")
        return self


class ParaphraseConfig(Config):
    """Texts said in other words by a model."""

    copies: Copies = field(0.0, "Rows made from each row; 0.5 makes one from every second row, 0 none.")
    model: str | None = field(
        None, "Model directory: one that was trained on pairs of texts gets the text, another decoder the prompt; without it the endpoint.", input=True
    )
    temperature: NonNegativeFloat = field(0.8, "With a model directory: 0 takes the likeliest text; above, one is drawn.")
    prompt: str = field(
        "Say the following in other words, in {language}. Keep the meaning, and keep names and numbers as they are. Answer with the new text only.\n\n{text}",
        "What is asked; {text} and {language} are filled in.",
    )


class SynthesisConfig(Config):
    """New texts of a class, written after some of its texts."""

    per_label: NonNegativeInt = field(0, "Texts asked for each label; only for classification of single texts.")
    shots: Annotated[int, Field(ge=1, le=50)] = field(5, "Texts of the label that are shown, drawn anew each time.")
    model: str | None = field(None, "Model directory of a decoder; without it the endpoint.", input=True)
    temperature: NonNegativeFloat = field(1.0, "With a model directory: divides the logits.")
    prompt: str = field(
        "Here are texts of the class \"{label}\":\n\n{examples}\n\nWrite one more text of this class in {language}, different from these. Answer with the text only.",
        "What is asked; {label}, {examples} and {language} are filled in.",
    )


class AugmentConfig(Config):
    """Make more training rows out of labelled ones. Only training data may be augmented."""

    data: str | list[str] = field(..., "Labelled examples of the training set: files, folders, slices such as train.csv#500.", input=True)
    task: Task = field("classification", "What the data is for; of pairs of texts the inputs are changed, never the outputs.")
    mapping: dict[str, Any] = field({}, "Which column of the data holds what; empty: recognised.")
    held_out: str | list[str] = field(
        [], "Labelled examples of the validation and test sets: a text that stands there is neither kept nor made.", input=True
    )
    only: list[str] = field([], "Labels whose rows are augmented, rare ones say; empty: all.")
    protected: list[str] | Auto = field(
        "auto", "Words that are never changed; auto: words of negation (not, never, 不, 没 …), which turn a meaning round."
    )
    eda: EdaConfig = field(default_factory=EdaConfig, doc="Words replaced, inserted, deleted, swapped.")
    noise: NoiseConfig = field(default_factory=NoiseConfig, doc="Characters left out and changed with the next.")
    typos: TyposConfig = field(default_factory=TyposConfig, doc="Neighbours on the keyboard.")
    homophones: HomophonesConfig = field(default_factory=HomophonesConfig, doc="Chinese characters of the same sound.")
    shapes: ShapesConfig = field(default_factory=ShapesConfig, doc="Chinese characters of a similar shape.")
    back_translation: BackTranslationConfig = field(default_factory=BackTranslationConfig, doc="Translated and back.")
    paraphrase: ParaphraseConfig = field(default_factory=ParaphraseConfig, doc="Said in other words by a model.")
    synthesis: SynthesisConfig = field(default_factory=SynthesisConfig, doc="New texts of a class by a model.")
    endpoint: EndpointConfig = field(default_factory=EndpointConfig, doc="The server that writes where no model directory is named.")

    @model_validator(mode="after")
    def _possible(self) -> AugmentConfig:
        for name, section, own in (
            ("back_translation", self.back_translation.copies, self.back_translation.there),
            ("paraphrase", self.paraphrase.copies, self.paraphrase.model),
            ("synthesis", self.synthesis.per_label, self.synthesis.model),
        ):
            if section and not own and not self.endpoint.base_url:
                raise ValueError(f"{name} needs a writer: a model directory, or endpoint.base_url")
        if self.synthesis.per_label and self.task != "classification":
            raise ValueError("synthesis writes texts of a class: it is for task classification")
        if self.eda.operations != "auto" and not self.eda.operations and self.eda.copies:
            raise ValueError("eda.operations is empty; set eda.copies to 0 to do without")
        lacking = {"synonym", "insert"} & set(self.eda.operations if self.eda.operations != "auto" else ())
        if lacking and not self.eda.synonyms and not self.eda.vectors:
            raise ValueError(f"eda.operations {', '.join(sorted(lacking))}: give eda.synonyms (a file) or eda.vectors (a fit stage)")
        return self


class GatherConfig(Config):
    """Gather the texts of labelled files into a corpus: to learn a tokenizer from, or to go on pretraining on the task's own words."""

    data: str | list[str] = field(..., "Labelled files, read as training reads them.", input=True)
    task: Literal["classification", "regression", "multi_label", "tagging", "relation", "joint_relation", "question_answering", "text_pairs", "choice", "ranking", "embedding", "conversation"] = field(
        "classification", "What the files are read for; inputs and outputs, questions and contexts, choices and documents, the turns of conversations are all texts."
    )
    mapping: dict[str, Any] = field({}, "Which column of the files holds what; empty: recognised, and shown.")
    validation_share: Annotated[float, Field(ge=0, lt=1)] = field(0.05, "Share of the texts that is put into the validation split, by their content.")
