"""How many tokens a folder of raw text will give, from a sample of it: what files hold of text, and how many bytes a token of a vocabulary of that size has."""

from __future__ import annotations

import gzip
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import zstandard

from luban.corpus.config import CurateConfig
from luban.corpus.encodings import BINARY
from luban.corpus.plan import Unit, describe
from luban.corpus.readers import READ_ERRORS, find_files, recognise
from luban.corpus.records import unit_records
from luban.foundation.errors import DataError
from luban.foundation.paths import named_files
from luban.tokenizer.algorithms import Plan, automatic_vocabulary_size, learn

FILES = 48  # that are looked into, evenly over all
LOOKED_AT = 64 << 20  # bytes of them together, unpacked
LEARNED = 4 << 20  # bytes of text from which a vocabulary is learned for a trial
HELD_OUT = 0.1  # share of that on which its tokens are counted
MOST_VOCABULARY = 65_536


@dataclass(frozen=True)
class Counted:
    """The data: bytes of text and tokens, estimated from ``sampled`` bytes of text of ``looked`` files out of ``files``."""

    files: int
    looked: int
    sampled: int
    text_bytes: float
    vocabulary: int
    bytes_a_token: float

    @property
    def tokens(self) -> float:
        return self.text_bytes / self.bytes_a_token

    @property
    def exact(self) -> bool:
        """Whether all files were read in full."""
        return self.looked == self.files and self.sampled >= self.text_bytes


def count(paths: Sequence[Path], vocabulary: int | None = None) -> Counted:
    """Look into the files and count. DataError where they hold no text."""
    files = find_files([file for path in paths for file in named_files(path)])
    config = CurateConfig(sources=[str(path) for path in paths])
    chosen = files if len(files) <= FILES else [files[place * len(files) // FILES] for place in range(FILES)]
    room, keep = LOOKED_AT // len(chosen), LEARNED // len(chosen)
    text = raw = share = 0.0
    kept: list[str] = []
    sampled = 0
    for file in chosen:
        size = file.stat().st_size
        found, part, texts = _look(file, config, room, keep)
        sampled += found
        text += found / part if part else 0.0
        raw += size
        kept += texts
    if not sampled or not kept:
        raise DataError("{path}: no text was found", "", "name files or folders of text, jsonl, csv, parquet or HTML", path=", ".join(map(str, paths)))
    share = text / raw
    total = text if len(chosen) == len(files) else share * sum(file.stat().st_size for file in files)
    size = vocabulary or min(MOST_VOCABULARY, automatic_vocabulary_size(round(total)))
    return Counted(len(files), len(chosen), sampled, max(total, float(sampled)), size, _bytes_a_token(kept, size))


def _look(file: Path, config: CurateConfig, room: int, keep: int) -> tuple[int, float, list[str]]:
    """Bytes of text of the first ``room`` bytes of a file, the share of the file that these are, and about ``keep`` bytes of the text itself."""
    layout = recognise(file)
    if layout.format == BINARY:
        return 0, 1.0, []
    if file.stat().st_size <= (room // 4 if layout.compression else room) or layout.format in ("parquet", "warc"):
        return _read(file, config, keep, 1.0)
    with tempfile.TemporaryDirectory(prefix="luban-plan-") as folder:
        suffix = "".join(part for part in file.suffixes if part.lower() not in (".gz", ".zst", ".gzip", ".zstd"))
        head = Path(folder) / f"head{suffix[-12:]}"
        return _read(head, config, keep, _write_head(file, layout.compression, room, head))


def _write_head(file: Path, compression: str, room: int, head: Path) -> float:
    """Write the first ``room`` bytes of what a file holds, up to a line's end; the share of the file that they are."""
    with file.open("rb") as raw:
        stream = gzip.GzipFile(fileobj=raw) if compression == "gz" else zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) if compression else raw
        content, whole = bytearray(), False
        try:
            while len(content) < room and not whole:
                part = stream.read(min(1 << 20, room - len(content)))
                content += part
                whole = not part
        except READ_ERRORS:
            pass
        read = len(content)
        end = content.rfind(b"\n") + 1
        head.write_bytes(content if whole or not end else content[:end])
        share = 1.0 if whole else min(1.0, raw.tell() / file.stat().st_size)
    return share * head.stat().st_size / max(1, read)


def _read(file: Path, config: CurateConfig, keep: int, share: float) -> tuple[int, float, list[str]]:
    """As `_look`, of a file that is read in full."""
    described = describe(file, str(file), file, config)
    total, texts, held = 0, [], 0
    for _, record in unit_records([described], Unit([0]), Path(), config.document_characters, lambda bad: None):
        size = len(record.text.encode("utf-8", "replace"))
        total += size
        if held < keep:
            texts.append(record.text)
            held += size
    return total, share, texts


def _bytes_a_token(texts: list[str], size: int) -> float:
    """Bytes a token of a byte-level BPE learned from most of the texts, on the others."""
    every = max(2, round(1 / HELD_OUT))
    held_out = texts[::every] if len(texts) > 1 else texts
    learned = [text for place, text in enumerate(texts) if place % every] or texts
    core, _ = learn(Plan("byte_bpe", size), lambda: iter(learned))
    tokens = sum(len(encoding.ids) for encoding in core.encode_batch_fast(held_out, add_special_tokens=False))
    return sum(len(text.encode("utf-8", "replace")) for text in held_out) / max(1, tokens)
