"""Which encoding a file is written in: decided from a sample, said to the user, never guessed line by line."""

from __future__ import annotations

import codecs

SAMPLE_BYTES = 1 << 16
_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be"))
BINARY = "binary"


def detect_encoding(sample: bytes) -> str:
    """``utf-8``, ``utf-8-sig``, ``utf-16-le``, ``utf-16-be``, ``gb18030``, or ``binary`` for what is no text.

    UTF-8 wins whenever the sample decodes; GB18030 needs a sample that decodes as a whole into mostly common Chinese.
    Anything else is read as UTF-8, so that its broken lines are set aside one by one.
    """
    for mark, name in _MARKS:
        if sample.startswith(mark):
            return name
    if not sample:
        return "utf-8"
    if wide := _utf16(sample):
        return wide
    if sample.count(0) > len(sample) // 100 or _control_share(sample) > 0.1:
        return BINARY
    if _decodes(sample, "utf-8"):
        return "utf-8"
    if _utf8_lines(sample) >= 0.5:
        return "utf-8"
    return "gb18030" if _looks_gb18030(sample) else "utf-8"


def _decodes(sample: bytes, encoding: str) -> bool:
    """True if the sample, which may end inside a character, is valid."""
    try:
        codecs.getincrementaldecoder(encoding)("strict").decode(sample, final=len(sample) < SAMPLE_BYTES)
    except UnicodeDecodeError:
        return False
    return True


def _utf16(sample: bytes) -> str | None:
    """UTF-16 without a mark: every second byte is zero wherever the text is ASCII (spaces, line ends, markup)."""
    pairs = len(sample) // 2
    even, odd = sample[0 : 2 * pairs : 2].count(0), sample[1 : 2 * pairs : 2].count(0)
    for zeros, others, name in ((odd, even, "utf-16-le"), (even, odd, "utf-16-be")):
        if zeros >= 4 and zeros > pairs // 50 and others <= pairs // 200 and _decodes(sample[: 2 * pairs], name):
            text = sample[: 2 * pairs].decode(name, "ignore")
            if sum(c.isprintable() or c in "\r\n\t" for c in text) > 0.9 * len(text):
                return name
    return None


def _control_share(sample: bytes) -> float:
    controls = sum(sample.count(code) for code in (*range(1, 9), *range(14, 27), *range(28, 32), 127))
    return controls / len(sample)


def _utf8_lines(sample: bytes) -> float:
    """Of the lines that hold more than ASCII, the share that is valid UTF-8."""
    lines = [line for line in sample.split(b"\n")[:-1] or [sample] if not line.isascii()]
    return sum(_valid(line) for line in lines) / len(lines) if lines else 1.0


def _valid(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _looks_gb18030(sample: bytes) -> bool:
    if not _decodes(sample, "gb18030"):
        return False
    beyond = [c for c in sample.decode("gb18030", "ignore") if ord(c) > 127]
    # GB2312 holds the characters that people write; Windows-1252 read as GB18030 gives rare ones instead.
    return len(beyond) >= 2 and sum(bool(c.encode("gb2312", "ignore")) for c in beyond) >= 0.8 * len(beyond)
