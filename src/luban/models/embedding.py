"""The table of token vectors."""

from __future__ import annotations

from torch import nn


class Embedding(nn.Embedding):
    """torch's, without first values of its own: every model draws its own or reads them (base.py). Until then it is zero.

    Drawing them for a model that is built without memory, to be filled from a file, costs seconds: torch loads its compiler for it.
    """

    def reset_parameters(self) -> None:
        """Zero where there is memory: never what lay there before."""
        if not self.weight.is_meta:
            nn.init.zeros_(self.weight)
