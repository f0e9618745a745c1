"""Kneser-Ney n-gram models over any units, as tables on disk that are read through memory maps.

The mathematics and the naming of k-grams are those of ngram.py: a k-gram is the rank of ``prefix rank * radix + symbol`` among those
seen. What was fitted (fitting/ngram_counting.py) is, for each order k,

    keys      [k-grams] int64, ascending
    direct    [k-grams] float32, max(a - D, 0) / a(h .)
    backoff   [(k-1)-grams] float32, the mass handed to the shorter history

so ``p_k(w | h) = direct + backoff(h) * p_{k-1}(w | h')`` and ``p_0 = 1 / outcomes``. The followers of one history lie next to each other,
which makes the whole distribution after it one slice an order. Symbol 0 is the start of a document, 1 its end, units follow, and the last
symbol stands for every unit never seen.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from luban.foundation.artifacts import write_bytes, write_json
from luban.foundation.errors import DataError
from luban.foundation.messages import t

MODEL_TYPE = "luban-ngram"
FORMAT = 1
START, END, FIRST_UNIT = 0, 1, 2
UNKNOWN = "<unk>"


class NgramTables:
    """A fitted model of one order over symbols; ``units`` names symbols 2, 3, … and ``facts`` is the rest of config.json."""

    def __init__(
        self,
        keys: Sequence[np.ndarray],
        direct: Sequence[np.ndarray],
        backoff: Sequence[np.ndarray],
        *,
        units: Sequence[str],
        outcomes: int,
        facts: dict[str, Any] | None = None,
    ):
        self.keys, self.direct, self.backoff = list(keys), list(direct), list(backoff)
        self.units, self.outcomes, self.facts = list(units), outcomes, dict(facts or {})
        self.order = len(self.keys)
        self.radix = FIRST_UNIT + len(self.units) + 1
        self.symbol_of = {unit: index + FIRST_UNIT for index, unit in enumerate(self.units)}

    @property
    def unseen(self) -> int:
        """The symbol of a unit that is not in the table: the unknown word's where there is one."""
        return self.symbol_of[UNKNOWN] if self.facts.get("unit") == "word" else self.radix - 1

    def symbols(self, units: Sequence[str]) -> np.ndarray:
        """[order - 1 + units + 1] a document's symbols between its start symbols and its end."""
        unseen = self.unseen
        inner = [self.symbol_of.get(unit, unseen) for unit in units]
        return np.array([START] * (self.order - 1) + inner + [END], np.int64)

    def probabilities(self, symbols: np.ndarray) -> np.ndarray:
        """[predicted] probability of each symbol but the starts, given those before it; ``symbols`` may hold several documents."""
        probability = np.full(len(symbols), 1.0 / self.outcomes)
        window = np.zeros(0, np.int64)
        for k in range(1, self.order + 1):
            history = np.concatenate([[0], window[:-1]])[: len(symbols)] if k > 1 else np.zeros(len(symbols), np.int64)
            rank = np.where(symbols == START, 0, self._rank(k, np.where(history >= 0, history * self.radix + symbols, -1)))
            probability *= np.where(history >= 0, self.backoff[k - 1][np.maximum(history, 0)], 1.0)
            probability += np.where(rank >= 0, self.direct[k - 1][np.maximum(rank, 0)], 0.0)
            window = rank
        return probability[symbols != START]

    def nats(self, units: Sequence[str]) -> tuple[float, int]:
        """Negative natural log-likelihood of a document with its end, and how many of its units are not in the table."""
        symbols = self.symbols(units)
        return float(-np.log(self.probabilities(symbols)).sum()), int((symbols == self.unseen).sum())

    def distribution(self, history: Sequence[int]) -> np.ndarray:
        """[radix] probability of every symbol after a history of symbols; the last one is that of each single unseen unit.

        A history shorter than the order is taken to begin the document.
        """
        context = ([START] * (self.order - 1) + list(history))[len(history) :]
        probability = np.full(self.radix, 1.0 / self.outcomes)
        for k in range(1, self.order + 1):
            rank = int(self.ranks(np.array([context[len(context) - k + 1 :]], np.int64).reshape(1, -1))[0])
            if rank < 0:
                continue
            probability *= float(self.backoff[k - 1][rank])
            low, high = np.searchsorted(self.keys[k - 1], [rank * self.radix, (rank + 1) * self.radix])
            followers = np.asarray(self.keys[k - 1][low:high]) - rank * self.radix
            probability[followers] += self.direct[k - 1][low:high]
        probability[START] = 0.0
        return probability

    def ranks(self, rows: np.ndarray) -> np.ndarray:
        """[rows] the numbers of k-grams [rows, k], -1 where one was never seen; 0 for k = 0."""
        rank = np.zeros(len(rows), np.int64)
        for k in range(1, rows.shape[1] + 1):
            rank = self._rank(k, np.where(rank >= 0, rank * self.radix + rows[:, k - 1], -1))
        return rank

    def _rank(self, k: int, key: np.ndarray) -> np.ndarray:
        keys = self.keys[k - 1]
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        return np.where(keys[place] == key, place, -1)

    def next_units(self, history: Sequence[str], count: int = 5) -> list[tuple[str, float]]:
        """The likeliest units to follow, with their probabilities; the document's end is called ``</s>``."""
        probability = self.distribution([self.symbol_of.get(unit, self.unseen) for unit in history])[:-1]
        best = np.lexsort((np.arange(len(probability)), -probability))[:count]
        return [(self.name(int(symbol)), float(probability[symbol])) for symbol in best if probability[symbol] > 0]

    def name(self, symbol: int) -> str:
        """What a symbol is called: a unit, ``<s>``, ``</s>`` or, for one never seen, ``<unk>``."""
        return {START: "<s>", END: "</s>", self.radix - 1: UNKNOWN}.get(symbol) or self.units[symbol - FIRST_UNIT]

    def sample(self, maximum: int, *, seed: int, temperature: float = 1.0, history: Sequence[str] = ()) -> list[str]:
        """Units drawn one after another until the end of the document or ``maximum``; never one that has not been seen."""
        random = np.random.default_rng(seed)
        symbols = [self.symbol_of.get(unit, self.unseen) for unit in history]
        drawn: list[str] = []
        while len(drawn) < maximum:
            weight = self.distribution(symbols)[:-1]
            if self.facts.get("unit") == "word":
                weight[self.unseen] = 0.0
            weight = np.power(weight, 1.0 / temperature)
            total = np.cumsum(weight)
            symbol = min(int(np.searchsorted(total, random.random() * total[-1], side="right")), len(weight) - 1)
            if symbol == END:
                break
            symbols.append(symbol)
            drawn.append(self.name(symbol))
        return drawn

    # ---- on disk

    def save(self, folder: Path) -> None:
        """Write config.json, units.json and the tables. Arrays that already lie there as memory maps are left as they are."""
        folder.mkdir(parents=True, exist_ok=True)
        for k in range(1, self.order + 1):
            for name, arrays in (("keys", self.keys), ("direct", self.direct), ("backoff", self.backoff)):
                file, array = folder / f"{name}-{k}.npy", arrays[k - 1]
                if not (isinstance(array, np.memmap) and Path(str(array.filename)) == file.resolve()):
                    np.save(file, array, allow_pickle=False)
        write_bytes(folder / "units.json", json.dumps(self.units, ensure_ascii=True).encode())
        write_json(folder / "config.json", {"model_type": MODEL_TYPE, "format": FORMAT, "order": self.order, "outcomes": self.outcomes, **self.facts})

    @classmethod
    def load(cls, folder: Path) -> NgramTables:
        """Open a folder that `save` wrote; the tables stay on disk until they are read. Raises DataError for what is missing or damaged."""
        folder = Path(folder)
        config = read_config(folder, MODEL_TYPE)
        try:
            units = json.loads((folder / "units.json").read_bytes())
            order, outcomes = int(config.pop("order")), int(config.pop("outcomes"))
            arrays = {
                name: [np.load(folder / f"{name}-{k}.npy", mmap_mode="r", allow_pickle=False) for k in range(1, order + 1)]
                for name in ("keys", "direct", "backoff")
            }
            if not isinstance(units, list) or not all(isinstance(unit, str) for unit in units) or order < 1 or outcomes < 1:
                raise ValueError(t("its vocabulary is not a list of texts"))
            _check(arrays, order)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise DataError(
                "{path} is no n-gram model that can be read: {error}", "", "restore the folder, or fit the model again", path=folder, error=error
            ) from None
        return cls(
            arrays["keys"],
            arrays["direct"],
            arrays["backoff"],
            units=units,
            outcomes=outcomes,
            facts={key: value for key, value in config.items() if key not in ("model_type", "format")},
        )


