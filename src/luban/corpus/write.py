"""Writing one unit's documents into their splits and what was left out into the rejects, with the figures for the card."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from luban.corpus import decide
from luban.corpus.deduplicate import EXACT, KEPT, NEAR, TIE
from luban.corpus.documents import SPLITS
from luban.corpus.filters import RULES
from luban.corpus.plan import Plan
from luban.corpus.shards import HASH, Reject, UnitFiles, read_rejects, reject_table, write_table, write_whole

_RULES = {EXACT: "exact_duplicate", NEAR: "near_duplicate", TIE: "would_tie_splits"}
EXAMPLES, BAD_LINES = 3, 20  # that the card shows


@dataclass
class Writer:
    """What one process needs to write units; ``starts`` numbers the first document of each."""

    working: Path
    target: Path
    starts: np.ndarray
    held: dict[int, list[str]] = field(default_factory=dict)

    @classmethod
    def load(cls, working: Path) -> Writer:
        units = len(Plan.load(working / "plan.json").units)
        counts = [UnitFiles(working, number).path("hashes").stat().st_size // HASH.itemsize for number in range(units)]
        return cls(working, working.parent, np.concatenate([[0], np.cumsum(counts)]).astype(np.int64))

    def write(self, number: int) -> None:
        """Make the parquet files of one unit; its summary comes last and says that they are whole."""
        files = UnitFiles(self.working, number)
        table = pq.read_table(files.path("documents"), use_threads=False)
        made = decide.load(self.working, int(self.starts[number]), table.num_rows)
        rejects = read_rejects(files.path("rejects"))
        for row in np.flatnonzero(made.fate != KEPT).tolist():
            rejects.append(self._duplicate(table, row, int(made.fate[row]), int(made.other[row]), float(made.similar[row]), int(made.split[row])))
        summary: dict[str, Any] = {"splits": {}, "languages": {}, "lengths": {}, "rejected": summarise(rejects)}
        for index, split in enumerate(SPLITS):
            chosen = table.filter(pa.array((made.fate == KEPT) & (made.split == index)))
            summary["splits"][split] = _figures(chosen, summary["languages"], summary["lengths"])
            if chosen.num_rows:
                write_table(self.target / "documents" / split / f"{number:05d}.parquet", chosen, self.working)
        if rejects:
            write_table(self.target / "rejects" / f"{number:05d}.parquet", reject_table(rejects), self.working)
        write_whole(files.path("written.json"), json.dumps(summary).encode())

    def _duplicate(self, table: pa.Table, row: int, fate: int, other: int, similar: float, split: int) -> Reject:
        unit = int(np.searchsorted(self.starts, other, side="right")) - 1
        original = self._sources(unit)[other - int(self.starts[unit])]
        reason = f"the same text as {original}" if fate == EXACT else f"similarity {similar:.2f} to {original}"
        if fate == TIE:
            reason += f", which lies in another split than {SPLITS[split]}"
        values = {name: table[name][row].as_py() for name in ("source", "language", "text")}
        return Reject(values["source"], _RULES[fate], reason, values["language"], values["text"])

    def _sources(self, unit: int) -> list[str]:
        """Where each document of a unit stood; those of the last few units asked for are held."""
        if unit not in self.held:
            if len(self.held) >= 16:
                self.held.pop(next(iter(self.held)))
            self.held[unit] = pq.read_table(UnitFiles(self.working, unit).path("documents"), columns=["source"], use_threads=False)["source"].to_pylist()
        return self.held[unit]


def _figures(table: pa.Table, languages: dict[str, list[int]], lengths: dict[str, int]) -> dict[str, int]:
    """Documents, characters and UTF-8 bytes; adds to the figures per language and to the histogram of lengths (powers of two)."""
    sizes = pc.binary_length(table["text"].cast(pa.binary())).to_numpy().astype(np.int64)
    characters = pc.utf8_length(table["text"]).to_numpy().astype(np.int64)
    for language, size in zip(table["language"].to_pylist(), sizes.tolist(), strict=True):
        tally = languages.setdefault(language, [0, 0])
        tally[0] += 1
        tally[1] += size
    for power, count in sorted(Counter(np.floor(np.log2(np.maximum(characters, 1))).astype(int).tolist()).items()):
        lengths[str(power)] = lengths.get(str(power), 0) + count
    return {"documents": table.num_rows, "characters": int(characters.sum()), "bytes": int(sizes.sum())}


def summarise(rejects: list[Reject]) -> dict[str, dict[str, Any]]:
    """Per rule: how many, which of its figures decided, and the first few with the beginning of their text."""
    rules: dict[str, dict[str, Any]] = {}
    for reject in rejects:
        rule = rules.setdefault(reject.rule, {"count": 0, "details": {}, "examples": []})
        rule["count"] += 1
        if reject.rule in (*RULES, "language"):
            detail = reject.reason.split(" ")[0]
            rule["details"][detail] = rule["details"].get(detail, 0) + 1
        if len(rule["examples"]) < (EXAMPLES if reject.rule != "unreadable" else BAD_LINES):
            rule["examples"].append({"source": reject.source, "reason": reject.reason, "text": reject.text[:300]})
    return rules
