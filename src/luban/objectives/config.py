"""The typed configs of the objectives: what is learned, and how its loss is made."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from luban.foundation.config import Auto, Config, field, one_of
from luban.foundation.custom import is_custom
from luban.foundation.errors import nearest
from luban.inference.config import SamplingConfig

Share = Annotated[float, Field(ge=0, le=1)]
SMOOTHING = "Share of the target that is spread evenly over all labels (Szegedy et al. 2016)."


class CausalConfig(Config):
    """Predict the next token of running text."""

    name: Literal["causal"] = field("causal", "The next token of running text.")


class MaskedConfig(Config):
    """Fill in tokens that were hidden, with an encoder (BERT, arXiv:1810.04805). What is hidden is drawn anew in every epoch."""

    name: Literal["masked"] = field("masked", "Hidden tokens of running text.")
    share: Share = field(0.15, "Share of the tokens to be predicted.")
    masked: Share = field(0.8, "Of those, the share that is replaced by the mask token.")
    random: Share = field(0.1, "Of those, the share that is replaced by a random token; the rest stays as it is.")
    whole_words: bool = field(True, "Hide all tokens of a word together; Chinese words are found by segmentation (extra: tasks).")

    @model_validator(mode="after")
    def _consistent(self) -> MaskedConfig:
        if self.masked + self.random > 1:
            raise ValueError(f"masked {self.masked} and random {self.random} are more than 1 together")
        return self


class SpanCorruptionConfig(Config):
    """Write the spans that were cut out of a text, with an encoder–decoder (T5, arXiv:1910.10683)."""

    name: Literal["span_corruption"] = field("span_corruption", "Spans cut out of running text.")
    share: Share = field(0.15, "Share of the tokens that is cut out.")
    mean_span: Annotated[float, Field(ge=1)] = field(3.0, "Mean length of a span.", unit="tokens")


class DenoisingConfig(Config):
    """Write a text from a noisy copy of it, with an encoder–decoder (BART, arXiv:1910.13461)."""

    name: Literal["denoising"] = field("denoising", "The clean text from a noisy copy.")
    share: Share = field(0.3, "Share of the tokens that is infilled: spans are replaced by one mask each.")
    mean_span: Annotated[float, Field(ge=1)] = field(3.5, "Mean length of a span (Poisson; a span of length 0 puts in a mask).", unit="tokens")
    permute_sentences: bool = field(True, "Shuffle the sentences of the noisy copy.")


class PrefixConfig(Config):
    """Continue a text of which a random first part is given: its tokens see each other and are not scored (arXiv:1910.10683, 1905.03197)."""

    name: Literal["prefix"] = field("prefix", "The rest of a text after a given first part.")
    shortest: Share = field(0.1, "The shortest given part, as a share of the text.")
    longest: Share = field(0.9, "The longest given part, as a share of the text.")

    @model_validator(mode="after")
    def _consistent(self) -> PrefixConfig:
        if self.shortest > self.longest:
            raise ValueError(f"shortest {self.shortest} is more than longest {self.longest}")
        return self


class FillInMiddleConfig(Config):
    """Write the middle of a text from both of its ends, with a decoder (arXiv:2207.14255)."""

    name: Literal["fill_in_middle"] = field("fill_in_middle", "The middle from both ends.")
    share: Share = field(0.5, "Share of the documents that is cut in three; the rest is learned as running text.")
    order: Literal["prefix_suffix_middle", "suffix_prefix_middle", "both"] = field("both", "In which order the parts are given.")


class InstructionConfig(Config):
    """The assistant's words in conversations."""

    name: Literal["instruction"] = field("instruction", "The assistant's turns of conversations.")


class ClassificationConfig(Config):
    """Labels or numbers for a text or a pair of texts."""

    name: Literal["classification", "multi_label", "regression"] = field("classification", "classification (one label), multi_label (any number of labels) or regression (a number; mean-squared error).")
    class_weights: Literal["none", "balanced"] | dict[str, PositiveFloat] = field("none", "Weight of each label in the loss: balanced is inverse to its frequency; or {label: weight}.")
    focal_gamma: NonNegativeFloat = field(0.0, "Focal loss: how far easy examples count less (Lin et al. 2017); 0 is cross-entropy.")
    label_smoothing: Share = field(0.0, SMOOTHING)
    threshold: Share = field(0.5, "multi_label: probability from which a label is given.")


