"""The front door: each task's main figure on planted answers, hostile predictions, and before against after."""

import json
import math
import sys

import pytest

from luban.examples.tasks import Choice, LabeledText, Question, Ranking, RelationText, Span, TaggedText, TextPair
from luban.foundation.errors import DataError, LubanError
from luban.metrics.tasks import MAIN, compare_task, greater_is_better, score_task

PERSON, PLACE = Span(0, 2, "PER"), Span(3, 5, "LOC")


def as_dict(span):
    return {"start": span.start, "end": span.end, "label": span.label}


TRIPLE = {"head": as_dict(PERSON), "tail": as_dict(PLACE), "label": "lives_in"}
TEXT = TaggedText("鲁班 在鲁国", [PERSON, PLACE], [(0, 1, "lives_in")])
# task: a right prediction, its gold, and another gold that the same prediction gets wrong
CASES = {
    "classification": ({"label": "好", "probabilities": {"好": 0.9, "差": 0.1}}, LabeledText("x", label="好"), LabeledText("x", label="差")),
    "multi_label": ({"labels": ["a"], "probabilities": {"a": 0.9, "b": 0.2}}, LabeledText("x", label=["a"]), LabeledText("x", label=["b"])),
    "tagging": ({"spans": [as_dict(PERSON)]}, TaggedText("鲁班 在鲁国", [PERSON]), TaggedText("鲁班 在鲁国", [PLACE])),
    "relation": ({"label": "lives_in"}, RelationText("x", PERSON, PLACE, "lives_in"), RelationText("x", PERSON, PLACE, "born_in")),
    "joint_relation": ({"spans": [as_dict(PERSON)], "triples": [TRIPLE]}, TEXT, TaggedText("x", [PLACE, PERSON], [(0, 1, "lives_in")])),
    "question_answering": ({"answer": "鲁国"}, Question("在哪？", "鲁班在鲁国", [("鲁国", 3)]), Question("在哪？", "鲁班在鲁国", [("木匠", 3)])),
    "text_pairs": ({"text": "今天下雨"}, TextPair("rain", "今天下雨"), TextPair("sun", "阳光明媚")),
    "translation": ({"text": "今天下大雨了"}, TextPair("rain", "今天下大雨了"), TextPair("sun", "阳光明媚")),
    "summarization": ({"text": "a cat sat"}, TextPair("long", "A cat sat."), TextPair("long", "Dogs bark")),
    "generation": ({"text": "春风"}, TextPair("写诗", "春风", {"关键词": "春"}), TextPair("写诗", "冬雪", {"关键词": "雪"})),
    "choice": ({"choice": 1, "scores": [0.1, 0.9]}, Choice("?", ["a", "b"], 1), Choice("?", ["a", "b"], 0)),
    "ranking": ({"scores": [2.0, 1.0]}, Ranking("q", ["a", "b"], [1, 0]), Ranking("q", ["a", "b"], [0, 0])),
    "embedding": ({"scores": [0.9, 0.2]}, Ranking("q", ["a", "b"], [1, 0]), Ranking("q", ["a", "b"], [0, 1])),
}  # fmt: skip


@pytest.mark.parametrize("task", CASES)
def test_a_right_model_has_the_best_main_score_and_a_wrong_one_less(task):
    prediction, right, wrong = CASES[task]
    found = score_task(task, [prediction] * 4, [right] * 4, seed=1)
    main = next(iter(found))
    best = 100 if task == "translation" else 1
    assert main == ("adherence" if task == "generation" else MAIN[task]) and found[main].value == pytest.approx(best) and greater_is_better(main)
    if task != "ranking":
        assert score_task(task, [prediction] * 4, [right, right, wrong, wrong])[main].value < best - 0.1
    for name, score in found.items():
        assert score.signature.startswith(f"metric:{name}|") and "luban:" in score.signature
        assert math.isnan(score.value) or score.interval is not None, name
    assert json.dumps({name: score.to_json() for name, score in found.items()})


@pytest.mark.parametrize("task", CASES)
def test_empty_predictions_score_and_do_not_crash(task):
    _, right, _ = CASES[task]
    found = score_task(task, [{}, {}], [right, right])
    main = next(iter(found))
    assert found[main].value < 0.82  # two tied documents have an nDCG of (1 + 0.63) / 2


def test_regression_is_first_by_rank():
    gold = [LabeledText("x", label=float(number)) for number in range(9)]
    found = score_task("regression", [{"value": number**3} for number in range(9)], gold)
    assert next(iter(found)) == "spearman" and found["spearman"].value == 1 and found["pearson"].value < 1
    assert math.isnan(score_task("regression", [{}] * 9, gold)["spearman"].value)


def test_embedding_with_one_partner_each_is_scored_by_correlation():
    gold = [Ranking("q", ["d"], [grade]) for grade in (0.1, 0.5, 0.9, 0.3)]
    found = score_task("embedding", [{"scores": [grade]} for grade in (0.2, 0.4, 0.8, 0.3)], gold)
    assert next(iter(found)) == "spearman" and found["spearman"].value == pytest.approx(1)


def test_before_and_after_are_paired_for_every_task():
    for task, (prediction, right, _) in CASES.items():
        found = compare_task(task, [{}] * 6, [prediction] * 6, [right] * 6)
        main = next(iter(found))
        assert main == ("adherence" if task == "generation" else MAIN[task])
        assert found[main].value > 0.18, task
        same = compare_task(task, [prediction] * 6, [prediction] * 6, [right] * 6)
        assert same[main].value == 0 and same[main].interval == (0, 0)


def test_gold_that_cannot_be_scored_against_is_named():
    with pytest.raises(DataError, match="example 2 has no label"):
        score_task("classification", [{"label": "a"}] * 2, [LabeledText("x", label="a"), LabeledText("x")])
    with pytest.raises(DataError, match="question 1 has no right choice"):
        score_task("choice", [{"choice": 0}], [Choice("?", ["a"], None)])
    with pytest.raises(DataError, match="no examples"):
        score_task("tagging", [], [])
    with pytest.raises(DataError, match="2 predictions for 1"):
        score_task("tagging", [{}, {}], [TEXT])
    with pytest.raises(LubanError, match="did you mean 'ranking'"):
        score_task("rankings", [{}], [TEXT])


def test_without_sacrebleu_pairs_are_scored_by_the_rest_and_that_is_said(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "sacrebleu.metrics", None)
    found = score_task("text_pairs", [{"text": "a"}], [TextPair("x", "a")])
    assert "rouge_l" in found and "bleu" not in found
    said = capsys.readouterr()
    assert "pip install -e '.[tasks]'" in " ".join((said.out + said.err).split())
    with pytest.raises(LubanError, match="sacrebleu"):
        score_task("translation", [{"text": "a"}], [TextPair("x", "a")])


def test_ter_of_long_texts_is_left_out_and_that_is_said(capsys):
    found = score_task("translation", [{"text": "雨" * 20_000}], [TextPair("x", "雨天")])
    said = capsys.readouterr()
    assert "ter" not in found and "TER is left out" in (said.out + said.err)


def test_directions_of_the_figures():
    assert greater_is_better("accuracy") and greater_is_better("f1/x") and greater_is_better("bleu")
    assert greater_is_better("ter") is False and greater_is_better("calibration_error") is False and greater_is_better("length") is None


def test_the_language_decides_the_rule():
    gold = [Question("Where?", "", [("the house", 0)])]
    assert score_task("question_answering", [{"answer": "house"}], gold)["exact_match"].value == 1
    assert score_task("question_answering", [{"answer": "house"}], gold, language="zh")["exact_match"].value == 0
