"""Each fault that the guard is there for, planted; and a sound data set, passed."""

from __future__ import annotations

import numpy as np
import pytest

from luban.examples.conversations import Conversation
from luban.examples.guard import check
from luban.examples.supervised import fit_to_length, supervised_examples
from luban.foundation.errors import DataError
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Example


def chat(question="Who are you?", answer="我是鲁班。", **fields):
    return Conversation([{"role": "user", "content": question}, {"role": "assistant", "content": answer, **fields}], None, "chat.jsonl:1")


@pytest.fixture
def sound(bpe):
    return supervised_examples([chat(answer=f"answer {index}") for index in range(20)], bpe)


def changed(examples, change):
    return [Example(example.ids, change(example), example.source) for example in examples]


def test_a_sound_data_set_passes_and_is_counted(bpe, sound, capsys):
    report = check(sound, bpe, 512)
    assert report.examples == report.with_end_of_turn == 20 and report.truncated == report.dropped == report.unsupervised == 0
    assert report.tokens == sum(len(example.ids) for example in sound) and 0.1 < report.supervised_share < 0.7
    report.show()
    assert "mask guard" in capsys.readouterr().err and report.plain()["examples"] == 20


def test_nothing_supervised(bpe, sound):
    with pytest.raises(DataError, match="nothing is supervised"):
        check(changed(sound, lambda example: np.zeros_like(example.weights)), bpe, 512)
    with pytest.raises(DataError, match="nothing is supervised"):
        check(supervised_examples([chat(weight=0)], bpe), bpe, 512)


def test_everything_supervised(bpe, sound):
    with pytest.raises(DataError, match="everything is supervised"):
        check(changed(sound, lambda example: np.ones_like(example.weights)), bpe, 512)


def test_end_of_turn_never(bpe, sound):
    with pytest.raises(DataError, match=r"end a turn: <\|im_end\|> is never supervised\nwhy: its weight is 0"):
        check(changed(sound, lambda example: np.where(example.ids == bpe.end_of_turn_id, 0, example.weights)), bpe, 512)


def test_pad_is_the_end_of_turn_and_was_masked(bpe, sound):
    padded = Tokenizer(bpe.core, {**bpe.config, "pad_token": "<|im_end|>"})
    with pytest.raises(DataError, match="also the pad token"):
        check(changed(sound, lambda example: np.where(example.ids == padded.pad_id, 0, example.weights)), padded, 512)
    assert check(sound, padded, 512).with_end_of_turn == 20  # masked by position, the same pad token does no harm


def test_a_template_that_never_ends_turns(bpe):
    template = "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    tokenizer = Tokenizer(bpe.core, {**bpe.config, "chat_template": template})
    with pytest.raises(DataError, match="no stop token"):
        check(supervised_examples([chat()], tokenizer), tokenizer, 512)


def test_truncation_that_removes_the_answers(bpe):
    examples = supervised_examples([chat(question="Why? " * 100)] * 3 + [chat()] * 7, bpe)
    with pytest.raises(DataError, match="takes all answers from 3 of 10") as error:
        check(examples, bpe, 64)
    length = int(str(error.value).split("maximum length: ")[1].split()[0])
    assert check(examples, bpe, length).dropped == 0


def test_a_few_that_are_too_long_are_counted_and_left_out(bpe, capsys):
    examples = supervised_examples([chat(question="Why? " * 100)] + [chat(answer="long " * 60)] + [chat()] * 18, bpe)
    report = check(examples, bpe, 64)
    assert (report.truncated, report.dropped) == (2, 1) and "2 of 20 examples are longer than 64" in capsys.readouterr().err
    kept, dropped = fit_to_length(examples, 64)
    assert len(kept) == 19 and dropped == 1 and max(len(example.ids) for example in kept) == 64
    assert all(example.weights[1:].any() for example in kept)


def test_a_template_whose_tokens_the_tokenizer_lacks(bpe):
    template = (
        "{% for m in messages %}{{ '<|start_header_id|>' + m['role'] + '<|end_header_id|>\n\n' + m['content'] + '<|eot_id|>' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    )
    tokenizer = Tokenizer(bpe.core, {**bpe.config, "chat_template": template})
    with pytest.raises(DataError, match=r"<\|start_header_id\|>.*does not have"):
        check(supervised_examples([chat()], tokenizer), tokenizer, 512)


def test_two_begin_of_text_tokens(bpe):
    template = "{{ bos_token + bos_token }}" + bpe.chat_template
    tokenizer = Tokenizer(bpe.core, {**bpe.config, "bos_token": "<|endoftext|>", "chat_template": template})
    with pytest.raises(DataError, match="two begin-of-text"):
        check(supervised_examples([chat()], tokenizer), tokenizer, 512)


def test_no_examples(bpe):
    with pytest.raises(DataError, match="no examples"):
        check([], bpe, 512)


def test_some_examples_without_answers_are_warned_of(bpe, capsys):
    report = check(supervised_examples([chat(), chat(weight=0)], bpe), bpe, 512)
    assert report.unsupervised == 1 and "1 of 2 examples have nothing to learn" in capsys.readouterr().err


def test_conversations_that_the_template_refuses_are_set_aside_with_the_reason(bpe):
    picky = Tokenizer(
        bpe.core,
        {
            **bpe.config,
            "chat_template": "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + bpe.chat_template,
        },
    )
    system = Conversation([{"role": "system", "content": "x"}, *chat().messages], None, "chat.jsonl:7")
    bad = []
    assert len(supervised_examples([chat(), system], picky, bad)) == 1
    assert (bad[0].file, bad[0].line) == ("chat.jsonl", 7) and "no system" in bad[0].reason
    with pytest.raises(DataError, match="no system"):
        supervised_examples([system], picky, [])