class TaggingConfig(Config):
    """A label for stretches of a text: named entities and the like."""

    name: Literal["tagging"] = field("tagging", "Spans of a text, labelled.")
    scheme: Literal["BIO", "BIOES"] = field("BIO", "How spans are written as tags on tokens.")
    subwords: Literal["first", "all"] = field("first", "What has a tag: the first token of each word, or every token.")
    label_smoothing: Share = field(0.0, SMOOTHING)


class RelationConfig(Config):
    """The relation between two marked stretches of a text."""

    name: Literal["relation"] = field("relation", "The relation of two marked entities.")
    pooling: Literal["markers", "first"] = field("markers", "What the label is read from: the states of the two opening markers (Baldini Soares et al. 2019), or the first token. A decoder reads its last token.")
    entity_types: bool = field(True, "Write the entities' types, where the data has them, into the markers.")
    label_smoothing: Share = field(0.0, SMOOTHING)


class JointRelationConfig(Config):
    """Entities and the relations between them, in one pass."""

    name: Literal["joint_relation"] = field("joint_relation", "Entities and the relations between them.")
    relation_weight: PositiveFloat = field(1.0, "Weight of the relations' loss beside the entities'.")


class QuestionAnsweringConfig(Config):
    """The stretch of a text that answers a question."""

    name: Literal["question_answering"] = field("question_answering", "Where a context answers a question, or that it does not.")
    stride: PositiveInt = field(128, "Overlap of the windows into which a long context is cut.", unit="tokens")
    longest_answer: PositiveInt = field(64, "Longest answer given.", unit="tokens")


class TextPairsConfig(Config):
    """One text from another: translation, summaries, titles, controlled generation; encoder–decoders and decoders."""

    name: Literal["translation", "summarization", "generation"] = field("generation", "translation, summarization, or generation (title to article, keywords to text, couplets…).")
    source_language: str = field("", "translation: language of the input, such as en.")
    target_language: str = field("", "Language of the output, such as zh; metrics cut words by it. Empty: found from the text.")
    prompt: str | Auto = field("auto", "How the input is put, with {input} and the names of control columns in braces; auto: as it is for an encoder–decoder, a short frame for a decoder.")
    label_smoothing: Share = field(0.0, SMOOTHING)
    maximum_output: PositiveInt | Auto = field("auto", "Longest output; auto: what 99 % of the training outputs need.", unit="tokens")
    beams: PositiveInt = field(1, "Beams of the search when outputs are scored and predicted.", unit="beams")
    temperature: NonNegativeFloat = field(0.0, "How outputs are drawn when they are scored and predicted: 0 takes the likeliest token, which is right where one output is right; writing that has many good outputs wants 0.7 to 1.")
    top_p: Annotated[float, Field(gt=0, le=1)] = field(1.0, "Drawn from the likeliest tokens that together reach this probability.")
    run_code: bool = field(False, "generation: run each written Python program against the tests of its control column `test`, in a process with limits, and report pass@1. It executes what the model wrote.")

    @model_validator(mode="after")
    def _one_way(self) -> TextPairsConfig:
        if self.beams > 1 and self.temperature > 0:
            raise ValueError("beams above 1 search for the likeliest text; they need temperature 0")
        return self


class EmbeddingConfig(Config):
    """Vectors of texts that are near where the texts mean the same (contrastive learning)."""

    name: Literal["embedding"] = field("embedding", "Vectors by contrast: a text, its match, and what does not match.")
    pooling: Literal["mean", "first", "last", "auto"] = field("auto", "How token states become one vector; auto: mean, last for a decoder.")
    loss: Literal["auto", "contrastive", "cosent", "cosine"] = field("auto", "contrastive: a text's match against the other texts of the step (InfoNCE); cosent: the order of graded similarities; cosine: their squared error; auto: cosent for pairs with graded similarities.")
    symmetric: bool = field(False, "contrastive: also choose the text for its match, and take the mean of both directions.")
    temperature: PositiveFloat = field(0.05, "Divides the cosines before the softmax.")
    matryoshka: list[PositiveInt] = field([], "Shorter vector lengths that are trained to be of use by themselves (arXiv:2205.13147).")
    positives: PositiveInt = field(1, "The most matches of a text in one step; of more, others are taken in every epoch.")
    hard_negatives: NonNegativeInt = field(1, "The most given negatives that one example brings; of more, others are taken in every epoch.")
    query_prompt: str = field("", "Text put before every query, such as 'query: '; empty: what the model directory says.")
    document_prompt: str = field("", "Text put before every document, such as 'passage: '; empty: what the model directory says.")


