"""Spans to tags and back: nothing is lost where spans and tokens meet, and what does not meet is listed."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from framing_families import both
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import IOB2, IOBES, Entities

from luban.foundation.errors import DataError
from luban.tokenizer.alignment import align_spans, spans_from_tags, tag_ids, tag_names
from luban.tokenizer.framing import Framed, frame, frame_windows


@dataclass
class Marked:
    start: int
    end: int
    label: str


@pytest.fixture(scope="module")
def tokenizers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("aligned")
    return {name: both(name, folder)[1] for name in ("bert", "roberta", "t5")}


def of_offsets(*offsets: tuple[int, int]) -> Framed:
    """A frame of [special] tokens… [special] over a text that ends with the last of them."""
    spans, size = list(offsets), len(offsets)
    return Framed(
        [9, *range(size), 9], [0] * (size + 2), [(0, 0), *spans, (0, 0)], [-1, *[0] * size, -1], visible=[(0, spans[-1][1] if spans else 0)]
    )


def triples(found) -> list[tuple[int, int, str]]:
    return [(span.start, span.end, span.label) for span in found]


TEXT = "Li Wei 在北京大学 met Ann-Marie O'Neil; 王芳 works at Café Zürich."


@pytest.mark.parametrize("name", ["bert", "roberta", "t5"])
@pytest.mark.parametrize("scheme", ["BIO", "BIOES"])
def test_entities_come_back(tokenizers, name, scheme):
    spans = [Marked(TEXT.index(word), TEXT.index(word) + len(word), label) for word, label in
             [("Li Wei", "PER"), ("北京大学", "ORG"), ("Ann-Marie O'Neil", "PER"), ("王芳", "PER"), ("Café Zürich", "LOC")]]  # fmt: skip
    framed = frame(tokenizers[name], TEXT, maximum=300)
    aligned = align_spans(framed, spans, scheme=scheme)
    assert triples(spans_from_tags(framed, aligned.tags)) == [(span.start, span.end, span.label) for span in spans]
    assert aligned.misaligned == aligned.lost == aligned.cut == aligned.overlapping == []
    assert [tag == "" for tag in aligned.tags] == [part < 0 for part in framed.parts]
    names = tag_names(["PER", "ORG", "LOC"], scheme)
    ids = tag_ids(aligned.tags, names)
    assert ids[-1] == -100 and names[ids[1 if name != "t5" else 0]][0] in "BO"
    ours = get_entities([tag or "O" for tag in aligned.tags])
    assert [label for label, _, _ in ours] == ["PER", "ORG", "PER", "PER", "LOC"]
    found = spans_from_tags(framed, aligned.tags)
    assert [(label, first, last + 1) for label, first, last in ours] == [(span.label, span.first, span.last) for span in found]


def brute_force(offsets, spans, scheme):
    """Character by character: every token takes the label of the first span that holds one of its characters."""
    tags, taken = ["O"] * len(offsets), []
    for span in sorted(spans, key=lambda item: (item.start, -item.end)):
        held = [i for i, (start, end) in enumerate(offsets) if any(span.start <= c < span.end for c in range(start, end))]
        if any(set(range(span.start, span.end)) & set(range(*other)) for other in taken) or not held:
            continue
        free = [i for i in held if tags[i] == "O"]
        if not free:
            continue
        taken.append((span.start, span.end))
        for i in free:
            tags[i] = "I-" + span.label
        tags[free[0]] = "B-" + span.label
        if scheme == "BIOES":
            tags[free[-1]] = ("E-" if len(free) > 1 else "S-") + span.label
    return tags


cuts = st.lists(st.integers(0, 3), min_size=1, max_size=12)  # lengths of tokens and of the spaces between them
marks = st.lists(st.tuples(st.integers(0, 22), st.integers(0, 6), st.sampled_from("AB")), max_size=5)


def tokens_of(lengths: list[int]) -> list[tuple[int, int]]:
    place, offsets = 0, []
    for number, length in enumerate(lengths):
        if number % 2 == 0 and length:
            offsets.append((place, place + length))
        place += length
    return offsets or [(0, 1)]


@settings(max_examples=300, deadline=None)
@given(cuts, marks, st.sampled_from(["BIO", "BIOES"]))
def test_tags_are_those_of_brute_force(lengths, found, scheme):
    offsets = tokens_of(lengths)
    spans = [Marked(start, start + size, label) for start, size, label in found]
    framed = of_offsets(*offsets)
    aligned = align_spans(framed, spans, scheme=scheme)
    assert aligned.tags == ["", *brute_force(offsets, spans, scheme), ""]
    untagged = {*aligned.lost, *aligned.overlapping}
    back = spans_from_tags(framed, aligned.tags)
    assert len(back) == len(spans) - len(untagged), "every span is tagged or listed"
    for number, span in enumerate(spans):
        cut = any(start < edge < end for start, end in offsets for edge in (span.start, span.end)) and span.start < span.end
        touched = any(start < span.end and span.start < end for start, end in offsets)
        if number not in untagged:
            assert (number in aligned.misaligned) == (cut and touched)


@settings(max_examples=200, deadline=None)
@given(cuts, st.data())
def test_spans_of_whole_tokens_come_back(lengths, data):
    offsets = tokens_of(lengths)
    edges = sorted(data.draw(st.sets(st.integers(0, len(offsets)), max_size=6)))
    spans = [
        Marked(offsets[first][0], offsets[last - 1][1], data.draw(st.sampled_from("AB")))
        for first, last in zip(edges[::2], edges[1::2], strict=False)
    ]
    for scheme in ("BIO", "BIOES"):
        framed = of_offsets(*offsets)
        aligned = align_spans(framed, data.draw(st.permutations(spans)), scheme=scheme)
        assert triples(spans_from_tags(framed, aligned.tags)) == triples(spans)
        assert aligned.misaligned == aligned.lost == aligned.cut == aligned.overlapping == []


@pytest.mark.parametrize("name", ["bert", "roberta", "t5"])
def test_chinese_characters_come_back_one_by_one(tokenizers, name):
    """Byte-level tokens may be parts of a character, and T5's may be words."""

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text("白日依山尽黄河𠮷鼕ab，", min_size=2, max_size=15), st.data())
    def run(text, data):
        edges = sorted(data.draw(st.sets(st.integers(0, len(text)), max_size=6)))
        spans = [Marked(first, last, "X") for first, last in zip(edges[::2], edges[1::2], strict=False)]
        framed = frame(tokenizers[name], text, maximum=200)
        aligned = align_spans(framed, spans)
        back = triples(spans_from_tags(framed, aligned.tags))
        kept = [span for number, span in enumerate(spans) if number not in aligned.lost]
        assert len(back) == len(kept)
        for number, span in enumerate(spans):
            if number not in aligned.lost and number not in aligned.misaligned:
                assert (span.start, span.end, "X") in back
        for found, span in zip(back, kept, strict=True):
            assert found[0] < span.end and span.start < found[1]

    run()


