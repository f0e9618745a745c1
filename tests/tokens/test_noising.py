"""Noise: numbers with the right distributions, drawn by position alone; rows taken apart and put together."""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats

from luban.tokens.batch import Batch
from luban.tokens.noising import Noise, Transformed, next_tokens, packed, paired, pieces_of


def test_numbers_are_uniform():
    chances = Noise(1, 2).uniform(20_000)
    assert stats.kstest(chances, "uniform").pvalue > 0.01
    assert ((chances >= 0) & (chances < 1)).all()
    assert stats.chisquare(np.bincount(Noise(3).below(7, 14_000), minlength=7)).pvalue > 0.01


def test_poisson_is_poisson():
    drawn = Noise(5).poisson(3.5, 20_000)
    found = np.bincount(np.minimum(drawn, 12), minlength=13)
    expected = np.append(stats.poisson.pmf(range(12), 3.5), stats.poisson.sf(11, 3.5)) * len(drawn)
    assert stats.chisquare(found, expected).pvalue > 0.01


def test_a_composition_is_any_of_all_alike():
    noise = Noise(9)
    drawn = [tuple(noise.composition(6, 3)) for _ in range(6000)]
    every = sorted({(a, b, 6 - a - b) for a in range(1, 5) for b in range(1, 6 - a)})
    assert sorted(set(drawn)) == every
    assert stats.chisquare([drawn.count(one) for one in every]).pvalue > 0.01


def test_a_rounded_number_is_right_on_the_mean():
    noise = Noise(4)
    drawn = [noise.rounded(2.3) for _ in range(5000)]
    assert set(drawn) == {2, 3} and abs(np.mean(drawn) - 2.3) < 0.03


def test_keys_and_seeds_give_other_numbers():
    assert Noise(1, 2).chance() == Noise(1, 2).chance()
    assert len({Noise(*key).chance() for key in [(1, 2), (2, 1), (1, 2, 1), (-1,), (1,)]}) == 5


class Counting:
    """A loader whose rows say which they are."""

    epoch_steps = 3

    def step(self, index: int, rank: int = 0, ranks: int = 1) -> Batch:
        rows = 4 // ranks
        numbers = torch.arange(index * 4 + rank * rows, index * 4 + (rank + 1) * rows)[:, None]
        return Batch(numbers, numbers, torch.ones(rows, 1), torch.zeros_like(numbers), None)

    def pass_once(self):
        return (self.step(index) for index in range(3))


def drawn(batch, noises):
    return Batch(batch.inputs, batch.targets, torch.tensor([[noise.chance()] for noise in noises]), batch.positions, None)


def test_noise_follows_the_row_however_it_is_asked_for():
    loader = Transformed(Counting(), drawn, seed=3)
    whole = [loader.step(index).weights for index in (0, 1, 7)]
    assert all(torch.equal(loader.step(index).weights, known) for index, known in zip((7, 1, 0), reversed(whole), strict=True))
    shared = torch.cat([loader.step(7, rank, 2).weights for rank in (0, 1)])
    assert torch.equal(shared, whole[2])
    assert len(torch.cat(whole).unique()) == 12
    once, again = torch.cat([batch.weights for batch in loader.pass_once()]), torch.cat([batch.weights for batch in loader.pass_once()])
    assert torch.equal(once, again) and len(once.unique()) == 12 and not torch.equal(once[:4], whole[0])
    assert not torch.equal(Transformed(Counting(), drawn, seed=4).step(0).weights, whole[0])
    assert loader.epoch_steps == 3


def test_rows_come_apart_as_they_were_put_together():
    rows = [[np.array([5, 6, 7]), np.array([8])], [np.array([9, 10])], []]
    like = Batch(*[torch.zeros(3, 1)] * 4, None, ["a", "b", "c"], [2, 1, 0])
    batch = packed(rows, like, pad_id=0, width=6)
    assert [[piece.tolist() for piece in row] for row in pieces_of(batch)] == [[[5, 6, 7], [8]], [[9, 10]], []]
    assert batch.positions[0].tolist() == [0, 1, 2, 0, 0, 0]
    following = next_tokens(batch)
    assert following.weights.tolist() == [[1, 1, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0], [0] * 6]
    assert following.targets[0, :2].tolist() == [6, 7]


def test_pairs_are_shifted_and_keep_to_themselves():
    rows = [[(np.array([1, 2]), np.array([3, 4, 5])), (np.array([6]), np.array([7]))], [(np.array([8]), np.array([9]))]]
    like = Batch(*[torch.zeros(2, 1)] * 4, None, ["a", "b", "c"], [2, 1])
    batch = paired(rows, like, pad_id=0, start_id=99)
    assert batch.inputs[0, :4].tolist() == [99, 3, 4, 99] and batch.targets[0, :4].tolist() == [3, 4, 5, 7]
    assert batch.source[0, :3].tolist() == [1, 2, 6] and batch.source_segments[0, :4].tolist() == [0, 0, 1, -1]
    assert batch.segments[1].tolist() == [0] + [-1] * 7 and batch.weights.sum() == 5
