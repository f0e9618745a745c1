"""The verb augment: labelled rows, and rows made of them that keep their labels.

What is made of a row depends on the row, the seed and the config alone, not on its neighbours or its place. Rows are worked through in
pieces, each written in one go, so that a stopped run asks no model twice for a piece that was finished.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from luban.examples import augmentation_report as report
from luban.examples.augmentation_characters import alike_edits, noise_edits, typo_edits
from luban.examples.augmentation_edits import NEGATIONS, Draws, Edit, Locks, edited, kept_words, key_of, locked_ranges, mapping_of, parts_of, rewritten, row_of
from luban.examples.augmentation_endpoint import Endpoint
from luban.examples.augmentation_lexicons import Homophones, Synonyms, nothing, read_characters
from luban.examples.augmentation_models import back_translated, paraphrased, synthesised
from luban.examples.augmentation_words import Words, deletion_edits, insertion_edits, swap_edits, synonym_edits
from luban.examples.config import AugmentConfig
from luban.examples.reading import ExampleSet, read_examples
from luban.examples.splitting import labels_of
from luban.examples.tasks import LabeledText
from luban.foundation.artifacts import Artifact, Work, write_bytes
from luban.foundation.console import progress, say, warn
from luban.foundation.errors import ConfigError, DataError

VERSION = 1
EXAMPLES = "examples.jsonl"
PIECE = 64  # rows that are worked through together; a killed run does one such piece again
_PIECES = "pieces"
_SAMPLES = 4  # made rows of each method that the report shows

Attempt = tuple[Any | None, str, str]  # the made example or None, what made it, and why there is none


def run(config: AugmentConfig, work: Work) -> None:
    """Read, leave out what is held out, make rows piece by piece, and write examples.jsonl with its report."""
    paths = _paths(work.inputs["data"])
    found = read_examples(paths, config.task, config.mapping or None)
    found.show()
    held = _held_out(config, work)
    originals = [example for example in found.examples if key_of(example) not in held]
    left_out = len(found.examples) - len(originals)
    if left_out:
        warn("{count} rows stand in the held-out files too, and are left out", count=left_out)
    if not originals:
        raise DataError("every row stands in the held-out files", "nothing is left to train on", "name the training set as data, and others as held_out")
    if not held:
        say("no held_out is named: make sure that this is training data only, split before it is augmented")
    _check_only(config, found)
    _check_controls(originals)
    methods = Methods(config, work)
    for number, piece in enumerate(_pieces(originals)):
        _make_piece(methods, originals, number, piece)
    _make_synthesis(methods, originals)
    results = _assemble(config, work, found, originals, held)
    results |= {"left_out": left_out, "held_out": len(held), "bad_rows": len(found.bad), "mapping": mapping_of(config.task, originals)}
    report.write(work.path, results, found)
    work.metrics |= {"originals": len(originals), "made": results["made"], "left_out": left_out}
    shutil.rmtree(work.path / _PIECES, ignore_errors=True)


def _paths(given: Any) -> list[str]:
    items = given if isinstance(given, list) else [] if given is None else [given]
    return [str(item.path if isinstance(item, Artifact) else item) for item in items]


def _held_out(config: AugmentConfig, work: Work) -> set[int]:
    paths = _paths(work.inputs.get("held_out"))
    return {key_of(example) for example in read_examples(paths, config.task, config.mapping or None).examples} if paths else set()


def _check_only(config: AugmentConfig, found: ExampleSet) -> None:
    if unknown := [label for label in config.only if label not in found.labels]:
        raise ConfigError(
            "only: no row has the label {label!r}", "the labels are {labels}", "write one of them", label=unknown[0], labels=", ".join(found.labels[:20]) or "–"
        )


def _check_controls(originals: Sequence[Any]) -> None:
    """Controls become columns of the rows, beside those that the rows have anyway."""
    taken = {name for example in originals for name in getattr(example, "controls", {})} & {"input", "output", "source", "made_by"}
    if taken:
        raise ConfigError(
            "mapping: a control cannot be called {name!r} here", "the made rows have a column of that name", "call it otherwise, such as mapping: {{controls: {{my_{name}: {name}}}}}",
            name=min(taken),
        )  # fmt: skip


def _pieces(originals: Sequence[Any]) -> Iterator[range]:
    for start in range(0, len(originals), PIECE):
        yield range(start, min(start + PIECE, len(originals)))


# ----------------------------------------------------------------------------------------------------- the methods


@dataclass
class Method:
    """A way to make rows: ``attempt(example, part, draws, copy)`` for one row, or ``together(texts, seed)`` for the texts of many."""

    name: str
    copies: float
    attempt: Callable[[Any, str, Draws, int], tuple[list[Edit], str]] | None = None
    together: Callable[[Sequence[str], int], list[tuple[str, str]]] | None = None


class Methods:
    """The methods that a config asks for; lexicons and models are opened when the first piece needs them."""

    def __init__(self, config: AugmentConfig, work: Work):
        self.config, self.work = config, work
        self.kept = kept_words(NEGATIONS if config.protected == "auto" else config.protected)
        self._writers: dict[Any, Any] = {}

    @cached_property
    def all(self) -> list[Method]:
        """The methods that make any rows."""
        return [method for method in (*self._edits(), *self._models()) if method.copies]

    def locks(self, example: Any, part: str) -> Locks:
        return Locks(getattr(example, part), locked_ranges(example) if part != "pair" else [], self.kept)

    def writer(self, name: str, model: str | None, temperature: float) -> Any:
        """The model directory that a field names, or the endpoint; each is opened once."""
        path = _paths(self.work.inputs.get(name))[0] if model else ""
        if (path, temperature) not in self._writers:
            if path:
                from luban.examples.augmentation_writer import ModelWriter

                self._writers[path, temperature] = ModelWriter(Path(path), temperature)
            else:
                self._writers[path, temperature] = Endpoint(self.config.endpoint)
        return self._writers[path, temperature]

    def _edits(self) -> Iterator[Method]:
        config, inputs = self.config, self.work.inputs
        yield Method("eda", config.eda.copies, attempt=self._eda())
        for name, section, change in (("noise", config.noise, noise_edits), ("typos", config.typos, typo_edits)):
            yield Method(name, section.copies, attempt=partial(self._characters, change, section.strength))
        for name, section in (("homophones", config.homophones), ("shapes", config.shapes)):
            if section.copies:
                file = _paths(inputs.get(f"{name}.file"))
                alike = read_characters(Path(file[0])) if file else Homophones(config.homophones.tones)
                yield Method(name, section.copies, attempt=partial(self._characters, partial(_alike, alike), section.strength))

    def _characters(self, change: Callable[..., list[Edit]], strength: float, example: Any, part: str, draws: Draws, copy: int) -> tuple[list[Edit], str]:
        return change(getattr(example, part), self.locks(example, part), strength, draws), ""

    def _eda(self) -> Callable[[Any, str, Draws, int], tuple[list[Edit], str]]:
        options, inputs = self.config.eda, self.work.inputs
        files, vectors = _paths(inputs.get("eda.synonyms")), _paths(inputs.get("eda.vectors"))
        given = bool(files or vectors)
        operations = (["synonym", "insert", "delete", "swap"] if given else ["delete", "swap"]) if options.operations == "auto" else list(options.operations)
        if options.copies and not given and options.operations == "auto":
            say("eda: words are deleted and swapped only; eda.synonyms or eda.vectors adds replacement and insertion")
        synonyms: Any = nothing
        if given and options.copies:
            synonyms = Synonyms(
                [Path(file) for file in files],
                Path(vectors[0]) if vectors else None,
                neighbours=options.neighbours,
                minimum_similarity=options.minimum_similarity,
            )

        def attempt(example: Any, part: str, draws: Draws, copy: int) -> tuple[list[Edit], str]:
            # Several copies of a row take the operations in turn, in an order of its own.
            order = Draws(self.work.seed, "eda", getattr(example, part)).sample(operations, len(operations))
            operation = order[copy % len(order)]
            words = Words(getattr(example, part), self.locks(example, part), options.segmentation)
            if operation in ("synonym", "insert"):
                change = synonym_edits if operation == "synonym" else insertion_edits
                return change(words, options.strength, synonyms, draws), operation
            return (deletion_edits if operation == "delete" else swap_edits)(words, options.strength, draws), operation

        return attempt

    def _models(self) -> Iterator[Method]:
        config = self.config
        if (options := config.back_translation).copies:

            def back_translate(texts: Sequence[str], seed: int) -> list[tuple[str, str]]:
                there = self.writer("back_translation.there", options.there, options.temperature)
                return back_translated(texts, options, there, self.writer("back_translation.back", options.back, options.temperature), seed)

            yield Method("back_translation", options.copies, together=back_translate)
        if (said := config.paraphrase).copies:

            def paraphrase(texts: Sequence[str], seed: int) -> list[tuple[str, str]]:
                return paraphrased(texts, said, self.writer("paraphrase.model", said.model, said.temperature), seed)

            yield Method("paraphrase", said.copies, together=paraphrase)


def _alike(alike: Any, text: str, locks: Locks, strength: float, draws: Draws) -> list[Edit]:
    return alike_edits(text, locks, strength, alike, draws)


def copies_of(copies: float, seed: int, method: str, text: str) -> int:
    """How many rows are made of one: the whole part of ``copies``, and one more for that share of all texts that is its broken part."""
    return int(copies) + (Draws(seed, method, "share", text).unit() < copies - int(copies))


# ------------------------------------------------------------------------------------------------------ the pieces


def _make_piece(methods: Methods, originals: list[Any], number: int, piece: range) -> None:
    """Write the attempts of some rows, unless an earlier run did."""
    config, work = methods.config, methods.work
    path = work.path / _PIECES / f"{number:06d}.jsonl"
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    able = [index for index in piece if not config.only or set(labels_of(originals[index])) & set(config.only)]
    lines: list[dict[str, Any]] = []
    with progress("augmenting (rows {start} to {end})", start=piece.start + 1, end=piece.stop, total=len(methods.all)) as advance:
        for method in methods.all:
            lines += _made(method, work.seed, [(index, originals[index]) for index in able], methods, config.task)
            advance()
    lines.sort(key=lambda line: line["parent"])  # stable: by row, then by method
    write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace"))


def _made(method: Method, seed: int, rows: Sequence[tuple[int, Any]], methods: Methods, task: str) -> Iterator[dict[str, Any]]:
    """The attempts of one method on some rows, as lines of a piece."""
    tries: list[tuple[int, Any, str, int]] = []
    for index, example in rows:
        text = "\x1e".join(getattr(example, part) for part in parts_of(example))
        for copy in range(copies_of(method.copies, seed, method.name, text)):
            part = Draws(seed, method.name, "part", copy, text).choice(parts_of(example))
            tries.append((index, example, part, copy))
    if method.together:
        written: dict[tuple[int, int], tuple[str, str]] = {}
        for copy in sorted({item[3] for item in tries}):
            batch = [item for item in tries if item[3] == copy]
            answers = method.together([getattr(example, part) for _, example, part, _ in batch], (seed << 8) + copy)
            written |= {(index, copy): answer for (index, *_), answer in zip(batch, answers, strict=True)}
    for index, example, part, copy in tries:
        if method.attempt:
            draws = Draws(seed, method.name, copy, part, getattr(example, part))
            edits, operation = method.attempt(example, part, draws, copy)
            made = edited(example, part, edits) if edits else example
            name = f"{method.name}/{operation}" if operation else method.name
            problem = "spans lost" if made is None else ""
        else:
            text, problem = written[index, copy]
            made, name = (None if problem else rewritten(example, part, text)), method.name
            problem = problem or ("spans lost" if made is None else "")
        yield _line(index, name, example, part, made, problem, task)


def _line(index: int, name: str, example: Any, part: str, made: Any | None, problem: str, task: str) -> dict[str, Any]:
    if made is not None and (not getattr(made, part).strip() or key_of(made) == key_of(example)):
        made, problem = None, "unchanged" if getattr(made, part).strip() else "empty"
    line: dict[str, Any] = {"parent": index, "made_by": name}
    if made is None:
        return {**line, "problem": problem}
    return {**line, "key": key_of(made), "before": getattr(example, part), "after": getattr(made, part), "row": row_of(made, task, place_of(example), name)}


def place_of(example: Any) -> str:
    """``train.csv:12``: where an example stands, without the folders above."""
    file, _, line = example.source.rpartition(":")
    return f"{Path(file).name}:{line}" if file else example.source


def _make_synthesis(methods: Methods, originals: list[Any]) -> None:
    """New texts of every label, one piece a label."""
    config, work, options = methods.config, methods.work, methods.config.synthesis
    if not options.per_label:
        return
    if any(isinstance(example, LabeledText) and example.pair for example in originals):
        raise ConfigError("synthesis writes single texts, and the data has pairs", "", "set synthesis.per_label to 0, or paraphrase")
    texts: dict[str, list[str]] = {}
    for example in originals:
        if isinstance(example.label, str) and (not config.only or example.label in config.only):
            texts.setdefault(example.label, []).append(example.text)
    for number, label in enumerate(sorted(texts)):
        path = work.path / _PIECES / f"synthesis-{number:06d}.jsonl"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        writer = methods.writer("synthesis.model", options.model, options.temperature)
        lines = []
        for text, problem in synthesised(label, texts[label], options, writer, work.seed):
            line: dict[str, Any] = {"parent": -1, "made_by": "synthesis"}
            made = LabeledText(text, "", label)
            row = row_of(made, config.task, f"label {label}", "synthesis")
            lines.append({**line, "problem": problem} if problem else {**line, "key": key_of(made), "before": label, "after": text, "row": row})
        write_bytes(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace"))


# -------------------------------------------------------------------------------------------------------- the whole


def _assemble(config: AugmentConfig, work: Work, found: ExampleSet, originals: list[Any], held: set[int]) -> dict[str, Any]:
    """examples.jsonl: the original rows, then the made ones, each once and none that is held out. Returns the counts and samples."""
    counts: dict[str, Counter[str]] = {}
    samples: dict[str, list[dict[str, str]]] = {}
    labels: Counter[str] = Counter()
    known = {key_of(example) for example in originals}
    lines = [row_of(example, config.task, place_of(example), "original") for example in originals]
    before = Counter(label for example in originals for label in labels_of(example))
    for path in sorted((work.path / _PIECES).glob("*.jsonl")):
        for line in map(json.loads, path.read_text(encoding="utf-8").split("\n")[:-1]):
            own = counts.setdefault(line["made_by"], Counter())
            own["tried"] += 1
            problem = line.get("problem") or ("held out" if line["key"] in held else "repeated" if line["key"] in known else "")
            if problem:
                own[problem] += 1
                continue
            known.add(line["key"])
            own["made"] += 1
            lines.append(line["row"])
            parent = line["parent"]
            labels.update(labels_of(originals[parent]) if parent >= 0 else [line["before"]])
            if len(shown := samples.setdefault(line["made_by"], [])) < _SAMPLES:
                shown.append({"source": line["row"]["source"], "before": line["before"], "after": line["after"]})
    write_bytes(work.path / EXAMPLES, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines).encode("utf-8", "replace"))
    return {
        "task": config.task,
        "rows": len(found.examples),
        "originals": len(originals),
        "made": sum(own["made"] for own in counts.values()),
        "methods": {name: dict(own) for name, own in sorted(counts.items())},
        "labels": {label: {"originals": before[label], "made": labels[label]} for label in sorted({*before, *labels})},
        "samples": samples,
    }