def _check(arrays: dict[str, list[np.ndarray]], order: int) -> None:
    """The sizes of the tables fit together, and the arrays hold numbers of the right kinds."""
    for k in range(order):
        keys, direct, backoff = arrays["keys"][k], arrays["direct"][k], arrays["backoff"][k]
        histories = len(arrays["keys"][k - 1]) if k else 1
        if (
            keys.dtype != np.int64
            or direct.dtype.kind != "f"
            or backoff.dtype.kind != "f"
            or not len(keys)
            or len(direct) != len(keys)
            or len(backoff) != histories
        ):
            raise ValueError(t("the tables of order {order} do not fit together", order=k + 1))


def read_config(folder: Path, model_type: str) -> dict[str, Any]:
    """config.json of a fitted model. Raises DataError when it is missing, damaged, of another kind, or written by a newer Luban."""
    file = Path(folder) / "config.json"
    try:
        config = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError("{path} cannot be read: {error}", "", "name the folder of a fit stage", path=file, error=error.strerror or error) from None
    except ValueError as error:
        raise DataError("{file} is damaged: {error}", "", "restore the file", file=file, error=error) from None
    found = config.get("model_type") if isinstance(config, dict) else None
    if found != model_type:
        raise DataError("{file}: model_type is {found!r}, and {wanted!r} is needed here", file=file, found=found, wanted=model_type)
    if config.get("format", 0) > FORMAT:
        raise DataError("{file} was written by a newer Luban", "", "upgrade Luban", file=file)
    return config


