"""The rows of the table: which data, which model, which objective, how much of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class TaskRow:
    """One task. ``train`` and ``test`` count examples (before what the time allows cuts ``train``); ``model`` is one of the names that are
    given on the command line, ``bert-zh`` for the base that chinese.py makes, or ``new:PRESET`` for weights from scratch with a tokenizer
    learned from the training slice."""

    name: str
    title: tuple[str, str]  # English, Chinese
    data: str  # under --data; several separated by spaces
    task: str  # as examples are read
    objective: dict[str, Any]
    model: str
    train: int = 2000
    test: int = 1000
    epochs: float = 3
    batch: int = 32
    rate: float = 5e-5
    length: int = 128
    mapping: dict[str, Any] = field(default_factory=dict)
    reader: str = "files"  # a function of data.py
    vocabulary: int = 4000  # of a new tokenizer
    settings: dict[str, Any] = field(default_factory=dict)  # what only the rows of texts.py read


ROWS = [
    TaskRow("sentiment-en", ("sentiment, English", "情感，英文"), "sentiment/sentence_polarity", "classification", {"name": "classification"}, "minilm", train=4000, length=96),
    TaskRow("sentiment-zh", ("sentiment, Chinese", "情感，中文"), "sentiment/chnsenticorp_htl", "classification", {"name": "classification"}, "e5", train=1500, epochs=2, batch=16, rate=1e-4, length=96),
    TaskRow(
        "topic-en", ("topic (77 intents), English", "主题（77 类意图），英文"), "topic/banking77", "classification", {"name": "classification"}, "minilm", train=4000, epochs=5, rate=1e-4, length=64
    ),
    TaskRow(
        "topic-zh",
        ("topic (13 fields), Chinese", "主题（13 个学科），中文"),
        "topic/csl_category",
        "classification",
        {"name": "classification"},
        "e5",
        train=3000,
        batch=16,
        rate=1e-4,
        length=64,
        mapping={"text": 2, "label": 3},
    ),
    TaskRow("inference-en", ("inference, English", "推理，英文"), "nli/sick2014", "classification", {"name": "classification"}, "minilm", train=4000, epochs=4, length=96),
    TaskRow("inference-zh", ("inference, Chinese", "推理，中文"), "nli/ocnli", "classification", {"name": "classification"}, "e5", train=1600, test=400, batch=16, rate=1e-4, length=96),
    TaskRow("paraphrase-en", ("paraphrase, English", "复述，英文"), "paraphrase/msr_paraphrase", "classification", {"name": "classification"}, "minilm", train=3000, test=800),
    TaskRow("paraphrase-zh", ("paraphrase, Chinese", "复述，中文"), "paraphrase/bustm", "classification", {"name": "classification"}, "e5", train=1000, test=380, epochs=4, batch=16, rate=1e-4, length=64),
    TaskRow("similarity-en", ("similarity (a number), English", "相似度（数值），英文"), "nli/sick2014", "regression", {"name": "regression"}, "minilm", train=4000, length=96),
    TaskRow("entities-en", ("entities, English", "实体，英文"), "ner/wnut17", "tagging", {"name": "tagging"}, "minilm", train=3300, test=1000, epochs=4, rate=1e-4),
    TaskRow("entities-zh", ("entities, Chinese", "实体，中文"), "ner/msra", "tagging", {"name": "tagging"}, "bert-zh", train=11000, epochs=3, batch=16, rate=1e-3),
    TaskRow("relations-en", ("relations, English", "关系，英文"), "relation/semeval2010_task8", "relation", {"name": "relation"}, "minilm", train=4000, epochs=4, rate=1e-4),
    TaskRow("relations-zh", ("relations, Chinese", "关系，中文"), "relation/finre", "relation", {"name": "relation"}, "bert-zh", train=3400, epochs=4, batch=16, rate=1e-3),
    TaskRow(
        "answers-en",
        ("question answering, English", "阅读问答，英文"),
        "qa/xquad_en",
        "question_answering",
        {"name": "question_answering", "stride": 64},
        "minilm",
        train=560,
        test=190,
        epochs=4,
        batch=16,
        rate=1e-4,
        length=256,
    ),
    TaskRow(
        "answers-zh",
        ("question answering, Chinese", "阅读问答，中文"),
        "qa/cmrc2018_dev",
        "question_answering",
        {"name": "question_answering", "stride": 64},
        "e5",
        train=600,
        test=200,
        epochs=3,
        batch=16,
        rate=1e-4,
        length=256,
    ),
    TaskRow(
        "choice-en",
        ("multiple choice, English", "多项选择，英文"),
        "evaluation/arc_easy",
        "choice",
        {"name": "multiple_choice"},
        "minilm",
        train=1500,
        test=500,
        batch=16,
        length=96,
        reader="four_choices",
    ),
    TaskRow(
        "retrieval-en",
        ("embeddings and retrieval, English", "向量与检索，英文"),
        "qa/xquad_en",
        "embedding",
        {"name": "embedding"},
        "minilm",
        train=560,
        test=190,
        epochs=3,
        length=256,
        batch=16,
        reader="passages",
    ),
    TaskRow(
        "retrieval-zh",
        ("embeddings and retrieval, Chinese", "向量与检索，中文"),
        "qa/cmrc2018_dev",
        "embedding",
        {"name": "embedding"},
        "e5",
        train=600,
        test=300,
        epochs=2,
        length=192,
        batch=16,
        reader="passages",
    ),
    TaskRow(
        "ranking-en",
        ("ranking, English", "排序，英文"),
        "qa/xquad_en",
        "ranking",
        {"name": "ranking", "documents": 4},
        "minilm",
        train=500,
        test=190,
        epochs=3,
        length=192,
        batch=8,
        reader="candidates",
    ),
    TaskRow(
        "translation-en-zh",
        ("translation, English to Chinese", "翻译，英译中"),
        "mt/tatoeba_cmn_eng",
        "text_pairs",
        {"name": "translation", "source_language": "en", "target_language": "zh"},
        "new:transformer-tiny",
        train=18000,
        test=300,
        epochs=8,
        batch=128,
        rate=3e-3,
        length=48,
        reader="tatoeba",
    ),
    TaskRow(
        "summary-zh",
        ("summarisation (title), Chinese", "摘要（标题），中文"),
        "summarization/csl_title_dev/ts_dev.tsv.gz",
        "text_pairs",
        {"name": "summarization", "target_language": "zh"},
        "new:transformer-tiny",
        train=1800,
        test=150,
        epochs=12,
        batch=32,
        rate=2e-3,
        length=192,
        mapping={"input": 2, "output": 3},
    ),
    TaskRow(
        "generation-zh",
        ("generation (second line of a couplet)", "生成（对下句）"),
        "pretrain/chinese_poetry",
        "text_pairs",
        {"name": "generation", "target_language": "zh"},
        "new:transformer-tiny",
        train=16000,
        test=300,
        epochs=16,
        batch=128,
        rate=3e-3,
        length=24,
        reader="couplets",
        settings={"loss": True},  # a line that answers another has no one right wording: what is measured is the loss
    ),
    TaskRow(
        "pretraining-zh",
        ("masked pretraining of a small BERT, then topic", "小 BERT 的掩码预训练，再做主题分类"),
        "topic/csl_category",
        "classification",
        {"name": "classification"},
        "pretrained:bert-tiny",
        train=1500,
        test=2000,
        epochs=6,
        rate=3e-4,
        length=64,
        mapping={"text": 2, "label": 3},
        vocabulary=6000,
        settings={"pretrain_on": "pretrain/oi_wiki/oi_wiki.jsonl.gz summarization/csl_title_dev/ts_dev.tsv.gz", "steps": 2000},
    ),
    TaskRow(
        "domain-en",
        ("continued pretraining on a domain", "领域继续预训练"),
        "pretrain/tinyshakespeare",
        "text",
        {"name": "causal"},
        "continued:tiny",
        length=128,
        rate=1e-3,
        vocabulary=2000,
        settings={"general": "pretrain/wikitext2_valid", "steps": 300, "general_steps": 300},
    ),
]
BY_NAME = {row.name: row for row in ROWS}
