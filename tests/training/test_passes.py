"""R-Drop, mixup, adversarial training, averaging, freezing: each against its closed form, on a small encoder in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from luban.foundation.errors import ConfigError
from luban.models.bert import Bert
from luban.models.bert_shape import BertShapeConfig
from luban.models.heads import Head
from luban.objectives.classification import Classification
from luban.objectives.config import ClassificationConfig
from luban.parallel.engine import TorchEngine
from luban.tokens.batch import Batch, Row, batch_of
from luban.tokens.units import UnitLoader
from luban.training.averaging import Average, MeanTeacher
from luban.training.config import OptimizerConfig
from luban.training.optimizers import Optimizers, layer_depths
from luban.training.passes import make_passes, make_teacher, shifted
from luban.training.regularization import RegularizationConfig
from luban.training.small_data import Unfreezer, add_noise, set_dropout

LABELS = ("a", "b", "c")


def model_of(dropout: float = 0.0) -> Bert:
    shape = BertShapeConfig(vocabulary_size=40, layers=2, hidden_size=16, heads=2, feed_forward_size=32, maximum_positions=16, dropout=dropout, attention_dropout=0.0, initializer_deviation=0.3)
    return Bert(shape).initialize(1).with_head(Head("sequence", "classification", LABELS, "single_label"), 2).double().train()


def objective_of() -> Classification:
    made = Classification(ClassificationConfig())
    made.numbers, made.class_weights = {label: number for number, label in enumerate(LABELS)}, {}
    return made


def batch(sizes: tuple[int, ...] = (4, 7, 5, 6)):
    random = np.random.default_rng(0)
    rows = [Row(random.integers(5, 40, size), np.ones(1, np.float32), extra={"labels": np.int64(size % 3)}) for size in sizes]
    return batch_of(rows, 0, multiple=1)


def gradients(config: RegularizationConfig, micro_batch_rows: int = 4, model: Bert | None = None, teacher: MeanTeacher | None = None, rows: Batch | None = None) -> tuple[dict[str, float], dict[str, torch.Tensor]]:
    model = model or model_of()
    objective = objective_of()
    engine = TorchEngine(model, Optimizers(model, OptimizerConfig(learning_rate=1e-3, embedding_learning_rate=1e-3, matrix_learning_rate=1e-3, weight_decay=0.0)), objective, micro_batch_rows, torch.float32, make_passes(config, objective, model, teacher))
    means = engine.forward_backward(rows or batch())
    return {name: float(value) for name, value in means.items()}, {name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None}


def plain_loss(model: Bert, move: torch.Tensor | None = None) -> torch.Tensor:
    made, objective = batch(), objective_of()
    if move is None:
        return objective.terms(model, made)["loss"].sum / 4
    with shifted(model, move):
        return objective.terms(model, made)["loss"].sum / 4


def by_hand(loss: torch.Tensor, model: Bert) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-11)


def worst_move(model: Bert, move: torch.Tensor) -> torch.Tensor:
    """The gradient of the loss by the move, each example's at norm 1."""
    move = move.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(plain_loss(model, move), move)
    return gradient / gradient.flatten(1).norm(dim=1)[:, None, None]


def test_fgm_is_the_loss_plus_the_loss_one_step_up_its_gradient():
    _, found = gradients(RegularizationConfig(adversarial={"method": "fgm", "epsilon": 0.5, "weight": 0.7}))
    model = model_of()
    move = 0.5 * worst_move(model, torch.zeros(4, 7, 16, dtype=torch.float64))
    assert_same(found, by_hand(plain_loss(model) + 0.7 * plain_loss(model, move), model))


def test_an_adversary_of_auto_reach_moves_each_example_by_two_per_cent_of_its_embeddings():
    _, found = gradients(RegularizationConfig(adversarial={"method": "fgm"}))
    model, made = model_of(), batch()
    norms = torch.stack([model.embedding.weight[row[segments >= 0]].norm() for row, segments in zip(made.inputs, made.segments, strict=True)])
    move = 0.02 * norms[:, None, None].detach() * worst_move(model, torch.zeros(4, 7, 16, dtype=torch.float64))
    wanted = by_hand(plain_loss(model) + plain_loss(model, move), model)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-8)


