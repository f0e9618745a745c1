"""Names that people give to columns, in English and Chinese, and what a column holds where its name says nothing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

TEXTS = (
    "text", "sentence", "review", "content", "comment", "comments", "tweet", "utterance", "message", "body", "document", "description", "abstract", "title",
    "headline", "query", "question", "passage", "context", "input", "文本", "句子", "评论", "评价", "内容", "正文", "文章", "描述", "语句", "话语", "短文本", "标题",
    "问题", "原文",
)  # fmt: skip
PAIRS = (
    ("sentence1", "sentence2"), ("sentence_1", "sentence_2"), ("sentence_a", "sentence_b"), ("text1", "text2"), ("text_a", "text_b"),
    ("text", "text_pair"), ("premise", "hypothesis"), ("question1", "question2"), ("q1", "q2"), ("s1", "s2"),
    ("#1_string", "#2_string"), ("query1", "query2"), ("query", "passage"), ("query", "document"), ("query", "title"),
    ("question", "sentence"), ("question", "passage"), ("anchor", "positive"), ("sent1", "sent2"), ("句子1", "句子2"), ("文本1", "文本2"),
    ("前提", "假设"), ("问题1", "问题2"), ("查询", "文档"), ("句子一", "句子二"), ("文本一", "文本二"), ("原句", "对比句"),
)  # fmt: skip
LABELS = (
    "label_desc", "label_name", "label_text", "label", "labels", "gold_label", "gold", "category", "categories", "class", "target",
    "sentiment", "intent", "polarity", "topic", "quality", "entailment_judgment", "judgment", "emotion", "tag", "tags", "y",
    "is_duplicate", "stars", "rating", "score", "answer", "标签", "类别", "分类", "类目", "情感", "情绪", "意图", "主题", "类型", "极性", "标注", "标签名",
    "评级",
)  # fmt: skip
SCORES = (
    "score", "similarity_score", "similarity", "relatedness_score", "relatedness", "rating", "stars", "grade", "value", "target",
    "label", "y", "gold", "price", "valence", "分数", "评分", "得分", "相似度", "打分", "数值", "目标", "标签", "星级",
)  # fmt: skip
OUTPUT_PAIRS = (
    ("src", "tgt"), ("source", "target"), ("input", "output"), ("article", "highlights"), ("article", "summary"),
    ("document", "summary"), ("dialogue", "summary"), ("text", "summary"), ("content", "summary"), ("maintext", "summary"),
    ("abstract", "title"), ("content", "title"), ("article", "title"), ("text", "title"), ("body", "title"), ("classical", "modern"),
    ("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"), ("context", "continuation"),
    ("meaning_representation", "human_reference"), ("text", "target"), ("keywords", "text"), ("concepts", "target"), ("原文", "译文"),
    ("原文", "摘要"), ("正文", "摘要"), ("内容", "摘要"), ("文章", "摘要"), ("正文", "标题"), ("内容", "标题"), ("摘要", "标题"), ("英文", "中文"), ("中文", "英文"),
    ("输入", "输出"), ("古文", "现代文"), ("关键词", "正文"),
)  # fmt: skip
LANGUAGES = frozenset((
    "en", "zh", "de", "fr", "es", "ja", "ko", "ru", "it", "pt", "ar", "vi", "th", "cs", "nl", "pl", "tr", "fi", "sv", "ro", "hi", "uk",
    "id", "en_us", "en_gb", "zh_cn", "zh_tw", "zh_hans", "zh_hant", "chinese", "english", "cmn", "eng", "deu", "fra", "jpn",
))  # fmt: skip
QUERIES = ("query", "question", "anchor", "search_term", "user", "history", "q", "sentence", "查询", "问题", "搜索词", "用户", "历史")
POSITIVES = (
    "positive", "positives", "pos", "positive_passages", "positive_ctxs", "positive_document", "pos_doc", "chosen_passage", "正例",
    "相关文档", "正样本",
)  # fmt: skip
NEGATIVES = (
    "negative", "negatives", "neg", "negative_passages", "hard_negative", "hard_negatives", "negative_ctxs", "hard_negative_ctxs",
    "neg_doc", "负例", "不相关文档", "负样本",
)  # fmt: skip
DOCUMENTS = (
    "document", "documents", "passage", "passages", "doc", "docs", "candidates", "title", "item", "items", "text", "content",
    "product_title", "response", "文档", "候选", "物品", "商品", "标题", "内容",
)  # fmt: skip
GRADES = (
    "grade", "grades", "relevance", "relevancy", "rel", "score", "scores", "label", "labels", "rating", "click", "clicked", "is_click",
    "is_selected", "gold", "相关性", "等级", "点击", "是否点击", "评分", "分数", "标签",
)  # fmt: skip
PROMPTS = ("query", "question", "prompt", "premise", "ctx", "context", "sentence", "stem", "input", "问题", "题目", "题干", "前提", "查询")
CHOICES = ("choices", "options", "endings", "answers", "candidates", "alternatives", "选项", "备选", "候选")
ANSWERS = (
    "gold", "answer", "label", "answerkey", "answer_key", "answer_idx", "answer_index", "correct", "target", "正确答案", "答案", "标签",
    "正确选项",
)  # fmt: skip
QUESTIONS = ("question", "query", "query_text", "问题", "提问", "问句")
CONTEXTS = (
    "context",
    "passage",
    "paragraph",
    "document",
    "text",
    "context_text",
    "article",
    "上下文",
    "文章",
    "段落",
    "原文",
    "材料",
    "篇章",
)
QUESTION_ANSWERS = ("answers", "answer", "answer_text", "答案", "回答")
STARTS = ("answer_start", "answer_starts", "start", "start_position", "答案位置", "起始位置")
IDENTITIES = ("id", "_id", "qid", "query_id", "guid", "uid", "idx", "index", "编号", "序号")
HEADS = ("h", "head", "subject", "subj", "head_entity", "entity1", "e1", "ent1", "头实体", "主体", "主语", "实体1")
TAILS = ("t", "tail", "object", "obj", "tail_entity", "entity2", "e2", "ent2", "尾实体", "客体", "宾语", "实体2")
RELATIONS = ("relation", "relations", "rel", "predicate", "relation_type", "label", "关系", "谓词", "标签")
ENTITIES = (
    "entities",
    "spans",
    "entity",
    "entity_list",
    "mentions",
    "entitymentions",
    "label",
    "labels",
    "annotations",
    "实体",
    "标注",
    "标签",
)
WORDS = ("tokens", "words", "token", "chars", "characters", "词", "字", "分词")
TAGS = ("ner_tags", "tags", "ner", "labels", "label", "bio", "pos_tags", "slots", "序列标注", "标签")

_PAIR_NAMES = {name for pair in (*PAIRS, *OUTPUT_PAIRS) for name in pair}
_LISTS = (
    TEXTS, LABELS, SCORES, QUERIES, POSITIVES, NEGATIVES, DOCUMENTS, GRADES, PROMPTS, CHOICES, ANSWERS, QUESTIONS, CONTEXTS, QUESTION_ANSWERS, STARTS,
    IDENTITIES, HEADS, TAILS, RELATIONS, ENTITIES, WORDS, TAGS,
)  # fmt: skip
ALL = (
    frozenset(name for names in _LISTS for name in names if len(name) > 1)
    | _PAIR_NAMES
    | LANGUAGES
    | {"choice1", "choice2", "choice_1", "option1", "pair_id"}
)


def normalised(name: Any) -> str:
    """A column's name as it is compared: lower case, no mark of byte order, underscores for spaces and hyphens."""
    return str(name).lstrip("\ufeff").strip().lower().replace(" ", "_").replace("-", "_")


