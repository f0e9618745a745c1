"""Preferences in TRL's, LLaMA-Factory's and other forms: recognised by content, mapped, split, and set aside with a reason."""

from __future__ import annotations

import json

import pytest

from luban.examples.preferences import paired, transcript, unpaired
from luban.examples.reading import read_examples, recognise_task
from luban.examples.splitting import hold_out
from luban.foundation.errors import ConfigError, DataError

ASKED = [{"role": "user", "content": "What is it?"}]
GOOD, BAD = [{"role": "assistant", "content": "Good."}], [{"role": "assistant", "content": "Bad."}]
HUMAN = "\n\nHuman: What is it?\n\nAssistant:"
FORMS = {
    "trl explicit": {"prompt": "What is it?", "chosen": "Good.", "rejected": "Bad."},
    "trl conversational": {"prompt": ASKED, "chosen": GOOD, "rejected": BAD},
    "trl implicit": {"chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD]},
    "alpaca": {"instruction": "What is it?", "input": "", "chosen": "Good.", "rejected": "Bad."},
    "sharegpt": {"conversations": [{"from": "human", "value": "What is it?"}], "chosen": {"from": "gpt", "value": "Good."}, "rejected": {"from": "gpt", "value": "Bad."}},
    "ultrafeedback": {"prompt": "What is it?", "prompt_id": "7", "chosen": [*ASKED, *GOOD], "rejected": [*ASKED, *BAD], "messages": [*ASKED, *GOOD], "score_chosen": 8.5, "score_rejected": 3.0},
    "ultrafeedback raw": {"instruction": "What is it?", "completions": [{"response": "Bad.", "overall_score": 2}, {"response": "Fair.", "overall_score": 5}, {"response": "Good.", "overall_score": 7.5}]},
    "hh": {"chosen": f"{HUMAN} Good.", "rejected": f"{HUMAN} Bad."},
    "hh with prompt": {"prompt": HUMAN, "chosen": "Good.", "rejected": "Bad."},
    "stack exchange": {"question": "What is it?", "response_j": "Good.", "response_k": "Bad."},
}
SINGLE = {
    "trl unpaired": {"prompt": "What is it?", "completion": "Good.", "label": True},
    "trl unpaired conversational": {"prompt": ASKED, "completion": GOOD, "label": True},
    "kto_tag": {"instruction": "What is it?", "input": "", "output": "Good.", "kto_tag": "true"},
    "messages": {"messages": [*ASKED, *GOOD], "label": 1},
}


def read(tmp_path, rows, **mapping):
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return read_examples([file], "preference", mapping or None)


@pytest.mark.parametrize("name", FORMS)
def test_pairs_in_every_form(tmp_path, name):
    found = read(tmp_path, [FORMS[name]])
    (example,) = found.examples
    assert (example.messages, example.chosen, example.rejected, example.label) == (ASKED, GOOD, BAD, None)
    assert example.margin == (5.5 if name.startswith("ultrafeedback") else None)
    assert not found.bad and example.source.endswith("rows.jsonl:1")
    assert recognise_task(tmp_path / "rows.jsonl")[0] == "preference"


@pytest.mark.parametrize("name", SINGLE)
def test_single_answers_in_every_form(tmp_path, name):
    (example,) = read(tmp_path, [SINGLE[name]]).examples
    assert (example.messages, example.chosen, example.rejected, example.label) == (ASKED, GOOD, None, True)
    assert recognise_task(tmp_path / "rows.jsonl")[0] == "preference"


def test_systems_tools_histories_and_longer_talks(tmp_path):
    rows = [{"system": "Be kind.", "history": [["hi", "hello"]], "instruction": "Sum", "input": "1 2", "chosen": "3", "rejected": "4", "tools": '[{"name": "add"}]'}]
    (example,) = read(tmp_path, rows).examples
    assert [message["role"] for message in example.messages] == ["system", "user", "assistant", "user"]
    assert example.messages[-1]["content"] == "Sum\n1 2" and example.tools == [{"type": "function", "function": {"name": "add"}}]
    long = f"{HUMAN} Ask more.\n\nHuman: 更多？\n\nAssistant:"
    (example,) = read(tmp_path, [{"chosen": f"{long} 好", "rejected": f"{long} 坏"}]).examples
    assert [message["content"] for message in example.messages] == ["What is it?", "Ask more.", "更多？"] and example.chosen[0]["content"] == "好"
    system = [{"role": "system", "content": "Be kind."}, *ASKED]
    (example,) = read(tmp_path, [{"prompt": "What is it?", "chosen": [*system, *GOOD], "rejected": [*system, *BAD]}]).examples
    assert example.messages == system


def test_texts_without_a_prompt_part_at_a_word(tmp_path):
    (example,) = read(tmp_path, [{"chosen": "The sky is blue", "rejected": "The sky is black"}]).examples
    assert (example.messages[0]["content"], example.chosen[0]["content"], example.rejected[0]["content"]) == ("The sky is", "blue", "black")


def test_other_names_by_mapping(tmp_path):
    rows = [{"frage": "What is it?", "a": "Good.", "b": "Bad.", "gap": 2}]
    with pytest.raises(DataError):
        read(tmp_path, rows)
    found = read(tmp_path, rows, prompt="frage", chosen="a", rejected="b", margin="gap")
    assert found.examples[0].chosen == GOOD and found.examples[0].margin == 2 and found.mapping["chosen"] == "a"
    with pytest.raises(ConfigError):
        read(tmp_path, rows, chosn="a")


def test_bad_rows_are_named(tmp_path):
    good = FORMS["trl explicit"]
    rows = [good, {**good, "rejected": "Good."}, {**good, "chosen": ""}, {**good, "prompt": " "}, {**good, "chosen": None}, {**good, "prompt": "other", "margin": "much"}, good | {"prompt": [{"role": "wizard", "content": "?"}]}]
    found = read(tmp_path, rows)
    assert len(found.examples) == 1 and [bad.line for bad in found.bad] == [2, 3, 4, 5, 6, 7]
    assert "same" in found.bad[0].reason and "empty" in found.bad[1].reason and "prompt" in found.bad[2].reason and "margin" in found.bad[4].reason and "wizard" in found.bad[5].reason
    found = read(tmp_path, [SINGLE["trl unpaired"], {**SINGLE["trl unpaired"], "label": None}])
    assert len(found.examples) == 1 and "neither good nor bad" in found.bad[0].reason


def test_a_prompt_stays_on_one_side_of_a_split(tmp_path):
    rows = [{"prompt": f"Ask {number // 3}", "chosen": f"good {number}", "rejected": f"bad {number}"} for number in range(60)]
    train, held_out = hold_out(read(tmp_path, rows).examples, 0.3, seed=1)
    sides = [{example.messages[0]["content"] for example in side} for side in (train, held_out)]
    assert held_out and not sides[0] & sides[1]
    whole = unpaired([*train, *held_out])
    assert len(whole) == 120 and len(paired(whole)[0]) == 60


def test_slices_and_pages_of_the_same(tmp_path):
    rows = [{"prompt": f"Ask {number}", "chosen": "good", "rejected": "bad"} for number in range(20)]
    read(tmp_path, rows)
    assert len(read_examples([f"{tmp_path / 'rows.jsonl'}#5"], "preference").examples) == 5


@pytest.mark.parametrize("text", ["no turns", "\n\nAssistant: I begin", "Note\n\nHuman: hi"])
def test_what_is_no_transcript(text):
    assert transcript(text) == []


def test_ratings_of_classification_are_no_preferences(tmp_path):
    file = tmp_path / "reviews.jsonl"
    file.write_text("".join(json.dumps({"question": f"q {number}", "sentence": "s", "label": number % 2}) + "\n" for number in range(20)), encoding="utf-8")
    assert "preference" not in recognise_task(file)
