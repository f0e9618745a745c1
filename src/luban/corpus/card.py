"""The data card: what the corpus holds, what was removed and why; as JSON, as a page, and in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from luban.corpus import decide
from luban.corpus.config import CurateConfig
from luban.corpus.deduplicate import KEPT, NEAR, TIE
from luban.corpus.documents import SPLITS
from luban.corpus.plan import Plan
from luban.corpus.shards import HASH, UnitFiles
from luban.corpus.write import BAD_LINES, EXAMPLES
from luban.foundation.console import bytes_text, count_text, table
from luban.foundation.messages import language, t

FORMAT = 1
_CLUSTERS = 5
_FILES = 200


def collect(working: Path, plan: Plan, config: CurateConfig, licences: dict[str, list[str]]) -> dict[str, Any]:
    """All figures of the card, summed over the units in their order."""
    units = [UnitFiles(working, number) for number in range(len(plan.units))]
    facts: dict[str, Any] = {
        "format": FORMAT, "records": 0, "kept": 0, "set_aside": 0, "splits": {name: {"documents": 0, "characters": 0, "bytes": 0} for name in SPLITS},
        "languages": {}, "lengths": {}, "rejected": {}, "bad_lines": [], "files": [], "licences": licences,
    }  # fmt: skip
    per_file: dict[str, list[int]] = {}
    for unit in units:
        cleaned, written = unit.summary("cleaned"), unit.summary("written")
        facts["records"] += cleaned["records"]
        for name, counts in cleaned["files"].items():
            per_file[name] = [a + b for a, b in zip(per_file.get(name, [0, 0]), counts, strict=True)]
        _add(facts, written)
    facts["kept"] = sum(split["documents"] for split in facts["splits"].values())
    facts["set_aside"] = sum(rule["count"] for rule in facts["rejected"].values())
    facts["languages"] = dict(sorted(facts["languages"].items(), key=lambda item: (-item[1]["bytes"], item[0])))
    facts["lengths"] = {key: facts["lengths"][key] for key in sorted(facts["lengths"], key=int)}
    facts["rejected"] = dict(sorted(facts["rejected"].items(), key=lambda item: (-item[1]["count"], item[0])))
    facts["bad_lines"] = facts["rejected"].get("unreadable", {}).get("examples", [])
    facts["files"] = [
        {
            "file": file.label, "source": file.source, "layout": file.layout.text(), "text_field": file.text_field, "cut": file.cut if not file.is_table else "",
            "preset": file.preset, "bytes": Path(file.path).stat().st_size, "records": per_file.get(file.label, [0, 0])[0], "problem": file.problem,
        }
        for file in plan.files[:_FILES]
    ]  # fmt: skip
    facts["file_count"] = len(plan.files)
    facts["duplicates"] = _clusters(working, units)
    return facts


def _add(facts: dict[str, Any], written: dict[str, Any]) -> None:
    for name, figures in written["splits"].items():
        for key, value in figures.items():
            facts["splits"][name][key] += value
    for name, (documents, size) in written["languages"].items():
        total = facts["languages"].setdefault(name, {"documents": 0, "bytes": 0})
        total["documents"] += documents
        total["bytes"] += size
    for power, count in written["lengths"].items():
        facts["lengths"][power] = facts["lengths"].get(power, 0) + count
    for rule, found in written["rejected"].items():
        total = facts["rejected"].setdefault(rule, {"count": 0, "details": {}, "examples": []})
        total["count"] += found["count"]
        for detail, count in found["details"].items():
            total["details"][detail] = total["details"].get(detail, 0) + count
        total["examples"] += found["examples"][: (BAD_LINES if rule == "unreadable" else EXAMPLES) - len(total["examples"])]


def _clusters(working: Path, units: list[UnitFiles]) -> dict[str, Any]:
    """Kept documents with the most duplicates, and the beginnings of one duplicate each."""
    decisions = decide.load(working)
    duplicates = np.flatnonzero(decisions.other >= 0)
    if not len(duplicates):
        return {"clusters": 0, "documents": 0, "largest": []}
    heads, sizes = np.unique(decisions.other[duplicates], return_counts=True)
    starts = np.concatenate([[0], np.cumsum([unit.path("hashes").stat().st_size // HASH.itemsize for unit in units])])

    def text_of(document: int) -> dict[str, Any]:
        unit = int(np.searchsorted(starts, document, side="right")) - 1
        row = pq.read_table(units[unit].path("documents"), columns=["source", "text"], use_threads=False).slice(document - int(starts[unit]), 1).to_pylist()[0]
        return {"source": row["source"], "text": row["text"][:300]}

    largest = []
    near = np.isin(decisions.fate, (NEAR, TIE, KEPT))
    for place in np.lexsort((heads, -sizes))[:_CLUSTERS]:
        head = int(heads[place])
        members = duplicates[decisions.other[duplicates] == head]
        shown = int(next(iter(members[near[members]]), members[0]))  # a near-duplicate says more than a copy
        largest.append({"size": int(sizes[place]) + 1, "kept": text_of(head), "duplicate": text_of(shown) | {"similarity": round(float(decisions.similar[shown]), 3)}})
    return {"clusters": len(heads), "documents": len(duplicates), "largest": largest}


def write_html(path: Path, facts: dict[str, Any]) -> None:
    """The card as one page that needs nothing else."""
    from luban.corpus.card_page import render
    from luban.foundation.artifacts import write_bytes

    write_bytes(path, render(facts, language()).encode())


def print_card(artifact: Path) -> None:
    """Show the card of a finished corpus in the terminal."""
    facts = json.loads((artifact / "card.json").read_bytes())
    table(t("splits"), [t("split"), t("documents"), t("characters"), t("bytes")], [[name, s["documents"], count_text(s["characters"]), bytes_text(s["bytes"])] for name, s in facts["splits"].items()])
    table(t("languages"), [t("language"), t("documents"), t("bytes")], [[name, f["documents"], bytes_text(f["bytes"])] for name, f in facts["languages"].items()])
    if facts["rejected"]:
        rows = [[rule, f["count"], f["examples"][0]["source"], f["examples"][0]["reason"][:60]] for rule, f in facts["rejected"].items()]
        table(t("set aside"), [t("rule"), t("records"), t("example"), t("reason")], rows)
    longest = max(facts["lengths"].values(), default=1)
    bars = [[f"{2 ** int(power)}–{2 ** (int(power) + 1) - 1}", count, "█" * max(1, round(30 * count / longest))] for power, count in facts["lengths"].items()]
    table(t("length in characters"), [t("characters"), t("documents"), ""], bars)
    duplicates = facts["duplicates"]
    if duplicates["clusters"]:
        rows = [[c["size"], c["kept"]["source"], " ".join(c["kept"]["text"].split())[:40], c["duplicate"]["source"], c["duplicate"]["similarity"]] for c in duplicates["largest"]]
        table(t("duplicate clusters"), [t("documents"), t("kept"), t("text"), t("example"), t("similarity")], rows)
    table(t("licences"), [t("source"), t("licence")], [[name, ", ".join(found)] for name, found in facts["licences"].items()])
