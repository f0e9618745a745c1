"""Ranking: losses against closed forms, groups that change with the epoch, micro-batches, and a training that finds the planted order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from group_lab import SMALL, THINGS, assert_same_gradients, gradients, opened, start_directory, tiny_model, train, write_rows
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from luban.inference.predictor import Predictor
from luban.objectives.config import RankingConfig
from luban.objectives.ranking import Ranker, chosen, drawn_documents, listwise, ranknet

ROWS = [
    {"query": f"{one} {two}", "document": [f"the {three} thing" for three in THINGS[:6]], "grade": [float(three in (one, two)) + float(three == one) for three in THINGS[:6]]}
    for one, two in itertools.permutations(THINGS[:6], 2)
]


def test_listwise_is_cross_entropy_with_one_relevant_document_and_follows_the_grades():
    torch.manual_seed(0)
    scores, filled = torch.randn(3, 4, dtype=torch.float64), torch.tensor([[True] * 4, [True] * 4, [True] * 3 + [False]])
    grades = torch.tensor([[0.0, 1, 0, 0], [3, 0, 1, 0], [-1, -2, -2, 0]], dtype=torch.float64)
    masked = scores.masked_fill(~filled, -1e9)
    found = listwise(masked, grades, filled)
    assert float(found[0]) == pytest.approx(float(functional.cross_entropy(scores[:1], torch.tensor([1]))))
    logs = scores[1].log_softmax(0)
    assert float(found[1]) == pytest.approx(float(-(3 * logs[0] + logs[2]) / 4))
    assert float(found[2]) == pytest.approx(float(-scores[2, :3].log_softmax(0)[0]))  # all grades are negative: the least bad one


def test_ranknet_against_loops():
    random = np.random.default_rng(0)
    scores, grades = random.normal(size=(4, 5)), random.integers(0, 3, (4, 5)).astype(float)
    filled = random.random((4, 5)) < 0.8
    wanted = []
    for row in range(4):
        pairs = [(i, j) for i in range(5) for j in range(5) if filled[row, i] and filled[row, j] and grades[row, i] > grades[row, j]]
        wanted.append(sum(math.log(1 + math.exp(scores[row, j] - scores[row, i])) for i, j in pairs) / max(len(pairs), 1))
    assert ranknet(torch.tensor(scores), torch.tensor(grades), torch.tensor(filled)).tolist() == pytest.approx(wanted)


@pytest.mark.parametrize("loss", ["pointwise", "pairwise", "listwise"])
@pytest.mark.parametrize("architecture", ["bert", "llama"])
def test_micro_batches_and_padding_change_nothing(tmp_path, loss, architecture):
    rows = [{**row, "document": row["document"][: 3 + n % 4], "grade": row["grade"][: 3 + n % 4]} for n, row in enumerate(ROWS)]
    objective = Ranker(RankingConfig(loss=loss, documents=5))
    batch = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path, architecture=architecture).train.step(0)
    dropout = {"dropout": 0.0, "attention_dropout": 0.0} if architecture == "bert" else {}
    model = tiny_model(architecture, objective.head, **dropout).double().train()
    whole, wanted = gradients(objective, model, batch, 1000)
    for size in (1, 5, 12):
        means, found = gradients(objective, model, batch, size)
        assert means["loss"] == pytest.approx(whole["loss"], abs=1e-12)
        assert_same_gradients(wanted, found)
    outputs = objective.outputs(model, batch)
    torch.testing.assert_close(objective.terms_of(outputs, model, batch)["loss"].sum / batch.count, torch.tensor(whole["loss"], dtype=torch.float64))
    assert len(objective.divergence(outputs, outputs.roll(1, 0))) == len(objective.unit_weights(batch)) and bool(objective.divergence(outputs, outputs * 0.9).isfinite().all())


def test_pointwise_is_binary_cross_entropy_of_the_share_of_the_highest_grade(tmp_path):
    objective = Ranker(RankingConfig(loss="pointwise"))
    loaders = opened(objective, write_rows(tmp_path / "rows.jsonl", ROWS), tmp_path)
    batch = loaders.train.step(0)
    assert batch.group == 1 and loaders.report["examples"] == 24 * 6 and objective.head.settings["probability"]
    model = tiny_model("bert", objective.head).eval()
    scores = objective.outputs(model, batch)[:, 0]
    wanted = functional.binary_cross_entropy(scores.sigmoid(), batch.extra["grade"] / 2, reduction="sum")
    torch.testing.assert_close(objective.terms(model, batch)["loss"].sum, wanted)


def test_the_relevant_documents_are_always_in_and_the_rest_changes():
    texts, grades = [f"d{n}" for n in range(20)], [float(n in (3, 7)) for n in range(20)]
    seen = set()
    for epoch in range(30):
        found, given = chosen(texts, grades, 6, 1, 2, epoch)
        assert found[:2] == ["d3", "d7"] and given == [1, 1, 0, 0, 0, 0] and len(set(found)) == 6
        assert (found, given) == chosen(texts, grades, 6, 1, 2, epoch)
        seen |= set(found)
    assert seen == set(texts)
    for grades in ([1.0] * 19 + [0.0], [2.0] * 10 + [1.0] * 10):
        assert len(set(chosen(texts, grades, 4, 0)[1])) == 2  # never all equally good
    assert chosen(["a", "b"], [0, 1], 6, 0) == (["b", "a"], [1, 0])


def test_drawn_documents_are_none_of_the_query():
    corpus = [f"d{n}" for n in range(30)]
    found = drawn_documents(corpus, {"d1", "d2"}, 5, 3, 4)
    assert found == drawn_documents(corpus, {"d1", "d2"}, 5, 3, 4) != drawn_documents(corpus, {"d1", "d2"}, 5, 3, 5)
    assert len(set(found)) == 5 and not {"d1", "d2"} & set(found)
    assert drawn_documents(["d1"], {"d1"}, 5, 0) == [] == drawn_documents(corpus, set(), 0)


def test_data_without_irrelevant_documents_is_given_some(tmp_path):
    rows = [{"query": f"{one} {two}", "positive": f"the {two} of the {one}"} for one, two in itertools.permutations(THINGS[:5], 2)]
    objective = Ranker(RankingConfig(documents=4))
    loaders = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path)
    first, later = loaders.train.step(0), loaders.train.step(4)
    assert first.group == 4 and first.extra["grade"].view(-1, 4).tolist() == [[1, 0, 0, 0]] * 8 and len({str([row.ids.tolist() for row in loaders.train.refresh(0, epoch)]) for epoch in range(5)}) == 5
    assert later.inputs.shape[0] == 32 and "refused" not in loaders.report


def test_queries_whose_documents_are_equally_good_are_counted(tmp_path):
    rows = [{"query": f"query {n}", "document": ["a", "b"], "grade": [1, 1] if n % 5 == 0 else [0, 1]} for n in range(20)]
    loaders = opened(Ranker(RankingConfig()), write_rows(tmp_path / "rows.jsonl", rows), tmp_path)
    assert loaders.report["refused"] == {"its documents are all equally good": 4}


@pytest.mark.parametrize("loss", ["pointwise", "listwise"])
def test_training_finds_the_planted_order_and_transformers_opens_it(tmp_path, loss):
    """Listwise: the documents named in the query, the first one most. Pointwise: what is clicked, whatever the query."""
    start = start_directory(tmp_path / "start", **SMALL)
    rows = ROWS if loss == "listwise" else [{**row, "grade": [0, 1, 0, 1, 0, 0]} for row in ROWS]
    settings = {"length": "120 steps", "validation": {"every": "120 steps"}} if loss == "listwise" else {"length": "30 steps", "batch_examples": 24}
    artifact = train(tmp_path, start, write_rows(tmp_path / "rows.jsonl", rows), {"name": "ranking", "loss": loss}, **settings)
    assert artifact.metrics["best_metric"] == "ndcg@10" and artifact.metrics["after"]["ndcg@10"] > artifact.metrics["before"]["ndcg@10"] + 0.1
    predictor = Predictor.load(artifact.path)
    worse, better = ("apple", "river") if loss == "pointwise" else ("stone", "apple")
    documents = [f"the {worse} thing", f"the {better} thing"]
    said, single = predictor.predict([{"query": "apple river", "documents": documents}, {"query": "apple river", "document": documents[1]}])
    assert said["scores"][1] > said["scores"][0] and single["score"] == pytest.approx(said["scores"][1], abs=1e-5)
    tokenizer, model = AutoTokenizer.from_pretrained(artifact.path), AutoModelForSequenceClassification.from_pretrained(artifact.path).eval()
    with torch.no_grad():
        logits = model(**tokenizer(["apple river"] * 2, documents, padding=True, return_tensors="pt")).logits
    assert logits.shape == (2, 1)
    scores = logits[:, 0].sigmoid() if loss == "pointwise" else logits[:, 0]
    assert said["scores"] == pytest.approx(scores.tolist(), abs=1e-5)
