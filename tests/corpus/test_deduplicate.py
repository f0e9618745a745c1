"""MinHash against true Jaccard similarity, and the laws of duplicates and splits on planted data."""

from __future__ import annotations

import itertools
import random
import re

import numpy as np
import pytest
from corpus_helpers import curate, documents, rejects, texts, write_jsonl
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from luban.corpus.config import DeduplicateConfig, SplitConfig
from luban.corpus.deduplicate import equal_groups
from luban.corpus.minhash import band_keys, shingle_length, shingles, signature, similarity
from luban.corpus.shards import HASH
from luban.corpus.split import TEST, VALIDATION, Stratified, draw, random_split

CONFIG = DeduplicateConfig()
COUNT = CONFIG.bands * CONFIG.rows


def jaccard(one: str, other: str, length: int) -> float:
    """From sets of strings, with no hash."""
    sets = []
    for text in (one, other):
        plain = re.sub(r"[\W_]+", "", text.lower()) or text
        sets.append({plain[i : i + length] for i in range(max(1, len(plain) - length + 1))})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def random_text(rng: random.Random, size: int, chinese: bool) -> str:
    if chinese:
        return "".join(chr(rng.randrange(0x4E00, 0x5600)) for _ in range(size))
    return " ".join("".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(2, 9))) for _ in range(size // 6))


def edited(rng: random.Random, text: str, share: float) -> str:
    """The text with a share of its characters replaced."""
    letters = list(text)
    for place in rng.sample(range(len(letters)), max(1, round(share * len(letters)))):
        letters[place] = chr(rng.randrange(0x5700, 0x5800))
    return "".join(letters)


@pytest.mark.parametrize("chinese", [True, False])
def test_estimates_agree_with_true_jaccard(chinese):
    rng = random.Random(1)
    length = shingle_length(CONFIG, "zh" if chinese else "en")
    errors = []
    for share in (0.002, 0.005, 0.01, 0.02, 0.04, 0.08):
        for _ in range(12):
            one = random_text(rng, 800, chinese)
            other = edited(rng, one, share)
            true = jaccard(one, other, length)
            signatures = [signature(shingles(text, length), COUNT).astype(np.uint16) for text in (one, other)]
            estimate = float(similarity(signatures[0], signatures[1][None])[0])
            errors.append((estimate - true) / max(0.01, np.sqrt(true * (1 - true) / COUNT)))
    assert abs(np.mean(errors)) < 0.5 and np.std(errors) < 1.5 and max(map(abs, errors)) < 4.5


def test_band_collisions_follow_the_formula():
    rng = random.Random(2)
    hits, expected = 0, 0.0
    for _ in range(150):
        one = random_text(rng, 300, True)
        other = edited(rng, one, 0.06)
        true = jaccard(one, other, 3)
        keys = [band_keys(signature(shingles(text, 3), COUNT), CONFIG.bands, CONFIG.rows) for text in (one, other)]
        hits += bool((keys[0] == keys[1]).any())
        expected += 1 - (1 - true**CONFIG.rows) ** CONFIG.bands
    assert 0 < expected < 150
    assert abs(hits - expected) < 4 * np.sqrt(150 * 0.25)


def test_signatures_are_the_same_everywhere():
    assert signature(shingles("春眠不觉晓，处处闻啼鸟。", 3), 4).tolist() == signature(shingles("春眠不觉晓 处处闻啼鸟", 3), 4).tolist()
    assert signature(shingles("The quick brown fox", 8), 3).tolist() == [543384568, 449742029, 116564060]


@given(st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), max_size=60), st.integers(1, 4))
def test_equal_groups_are_those_of_a_dictionary(keys, pieces):
    cut = [np.array(keys[i::pieces], dtype=np.uint64) for i in range(pieces)]
    starts = np.concatenate([[0], np.cumsum([len(c) for c in cut])])
    flat = np.concatenate(cut).tolist()
    expected = {key: [i for i, k in enumerate(flat) if k == key] for key in flat}
    expected = sorted(group for group in expected.values() if len(group) > 1)
    for total in (1, 9_000_000):  # one partition, and three
        found = sorted(group.tolist() for group in equal_groups(lambda: zip(starts.tolist(), cut, strict=False), total))
        assert found == expected


# ------------------------------------------------------------------------------------------- planted duplicates


