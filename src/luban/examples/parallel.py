"""An input and the output wanted for it: two files line by line, columns of a table, TMX; translation, summaries, titles, data to text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from xml.parsers import expat

from luban.corpus.readers import READ_ERRORS, open_stream
from luban.examples import columns as known
from luban.examples.notes import Notes, check_text
from luban.examples.records import Table, column, lines_of
from luban.examples.tasks import TextPair
from luban.foundation.errors import ConfigError, DataError

PARTS = ("input", "output", "controls")
_NATIVE = ("bpt", "ept", "it", "ph", "ut")  # inside a segment: markup of the original file, not text


def recognise(table: Table) -> dict[str, Any] | None:
    """Which columns hold input and output: by name, by language code, or the two that hold texts."""
    rows = table.sample()
    for name in table.columns:  # {"translation": {"en": …, "zh": …}}
        value = next((row[name] for row in rows if isinstance(row.get(name), dict)), None)
        if value and known.normalised(name) in ("translation", "翻译") and len(value) >= 2:
            one, two = list(value)[:2]
            return {"input": f"{name}.{one}", "output": f"{name}.{two}"}
    if pair := known.pair_by_name(table.columns, known.OUTPUT_PAIRS):
        return {"input": pair[0], "output": pair[1]}
    languages = [name for name in table.columns if known.normalised(name) in known.LANGUAGES and known.normalised(name) != "id"]
    if len(languages) == 2:
        return {"input": languages[0], "output": languages[1]}
    facts = known.facts_of(rows, table.columns)
    texts = known.text_columns(facts, len(rows))
    lists = [
        name
        for name in table.columns
        if name not in texts and any(isinstance(row.get(name), list) and row[name] and isinstance(row[name][0], str) for row in rows)
    ]
    found = [name for name in table.columns if name in texts or name in lists]
    return {"input": found[0], "output": found[1]} if len(found) == 2 or (len(found) > 2 and not table.named) else None


def examples(table: Table, mapping: dict[str, Any], notes: Notes) -> list[TextPair]:
    """Pairs of a table. A cell that is a list of sentences is one input; a list of outputs makes one pair each."""
    controls = mapping.get("controls") or {}
    controls = controls if isinstance(controls, dict) else {name: name for name in ([controls] if isinstance(controls, str) else controls)}
    steering = {part: column(table, name, "controls") for part, name in controls.items()}
    paths = {part: _path(table, mapping[part], part) for part in ("input", "output")}
    found = []
    for line, row in table.rows:
        try:
            given = check_text(_inside(row, paths["input"]), "input").strip()
            wanted = _inside(row, paths["output"])
            outputs = [check_text(item, "output").strip() for item in (wanted if isinstance(wanted, list) and wanted else [wanted])]
        except ValueError as error:
            notes.set_aside(table.path, line, str(error), row)
            continue
        notes.count("several outputs", int(len(outputs) > 1))
        steer = {part: check_text(row[name], part) for part, name in steering.items() if row.get(name) not in (None, "", [])}
        found += [TextPair(given, output, dict(steer), f"{table.path}:{line}") for output in outputs]
    return found


def _path(table: Table, value: Any, part: str) -> list[str]:
    """A column, or ``column.key`` for an object inside one."""
    if isinstance(value, str) and value not in table.columns and "." in value:
        outer, _, inner = value.partition(".")
        return [column(table, outer, part), inner]
    if (
        isinstance(value, str)
        and value not in table.columns
        and any(isinstance(row.get("translation"), dict) and value in row["translation"] for row in table.sample(20))
    ):
        return ["translation", value]  # the language alone
    return [column(table, value, part)]


def _inside(row: dict[str, Any], path: list[str]) -> Any:
    value: Any = row.get(path[0])
    return value.get(path[1]) if len(path) > 1 and isinstance(value, dict) else value


def plain_name(path: Path) -> tuple[str, str]:
    """(stem, language) of ``folder/corpus.en.gz``: what two halves share, and what tells them apart."""
    name = path.name.removesuffix(".gz").removesuffix(".zst").removesuffix(".txt")
    stem, dot, language = name.rpartition(".")
    if dot:
        return str(path.parent / stem), language
    for mark in ("_", "-"):
        head, found, tail = name.rpartition(mark)
        if found and known.normalised(tail) in known.LANGUAGES:
            return str(path.parent / head), tail
    return str(path.parent / name), ""


def halves(files: Sequence[Path]) -> tuple[list[tuple[Path, Path]], list[Path]]:
    """Files that belong together by their names (exactly two of a stem), in the order given; and those that found no partner.

    Two files are a pair whatever their names.
    """
    if len(files) == 2:
        return [(files[0], files[1])], []
    groups: dict[str, list[Path]] = {}
    for file in files:
        groups.setdefault(plain_name(file)[0], []).append(file)
    return [(group[0], group[1]) for group in groups.values() if len(group) == 2], [
        file for group in groups.values() if len(group) != 2 for file in group
    ]


def partner(file: Path) -> Path | None:
    """The one other file of a folder that has the same stem and a language for its ending."""
    stem, language = plain_name(file)
    if known.normalised(language) not in known.LANGUAGES:
        return None
    others = [
        other
        for other in sorted(file.parent.iterdir())
        if other != file and other.is_file() and plain_name(other)[0] == stem and known.normalised(plain_name(other)[1]) in known.LANGUAGES
    ]
    return others[0] if len(others) == 1 else None


def from_two_files(first: Path, second: Path, mapping: dict[str, Any], notes: Notes) -> list[TextPair]:
    """Line n of one file with line n of the other. Raises DataError if they have different numbers of lines: then nothing fits."""
    if mapping.get("input") is not None:
        wanted = str(mapping["input"])
        languages = [plain_name(file)[1] for file in (first, second)]
        if wanted not in (*languages, first.name, second.name):
            raise ConfigError(
                "mapping: input: neither {first} nor {second} is {value!r}", "", "write the ending of one of them, such as {guess}",
                first=first.name, second=second.name, value=wanted, guess=languages[0] or first.name,
            )  # fmt: skip
        if wanted in (languages[1], second.name):
            first, second = second, first
    sides = []
    for file in (first, second):
        before = len(notes.bad)
        lines = lines_of(file, notes)
        count = max([number for number, _ in lines] + [bad.line for bad in notes.bad[before:]], default=0)
        sides.append((dict(lines), count))
    (left, left_count), (right, right_count) = sides
    if left_count != right_count:
        raise DataError(
            "{first} has {left} lines and {second} has {right}", "line n of one is taken for the translation of line n of the other, so from some line on all pairs would be wrong",
            "align the files again, or write the pairs as a table with two columns", first=first, second=second, left=left_count, right=right_count,
        )  # fmt: skip
    found = []
    for number in range(1, left_count + 1):
        if number not in left or number not in right:
            if number in left or number in right:
                notes.set_aside(first, number, "the other half of this line cannot be read", left.get(number, right.get(number)))
            continue
        if not left[number].strip() and not right[number].strip():
            continue  # an empty line on both sides: a paragraph ends
        try:
            found.append(
                TextPair(check_text(left[number], "input").strip(), check_text(right[number], "output").strip(), source=f"{first}:{number}")
            )
        except ValueError as error:
            notes.set_aside(first, number, str(error), f"{left[number]}\t{right[number]}")
    return found


class _Units:
    """Collects the segments of a TMX file as expat reads it. Entities are refused: an external one reads files, nested ones fill memory."""

    def __init__(self, path: Path, parser: Any):
        self.path, self.parser = path, parser
        self.units: list[tuple[int, dict[str, str]]] = []
        self.unit: dict[str, str] = {}
        self.line, self.language, self.segment, self.native = 0, "", None, 0  # type: tuple[int, str, list[str] | None, int]
        self.source_language = ""
        parser.StartElementHandler, parser.EndElementHandler, parser.CharacterDataHandler = self.start, self.end, self.data
        parser.EntityDeclHandler = self.refuse

    def refuse(self, name: str, *_: Any) -> None:
        raise DataError(
            "{path}:{line}: the file declares the XML entity {name!r}", "an entity can read other files or grow without end, so none is expanded", "write its text out, and take the declaration away",
            path=self.path, line=self.parser.CurrentLineNumber, name=name,
        )  # fmt: skip

    def start(self, name: str, attributes: dict[str, str]) -> None:
        if name == "header":
            self.source_language = attributes.get("srclang", "")
        elif name == "tu":
            self.unit, self.line = {}, self.parser.CurrentLineNumber
        elif name == "tuv":
            self.language = attributes.get("xml:lang", attributes.get("lang", ""))
        elif name == "seg":
            self.segment = []
        elif name in _NATIVE:
            self.native += 1

    def data(self, text: str) -> None:
        if self.segment is not None and not self.native:
            self.segment.append(text)

    def end(self, name: str) -> None:
        if name == "seg" and self.segment is not None:
            self.unit.setdefault(self.language, "".join(self.segment))
            self.segment = None
        elif name in _NATIVE:
            self.native -= 1
        elif name == "tu":
            self.units.append((self.line, self.unit))


def from_tmx(path: Path, mapping: dict[str, Any], notes: Notes) -> tuple[list[TextPair], dict[str, str]]:
    """The translation units of a TMX 1.4 file (https://www.gala-global.org/tmx-14b), and which languages were taken.

    Raises DataError for a file that declares entities, and ConfigError for a language that it does not hold.
    """
    parser = expat.ParserCreate()
    parser.buffer_text = True
    units = _Units(path, parser)
    try:
        with open_stream(path) as stream:
            parser.ParseFile(stream)
    except expat.ExpatError as error:
        notes.set_aside(path, error.lineno, f"not valid XML from here on: {expat.ErrorString(error.code)}")
    except READ_ERRORS as error:
        raise DataError("{path} is damaged or cut off: {error}", "", "fetch or write the file again", path=path, error=error) from None
    languages: dict[str, int] = {}
    for _, unit in units.units:
        for language in unit:
            languages[language] = languages.get(language, 0) + 1
    if not languages:
        return [], {}
    input_language = (
        _language(mapping.get("input"), languages, "input") or _language(units.source_language, languages, None) or next(iter(languages))
    )
    others = {name: count for name, count in languages.items() if name != input_language}
    output_language = _language(mapping.get("output"), languages, "output") or (
        max(others, key=lambda name: others[name]) if others else ""
    )
    found = []
    for line, unit in units.units:
        try:
            found.append(
                TextPair(
                    check_text(unit.get(input_language), input_language).strip(),
                    check_text(unit.get(output_language), output_language or "second language").strip(),
                    source=f"{path}:{line}",
                )
            )
        except ValueError as error:
            notes.set_aside(path, line, str(error), unit)
    return found, {"input": input_language, "output": output_language}


def _language(wanted: Any, languages: dict[str, int], part: str | None) -> str | None:
    """The file's language that a wanted one names: ``zh`` finds ``zh-CN``."""
    if not wanted:
        return None
    name = known.normalised(wanted)
    for language in languages:
        if known.normalised(language) == name:
            return language
    for language in languages:
        if known.normalised(language).split("_")[0] == name.split("_")[0]:
            return language
    if part is None:
        return None
    raise ConfigError(
        "mapping: {part}: the file holds no language {value!r}",
        "",
        "it holds {languages}",
        part=part,
        value=wanted,
        languages=", ".join(languages),
    )