def test_pgd_is_the_loss_plus_the_loss_at_the_end_of_the_search():
    _, found = gradients(RegularizationConfig(adversarial={"method": "pgd", "epsilon": 0.5, "steps": 3, "step_size": 0.3}))
    model = model_of()
    move = torch.zeros(4, 7, 16, dtype=torch.float64)
    for _ in range(3):
        move = move + 0.3 * worst_move(model, move)
        norm = move.flatten(1).norm(dim=1)[:, None, None]
        move = torch.where(norm > 0.5, move * 0.5 / norm, move)
    assert_same(found, by_hand(plain_loss(model) + plain_loss(model, move), model))


def test_freelb_is_the_mean_of_the_losses_along_its_steps():
    config = RegularizationConfig(adversarial={"method": "freelb", "epsilon": 0.5, "steps": 2, "step_size": 0.3})
    tried, model = model_of(), model_of()
    torch.manual_seed(5)
    _, found = gradients(config, model=tried)
    torch.manual_seed(5)
    start = (torch.rand(4, 7, 16, dtype=torch.float64) * 2 - 1) * 0.5 / (7 * 16) ** 0.5
    step = start + 0.3 * worst_move(model, start)
    norm = step.flatten(1).norm(dim=1)[:, None, None]
    step = torch.where(norm > 0.5, step * 0.5 / norm, step)
    assert_same(found, by_hand((plain_loss(model, start) + plain_loss(model, step)) / 2, model))


@pytest.mark.parametrize("settings", [{"r_drop": 2.0}, {"adversarial": {"method": "fgm"}}, {"adversarial": {"method": "pgd"}}, {}])
def test_micro_batches_do_not_change_the_gradients(settings):
    means, whole = gradients(RegularizationConfig(**settings))
    parts_means, parts = gradients(RegularizationConfig(**settings), micro_batch_rows=1)
    assert means == pytest.approx(parts_means, rel=1e-9)
    assert_same(parts, whole)


def test_r_drop_without_dropout_is_the_plain_loss_and_with_it_keeps_passes_together():
    means, found = gradients(RegularizationConfig(r_drop=3.0))
    _, plain = gradients(RegularizationConfig())
    assert means["divergence"] == pytest.approx(0, abs=1e-12)
    assert_same(found, plain)
    torch.manual_seed(0)
    means, _ = gradients(RegularizationConfig(r_drop=3.0), model=model_of(dropout=0.3))
    assert means["divergence"] > 0.001


def test_smart_penalises_what_a_small_move_changes():
    means, _ = gradients(RegularizationConfig(adversarial={"method": "smart", "step_size": 1e-2, "epsilon": 1e-2}))
    larger, _ = gradients(RegularizationConfig(adversarial={"method": "smart", "step_size": 1e-1, "epsilon": 1e-1}))
    assert 0 < means["smoothness"] < larger["smoothness"]


