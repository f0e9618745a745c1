"""The main text of web pages, through resiliparse (Bevendorff et al. 2018), and the responses of web archives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, BinaryIO

from luban.foundation.errors import missing_extra


def extract(html: str) -> str:
    """A page's main text, one block a paragraph, without navigation, scripts and other boilerplate."""
    try:
        from resiliparse.extract.html2text import extract_plain_text
    except ImportError:
        raise missing_extra("resiliparse", "html") from None
    return extract_plain_text(html, main_content=True, alt_texts=False, preserve_formatting=True)


def decode_html(body: bytes) -> str:
    """The page as text: by its own declaration, else by what its bytes look like."""
    try:
        from resiliparse.parse.encoding import bytes_to_str, detect_encoding
    except ImportError:
        raise missing_extra("resiliparse", "html") from None
    return bytes_to_str(body, detect_encoding(body, from_html_meta=True))


def warc_responses(stream: BinaryIO) -> Iterator[tuple[int, str, bytes]]:
    """Number, address and body of every HTML response that was a success."""
    try:
        from fastwarc.warc import ArchiveIterator, WarcRecordType
    except ImportError:
        raise missing_extra("fastwarc", "html") from None
    records: Any = ArchiveIterator(stream, record_types=WarcRecordType.response)
    for number, record in enumerate(records, 1):
        kind = record.http_content_type or ""
        if record.http_headers and record.http_headers.status_code == 200 and "html" in kind:
            yield number, record.headers.get("WARC-Target-URI", ""), record.reader.read()