class RankingConfig(Config):
    """The order of documents for a query, or the probability of a click, from the text of both."""

    name: Literal["ranking"] = field("ranking", "How well a document answers a query.")
    loss: Literal["pointwise", "pairwise", "listwise"] = field("listwise", "pointwise: each document by itself (clicks); pairwise: better above worse (RankNet); listwise: softmax over the documents of a query.")
    documents: Annotated[int, Field(ge=2)] = field(8, "The most documents of a query in one step (pairwise and listwise): the relevant ones, and others of its documents in every epoch.")
    random_negatives: NonNegativeInt | Auto = field("auto", "Documents of other queries that each query is given as irrelevant; auto: as many as there is room for where the data has no irrelevant documents, else none.")


class MultipleChoiceConfig(Config):
    """The right one of several answers."""

    name: Literal["multiple_choice"] = field("multiple_choice", "The right one of several answers.")
    scoring: Literal["auto", "head", "likelihood"] = field("auto", "head: a score read from prompt and answer; likelihood: how likely a decoder finds the answer after the prompt; auto: likelihood for a decoder, head for the rest.")
    length: Literal["none", "tokens", "characters"] = field("tokens", "likelihood: what the log-likelihood of an answer is divided by, so that long ones are not at a disadvantage.")


class PatternConfig(Config):
    """Labels as words: a pattern with a gap is put around the text, and label words are scored in it (arXiv:2001.07676).

    Works with no examples at all, and can be tuned from a handful of examples a label. Encoders fill a mask; decoders score continuations.
    """

    name: Literal["pattern"] = field("pattern", "Label words in a pattern, from few examples.")
    pattern: str = field("{text} It was {label}.", "Text with {text}, {pair} if there is one, and {label}, where the word of the label comes.")
    words: dict[str, str] = field({}, "The word of each label, such as {positive: great}; empty: the label itself.")
    zero_shot: bool = field(False, "Train nothing: the model gets the pattern as it is, and all examples measure it.")
    normalize: Literal["tokens", "none"] = field("tokens", "How a word of several tokens is scored: by the mean of their log-probabilities, or by their sum.")
    calibrate: bool = field(False, "Divide each label's probability by the one it gets for texts without content (contextual calibration, arXiv:2102.09690).")


class DistillationConfig(Config):
    """Learn from a teacher's probabilities beside the data's own labels (Hinton et al. 2015)."""

    name: Literal["distillation"] = field("distillation", "A teacher's probabilities.")
    teacher: str | list[str] = field("", "Model directory or stage of the teacher; several are averaged.", input=True)
    of: str = field("classification", "The objective whose data and head are used: causal, instruction, masked, classification, multi_label, regression or tagging.")
    settings: dict[str, Any] = field({}, "Settings of that objective, such as {label_smoothing: 0.1}.")
    temperature: PositiveFloat = field(2.0, "Softens both sides' probabilities.")
    weight: Share = field(0.5, "Share of the loss that is the teacher's; the rest is the data's.")


REFERENCE = "Model directory or stage whose answers' likelihoods are the zero of rewards; empty: the model as training starts."
ADDED = "Weight of the better answers' own cross-entropy a token, added to the loss; 0 adds none."
WEIGHT = "Weight of this reward in the sum."
COLUMN = "Column of the data that holds what is right."
Smoothing = Annotated[float, Field(ge=0, lt=0.5)]


class RewardConfig(Config):
    """A number for an answer, learned from which of two is better (Bradley and Terry): a reward model."""

    name: Literal["reward"] = field("reward", "A reward model: which of two answers is better.")
    margin: bool = field(True, "Ask for a larger difference where the data says by how much an answer is better (a margin, or two scores).")
    center_coefficient: NonNegativeFloat = field(0.0, "Weight of the squared sum of a pair's two rewards, which keeps rewards near 0 (arXiv:2312.09244 uses 0.01).")


