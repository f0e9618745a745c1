"""Normalising, languages and filters, against Unicode's own tables, planted answers and brute-force counts."""

from __future__ import annotations

import gzip
import json
import unicodedata

import pytest
from corpus_helpers import DATA
from hypothesis import given
from hypothesis import strategies as st

from luban.corpus.config import NormalizeConfig
from luban.corpus.filters import NGrams, Text, fineweb, judge
from luban.corpus.language import identify
from luban.corpus.limits import LIMITS, STOP_WORDS, limits_for
from luban.corpus.normalize import normalize

ALL = NormalizeConfig()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("Q&amp;A &lt;now&gt;", "Q&A <now>"),
        ("cafÃ© au lait", "café au lait"),
        ("cafe\u0301", "café"),
        ("a\x00b\u200bc\ufeffd\x07", "abcd"),
        ("one\r\ntwo\rthree  \n\n\n\nfour", "one\ntwo\nthree\n\nfour"),
        ("a  b\t\tc\u00a0\u00a0d", "a b c d"),
        ("    indented\n        twice", "indented\n        twice"),
        ("你好，世界！（全角）“引号”：１２３", "你好，世界！（全角）“引号”：１２３"),
        ("　　段首两格。\n　　第二段。", "　　段首两格。\n　　第二段。"),
        ("half\ud800pair", "half\ufffdpair"),
        ("👨‍👩‍👧 family", "👨‍👩‍👧 family"),
        ("ﬁne", "ﬁne"),
    ],
)
def test_normalize(text, clean):
    assert normalize(text, ALL) == clean


def test_each_switch_does_its_own_part():
    off = NormalizeConfig(repair=False, unicode="off", control_characters=False, white_space=False)
    assert normalize("cafÃ©\x07  e\u0301 \n", off) == "cafÃ©\x07  e\u0301 \n"
    assert normalize("ＡＢＣ，", NormalizeConfig(unicode="NFKC")) == "ABC,"


@given(st.text())
def test_normalize_settles_and_keeps_every_letter_of_chinese(text):
    once = normalize(text, NormalizeConfig(repair=False))
    assert normalize(once, NormalizeConfig(repair=False)) == once
    assert unicodedata.is_normalized("NFC", once)
    once.encode("utf-8")
    kept = [c for c in unicodedata.normalize("NFC", text) if "\u4e00" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"]
    assert [c for c in once if "\u4e00" <= c <= "\u9fff" or "\uff00" <= c <= "\uffef"] == kept


@pytest.mark.parametrize(
    ("text", "language"),
    [
        ("The quick brown fox jumps over the lazy dog and runs away from the farm.", "en"),
        ("Der schnelle braune Fuchs springt über den faulen Hund und läuft davon.", "de"),
        ("Le renard brun saute par-dessus le chien paresseux et puis il s'en va.", "fr"),
        ("寥落古行宫，宫花寂寞红。", "zh"),
        ("用 Python 写一个函数，读取 config.yaml 里的参数。", "zh"),
        ("吾輩は猫である。名前はまだ無い。", "ja"),
        ("나는 학교에 갑니다.", "ko"),
        ("สวัสดีครับ ผมชื่อสมชาย", "th"),
        ("Съешь же ещё этих мягких французских булок да выпей чаю.", "ru"),
        ("42 + 17 = 59", "und"),
        ("", "und"),
        ("ok", "und"),
    ],
)
def test_language(text, language):
    assert identify(text) == language


def test_the_shipped_texts_have_the_languages_they_are_in():
    poems = [json.loads(line)["text"] for line in gzip.decompress((DATA / "poems.jsonl.gz").read_bytes()).split(b"\n")[:300]]
    assert {identify(poem) for poem in poems} == {"zh"}
    plays = (DATA / "shakespeare.txt").read_text(encoding="utf-8")
    assert {identify(plays[start : start + 2000]) for start in range(0, 200_000, 2000)} == {"en"}


# ------------------------------------------------------------------------------------------------- the filters

GOOD = (
    "The history of the lighthouse begins with a fire on a hill that sailors could see from the open sea at night. "
    "Later the fire was moved into a tower, and people who lived nearby had to carry wood up the stairs every evening. "
    "With the invention of the lens in the nineteenth century, a small lamp was enough to be seen for twenty miles.\n"
    "Keepers wrote down the weather, the ships that passed and the oil that they burned; some of these books survive. "
    "Today most towers have been given to museums or to families who have turned them into homes with a view.\n"
)
GOOD_CHINESE = (
    "灯塔的历史始于山顶上的一堆火，水手在夜里从远海就能看见。后来火被移进塔里，住在附近的人每天傍晚都要把木柴背上楼梯。"
    "十九世纪发明了透镜以后，一盏小灯就足以照亮二十海里。\n守塔人记下天气、经过的船只和烧掉的灯油，其中一些本子保存到了现在。"
    "如今，大多数灯塔已经交给博物馆，或者被改成了能看海景的住宅。\n"
)


@pytest.mark.parametrize(("text", "language"), [(GOOD, "en"), (GOOD_CHINESE, "zh")])
def test_good_prose_passes_the_web_rules(text, language):
    assert judge(text, language, limits_for("web", language, {})) is True


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("Too short to keep, with the words of it.", "gopher_quality: words 9 < 50"),
        ("a b c d e f " * 20, "gopher_quality: mean_word_length 1 < 3"),
        (GOOD + "#... " * 60, "gopher_quality: symbols_per_word"),
        ("\n".join("- " + line for line in GOOD.replace("\n", " ").split(". ")), "gopher_quality: bullet_lines 1 > 0.9"),
        (GOOD.replace(".", "...\n"), "gopher_quality: ellipsis_lines"),
        ("1234 5678 9012 " * 30 + GOOD[:200], "gopher_quality: alphabetic_words"),
        (
            "Lorries carry goods. " * 3 + "Wagons hauled timber northwards. Farmers sold barley, hops, wool, oats. " + " ".join(f"village{i} market{i}" for i in range(40)),
            "gopher_quality: stop_words 0 < 2",
        ),
        (GOOD + "the same line again and again\n" * 4, "gopher_repetition: duplicate_lines"),
        (GOOD.replace("\n", " ") + "bright lamp. " * 25, "gopher_repetition: top_2gram"),
        (GOOD.replace("\n", " ") * 2, "gopher_repetition: duplicate_5gram"),
        (GOOD + "function() { return }", "c4: curly_brackets 1 > 0"),
        (GOOD + "Lorem ipsum dolor sit amet.", "c4: lorem_ipsum 1 > 0"),
        (GOOD.replace(".", ",").replace(";", ","), "c4: sentences 0 < 3"),
    ],
)
def test_each_rule_catches_what_it_is_for(text, reason):
    verdict = judge(text, "en", limits_for("web", "en", {}))
    assert verdict is not True and verdict[1].startswith(reason), verdict


