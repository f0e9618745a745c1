"""GRPO against TRL's own trainer: the same weights, answers, rewards, old and reference log-probabilities."""

from __future__ import annotations

import contextlib
import inspect
import textwrap
from types import SimpleNamespace

import pytest
import torch
from group_lab import gradients, tiny_model
from grpo_lab import begun
from preference_lab import Alone, chat_tokenizer, moved, trainer

from luban.models.huggingface import save_model
from luban.objectives.grpo import advantages_of

pytestmark = pytest.mark.slow  # importing TRL takes some seconds
TEMPERATURE, LONGEST = 0.7, 6


class Machine(Alone):
    """What this trainer asks of accelerate."""

    num_processes = 1
    is_main_process = True

    def autocast(self):
        return contextlib.nullcontext()

    def reduce(self, value, reduction):
        return value


def twin(model, folder):
    from transformers import AutoModelForCausalLM
    from trl.trainer.utils import add_fused_lm_head

    tokenizer = chat_tokenizer()
    save_model(model, folder, end_ids=tokenizer.stop_ids, pad_id=tokenizer.pad_id)
    made = AutoModelForCausalLM.from_pretrained(folder, dtype=model.dtype)
    add_fused_lm_head(made, temperature=TEMPERATURE, outputs=("log_probs", "entropy"))
    return made.train()


def parted(batch, values=None):
    """Prompts aligned at their right, answers at their left, as TRL has them; ``values`` [rows, seq] of the answers' tokens."""
    sizes, said = (batch.segments >= 0).sum(1), (batch.weights > 0).sum(1)
    rows, before, after = len(sizes), int((sizes - said).max()) + 1, int(said.max())
    prompt, prompt_mask = torch.zeros(rows, before, dtype=torch.long), torch.zeros(rows, before, dtype=torch.long)
    answer, answer_mask = torch.zeros(rows, after, dtype=torch.long), torch.zeros(rows, after, dtype=torch.long)
    taken = None if values is None else torch.zeros(rows, after, dtype=values.dtype)
    for row, (size, count) in enumerate(zip(sizes.tolist(), said.tolist(), strict=True)):
        first = size - count + 1
        prompt[row, before - first :], prompt_mask[row, before - first :] = batch.inputs[row, :first], 1
        answer[row, :count], answer_mask[row, :count] = batch.targets[row, first - 1 : size], 1
        if taken is not None:
            taken[row, :count] = values[row, first - 1 : size]
    return taken if values is not None else {"prompt_ids": prompt, "prompt_mask": prompt_mask, "completion_ids": answer, "completion_mask": answer_mask}