# ------------------------------------------------------------------------------------------------------ ARPA


def write_arpa(tables: NgramTables, file: Path) -> dict[int, int]:
    """Write the model as an ARPA file (base-10 logarithms), which kenlm, SRILM and KenLM's readers take; the number of n-grams of each order.

    A document begins with one ``<s>`` there, with order - 1 here; the file's figures are those of the full beginning, so both give equal
    probabilities. Whitespace in a unit is written ``<U+0020>``.
    """
    n = tables.order
    counts = {k: 0 for k in range(1, n + 1)}
    parts = {k: file.with_name(f".{file.name}.{k}") for k in range(1, n + 1)}
    try:
        for k in range(1, n + 1):
            with parts[k].open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
                for line in _arpa_lines(tables, k):
                    stream.write(line)
                    counts[k] += 1
        with file.open("w", encoding="utf-8", errors="replace", newline="\n") as stream:
            stream.write("\\data\\\n" + "".join(f"ngram {k}={count}\n" for k, count in counts.items()))
            for k in range(1, n + 1):
                stream.write(f"\n\\{k}-grams:\n")
                with parts[k].open(encoding="utf-8", newline="\n") as part:
                    stream.writelines(part)
            stream.write("\n\\end\\\n")
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return counts


def _arpa_lines(tables: NgramTables, k: int, block: int = 50_000) -> Iterator[str]:
    n = tables.order
    names = [_written(tables.name(symbol)) for symbol in range(tables.radix)]
    if k == 1:
        beginning = np.prod([float(tables.backoff[m][0]) for m in range(1, n)])
        yield f"-99\t<s>\t{_log10(beginning):.7g}\n" if n > 1 else "-99\t<s>\n"
        if UNKNOWN not in tables.symbol_of:
            yield f"{_log10(tables.backoff[0][0] / tables.outcomes):.7g}\t{UNKNOWN}\n"
    for first in range(0, len(tables.keys[k - 1]), block):
        rows = _unroll(tables, k, np.arange(first, min(first + block, len(tables.keys[k - 1]))))  # [n-grams, k]
        starts = (rows == START).sum(1)
        for begins in (False, True):
            chosen = rows[(rows[:, -1] != START) & (starts == int(begins))]
            # From the one <s> of the file to all the start symbols of the tables.
            full = np.concatenate([np.full((len(chosen), n - k), START), chosen], 1) if begins else chosen
            weight = np.ones(len(chosen))
            for m in range(k, n if begins else min(k + 1, n)):
                place = tables.ranks(full[:, full.shape[1] - m :])
                weight *= np.where(place >= 0, tables.backoff[m][np.maximum(place, 0)], 1.0)
            figures = np.log10(np.maximum(_interpolated(tables, full), 1e-99))
            weights = np.log10(np.maximum(weight, 1e-99))
            for row, figure, backoff in zip(chosen.tolist(), figures.tolist(), weights.tolist(), strict=True):
                tail = f"\t{backoff:.7g}" if k < n and row[-1] != END else ""
                yield f"{figure:.7g}\t{' '.join([names[symbol] for symbol in row])}{tail}\n"


def _unroll(tables: NgramTables, k: int, ranks: np.ndarray) -> np.ndarray:
    """[rows, k] the symbols of k-grams by rank."""
    columns = []
    for level in range(k, 0, -1):
        keys = np.asarray(tables.keys[level - 1][ranks])
        columns.append(keys % tables.radix)
        ranks = keys // tables.radix
    return np.stack(columns[::-1], 1)


def _interpolated(tables: NgramTables, rows: np.ndarray) -> np.ndarray:
    """[rows] p_k of the last symbol of each row of ``rows`` [rows, k]."""
    probability = np.full(len(rows), 1.0 / tables.outcomes)
    for k in range(1, rows.shape[1] + 1):
        window = rows[:, rows.shape[1] - k :]
        history, rank = tables.ranks(window[:, :-1]), tables.ranks(window)
        probability *= np.where(history >= 0, tables.backoff[k - 1][np.maximum(history, 0)], 1.0)
        probability += np.where(rank >= 0, tables.direct[k - 1][np.maximum(rank, 0)], 0.0)
    return probability


def _log10(value: float) -> float:
    return float(np.log10(value)) if value > 0 else -99.0


def _written(name: str) -> str:
    return "".join(f"<U+{ord(character):04X}>" if character.isspace() or not character.isprintable() else character for character in name)
