"""Draws the small data sets that the shipped recipes run on from full ones: python scripts/recipe_samples.py FOLDER [RECIPE …]

FOLDER holds the full sets as their sources give them, one folder each, named as below (each recipe's data/README.md says where they come from).
The same files give the same bytes. sentiment-zh and similarity were written by hand for Luban and are not made here.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any

RECIPES = Path(__file__).resolve().parent.parent / "src" / "luban" / "recipes"
Row = Sequence[str]


def main(source: Path, names: list[str]) -> None:
    for name in names or MAKERS:
        folder = RECIPES / name / "data"
        folder.mkdir(parents=True, exist_ok=True)
        for file, content in MAKERS[name](source).items():
            data = content.encode("utf-8")
            (folder / file).write_bytes(gzip.compress(data, 9, mtime=0) if file.endswith(".gz") else data)
            print(f"{name}/data/{file}: {(folder / file).stat().st_size:,} bytes")


# ------------------------------------------------------------------------------------------------ reading and drawing


def text_of(path: Path) -> str:
    """A text file, gzipped or not, whatever its line ends."""
    data = path.read_bytes() if path.exists() else Path(f"{path}.gz").read_bytes()
    data = gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    return data.decode("utf-8-sig").replace("\r\n", "\n")


def drawn(rows: Iterable[Any], key: Callable[[Any], str] = str) -> list[Any]:
    """In an order that depends on what the rows say and on nothing else; equal ones once."""
    unique = {key(row): row for row in rows}
    return sorted(unique.values(), key=lambda row: hashlib.sha256(key(row).encode()).digest())


def each(rows: Iterable[Row], count: int, label: Callable[[Row], str]) -> list[Row]:
    """The first ``count`` rows of every label."""
    seen: dict[str, int] = defaultdict(int)
    kept = []
    for row in rows:
        if seen[label(row)] < count:
            seen[label(row)] += 1
            kept.append(row)
    return kept


def table(header: Row, rows: Iterable[Row], delimiter: str = ",") -> str:
    made = io.StringIO()
    csv.writer(made, delimiter=delimiter, lineterminator="\n").writerows([header, *rows])
    return made.getvalue()


def lines(rows: Iterable[Any]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------------------- labels


def sentiment(source: Path) -> dict[str, str]:
    rows = [
        (line.strip(), label) for ending, label in (("pos", "positive"), ("neg", "negative"))
        for line in text_of(source / f"sentence_polarity/rt-polarity.{ending}").split("\n") if 40 < len(line) < 140
    ]  # fmt: skip
    rows = each(drawn(rows, "".join), 480, lambda row: row[1])
    return {"train.csv.gz": table(("text", "label"), rows[:560]), "test.csv.gz": table(("text", "label"), rows[560:960])}


def topics(source: Path) -> dict[str, str]:
    def rows(split: str, count: int) -> list[Row]:
        found = list(csv.reader(io.StringIO(text_of(source / f"banking77/{split}.csv"))))[1:]
        return each(drawn([(" ".join(text.split()), label) for text, label in found if len(text) < 90], "".join), count, lambda row: row[1])

    return {"train.csv.gz": table(("text", "intent"), rows("train", 8)), "test.csv": table(("text", "intent"), rows("test", 2))}


def topics_zh(source: Path) -> dict[str, str]:
    def rows(file: str, count: int) -> list[Row]:
        found = [line.split("\t")[1:] for line in text_of(source / "csl_category" / file).split("\n") if line]
        return each(drawn(found, "".join), count, lambda row: row[1])

    return {"train.tsv.gz": table(("标题", "学科"), rows("cls_ctg_train.tsv", 50), "\t"), "test.tsv.gz": table(("标题", "学科"), rows("cls_ctg_dev.tsv", 31), "\t")}


def pairs(source: Path) -> dict[str, str]:
    """Two English sentences with the same Chinese translation say the same; two that look alike and do not share one, do not."""
    chinese, english = defaultdict(set), defaultdict(set)
    for there, here in tatoeba(source):
        chinese[here].add(there)
        english[there].add(here)
    same = [tuple(drawn(found)[:2]) for found in chinese.values() if len(found) > 1]
    same = [pair for pair in drawn(same, "".join) if bare(pair[0]) != bare(pair[1])][:330]
    others = drawn([there for there in english if 12 < len(there) < 60])[:4000]
    different = []
    for first, _ in same:  # the most similar of sentences with other translations
        likeness = [(SequenceMatcher(None, first, other).ratio(), other) for other in others if not english[first] & english[other]]
        different.append((first, max(likeness)[1]))
    rows = [[*pair, "same"] for pair in same] + [[*pair, "different"] for pair in different]
    held_out = {row[0] for row in drawn(rows[:330], "".join)[:60]}
    header = ("sentence1", "sentence2", "label")
    return {
        "train.csv.gz": table(header, drawn([row for row in rows if row[0] not in held_out], "".join)),
        "test.csv": table(header, drawn([row for row in rows if row[0] in held_out], "".join)),
    }


def bare(text: str) -> str:
    return re.sub(r"\W", "", text).lower()


# ------------------------------------------------------------------------------------------------------------ spans


def entities(source: Path) -> dict[str, str]:
    def sentences(file: str, count: int, least: int) -> str:
        found = [part.strip() for part in re.split(r"\n\s*\n", text_of(source / "wnut17" / file))]
        found = [part for part in found if 5 < part.count("\n") < 22 and part.count("\tB-") >= least and "http" not in part]
        return "\n\n".join(drawn(found)[:count]) + "\n"

    return {"train.conll.gz": sentences("wnut17train.conll", 380, 1), "test.conll": sentences("emerging.dev.conll", 64, 1)}


SLOTS = {"名称": "名称", "周边景点": "名称", "周边餐馆": "名称", "周边酒店": "名称", "目的地": "名称", "出发地": "名称", "推荐菜": "菜品", "评分": "评分", "人均消费": "价格", "价格": "价格", "门票": "价格", "酒店类型": "类型", "游玩时间": "时间", "营业时间": "时间", "地址": "地址", "电话": "电话"}  # fmt: skip


def entities_zh(source: Path) -> dict[str, str]:
    dialogues = json.loads(text_of(source / "crosswoz_val/val_200.json"))
    chosen = drawn(dialogues)
    labelled, plain = [], []
    for number, name in enumerate(chosen):
        for message in dialogues[name]["messages"]:
            text = message["content"].strip()
            spans = sorted(set(slots(text, message["dialog_act"])))
            apart = all(first[1] <= second[0] for first, second in zip(spans, spans[1:], strict=False))
            if number < 150:
                plain.append(text)
            if spans and apart and len(text) < 70 and number >= 120:
                labelled.append((number >= 180, {"text": text, "label": [list(span) for span in spans]}))
    pick = lambda held_out, count: lines(drawn([row for kept, row in labelled if kept == held_out], json.dumps)[:count])  # noqa: E731
    return {"dialogues.txt.gz": "\n".join(drawn(plain)[:900]) + "\n", "train.jsonl.gz": pick(False, 260), "test.jsonl": pick(True, 60)}


def slots(text: str, acts: list[list[str]]) -> list[tuple[int, int, str]]:
    return [(start, start + len(value), SLOTS[slot]) for _, _, slot, value in acts if slot in SLOTS and len(value) > 1 and (start := text.find(value)) >= 0]


def relations(source: Path) -> dict[str, str]:
    found = []
    for block in text_of(source / "semeval2010_task8/TRAIN_FILE.TXT").split("\n\n"):
        parts = block.strip().split("\n")
        if len(parts) > 1 and len(parts[0]) < 125 and not parts[1].startswith("Other"):
            found.append((parts[0].split("\t")[1].strip('"'), parts[1]))
    rows = [row for row in drawn(found, "".join) if row[1].split("(")[0] in ("Cause-Effect", "Entity-Destination", "Member-Collection", "Content-Container", "Component-Whole", "Message-Topic")]
    return {"train.tsv.gz": table(("sentence", "relation"), rows[:420], "\t"), "test.tsv": table(("sentence", "relation"), rows[420:500], "\t")}


FINANCE = ("拥有", "持股", "收购", "合作", "竞争", "增持", "减持", "签约", "重组")


def joint_relations(source: Path) -> dict[str, str]:
    def rows(file: str, count: int) -> str:
        found = defaultdict(dict)
        for line in text_of(source / "finre" / file).split("\n"):
            if line.strip():
                head, tail, label, text = line.split("\t")
                if label in FINANCE and len(text) < 45 and head in text and tail in text and head not in tail and tail not in head:
                    found[text][(head, label, tail)] = None
        made = [{"text": text, "spo_list": [list(triple) for triple in triples]} for text, triples in found.items()]
        return lines(drawn(made, lambda row: row["text"])[:count])

    return {"train.jsonl.gz": rows("train.txt", 320), "test.jsonl": rows("valid.txt", 45)}


def questions(source: Path) -> dict[str, str]:
    articles = json.loads(text_of(source / "xquad_en/xquad.en.json"))["data"]
    found = [[article["title"], paragraph] for article in articles for paragraph in article["paragraphs"] if len(paragraph["context"]) < 700]
    held_out = {title for title in drawn({title for title, _ in found})[:7]}

    def written(kept: list[Any]) -> str:
        return json.dumps({"version": "1.1", "data": [{"title": title, "paragraphs": [paragraph]} for title, paragraph in kept]}, ensure_ascii=False, indent=0) + "\n"

    chosen = drawn(found, lambda row: row[1]["context"])
    return {"train.json.gz": written([row for row in chosen if row[0] not in held_out][:46]), "test.json": written([row for row in chosen if row[0] in held_out][:9])}


# ------------------------------------------------------------------------------------------------------------- text


def tatoeba(source: Path) -> list[tuple[str, str]]:
    found = [line.split("\t")[:2] for line in text_of(source / "tatoeba_cmn_eng/cmn.txt").split("\n") if line.count("\t")]
    return [(english.strip(), re.sub(r"(?<=[^\x00-\x7f]) +| +(?=[^\x00-\x7f])", "", chinese).strip()) for english, chinese in found]


def translation(source: Path) -> dict[str, str]:
    rows = drawn([row for row in tatoeba(source) if len(row[0]) < 26 and len(row[1]) < 14], lambda row: row[0])
    return {"train.tsv.gz": table(("en", "zh"), rows[100:800], "\t"), "test.tsv": table(("en", "zh"), rows[:100], "\t")}


def titles_zh(source: Path) -> dict[str, str]:
    found = [line.split("\t")[1:3] for line in text_of(source / "csl_title_dev/ts_dev.tsv").split("\n") if line]
    rows = drawn([row for row in found if len(row[0]) < 150], "".join)
    return {"train.tsv.gz": table(("摘要", "标题"), rows[40:440], "\t"), "test.tsv": table(("摘要", "标题"), rows[:40], "\t")}


def couplets(_: Path) -> dict[str, str]:
    rows = drawn(found_couplets(), "".join)
    header = ("上句", "下句", "字数")
    return {"train.csv.gz": table(header, rows[80:5080]), "test.csv": table(header, rows[:80])}


def found_couplets() -> list[tuple[str, str, str]]:
    """The two lines of a regulated verse's couplets and their length, from the quickstart's poems."""
    found = []
    for line in text_of(RECIPES / "quickstart/data/poems.jsonl.gz").split("\n"):
        if line:
            for pair in json.loads(line)["text"].split("\n\n", 1)[-1].split("\n"):
                halves = re.fullmatch(r"(\w{5}|\w{7})，(\w{5}|\w{7})。", pair)
                if halves and len(halves[1]) == len(halves[2]):
                    found.append((halves[1], halves[2], str(len(halves[1]))))
    return found


# ------------------------------------------------------------------------------------------------------ preferences


def preferences(_: Path) -> dict[str, str]:
    """A line of verse and two that could follow: the poet's own is better than one in another language or of another length."""
    chinese = [(first, second) for first, second, _ in found_couplets()]
    text = text_of(RECIPES / "quickstart/data/shakespeare.txt")
    lines_of = text.split("\n")
    english = [(one, two) for one, two in zip(lines_of, lines_of[1:], strict=False) if all(34 < len(line) < 48 and not line.endswith(":") for line in (one, two))]
    short = drawn(line for line in lines_of if 8 < len(line) < 22 and not line.endswith(":") and " " in line)
    verse, metres = drawn(english, "".join), {size: drawn(second for _, second in chinese if len(second) == size) for size in (5, 7)}
    made = []
    for number, (first, second) in enumerate(drawn(chinese, "".join)[:450]):
        other = verse[-1 - number][1] if number % 2 else metres[12 - len(second)][-1 - number]
        made.append((f"下一句：{first}", second, other))
    for number, (first, second) in enumerate(verse[:450]):
        other = metres[5 if number % 4 == 1 else 7][450 + number] if number % 2 else short[number]
        made.append((f"Next line: {first}", second, other))
    rows = drawn(made, lambda row: row[0])
    rated = [[{"prompt": prompt, "completion": answer, "label": good} for answer, good in ((better, True), (worse, False))] for prompt, better, worse in rows]
    return {"train.jsonl.gz": lines(row for pair in rated[100:] for row in pair), "test.jsonl.gz": lines(row for pair in rated[:100] for row in pair)}


