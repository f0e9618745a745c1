"""The mask guard: refuses, with the reason, a data set on which a model would train well and come out broken.

Every refusal here has cost people days, with a healthy-looking loss: nothing supervised, the end of a turn never learned, answers cut off.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from luban.foundation.console import say, table, warn
from luban.foundation.errors import DataError
from luban.foundation.messages import t
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Example

# Strings that look like control tokens: <|…|>, <｜…｜>, <start_of_turn>, <s>, </s>.
_CONTROL = re.compile(r"<\|[^\s<>|]{1,40}\|>|<｜[^\s<>｜]{1,40}｜>|<(?:start|end)_of_[a-z]+>|</?s>|<(?:bos|eos)>")
LOST_SHARE = 0.2  # of the examples may lose all their answers to truncation; with more, the length is wrong, not the data


@dataclass
class GuardReport:
    """What the guard counted. Lengths are in tokens."""

    examples: int
    tokens: int
    supervised_tokens: int
    supervised_share: float
    with_end_of_turn: int
    truncated: int
    dropped: int
    unsupervised: int
    longest: int
    length_95: int
    maximum_length: int

    def show(self) -> None:
        """Print the counts."""
        rows = [
            (t("examples"), self.examples), (t("tokens"), self.tokens), (t("supervised tokens"), f"{self.supervised_tokens} ({self.supervised_share:.1%})"),
            (t("examples that learn to end a turn"), self.with_end_of_turn), (t("longer than {length} tokens, cut", length=self.maximum_length), self.truncated),
            (t("left out: their answers were cut off"), self.dropped), (t("longest example"), self.longest),
        ]  # fmt: skip
        table(t("mask guard"), ["", ""], rows)

    def plain(self) -> dict:
        return asdict(self)


def check(examples: Sequence[Example], tokenizer: Tokenizer, maximum_length: int) -> GuardReport:
    """Look at examples at full length, before they are cut to ``maximum_length`` tokens. Raises DataError with the reason."""
    if not examples:
        raise DataError("there are no examples to train on", "", "look at the rows that were set aside, and why")
    check_template(tokenizer)
    lengths = np.array([len(example.ids) for example in examples])
    learned = np.array([int((example.weights[1:] > 0).sum()) for example in examples])
    within = np.array([int((example.weights[1:maximum_length] > 0).sum()) for example in examples])
    report = GuardReport(
        examples=len(examples), tokens=int(lengths.sum()), supervised_tokens=int(learned.sum()), supervised_share=round(float(learned.sum() / max(lengths.sum(), 1)), 4),
        with_end_of_turn=sum(_learns_end(example, tokenizer) for example in examples), truncated=int((lengths > maximum_length).sum()),
        dropped=int(((learned > 0) & (within == 0)).sum()), unsupervised=int((learned == 0).sum()), longest=int(lengths.max()),
        length_95=int(np.ceil(np.quantile(lengths, 0.95))), maximum_length=maximum_length,
    )  # fmt: skip
    _check_masks(examples, tokenizer, report, learned, lengths)
    _check_truncation(examples, report)
    if report.unsupervised:
        warn("{count} of {examples} examples have nothing to learn, and are left out", count=report.unsupervised, examples=report.examples)
    if report.with_end_of_turn < report.examples - report.unsupervised:
        say("{count} examples never end a turn", count=report.examples - report.unsupervised - report.with_end_of_turn)
    return report


def _check_masks(examples: Sequence[Example], tokenizer: Tokenizer, report: GuardReport, learned: np.ndarray, lengths: np.ndarray) -> None:
    if report.supervised_tokens == 0:
        raise DataError(
            "nothing is supervised in {count} examples (the first: {source})", "no token of any answer has a weight, so the loss would be 0 and nothing would be learned",
            "check that the data has assistant messages whose weight is not 0", count=report.examples, source=examples[0].source,
        )  # fmt: skip
    if bool((learned >= lengths - 1).all()):
        raise DataError(
            "everything is supervised in all {count} examples (the first: {source})", "questions would be learned like answers: the roles were not recognised, or nothing but answers is there",
            "check the roles and the mapping of the data; plain text is for pretraining", count=report.examples, source=examples[0].source,
        )  # fmt: skip
    twice = [example.source for example in examples if _starts_twice(example, tokenizer)]
    if twice:
        raise DataError(
            "{count} examples begin with two begin-of-text tokens (the first: {source})", "the template writes one, and something adds another; models lose quality by it",
            "take the begin-of-text token out of the data or of the template", count=len(twice), source=twice[0],
        )  # fmt: skip
    if report.with_end_of_turn == 0:
        end = tokenizer.end_of_turn_id
        if end is None:
            raise DataError(
                "no example learns to end a turn", "the chat template writes no stop token after the assistant's words, so the model would never stop",
                "use a template that ends turns, such as chatml, or add the end-of-text token to this one",
            )  # fmt: skip
        padded = end == tokenizer.pad_id
        raise DataError(
            "no example learns to end a turn: {token} is never supervised",
            "it is also the pad token, and was masked as padding" if padded else "its weight is 0 wherever it follows an answer",
            "mask padding by position, not by token, or name another pad token" if padded else "check how the weights of the examples were made",
            token=tokenizer.core.id_to_token(end),
        )  # fmt: skip


def _check_truncation(examples: Sequence[Example], report: GuardReport) -> None:
    if report.dropped > LOST_SHARE * report.examples:
        raise DataError(
            "cutting to {maximum} tokens takes all answers from {count} of {examples} examples", "their questions alone are longer",
            "raise the maximum length: {length} tokens hold 95 % of the examples whole", maximum=report.maximum_length, count=report.dropped, examples=report.examples, length=report.length_95,
        )  # fmt: skip
    if report.truncated:
        warn(
            "{count} of {examples} examples are longer than {maximum} tokens and are cut; {dropped} of them lose all answers and are left out",
            count=report.truncated,
            examples=report.examples,
            maximum=report.maximum_length,
            dropped=report.dropped,
        )


def check_template(tokenizer: Tokenizer) -> None:
    """Every control token that the template writes must be one token of the vocabulary."""
    probes = [
        [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}],
        [{"role": "system", "content": "system"}, {"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}],
    ]
    for probe in probes:
        try:
            text = tokenizer.render(probe)
        except DataError:
            continue  # some templates take no system message; the first probe, if refused, is refused by every example too
        pieces = {piece: tokenizer.encode(piece, allow_special=True) for piece in dict.fromkeys(_CONTROL.findall(text))}
        broken = [piece for piece, ids in pieces.items() if len(ids) != 1]
        if broken:
            raise DataError(
                "the chat template writes {pieces}, which the tokenizer does not have", "it falls into {count} tokens, and the model would have to learn it letter by letter",
                "use the template that belongs to this tokenizer, or add the token to the tokenizer (special_tokens)",
                pieces=", ".join(broken), count=len(pieces[broken[0]]),
            )  # fmt: skip


def _learns_end(example: Example, tokenizer: Tokenizer) -> bool:
    """Whether a token that stops generation is among what is learned."""
    return bool(np.isin(example.ids[1:][example.weights[1:] > 0], tokenizer.stop_ids).any())


def _starts_twice(example: Example, tokenizer: Tokenizer) -> bool:
    token = tokenizer.special_tokens.get("bos_token")
    begin = tokenizer.core.token_to_id(token) if token else tokenizer.begin_of_text_id
    return begin is not None and len(example.ids) > 1 and example.ids[0] == begin and example.ids[1] == begin
