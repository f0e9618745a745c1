"""A few examples as the model will see them, supervised tokens apart from the rest."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from luban.foundation.console import console, heading, say
from luban.tokenizer.tokenizer import Tokenizer
from luban.tokens.batch import Example

OPEN, CLOSE = "⟦", "⟧"
_LONGEST = 600  # characters of one stretch that are shown


def show(examples: Sequence[Example], tokenizer: Tokenizer, n: int = 3) -> None:
    """Print ``n`` examples, spread over the set: green (and between ⟦ ⟧) is learned, dim is given."""
    if not examples:
        return
    heading("What is learned: {open}green, in brackets{close}; the rest is given", open=OPEN, close=CLOSE)
    step = max(1, len(examples) // n)
    for example in examples[::step][:n]:
        say(
            "{source}: {tokens} tokens, {learned} of them learned",
            source=example.source or "?",
            tokens=len(example.ids),
            learned=int((example.weights > 0).sum()),
        )
        console().print(preview(example, tokenizer))


def preview(example: Example, tokenizer: Tokenizer) -> Text:
    """One example as styled text; without colour the brackets still tell what is learned. Control tokens are written out."""
    line = Text()
    for text, weight in stretches(example, tokenizer):
        if weight > 0:
            scale = "" if weight == 1 else f"×{weight:g} "
            line.append(f"{OPEN}{scale}{text}{CLOSE}", style="bold green")
        else:
            line.append(text, style="dim")
    return line


def stretches(example: Example, tokenizer: Tokenizer) -> list[tuple[str, float]]:
    """The example as stretches of text of one weight each, long ones shortened."""
    grouped = groupby(range(len(example.ids)), key=lambda place: float(example.weights[place]))
    return [
        (_shorten(tokenizer.decode([int(example.ids[place]) for place in places], skip_special=False)), weight)
        for weight, places in grouped
    ]


def _shorten(text: str) -> str:
    if len(text) <= _LONGEST:
        return text
    half = _LONGEST // 2
    return f"{text[:half]} … [{len(text) - _LONGEST}] … {text[-half:]}"
