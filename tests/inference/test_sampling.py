"""Filters against transformers' logits processors, and drawn tokens against the distribution they are drawn from."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.generation.logits_process import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from luban.foundation.config import build
from luban.foundation.errors import ConfigError
from luban.inference.sampling import SamplingConfig, distribution, penalised, sample, uniform

CONFIGS = [
    SamplingConfig(),
    SamplingConfig(temperature=0.4),
    SamplingConfig(top_k=1),
    SamplingConfig(top_k=7, temperature=2.0),
    SamplingConfig(top_k=1000),
    SamplingConfig(top_p=0.35),
    SamplingConfig(top_p=1e-6),
    SamplingConfig(min_p=0.2),
    SamplingConfig(repetition_penalty=1.7),
    SamplingConfig(repetition_penalty=0.6, top_p=0.9),
    SamplingConfig(temperature=0.8, top_k=20, top_p=0.8, min_p=0.03, repetition_penalty=1.2),
]


def theirs(logits: torch.Tensor, ids: torch.Tensor, config: SamplingConfig) -> torch.Tensor:
    """Probabilities [1, vocabulary] as transformers' generate makes them, processors in its order."""
    chain = LogitsProcessorList()
    if config.repetition_penalty != 1:
        chain.append(RepetitionPenaltyLogitsProcessor(config.repetition_penalty))
    chain.append(TemperatureLogitsWarper(config.temperature))
    if config.top_k:
        chain.append(TopKLogitsWarper(config.top_k))
    if config.top_p < 1:
        chain.append(TopPLogitsWarper(config.top_p))
    if config.min_p > 0:
        chain.append(MinPLogitsWarper(config.min_p))
    return chain(ids, logits).softmax(-1)


def seen_mask(ids: torch.Tensor, vocabulary: int) -> torch.Tensor:
    return torch.zeros(len(ids), vocabulary, dtype=torch.bool).scatter(1, ids, True)


@pytest.mark.parametrize("spread", [0.3, 2.0, 8.0])
def test_a_mixed_batch_is_filtered_row_by_row_as_in_transformers(spread):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(len(CONFIGS), 53, generator=generator) * spread
    ids = torch.randint(0, 53, (len(CONFIGS), 9), generator=generator)
    found = distribution(penalised(logits, CONFIGS, seen_mask(ids, 53)), CONFIGS)
    for row, config in enumerate(CONFIGS):
        torch.testing.assert_close(found[row : row + 1], theirs(logits[row : row + 1], ids[row : row + 1], config), atol=1e-6, rtol=1e-5)


def test_ties_are_kept_as_in_transformers():
    logits = torch.tensor([[1.0, 3.0, 3.0, 0.0, 3.0]])
    config = SamplingConfig(top_k=2)
    torch.testing.assert_close(distribution(logits, [config]), theirs(logits, torch.tensor([[0]]), config))


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_only_possible_tokens_are_drawn(data):
    values = data.draw(st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12))
    config = SamplingConfig(
        temperature=data.draw(st.sampled_from([0.0, 0.1, 1.0, 5.0])),
        top_k=data.draw(st.integers(0, 13)),
        top_p=data.draw(st.floats(0.01, 1)),
        min_p=data.draw(st.floats(0, 1)),
    )
    logits = torch.tensor([values])
    token = int(sample(logits, [config], [data.draw(st.floats(0, 1, exclude_max=True))])[0])
    if config.temperature == 0:
        assert values[token] == max(values)
    else:
        assert distribution(logits, [config])[0, token] > 0


@pytest.mark.parametrize("config", [SamplingConfig(), SamplingConfig(temperature=0.7, top_k=6, top_p=0.9, min_p=0.02)])
def test_drawn_tokens_follow_the_distribution(config):
    """Pearson's chi-square over 20,000 draws stays below the 99.9 % point."""
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(1)) * 1.5
    expected = theirs(logits, torch.tensor([[0]]), config)[0]
    draws = 20_000
    chances = [uniform(42, index) for index in range(draws)]
    counts = torch.bincount(sample(logits.expand(draws, -1), [config] * draws, chances), minlength=12)
    possible = expected > 0
    assert not counts[~possible].any()
    statistic = float(((counts - draws * expected)[possible] ** 2 / (draws * expected)[possible]).sum())
    freedom = int(possible.sum()) - 1
    limit = freedom * (1 - 2 / (9 * freedom) + 3.09 * math.sqrt(2 / (9 * freedom))) ** 3  # Wilson and Hilferty 1931
    assert statistic < limit


def test_chances_are_uniform_and_a_function_of_seed_and_index():
    values = torch.tensor([uniform(7, index) for index in range(20_000)], dtype=torch.float64)
    assert values.min() >= 0 and values.max() < 1
    counts = torch.histc(values, 50, 0, 1)
    assert float(((counts - 400) ** 2 / 400).sum()) < 85.4  # 99.9 % point of chi-square with 49 degrees of freedom
    following = torch.corrcoef(torch.stack([values[:-1], values[1:]]))[0, 1]
    assert abs(following) < 0.03
    neighbours = torch.tensor([[uniform(seed, 0), uniform(seed + 1, 0)] for seed in range(2000)])
    assert abs(torch.corrcoef(neighbours.T)[0, 1]) < 0.08
    assert uniform(7, 3) == uniform(7, 3) == uniform(7 + 2**64, 3) != uniform(8, 3)
    assert 0 <= uniform(-5, 0) < 1


def test_splitmix64_is_the_published_one():
    """The reference outputs for seed 1234567 (https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64)."""
    from luban.inference.sampling import _mixed

    state, found = 1234567, []
    for _ in range(3):
        state = (state + 0x9E3779B97F4A7C15) % 2**64
        found.append(_mixed(state))
    assert found == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"stop": [""]}, "stop"),
        ({"max_new_tokens": 5}, "maximum_tokens"),
        ({"temprature": 1}, "did you mean temperature"),
    ],
)
def test_settings_out_of_range_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        build(SamplingConfig, values)
