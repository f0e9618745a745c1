"""Entities and relations in one pass: the loss against loops, relations across windows, learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import transformers
from span_lab import learn, model_for, open_task, planted_text, some_names, wordpiece

from luban.examples.tasks import Span, TaggedText
from luban.foundation.errors import DataError
from luban.inference.predictor import Predictor
from luban.inference.spans import read_texts
from luban.inference.triples import _triples
from luban.models.huggingface import load_model, save_model
from luban.models.own_heads import PairScorer, parted
from luban.objectives.joint_relation import pair_loss


def planted(count: int, seed: int = 0, longest: int = 10) -> list[dict]:
    """visits: from a person to a place behind it; hosts: from the place to the person behind it."""
    random = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        person, place = some_names(random)
        text, spans = planted_text(random, [(person, "person"), (place, "place")], int(random.integers(3, longest)))
        label = "visits" if spans[0][2] == "person" else "hosts"
        entities = [{"start": start, "end": end, "label": kind} for start, end, kind in spans]
        rows.append({"text": text, "entities": entities, "relations": [{"head": 0, "tail": 1, "label": label}]})
    return rows


def test_the_scores_of_pairs_are_biaffine():
    torch.manual_seed(0)
    scorer = PairScorer(8, 3, 2, 5, 0.0)
    hidden = torch.randn(2, 4, 8)
    tags, pairs = parted(scorer(hidden), 3)
    torch.testing.assert_close(tags, hidden @ scorer.tags.weight.T + scorer.tags.bias)
    matrices = scorer.relations.weight.view(2, 6, 6)
    for row in range(2):
        for i in range(4):
            for j in range(4):
                left, right = (torch.cat([torch.nn.functional.gelu(part(hidden[row, place])), torch.ones(1)]) for part, place in ((scorer.head, i), (scorer.tail, j)))
                for relation in range(2):
                    torch.testing.assert_close(pairs[row, i, j, relation], right @ matrices[relation] @ left)


def test_the_loss_of_pairs_is_its_definition():
    torch.manual_seed(1)
    pairs = torch.randn(2, 5, 5, 3, dtype=torch.float64, requires_grad=True)
    units = torch.tensor([[False, True, True, True, False], [False, True, False, True, False]])
    links = torch.tensor([[[1, 2, 0], [3, 1, 2]], [[-1, -1, -1], [-1, -1, -1]]])
    for row, held in enumerate(({(1, 2, 0), (3, 1, 2)}, set())):
        wrong = right = 1.0
        for i in range(5):
            for j in range(5):
                for relation in range(3):
                    if units[row, i] and units[row, j]:
                        score = float(pairs[row, i, j, relation].detach())
                        if (i, j, relation) in held:
                            right += math.exp(-score)
                        else:
                            wrong += math.exp(score)
        assert float(pair_loss(pairs, units, links)[row]) == pytest.approx(math.log(wrong) + math.log(right))
    pair_loss(pairs, units, links).sum().backward()
    assert pairs.grad.isfinite().all() and (pairs.grad[:, 0] == 0).all()
    no_links = pair_loss(pairs, units, torch.zeros(2, 0, 3, dtype=torch.int64))
    assert no_links.isfinite().all()


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    objective, loaders, request = open_task(tmp_path_factory.mktemp("joint"), planted(300), name="joint_relation", length=32, examples=24)
    return objective, loaders, request, learn(objective, loaders, model_for(objective, request), 130)


def test_it_learns_and_a_directory_predicts_alone(learned, tmp_path):
    objective, loaders, request, model = learned
    scores = objective.score(model, request.tokenizer, loaders.held_out)
    assert scores["triple_micro_f1"].value > 0.8 and scores["entity_micro_f1"].value > 0.95
    save_model(model, tmp_path)
    again = Predictor(load_model(tmp_path), request.tokenizer)
    items = [objective.item_of(example) for example in loaders.held_out[:9]]
    found = again.predict(items)
    assert [shown(one) for one in found] == [shown(one) for one in Predictor(model, request.tokenizer).predict(items, rows=2)] and any(map(shown, found))
    assert all(triple["head"] in one["spans"] and 0.5 < triple["score"] <= 1 for one in found for triple in one["triples"])
    assert type(transformers.AutoModel.from_pretrained(tmp_path)).__name__ == "BertModel"
    assert again.predict([""]) == [{"spans": [], "triples": []}]


def shown(said: dict) -> list[tuple]:
    return [(triple["head"]["text"], triple["label"], triple["tail"]["text"]) for triple in said["triples"]]


def test_a_relation_is_learned_in_every_window_that_shows_both_entities(learned):
    objective, _, request, _ = learned
    text = " ".join(["anna", *["the"] * 20, "paris", *["a"] * 40, "lima"])
    first, second = text.index("paris"), text.index("lima")
    spans = [Span(0, 4, "person"), Span(first, first + 5, "place"), Span(second, second + 4, "place")]
    objective.noticed = {}
    rows = objective.rows_of([TaggedText(text, spans, [(0, 1, "visits"), (1, 2, "visits"), (0, 1, "visits"), (0, 1, "eats")])], wordpiece())
    linked = [(int(row.ids[head]), int(row.ids[tail])) for row in rows for head, tail, number in row.extra["links"] if number >= 0]
    assert linked == [tuple(wordpiece().encode("anna paris"))]
    assert sum(float(row.weights.sum()) for row in rows) == len(text.split())
    assert objective.noticed == {
        "relations are not learned: their entities are too far from each other for one window": 1,
        "relations have a label that no training example has, and are not learned": 1,
    }


def test_of_windows_the_surest_counts():
    spans = [{"first": 0}, {"first": 2}]
    shown = [[(0, 1), (1, 2), (2, 3)], [(1, 1), (2, 2)], [(0, 5), (2, 6)]]
    scores = [np.full((3, 3, 1), -1.0), np.full((2, 2, 1), 9.0), np.full((2, 2, 1), -1.0)]
    scores[0][0, 2, 0], scores[2][0, 1, 0] = 1.0, 2.0
    assert _triples(spans, shown, scores, ["r"]) == [(0, 1, "r", pytest.approx(1 / (1 + math.exp(-2))))]


def test_relations_of_an_entity_that_is_not_tagged_are_counted(learned):
    objective, *_ = learned
    objective.noticed = {}
    text = "anna saw paris"
    example = TaggedText(text, [Span(0, 4, "person"), Span(9, 14, "place"), Span(0, 8, "person")], [(0, 1, "visits")])
    objective.rows_of([example], wordpiece())
    assert objective.noticed["relations are not learned with an entity that is not"] == 1
    assert read_texts(wordpiece(), [text], [None], {})[0].units.offsets == [(0, 4), (5, 8), (9, 14)]


def test_texts_without_a_relation_are_refused(tmp_path):
    rows = [row | {"relations": []} for row in planted(8)]
    with pytest.raises(DataError, match="no relation to learn"):
        open_task(tmp_path, rows, name="joint_relation", mapping={"text": "text", "spans": "entities", "relations": "relations"})