class DPOConfig(Config):
    """Better answers made likelier than worse ones, beside a reference (DPO, arXiv:2305.18290)."""

    name: Literal["dpo"] = field("dpo", "Better answers before worse ones, beside a reference.")
    loss: Literal["sigmoid", "ipo", "hinge"] = field("sigmoid", "sigmoid: DPO; ipo: the gain a token is to be 1/(2 beta), no more (arXiv:2310.12036); hinge: none once it is 1/beta (arXiv:2305.10425).")
    beta: PositiveFloat = field(0.1, "How closely the model is held to the reference: less lets it go further. Times an answer's gain over the reference it is its reward.")
    label_smoothing: Smoothing = field(0.0, "Share of the judgements that are taken to be wrong (cDPO); sigmoid only.")
    length_normalized: bool = field(False, "Divide an answer's gain by its tokens, so that length brings no reward (ipo always does); beta is then larger, such as 2.")
    sft_weight: NonNegativeFloat = field(0.0, ADDED)
    reference: str = field("", REFERENCE, input=True)

    @model_validator(mode="after")
    def _consistent(self) -> DPOConfig:
        if self.label_smoothing and self.loss != "sigmoid":
            raise ValueError(f"label_smoothing is for loss: sigmoid, not {self.loss}")
        return self


class KTOConfig(Config):
    """Good answers made likelier and bad ones less likely, each by itself (KTO, arXiv:2402.01306)."""

    name: Literal["kto"] = field("kto", "Good and bad answers, each by itself.")
    beta: PositiveFloat = field(0.1, "How closely the model is held to the reference: less lets it go further.")
    desirable_weight: PositiveFloat | Auto = field("auto", "Weight of a good answer's loss; auto: 1, or what makes the good ones weigh as much as the bad ones where these are more.")
    undesirable_weight: PositiveFloat | Auto = field("auto", "Weight of a bad answer's loss; auto: 1, or what makes the bad ones weigh as much as the good ones where these are more.")
    reference: str = field("", REFERENCE, input=True)


class ORPOConfig(Config):
    """Better answers learned, and made likelier than worse ones, in one stage and without a reference (ORPO, arXiv:2403.07691)."""

    name: Literal["orpo"] = field("orpo", "Better answers, and their odds over worse ones.")
    beta: PositiveFloat = field(0.1, "Weight of the odds ratio beside the better answers' cross-entropy.")
    learn_prompt: bool = field(False, "Learn the prompts' words as well as the better answers', as TRL does.")


class SimPOConfig(Config):
    """Better answers made likelier a token than worse ones, by a margin, without a reference (SimPO, arXiv:2405.14734)."""

    name: Literal["simpo"] = field("simpo", "Better answers likelier a token than worse ones.")
    beta: PositiveFloat = field(2.0, "Times an answer's log-likelihood a token it is its reward.")
    gamma: NonNegativeFloat = field(1.0, "Margin by which the better answer's reward is to be higher; about half of beta.")
    label_smoothing: Smoothing = field(0.0, "Share of the judgements that are taken to be wrong (smoothed labels).")
    sft_weight: NonNegativeFloat = field(0.0, ADDED)


class AnswerRewardConfig(Config):
    """1 for the right answer, else 0: numbers by value (also 1,234, 3/4, 50 %, Chinese numerals), other answers by their letters and digits."""

    name: Literal["answer"] = field("answer", "The right answer: its number or its words.")
    weight: float = field(1.0, WEIGHT)
    column: str = field("answer", COLUMN)
    place: Literal["auto", "boxed", "last_number", "whole"] = field("auto", "Where an answer says it. boxed: in the last \\boxed{}; last_number: the last number; whole: the whole text; auto: boxed, else after words such as 'the answer is' or 答案是, else the last number or the whole text.")


class ChoiceRewardConfig(Config):
    """1 for the right letter of a multiple choice, else 0."""

    name: Literal["choice"] = field("choice", "The right letter of a multiple choice.")
    weight: float = field(1.0, WEIGHT)
    column: str = field("answer", "Column of the right letter, or of its place counted from 0.")
    letters: str = field("ABCD", "Letters that there are to choose from.", min_length=2)