tags = st.lists(st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "E-A", "S-A", "E-B", "S-B"]), max_size=12)


@settings(max_examples=300, deadline=None)
@given(tags)
def test_broken_tags_are_read_as_seqeval_reads_them(given_tags):
    framed = of_offsets(*[(2 * index, 2 * index + 1) for index in range(len(given_tags))])
    found = spans_from_tags(framed, ["", *given_tags, ""])
    # seqeval's lenient reader takes I and E behind any tag of the same label, and E as an end.
    assert [(span.label, span.first - 1, span.last - 2) for span in found] == get_entities(given_tags)


@settings(max_examples=200, deadline=None)
@given(tags)
def test_strict_entities_are_among_them(given_tags):
    framed = of_offsets(*[(2 * index, 2 * index + 1) for index in range(len(given_tags))])
    found = {(span.label, span.first - 1, span.last - 1) for span in spans_from_tags(framed, ["", *given_tags, ""])}
    bio = ["I" + tag[1:] if tag[0] == "E" else "B" + tag[1:] if tag[0] == "S" else tag for tag in given_tags]
    read = {(span.label, span.first - 1, span.last - 1) for span in spans_from_tags(framed, ["", *bio, ""])}
    for scheme, sequence, ours in ((IOBES, given_tags, found), (IOB2, bio, read)):
        strict = {entity.to_tuple()[1:] for entity in Entities([sequence], scheme).entities[0]}
        assert {(label, start, end) for label, start, end in strict} <= ours