def planted(seed: int, count: int) -> list[str]:
    """Base texts and near-copies of them (one or two characters changed, so J is about 0.95)."""
    rng = random.Random(seed)
    bases = [random_text(rng, rng.randint(150, 250), rng.random() < 0.5) for _ in range(count)]
    return bases + [edited(rng, base, 0.005) for base in bases for _ in range(2)]


def test_planted_duplicates_are_found_and_nothing_else(tmp_path):
    found = planted(3, 60)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in [*found, found[0], found[5].upper()]])
    curate(tmp_path / "c", [path], quality="off")
    assert sorted(texts(tmp_path / "c")) == sorted(found[:60])
    reasons = [row["rule"] for row in rejects(tmp_path / "c")]
    assert reasons.count("exact_duplicate") == 2 and len(reasons) == 122


def test_kept_documents_are_what_brute_force_keeps(tmp_path):
    rng = random.Random(4)
    base = random_text(rng, 300, True)
    found = [base]
    for _ in range(40):  # a drifting chain: neighbours are alike, the ends are not
        found.append(edited(rng, found[-1], 0.02))
    kept: list[str] = []
    for text in found:
        if not any(jaccard(text, other, 3) >= 0.8 for other in kept):
            kept.append(text)
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in found])
    curate(tmp_path / "c", [path], quality="off", deduplicate={"bands": 100, "rows": 4})
    mine = texts(tmp_path / "c")
    assert abs(len(mine) - len(kept)) <= 2  # 400 hashes estimate J to 0.02
    assert all(jaccard(one, other, 3) < 0.88 for one, other in itertools.combinations(mine, 2))


def place(target) -> dict[str, str]:
    return {document.text: split for split, found in documents(target).items() for document in found}


SHARES = {"validation": 0.25, "test": 0.25}


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 10**6), st.sampled_from(["remove", "keep"]), st.randoms(use_true_random=False))
def test_adding_documents_never_moves_old_ones_and_near_duplicates_never_straddle(tmp_path_factory, seed, near, rng):
    folder = tmp_path_factory.mktemp("split")
    found = planted(seed, 12)
    rng.shuffle(found)
    old, new = found[:24], found[24:]
    config = {"quality": "off", "split": SHARES, "deduplicate": {"near": near}}
    curate(folder / "old", [write_jsonl(folder / "old.jsonl", [{"text": text} for text in old])], **config)
    curate(folder / "appended", [write_jsonl(folder / "appended.jsonl", [{"text": text} for text in old + new])], **config)
    mixed = old + new
    rng.shuffle(mixed)
    curate(folder / "mixed", [write_jsonl(folder / "mixed.jsonl", [{"text": text} for text in mixed])], **config)
    before, appended, shuffled = place(folder / "old"), place(folder / "appended"), place(folder / "mixed")
    assert before.items() <= appended.items(), "what is added at the end changed what became of old documents"
    assert all(before[text] == shuffled[text] for text in before.keys() & shuffled.keys()), "a document moved"
    for placed in (before, appended, shuffled):
        for one, other in itertools.combinations(placed, 2):
            length = 3 if ord(one[0]) > 127 else 8
            if jaccard(one, other, length) >= 0.88:  # surely above the threshold of 0.8 in the estimate too
                assert near == "keep", "two near-duplicates were kept"
                assert placed[one] == placed[other], "near-duplicates straddle a split"


def test_a_document_that_would_tie_two_splits_is_left_out_and_reported(tmp_path):
    rng = random.Random(8)
    drawn = lambda text: place_of(tmp_path, text)  # noqa: E731
    base = random_text(rng, 400, True)
    while drawn(base) != "train":
        base = random_text(rng, 400, True)
    tie = next(text for text in iter(lambda: edited(rng, base, 0.003), None) if drawn(text) == "test")
    same = next(text for text in iter(lambda: edited(rng, base, 0.003), None) if drawn(text) == "train")
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in (base, tie, same)])
    curate(tmp_path / "c", [path], quality="off", split=SHARES, deduplicate={"near": "keep"})
    assert texts(tmp_path / "c") == [base, same]
    (left_out,) = rejects(tmp_path / "c")
    assert left_out["rule"] == "would_tie_splits" and left_out["text"] == tie and "another split than test" in left_out["reason"]


