"""Documents to tokens on all cores, in the documents' order and in bounded memory."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

from luban.corpus.documents import Document
from luban.tokenizer.tokenizer import Tokenizer

PIECE_CHARACTERS = 500_000
# Between a line break and a letter or digit every pre-tokenizer with Qwen2's, Llama 3's or GPT-2's rules cuts anyway.
_SAFE_CUT = re.compile(r"(?<=\n)(?=[A-Za-z0-9\u4e00-\u9fff])")


def encode_documents(tokenizer: Tokenizer, documents: Iterable[Document], batch_characters: int) -> Iterator[tuple[Document, list[int]]]:
    """Each document with its token ids, in order.

    `tokenizers` encodes a batch on all cores without holding the interpreter's lock; meanwhile the next batch is read. At most
    three batches are in memory.
    """
    with ThreadPoolExecutor(1) as pool:
        batches = _batches(documents, batch_characters)
        batch = next(batches, None)
        while batch is not None:
            encoding = pool.submit(_encode, tokenizer, [document.text for document in batch])
            following = next(batches, None)
            yield from zip(batch, encoding.result(), strict=True)
            batch = following


def _batches(documents: Iterable[Document], characters: int) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document.text)
        if size >= characters:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode(tokenizer: Tokenizer, texts: list[str]) -> list[list[int]]:
    """A very long text is encoded in pieces, which uses all cores and keeps memory low, and gives the same ids."""
    pieces = [cut_text(text, PIECE_CHARACTERS) if tokenizer.byte_level else [text] for text in texts]
    encoded = iter(tokenizer.encode_batch([piece for item in pieces for piece in item]))
    return [[index for ids in islice(encoded, len(item)) for index in ids] for item in pieces]


def cut_text(text: str, size: int) -> list[str]:
    """Pieces of about ``size`` characters, cut only where the tokenizer cuts too; a text without such a place stays whole."""
    pieces, start = [], 0
    while len(text) - start > size:
        place = _SAFE_CUT.search(text, start + size)
        if place is None:
            break
        pieces.append(text[start : place.start()])
        start = place.start()
    pieces.append(text[start:])
    return pieces
