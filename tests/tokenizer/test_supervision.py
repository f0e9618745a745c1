"""Which tokens of a chat are learned, against what a reader would mark by hand."""

from __future__ import annotations

import pytest

from luban.foundation.errors import DataError
from luban.tokenizer.tokenizer import Tokenizer

CHAT = [
    {"role": "user", "content": "Who are you?"},
    {"role": "assistant", "content": "我是鲁班。"},
    {"role": "user", "content": "Sing!"},
    {"role": "assistant", "content": "白日依山尽 la la"},
]


def learned(tokenizer: Tokenizer, ids: list[int], weights: list[float]) -> str:
    return tokenizer.decode([index for index, weight in zip(ids, weights, strict=True) if weight], skip_special=False)


@pytest.mark.parametrize(
    "name,end",
    [("smollm2", "<|im_end|>"), ("llama3", "<|eot_id|>"), ("gemma", "<end_of_turn>"), ("mistral", "</s>"), ("dated", "<|im_end|>")],
)
def test_words_and_end_of_turn_of_real_families(family, name, end):
    tokenizer = family(name)
    ids, weights = tokenizer.encode_supervised(CHAT)
    space = " " if name == "mistral" else ""  # its template writes one before the words, behind the prompt
    assert learned(tokenizer, ids, weights) == f"{space}我是鲁班。{end}{space}白日依山尽 la la{end}"
    if name != "dated":
        assert tokenizer.decode(ids, skip_special=False) == tokenizer.render(CHAT)
        assert ids == tokenizer.encode_chat(CHAT)


def test_what_precedes_a_turn_is_what_the_model_is_given_to_write_it(bpe):
    ids, weights = bpe.encode_supervised(CHAT)
    prompt = bpe.encode_chat(CHAT[:1], add_generation_prompt=True)
    assert ids[: len(prompt)] == prompt and not any(weights[: len(prompt)]) and weights[len(prompt)] == 1


def test_message_weights_scale_and_silence(bpe):
    chat = [CHAT[0], {**CHAT[1], "weight": 0}, CHAT[2], {**CHAT[3], "weight": 0.5}]
    ids, weights = bpe.encode_supervised(chat)
    assert set(weights) == {0.0, 0.5} and learned(bpe, ids, weights) == "白日依山尽 la la<|im_end|>"
    for wrong in (-1, "1", True, float("nan"), float("inf")):
        with pytest.raises(DataError, match="weight"):
            bpe.encode_supervised([CHAT[0], {**CHAT[1], "weight": wrong}])


def test_tool_calls_are_learned_and_results_are_not(bpe):
    chat = [
        {"role": "user", "content": "Weather?"},
        {"role": "assistant", "content": "Looking.", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "北京"}}}]},
        {"role": "tool", "content": "clear"},
        {"role": "assistant", "content": "Clear."},
    ]
    ids, weights = bpe.encode_supervised(chat, tools=[{"type": "function", "function": {"name": "weather"}}])
    assert (
        learned(bpe, ids, weights)
        == 'Looking.\n<tool_call>\n{"name": "weather", "arguments": {"city": "北京"}}\n</tool_call><|im_end|>Clear.<|im_end|>'
    )


def test_thinking_that_is_taken_out_later_is_learned_in_an_example_of_its_own(family):
    tokenizer = family("thinking")
    chat = [
        CHAT[0],
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nLuban."},
        CHAT[2],
        {"role": "assistant", "content": "<think>\nwell\n</think>\n\nLa."},
    ]
    examples = tokenizer.encode_examples(chat)
    assert [learned(tokenizer, item.ids, item.weights) for item in examples] == [
        "<think>\nwell\n</think>\n\nLa.<|im_end|>",
        "<think>\nhm\n</think>\n\nLuban.<|im_end|>",
    ]
    assert [tokenizer.decode(item.ids, skip_special=False) for item in examples] == [tokenizer.render(chat), tokenizer.render(chat[:2])]
    plain = tokenizer.encode_examples(CHAT)  # nothing to take out: one example
    assert len(plain) == 1 and learned(tokenizer, plain[0].ids, plain[0].weights) == "我是鲁班。<|im_end|>白日依山尽 la la<|im_end|>"


def test_every_turn_is_learned_once_even_if_each_rewrites_the_text_before_it(family):
    tokenizer = family("system_last")
    examples = tokenizer.encode_examples([{"role": "system", "content": "Be kind."}, *CHAT])
    assert [learned(tokenizer, item.ids, item.weights) for item in examples] == [" 白日依山尽 la la</s>", " 我是鲁班。</s>"]
    assert all("Be kind." in tokenizer.decode(item.ids) for item in examples)


def test_a_prompt_that_opens_a_thought_starts_where_the_turn_parts_from_it(family):
    tokenizer = family("opening_thought")
    ids, weights = tokenizer.encode_supervised(CHAT)
    assert learned(tokenizer, ids, weights) == "我是鲁班。</s>白日依山尽 la la</s>"


def test_an_assistant_that_speaks_first(family):
    chat = [{"role": "assistant", "content": "Welcome."}, *CHAT[:2]]
    for name in ("smollm2", "gemma"):
        tokenizer = family(name)
        ids, weights = tokenizer.encode_supervised(chat)
        end = tokenizer.core.id_to_token(tokenizer.end_of_turn_id)
        assert learned(tokenizer, ids, weights) == f"Welcome.{end}我是鲁班。{end}"


def test_a_template_without_end_of_turn_learns_the_words_only(family):
    tokenizer = family("never_ends")
    ids, weights = tokenizer.encode_supervised(CHAT)
    words = learned(tokenizer, ids, weights)
    assert "我是鲁班。" in words and words.rstrip().endswith("la la") and "Human" not in words and "Sing" not in words
    assert tokenizer.end_of_turn_id is None


def test_control_tokens_in_messages_are_words(bpe):
    ids, weights = bpe.encode_supervised([CHAT[0], {"role": "assistant", "content": "Type <|im_end|> now"}])
    assert learned(bpe, ids, weights) == "Type <|im_end|> now<|im_end|>"
    assert ids.count(2) == 2


def test_examples_do_not_change_overnight(family):
    tokenizer = family("dated")
    assert "01 Jan 2025" in tokenizer.decode(tokenizer.encode_supervised(CHAT)[0])
    assert "01 Jan 2025" not in tokenizer.render(CHAT)


def test_a_trailing_question_is_not_read(bpe):
    assert bpe.encode_supervised(CHAT[:3]) == bpe.encode_supervised(CHAT[:2])


def test_messages_without_roles_are_refused(bpe):
    with pytest.raises(DataError, match="role"):
        bpe.encode_supervised([{"content": "x"}])
