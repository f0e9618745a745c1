"""Embeddings: the loss against closed forms, gradient caching against one pass, masks against brute force, and a training that finds planted matches."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as functional
from group_lab import SMALL, THINGS, assert_same_gradients, gradients, opened, start_directory, tiny_model, train, write_rows
from hypothesis import given
from hypothesis import strategies as some
from text_lab import tokenizer_of_style

from luban.examples.tasks import Ranking
from luban.foundation.errors import ConfigError
from luban.inference.predictor import Predictor
from luban.models.heads import Head
from luban.objectives.config import EmbeddingConfig
from luban.objectives.embedding import Embedding, contrastive, cosent, matches, taken
from luban.objectives.retrieval import Pool
from luban.tokens.batch import Row
from luban.training.passes import make_passes
from luban.training.regularization import AdversarialConfig, RegularizationConfig

PAIRS = [{"query": f"where is the {one} {two}", "positive": f"the {two} {one} is here"} for one in THINGS for two in THINGS[:4]]


def model_for(objective, **shape):
    shape = {"attention_dropout": 0.0, "dropout": 0.0, **shape}
    return tiny_model("bert", objective.head, **shape).double().train()


# ---- the loss ----------------------------------------------------------------------------------------------------------


def test_with_one_match_each_it_is_cross_entropy_over_the_batch():
    torch.manual_seed(0)
    scores = torch.randn(5, 5, dtype=torch.float64)
    diagonal = torch.eye(5, dtype=torch.bool)
    found = contrastive(scores, torch.arange(5), torch.ones(5, dtype=torch.bool), diagonal)
    torch.testing.assert_close(found, functional.cross_entropy(scores, torch.arange(5), reduction="none"))
    both = contrastive(scores, torch.arange(5), torch.ones(5, dtype=torch.bool), diagonal, symmetric=True)
    torch.testing.assert_close(both, (found + functional.cross_entropy(scores.T, torch.arange(5), reduction="none")) / 2)


@given(some.integers(1, 5), some.integers(1, 3), some.integers(0, 2), some.integers(1, 4), some.booleans(), some.integers(0, 99))
def test_losses_and_masks_against_loops(count, positives, negatives, different, symmetric, seed):
    """Few different texts, so that texts meet again as query, match and negative of others."""
    random = np.random.default_rng(seed)
    asked = random.integers(0, different, count)
    owner, kind, texts = [], [], []
    for number in range(count):
        for place in range(positives + negatives):
            if place == 0 or random.random() < 0.7:
                owner.append(number), kind.append(place < positives), texts.append(int(random.integers(0, 2 * different)))
    scores = torch.tensor(random.normal(size=(count, len(owner))))
    known = {int(asked[0]): {1}}
    belongs = matches(torch.tensor(asked), torch.tensor(texts), torch.tensor(owner), torch.tensor(kind), known)
    own = {query: {text for text, place, good in zip(texts, owner, kind, strict=True) if good and asked[place] == query} | known.get(query, set()) | {query} for query in asked.tolist()}
    assert belongs.tolist() == [[text in own[query] for text in texts] for query in asked.tolist()]
    wanted = []
    for number in range(count):
        losses = []
        for place in [place for place, good in enumerate(kind) if good and owner[place] == number]:
            right = math.exp(scores[number, place])
            wrong = sum(math.exp(scores[number, other]) for other in range(len(owner)) if not belongs[number, other])
            loss = -math.log(right / (right + wrong))
            if symmetric:
                others = sum(math.exp(scores[other, place]) for other in range(count) if not belongs[other, place])
                loss = (loss - math.log(right / (right + others))) / 2
            losses.append(loss)
        wanted.append(sum(losses) / len(losses))
    found = contrastive(scores, torch.tensor(owner), torch.tensor(kind), belongs, symmetric)
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), rtol=1e-6, atol=1e-9)


def test_nothing_to_tell_apart_gives_no_loss_and_finite_gradients():
    scores = torch.ones(2, 2, dtype=torch.float64, requires_grad=True)
    loss = contrastive(scores, torch.arange(2), torch.ones(2, dtype=torch.bool), torch.ones(2, 2, dtype=torch.bool), symmetric=True).sum()
    loss.backward()
    assert float(loss.detach()) == 0 and bool(scores.grad.isfinite().all())


def test_cosent_against_loops():
    random = np.random.default_rng(1)
    cosines, grades = random.uniform(-1, 1, 7), np.array([0, 1, 1, 2, 5, 5, 3.5])
    wanted = math.log(1 + sum(math.exp(20 * (cosines[low] - cosines[high])) for low in range(7) for high in range(7) if grades[low] < grades[high]))
    assert float(cosent(torch.tensor(cosines) * 20, torch.tensor(grades))) == pytest.approx(wanted)
    assert float(cosent(torch.ones(3), torch.ones(3))) == 0


def test_shorter_vectors_are_trained_too(tmp_path):
    objective = Embedding(EmbeddingConfig(matryoshka=[4, 16], temperature=0.1))
    batch = opened(objective, write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path).train.step(0)
    assert objective.head.settings["dimensions"] == [4, 16, 32]
    model = model_for(objective)
    vectors = objective.outputs(model, batch)
    wanted = 0.0
    for size in (4, 16, 32):
        short = functional.normalize(vectors[:, :size], dim=-1)
        wanted += functional.cross_entropy(short[::2] @ short[1::2].T / 0.1, torch.arange(8), reduction="sum")
    torch.testing.assert_close(objective.terms(model, batch)["loss"].sum, wanted)


# ---- batches -----------------------------------------------------------------------------------------------------------


def test_groups_hold_matches_and_negatives_and_change_with_the_epoch(tmp_path):
    rows = [{"query": f"question {n}", "positive": [f"good {n} {k}" for k in range(3)], "negative": [f"bad {n} {k}" for k in range(n % 4)]} for n in range(20)]
    objective = Embedding(EmbeddingConfig(hard_negatives=2))
    loaders = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path, examples_per_step=16)
    batch = loaders.train.step(0)
    assert batch.group == 4 and batch.count == 16
    roles = batch.extra["role"].view(-1, 4)
    assert (roles[:, :2] == torch.tensor([1, 2])).all() and set(roles[:, 2:].flatten().tolist()) == {0, 3}
    assert ((batch.segments >= 0).any(1) == (batch.extra["role"] > 0)).all()
    seen = {int(text) for step in range(3) for text in loaders.train.step(step).extra["text"].view(-1, 4)[:, 1]}
    assert len(seen) == 3 * 16  # each of the three matches once in three epochs
    assert torch.equal(loaders.train.step(5).inputs, opened(Embedding(EmbeddingConfig(hard_negatives=2)), tmp_path / "rows.jsonl", tmp_path, examples_per_step=16).train.step(5).inputs)


def test_taken_goes_round():
    rows = [Row(np.array([n]), np.zeros(1)) for n in range(5)]
    seen = [row.ids[0] for epoch in range(5) for row in taken(rows, 2, 1, 2, epoch)]
    assert sorted(seen) == sorted([0, 1, 2, 3, 4] * 2)
    assert [len(row.ids) for row in taken(rows[:1], 3, 1, 2, 0)] == [1, 0, 0]


def test_equal_texts_are_no_negatives_of_each_other(tmp_path):
    """A batch in which every match says the same, in other letters: nothing can be told apart."""
    rows = [{"query": f"question {n}", "positive": "The SAME answer." if n % 2 else "the same answer"} for n in range(12)]
    objective = Embedding(EmbeddingConfig())
    batch = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path).train.step(0)
    assert float(objective.terms(model_for(objective), batch)["loss"].sum) == pytest.approx(0, abs=1e-9)


def test_a_match_in_another_example_is_no_negative(tmp_path):
    rows = [{"query": "one question", "positive": f"answer {n}"} for n in range(10)] + [{"query": f"other {n}", "positive": f"reply {n}"} for n in range(6)]
    objective = Embedding(EmbeddingConfig())
    loaders = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path, validation_share=0.1)
    known = next(texts for texts in objective.known.values() if len(texts) > 1)
    assert len(known) == 10 and loaders.report["examples"] + loaders.report["validation_examples"] == 16


def test_examples_without_a_match_are_counted(tmp_path):
    rows = [{"query": f"question {n}", "document": [f"a {n}", f"b {n}"], "grade": [1, 0] if n % 3 else [0, 0]} for n in range(12)]
    objective = Embedding(EmbeddingConfig())
    loaders = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path)
    assert loaders.report["refused"] == {"it has no matching text": 4}


def test_too_many_dimensions_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="32 dimensions"):
        opened(Embedding(EmbeddingConfig(matryoshka=[64])), write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path)


# ---- gradient caching --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("settings", [{}, {"matryoshka": [8], "symmetric": True}, {"loss": "cosent"}])
def test_cached_gradients_are_those_of_the_whole_batch(tmp_path, settings):
    rows = [{**row, "negative": f"not the {THINGS[n % 10]}"} if n % 2 else row for n, row in enumerate(PAIRS)]
    objective = Embedding(EmbeddingConfig(**settings))
    batch = opened(objective, write_rows(tmp_path / "rows.jsonl", rows), tmp_path).train.step(0)
    model = model_for(objective, layers=2)
    whole, wanted = gradients(objective, model, batch, 10**6)
    for rows_at_once in (1, 3, 7):
        means, found = gradients(objective, model, batch, rows_at_once)
        assert means["loss"] == pytest.approx(whole["loss"], abs=1e-12)
        assert_same_gradients(wanted, found)


def test_dropout_is_the_same_in_both_readings(tmp_path):
    """The numeric slope of the loss along a direction, with the random state of the step, is what the cached gradients say."""
    objective = Embedding(EmbeddingConfig(temperature=0.5))
    batch = opened(objective, write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path).train.step(0)
    batch.micro_rows = 5
    model = model_for(objective, dropout=0.3)
    weight = model.embedding.weight
    direction = torch.randn_like(weight)

    def loss(step: float) -> torch.Tensor:
        torch.manual_seed(7)
        with torch.no_grad():
            weight.add_(step * direction)
        value = objective.terms(model, batch)["loss"].sum
        with torch.no_grad():
            weight.sub_(step * direction)
        return value

    torch.manual_seed(7)
    objective.terms(model, batch)["loss"].sum.backward()
    slope = float((weight.grad * direction).sum())
    assert slope == pytest.approx(float(loss(1e-5) - loss(-1e-5)) / 2e-5, rel=1e-5)


def test_one_micro_batch_is_held_at_a_time(tmp_path):
    """The largest number of live attention outputs does not grow with the batch."""
    objective = Embedding(EmbeddingConfig())
    batch = opened(objective, write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path, examples_per_step=16).train.step(0)
    model = model_for(objective)

    def saved(micro_rows: int) -> int:
        batch.micro_rows = micro_rows
        sizes: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda tensor: sizes.append(tensor.numel()) or tensor, lambda tensor: tensor):
            objective.terms(model, batch)
        return sum(sizes)

    assert saved(4) < saved(0) / 5


def test_adversarial_passes_are_refused():
    objective = Embedding(EmbeddingConfig())
    with pytest.raises(ConfigError, match="adversarial"):
        make_passes(RegularizationConfig(adversarial=AdversarialConfig(method="fgm")), objective, tiny_model("bert", Head("vector", "embedding")))


def test_r_drop_compares_vectors(tmp_path):
    objective = Embedding(EmbeddingConfig())
    batch = opened(objective, write_rows(tmp_path / "pairs.jsonl", PAIRS), tmp_path).train.step(0)
    model = model_for(objective, dropout=0.3)
    first, second = objective.outputs(model, batch), objective.outputs(model, batch)
    apart = (objective.divergence(first, second) * objective.unit_weights(batch)).sum()
    assert 0 < float(apart) < 4 * 8 and float(objective.unit_weights(batch).sum()) == pytest.approx(8)


# ---- graded pairs ------------------------------------------------------------------------------------------------------


def test_graded_pairs_are_recognised_and_scored_by_their_order(tmp_path):
    rows = [{"sentence1": f"the {THINGS[n % 10]}", "sentence2": f"a {THINGS[n % 7]}", "score": round(1 + 4 * (n % 9) / 9, 1)} for n in range(40)]
    file = write_rows(tmp_path / "graded.jsonl", rows)
    objective = Embedding(EmbeddingConfig())
    loaders = opened(objective, file, tmp_path)
    assert objective.loss == "cosent" and objective.scope == "batch"
    model = model_for(objective)
    scores = objective.score(model.float(), tokenizer_of_style("bert"), loaders.held_out)
    assert next(iter(scores)) == "spearman"
    cosine = Embedding(EmbeddingConfig(loss="cosine"))
    loaders = opened(cosine, file, tmp_path)
    batch, model = loaders.train.step(0), model_for(cosine)
    assert cosine.scope == "example"
    vectors = functional.normalize(cosine.outputs(model, batch), dim=-1)
    targets = (batch.extra["grade"][::2].double() - cosine.low) / (cosine.high - cosine.low)
    wanted = ((vectors[::2] * vectors[1::2]).sum(1) - targets).square().sum()
    torch.testing.assert_close(cosine.terms(model, batch)["loss"].sum, wanted, rtol=1e-5, atol=1e-6)
    assert_same_gradients(gradients(cosine, model, batch, 100)[1], gradients(cosine, model, batch, 3)[1])


# ---- the whole way -----------------------------------------------------------------------------------------------------


def test_training_finds_planted_matches(tmp_path):
    """Matches that share no word with their query: each thing has an opposite, and held-out texts combine known ones anew."""
    other = ["east", "iron", "小", "wide", "forty", "song", "north", "春", "glass", "seven"]
    rows = [{"query": f"{THINGS[one]} {THINGS[two]}", "positive": f"{other[two]} {other[one]}"} for one in range(10) for two in range(10) if one != two]
    start = start_directory(tmp_path / "start", **SMALL)
    artifact = train(tmp_path, start, write_rows(tmp_path / "pairs.jsonl", rows), {"name": "embedding", "matryoshka": [16]}, length="200 steps", validation={"every": "200 steps"})
    assert artifact.metrics["best_metric"] == "ndcg@10" and artifact.metrics["after"]["ndcg@10"] > max(0.8, artifact.metrics["before"]["ndcg@10"] + 0.2)
    predictor = Predictor.load(artifact.path)
    near, far = predictor.predict([{"query": "apple river", "documents": ["iron east", "wide song"]}])[0]["scores"]
    assert near > far
    files = [json.loads((artifact.path / name).read_text()) for name in ("modules.json", "1_Pooling/config.json", "sentence_bert_config.json")]
    assert [module["path"] for module in files[0]] == ["", "1_Pooling", "2_Normalize"] and files[1]["pooling_mode_mean_tokens"] and files[2]["max_seq_length"] == 48


def test_the_pool_merges_documents_and_leaves_the_query_out():
    examples = [Ranking("a", ["x", "y"], [1, 0]), Ranking("b", ["y"], [1]), Ranking("a", ["z", "a"], [2, 1])]
    pool = Pool(examples)
    assert pool.corpus == ["x", "y", "z", "a"] and pool.relevant == {"a": {0: 1, 2: 2}, "b": {1: 1}}
    order = np.array([[3, 1, 0], [0, 1, 2]])
    found = pool.predictions(lambda _corpus, _queries, _k: (np.array([[9.0, 8, 7], [3, 2, 1]]), order), lambda query, numbers: [-1.0] * len(numbers))
    assert found[0]["retrieved"] == [[8, 0], [7, 1], [-1, 2]] == found[2]["retrieved"]
    assert found[1]["retrieved"] == [[3, 0], [2, 1], [1, 0]]