def test_smart_stays_near_a_slow_average_of_the_weights():
    config = RegularizationConfig(adversarial={"method": "smart", "weight": 0.0, "step_size": 1e-3, "epsilon": 1e-3, "proximal": 0.8, "momentum": 0.75})
    tried, model, slow = model_of(), model_of(dropout=0.5), model_of().eval()
    teacher = make_teacher(config.adversarial, tried)
    means, found = gradients(config, model=tried, teacher=teacher)
    _, plain = gradients(RegularizationConfig())
    assert means["proximal"] == pytest.approx(0, abs=1e-12)  # the teacher starts where the model starts
    assert_same(found, plain)
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, parameter in tried.named_parameters():
            step = 0.1 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter += step
            slow.get_parameter(name).add_(0.25 * step)  # 0.75 · old + 0.25 · (old + step)
    teacher.after_step()
    model.load_state_dict(tried.state_dict())
    set_dropout(model, RegularizationConfig(dropout=0.0))
    tried.zero_grad()
    means, found = gradients(config, micro_batch_rows=3, model=tried, teacher=teacher)
    made = batch()
    one, two = (each.scores(each(made.inputs, segments=made.segments), made.inputs, made.segments).log_softmax(-1) for each in (model, slow))
    two = two.detach()
    apart = ((one.exp() - two.exp()) * (one - two)).sum(-1).mean()  # both Kullback–Leibler divergences
    assert means["proximal"] == pytest.approx(float(apart.detach()), rel=1e-9) and means["proximal"] > 0.01
    assert_same(found, by_hand(plain_loss(model) + 0.8 * apart, model))
    again = make_teacher(config.adversarial, tried)
    again.load_state(teacher.state())
    assert again.shadow.keys() == dict(tried.named_parameters()).keys() and all(torch.equal(again.shadow[name], value) and torch.allclose(value, slow.get_parameter(name)) for name, value in teacher.shadow.items())
    assert tried.training


def test_the_slow_average_has_no_dropout_and_leaves_the_frozen_alone():
    tried, config = model_of(dropout=0.5), RegularizationConfig(adversarial={"method": "smart", "proximal": 1.0})
    tried.bert.embeddings.requires_grad_(False)
    teacher = make_teacher(config.adversarial, tried)
    made = batch()
    with teacher.applied():
        hidden = [tried(made.inputs, segments=made.segments) for _ in range(2)]
    assert torch.equal(*hidden) and not hidden[0].requires_grad and tried.training
    assert not any("embeddings" in name for name in teacher.shadow) and "classifier.weight" in teacher.shadow
    tried.bert.embeddings.requires_grad_(True)
    with teacher.applied():
        assert any("embeddings" in name for name in teacher.shadow)
    with pytest.raises(ConfigError, match="belongs to smart"):
        make_passes(RegularizationConfig(adversarial={"method": "fgm", "proximal": 1.0}), objective_of(), model_of())


@pytest.mark.parametrize("sizes", [(4, 7, 5, 6), (4, 7, 5, 6, 3), (4,)], ids=len)
def test_mixup_mixes_states_and_losses_of_pairs_whatever_the_micro_batches(sizes):
    """One of an odd number is mixed with itself, which is the plain loss."""
    made, model, count = batch(sizes), model_of(), len(sizes)
    torch.manual_seed(3)
    after = torch.randint(2**62, ())
    with torch.random.fork_rng([]):
        torch.manual_seed(int(after))
        share, order = float(torch.distributions.Beta(0.4, 0.4).sample()), torch.randperm(count).tolist()
    pairs = [(order[first], order[first + 1]) for first in range(0, count - 1, 2)]
    partner = dict(pairs) | {other: one for one, other in pairs}
    others = torch.tensor([partner.get(row, row) for row in range(count)])
    hidden = model(made.inputs, segments=made.segments, positions=made.positions)
    scores = model.scores(share * hidden + (1 - share) * hidden[others], made.inputs, made.segments)
    labels = made.extra["labels"]
    loss = share * torch.nn.functional.cross_entropy(scores, labels) + (1 - share) * torch.nn.functional.cross_entropy(scores, labels[others])
    expected, drawn = by_hand(loss, model), torch.randint(100, ())
    for rows in (1, 2, 4, 9):
        tried = model_of()
        torch.manual_seed(3)
        means, found = gradients(RegularizationConfig(mixup=0.4), rows, tried, rows=made)
        assert means["loss"] == pytest.approx(float(loss.detach()), rel=1e-9)
        assert_same(found, expected)
        assert int(torch.randint(100, ())) == int(drawn), "one number of the run's own stream was taken"


def test_what_cannot_be_combined_is_refused_by_name():
    with pytest.raises(ConfigError, match="r_drop, mixup"):
        make_passes(RegularizationConfig(r_drop=1, mixup=1), objective_of(), model_of())
    with pytest.raises(ConfigError, match="names no parameter"):
        Optimizers(model_of(), OptimizerConfig(learning_rate=1, embedding_learning_rate=1, weight_decay=0), RegularizationConfig(freeze=["layer.7"]))


