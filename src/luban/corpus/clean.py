"""One unit of work: read, normalise, recognise the language, filter, and sign for the search of duplicates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import xxhash

from luban.corpus import filters
from luban.corpus.config import CurateConfig
from luban.corpus.custom import judge, load_filter
from luban.corpus.documents import Document, documents_table
from luban.corpus.language import identify
from luban.corpus.limits import limits_for
from luban.corpus.minhash import band_keys, shingle_length, shingles, signature
from luban.corpus.normalize import normalize
from luban.corpus.plan import Plan, SourceFile
from luban.corpus.readers import BadLine
from luban.corpus.records import Record, unit_records
from luban.corpus.shards import HASH, Reject, UnitFiles, reject_table, write_table, write_whole

_WEB_NOTICES = ("javascript", "privacy policy", "terms of use", "cookie policy", "uses cookies", "use of cookies", "use cookies")


@dataclass
class Cleaner:
    """What one process needs to clean units: the config, the plan and the user's filters."""

    config: CurateConfig
    plan: Plan
    working: Path
    custom: list[tuple[str, Callable]] = field(default_factory=list)

    @classmethod
    def load(cls, working: Path) -> Cleaner:
        job = json.loads((working / "job.json").read_bytes())
        custom = [(Path(reference).name, load_filter(reference)) for reference in job["filters"]]
        return cls(CurateConfig.model_validate(job["config"]), Plan.load(working / "plan.json"), working, custom)

    def clean(self, number: int) -> None:
        """Make the files of one unit; its summary comes last and says that it is whole."""
        kept: list[Document] = []
        rejects: list[Reject] = []
        counts: Counter[str] = Counter()
        files: dict[str, list[int]] = {}

        def set_aside(bad: BadLine) -> None:
            rejects.append(Reject(f"{bad.file}:{bad.line}" if bad.line else bad.file, "unreadable", bad.reason, "", printable(bad.text)))

        unit = self.plan.units[number]
        for file, record in unit_records(self.plan.files, unit, self.working, self.config.document_characters, set_aside):
            counts["records"] += 1
            tally = files.setdefault(file.label, [0, 0])
            tally[0] += 1
            document, reason = self.consider(file, record)
            if reason:
                rule, _, figure = reason.partition(": ")
                rejects.append(Reject(document.source, rule, figure, document.language, document.text))
            else:
                tally[1] += 1
                kept.append(document)
        counts["records"] += sum(reject.rule == "unreadable" for reject in rejects)
        assert counts["records"] == len(kept) + len(rejects), "a record was lost"
        self._write(UnitFiles(self.working, number), kept, rejects, {"records": counts["records"], "files": files})

    def consider(self, file: SourceFile, record: Record) -> tuple[Document, str]:
        """The cleaned document and why it is rejected (empty if it is kept)."""
        text = normalize(record.text, self.config.normalize)
        if file.preset == "web":
            text = without_notices(text)
        metadata = {printable(key): printable(value) if isinstance(value, str) else value for key, value in record.metadata.items()}
        document = Document(text_hash(text), text, "", f"{printable(record.file)}:{record.line}", metadata)
        if len(text) < self.config.minimum_characters:
            return document, f"too_short: {len(text)} < {self.config.minimum_characters} characters"
        document.language = self.config.language.known or identify(text, self.config.language.minimum_confidence)
        keep = self.config.language.keep
        if keep and document.language not in keep:
            return document, f"language: {document.language}"
        verdict = filters.judge(text, document.language, limits_for(file.preset, document.language, self.config.quality.thresholds))
        if verdict is not True:
            return document, verdict[1]  # type: ignore[index]
        for name, function in self.custom:
            passed, reason = judge(function, name, text)
            if not passed:
                return document, f"{name}: {reason}"
        return document, ""

    def _write(self, files: UnitFiles, kept: list[Document], rejects: list[Reject], summary: dict) -> None:
        near = self.config.deduplicate
        write_table(files.path("documents"), documents_table(kept))
        write_table(files.path("rejects"), reject_table(rejects))
        hashes = np.array([(int(d.id[:16], 16), int(d.id[16:], 16)) for d in kept], dtype=HASH)
        write_whole(files.path("hashes"), hashes.tobytes())
        if near.near != "off":
            count = near.bands * near.rows
            signatures = np.zeros((len(kept), count), dtype=np.uint32)
            for row, document in enumerate(kept):
                signatures[row] = signature(shingles(document.text, shingle_length(near, document.language)), count)
            keys = np.array([band_keys(row, near.bands, near.rows) for row in signatures], dtype=np.uint64).reshape(len(kept), near.bands)
            write_whole(files.path("bands"), np.ascontiguousarray(keys.T).tobytes())  # [bands, documents]: a band is read in one piece
            write_whole(files.path("signatures"), signatures.astype(np.uint16).tobytes())  # the low halves are enough to verify
        write_whole(files.path("cleaned.json"), json.dumps({**summary, "kept": len(kept)}).encode())


def text_hash(text: str) -> str:
    """128 bits of the text in hexadecimal: the identity of a document, blind to case and white space."""
    return xxhash.xxh3_128_hexdigest("".join(text.split()).lower().encode("utf-8", "surrogatepass"))


def without_notices(text: str) -> str:
    """Web text without the lines that C4 removes: notices on cookies, scripts and terms."""
    if not any(notice in text.lower() for notice in _WEB_NOTICES):
        return text
    return "\n".join(line for line in text.split("\n") if len(line) > 300 or not any(notice in line.lower() for notice in _WEB_NOTICES)).strip()


def printable(text: str) -> str:
    """Text that UTF-8 can hold: what it cannot becomes a question mark."""
    return text.encode("utf-8", "replace").decode()
