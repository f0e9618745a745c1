"""The stage ``curate``: plan, clean in parallel, find duplicates and draw splits, write in parallel, draw the data card."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from luban.corpus import card, decide
from luban.corpus.config import CurateConfig
from luban.corpus.custom import load_filter
from luban.corpus.deduplicate import Store
from luban.corpus.documents import SPLITS
from luban.corpus.licences import UNKNOWN, licences_of
from luban.corpus.plan import Plan, make_plan
from luban.corpus.preview import show_files, show_text
from luban.corpus.records import unit_records
from luban.corpus.shards import UnitFiles
from luban.corpus.workers import do_units
from luban.foundation.artifacts import Artifact, Work, write_json
from luban.foundation.config import fields_with_role
from luban.foundation.console import bytes_text, progress, say, warn
from luban.foundation.errors import DataError
from luban.foundation.hardware import cores
from luban.foundation.messages import t

VERSION = 1
_MOST_WORKERS = 4  # each holds some 200 MB: four and this process stay below 1 GB
_SMALL_BYTES = 4 << 20  # below this, starting processes takes longer than the work


def run(config: CurateConfig, work: Work) -> None:
    """Turn the sources into documents/, rejects/, card.json and card.html. Raises DataError if nothing is left."""
    working = work.path / ".work"
    if not (work.path / "card.json").exists():
        sources = _sources(config, work)
        plan = _prepare(config, work, sources, working)
        _show(plan, config, working)
        processes = _processes(config, plan)

        _phase("clean", "cleaning", working, plan, processes)
        _decide(config, working, plan)
        _phase("write", "writing documents", working, plan, processes)

        facts = card.collect(working, plan, config, licences_of(config, sources))
        _check(facts)
        card.write_html(work.path / "card.html", facts)
        write_json(work.path / "card.json", facts)
    shutil.rmtree(working, ignore_errors=True)
    _report(json.loads((work.path / "card.json").read_bytes()), config, work)


def _sources(config: CurateConfig, work: Work) -> list[tuple[str, Path]]:
    """Each source's name in the recipe (with its slice, ``#500``) and where it lies; another corpus stands for its documents."""
    given: Any = work.inputs.get("sources")
    items = given if isinstance(given, list) else [given]
    paths = [item.path / "documents" if isinstance(item, Artifact) and (item.path / "documents").is_dir() else getattr(item, "path", item) for item in items]
    return [(name, Path(str(path).partition("#")[0])) for name, path in zip(config.source_list(), paths, strict=True)]


def _prepare(config: CurateConfig, work: Work, sources: list[tuple[str, Path]], working: Path) -> Plan:
    """The plan, made or taken up again where a killed run with the same sources left it."""
    filters = _filters(work)
    job = {
        "config": fields_with_role(config, "result"),
        "sources": [[name, str(path)] for name, path in sources],
        "filters": filters,
    }
    for reference in filters:
        load_filter(reference)  # a mistake in it shows now, not after the first gigabyte
    if (working / "job.json").exists() and json.loads((working / "job.json").read_bytes()) == job and (working / "plan.json").exists():
        return Plan.load(working / "plan.json")
    shutil.rmtree(working, ignore_errors=True)
    (working / "units").mkdir(parents=True)
    for split in SPLITS:
        (work.path / "documents" / split).mkdir(parents=True, exist_ok=True)
    (work.path / "rejects").mkdir(exist_ok=True)
    plan = make_plan(config, sources, working)
    write_json(working / "job.json", job)
    plan.save(working / "plan.json")
    return plan


def _filters(work: Work) -> list[str]:
    """The user's filters with the whole path of their files."""
    given: Any = work.inputs.get("filters") or []
    return [str(place) for place in (given if isinstance(given, list) else [given])]


def _processes(config: CurateConfig, plan: Plan) -> int:
    if config.workers != "auto":
        return config.workers
    size = sum(Path(file.path).stat().st_size for file in plan.files)
    return 1 if size < _SMALL_BYTES else min(cores(), _MOST_WORKERS)


def _show(plan: Plan, config: CurateConfig, working: Path) -> None:
    """Say how each file was understood, and show the first three texts."""
    show_files(plan.files)
    if not plan.units:
        return
    records = unit_records(plan.files, plan.units[0], working, config.document_characters, lambda bad: None)
    for (_, record), _ in zip(records, range(3), strict=False):
        show_text(f"{record.file}:{record.line}", record.text)
    records.close()  # type: ignore[attr-defined]


def _phase(name: str, label: str, working: Path, plan: Plan, processes: int) -> None:
    """Do the units that no earlier run has finished."""
    files = [UnitFiles(working, number) for number in range(len(plan.units))]
    left = [unit.number for unit in files if not (unit.is_clean if name == "clean" else unit.is_written)]
    if len(left) < len(files):
        say("{label}: {done} of {total} units were done before", label=label, done=len(files) - len(left), total=len(files))
    with progress(label, len(left)) as advance:
        for _ in do_units(name, working, left, processes):
            advance()


def _decide(config: CurateConfig, working: Path, plan: Plan) -> None:
    if (working / "decided.json").exists():
        return
    store = Store(working, len(plan.units), config.deduplicate)
    try:
        decide.save(decide.decide(config, store, working), working)
    finally:
        store.close()


def _check(facts: dict[str, Any]) -> None:
    """Every record is a document or a reject; and some document is left for training."""
    assert facts["records"] == facts["kept"] + facts["set_aside"], "a record was lost"
    if not facts["splits"]["train"]["documents"]:
        most = sorted(facts["rejected"].items(), key=lambda item: -item[1]["count"])[:3]
        reasons = "; ".join(f"{rule}: {found['count']} ({found['examples'][0]['source']}: {found['examples'][0]['reason']})" for rule, found in most)
        raise DataError(
            "no document is left for training out of {records} records", "{reasons}", "look at the rejects; quality.preset: prose or off rejects less, text_field names the column of the text",
            records=facts["records"], reasons=reasons or t("nothing is in {files}", files=", ".join(file["file"] for file in facts["files"][:5])),
        )  # fmt: skip


def _report(facts: dict[str, Any], config: CurateConfig, work: Work) -> None:
    splits = facts["splits"]
    work.metrics |= {f"{name}_documents": splits[name]["documents"] for name in SPLITS} | {f"{name}_bytes": splits[name]["bytes"] for name in SPLITS}
    work.metrics |= {"records": facts["records"], "set_aside": facts["set_aside"]}
    work.licence(*sorted({licence for names in facts["licences"].values() for licence in names}))
    for place in facts["bad_lines"][:5]:
        warn("{source}: {reason}; set aside", source=place["source"], reason=place["reason"])
    if UNKNOWN in work.licences:
        warn("no licence is stated for {sources}", sources=", ".join(name for name, found in facts["licences"].items() if UNKNOWN in found))
    for name in ("validation", "test"):
        if getattr(config.split, name) and not splits[name]["documents"]:
            warn("no document fell into {split}: the corpus is small for a share of {share}", split=name, share=getattr(config.split, name))
    say(
        "{records} records: {train} for training, {validation} for validation, {test} for the test ({size}), {set_aside} set aside",
        records=facts["records"], train=splits["train"]["documents"], validation=splits["validation"]["documents"], test=splits["test"]["documents"],
        size=bytes_text(sum(splits[name]["bytes"] for name in SPLITS)), set_aside=facts["set_aside"],
    )  # fmt: skip