def by_name(columns: Iterable[str], names: Sequence[str], *without: str | None) -> str | None:
    """The first of the columns that has one of the names, in the order of the names."""
    present = {normalised(column): column for column in reversed(list(columns)) if column not in without}
    return next((present[name] for name in names if name in present), None)


def pair_by_name(columns: Sequence[str], pairs: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The first pair of names of which both are columns."""
    present = {normalised(column): column for column in reversed(list(columns))}
    return next(((present[one], present[two]) for one, two in pairs if one in present and two in present), None)


def number(value: Any) -> float | None:
    """The finite number that a cell holds, or None; full-width digits count."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int | float):
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, str) or not value.strip() or "_" in value or len(value) > 40:
        return None
    try:
        found = float(value.strip())
    except ValueError:
        return None
    return found if math.isfinite(found) else None


@dataclass
class Facts:
    """What the cells of one column are like."""

    name: str
    filled: int
    distinct: int
    length: float  # mean characters of the cells that hold a text
    texts: int  # cells that are strings and no numbers
    numbers: int
    whole: bool  # all numbers are whole
    running: bool  # 0, 1, 2 … : an index


def facts_of(rows: Sequence[dict[str, Any]], columns: Sequence[str]) -> dict[str, Facts]:
    """Facts of each column, from a sample of rows."""
    found = {}
    for name in columns:
        cells = [row.get(name) for row in rows]
        filled = [cell for cell in cells if cell is not None and str(cell).strip()]
        numbers = [value for cell in filled if (value := number(cell)) is not None]
        texts = [cell for cell in filled if isinstance(cell, str) and number(cell) is None]
        running = len(numbers) == len(filled) > 1 and len(set(numbers)) == len(numbers) and all(value == int(value) for value in numbers)
        length = sum(map(len, texts)) / len(texts) if texts else 0.0
        found[name] = Facts(
            name,
            len(filled),
            len({str(cell).strip() for cell in filled}),
            length,
            len(texts),
            len(numbers),
            all(v == int(v) for v in numbers),
            running,
        )
    return found


def text_columns(facts: dict[str, Facts], rows: int) -> list[str]:
    """Columns that hold texts that differ, in their order."""
    return [
        name
        for name, fact in facts.items()
        if fact.texts >= 0.5 * max(1, fact.filled)
        and fact.filled >= 0.5 * rows
        and fact.distinct > max(1, 0.02 * fact.filled)
        and fact.length > 0
    ]


def longest_text(facts: dict[str, Facts], *without: str | None) -> str | None:
    """The column of the longest texts; one that says the same everywhere only where there is no other."""
    texts = [fact for name, fact in facts.items() if name not in without and fact.texts >= 0.5 * max(1, fact.filled) and fact.filled]
    return max(texts, key=lambda fact: (fact.distinct > 1, fact.length)).name if texts else None


def class_column(facts: dict[str, Facts], rows: int, *without: str | None) -> str | None:
    """The column that most looks like classes: few values that come back, short, no index; the last such column."""
    found = [
        fact
        for name, fact in facts.items()
        if name not in without
        and (fact.distinct < fact.filled or fact.numbers)
        and 1 < fact.distinct <= max(2, min(200, fact.filled // 2))
        and fact.length <= 60
        and fact.filled >= 0.5 * rows
        and not (fact.running and fact.filled > 10)
    ]
    return min(reversed(found), key=lambda fact: (fact.texts > 0 and fact.length > 25, fact.distinct > 50)).name if found else None
