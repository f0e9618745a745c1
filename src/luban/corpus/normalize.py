"""Making text uniform, and safe for Chinese: full-width punctuation and ideographic spaces stay."""

from __future__ import annotations

import re
import unicodedata

import ftfy
from ftfy.badness import is_bad

from luban.corpus.config import NormalizeConfig

# Curly quotes and full-width forms are how Chinese is written, so ftfy must leave them alone.
_REPAIRS = ftfy.TextFixerConfig(
    uncurl_quotes=False, fix_character_width=False, fix_latin_ligatures=False, fix_line_breaks=False, remove_control_chars=False, normalization=None, explain=False
)  # fmt: skip
_ODD = re.compile("[\x1b\x80-\x9f\ud800-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f-\x84\x86-\x9f\xad\u200b\u2060\ufeff\ufff9-\ufffb\ufffe\uffff]")
_LINE_ENDS = re.compile("\r\n?|\x0c|\x85|\u2028|\u2029")
_LINE_TAIL = re.compile("[ \t\u00a0\u3000]+$", re.MULTILINE)
_INNER_SPACE = re.compile("(?<=[^ \t\u00a0\n])[ \t\u00a0]{2,}|(?<=[^ \t\u00a0\n])[\t\u00a0]")
_EMPTY_LINES = re.compile("\n{3,}")


def normalize(text: str, config: NormalizeConfig) -> str:
    """The text in its uniform form. Lone surrogates, which no file can hold, always become U+FFFD."""
    if config.repair and not _plain(text):
        text = ftfy.fix_text(text, _REPAIRS)
    if _SURROGATE.search(text):
        text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if config.unicode != "off" and not text.isascii():
        text = unicodedata.normalize(config.unicode, text)
    if config.white_space:
        text = _LINE_ENDS.sub("\n", text)
    if config.control_characters:
        text = _CONTROL.sub("", text)
    if config.white_space:
        text = _EMPTY_LINES.sub("\n\n", _INNER_SPACE.sub(" ", _LINE_TAIL.sub("", text))).strip("\n \t")
    return text


def _plain(text: str) -> bool:
    """True where ftfy has nothing to repair, so that its slow way through every line can be left out."""
    return "&" not in text and not _ODD.search(text) and (text.isascii() or not is_bad(text))
