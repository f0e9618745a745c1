"""Homophones: characters that pypinyin reads alike, as they are read where they stand."""

import csv
import json

import pypinyin

import luban
from luban.examples.augmentation_characters import alike_edits
from luban.examples.augmentation_edits import Draws, Locks, apply
from luban.examples.augmentation_lexicons import Homophones, common_characters

TEXT = "银行的行长步行去了，ABC 的房间很干净！"


def test_readings_stand_one_for_each_character():
    homophones = Homophones()
    readings = homophones.readings(TEXT)
    assert len(readings) == len(TEXT) and readings[:4] == ["yin2", "hang2", "de", "hang2"] and readings[6] == "xing2" and readings[4] == "zhang3"
    assert [reading for reading, letter in zip(readings, TEXT, strict=True) if letter in "ABC ，！"] == [""] * 6
    odd = "a好\U0002a6a5\U000e0100吗é\n〇ㄅか"
    assert len(homophones.readings(odd)) == len(odd) and homophones.readings("") == []


def test_replacements_sound_the_same():
    """An independent look at single readings: what is put in has the reading that the text's phrase gives to what was there."""
    homophones = Homophones()
    readings = homophones.readings(TEXT)
    for seed in range(10):
        after = apply(TEXT, alike_edits(TEXT, Locks(TEXT, [(0, 2)]), 0.5, homophones, Draws(seed)))
        changed = [(place, letter) for place, letter in enumerate(after) if letter != TEXT[place]]
        assert changed and after[:2] == "银行" and len(after) == len(TEXT)
        for place, letter in changed:
            assert pypinyin.pinyin(letter, style=pypinyin.Style.TONE3)[0][0] == readings[place] and letter in common_characters()


def test_tones_may_differ():
    strict, loose = (Homophones(tones).alike("妈")[0] for tones in (True, False))
    assert "马" in loose and "马" not in strict and set(strict) <= set(loose)


def test_traditional_text_stays_traditional():
    traditional = {letter for letters in Homophones().alike("銀行經理說話") for letter in letters}
    assert traditional <= set(common_characters(True)) and traditional - set(common_characters())


def test_long_texts_and_the_verb(tmp_path):
    long = "我们在银行门口等了很久，" * 1500
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream).writerows([("text", "label"), (long, "a"), ("早餐很丰富", "b"), ("no Chinese", "b")])
    made = luban.augment(tmp_path / "t.csv", out=tmp_path / "out", eda={"copies": 0}, homophones={"copies": 1, "strength": 0.2})
    rows = [json.loads(line) for line in (made.path / "examples.jsonl").read_text(encoding="utf-8").split("\n")[3:-1]]
    assert [row["source"] for row in rows] == ["t.csv:2", "t.csv:3"] and len(rows[0]["text"]) == len(long)
    share = sum(one != two for one, two in zip(rows[0]["text"], long, strict=True)) / len(long)
    assert 0.05 < share <= 0.2
