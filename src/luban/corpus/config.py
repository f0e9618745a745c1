"""The typed config of the verb ``curate``."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, PositiveInt, field_validator, model_validator

from luban.corpus.limits import LIMITS, check_limits
from luban.foundation.config import Auto, Config, field

Preset = Literal["auto", "web", "prose", "off"]
Fraction = Annotated[float, Field(ge=0, lt=1)]


def _off(value: Any) -> Any:
    """YAML reads a bare ``off`` as false."""
    return "off" if value is False else value


class NormalizeConfig(Config):
    """What is made uniform in every text. Full-width punctuation always stays as it is."""

    repair: bool = field(True, "Repair text that was decoded with the wrong encoding, HTML entities and broken surrogates (ftfy).")
    unicode: Literal["NFC", "NFKC", "off"] = field("NFC", "Unicode normal form; NFKC also turns full-width letters and punctuation into half-width ones.")
    control_characters: bool = field(True, "Remove control characters, zero-width spaces, soft hyphens and byte order marks.")
    white_space: bool = field(True, "Make line ends \\n, drop spaces at line ends, join runs of spaces inside a line, keep at most one empty line.")

    _off = field_validator("unicode", mode="before")(_off)


class LanguageConfig(Config):
    """Which languages are recognised and kept."""

    keep: list[Annotated[str, Field(pattern=r"^[a-z]{2,3}$")]] = field([], "Two-letter codes of the languages to keep, such as [zh, en]; empty keeps every language. und stands for texts too short to tell.")
    known: Annotated[str, Field(pattern=r"^([a-z]{2,3})?$")] = field("", "Two-letter code of the language that all the texts are in, such as en: none of them is then looked at. Empty: the language of each is recognised.")
    minimum_confidence: Fraction = field(0.5, "Below this probability the language is written as und (undetermined).")


class QualityConfig(Config):
    """Rules that reject a document, after Gopher, C4 and FineWeb, with Chinese ones from FineWeb-2."""

    preset: Preset = field("auto", "web: all rules; prose: only rules against damage, so that poems, plays and short texts survive; auto: web for HTML and for records with a url, else prose.")
    thresholds: dict[str, dict[str, float | None]] = field({}, "Other limits per language, such as {zh: {minimum_words: 20}}; the language * stands for all, null switches a rule off.")

    _off = field_validator("preset", mode="before")(_off)

    @field_validator("thresholds")
    @classmethod
    def _known(cls, value: dict[str, dict[str, float | None]]) -> dict[str, dict[str, float | None]]:
        check_limits(value, LIMITS)
        return value


class DeduplicateConfig(Config):
    """Exact and near duplicates (MinHash with locality-sensitive hashing over character shingles)."""

    exact: bool = field(True, "Remove documents whose normalised text is the same as an earlier one's.")
    near: Literal["remove", "keep", "off"] = field(
        "remove", "remove: leave out near-duplicates of an earlier document; keep: leave out only those that would tie two splits together; off: do not look for them."
    )
    threshold: Annotated[float, Field(gt=0, le=1)] = field(0.8, "Jaccard similarity of the shingle sets from which two documents are near-duplicates.")
    shingle: PositiveInt | Auto = field("auto", "Characters in a shingle; auto: 3 in Chinese, Japanese and Korean text, 8 elsewhere.", unit="characters")
    bands: PositiveInt = field(20, "Bands of the signature; two documents are compared if they agree in one.")
    rows: PositiveInt = field(6, "Hashes in a band; more rows compare fewer pairs.")

    _off = field_validator("near", mode="before")(_off)

    @model_validator(mode="after")
    def _room(self) -> DeduplicateConfig:
        if self.bands * self.rows > 1024:
            raise ValueError("bands times rows is the length of a signature and may be at most 1024")
        if not self.exact and self.near == "remove":
            raise ValueError("near: remove would remove the exact copies too; write near: keep (or off) to keep them")
        return self


class SplitConfig(Config):
    """How documents are divided. At random, a document's place never depends on documents that come after it."""

    validation: Fraction = field(0.01, "Share of the documents held out for validation.")
    test: Fraction = field(0.0, "Share of the documents held out for the test.")
    held_out: Literal["random", "last"] = field("random", "Which documents are held out: random ones; or the last of each source (or of each value of stratify_by), the test behind the validation, for text that has an order; the shares are of its characters then.")
    stratify_by: str = field("", "language, source, or a metadata column: each of its values gets the shares above. Empty: all together, or with held_out: last each source.")
    salt: str = field("", "Another text here draws another split.")

    @model_validator(mode="after")
    def _sum(self) -> SplitConfig:
        if self.validation + self.test >= 1:
            raise ValueError("validation and test together leave nothing for training")
        return self


class CurateConfig(Config):
    """Raw text of any format becomes clean, deduplicated, split documents with a data card."""

    sources: str | list[str] = field(
        ...,
        "Files and folders to read: plain text, markdown, HTML, jsonl, JSON, csv, tsv, parquet, WARC; also .gz and .zst of each. A #500 at the end takes the first 500 records.",
        input=True,
    )
    format: Literal["auto", "text", "markdown", "html", "jsonl", "json", "csv", "tsv", "parquet", "warc"] = field("auto", "The format of all sources; auto looks at content and ending of each file.")
    text_field: str = field("auto", 'The column that holds the text, or a pattern over columns such as "{title}\\n\\n{body}"; auto looks for one and says which.')
    document_separator: str = field(
        "auto",
        "What ends a document in plain text: file, line, blank_line, blocks (of document_characters, cut at empty lines), or the text of a separating line; auto: file up to 64 KiB, else blocks.",
    )
    document_characters: PositiveInt = field(2000, "Length of the blocks that a long plain text is cut into; a paragraph is never cut.", unit="characters")
    minimum_characters: PositiveInt = field(1, "Shorter documents are set aside.", unit="characters")
    normalize: NormalizeConfig = field(NormalizeConfig(), "What is made uniform in every text.")
    language: LanguageConfig = field(LanguageConfig(), "Which languages are recognised and kept.")
    quality: QualityConfig | Preset | bool = field(QualityConfig(), "Rules that reject a document; off, prose or web alone stands for that preset.")
    filters: list[str] = field([], "Your own filters, my_file.py:name: a function of the text that returns True, or False and a reason.", input=True)
    deduplicate: DeduplicateConfig = field(DeduplicateConfig(), "Exact and near duplicates.")
    split: SplitConfig = field(SplitConfig(), "Shares of validation and test.")
    licence: str | dict[str, str] = field("auto", "Licence of the sources, or one per source path; auto reads a LICENSE, SOURCE.md or README beside each.")
    workers: PositiveInt | Auto = field("auto", "Processes that clean; auto: one a core, at most 4, and one for small inputs. The result does not depend on it.", role="machine")

    foreign: ClassVar[dict[str, str]] = {
        "path": "sources", "paths": "sources", "data": "sources", "data_files": "sources", "text_column": "text_field", "text_key": "text_field", "num_proc": "workers",
        "seed": "split.salt", "valid": "split.validation", "dedup": "deduplicate",
    }  # fmt: skip

    @field_validator("quality", mode="before")
    @classmethod
    def _preset(cls, value: Any) -> Any:
        if isinstance(value, (str, bool)):
            return {"preset": value if isinstance(value, str) else "auto" if value else "off"}
        return value

    @field_validator("sources")
    @classmethod
    def _some(cls, value: str | list[str]) -> str | list[str]:
        if not value:
            raise ValueError("name at least one file or folder")
        return value

    def source_list(self) -> list[str]:
        return [self.sources] if isinstance(self.sources, str) else self.sources
