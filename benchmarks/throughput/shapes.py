"""The two models that are measured, and what a step of each must multiply. Standard library only: every side imports it, in environments of their own."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A Llama-style decoder with a tied table, and its step: ``rows`` of ``sequence`` tokens."""

    name: str
    layers: int
    width: int
    heads: int
    feed_forward: int
    vocabulary: int
    sequence: int
    rows: int
    micro_rows: int  # of the sides that are tuned by hand

    @property
    def tokens(self) -> int:
        return self.rows * self.sequence

    @property
    def products(self) -> dict[tuple[int, int], int]:
        """(outputs, inputs) of every matrix, and how many there are."""
        found = {(self.width, self.width): 4 * self.layers}
        for pair, count in (((self.feed_forward, self.width), 2 * self.layers), ((self.width, self.feed_forward), self.layers), ((self.vocabulary, self.width), 1)):
            found[pair] = found.get(pair, 0) + count
        return found

    @property
    def flops_per_token(self) -> float:
        """6 a matrix element (forward, and backward by states and by weight), and attention's two products of the causal half: 6 · layers · width · sequence."""
        return 6.0 * sum(outputs * inputs * count for (outputs, inputs), count in self.products.items()) + 6.0 * self.layers * self.width * self.sequence


SHAPES = {
    "S": Shape("S", layers=6, width=288, heads=6, feed_forward=768, vocabulary=4096, sequence=256, rows=32, micro_rows=8),
    "M": Shape("M", layers=12, width=768, heads=12, feed_forward=2048, vocabulary=32000, sequence=512, rows=4, micro_rows=2),
    "L": Shape("L", layers=12, width=768, heads=12, feed_forward=2048, vocabulary=32000, sequence=1024, rows=32, micro_rows=16),  # for one GPU
    "XL": Shape("XL", layers=22, width=2048, heads=32, feed_forward=5632, vocabulary=32000, sequence=2048, rows=16, micro_rows=4),  # 1.1 billion, for one GPU
    "tiny": Shape("tiny", layers=2, width=64, heads=4, feed_forward=128, vocabulary=512, sequence=32, rows=4, micro_rows=2),  # to see that all sides run
}