# ------------------------------------------------------------------------------------------------- search and choice


def search(source: Path) -> dict[str, str]:
    """A customer's question, another one of the same intent, and two that look alike and have another."""
    by_intent = defaultdict(list)
    for text, label in list(csv.reader(io.StringIO(text_of(source / "banking77/train.csv"))))[1:]:
        if 20 < len(text) < 70:
            by_intent[label].append(" ".join(text.split()))
    questions = {label: drawn(texts)[:12] for label, texts in by_intent.items()}
    rows = defaultdict(list)
    for label, texts in questions.items():
        others = [text for other, found in questions.items() if other != label for text in found[6:]]
        for number in range(4):
            query, positive = texts[number], texts[11 - number]
            near = sorted(others, key=lambda text: -SequenceMatcher(None, query, text).ratio())[:2]
            rows[number == 3].append({"query": query, "positive": positive, "negatives": near})
    return {"train.jsonl.gz": lines(drawn(rows[False], json.dumps)), "test.jsonl": lines(drawn(rows[True], json.dumps)[:45])}


def choice(source: Path) -> dict[str, str]:
    found = [json.loads(line) for line in text_of(source / "openbook_qa/openbook_qa.jsonl").split("\n") if line]
    rows = drawn([row for row in found if len(row["query"]) < 110], json.dumps)
    return {"train.jsonl.gz": lines(rows[50:330]), "test.jsonl": lines(rows[:50])}


MAKERS: dict[str, Callable[[Path], dict[str, str]]] = {
    "sentiment": sentiment, "topics": topics, "topics-zh": topics_zh, "pairs": pairs, "entities": entities, "entities-zh": entities_zh, "relations": relations,
    "joint-relations": joint_relations, "questions": questions, "translation": translation, "titles-zh": titles_zh, "couplets": couplets, "search": search, "choice": choice, "preferences": preferences,
}  # fmt: skip

if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