def plain(model, batch):
    """Log-probabilities and entropies of the answers from whole logits, as TRL has them."""
    known = (model.logits(model(batch.inputs, **batch.context())) / TEMPERATURE).log_softmax(-1)
    return parted(batch, known.gather(2, batch.targets[..., None])[..., 0]), parted(batch, torch.distributions.Categorical(logits=known).entropy()).detach(), None


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])  # transformers' norms and TRL's head work in float32: the exact one has our model under TRL's loss
@pytest.mark.parametrize(("loss", "beta", "clip", "updates"), [("grpo", 0.0, (0.2, 0.2), 1), ("grpo", 0.3, (0.1, 0.28), 2), ("bnpo", 0.0, (0.2, 0.2), 2), ("bnpo", 0.2, (0.05, 0.1), 2), ("dr_grpo", 0.0, (0.2, 0.2), 2), ("dr_grpo", 0.1, (0.1, 0.1), 2)])
def test_loss_and_gradients_are_trl_s(tmp_path, loss, beta, clip, updates, dtype):
    from trl import GRPOTrainer

    model = tiny_model("qwen3", None).to(dtype)
    settings = {"loss": loss, "beta": beta, "clip_low": clip[0], "clip_high": clip[1], "updates": updates}
    objective, made = begun(tmp_path, model, precision=dtype, sampling={"maximum_tokens": LONGEST, "temperature": TEMPERATURE}, **settings)
    moved(model, size=0.02)
    batch = objective.prepare(made.train.step(0), model)
    moved(model, seed=4, size=0.02)  # ratios and a divergence that are not 1 and 0
    batch.extra["advantage"] = torch.randn(8, generator=torch.Generator().manual_seed(1), dtype=dtype)
    exact = dtype == torch.float64
    theirs = model if exact else twin(model, tmp_path / "twin")
    inputs = parted(batch) | {"advantages": batch.extra["advantage"]}
    inputs |= {"old_per_token_logps": parted(batch, batch.extra["old"])} if updates > 1 else {}
    inputs |= {"ref_per_token_logps": parted(batch, batch.extra["reference"])} if beta else {}
    asked = trainer(
        model=theirs, beta=beta, loss_type=loss, epsilon_low=clip[0], epsilon_high=clip[1], top_entropy_quantile=1.0, off_policy_mask_threshold=None, importance_sampling_level="token",
        use_vllm=False, _entropy_bonus_enabled=False, current_gradient_accumulation_steps=1, max_completion_length=LONGEST, args=SimpleNamespace(delta=None, use_bias_correction_kl=False),
    )  # fmt: skip
    asked.accelerator = Machine()
    asked._get_per_token_logps_and_entropies = lambda *given, **more: plain(model, batch) if exact else GRPOTrainer._get_per_token_logps_and_entropies(asked, *given, **more)
    means, own = gradients(objective, model, batch, 4)
    model.zero_grad()
    value = GRPOTrainer._compute_loss(asked, theirs, inputs)
    assert means["loss"] == pytest.approx(value.item(), **({"rel": 1e-10, "abs": 1e-12} if exact else {"rel": 2e-5, "abs": 2e-6}))
    value.backward()
    for name, parameter in theirs.named_parameters():
        torch.testing.assert_close(own[name], parameter.grad, **({"rtol": 1e-8, "atol": 1e-12} if exact else {"rtol": 1e-3, "atol": 2e-6}))
    known = asked._metrics["train"]
    assert means["entropy"] == pytest.approx(known["entropy"][0], rel=1e-4)
    if beta:
        assert means["divergence"] == pytest.approx(known["kl"][0], rel=1e-3, abs=1e-6) and means["divergence"] > 1e-4
    if updates > 1:
        assert means["clipped"] == pytest.approx(known["clip_ratio/region_mean"][0], abs=1e-6)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
def test_advantages_are_trl_s(scale):
    """The lines of TRL's trainer that turn rewards into advantages, run as they stand there."""
    from trl import GRPOTrainer
    from trl.trainer import grpo_trainer

    source = textwrap.dedent(inspect.getsource(GRPOTrainer._generate_and_score_completions))
    lines = source[source.index("    if self.multi_objective_aggregation ==") : source.index("    # Slice to keep only the local part")]
    each = torch.rand(12, 2, generator=torch.Generator().manual_seed(2))
    each[4:8] = 0.25  # a group without variance
    space = {"self": SimpleNamespace(multi_objective_aggregation="sum_then_normalize", scale_rewards=scale, reward_weights=torch.tensor([1.0, 0.5])), "rewards_per_func": each, "unscorable_mask": torch.zeros(12, dtype=torch.bool), "num_generations": 4, "device": "cpu", "torch": torch, "nanstd": grpo_trainer.nanstd}  # fmt: skip
    exec(textwrap.dedent(lines), space)
    own, deviations = advantages_of(each @ torch.tensor([1.0, 0.5]), 4, scale)
    torch.testing.assert_close(own, space["advantages"], rtol=1e-5, atol=1e-6)
    assert torch.equal(deviations < 1e-8, torch.tensor([False] * 4 + [True] * 4 + [False] * 4))
