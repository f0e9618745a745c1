"""The one loop."""

from __future__ import annotations

import time

from luban.training.guards import Guard
from luban.training.run import Run


def train(run: Run, guard: Guard) -> None:
    """Turn until the schedule ends or something asks to stop. Everything that is not a step is a hook."""
    run.model.train()
    while not run.finished and not run.stop_reason:
        begun = time.monotonic()
        # ------------------------------------------------------------------ one step
        batch = run.loaders.train.step(run.step)
        batch = run.objective.prepare(batch, run.model)
        factor = run.schedule.factor(run.step)
        means = run.engine.forward_backward(batch, factor)
        norm = run.engine.clip(run.config.gradient_clip)
        if guard.accepts(run.step, means, norm, batch):
            run.engine.step(factor, run.step + 1)
        else:
            run.engine.drop_gradients()
        # ---------------------------------------------------------------------------
        run.step += 1
        run.tokens += batch.inputs.numel()
        spent = time.monotonic() - begun
        run.seconds += spent
        run.last = {
            **{name: float(mean) for name, mean in means.items()},
            "gradient_norm": float(norm),
            "learning_rate": run.engine.optimizer.peak * factor,
            "tokens_per_second": batch.inputs.numel() / spent,
        }
        for hook in run.hooks:
            hook.after_step(run)
