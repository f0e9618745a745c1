"""Augmentation below the stage: edits keep entities on their words, and every operation does what its paper says, against brute force."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban.examples.augmentation_characters import NEIGHBOURS, alike_edits, noise_edits, typo_edits
from luban.examples.augmentation_edits import NEGATIONS, Draws, Edit, Locks, apply, edited, kept_words, key_of, locked_ranges, rewritten, row_of
from luban.examples.augmentation_lexicons import Synonyms, common_characters, read_characters, read_synonyms
from luban.examples.augmentation_words import Words, deletion_edits, insertion_edits, swap_edits, synonym_edits
from luban.examples.reading import read_examples
from luban.examples.tasks import LabeledText, RelationText, Span, TaggedText, TextPair
from luban.foundation.errors import DataError
from luban.models.vectors import WordVectors

SYNONYMS = {"quick": ["fast", "rapid"], "fox": ["vixen"], "lazy": ["idle"], "房间": ["客房"], "早餐": ["早饭", "早点"]}
ENGLISH = "The quick brown fox jumps over one lazy dog near Berlin while 早餐 waits in the 房间"
TEXTS = st.text(st.sampled_from("ab cdeé,.\n不好房间早餐晴请未\u0301\ufe0f👍🏽'nt"), max_size=60)


def lookup(word):
    return SYNONYMS.get(word.lower(), ())


def words_of(text, *ranges):
    return Words(text, Locks(text, ranges), "characters")


OPERATIONS = {
    "synonym": lambda text, locks, strength, draws: synonym_edits(Words(text, locks, "characters"), strength, lambda word: ["zebra", "客房"], draws),
    "insert": lambda text, locks, strength, draws: insertion_edits(Words(text, locks, "characters"), strength, lambda word: ["zebra", "客房"], draws),
    "delete": lambda text, locks, strength, draws: deletion_edits(Words(text, locks, "characters"), strength, draws),
    "swap": lambda text, locks, strength, draws: swap_edits(Words(text, locks, "characters"), strength, draws),
    "noise": noise_edits,
    "typos": typo_edits,
    "alike": lambda text, locks, strength, draws: alike_edits(text, locks, strength, lambda letter: ["睛", "末"], draws),
}


@pytest.mark.parametrize("name", OPERATIONS)
@settings(max_examples=60, deadline=None)
@given(text=TEXTS, places=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 12)), max_size=4), strength=st.sampled_from([0.05, 0.3, 1.0]), seed=st.integers(0, 99))
def test_entities_stay_on_their_words(name, text, places, strength, seed):
    """Whatever is done, spans (overlapping ones too) spell the same, what is locked stays in order, and the same draws do the same."""
    spans = [Span(start, min(start + length, len(text)), "X") for start, length in places if start < len(text)]
    example = TaggedText(text, spans, source="a:1")
    locks = Locks(text, locked_ranges(example), kept_words(NEGATIONS))
    edits = OPERATIONS[name](text, locks, strength, Draws(seed))
    assert edits == OPERATIONS[name](text, locks, strength, Draws(seed))
    made = edited(example, "text", edits)
    assert made is not None and made.text == apply(text, edits)
    assert [made.text[span.start : span.end] for span in made.spans] == [text[span.start : span.end] for span in spans]
    kept = kept_words(NEGATIONS)
    lost = len(kept.findall(text)) - len(kept.findall(made.text))
    assert lost <= 0, "a word of negation is gone"
    if name != "insert":
        assert bool(made.text.strip()) == bool(text.strip())


def test_operations_keep_marks_with_their_letters():
    """A letter with an accent or a variation selector behind it is not parted from it."""
    text = "cafe\u0301s re\u0301sume\u0301s 葛\U000e0100城"
    for seed in range(40):
        after = apply(text, noise_edits(text, Locks(text, []), 1.0, Draws(seed)))
        assert after.count("e\u0301") == 3 and "葛\U000e0100" in after


@given(st.text(max_size=30), st.lists(st.tuples(st.integers(0, 30), st.integers(0, 4), st.text(max_size=3)), max_size=6))
def test_edits_are_made_where_they_say(text, wanted):
    edits, position = [], 0
    for start, length, new in sorted(wanted):
        if position <= start <= start + length <= len(text):
            edits.append(Edit(start, start + length, new))
            position = start + length + 1
    brute = list(text) + [""]
    for edit in edits:
        brute[edit.start : edit.end] = [""] * (edit.end - edit.start)
        brute[edit.start] = edit.text + (brute[edit.start] if edit.start == edit.end else "")
    assert apply(text, edits) == "".join(brute)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=5), st.integers(0, 25), st.integers(0, 4))
def test_locks_against_brute_force(ranges, start, length):
    ranges = [(first, first + size) for first, size in ranges]
    free = Locks("x" * 40, ranges).free(start, start + length)
    if length:
        assert free == all(not first <= place < last for place in range(start, start + length) for first, last in ranges)
    else:
        assert free == all(not first < start < last for first, last in ranges)


# --------------------------------------------------------------------------------------------------- EDA by brute force


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("strength", [0.05, 0.2, 0.5])
def test_swap_against_brute_force(seed, strength):
    spans = [(match.start(), match.end()) for match in re.finditer(r"\S", "一二三四五六七八九十")]
    text = "一二三四五六七八九十"
    brute, draws = list(text), Draws(seed)
    for _ in range(max(1, int(strength * len(spans)))):
        one, two = draws.sample(range(10), 2)
        brute[one], brute[two] = brute[two], brute[one]
    assert apply(text, swap_edits(words_of(text), strength, Draws(seed))) == "".join(brute)


@pytest.mark.parametrize("seed", range(8))
def test_deletion_against_brute_force(seed):
    draws = Draws(seed)
    words = ENGLISH.split()[:12]
    gone = [draws.unit() < 0.3 for _ in words]
    if not any(gone):
        gone[words.index(draws.choice(words))] = True
    kept = [word for word, lost in zip(words, gone, strict=True) if not lost]
    after = apply(" ".join(words), deletion_edits(words_of(" ".join(words)), 0.3, Draws(seed)))
    assert after == " ".join(kept), "one space remains between two words"


def test_deletion_leaves_words_out_as_often_as_it_says():
    text = "一" + "".join(common_characters()[100:1100])
    lost = [len(text) - len(apply(text, deletion_edits(words_of(text), 0.2, Draws(seed)))) for seed in range(20)]
    assert 0.18 < sum(lost) / 20 / len(text) < 0.22


def test_deletion_never_takes_everything():
    for seed in range(30):
        assert apply("好 的", deletion_edits(words_of("好 的"), 1.0, Draws(seed))) in ("好", "的")
        assert apply("one, two!", deletion_edits(words_of("one, two!"), 1.0, Draws(seed))) in ("one,!", ", two!")


@pytest.mark.parametrize("seed", range(8))
def test_synonyms_replace_words_by_synonyms(seed):
    text = "Quick quick fox, the LAZY dog: quick"
    edits = synonym_edits(words_of(text), 0.29, lookup, Draws(seed))  # 7 words: two of them
    after = apply(text, edits)
    pattern = r"(?P<a>Quick|Fast|Rapid) (?P<b>\w+) (?P<c>fox|vixen), the (?P<d>LAZY|IDLE) dog: (?P=b)"
    match = re.fullmatch(pattern, after)
    assert match and match["a"].lower() == match["b"]
    assert sum([match["b"] != "quick", match["c"] != "fox", match["d"] != "LAZY"]) == 2


@pytest.mark.parametrize("seed", range(8))
def test_insertion_adds_synonyms_between_words(seed):
    before = ENGLISH.split()
    words = Words(ENGLISH, Locks(ENGLISH, []))
    after = re.sub("(早餐|房间|客房|早饭|早点)", r" \1 ", apply(ENGLISH, insertion_edits(words, 0.2, lookup, Draws(seed)))).split()
    added = list(after)
    for word in before:
        added.remove(word)
    everything = {word for words in SYNONYMS.values() for word in words}
    assert len(added) == int(0.2 * len(words.spans)) == 3 and set(added) <= everything
    rest = iter(after)
    assert all(word in rest for word in before), "the other words keep their order"


def test_words_of_one_kind_or_none():
    for text in ("", "   ", "word", "好", "?!", "not"):
        locks = Locks(text, [], kept_words(NEGATIONS))
        for name, operation in OPERATIONS.items():
            if name not in ("synonym", "insert", "alike"):
                assert apply(text, operation(text, locks, 1.0, Draws(1))).strip() or not text.strip(), (name, text)
    assert deletion_edits(words_of("word"), 1.0, Draws(0)) == [] == swap_edits(words_of("word"), 1.0, Draws(0))


def test_long_texts():
    """A hundred thousand characters, changed within seconds and by the share that is asked for."""
    text = "".join(common_characters()[:1000]) * 100
    assert len(text) == 100_000
    locks = Locks(text, [(place, place + 3) for place in range(0, 100_000, 1000)])
    edits = alike_edits(text, locks, 0.1, lambda letter: ["末"], Draws(1))
    assert len(edits) == int(0.1 * 99_700)
    assert 9000 < len({edit.start for edit in swap_edits(Words(text, locks, "characters"), 0.05, Draws(1))}) <= 10_000
    assert len(apply(text, noise_edits(text, locks, 0.01, Draws(1)))) < 100_000


# -------------------------------------------------------------------------------------------------------- characters


def test_typos_are_neighbours_on_the_keyboard():
    assert set(NEIGHBOURS["s"]) == set("awedzx") and set(NEIGHBOURS["q"]) == set("wa") and set(NEIGHBOURS["g"]) == set("ftyhvb")
    assert all(letter in NEIGHBOURS[other] for letter, others in NEIGHBOURS.items() for other in others)
    text = "Wonderful STAFF, the bed is big"
    for seed in range(20):
        after = apply(text, typo_edits(text, Locks(text, []), 0.2, Draws(seed)))
        changed = [(one, two) for one, two in zip(text, after, strict=True) if one != two]
        assert len(changed) == 2 and all(two.lower() in NEIGHBOURS[one.lower()] and one.isupper() == two.isupper() for one, two in changed)
        assert [word[0] for word in after.split()] == [word[0] for word in text.split()] and after.endswith("the bed is big")


def test_noise_drops_or_swaps():
    for seed in range(30):
        after = apply("房间很干净", noise_edits("房间很干净", Locks("房间很干净", []), 0.2, Draws(seed)))
        assert (len(after) == 4 and all(letter in "房间很干净" for letter in after)) or (len(after) == 5 and sorted(after) == sorted("房间很干净"))
        assert after != "房间很干净"


# ----------------------------------------------------------------------------------------------------------- lexicons


def test_synonyms_in_three_forms(tmp_path):
    (tmp_path / "lines.txt").write_text("big, large，huge\n快乐 高兴\n# note, comment\nNew York; Big Apple\n", encoding="utf-8")
    (tmp_path / "cilin.txt").write_bytes("Aa01A01= 人 士 人物\nAa01A02# 人类 全人类\nAa01A03@ 人手\n".encode("gb18030"))
    (tmp_path / "th.dat").write_text("UTF-8\nhappy|2\n(adj)|glad|joyful (similar term)|unhappy (antonym)\n(adj)|felicitous\nsad|1\n-|sorry\n", encoding="utf-8")
    found = read_synonyms([tmp_path / "lines.txt", tmp_path / "cilin.txt", tmp_path / "th.dat"])
    assert found["big"] == ["large", "huge"] and found["huge"] == ["big", "large"] and found["new york"] == ["Big Apple"]
    assert found["士"] == ["人", "人物"] and "人类" not in found and found["高兴"] == ["快乐"]
    assert found["happy"] == ["glad", "joyful", "felicitous"] and found["sad"] == ["sorry"] and "glad" not in found
    (tmp_path / "empty.txt").write_text("alone\n", encoding="utf-8")
    with pytest.raises(DataError, match="holds no synonyms"):
        read_synonyms([tmp_path / "empty.txt"])


def test_neighbours_in_vectors_stand_in_for_synonyms(tmp_path):
    WordVectors(["cat", "kitten", "Cat", "ship", "猫"], [[1, 0], [1, 0.1], [1, 0.01], [0, 1], [0.9, 0.3]]).save(tmp_path / "v")
    (tmp_path / "s.txt").write_text("ship boat", encoding="utf-8")
    known = Synonyms([tmp_path / "s.txt"], tmp_path / "v", neighbours=2, minimum_similarity=0.9)
    assert list(known("CAT")) == ["kitten", "猫"] and list(known("ship")) == ["boat"] and list(known("dog")) == []
    assert list(Synonyms([], tmp_path / "v", minimum_similarity=0.999)("猫")) == []


def test_characters_that_look_alike(tmp_path):
    (tmp_path / "groups.txt").write_text("未末\n己、已 巳\n晴：睛情\n", encoding="utf-8")
    alike = read_characters(tmp_path / "groups.txt")
    assert alike("未") == ["末"] and alike("已") == ["己", "巳"] and alike("晴") == ["睛", "情"] and alike("睛") == () == alike("x")
    described = {"请": "⿰讠青", "清": "⿰氵青", "情": "⿰忄青", "河": "⿰氵可", "好": "⿰女子", "一": "一"}
    (tmp_path / "ids.txt").write_text("".join(f"U+{ord(one):X}\t{one}\t{parts}[G]\n" for one, parts in described.items()), encoding="utf-8")
    table = read_characters(tmp_path / "ids.txt")
    assert set(table("请")) == {"清", "情"} and table("好") == () and set(table("清")) == {"请", "情", "河"}
    rows = [f'{{"character": "{one}", "decomposition": "{parts}"}}\n' for one, parts in described.items()]
    (tmp_path / "dictionary.txt").write_text("".join(rows), encoding="utf-8")
    assert read_characters(tmp_path / "dictionary.txt")("请") == table("请")
    (tmp_path / "none.txt").write_text("hello\n", encoding="utf-8")
    with pytest.raises(DataError, match="alike"):
        read_characters(tmp_path / "none.txt")


def test_common_characters_are_the_standards_own():
    assert len(common_characters()) == 3755 and common_characters()[0] == "啊" and len(common_characters(True)) == 5401


# ----------------------------------------------------------------------------------------------------- written anew


def test_entities_are_found_again_or_the_row_is_given_up():
    example = TaggedText("Ann met Bob in Berlin. Ann left.", [Span(0, 3, "PER"), Span(8, 11, "PER"), Span(15, 21, "LOC"), Span(23, 26, "PER")])
    made = rewritten(example, "text", "In Berlin, Bob was met by Ann; then Ann went.")
    assert [(made.text[span.start : span.end], span.label) for span in made.spans] == [("Ann", "PER"), ("Bob", "PER"), ("Berlin", "LOC"), ("Ann", "PER")]
    for text in ("Ann met Bob in Berlin.", "Ann met Bob in Berlin. Ann left. Ann!", "Annual Bob in Berlin, Ann", "anna met bob", "", " "):
        assert rewritten(example, "text", text) is None, text
    mixed = TaggedText("Paris met Paris", [Span(0, 5, "PER"), Span(10, 15, "LOC")])
    assert rewritten(mixed, "text", "Paris saw Paris") is None, "which of the two is the person cannot be told"
    nested = TaggedText("New York University", [Span(0, 8, "LOC"), Span(0, 19, "ORG")])
    assert [span.end for span in rewritten(nested, "text", "at New York University").spans] == [11, 22]
    relation = RelationText("小明住在北京", Span(0, 2, "PER"), Span(4, 6, "LOC"), "live_in")
    made = rewritten(relation, "text", "北京是小明的家")
    assert (made.text[made.head.start : made.head.end], made.text[made.tail.start : made.tail.end]) == ("小明", "北京")
    assert rewritten(LabeledText("a b", "", "x"), "text", "b a").text == "b a"


def test_rows_are_read_back_as_they_were(tmp_path):
    """Every kind of example, written as rows and read by `read_examples` without a mapping, is the same again."""
    sets = {
        "classification": [LabeledText("很好 good", "不错", "好"), LabeledText("bad", "差", "坏")] * 8,
        "multi_label": [LabeledText("很好 text", "", ["a", "b"]), LabeledText("bad text", "", ["b"])] * 8,
        "regression": [LabeledText("很好 text", "", 1.5), LabeledText("bad text", "", -2.25)] * 8,
        "tagging": [TaggedText("小明在北京", [Span(0, 2, "PER"), Span(3, 5, "LOC")]), TaggedText("nothing", [])] * 8,
        "joint_relation": [TaggedText("小明在北京", [Span(0, 2, "PER"), Span(3, 5, "LOC")], [(0, 1, "in")])] * 8,
        "relation": [RelationText("Ann lives in Rome", Span(0, 3, ""), Span(13, 17, "LOC"), "in"), RelationText("Bob of Ulm", Span(0, 3, ""), Span(7, 10, ""), "of")] * 8,
        "text_pairs": [TextPair("hello world", "你好，世界"), TextPair("good night", "晚安")] * 8,
    }
    for task, examples in sets.items():
        again = read_examples([row_of(example, task, f"x.csv:{number}", "original") for number, example in enumerate(examples)], task).examples
        for example in again:
            example.source = ""
        assert again == examples, task
    assert key_of(LabeledText("A b.", "", "x")) == key_of(LabeledText("a  B", "", "y")) != key_of(LabeledText("a", "b", "x"))