class FormatRewardConfig(Config):
    """1 for an answer in which a regular expression is found, else 0."""

    name: Literal["format"] = field("format", "A form that the answer is to have.")
    weight: float = field(1.0, WEIGHT)
    pattern: str = field(..., "Regular expression (Python's; a dot matches line ends too).")
    whole: bool = field(True, "It must describe the whole answer, space around it aside; false: some part of it.")

    @model_validator(mode="after")
    def _compiles(self) -> FormatRewardConfig:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"{self.pattern!r} is no regular expression: {error}") from None
        return self


class LengthRewardConfig(Config):
    """1 for an answer whose length lies within bounds, falling to 0 outside."""

    name: Literal["length"] = field("length", "A length within bounds.")
    weight: float = field(1.0, WEIGHT)
    unit: Literal["tokens", "characters"] = field("tokens", "What is counted.")
    minimum: NonNegativeInt = field(0, "Shortest answer that is still right.")
    maximum: PositiveInt | None = field(None, "Longest answer that is still right.")
    slope: NonNegativeInt = field(0, "Over how many units outside the bounds the reward falls to 0; 0: at once.")

    @model_validator(mode="after")
    def _consistent(self) -> LengthRewardConfig:
        if self.maximum is None and not self.minimum:
            raise ValueError("give minimum or maximum")
        if self.maximum is not None and self.minimum > self.maximum:
            raise ValueError(f"minimum {self.minimum} is more than maximum {self.maximum}")
        return self


class LanguageRewardConfig(Config):
    """Share of an answer's letters that are written in a language's script."""

    name: Literal["language"] = field("language", "The language, by its letters.")
    weight: float = field(1.0, WEIGHT)
    language: Literal["zh", "en"] = field("zh", "zh: Han characters; en: Latin letters, of which five count as one.")


class JsonRewardConfig(Config):
    """1 for an answer that is valid JSON, else 0; with keys the share of them that the object has."""

    name: Literal["json"] = field("json", "Valid JSON.")
    weight: float = field(1.0, WEIGHT)
    keys: list[str] = field([], "Keys that the object is to have.")
    fenced: bool = field(True, "Also read what stands between ```json and ```.")


class ModelRewardConfig(Config):
    """The score of a reward model (the objective `reward`)."""

    name: Literal["model"] = field("model", "A reward model's score.")
    weight: float = field(1.0, WEIGHT)
    model: str = field(..., "Stage or directory of the reward model.", input=True, min_length=1)


class HarmRewardConfig(Config):
    """-1 for an answer with abuse, threats or sweeping judgements of groups of people that a list of patterns finds, else 0; with a classifier the larger
    of that and the probability of its label. It sees words, not what is meant (docs/preferences.md says what it cannot see)."""

    name: Literal["harm"] = field("harm", "A penalty for harmful or biased text.")
    weight: NonNegativeFloat = field(1.0, "Weight of the penalty in the sum.")
    patterns: bool = field(True, "Look for Luban's own patterns, English and Chinese.")
    more: list[str] = field([], "Further regular expressions that are penalised.")
    classifier: str = field("", "Stage or directory of a text classifier that judges answers as well.", input=True)
    label: str = field("toxic", "The classifier's label whose probability is the penalty.")

    @model_validator(mode="after")
    def _consistent(self) -> HarmRewardConfig:
        for pattern in self.more:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        if not (self.patterns or self.more or self.classifier):
            raise ValueError("nothing is looked for: set patterns: true, or give more or classifier")
        return self


class OwnRewardConfig(Config):
    """A function of yours, ``my_reward.py:score``: (prompts, completions, columns) to a number for each completion."""

    name: Literal["own"] = field("own", "Your own function; {name: my_reward.py:score} is short for it.")
    weight: float = field(1.0, WEIGHT)
    function: str = field(..., "Your function, my_reward.py:score.", input=True, min_length=1)


REWARDS = (AnswerRewardConfig, ChoiceRewardConfig, FormatRewardConfig, LengthRewardConfig, LanguageRewardConfig, JsonRewardConfig, ModelRewardConfig, HarmRewardConfig, OwnRewardConfig)
REWARD_NAMES = tuple(cls.model_fields["name"].default for cls in REWARDS)


def _reward_from_name(value: Any) -> Any:
    """``answer`` is short for ``{name: answer}``, and ``my_reward.py:score`` for ``{name: own, function: my_reward.py:score}``."""
    value = {"name": value} if isinstance(value, str) else value
    named = value.get("name") if isinstance(value, dict) else None
    return {**value, "name": "own", "function": named} if isinstance(named, str) and named not in REWARD_NAMES and ":" in named else value


