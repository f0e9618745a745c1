"""Parts of a data set, written behind its path: ``data.csv#500``, ``data.csv#10%``, ``data.csv#8/label``, each perhaps with ``@7``.

A slice is drawn by the hash of the texts, not by their order in the file: it is the same on every machine, ``#100`` is contained in
``#500``, and repeated texts fall in together. ``@7`` draws another one.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import xxhash

from luban.examples.splitting import labels_of, normalised, texts_of
from luban.foundation.errors import ConfigError

Example = TypeVar("Example")
_GRAMMAR = re.compile(r"(?:(\d+)|(\d+)/label|(\d+(?:\.\d+)?)%)(?:@(\d+))?")


@dataclass(frozen=True)
class Slice:
    """How much of a data set: a number of examples, a number for each label, or a share; ``seed`` chooses the draw."""

    count: int | None = None
    each: int | None = None
    share: float | None = None
    seed: int = 0


def parse(path: Path | str) -> tuple[str, Slice | None]:
    """The path without its slice, and the slice. Raises ConfigError for what is behind ``#`` and is none."""
    text = str(path)
    if "#" not in text or Path(text).exists():
        return text, None
    plain, _, fragment = text.rpartition("#")
    matched = _GRAMMAR.fullmatch(fragment)
    if (
        not matched
        or any(value is not None and float(value) == 0 for value in matched.groups()[:3])
        or (matched[3] and float(matched[3]) > 100)
    ):
        raise ConfigError(
            "{path}: {fragment!r} is no slice", "", "write #500 (that many examples), #8/label (that many of each label) or #10% (a share), and @7 behind it for another draw",
            path=plain, fragment=fragment,
        )  # fmt: skip
    return plain, Slice(
        int(matched[1]) if matched[1] else None,
        int(matched[2]) if matched[2] else None,
        float(matched[3]) / 100 if matched[3] else None,
        int(matched[4] or 0),
    )


def draw_order(examples: Sequence[object], seed: int) -> list[int]:
    """Indices in the order in which examples are drawn: by the hash of what they say, equal ones by their order."""

    def key(index: int) -> tuple[int, int]:
        content = "\x1e".join(normalised(text) for text in texts_of(examples[index]))
        return xxhash.xxh3_64_intdigest(content.encode("utf-8", "replace"), seed=seed), index

    return sorted(range(len(examples)), key=key)


def take(examples: Sequence[Example], part: Slice, path: str = "") -> list[Example]:
    """The slice, in the order of the data. With fewer examples than asked for, all of them.

    ``8/label`` takes an example while one of its labels has fewer than 8; raises ConfigError where examples have no labels.
    """
    order = draw_order(examples, part.seed)
    if part.each is None:
        number = part.count if part.count is not None else max(1, round(len(order) * (part.share or 0)))
        chosen = set(order[:number])
    else:
        if not any(labels_of(example) for example in examples):
            raise ConfigError(
                "{path}: #{each}/label needs examples with labels",
                "these have none",
                "write #{each} for that many examples",
                path=path,
                each=part.each,
            )
        seen: Counter[str] = Counter()
        chosen = set()
        for index in order:
            labels = labels_of(examples[index])
            if any(seen[label] < part.each for label in labels):
                chosen.add(index)
                seen.update(labels)
    return [example for index, example in enumerate(examples) if index in chosen]


def weigh(examples: Sequence[Example], weight: float) -> list[Example]:
    """Examples repeated ``weight`` times; of a broken number, the rest is a slice: 2.5 is two of each and half of them once more."""
    if not 0 < weight <= 1000:
        raise ConfigError(
            "a weight of {weight} is no number of times to read a file",
            "",
            "give a number above 0 and up to 1000, such as 2 or 0.5",
            weight=weight,
        )
    whole = int(weight)
    rest = take(examples, Slice(share=weight - whole)) if weight > whole and examples else []
    return list(examples) * whole + rest