def test_spans_that_cut_a_token_are_widened_or_shrunk_and_listed():
    framed = of_offsets((0, 4), (5, 9), (10, 14))
    spans = [Marked(2, 9, "A")]
    assert align_spans(framed, spans).tags[1:4] == ["B-A", "I-A", "O"]
    shrunk = align_spans(framed, spans, misaligned="shrink")
    assert shrunk.tags[1:4] == ["O", "B-A", "O"] and shrunk.misaligned == [0]
    inside = align_spans(framed, [Marked(1, 3, "A")], misaligned="shrink")
    assert inside.lost == [0] and set(inside.tags[1:4]) == {"O"}
    shared = align_spans(framed, [Marked(0, 2, "A"), Marked(2, 4, "B")])
    assert shared.misaligned == [0, 1] and shared.lost == [1] and shared.tags[1] == "B-A"


def test_overlap_and_nothing_are_listed():
    framed = of_offsets((0, 4), (5, 9), (10, 14))
    aligned = align_spans(
        framed, [Marked(5, 9, "B"), Marked(0, 9, "A"), Marked(3, 3, "C"), Marked(4, 5, "D"), Marked(99, 120, "E"), Marked(7, 2, "F")]
    )
    assert aligned.overlapping == [0] and aligned.lost == [2, 3, 4, 5] and aligned.tags[1:4] == ["B-A", "I-A", "O"]
    beyond = align_spans(framed, [Marked(-5, 4, "A"), Marked(10, 99, "B")])
    assert beyond.cut == [0, 1] and beyond.tags[1:4] == ["B-A", "O", "B-B"]


def test_windows_show_parts_of_a_span(tokenizers):
    text = "word " * 30
    span = Marked(20, 59, "A")
    windows = frame_windows(tokenizers["bert"], "who", text, maximum=20, stride=2)
    seen = [align_spans(window, [span], part=1) for window in windows]
    assert any(item.cut for item in seen) and any(item.lost for item in seen)
    for window, aligned in zip(windows, seen, strict=True):
        (left, right) = window.visible[1]
        expected = [] if right <= span.start or left >= span.end else [(max(left, span.start), min(right, span.end), "A")]
        assert triples(spans_from_tags(window, aligned.tags, part=1)) == expected
        assert aligned.tags[1] == "" and spans_from_tags(window, aligned.tags) == []
    whole = align_spans(frame(tokenizers["bert"], "who", text, maximum=500), [span], part=1)
    assert not whole.cut
    assert align_spans(frame(tokenizers["bert"], "who", maximum=20), [span], part=1).lost == [0]


def test_unknown_tags_are_told():
    with pytest.raises(DataError, match="B-NEW"):
        tag_ids(["O", "B-NEW"], tag_names(["A"]))
    assert tag_names(["B", "A", "B"]) == ["O", "B-B", "I-B", "B-A", "I-A"]
    assert tag_names(["A"], "BIOES") == ["O", "B-A", "I-A", "E-A", "S-A"]


def test_hyphens_in_labels_survive():
    framed = of_offsets((0, 1), (1, 2))
    aligned = align_spans(framed, [Marked(0, 2, "work-of-art")])
    assert triples(spans_from_tags(framed, aligned.tags)) == [(0, 2, "work-of-art")]