AnyReward = Annotated[one_of("name", *REWARDS), BeforeValidator(_reward_from_name)]


class GRPOConfig(Config):
    """Answers that the model writes itself, made likelier or less likely by how much better than their group they are rewarded (GRPO, arXiv:2402.03300)."""

    name: Literal["grpo"] = field("grpo", "The model's own answers, by rewards (reinforcement learning).")
    rewards: list[AnyReward] = field(..., "What is rewarded, a list of {name, weight, …}: answer, choice, format, length, language, json, model, harm, or your own my_reward.py:score. Their weighted sum is an answer's reward.", min_length=1)
    group: Annotated[int, Field(ge=2)] = field(8, "Answers written to each prompt; a reward counts by its difference from their mean.", unit="answers")
    sampling: SamplingConfig = field(SamplingConfig(), "How the answers are written; maximum_tokens is the longest, and a part of sequence_length.")
    loss: Literal["grpo", "bnpo", "dr_grpo"] = field("grpo", "What the tokens' losses are divided by. grpo: the mean of each answer, then of the answers; bnpo: the mean of all tokens of the step (TRL's dapo too); dr_grpo: answers times maximum_tokens, so that length brings nothing (arXiv:2503.20783).")
    scale_rewards: Literal["group", "batch", "none"] = field("group", "What a difference of rewards is divided by: its group's standard deviation, the whole step's, or nothing (dr_grpo's authors).")
    beta: NonNegativeFloat = field(0.0, "Weight of the divergence from the model as training starts; above 0 it is kept beside the one that learns.")
    updates: PositiveInt = field(1, "Optimizer steps on the same answers; above 1 clip_low and clip_high hold the model near the one that wrote them.", unit="steps")
    clip_low: Annotated[float, Field(ge=0, le=1)] = field(0.2, "How far below 1 the ratio of a token's new to its old probability still counts.")
    clip_high: NonNegativeFloat = field(0.2, "How far above 1 it still counts; DAPO takes 0.28 (arXiv:2503.14476).")
    slots: PositiveInt = field(64, "Answers that are written at once; more take more memory.", role="machine")

    @model_validator(mode="after")
    def _consistent(self) -> GRPOConfig:
        if self.sampling.temperature == 0:
            raise ValueError("sampling.temperature 0 writes the same answer every time; groups need different ones")
        if not self.sampling.maximum_tokens:
            raise ValueError("sampling.maximum_tokens 0 writes no answer")
        if self.sampling.seed is not None:
            raise ValueError("sampling.seed: answers are drawn by the recipe's seed and the step")
        return self



OBJECTIVES = (
    CausalConfig, InstructionConfig, MaskedConfig, SpanCorruptionConfig, DenoisingConfig, PrefixConfig, FillInMiddleConfig,
    ClassificationConfig, TaggingConfig, RelationConfig, JointRelationConfig, QuestionAnsweringConfig, TextPairsConfig,
    EmbeddingConfig, RankingConfig, MultipleChoiceConfig, PatternConfig, DistillationConfig,
    RewardConfig, DPOConfig, KTOConfig, ORPOConfig, SimPOConfig, GRPOConfig,
)  # fmt: skip
ON_TEXT = ("causal", "masked", "span_corruption", "denoising", "prefix", "fill_in_middle")  # objectives on running text
ON_PREFERENCES = ("dpo", "kto", "orpo", "simpo", "grpo")  # objectives that go on from a chat model with judged answers
ON_CONVERSATIONS = ("instruction", "reward", *ON_PREFERENCES)
NAMES = {name: cls for cls in OBJECTIVES for name in cls.model_fields["name"].annotation.__args__}


def _from_name(value: Any) -> Any:
    """``objective: masked`` is short for ``objective: {name: masked}``."""
    if isinstance(value, str) and value not in NAMES and not is_custom(value):
        guess = nearest(value, NAMES)
        raise ValueError(f"there is no objective {value!r}" + (f"; did you mean {guess}?" if guess else f"; known are {', '.join(NAMES)}"))
    return {"name": value} if isinstance(value, str) and value in NAMES else value


AnyObjective = Annotated[one_of("name", *OBJECTIVES) | str, BeforeValidator(_from_name)]
