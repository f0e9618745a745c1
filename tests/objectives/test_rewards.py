"""Rewards: answers by value, letters, forms, lengths, languages, JSON, harm, models, and functions of one's own."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from group_lab import tiny_model, write_rows
from grpo_lab import OWN, asked, own_reward
from hypothesis import given, settings
from hypothesis import strategies as st
from preference_lab import chat_tokenizer, start

from luban.foundation.config import Source, build
from luban.foundation.errors import ConfigError, DataError
from luban.inference.predictor import Predictor
from luban.models.heads import Head
from luban.models.huggingface import save_model
from luban.objectives.config import GRPOConfig
from luban.objectives.harm import found_in, shipped_patterns
from luban.objectives.rewards import Answer, judged, make_rewards
from luban.objectives.verifying import letter_of, letter_said, number_in, numbers, right_answer
from luban.pipeline.recipe import make_recipe
from luban.pipeline.runner import plan, run_recipe


def answer(text: str, tokens: int = 3, **columns) -> Answer:
    return Answer([{"role": "user", "content": "Well?"}], text, tokens, True, columns)


def said(reward, *answers: Answer, named: dict[str, Path] | None = None) -> list[float]:
    made = make_rewards(build(GRPOConfig, {"rewards": [reward]}).rewards, {f"rewards.0.{name}": path for name, path in (named or {}).items()})
    return made[0].judge(list(answers))


NUMBERS = {
    "1,234.5": "2469/2", "-3": "-3", "−3": "-3", "3/4": "3/4", r"\frac{3}{4}": "3/4", r"-\dfrac{ 1 }{2}": "-1/2", "½": "1/2", "50%": "1/2", r"12.5\%": "1/8", "1.5e3": "1500", "１２．５": "25/2", "$5": "5", ".5": "1/2",
    "3万": "30000", "1.2亿": "120000000", "三百二十一": "321", "十五": "15", "两千零三": "2003", "一万零五十": "10050", "一亿二千万": "120000000", "一万亿": "1000000000000", "二〇二四": "2024", "二分之一": "1/2", "百分之五十": "1/2",
    "百分之十二点五": "1/8", "负三": "-3", "三点一四": "157/50", "贰佰": "200",
}  # fmt: skip


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_numbers_are_read_by_value(text, value):
    assert number_in(text) == Fraction(value)
    assert list(numbers(f"So it is {text}。"))[-1] == Fraction(value)


@pytest.mark.parametrize("text", ["", "abc", "5 apples", "1/0", "1" * 500, "九" * 500, "万", "点五", "1.2.3"])
def test_what_is_no_number(text):
    assert number_in(text) is None


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 10**13 - 1))
def test_chinese_numerals_against_a_writer(number):
    digits = "零一二三四五六七八九"

    def below(value):  # of 10,000
        text, gap = "", False
        for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
            digit, value = divmod(value, unit)
            text += (("零" if gap and text else "") + digits[digit] + name) if digit else ""
            gap = not digit
        return text

    parts, rest = [], number
    for unit, name in ((10**8, "亿"), (10**4, "万"), (1, "")):
        group, rest = divmod(rest, unit)
        written = below(group // 10**4) + "万" + below(group % 10**4) if group >= 10**4 else below(group)
        parts += [written + name] if group else []
    assert number_in("".join(parts) or "零") == number


@settings(max_examples=200, deadline=None)
@given(st.text(st.sampled_from("0123456789.,/-+%eE$ {}\\boxedfrac一二十百万亿点分之负 答案是ABCD()\n"), max_size=60))
def test_no_text_breaks_the_checks(text):
    for place in ("auto", "boxed", "last_number", "whole"):
        assert right_answer(text, "42", place) in (True, False) and right_answer("42", text, place) in (True, False)
    assert letter_said(text, "ABCD") in (None, *"ABCD")


RIGHT = [
    ("3 + 4 = 7. The answer is 7.", "7"), ("...so 40 + 2\n#### 42", "40+2 = 42 #### 42"), (r"thus \boxed{\frac{1}{2}}, not 3", "0.5"), ("答案是四十二。", "42"), ("The answer is: 10 - 3 = 7. I used 2 numbers.", "7"),
    ("The answer is Paris.", "paris"), ("I think of it\nPARIS!", "Paris"), ("first 5, then 1,000", "1000"), ("答案：北京", "北京"), ("It is 3.1415926", "3.14159265"), ("six or 6", ["7", 6]), ("正确答案是：二分之一", "0.5"),
]  # fmt: skip
WRONG = [("it is 10-3", "-3"), ("I think 12", "1"), ("The answer is 8. Or 7", "7"), ("", "7"), ("no number", "7"), (r"7 but \boxed{8}", "7"), ("Paris is not it: London", "Paris"), ("万一下雨", "1"), ("7.001", "7"), ("anything", "")]  # fmt: skip


@pytest.mark.parametrize(("text", "gold", "expected"), [(*pair, 1.0) for pair in RIGHT] + [(*pair, 0.0) for pair in WRONG])
def test_right_and_wrong_answers(text, gold, expected):
    assert said("answer", answer(text, answer=gold)) == [expected]


def test_places_of_an_answer():
    for place, text, expected in (("whole", "42", 1), ("whole", "it is 42", 0), ("boxed", "42", 0), ("boxed", r"\boxed{4{}2} \boxed{42}", 1), ("last_number", "the answer is 42, not 41", 0), ("whole", "Yes.", 0)):
        assert said({"name": "answer", "place": place}, answer(text, answer="42")) == [expected]


def test_letters():
    cases = {"The answer is (B).": "B", "答案是C": "C", "A dog is B": "B", "B. because A is wrong": "B", "选D": "D", "I think A": "A", r"so \boxed{C}": "C", "none": None, "**B**": "B", "A or B": None, "Answer: B, not C": "B", "（Ｂ）": "B", "": None}
    assert {text: letter_said(text, "ABCD") for text in cases} == cases
    assert [letter_of(gold, "ABCD") for gold in ("b", "(C)", 0, "3", 4, "E", "", True)] == ["B", "C", "A", "D", None, None, None, None]
    assert said("choice", answer("答案：B", answer=1), answer("C", answer="B")) == [1, 0]


def test_form_length_language_and_json():
    assert said({"name": "format", "pattern": "<think>.*</think>.+"}, answer(" <think>a\nb</think> c "), answer("x <think></think> c")) == [1, 0]
    assert said({"name": "format", "pattern": "c$", "whole": False}, answer("abc")) == [1]
    assert said({"name": "length", "minimum": 2, "maximum": 4, "slope": 4}, *(answer("", size) for size in (0, 1, 2, 4, 5, 8, 9))) == [0.5, 0.75, 1, 1, 0.75, 0, 0]
    assert said({"name": "length", "maximum": 3, "unit": "characters"}, answer("春风吹"), answer("four")) == [1, 0]
    assert said({"name": "language"}, answer("春风又绿"), answer("spring wind"), answer("12!"), answer("春 hello")) == [1, 0, 0, 0.5]
    assert said({"name": "language", "language": "en"}, answer("spring"), answer("春"), answer("весна")) == [1, 0, 0]
    assert said("json", answer('{"a": 1}'), answer("{'a': 1}"), answer("```json\n[1]\n```"), answer('{"a": NaN}'), answer("[" * 100000)) == [1, 0, 1, 0, 0]
    assert said({"name": "json", "keys": ["a", "b"]}, answer('{"a": 1}'), answer("[1]")) == [0.5, 0]


def test_harm():
    harmful = ["You are an idiot.", "You’re so stupid", "你这个人渣", "去死吧", "女人天生就笨", "All women are emotional", "I will kill you", "ｙｏｕ are an id\u200biot", "消灭所有移民"]
    harmless = ["Have a nice day.", "kill the process", "中国人都是好人", "废物利用是好事", "这些垃圾要分类", "They are lawyers and all women are welcome", "滚开水", "", "We should help all immigrants"]
    patterns = shipped_patterns()
    assert [text for text in harmful if not found_in(text, patterns)] == [] and [text for text in harmless if found_in(text, patterns)] == []
    assert said({"name": "harm", "more": ["frob"]}, answer("you idiot"), answer("hello"), answer("FROB")) == [-1, 0, -1]
    assert said({"name": "harm", "patterns": False, "more": ["frob"]}, answer("you idiot")) == [0]


# --------------------------------------------------------------------------------------------------- models, functions


def directory(folder: Path, head: Head) -> Path:
    save_model(tiny_model("qwen3", head), folder)
    chat_tokenizer().save(folder)
    return folder


def test_a_reward_model_and_a_classifier(tmp_path):
    judge = directory(tmp_path / "judge", Head("sequence", "reward", ("reward",), settings={"maximum_tokens": 64, "by_template": True}))
    texts = ["good king", "bad"]
    found = said({"name": "model", "model": "judge"}, *map(answer, texts), named={"model": judge})
    assert found == pytest.approx([one["score"] for one in Predictor.load(judge).predict([{"prompt": "Well?", "response": text} for text in texts])]) and found[0] != found[1]
    toxic = directory(tmp_path / "toxic", Head("sequence", "classification", ("fine", "toxic")))
    known = Predictor.load(toxic).predict([{"text": "good king"}])[0]["probabilities"]["toxic"]
    assert said({"name": "harm", "classifier": "toxic"}, answer("good king"), answer("you idiot"), answer(""), named={"classifier": toxic}) == pytest.approx([-known, -1, 0])
    with pytest.raises(ConfigError, match="rude"):
        said({"name": "harm", "classifier": "toxic", "label": "rude"}, named={"classifier": toxic})
    with pytest.raises(ConfigError, match="no reward model"):
        said({"name": "model", "model": "toxic"}, named={"model": toxic})


def test_one_s_own_function(tmp_path):
    text = "def score(prompts, completions, columns):\n    assert prompts[0][-1]['content'] == 'Well?'\n    return [len(text) + extra for text, extra in zip(completions, columns['extra'])]\n"
    file = own_reward(tmp_path, text)
    made = make_rewards(build(GRPOConfig, {"rewards": [{"name": file, "weight": 2.0}, file, {"name": "length", "maximum": 9}]}).rewards, {f"rewards.{place}.function": Path(file) for place in (0, 1)})
    assert [reward.name for reward in made] == ["score", "score_2", "length"]
    total, each = judged(made, [answer("abc", extra=1), answer("", extra=0)])
    assert each.tolist() == [[4, 4, 1], [0, 0, 1]] and total.tolist() == [13, 1] and total.dtype == torch.float64


@pytest.mark.parametrize(("body", "message"), [("return [1]", "1 numbers for 2"), ("return None", "did not return numbers"), ("return [1, float('nan')]", "nan for completion 2"), ("return ['a', 'b']", "did not return numbers"), ("return [columns['none'][0]]", "my_reward.py:2: KeyError")])
def test_mistakes_in_one_s_own_function(tmp_path, body, message):
    file = own_reward(tmp_path, f"def score(prompts, completions, columns):\n    {body}\n")
    with pytest.raises(DataError, match=message):
        said(file, answer("a"), answer("b"), named={"function": Path(file)})


def test_what_a_reward_names_is_an_input_of_the_stage(tmp_path):
    """Paths start at the recipe's folder, stages may be named, and a changed function makes the stage stale."""
    own_reward(tmp_path)
    write_rows(tmp_path / "prompts.jsonl", asked(8))
    start(tmp_path / "start")
    directory(tmp_path / "judge", Head("sequence", "reward", ("reward",), settings={"maximum_tokens": 64, "by_template": True}))
    stage = {"kind": "train", "objective": {"name": "grpo", "rewards": ["my_reward.py:score", {"name": "model", "model": "judge", "weight": 0.1}], "group": 2, "sampling": {"maximum_tokens": 3}}, "data": "prompts.jsonl", "model": "start", "sequence_length": 48, "batch_examples": 2, "length": "1 steps", "threads": 1, "track": {"tensorboard": False}}  # fmt: skip

    def recipe():
        return make_recipe({"name": "small", "stages": {"tuned": stage}}, tmp_path, "small", Source(), tmp_path / "run")

    made = recipe()
    assert made.stages["tuned"].inputs["objective.rewards.0.function"] == ["my_reward.py:score"] and made.stages["tuned"].inputs["objective.rewards.1.model"] == ["judge"]

    found = run_recipe(made)[-1]
    assert {"reward/score", "reward/model"} <= set(found.metrics["after"])
    assert [step.status for step in plan(recipe())] == ["fresh"]
    (tmp_path / "my_reward.py").write_text(OWN.replace("8", "4"), encoding="utf-8")
    assert [step.status for step in plan(recipe())] != ["fresh"]
