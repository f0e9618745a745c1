"""GRPO: its loss in closed form, answers that are drawn again the same, the reference, resumed runs, adapters, validation, a toy task."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from group_lab import assert_same_gradients, gradients, train, write_rows
from grpo_lab import asked, begun, own_reward
from preference_lab import chat_tokenizer, moved, objective_of, policy, start

from luban.adapters.attached import attach
from luban.adapters.config import LoraConfig
from luban.examples.reading import read_examples
from luban.foundation.config import build
from luban.foundation.errors import ConfigError, DataError, LubanError
from luban.objectives import losses as chunked
from luban.objectives.completions import Start
from luban.objectives.config import GRPOConfig
from luban.objectives.grpo import advantages_of
from luban.objectives.losses import token_nats_and_entropy
from luban.parallel.engine import TorchEngine
from luban.training.checkpoints import Checkpointer
from luban.training.log import MEASURED


def test_a_token_s_loss_in_closed_form():
    objective = objective_of("grpo", rewards=["answer"], beta=0.5, clip_low=0.2, clip_high=0.3)
    new = torch.tensor([[0.0, -1.0], [-0.5, -1.0]], dtype=torch.float64)
    old = new - torch.log(torch.tensor([[1.5, 0.7], [1.5, 0.7]], dtype=torch.float64))  # ratios
    reference = new + torch.log(torch.tensor(2.0))
    losses, divergence, clipped = objective.token_losses(new, old, reference, torch.tensor([2.0, -1.0]))
    apart = 2 - np.log(2) - 1
    np.testing.assert_allclose(divergence, np.full((2, 2), apart), rtol=1e-7)
    np.testing.assert_allclose(losses, np.array([[-1.3 * 2, -0.7 * 2], [1.5, 0.8]]) + 0.5 * apart, rtol=1e-7)  # min of clipped and plain
    assert clipped.tolist() == [[True, False], [False, True]]


def test_advantages_by_hand():
    rewards = torch.tensor([1.0, 0.0, 3.0, 3.0], dtype=torch.float64)
    advantages, deviations = advantages_of(rewards, 2, "group")
    assert deviations.tolist() == pytest.approx([np.sqrt(0.5)] * 2 + [0, 0]) and advantages.tolist() == pytest.approx([0.5 / (np.sqrt(0.5) + 1e-4), -0.5 / (np.sqrt(0.5) + 1e-4), 0, 0])
    assert advantages_of(rewards, 2, "none")[0].tolist() == [0.5, -0.5, 0, 0]
    assert advantages_of(rewards, 4, "batch")[0].tolist() == pytest.approx(((rewards - 1.75) / (np.std(rewards.numpy(), ddof=1) + 1e-4)).tolist())


def test_a_step_s_rows_are_prompts_with_answers(tmp_path):
    model = policy()
    objective, made = begun(tmp_path, model, rewards=[own_reward(tmp_path), {"name": "length", "maximum": 3, "weight": 0.5}])
    raw = made.train.step(3)
    batch = objective.prepare(raw, model)
    assert len(batch.inputs) == 8 and objective.prepare(batch, model) is batch
    for row, (said, answer) in enumerate(zip(batch.inputs, batch.weights > 0, strict=True)):
        prompt = objective.prompts[int(raw.extra["prompt"][row // 4])][1]
        size = int((batch.segments[row] >= 0).sum())
        assert said[: len(prompt)].tolist() == prompt and answer.nonzero()[0] == len(prompt) - 1
        ids = batch.targets[row, answer].tolist()
        assert len(ids) == size - len(prompt) + 1 <= 6
        figures = dict(zip(objective.figures, batch.extra["figures"][row].tolist(), strict=True))
        assert figures["completion_length"] == len(ids) and figures["ended"] == (ids[-1] in chat_tokenizer().stop_ids)
        text = chat_tokenizer().decode(ids)
        assert figures["reward/score"] == pytest.approx(min(text.count("e"), 8) / 8) and figures["reward/length"] == (len(ids) <= 3)
        assert figures["reward"] == pytest.approx(figures["reward/score"] + 0.5 * figures["reward/length"])
    assert len({tuple(row.tolist()) for row in batch.targets}) > 4  # answers of a group differ
    known = objective.counts(batch)
    assert known["loss"] == known["reward"] == 8 and known["entropy"] == float((batch.weights > 0).sum())


@pytest.mark.parametrize("settings", [{}, {"loss": "bnpo", "beta": 0.2, "updates": 2}, {"loss": "dr_grpo", "beta": 0.2, "scale_rewards": "none"}])
def test_micro_batches_and_chunks_change_nothing(tmp_path, monkeypatch, settings):
    model = policy()
    objective, made = begun(tmp_path, model, precision=torch.float64, **settings)
    batch = objective.prepare(made.train.step(0), moved(model, size=0.02))
    batch.extra["advantage"] = torch.randn(8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    moved(model, 4, 0.01)
    whole, first = gradients(objective, model, batch, 64)
    parts, second = gradients(objective, model, batch, 1)
    monkeypatch.setattr(chunked, "LARGEST_LOGITS", 5 * model.shape.vocabulary_size)
    pieces, third = gradients(objective, model, batch, 64)
    assert_same_gradients(first, second)
    assert_same_gradients(first, third)
    assert {name: pytest.approx(value, rel=1e-6, abs=1e-9) for name, value in whole.items()} == parts
    assert {name: pytest.approx(value, rel=1e-6, abs=1e-9) for name, value in whole.items()} == pieces
    logits = (model.logits(model(batch.inputs, **batch.context())) / 0.8).log_softmax(-1)
    answers = batch.weights > 0
    nats, entropy = token_nats_and_entropy(model, batch, answers, 0.8)
    torch.testing.assert_close(nats, -logits.gather(2, batch.targets[..., None])[..., 0] * answers, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(entropy, torch.distributions.Categorical(logits=logits).entropy() * answers, rtol=1e-9, atol=1e-12)


def test_the_same_step_draws_the_same_answers(tmp_path):
    model = policy()
    first, made = begun(tmp_path, model)
    wide = first.prepare(made.train.step(5), model)
    second, again = begun(tmp_path, model, slots=3)  # a few at a time
    torch.manual_seed(99)
    assert torch.equal(wide.targets, second.prepare(again.train.step(5), model).targets)
    assert not torch.equal(wide.targets, second.prepare(again.train.step(11), model).targets)  # the same prompts, an epoch later


@pytest.mark.parametrize("adapter", [False, True])
def test_the_reference_is_the_model_at_the_start(tmp_path, adapter):
    model = policy()
    if adapter:
        attach(model, LoraConfig(rank=2), 3, tokenizer=chat_tokenizer())
        model.double()
        with torch.no_grad():
            for name, value in model.named_parameters():
                if value.requires_grad:  # an adapter that has learned already
                    value += 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name)), dtype=value.dtype)
    begin = {name: value.clone() for name, value in model.state_dict().items()}
    objective, made = begun(tmp_path, model, beta=0.1, precision=torch.float64)
    assert adapter == (sum(value.numel() for value in objective.start.kept.values()) < 0.5 * sum(value.numel() for value in model.state_dict().values()))
    raw = made.train.step(0)
    same = objective.prepare(raw, model)
    answers = same.weights > 0
    with torch.no_grad():
        before = -token_nats_and_entropy(model, same, answers, 1.0)[0]
        for value in model.parameters():
            if value.requires_grad:
                value += 0.05
    torch.testing.assert_close(same.extra["reference"], before, rtol=1e-9, atol=1e-12)
    now = {name: value.clone() for name, value in model.state_dict().items()}
    assert any(not torch.equal(begin[name], value) for name, value in now.items())
    with objective.start.worn(model):
        torch.testing.assert_close(-token_nats_and_entropy(model, same, answers, 1.0)[0].detach(), before)
        assert all(torch.equal(begin[name], value) for name, value in model.state_dict().items())
    assert all(torch.equal(now[name], value) for name, value in model.state_dict().items())


def test_a_tied_matrix_is_kept_once():
    model = policy(tied_embeddings=True)
    assert len({value.data_ptr() for value in Start(model).kept.values()}) == len(dict(model.named_parameters()))


def test_validation_is_greedy_and_its_loss_is_the_negative_reward(tmp_path):
    model = policy()
    objective, made = begun(tmp_path, model)
    assert made.validation and made.held_out
    batch = objective.prepare(made.validation[0], model)
    assert torch.equal(batch.targets, objective.prepare(made.validation[0], model).targets) and len(batch.inputs) == len(made.validation[0].inputs)
    means = {name: float(term.sum) / objective.counts(batch)[name] for name, term in objective.terms(model, batch).items()}
    assert means["loss"] == -means["reward"] and not {"flat_groups", "entropy"} & set(means)
    every = torch.cat([objective.prepare(batch, model).extra["figures"][:, 0] for batch in made.validation])
    scores = TorchEngine(model, None, objective, 3, torch.float32).evaluate(made.validation)
    assert scores[objective.judged_by] == pytest.approx(float(every.mean())) and objective.score(model, chat_tokenizer(), made.held_out) == {}


def toy(folder, **settings):
    data, begin = write_rows(folder / "prompts.jsonl", asked(16)), start(folder / "start")
    objective = {"name": "grpo", "rewards": [own_reward(folder)], "sampling": {"maximum_tokens": 5}, **settings.pop("objective", {})}
    given = {"sequence_length": 64, "batch_examples": 2, "length": "4 steps", "checkpoint": {"every": "3 steps"}, "validation": {"every": "20 steps", "share": 0.2}, "determinism": "strict", **settings}
    return lambda name: train(folder / name, begin, data, objective, **given)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_resumed_run_has_the_same_bits(tmp_path, monkeypatch, updates):
    run = toy(tmp_path, objective={"group": 3, "updates": updates, "beta": 0.05})
    whole = run("whole")
    kept = Checkpointer.after_step

    def stopping(self, run):
        kept(self, run)
        if run.step == 3:  # between the two updates
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpointer, "after_step", stopping)
        with pytest.raises((KeyboardInterrupt, LubanError)):
            run("parts")
    parts = run("parts")
    assert (whole.path / "model.safetensors").read_bytes() == (parts.path / "model.safetensors").read_bytes()
    logs = [[{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in (made.path / "training/log.jsonl").read_text().splitlines()] for made in (whole, parts)]
    assert logs[0] == logs[1]


@pytest.mark.parametrize("adapter", [None, {"method": "lora", "rank": 4}])
def test_a_toy_task_is_learned(tmp_path, adapter):
    """Write the letter e as often as you can."""
    more = {"adapter": adapter, "optimizer": {"learning_rate": 5e-2}} if adapter else {"optimizer": {"learning_rate": 1e-2}}
    made = toy(tmp_path, length="30 steps", batch_examples=4, objective={"group": 8, "beta": 0.005}, checkpoint={"every": "100 steps"}, **more)("run")
    before, after = made.metrics["before"]["reward"], made.metrics["after"]["reward"]
    assert made.metrics["best_metric"] == "reward" and after > before + 0.3
    steps = [json.loads(line) for line in (made.path / "training/log.jsonl").read_text().splitlines()]
    logged = next(step for step in steps if step["step"] == 30 and "loss" in step)
    assert {"reward", "reward_deviation", "flat_groups", "completion_length", "ended", "reward/score", "divergence", "entropy"} <= set(logged)


# -------------------------------------------------------------------------------------------------- prompts, mistakes


def test_prompts_in_many_forms():
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2+2?"}, {"role": "assistant", "content": "4"}]
    rows = [
        ([{"messages": messages}], 2, {"answer": "4"}), ([{"prompt": messages[:2], "solution": "4"}], 2, {"solution": "4"}), ([{"question": "2+2?", "answer": "4"}], 1, {"answer": "4"}),
        ([{"prompt": "2+2?", "chosen": "4", "rejected": "5"}], 1, {"chosen": "4", "rejected": "5"}), ([{"conversations": [{"from": "human", "value": "2+2?"}], "id": 7}], 1, {"id": 7}),
        ([{"instruction": "Add", "input": "2 and 2", "output": "4"}], 1, {"output": "4"}), ([{"问题": "二加二？", "答案": "四"}], 1, {"答案": "四"}),
    ]  # fmt: skip
    for row, count, columns in rows:
        one = read_examples(row, "prompt").examples[0]
        assert len(one.messages) == count and one.messages[-1]["role"] == "user" and one.columns == columns
    assert read_examples([{"a": "x", "b": "y"}], "prompt", {"prompt": "b"}).examples[0].messages[0]["content"] == "y"
    assert read_examples([{"instruction": "Add", "input": "2 and 2"}], "prompt").examples[0].messages[0]["content"] == "Add\n2 and 2"
    with pytest.raises(ConfigError, match="mapping"):
        read_examples([{"a": "x"}], "prompt", {"answer": "a"})


def test_bad_lines_are_named_and_counted(tmp_path):
    file = tmp_path / "bad.jsonl"
    file.write_text('{"prompt": "Good?", "answer": "1"}\n{"prompt": "", "answer": "2"}\nno json\n{"prompt": [{"role": "king", "content": "x"}]}\n', encoding="utf-8")
    found = read_examples([file], "prompt")
    assert len(found.examples) == 1 and sorted(bad.line for bad in found.bad) == [2, 3, 4]
    rows = [*asked(6), {"prompt": "king " * 80, "answer": "1"}, {"prompt": "No answer", "answer": None}]
    _, made = begun(tmp_path, rows=rows, rewards=["answer"])
    assert sum(made.report["refused"].values()) == 2
    with pytest.raises(DataError):
        read_examples([{"prompt": "  "}], "prompt")


def test_mistakes_are_named(tmp_path):
    with pytest.raises(ConfigError, match="solution"):
        begun(tmp_path, rewards=[{"name": "answer", "column": "solution"}])
    with pytest.raises(ConfigError, match="sequence_length"):
        begun(tmp_path, rewards=["answer"], sampling={"maximum_tokens": 64})
    for wrong, said in (
        ({"rewards": []}, "rewards"), ({"rewards": [{"name": "answr"}]}, "name is one of"), ({"rewards": [{"name": "answer", "colum": "x"}]}, "column"), ({"rewards": [{"name": "format", "pattern": "("}]}, "regular expression"),
        ({"rewards": ["answer"], "sampling": {"temperature": 0}}, "temperature"), ({"rewards": ["answer"], "group": 1}, "group"), ({"rewards": ["length"]}, "minimum or maximum"), ({"rewards": ["answer"], "sampling": {"seed": 3}}, "seed"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=said):
            build(GRPOConfig, wrong)