def test_learning_rates_decay_downwards_and_frozen_parts_stay():
    model = model_of()
    config = OptimizerConfig(learning_rate=1.0, embedding_learning_rate=1.0, weight_decay=0.0)
    optimizer = Optimizers(model, config, RegularizationConfig(layer_decay=0.5, head_rate=3.0, freeze=["embeddings"]))
    rates = {optimizer.names[parameter]: group["peak"] for part in optimizer.parts for group in part.param_groups for parameter in group["params"]}
    assert rates["bert.encoder.layer.0.output.dense.weight"] == 0.25 and rates["bert.encoder.layer.1.output.dense.weight"] == 0.5
    assert rates["classifier.weight"] == 3.0
    assert not any("embeddings" in name for name in rates)
    depths = layer_depths(model)
    assert {depths[name] for name in depths if "embeddings" in name} == {0} and depths["classifier.bias"] == 3


def test_gradual_unfreezing_goes_from_the_top_and_depends_on_the_step_alone():
    model = model_of()
    unfreezer = Unfreezer(model, 10)

    def learning(step: int) -> set[int]:
        unfreezer.set(model, step)
        depths = layer_depths(model)
        return {depths[name] for name, parameter in model.named_parameters() if parameter.requires_grad}

    assert [learning(step) for step in (0, 9, 10, 20, 30, 99)] == [{3}, {3}, {2, 3}, {1, 2, 3}, {0, 1, 2, 3}, {0, 1, 2, 3}]


def test_exponential_average_follows_and_soups_are_means():
    model = model_of()
    average = Average(model, RegularizationConfig(average="exponential", average_decay=0.5))
    name, weight = "classifier.weight", model.classifier.weight
    with torch.no_grad():
        start = weight.clone()
        average.after_step()  # the first value
        weight += 1.0
        average.after_step()
    torch.testing.assert_close(average.shadow[0][name], start + (1 - min(0.5, 2 / 11)))
    learned = weight.detach().clone()
    with average.applied():
        torch.testing.assert_close(weight.detach(), average.shadow[0][name])
    torch.testing.assert_close(weight.detach(), learned)
    again = Average(model, average.config)
    again.load_state(average.state())
    assert again.steps == average.steps and torch.equal(again.shadow[0][name], average.shadow[0][name])

    soup = Average(model, RegularizationConfig(average="validations", average_last=2))
    with torch.no_grad():
        for value in (1.0, 2.0, 4.0):
            weight.fill_(value)
            soup.at_validation()
    soup.apply()
    torch.testing.assert_close(weight.detach(), torch.full_like(weight, 3.0))


def test_noise_and_dropout_are_there_in_training_only():
    model = model_of()
    made = batch()
    quiet = model.eval()(made.inputs, segments=made.segments)
    add_noise(model, 5.0)
    assert torch.equal(model(made.inputs, segments=made.segments), quiet)
    assert not torch.equal(model.train()(made.inputs, segments=made.segments), quiet)
    set_dropout(model, RegularizationConfig(dropout=0.25))
    assert {module.p for module in model.modules() if isinstance(module, torch.nn.Dropout)} == {0.25}


def test_a_curriculum_starts_with_short_examples_and_is_pure():
    units = [[Row(np.arange(1, size + 1), np.ones(1, np.float32))] for size in range(1, 101)]
    loader = UnitLoader(units, units_per_step=5, seed=1, pad_id=0)
    plain = [loader.step(index).sources for index in (40, 41)]
    loader.pace(40)
    lengths = [int((loader.step(index).segments >= 0).sum(1).max()) for index in range(40)]
    assert max(lengths[:2]) <= 20 and max(lengths[-10:]) > 70
    assert torch.equal(loader.step(3).inputs, loader.step(3).inputs)
    assert [loader.step(index).sources for index in (40, 41)] == plain
