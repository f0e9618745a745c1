"""The typed config of `fit`."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field

Method = Literal["ngram", "word2vec", "glove", "linear", "majority", "dictionary"]


class NgramConfig(Config):
    """An n-gram language model with modified Kneser-Ney smoothing."""

    order: Annotated[int, Field(ge=1, le=10)] = field(3, "Longest n-gram.", unit="units")
    minimum_counts: list[PositiveInt] = field(
        [1], "How often an n-gram of each order must occur to be kept, never falling; the last holds for all longer ones.", unit="occurrences"
    )
    arpa: bool = field(False, "Also write model.arpa, which other n-gram tools read.")
    samples: Annotated[int, Field(ge=0, le=100)] = field(3, "Texts drawn from the model for the report.")
    sample_units: PositiveInt = field(60, "Longest such text.", unit="units")
    prompts: list[str] = field([], "Texts whose likeliest next units are shown.")

    @model_validator(mode="after")
    def _rising(self) -> NgramConfig:
        if not self.minimum_counts or self.minimum_counts != sorted(self.minimum_counts):
            raise ValueError("minimum_counts must not fall with the order")
        return self


class VectorsConfig(Config):
    """Word vectors, by word2vec or GloVe."""

    architecture: Literal["skip_gram", "bag_of_words"] = field(
        "skip_gram", "Word2vec's network: skip_gram predicts neighbours from a word, bag_of_words a word from its neighbours."
    )
    dimension: Annotated[int, Field(ge=1, le=4096)] = field(100, "Length of a vector.")
    window: Annotated[int, Field(ge=1, le=100)] | Auto = field("auto", "Farthest neighbour that counts; auto is 5 for word2vec and 10 for GloVe.", unit="units")
    epochs: PositiveInt | Auto = field("auto", "Passes over the text (word2vec) or the co-occurrences (GloVe); auto is 5 and 15.")
    learning_rate: PositiveFloat | Auto = field("auto", "First learning rate; auto is 0.025 for skip_gram, 0.05 for bag_of_words and 0.15 for GloVe.")
    negatives: Annotated[int, Field(ge=1, le=100)] = field(5, "Word2vec: random words that each pair is told apart from.")
    subsample: NonNegativeFloat = field(1e-3, "Word2vec: share of the text above which a word is left out at random; 0 keeps all.")
    maximum_count: PositiveFloat = field(20.0, "GloVe: co-occurrences from which on a pair has full weight.")
    show: list[str] | Auto = field("auto", "Words whose nearest neighbours are shown; auto takes frequent ones of each script.")
    analogies: list[list[str]] = field([], "Triples [a, b, c] for which the report says what is to c as b is to a.")
    pairs: str | None = field(
        None, "A table of two words and how alike people find them a line; the rank correlation with the vectors is reported.", input=True
    )

    foreign: ClassVar[dict[str, str]] = {
        "size": "dimension",
        "vector_size": "dimension",
        "negative": "negatives",
        "sample": "subsample",
        "sg": "architecture",
        "alpha": "learning_rate",
    }

    @model_validator(mode="after")
    def _triples(self) -> VectorsConfig:
        if any(len(triple) != 3 for triple in self.analogies):
            raise ValueError("an analogy is a list of three words")
        return self


class LinearConfig(Config):
    """TF-IDF with a linear model: the baseline of every classification task."""

    task: Literal["classification", "multi_label", "regression", "tagging"] = field(
        "classification", "What is predicted; pairs of texts are recognised by their data."
    )
    model: Literal["logistic", "centroid"] = field("logistic", "Logistic regression (linear least squares for regression), or the nearest class centre.")
    words: Annotated[int, Field(ge=0, le=5)] = field(2, "Longest n-gram of words; 0 uses none.", unit="words")
    characters: Annotated[int, Field(ge=0, le=8)] | Auto = field(
        "auto", "Longest n-gram of characters; 0 uses none, auto is 3 where most texts are Chinese, Japanese or Korean.", unit="characters"
    )
    maximum_features: PositiveInt = field(200_000, "The most n-grams kept, the most frequent first.")
    regularisation: PositiveFloat = field(1.0, "Weight of the L2 penalty relative to the summed loss.")
    mapping: dict[str, str] = field({}, "Columns of the data where they are not recognised, such as {text: review, label: stars}.")


class FitConfig(Config):
    """Fit what needs no training loop: n-gram models, word vectors, linear models."""

    data: str | list[str] = field(
        ..., "What to fit to: curate stages, or files of text; for linear, majority and dictionary files of labelled examples.", input=True
    )
    method: Method = field("ngram", "What is fitted; majority and dictionary are the simplest baselines of classification and tagging.")
    unit: Literal["character", "word", "token"] | Auto = field(
        "auto", "What texts are cut into: auto is token where a tokenizer is given, else character for ngram and word for vectors."
    )
    tokenizer: str | None = field(None, "Tokenizer whose tokens are the units: a train_tokenizer stage, or a folder with tokenizer.json.", input=True)
    lowercase: bool | Auto = field("auto", "Write all units in lower case; auto does for word vectors over words and for linear models, and not for the rest.")
    remove_stop_words: bool = field(False, "Leave out English and Chinese stop words; for word vectors and linear models.")
    minimum_count: PositiveInt | Auto = field(
        "auto", "How often a unit must occur to be in the vocabulary; auto is 2 for word n-grams, 5 for word vectors, else 1.", unit="occurrences"
    )
    vocabulary_size: PositiveInt | None = field(None, "The most units in the vocabulary, the most frequent first; empty keeps all.", unit="units")
    held_out: Annotated[float, Field(ge=0.0, le=0.5)] = field(
        0.02, "Share of the documents of plain files that is scored rather than fitted; a corpus has its own splits."
    )
    maximum_memory: Annotated[int, Field(ge=50_000_000)] = field(
        1_000_000_000, "Memory for counting; what does not fit is sorted on disk. Python and its libraries take some 300 MB besides.", unit="bytes"
    )
    ngram: NgramConfig = field(NgramConfig(), "Of method ngram.")
    vectors: VectorsConfig = field(VectorsConfig(), "Of methods word2vec and glove.")
    linear: LinearConfig = field(LinearConfig(), "Of methods linear, majority and dictionary.")

    foreign: ClassVar[dict[str, str]] = {
        "order": "ngram.order",
        "n": "ngram.order",
        "dimension": "vectors.dimension",
        "dim": "vectors.dimension",
        "window": "vectors.window",
        "min_count": "minimum_count",
        "corpus": "data",
    }

    @model_validator(mode="after")
    def _consistent(self) -> FitConfig:
        if not self.data:
            raise ValueError("data: name at least one")
        if self.unit == "token" and not self.tokenizer:
            raise ValueError("unit token needs a tokenizer")
        if self.tokenizer and self.unit in ("character", "word"):
            raise ValueError("a tokenizer is given, and unit says that it is not used")
        group = {"ngram": "ngram", "word2vec": "vectors", "glove": "vectors"}.get(self.method, "linear")
        for other in ("ngram", "vectors", "linear"):
            if other != group and other in self.model_fields_set and getattr(self, other).model_fields_set:
                raise ValueError(f"{other} is set, and method {self.method} does not use it")
        return self

    @property
    def chosen_unit(self) -> str:
        """The unit with auto resolved."""
        if self.unit != "auto":
            return self.unit
        return "token" if self.tokenizer else "character" if self.method == "ngram" else "word"

    @model_validator(mode="after")
    def _words(self) -> FitConfig:
        if self.remove_stop_words and (self.method == "ngram" or self.chosen_unit != "word"):
            raise ValueError("remove_stop_words is for word vectors over words and for linear models: a language model needs every word")
        return self

    @property
    def chosen_lowercase(self) -> bool:
        """Lower case with auto resolved."""
        return self.chosen_unit == "word" and self.method != "ngram" if self.lowercase == "auto" else self.lowercase

    @property
    def chosen_minimum_count(self) -> int:
        """The minimum count with auto resolved."""
        if self.minimum_count != "auto":
            return self.minimum_count
        return 5 if self.method in ("word2vec", "glove") else 2 if self.chosen_unit == "word" and self.method == "ngram" else 1


class EnsembleConfig(Config):
    """Several models of one task in one folder, that predicts as a model does."""

    models: str | list[str] = field(..., "Train stages or model directories, of one task and the same labels.", input=True)
    how: Literal["average", "vote", "stack"] = field(
        "average", "average: of the probabilities; vote: of the labels; stack: a logistic regression on all probabilities, fitted to `data`."
    )
    data: str | list[str] = field([], "stack: labelled examples that no member was trained on.", input=True)
    mapping: dict[str, Any] = field({}, "Which column of `data` holds what; empty: recognised.")