def test_fineweb_rules_on_lines():
    prose = " ".join(GOOD.split()).replace(".", "").replace(";", "").split(" ")
    unpunctuated = "\n".join(" ".join(prose[i : i + 8]) for i in range(0, 96, 8)).replace(",", "")
    short = "\n".join(" ".join(prose[i : i + 4]) + "." for i in range(0, 96, 4))
    listed = "\n".join(f"{word}." for word in dict.fromkeys(prose) if len(word) < 40)
    limits = limits_for("web", "en", {})
    for text, reason in ((unpunctuated, "punctuated_lines 0 < 0.12"), (short, "short_lines"), (listed, "newlines_per_word")):
        only = {name: limit for name, limit in limits.items() if name.endswith(reason.split(" ")[0])}
        verdict = fineweb(Text(text, "en"), only)
        assert verdict is not True and verdict[1].startswith(reason), verdict
    assert fineweb(Text(GOOD, "en"), limits) is True


def test_english_limits_would_reject_chinese_and_chinese_ones_keep_it():
    verdict = judge(GOOD_CHINESE, "en", limits_for("web", "en", {}))
    assert verdict is not True
    assert judge(GOOD_CHINESE, "zh", limits_for("web", "zh", {})) is True


def test_prose_rules_keep_the_shipped_poems_and_plays_that_web_rules_reject():
    poems = [json.loads(line)["text"] for line in gzip.decompress((DATA / "poems.jsonl.gz").read_bytes()).split(b"\n")[:200]]
    plays = (DATA / "shakespeare.txt").read_text(encoding="utf-8")
    blocks = [plays[start : start + 2000] for start in range(0, 100_000, 2000)]
    for texts, language in ((poems, "zh"), (blocks, "en")):
        assert all(judge(text, language, limits_for("prose", language, {})) is True for text in texts)
        rejected = sum(judge(text, language, limits_for("web", language, {})) is not True for text in texts)
        assert rejected > len(texts) / 2


def test_prose_rules_catch_damage():
    for text in ("buy now cheap pills here " * 200, "\x25\x26 1234 ;; 99 !! 5 6 7 8 9 () [] <> == 77" * 5):
        assert judge(text, "en", limits_for("prose", "en", {})) is not True


def test_overrides_per_language_and_switching_off():
    limits = limits_for("web", "zh", {"*": {"minimum_words": 5}, "zh": {"minimum_stop_words": None, "maximum_words": 9}})
    assert limits["minimum_words"] == 5 and "minimum_stop_words" not in limits and limits["maximum_words"] == 9
    assert limits_for("off", "en", {}) == {}
    assert set(limits_for("web", "en", {})) == set(LIMITS)
    assert len(STOP_WORDS["zh"]) == 22  # as FineWeb-2 lists them


def test_words_of_chinese_are_characters():
    text = Text("我用GPT4写诗，not 3次。", "zh")
    assert text.tokens == ["我", "用", "GPT4", "写", "诗", "，", "not", "3", "次", "。"]
    assert text.words == ["我", "用", "GPT4", "写", "诗", "not", "3", "次"]


@given(st.lists(st.sampled_from(["a", "bb", "ccc", "日"]), max_size=60), st.integers(2, 10))
def test_ngram_shares_equal_a_brute_force_count(words, n):
    grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
    total = max(1, sum(map(len, words)))
    covered = set()
    for i, gram in enumerate(grams):
        if gram in grams[:i]:
            covered.update(range(i, i + n))
    counted = NGrams(words)
    assert counted.duplicate(n) == pytest.approx(sum(len(words[i]) for i in covered) / total)
    most = max((grams.count(gram) for gram in grams), default=0)
    expected = max((sum(map(len, gram)) * most for gram in grams if grams.count(gram) == most), default=0) / total if most > 1 else 0
    assert counted.top(n) == pytest.approx(min(1, expected))
