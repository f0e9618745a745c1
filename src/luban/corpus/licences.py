"""Which licence a source is under: as the recipe says, else as a file beside the source clearly names it."""

from __future__ import annotations

import re
from pathlib import Path

from luban.corpus.config import CurateConfig

UNKNOWN = "unknown"
_FILES = ("SOURCE.md", "LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "LICENCE.txt", "LICENCE.md", "COPYING", "LICENSES.md", "README.md", "README.txt", "README")
_STATED = re.compile(r"^\W*licen[cs]es?\s*[:：]\s*(.+)$", re.IGNORECASE | re.MULTILINE)
_NAMES = (  # the most specific first: a text that names CC BY-SA also contains "CC BY"
    (r"CC[ -]BY[ -]NC[ -]SA[ -](\d\.\d)", "CC-BY-NC-SA-{}"), (r"CC[ -]BY[ -]NC[ -]ND[ -](\d\.\d)", "CC-BY-NC-ND-{}"), (r"CC[ -]BY[ -]NC[ -](\d\.\d)", "CC-BY-NC-{}"),
    (r"CC[ -]BY[ -]SA[ -](\d\.\d)", "CC-BY-SA-{}"), (r"CC[ -]BY[ -](\d\.\d)", "CC-BY-{}"), (r"CC0|public[ -]domain dedication", "CC0-1.0"), (r"\bODC[ -]BY\b", "ODC-By-1.0"),
    (r"Apache(?: License,?)?[ -](?:Version )?2\.0", "Apache-2.0"), (r"\bMIT\b", "MIT"), (r"BSD[ -]3", "BSD-3-Clause"), (r"BSD[ -]2", "BSD-2-Clause"), (r"MPL[ -]2\.0", "MPL-2.0"),
    (r"GPL-?(?:v| )?3", "GPL-3.0"), (r"GPL-?(?:v| )?2", "GPL-2.0"), (r"\bPSF[ -]2\.0", "PSF-2.0"), (r"public domain", "public domain"),
)  # fmt: skip


def licences_of(config: CurateConfig, sources: list[tuple[str, Path]]) -> dict[str, list[str]]:
    """The licences of each source, by the name it has in the recipe; ``unknown`` where nothing says."""
    found = {}
    for name, path in sources:
        if isinstance(config.licence, dict):
            stated = config.licence.get(name) or config.licence.get(Path(name).name)
            found[name] = [stated] if stated else beside(path)
        else:
            found[name] = [config.licence] if config.licence != "auto" else beside(path)
    return found


def beside(path: Path) -> list[str]:
    """Licences that a file in the source's folder names: a line that begins with "licence:", or the text of a known licence."""
    folder = path if path.is_dir() else path.parent
    for name in _FILES:
        file = folder / name
        if not file.is_file() or file.stat().st_size > 1 << 20:
            continue
        text = _about(file.read_text(encoding="utf-8", errors="replace"), path.name)
        stated = "\n".join(_STATED.findall(text))
        if stated:
            return _named(stated) or [" ".join(stated.split())[:100]]
        if not name.startswith("README") and (named := _named(text)):
            return named
    return [UNKNOWN]


def _about(text: str, name: str) -> str:
    """The sections whose headings name the source, where a file holds the notices of several; else all of it."""
    sections = [section for section in re.split(r"(?m)^(?=#+ )", text) if name in section.partition("\n")[0]]
    return "".join(sections) or text


def _named(text: str) -> list[str]:
    found = []
    for pattern, name in _NAMES:
        for match in re.finditer(pattern, text, re.IGNORECASE):
            licence = name.format(*match.groups())
            if licence not in found:
                found.append(licence)
        text = re.sub(pattern, " ", text, flags=re.IGNORECASE)
    return sorted(found)