def place_of(tmp_path, text: str) -> str:
    from luban.corpus.clean import text_hash
    from luban.corpus.documents import SPLITS

    value = text_hash(text)
    hashes = np.array([(int(value[:16], 16), int(value[16:], 16))], dtype=HASH)
    return SPLITS[random_split(draw(hashes, ""), SplitConfig(**SHARES))[0]]


def test_shares_and_their_growth():
    hashes = np.zeros(40_000, dtype=HASH)
    hashes["low"] = np.arange(40_000)
    drawn = draw(hashes, "")
    small, large = (random_split(drawn, SplitConfig(validation=v, test=t)) for v, t in ((0.02, 0.05), (0.04, 0.1)))
    for split, share in ((VALIDATION, 0.02), (TEST, 0.05)):
        assert abs((small == split).mean() - share) < 4 * np.sqrt(share / 40_000)
        assert (large[small == split] == split).all()
    assert abs((draw(hashes, "other") > drawn).mean() - 0.5) < 0.02


@given(st.integers(0, 1000), st.floats(0, 0.4), st.floats(0, 0.4))
def test_stratified_shares_hold_in_every_stratum(seed, validation, test):
    rng = random.Random(seed)
    sampler = Stratified(SplitConfig(validation=validation, test=test))
    counts: dict[int, list[int]] = {}
    for _ in range(400):
        stratum = rng.choice([0, 0, 0, 0, 0, 1])
        split = sampler.next(stratum, rng.random())
        seen = counts.setdefault(stratum, [0, 0, 0])
        seen[split] += 1
    for seen in counts.values():
        assert abs(seen[VALIDATION] - validation * sum(seen)) <= 4
        assert abs(seen[TEST] - test * sum(seen)) <= 4


def test_stratified_by_language_and_column(tmp_path):
    rng = random.Random(5)
    rows = [{"text": random_text(rng, 120, i % 10 == 0), "kind": f"k{i % 7}"} for i in range(300)]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    for name, value in (("language", None), ("kind", "k3")):
        split = {"validation": 0.1, "test": 0.1, "stratify_by": name}
        curate(tmp_path / name, [path], quality="off", split=split)
        found = documents(tmp_path / name)
        mine = [len([d for d in found[s] if (d.language == "zh" if value is None else d.metadata["kind"] == value)]) for s in found]
        assert abs(mine[1] - 0.1 * sum(mine)) <= 3 and abs(mine[2] - 0.1 * sum(mine)) <= 3 and mine[1] and mine[2]
    appended = write_jsonl(tmp_path / "b.jsonl", rows + [{"text": random_text(rng, 120, True), "kind": "k3"} for _ in range(50)])
    curate(tmp_path / "more", [appended], quality="off", split=split)
    assert place(tmp_path / "kind").items() <= place(tmp_path / "more").items()


def test_the_end_of_each_source_is_held_out(tmp_path):
    rng = random.Random(7)
    written = {name: [random_text(rng, 120, index % 2 == 0) for index in range(count)] for name, count in (("a", 41), ("b", 10))}
    written["b"][9] = written["a"][0]  # a copy stays with the first
    paths = [write_jsonl(tmp_path / f"{name}.jsonl", [{"text": text} for text in held]) for name, held in written.items()]
    split = {"validation": 0.1, "test": 0.2, "held_out": "last"}
    curate(tmp_path / "c", paths, quality="off", split=split, deduplicate={"exact": False, "near": "off"})
    found = {name: [d.text for d in held] for name, held in documents(tmp_path / "c").items()}
    expected: dict[str, list[str]] = {name: [] for name in found}
    for held in written.values():
        for place, text in enumerate(held):
            behind, total = sum(map(len, held[place + 1 :])), sum(map(len, held))  # characters
            expected["train" if text == written["a"][0] else "test" if behind < 0.2 * total else "validation" if behind < 0.3 * total else "train"].append(text)
    assert found == expected and all(len(held) > 2 for held in found.values())


def test_kept_copies_stay_together(tmp_path):
    rng = random.Random(6)
    found = [random_text(rng, 120, True) for _ in range(30)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in found * 3])
    curate(tmp_path / "c", [path], quality="off", split={**SHARES, "stratify_by": "language"}, deduplicate={"exact": False, "near": "off"})
    placed = {split: [d.text for d in held] for split, held in documents(tmp_path / "c").items()}
    assert sum(map(len, placed.values())) == 90
    assert not any(set(placed[a]) & set(placed[b]) for a, b in itertools.combinations(placed, 2))
