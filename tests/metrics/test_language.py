"""Loss, perplexity and bits per byte against closed forms; the bootstrap against what it must contain."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luban import __version__
from luban.metrics.language import (
    DocumentScores,
    bits_per_byte,
    bits_per_byte_difference,
    byte_lengths,
    is_within_noise,
    loss,
    perplexity,
)
from luban.metrics.score import bootstrap, signature


def test_uniform_model_has_the_closed_form():
    """A model that finds 256 bytes equally likely pays 8 bits a byte, log 256 nats, perplexity 256, without spread."""
    sizes = np.array([10, 200, 35])
    scores = DocumentScores(sizes * math.log(256), sizes, sizes)
    assert bits_per_byte(scores, "s").value == pytest.approx(8)
    assert loss(scores, "s").value == pytest.approx(math.log(256))
    assert perplexity(scores, "s").value == pytest.approx(256)
    assert bits_per_byte(scores, "s").interval == pytest.approx((8, 8))


def test_scores_weigh_documents_by_length_not_equally():
    scores = DocumentScores([100 * math.log(2), 900 * math.log(2)], [100, 100], [100, 300])
    assert bits_per_byte(scores, "s").value == pytest.approx(1000 / 400)
    assert loss(scores, "s").value == pytest.approx(1000 * math.log(2) / 200)


def test_bytes_are_utf8_of_the_raw_text():
    assert byte_lengths(["abc", "鲁班", "🙂", ""]).tolist() == [3, 6, 4, 0]


def test_interval_agrees_with_the_normal_approximation():
    random = np.random.default_rng(7)
    nats = random.gamma(50, 2, size=400)
    scores = DocumentScores(nats, np.full(400, 100), np.full(400, 100))
    low, high = bits_per_byte(scores, "s").interval
    half = 1.96 * nats.std() / math.log(2) / 100 / math.sqrt(400)
    middle = nats.mean() / math.log(2) / 100
    assert low == pytest.approx(middle - half, rel=0.01)
    assert high == pytest.approx(middle + half, rel=0.01)


def test_interval_covers_the_truth_about_95_times_in_100():
    random = np.random.default_rng(3)
    inside = 0
    for trial in range(200):
        scores = DocumentScores(random.normal(100, 30, size=80), np.full(80, 10), np.full(80, 100))
        low, high = loss(scores, "s", seed=trial).interval
        inside += low <= 10 <= high
    assert 180 <= inside <= 199


def test_paired_difference_sees_what_single_intervals_hide():
    """Documents differ widely, the gain is the same small one on each: only pairs can tell."""
    random = np.random.default_rng(1)
    nats = random.gamma(2, 200, size=60)
    sizes = np.full(60, 300)
    before, after = DocumentScores(nats, sizes, sizes), DocumentScores(nats - random.normal(3, 1, size=60), sizes, sizes)
    assert bits_per_byte(before, "s").interval[0] < bits_per_byte(after, "s").value
    difference = bits_per_byte_difference(before, after, "s")
    assert difference.value == pytest.approx(-3 / 300 / math.log(2), rel=0.1)
    assert not is_within_noise(difference)
    assert is_within_noise(bits_per_byte_difference(before, before, "s"))


def test_one_document_has_no_interval_and_a_difference_of_one_is_noise():
    one = DocumentScores([5.0], [3], [9])
    assert bits_per_byte(one, "s").interval is None
    assert is_within_noise(bits_per_byte_difference(one, DocumentScores([4.0], [3], [9]), "s"))


def test_nothing_to_score_and_unequal_documents_are_refused():
    with pytest.raises(ValueError, match="nothing to score"):
        bits_per_byte(DocumentScores([], [], []), "s")
    with pytest.raises(ValueError, match="same documents"):
        bits_per_byte_difference(DocumentScores([1.0], [1], [1]), DocumentScores([1.0], [1], [2]), "s")
    with pytest.raises(ValueError, match="token counts"):
        DocumentScores([1.0, 2.0], [1], [1, 2])


def test_nan_stays_visible():
    score = bits_per_byte(DocumentScores([math.nan, 1.0], [1, 1], [1, 1]), "s")
    assert math.isnan(score.value) and score.interval is None


def test_signature_and_text():
    text = signature(bytes="utf8", context=256, eot="yes")
    assert text == f"bytes:utf8|context:256|eot:yes|luban:{__version__}"
    score = bits_per_byte(DocumentScores([1.0, 2.0], [1, 1], [1, 2]), text)
    assert text in str(score) and "±" in str(score) and "bits/byte" in str(score)
    assert score.to_json()["interval"] == list(score.interval)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 1e4), st.integers(1, 1000), st.integers(1, 4000)), min_size=2, max_size=40))
def test_any_scores_lie_in_their_interval_range_and_repeat(rows):
    scores = DocumentScores(*map(np.array, zip(*rows, strict=True)))
    first, again = bits_per_byte(scores, "s"), bits_per_byte(scores, "s")
    assert first == again
    ratios = scores.nats / math.log(2) / scores.bytes
    assert ratios.min() - 1e-9 <= first.interval[0] <= first.interval[1] <= ratios.max() + 1e-9
    assert perplexity(scores, "s").value == pytest.approx(math.exp(min(loss(scores, "s").value, 700)))


def test_bootstrap_in_chunks_covers_many_units():
    units = np.stack([np.arange(9000.0), np.ones(9000)], axis=1)
    low, high = bootstrap(lambda sums: sums[:, 0] / sums[:, 1], units)
    assert low < 4499.5 < high and high - low < 150
