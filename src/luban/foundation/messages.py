"""Everything Luban says is written once, in English, and shown in the reader's language.

A message is a template (``"{path}: no such file"``) and its values. The English template is the key of
the Chinese catalogue; each room keeps its own ``zh.json``. A template without an entry is shown in English.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from luban.foundation import environment

_language: str | None = None


def set_language(language: str | None) -> None:
    """Choose ``"en"`` or ``"zh"``; None goes back to the locale of the environment."""
    global _language
    _language = language


def language() -> str:
    """The language messages are shown in: ``"en"`` or ``"zh"``."""
    return _language or environment.locale_language()


@lru_cache(maxsize=1)
def _chinese() -> dict[str, str]:
    catalogue: dict[str, str] = {}
    for file in sorted(Path(__file__).parent.parent.glob("*/zh.json")):
        catalogue |= json.loads(file.read_text(encoding="utf-8"))
    return catalogue


def t(template: str, **values: object) -> str:
    """The template in the reader's language, with its values filled in.

    Without values the template is returned as it is, so that text from elsewhere may hold braces.
    """
    if language() == "zh":
        template = _chinese().get(template, template)
    return template.format(**values) if values else template
